"""`compact13k`: 13,808 parameters, twenty epochs of plain SGD."""

from mnist_accel.recipe import Claim, Recipe

RECIPE = Recipe(
    name="compact13k",
    model="compact13k",
    epochs=20,
    batch_size=64,
    optimizer="sgd",
    lr=0.01,
    momentum=0.9,
    dropout=0.1,
    claims=(
        Claim(metric="parameters", relation="=", value=13_808),
        Claim(metric="accuracy", relation=">=", value=99.46, note="best of its log, approximately"),
        Claim(metric="accuracy", relation=">=", value=99.41, epoch=20, note="its log"),
        Claim(metric="accuracy", relation=">=", value=98.32, epoch=1, note="its log"),
        Claim(metric="test_loss", relation="<=", value=0.0186, epoch=20, note="its log"),
    ),
)
