"""A network as data: its layers in the order of their calls, with settings and weights, for forward.js.

The order comes from following the forward pass, so that a network need not be a Sequential. It has to be a chain: each
layer takes what the one before gave. What forward.js could compute differently is refused with the layer's name.
"""

import base64
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn

from mnist_accel.models.layers import Dropout, RowMajor, SyncBatchNorm

Layer = dict[str, Any]


class UnknownLayer(Exception):
    """What stands in the way of describing a network, to follow "it"."""


def described(network: nn.Module) -> list[Layer]:
    """``network`` in evaluation mode: dropout and the like are left out, batch norm is a factor and a shift."""
    if any(module._forward_hooks or module._forward_pre_hooks for module in network.modules()):
        raise UnknownLayer("has hooks")
    return [layer for module in chain(network) if (layer := describe(module)) is not None]


def describe(module: nn.Module) -> Layer | None:
    for setting, allowed in ONLY.get(type(module), {}).items():
        if (value := getattr(module, setting)) not in allowed:
            raise UnknownLayer(f"has a {type(module).__name__} with {setting}={value}")
    return DESCRIBE[type(module)](module)


class Tracer(fx.Tracer):
    """Looks into our own modules, unless they are known, and into none of torch's."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return type(m) in DESCRIBE or super().is_leaf_module(m, module_qualified_name)


def chain(network: nn.Module) -> Iterator[nn.Module]:
    try:
        graph = Tracer().trace(network)
    except Exception as error:  # whatever somebody's forward pass does with what is no tensor
        raise UnknownLayer("has a forward pass that cannot be followed") from error
    before: tuple[fx.Node, ...] = ()
    for node in graph.nodes:
        if node.op not in ("placeholder", "call_module", "output"):
            raise UnknownLayer(f"uses {getattr(node.target, '__name__', node.target)}")
        if tuple(node.args) != before or node.kwargs:
            raise UnknownLayer("is no plain chain of layers")
        before = (node,)
        if node.op == "call_module":
            module = network.get_submodule(str(node.target))
            if type(module) not in DESCRIBE:
                raise UnknownLayer(f"has a layer {type(module).__name__}")
            yield module


# Layers: what each is to forward.js, and the settings that it knows.


def conv(layer: nn.Conv2d) -> Layer:
    if isinstance(layer.padding, str):
        raise UnknownLayer(f"has a Conv2d with padding={layer.padding!r}")
    axes = {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation}
    return {"kind": "conv", "groups": layer.groups, **axes, **weights(layer)}


def linear(layer: nn.Linear) -> Layer:
    return {"kind": "linear", **weights(layer)}


def weights(layer: nn.Conv2d | nn.Linear) -> Layer:
    bias = None if layer.bias is None else stored(layer.bias)
    return {"shape": list(layer.weight.shape), "weight": stored(layer.weight), "bias": bias}


def batch_norm(layer: nn.BatchNorm2d) -> Layer:
    if layer.running_mean is None or layer.running_var is None:
        raise UnknownLayer("has a BatchNorm2d without statistics")
    factor = torch.rsqrt(layer.running_var.double() + layer.eps)
    if layer.weight is not None:
        factor = factor * layer.weight.double()
    shift = -layer.running_mean.double() * factor
    if layer.bias is not None:
        shift = shift + layer.bias.double()
    return {"kind": "affine", "factor": stored(factor), "shift": stored(shift)}


def max_pool(layer: nn.MaxPool2d) -> Layer:
    axes = {"kernel": pair(layer.kernel_size), "stride": pair(layer.stride), "padding": pair(layer.padding)}
    return {"kind": "max_pool", **axes}


def average_pool(layer: nn.AvgPool2d) -> Layer:
    return {"kind": "average_pool", "kernel": pair(layer.kernel_size), "stride": pair(layer.stride)}


def adaptive_average_pool(layer: nn.AdaptiveAvgPool2d) -> Layer:
    size = pair(layer.output_size)
    if None in size:
        raise UnknownLayer(f"has an AdaptiveAvgPool2d with output_size={size}")
    return {"kind": "adaptive_average_pool", "size": size}


def leaky_relu(layer: nn.LeakyReLU) -> Layer:
    return {"kind": "leaky_relu", "slope": layer.negative_slope}


def simple(kind: str) -> Callable[[Any], Layer]:
    return lambda layer: {"kind": kind}


def nothing(layer: nn.Module) -> None:
    """In evaluation the values pass it unchanged."""


def pair(value: Any) -> list[Any]:
    return list(value) if isinstance(value, tuple | list) else [value, value]


def stored(values: Tensor) -> str:
    """float32, little-endian as browsers' machines are, in base64."""
    return base64.b64encode(values.detach().cpu().float().contiguous().numpy().astype("<f4").tobytes()).decode()


# By the exact type: a subclass may compute anything.
DESCRIBE: dict[type[nn.Module], Callable[[Any], Layer | None]] = {
    nn.Conv2d: conv,
    nn.Linear: linear,
    nn.BatchNorm2d: batch_norm,
    SyncBatchNorm: batch_norm,
    nn.MaxPool2d: max_pool,
    nn.AvgPool2d: average_pool,
    nn.AdaptiveAvgPool2d: adaptive_average_pool,
    nn.Flatten: simple("flatten"),
    nn.ReLU: simple("relu"),
    nn.LeakyReLU: leaky_relu,
    nn.SiLU: simple("silu"),
    nn.GELU: simple("gelu"),
    nn.Dropout: nothing,
    nn.Dropout2d: nothing,
    Dropout: nothing,
    nn.Identity: nothing,
    RowMajor: nothing,
}
ONLY: dict[type[nn.Module], dict[str, tuple[Any, ...]]] = {
    nn.Conv2d: {"padding_mode": ("zeros",)},
    nn.MaxPool2d: {"dilation": (1, (1, 1)), "ceil_mode": (False,), "return_indices": (False,)},
    nn.AvgPool2d: {"padding": (0, (0, 0)), "ceil_mode": (False,), "divisor_override": (None,)},
    nn.Flatten: {"start_dim": (1,), "end_dim": (-1, 3)},
    nn.GELU: {"approximate": ("none",)},
}
