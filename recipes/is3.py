"""`is3`: is this digit a three?"""

from mnist_accel.recipe import Claim, Recipe

RECIPE = Recipe(
    name="is3",
    model="is3",
    loss="binary",
    positive_class=3,
    epochs=50,
    batch_size=128,
    optimizer="sgd",
    lr=0.05,
    momentum=0.9,
    dropout=0.2,
    mean=0.1307,
    std=0.3081,
    claims=(
        Claim(metric="accuracy", relation=">=", value=99.9, epoch=50),
        Claim(metric="parameters", relation="=", value=144_833, note="our reading"),
    ),
)
