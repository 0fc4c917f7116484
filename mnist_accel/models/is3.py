"""``is3``: two 5×5 convolutions, a hidden layer of 256, one output for "is it a three?"."""

from torch import nn

from mnist_accel.models.layers import in_order


def is3(dropout: float = 0.2) -> nn.Sequential:
    """28 → conv 24 → pool 12 → conv 8 → pool 4 → 512 → 256 → 1; the output is the logit of "yes".

    ReLU stands after each pool, not before it: the same values from a quarter of the work.
    """
    return in_order(
        nn.Conv2d(1, 16, kernel_size=5),
        nn.MaxPool2d(2),
        nn.ReLU(inplace=True),
        nn.Conv2d(16, 32, kernel_size=5),
        nn.MaxPool2d(2),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Dropout(dropout),
        nn.Linear(32 * 4 * 4, 256),
        nn.ReLU(inplace=True),
        nn.Dropout(dropout),
        nn.Linear(256, 1),
    )
