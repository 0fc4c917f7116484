"""Describes a run: ``result.json``, with published figures beside its own."""

import platform
import time
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone
from html import escape

import accelerate
import torch

import mnist_accel
from mnist_accel.cli import Request
from mnist_accel.data.dataset import Dataset
from mnist_accel.errors import Interrupted, OutOfMemory, PeerLost, TrainingFailed
from mnist_accel.machine.runtime import Runtime
from mnist_accel.models import parameters_of
from mnist_accel.recipe import Claim, Recipe
from mnist_accel.runs.resume import Resumption
from mnist_accel.training.state import EpochStats, Position, Positive

SCHEMA = 1
NOT_REPEATED = ("out", "resume")  # a folder is taken, and there is nothing to go on from


@dataclass(frozen=True)
class ClaimResult:
    """A published figure beside this run's. ``met`` is None where the two cannot be compared."""

    name: str
    documented: str
    measured: float | None
    met: bool | None

    @property
    def shown(self) -> str:
        """What was measured, as it is to be read."""
        if self.measured is None:
            return ""
        if self.name.startswith("parameters"):
            return f"{self.measured:,.0f}"
        # A documented loss may be 3.96e-5.
        return f"{self.measured:.3g}" if "loss" in self.name else f"{self.measured:.2f}"


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """``result.json``: a stable contract. docs/result.md explains the fields; they are only ever added to."""

    schema: int = SCHEMA
    status: str  # "finished", "failed" or "interrupted"
    recipe: str
    model: str
    params: int
    dataset: str
    dataset_reason: str
    train_images: int
    test_images: int
    epochs: int
    batch_size: int
    optimizer_steps: int
    seed: int
    device: str
    world_size: int
    threads: int
    precision: str
    accuracy: float | None
    correct: int | None
    total: int | None
    train_loss: float | None
    test_loss: float | None
    positive: Positive | None
    train_seconds: float
    eval_seconds: float
    total_seconds: float
    images_per_second: float
    claims: list[ClaimResult]
    dry_run: bool
    warmup_seconds: float = 0.0  # before the clock of train_seconds: libraries starting up, a graph's capture
    resumed_from: str | None = None
    command: list[str]
    history: list[EpochStats]
    versions: dict[str, str]
    error: str | None = None
    began: str | None = None  # this process's first line, UTC
    commit: str | None = None  # of the checkout, with + behind it where tracked files were changed
    profile: str | None = None  # its folder

    @property
    def why_not_compared(self) -> str:
        """Empty where any figure was held against a documented one, or there is none but a count of parameters."""
        others = [claim for claim in self.claims if not claim.name.startswith("parameters")]
        if not others or any(claim.met is not None for claim in others):
            return ""
        if self.dry_run:
            return "A dry run is not compared with the documented figures."
        if self.status != "finished":
            return "A run that did not end is not compared with the documented figures."
        if self.dataset != "mnist":
            return "Not compared with the documented figures: those are for MNIST, this run used synthetic digits."
        return "Not compared with the documented figures: the recipe's settings were changed."

    @property
    def words_to_repeat(self) -> list[str]:
        """launch.py's words that train the same again; none where a recipe of Python's own was trained."""
        typed = [word.partition("=")[0] for word in self.command]
        words = [word for word, key in zip(self.command, typed, strict=True) if key not in NOT_REPEATED]
        if words and self.world_size > 1 and "processes" not in typed:
            words.append(f"processes={self.world_size}")
        if words and self.precision != "fp32" and "precision" not in typed:  # a launcher asked for it
            words.append(f"precision={self.precision}")
        return words

    def _repr_html_(self) -> str:
        """What a notebook shows of it."""
        return as_table(self)


