"""`efficient25k`: "Efficient MNIST", a classifier under 25,000 parameters trained for one epoch on a CPU.

Documented: three blocks of Conv 3×3, BN, ReLU, MaxPool (8, 16, 32 channels), global average pool, Linear 32→64, ReLU,
Dropout 0.3, Linear 64→10; Adam lr 0.001, weight decay 1e-4, batch 128, rotation ±10°, translation ±10 %; 95.29 % (floor
95 %) after 16.76 s of training on a CPU (budget 20 s), about 3 to 5 s on a GPU.

Gaps and contradictions, and what this recipe does:
- "No bias in conv layers" would make 8,706 parameters; the documented 8,762 needs the 56 convolution biases. The count
  wins.
- Padding is not given; only padding 1 leaves 3×3 pixels for the pool after three halvings. It changes no count.
- What the 16.76 s cover is not said. `train_seconds` (training steps alone) is held against them.
- Whether 95.29 % is a mean or the best of several runs is not said. Here it is the mean over seeds that counts.
- Rotation and translation: drawn uniformly, in one warp with bilinear sampling; the document's library and its
  interpolation are not said.

Measured on the test images after the epoch, mean of 20 seeds: 92.14 ± 2.93 % (85.06 to 95.43), by
    python -m mnist_accel verify recipe=efficient25k seeds=20
So 95.29 % is no mean of this regime: at a constant learning rate one epoch ends on a step like any other, and the
accuracy jumps by points from one to the next. The plain torchvision script of the same network (benchmarks/stock.py)
lands in the same range.
"""

from mnist_accel.recipe import Claim, Measured, Recipe

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
    measured=Measured(
        accuracy=92.14, seeds=20, spread=2.93, command="python -m mnist_accel verify recipe=efficient25k seeds=20"
    ),
)
