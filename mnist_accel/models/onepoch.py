"""``onepoch``: two convolution blocks and one fully connected layer."""

from torch import nn

from mnist_accel.models.layers import RowMajor, in_order

FIRST_WIDTH = 5  # documented
SECOND_WIDTH = 32  # not documented; recipes/onepoch.py tells how it was chosen


def conv_block(in_channels: int, out_channels: int, dropout: float) -> list[nn.Module]:
    """The documented Conv, ReLU, Dropout2d, MaxPool, BatchNorm, with the pool moved up to just behind the convolution.

    ReLU and Dropout2d scale a whole channel by a number that is never negative, so the maximum may be taken first:
    the same values and gradients from a quarter of the work (tests/test_models.py holds the two orders together).
    """
    return [
        nn.Conv2d(in_channels, out_channels, kernel_size=3, stride=1),
        nn.MaxPool2d(2, 2),
        nn.ReLU(inplace=True),
        nn.Dropout2d(dropout),
        RowMajor(),
        nn.BatchNorm2d(out_channels),
    ]


def onepoch(dropout: float = 0.1) -> nn.Sequential:
    """28 → conv 26 → pool 13 → conv 11 → pool 5 → linear."""
    return in_order(
        *conv_block(1, FIRST_WIDTH, dropout),
        *conv_block(FIRST_WIDTH, SECOND_WIDTH, dropout),
        nn.Flatten(),
        nn.Linear(SECOND_WIDTH * 5 * 5, 10),
    )
