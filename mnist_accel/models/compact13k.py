"""``compact13k``: eight convolutions, none with a bias, 13,808 parameters."""

from torch import nn

from mnist_accel.models.layers import Dropout, in_order


def conv_block(in_channels: int, out_channels: int, dropout: float, padding: int = 0) -> list[nn.Module]:
    return [
        nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=padding, bias=False),
        nn.ReLU(inplace=True),
        nn.BatchNorm2d(out_channels),
        Dropout(dropout),
    ]


def compact13k(dropout: float = 0.1) -> nn.Sequential:
    """28 → 26 → 24 → 24 → pool 12 → 10 → 8 → 6 → 6 → average 1."""
    return in_order(
        *conv_block(1, 16, dropout),
        *conv_block(16, 32, dropout),
        nn.Conv2d(32, 10, kernel_size=1, bias=False),
        nn.MaxPool2d(2, 2),
        *conv_block(10, 16, dropout),
        *conv_block(16, 16, dropout),
        *conv_block(16, 16, dropout),
        *conv_block(16, 16, dropout, padding=1),
        nn.AvgPool2d(6),
        nn.Conv2d(16, 10, kernel_size=1, bias=False),
        nn.Flatten(),
    )
