"""How far training has come, and how the loop and those who make its steps speak with each other."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from accelerate import Accelerator
from torch import nn

from mnist_accel.data.batches import Selection, TrainBatches
from mnist_accel.errors import TrainingFailed
from mnist_accel.objective import Objective
from mnist_accel.optim import WeightAverage
from mnist_accel.results import EpochStats


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


BuildStepper = Callable[
    [nn.Module, torch.optim.Optimizer, TrainBatches, Objective, Accelerator, float, WeightAverage | None], Stepper
]


def not_finite(loss: float, epoch: int, step: int, lr: float) -> TrainingFailed:
    return TrainingFailed(
        f"loss is {loss} at epoch {epoch + 1}, step {step + 1}; the weights were left as they were before it. "
        f"Try a smaller lr than {lr:g}, or clip_norm=1"
    )
