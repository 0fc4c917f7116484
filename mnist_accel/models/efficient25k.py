"""``efficient25k``: three convolution blocks, global average pool, a small classifier."""

from torch import nn

from mnist_accel.models.layers import in_order


def conv_block(in_channels: int, out_channels: int) -> list[nn.Module]:
    """The documented Conv, BN, ReLU, MaxPool with the last two swapped: both only pick values, so the result is the
    same and ReLU does a quarter of the work. The biases before batch norm are what makes the count 8,762."""
    return [
        nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1),
        nn.BatchNorm2d(out_channels),
        nn.MaxPool2d(2),
        nn.ReLU(inplace=True),
    ]


def efficient25k(dropout: float = 0.3) -> nn.Sequential:
    """28 → pool 14 → pool 7 → pool 3 → average 1 → 64 → 10."""
    return in_order(
        *conv_block(1, 8),
        *conv_block(8, 16),
        *conv_block(16, 32),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 64),
        nn.ReLU(inplace=True),
        nn.Dropout(dropout),
        nn.Linear(64, 10),
    )
