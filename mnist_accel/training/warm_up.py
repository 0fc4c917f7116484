"""Trains a few steps ahead of the clock and takes them back, bit for bit."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from mnist_accel.seeding import generator_of
from mnist_accel.training.optim import WeightAverage

WARM_UP_STEPS = 3  # libraries choose algorithms and allocate workspaces


@contextmanager
def undone(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    accelerator: Accelerator,
    average: WeightAverage | None,
    *others: Tensor,
) -> Iterator[None]:
    """What training inside does to any of these, to fp16's scale and to the random state is taken back, bit for bit."""
    generator, scaler = generator_of(accelerator.device), accelerator.scaler
    tensors = [*model.state_dict().values(), *states_of(optimizer), *(average.average if average else ()), *others]
    before = [tensor.clone() for tensor in tensors]
    drawn, scale = generator.get_state(), scaler and scaler.state_dict()
    averaged = average.steps if average else 0
    try:
        yield
    finally:
        known = set(map(id, tensors))
        with torch.no_grad():
            for tensor, value in zip(tensors, before, strict=True):
                tensor.copy_(value)
            for tensor in states_of(optimizer):
                if id(tensor) not in known:  # a first step makes them from zeros; a captured graph holds on to them
                    tensor.zero_()
        optimizer.zero_grad()
        generator.set_state(drawn)
        if scaler is not None:
            scaler.load_state_dict(scale)
        if average:
            average.steps = averaged


def states_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [tensor for state in optimizer.state.values() for tensor in state.values() if isinstance(tensor, Tensor)]
