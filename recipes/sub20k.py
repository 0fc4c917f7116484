"""`sub20k`: nine convolutions, fewer than 20,000 parameters, above 99.4 % in fewer than 20 epochs."""

from mnist_accel.recipe import Claim, Recipe

RECIPE = Recipe(
    name="sub20k",
    model="sub20k",
    epochs=19,
    batch_size=128,
    optimizer="adamw",
    lr=0.01,
    weight_decay=0.01,
    schedule="onecycle",
    dropout=0.1,
    rotation=7,
    translation=0.05,
    claims=(
        Claim(metric="parameters", relation="=", value=19_712),
        Claim(metric="parameters", relation="<", value=20_000, note="budget"),
        Claim(metric="accuracy", relation=">", value=99.4),
        Claim(metric="accuracy", relation=">=", value=99.44, epoch=8),
    ),
)
