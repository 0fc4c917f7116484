"""How far training has come, and how the loop and those who make its steps speak with each other."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.autograd.graph import _engine_run_backward

from mnist_accel.data.batches import Selection, TrainBatches
from mnist_accel.errors import TrainingFailed
from mnist_accel.objective import Objective
from mnist_accel.optim import WeightAverage
from mnist_accel.results import EpochStats
from mnist_accel.seeding import generator_of

WARM_UP_STEPS = 3  # libraries choose algorithms and allocate workspaces


@dataclass(frozen=True)
class StepInfo:
    """A finished optimizer step, over all ranks."""

    epoch: int  # from 1
    step: int  # from 1, within the epoch
    steps_per_epoch: int
    loss: float  # mean over the images since it was last read: those of this step, unless a captured graph trains
    images: int


@dataclass
class Position:
    """How far training has come: with the tensors of a checkpoint, all that going on exactly needs."""

    epoch: int = 0  # finished epochs
    step: int = 0  # finished steps of the epoch under way
    loss_sum: float = 0.0  # over their images
    images: int = 0
    seconds: float = 0.0  # that they took
    history: list[EpochStats] = field(default_factory=list)


class Stepper(Protocol):
    """How optimizer steps are made: each looked at by itself (``engine.EachStep``) or not (``device_step``)."""

    def step(
        self, chosen: Selection, position: Position, lr: float, dropout_seed: int, stop_signal: int, read: bool
    ) -> tuple[float, int]:
        """The mean loss and the signal that any rank was asked to stop by; ``position`` gets the loss alone.

        May leave the loss unread and hand back an older one, but not where ``read`` or a signal asks for it.
        A non-finite loss never reaches the weights: TrainingFailed, with ``position`` as it was before that step.
        """

    def warm_up(self, chosen: Selection, dropout_seed: int) -> None:
        """What the first step does besides, done ahead: libraries start up, a graph is captured. A few steps at most,
        which may leave anything behind: the caller undoes them."""


BuildStepper = Callable[
    [nn.Module, torch.optim.Optimizer, TrainBatches, Objective, Accelerator, float, WeightAverage | None], Stepper
]


def not_finite(loss: float, epoch: int, step: int, lr: float) -> TrainingFailed:
    return TrainingFailed(
        f"loss is {loss} at epoch {epoch + 1}, step {step + 1}; the weights were left as they were before it. "
        f"Try a smaller lr than {lr:g}, or clip_norm=1"
    )


def backward(loss_sum: Tensor, share: float, accelerator: Accelerator) -> None:
    """Of ``share`` times the loss. Accelerate's own divides by the steps between two updates, which are one here."""
    if accelerator.scaler is not None:
        loss_sum = accelerator.scaler.scale(loss_sum)
    # The same gradients from three kernels fewer than multiplying the loss, whose gradient is multiplied again.
    first = torch.full_like(loss_sum, share)
    # What ``loss_sum.backward(first)`` comes down to, but for importing sympy, 0.3 s of a start, to compare two shapes.
    _engine_run_backward((loss_sum,), (first,), False, False, (), allow_unreachable=True, accumulate_grad=True)


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
