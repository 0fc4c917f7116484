"""``under8k``: one convolution and five separable ones, 7,834 parameters."""

from torch import nn

from mnist_accel.models.layers import in_order


def separable_block(in_channels: int, out_channels: int, kernel_size: int, pool: bool = False) -> list[nn.Module]:
    """A convolution of each channel alone, then one of all channels at each place: of 40 channels into 40 with 5×5
    kernels 2,600 weights, where one convolution has 40,000. ReLU stands after the pool: the same values, less work."""
    return [
        nn.Conv2d(in_channels, in_channels, kernel_size, padding=kernel_size // 2, groups=in_channels, bias=False),
        nn.Conv2d(in_channels, out_channels, kernel_size=1, bias=False),
        nn.BatchNorm2d(out_channels),
        *([nn.MaxPool2d(2)] if pool else []),
        nn.ReLU(inplace=True),
    ]


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