@dataclass
class Progress:
    """What is known so far, so that a run that fails can still be written down."""

    position: Position = field(default_factory=Position)
    saved: tuple[int, int] | None = None  # finished epochs and steps of the newest checkpoint on the disk
    warmup_seconds: float = 0.0  # of this process, before the first clock
    error: TrainingFailed | Interrupted | None = None
    again: str = ""  # what to type to go on
    commit: str | None = None
    profile: str | None = None

    def note_warm_up(self, seconds: float) -> None:
        self.warmup_seconds = seconds

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
    progress: Progress,
    started: float,
    resumed: Resumption | None,
) -> RunResult:
    recipe, options = request.recipe, request.options
    history = progress.position.history
    unfinished = progress.position  # of the epoch that was interrupted
    last = history[-1] if history else None
    train_seconds = sum(stats.train_seconds for stats in history) + unfinished.seconds
    images = sum(stats.images for stats in history) + unfinished.images
    can_go_on = isinstance(progress.error, (Interrupted, PeerLost, OutOfMemory))
    total_seconds = time.perf_counter() - started
    status = "interrupted" if can_go_on else "failed" if progress.error else "finished"
    result = RunResult(
        status=status,
        resumed_from=str(resumed.checkpoint.path) if resumed else None,
        error=None if progress.error is None else str(progress.error),
        recipe=recipe.name,
        model=recipe.model,
        params=parameters_of(recipe.model, recipe.dropout, recipe.name),
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
        total_seconds=total_seconds,
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
        began=(datetime.now(timezone.utc) - timedelta(seconds=total_seconds)).isoformat(timespec="seconds"),
        commit=progress.commit,
        profile=progress.profile,
    )
    comparable = (
        data.name == "mnist" and set(request.changed) <= {"seed"} and not options.dry_run and progress.error is None
    )
    return compared(result, recipe, comparable, runtime.device.type)


def as_table(result: RunResult) -> str:
    """HTML; names in it may be anybody's."""
    scored = result.accuracy is not None
    rows = {
        "recipe": f"{result.recipe}, {result.params:,} parameters",
        "status": result.status + (", a dry run: the figures mean nothing" if result.dry_run else ""),
        "accuracy": f"{result.accuracy:.2f} % ({result.correct:,} of {result.total:,})" if scored else "",
        "loss": f"{result.train_loss:.4f} training, {result.test_loss:.4f} scored" if scored else "",
        "training": f"{len(result.history)} of {result.epochs} epochs in {result.train_seconds:.2f} s",
        "data": f"{result.dataset}: {result.dataset_reason}",
        "device": f"{result.device}, {result.precision}",
    }
    verdicts = {True: "pass", False: "fail", None: "not compared"}
    rows |= {claim.name: f"documented {claim.documented}: {verdicts[claim.met]}" for claim in result.claims}
    cells = (f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in rows.items() if value)
    return f"<table>{''.join(cells)}</table>"


def compared(result: RunResult, recipe: Recipe, comparable: bool, device_type: str) -> RunResult:
    """``result`` with every claim of the recipe beside what was measured."""
    claims = [compare(claim, result, comparable and claim.device in (None, device_type)) for claim in recipe.claims]
    return replace(result, claims=claims)


def compare(claim: Claim, result: RunResult, comparable: bool) -> ClaimResult:
    measured = measure(claim, result)
    # A parameter count is the network's own, whatever it was trained on.
    if measured is None or not (comparable or claim.metric == "parameters"):
        return ClaimResult(claim.label, claim.documented, measured, None)
    return ClaimResult(claim.label, claim.documented, measured, holds(measured, claim))


def measure(claim: Claim, result: RunResult) -> float | None:
    if claim.metric == "parameters":
        return result.params
    if claim.metric == "train_seconds":
        return result.train_seconds
    if claim.epoch is None:
        return getattr(result, claim.metric)
    at = next((stats for stats in result.history if stats.epoch == claim.epoch), None)
    return None if at is None else getattr(at, claim.metric)


def holds(measured: float, claim: Claim) -> bool:
    # 9,813 of 10,000 is 98.13, whatever the last bit of the division says.
    measured = round(measured, 6)
    return {
        "=": measured == claim.value,
        "<": measured < claim.value,
        "<=": measured <= claim.value,
        ">": measured > claim.value,
        ">=": measured >= claim.value,
    }[claim.relation]
