"""The networks, one a file, each a function of its dropout probability alone. A new one is a file and a line here."""

from collections.abc import Callable

from torch import nn

from mnist_accel.models.compact13k import compact13k
from mnist_accel.models.efficient25k import efficient25k
from mnist_accel.models.is3 import is3
from mnist_accel.models.onepoch import onepoch
from mnist_accel.models.sub20k import sub20k

MODELS: dict[str, Callable[[float], nn.Module]] = {
    "onepoch": onepoch,
    "efficient25k": efficient25k,
    "sub20k": sub20k,
    "compact13k": compact13k,
    "is3": is3,
}


def build_model(name: str, dropout: float) -> nn.Module:
    return MODELS[name](dropout)


def count_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
