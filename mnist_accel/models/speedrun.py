"""``speedrun``: three convolutions that halve the image twice, then one over all that is left; 23,338 parameters."""

from torch import nn

from mnist_accel.models.layers import in_order


def conv_block(in_channels: int, out_channels: int, stride: int = 1) -> list[nn.Module]:
    return [
        nn.Conv2d(in_channels, out_channels, kernel_size=3, stride=stride, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    ]


def speedrun(dropout: float = 0.0) -> nn.Sequential:
    """28 → 12 → 5 → 3 → 1.

    The first convolution is made for ``first_filters="whitening"``: its outputs have equal variance, and need no batch
    norm. The last one stands for Flatten and Linear, which would put 432 values an image into another order.
    """
    return in_order(
        nn.Conv2d(1, 16, kernel_size=5, stride=2),
        nn.ReLU(inplace=True),
        *conv_block(16, 32, stride=2),
        *conv_block(32, 48),
        nn.Dropout2d(dropout),
        nn.Conv2d(48, 10, kernel_size=3),
        nn.Flatten(),
    )
