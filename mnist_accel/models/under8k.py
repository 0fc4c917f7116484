"""``under8k``: one convolution and five separable ones, 7,834 parameters."""

from torch import nn

from mnist_accel.models.layers import in_order, separable_block


def under8k(dropout: float = 0.0) -> nn.Sequential:
    """28 → pool 14 → pool 7 → average 1."""
    return in_order(
        nn.Conv2d(1, 8, kernel_size=3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        *separable_block(8, 16, kernel_size=3, pool=True),
        *separable_block(16, 24, kernel_size=5),
        *separable_block(24, 32, kernel_size=5, pool=True),
        *separable_block(32, 40, kernel_size=5),
        *separable_block(40, 40, kernel_size=5),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(dropout),
        nn.Linear(40, 10),
    )
