"""The five networks layer by layer as their documents give them, in plain PyTorch.

``mnist_accel.models`` moves some activations and dropouts behind the pooling, where they cost a quarter; here
they stand where they are documented. So the stock script trains these, and the tests hold ours against them:
parameters and buffers come in the same order in both.
"""

from collections.abc import Callable

from torch import nn

from mnist_accel.models import build_model
from mnist_accel.models.onepoch import SECOND_WIDTH


def onepoch() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 5, 3, stride=1),
        nn.ReLU(),
        nn.Dropout2d(0.1),
        nn.MaxPool2d(2, 2),
        nn.BatchNorm2d(5),
        nn.Conv2d(5, SECOND_WIDTH, 3, stride=1),
        nn.ReLU(),
        nn.Dropout2d(0.1),
        nn.MaxPool2d(2, 2),
        nn.BatchNorm2d(SECOND_WIDTH),
        nn.Flatten(),
        nn.Linear(SECOND_WIDTH * 5 * 5, 10),
    )


def efficient25k() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 64),
        nn.ReLU(),
        nn.Dropout(0.3),
        nn.Linear(64, 10),
    )


def sub20k() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, bias=False),
        nn.ReLU(),
        nn.BatchNorm2d(16),
        nn.Dropout2d(0.1),
        nn.Conv2d(16, 16, 3, bias=False),
        nn.ReLU(),
        nn.BatchNorm2d(16),
        nn.Conv2d(16, 32, 3, bias=False),
        nn.ReLU(),
        nn.BatchNorm2d(32),
        nn.Dropout2d(0.1),
        nn.Conv2d(32, 16, 1),
        nn.ReLU(),
        nn.MaxPool2d(2, 2),
        nn.Conv2d(16, 16, 3, bias=False),
        nn.ReLU(),
        nn.BatchNorm2d(16),
        nn.Dropout2d(0.1),
        nn.Conv2d(16, 16, 3, padding=1, bias=False),
        nn.ReLU(),
        nn.BatchNorm2d(16),
        nn.Dropout2d(0.1),
        nn.Conv2d(16, 16, 3, bias=False),
        nn.ReLU(),
        nn.BatchNorm2d(16),
        nn.Dropout2d(0.1),
        nn.Conv2d(16, 32, 3, bias=False),
        nn.ReLU(),
        nn.BatchNorm2d(32),
        nn.Dropout2d(0.1),
        nn.Conv2d(32, 10, 1, bias=False),
        nn.AvgPool2d(5),
        nn.Flatten(),
    )


def compact13k() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, bias=False),
        nn.ReLU(),
        nn.BatchNorm2d(16),
        nn.Dropout(0.1),
        nn.Conv2d(16, 32, 3, bias=False),
        nn.ReLU(),
        nn.BatchNorm2d(32),
        nn.Dropout(0.1),
        nn.Conv2d(32, 10, 1, bias=False),
        nn.MaxPool2d(2, 2),
        nn.Conv2d(10, 16, 3, bias=False),
        nn.ReLU(),
        nn.BatchNorm2d(16),
        nn.Dropout(0.1),
        nn.Conv2d(16, 16, 3, bias=False),
        nn.ReLU(),
        nn.BatchNorm2d(16),
        nn.Dropout(0.1),
        nn.Conv2d(16, 16, 3, bias=False),
        nn.ReLU(),
        nn.BatchNorm2d(16),
        nn.Dropout(0.1),
        nn.Conv2d(16, 16, 3, padding=1, bias=False),
        nn.ReLU(),
        nn.BatchNorm2d(16),
        nn.Dropout(0.1),
        nn.AvgPool2d(6),
        nn.Conv2d(16, 10, 1, bias=False),
        nn.Flatten(),
    )


def is3() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 16, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(32 * 4 * 4, 256),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Linear(256, 1),
    )


def stock_network(name: str, dropout: float) -> nn.Module:
    """A network that no document describes has no other order of layers than its own. The script learns all of it, also
    first filters that a recipe fixes."""
    return STOCK_NETWORKS[name]() if name in STOCK_NETWORKS else build_model(name, dropout)


STOCK_NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "onepoch": onepoch,
    "efficient25k": efficient25k,
    "sub20k": sub20k,
    "compact13k": compact13k,
    "is3": is3,
}
