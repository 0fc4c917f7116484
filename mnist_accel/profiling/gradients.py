"""Measures how a convolution's backward time divides into the gradient of its weights and that of its input.

To a CPU's trace the two are one operation. So each is asked for alone, on tensors of the same sizes, type and strides;
the row's time is then divided in that proportion. On a GPU the kernels' names tell.
"""

from collections.abc import Callable
from time import perf_counter

import torch
from torch import nn

from mnist_accel.machine.runtime import is_out_of_memory
from mnist_accel.profiling.flops import Shape
from mnist_accel.profiling.layers import Analysis

REPEATS = 7
ENOUGH = 0.3  # seconds for a layer; the first repeat does not count

TYPES = {2: torch.bfloat16, 4: torch.float32, 8: torch.float64}


def measure_gradients(analysis: Analysis, model: nn.Module) -> None:
    """Of the rows that have both, on a CPU. There is nothing random in it."""
    modules = dict(model.named_modules())
    for row in analysis.convolutions:
        module = modules.get(row.place.module)
        if not analysis.on_gpu and row.shape and row.weight_flop and row.input_flop and isinstance(module, nn.Conv2d):
            row.measured_weight_share = measured_weight_share(row.shape, module)


@torch.no_grad()
def measured_weight_share(shape: Shape, module: nn.Conv2d) -> float | None:
    """None where there is no memory for it."""
    try:
        of_weights, of_input = gradients(shape, module)
        times = alternating(of_weights, of_input)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return None
    weights, inputs = (min(column) for column in zip(*times, strict=True))
    return weights / (weights + inputs)


def gradients(shape: Shape, module: nn.Conv2d) -> tuple[Callable[[], object], Callable[[], object]]:
    """Two calls, as autograd makes them."""
    dtype = TYPES[shape.item_bytes]
    weights = module.weight.detach().to(dtype)
    is_last = weights.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if is_last else torch.contiguous_format

    def filled(sizes: tuple[int, ...]) -> torch.Tensor:
        return torch.ones(sizes, dtype=dtype).to(memory_format=layout)

    images, gradient = filled(shape.input), filled(shape.output)

    def asked(mask: list[bool]) -> Callable[[], object]:
        return lambda: torch.ops.aten.convolution_backward(
            gradient,
            images,
            weights,
            None,
            module.stride,
            module.padding,
            module.dilation,
            False,
            [0, 0],
            module.groups,
            mask,
        )

    return asked([False, True, False]), asked([True, False, False])


def alternating(*actions: Callable[[], object]) -> list[list[float]]:
    """Seconds of each, in turn, so that what disturbs one disturbs the other."""
    times: list[list[float]] = []
    began = perf_counter()
    while len(times) <= REPEATS and (len(times) < 2 or perf_counter() - began < ENOUGH):
        times.append([seconds(action) for action in actions])
    return times[1:]


def seconds(action: Callable[[], object]) -> float:
    started = perf_counter()
    action()
    return perf_counter() - started
