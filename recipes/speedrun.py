"""`speedrun`: 99 % of the test images in as little training time as two CPU cores allow. Our own network.

To be measured.
"""

from mnist_accel.recipe import Claim, Recipe

RECIPE = Recipe(
    name="speedrun",
    model="speedrun",
    epochs=1,
    batch_size=256,
    optimizer="adamw",
    lr=0.03,
    beta1=0.7,
    beta2=0.9,
    weight_decay=0.05,
    schedule="linear",
    warmup=0.2,
    label_smoothing=0.1,
    first_filters="whitening",
    test_shifts=1,
    dropout=0.0,
    claims=(Claim(metric="parameters", relation="=", value=23_338, note="416 of them fixed"),),
)
