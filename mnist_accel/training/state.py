"""Training position, and the interfaces between the loop, its steps and those who watch it."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Protocol

import torch
from accelerate import Accelerator
from torch import nn

from mnist_accel.data.batches import Selection, TrainBatches
from mnist_accel.phase import unmarked
from mnist_accel.training.objective import Objective
from mnist_accel.training.optim import WeightAverage


@dataclass(frozen=True)
class Positive:
    """How well the class that counts as yes was found, in percent."""

    precision: float
    recall: float
    f1: float

    @classmethod
    def from_counts(cls, hits: int, said_yes: int, is_yes: int) -> "Positive":
        precision = 100 * hits / said_yes if said_yes else 0.0
        recall = 100 * hits / is_yes if is_yes else 0.0
        return cls(precision, recall, 200 * hits / (said_yes + is_yes) if hits else 0.0)


@dataclass(frozen=True)
class EpochStats:
    """One epoch over all ranks: a line of ``history.jsonl``. Accuracy in percent, losses are means over images."""

    epoch: int
    steps: int
    images: int
    lr: float
    train_loss: float
    test_loss: float
    accuracy: float
    correct: int
    total: int
    positive: Positive | None
    train_seconds: float
    eval_seconds: float
    train_accuracy: float | None = None  # as counted while training; None where an older version trained


@dataclass
class Position:
    """How far training has come: with the tensors of a checkpoint, all that going on exactly needs."""

    epoch: int = 0  # scored epochs
    step: int = 0  # finished steps of the epoch under way: all of them where it is trained, but not yet scored
    loss_sum: float = 0.0  # over their images
    images: int = 0
    correct: int | None = None  # of these; None where an older version, which did not count, began the epoch
    seconds: float = 0.0  # that they took
    history: list[EpochStats] = field(default_factory=list)


def copy_of(position: Position) -> Position:
    return replace(position, history=list(position.history))


@dataclass(frozen=True)
class StepInfo:
    """A finished optimizer step, over all ranks."""

    epoch: int  # from 1
    step: int  # from 1, within the epoch
    steps_per_epoch: int
    loss: float  # mean over the images since it was last read: those of this step, unless a captured graph trains
    images: int


@dataclass(frozen=True)
class StepFigures:
    """What a stepper knows when a step is over."""

    loss: float  # as in StepInfo
    loss_sum: float  # over the epoch's images, as far as their losses were read
    correct: int  # images told rightly, of those whose losses were read in this step
    stop_signal: int = 0  # that any rank was asked to stop by


class BadLoss(Exception):
    """A loss that is not finite. It never reached the weights, and neither did ``steps_back`` counted steps after it.

    ``loss_sum`` is over the epoch's images before it, ``correct`` over those of them that were read in this step.
    """

    def __init__(self, loss: float, loss_sum: float, correct: int = 0, steps_back: int = 0):
        super().__init__(str(loss))
        self.loss, self.loss_sum, self.correct, self.steps_back = loss, loss_sum, correct, steps_back


class Stepper(Protocol):
    """Makes optimizer steps: looks at each loss (``EagerStep``), or at many of them now and then (``GraphStep``)."""

    def step(
        self, chosen: Selection, loss_sum: float, lr: float, dropout_seed: int, stop_signal: int, read: bool
    ) -> StepFigures:
        """``loss_sum`` is what the last step handed back, 0 at an epoch's start. BadLoss where a loss is not finite.

        May leave the loss unread and hand back an older one, but not where ``read`` or a signal asks for it.
        """

    def warm_up(self, chosen: Selection, dropout_seed: int) -> None:
        """Does ahead what the first step does besides: libraries start up, a graph is captured. A few steps at most,
        which may leave anything behind: the caller undoes them."""


BuildStepper = Callable[
    [nn.Module, torch.optim.Optimizer, TrainBatches, Objective, Accelerator, float, WeightAverage | None], Stepper
]


def ignore(*_: object) -> None:
    pass


@dataclass
class Callbacks:
    """Whom the loop tells what, on every rank; and whom it asks whether to stop."""

    on_warm_up: Callable[[float], None] = ignore  # with its seconds
    on_step: Callable[[StepInfo], None] = ignore
    on_save: Callable[[Position], None] = ignore
    on_epoch: Callable[[EpochStats], None] = ignore
    stop_signal: Callable[[], int] = lambda: 0


class Profiler(Protocol):
    """Entered around all training; marks the phases of a step, and looks at each step when it is over."""

    active: bool  # while it profiles steps, none of them may be a captured graph's

    def __enter__(self) -> object: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...

    def phase(self, name: str) -> AbstractContextManager[object]: ...

    def after_step(self, info: StepInfo) -> float:
        """The seconds that it took for itself, which are no training time."""


class Unprofiled:
    """The profiler of a run that is not profiled."""

    active = False
    phase = staticmethod(unmarked)

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass

    def after_step(self, info: StepInfo) -> float:
        return 0.0
