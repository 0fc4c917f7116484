"""What a run tells while it goes on, and the result that it ends with."""

import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import accelerate
import torch
from torch import nn

import mnist_accel
from mnist_accel.claims import judged
from mnist_accel.cli import Request
from mnist_accel.data.dataset import Dataset
from mnist_accel.errors import Interrupted, OutOfMemory, PeerLost, TrainingFailed
from mnist_accel.models import count_parameters
from mnist_accel.recipe import Recipe
from mnist_accel.results import EpochStats, RunResult
from mnist_accel.resume import Resumption
from mnist_accel.runtime import Runtime
from mnist_accel.stepping import Position, StepInfo

if TYPE_CHECKING:
    from mnist_accel.profiling.summary import Summary


@dataclass(frozen=True)
class Start:
    """What is in effect when training begins: the banner's content."""

    recipe: Recipe
    params: int
    runtime: Runtime
    dataset: str
    dataset_reason: str
    train_images: int
    test_images: int
    resident: bool
    folder: Path
    dry_run: bool
    changed: tuple[str, ...]
    resumed_from: str | None
    found_nothing: bool  # resume=auto, and no unfinished run


@dataclass
class Watcher:
    """Who is told what, on rank 0 only."""

    on_start: Callable[[Start], None] = lambda start: None
    on_step: Callable[[StepInfo], None] = lambda info: None
    on_epoch: Callable[[EpochStats], None] = lambda stats: None
    on_problem: Callable[[str], None] = lambda problem: None
    on_end: Callable[[RunResult], None] = lambda result: None
    on_profile: "Callable[[Summary], None]" = lambda summary: None


@dataclass
class Progress:
    """What is known so far, so that a run that fails can still be written down."""

    position: Position = field(default_factory=Position)
    saved: tuple[int, int] | None = None  # finished epochs and steps of the newest checkpoint on the disk
    warmup_seconds: float = 0.0  # of this process, before the first clock
    error: TrainingFailed | Interrupted | None = None
    again: str = ""  # what to type to go on

    def outlook(self) -> str:
        """What somebody who stopped this run can count on."""
        if self.saved == (self.position.epoch, self.position.step):
            return f"resume=auto goes on from there: {self.again}"
        if self.saved:
            return f"that could not be saved; resume=auto goes on from the checkpoint before: {self.again}"
        return "nothing was saved"


def describe(
    request: Request,
    runtime: Runtime,
    data: Dataset,
    model: nn.Module,
    progress: Progress,
    started: float,
    resumed: Resumption | None,
) -> RunResult:
    recipe, options = request.recipe, request.options
    assert recipe is not None
    history = progress.position.history
    unfinished = progress.position  # of the epoch that was interrupted
    last = history[-1] if history else None
    train_seconds = sum(stats.train_seconds for stats in history) + unfinished.seconds
    images = sum(stats.images for stats in history) + unfinished.images
    can_go_on = isinstance(progress.error, (Interrupted, PeerLost, OutOfMemory))
    status = "interrupted" if can_go_on else "failed" if progress.error else "finished"
    result = RunResult(
        status=status,
        resumed_from=str(resumed.checkpoint.path) if resumed else None,
        error=None if progress.error is None else str(progress.error),
        recipe=recipe.name,
        model=recipe.model,
        params=count_parameters(model),
        dataset=data.name,
        dataset_reason=data.reason,
        train_images=len(data.train_labels),
        test_images=len(data.test_labels),
        epochs=recipe.epochs,
        batch_size=recipe.batch_size,
        optimizer_steps=sum(stats.steps for stats in history) + unfinished.step,
        seed=recipe.seed,
        device=runtime.device_name,
        world_size=runtime.world_size,
        threads=runtime.threads,
        precision=runtime.precision,
        accuracy=last.accuracy if last else None,
        correct=last.correct if last else None,
        total=last.total if last else None,
        train_loss=last.train_loss if last else None,
        test_loss=last.test_loss if last else None,
        positive=last.positive if last else None,
        warmup_seconds=progress.warmup_seconds,
        train_seconds=train_seconds,
        eval_seconds=sum(stats.eval_seconds for stats in history),
        total_seconds=time.perf_counter() - started,
        images_per_second=images / train_seconds if train_seconds else 0.0,
        claims=[],
        dry_run=options.dry_run,
        command=list(request.command),
        history=history,
        versions={
            "mnist_accel": mnist_accel.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "accelerate": accelerate.__version__,
        },
    )
    comparable = (
        data.name == "mnist" and set(request.changed) <= {"seed"} and not options.dry_run and progress.error is None
    )
    return judged(result, recipe, comparable, runtime.device.type)
