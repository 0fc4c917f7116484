"""Progress callbacks: what a run tells, and when."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mnist_accel.cli import Request
from mnist_accel.machine.runtime import Runtime
from mnist_accel.models import count_parameters
from mnist_accel.recipe import Recipe
from mnist_accel.runs.result import RunResult
from mnist_accel.runs.resume import Resumption
from mnist_accel.runs.trainer import Trainer
from mnist_accel.training.state import EpochStats, StepInfo, ignore

if TYPE_CHECKING:
    from mnist_accel.profiling.summary import ProfileSummary


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

    @classmethod
    def of(cls, request: Request, trainer: Trainer, folder: Path, resumed: Resumption | None) -> "Start":
        store = trainer.train_batches.store
        return cls(
            recipe=request.recipe,
            params=count_parameters(trainer.model),
            runtime=trainer.runtime,
            dataset=trainer.data.name,
            dataset_reason=trainer.data.reason,
            train_images=len(store),
            test_images=len(trainer.test_batches.store),
            resident=store.resident,
            folder=folder,
            dry_run=request.options.dry_run,
            changed=request.changed,
            resumed_from=str(resumed.checkpoint.path) if resumed else None,
            found_nothing=bool(request.options.resume) and resumed is None,
        )


@dataclass
class Watcher:
    """Who is told what, on rank 0 only."""

    on_start: Callable[[Start], None] = ignore
    on_step: Callable[[StepInfo], None] = ignore
    on_epoch: Callable[[EpochStats], None] = ignore
    on_problem: Callable[[str], None] = ignore
    on_end: Callable[[RunResult], None] = ignore
    on_report: Callable[[Path], None] = ignore
    on_profile: "Callable[[ProfileSummary], None]" = ignore
    make_profile_page: "Callable[[ProfileSummary], str] | None" = None  # else there is no page
