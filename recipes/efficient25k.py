"""`efficient25k`: "Efficient MNIST", a classifier under 25,000 parameters trained for one epoch."""

from mnist_accel.recipe import Claim, Recipe

RECIPE = Recipe(
    name="efficient25k",
    model="efficient25k",
    epochs=1,
    batch_size=128,
    optimizer="adam",
    lr=0.001,
    weight_decay=1e-4,
    dropout=0.3,
    rotation=10,
    translation=0.1,
    claims=(
        Claim(metric="parameters", relation="=", value=8_762),
        Claim(metric="parameters", relation="<", value=25_000, note="budget"),
        Claim(metric="accuracy", relation=">=", value=95.29),
        Claim(metric="accuracy", relation=">=", value=95, note="floor"),
        Claim(metric="train_seconds", relation="<=", value=16.76, device="cpu"),
        Claim(metric="train_seconds", relation="<=", value=20, device="cpu", note="budget"),
        Claim(metric="train_seconds", relation="<=", value=5, device="cuda", note="about 3 to 5"),
    ),
)
