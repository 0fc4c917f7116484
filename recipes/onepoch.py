"""placeholder during bring-up"""

from mnist_accel.recipe import Recipe

RECIPE = Recipe(
    name="onepoch",
    model="onepoch",
    epochs=1,
    batch_size=64,
    optimizer="adamw",
    lr=0.01,
    schedule="linear",
    dropout=0.1,
)
