"""``under2k``: one convolution and four separable ones, 1,938 parameters."""

from torch import nn

from mnist_accel.models.layers import in_order, separable_block


def under2k(dropout: float = 0.0) -> nn.Sequential:
    """28 → pool 14 → pool 7 → average 1."""
    return in_order(
        nn.Conv2d(1, 8, kernel_size=3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.MaxPool2d(2),
        nn.ReLU(inplace=True),
        *separable_block(8, 17, kernel_size=3),
        *separable_block(17, 17, kernel_size=3, pool=True),
        *separable_block(17, 17, kernel_size=3),
        *separable_block(17, 17, kernel_size=3),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(dropout),
        nn.Linear(17, 10),
    )
