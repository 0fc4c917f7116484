"""Tells one of Accelerate's trackers (TensorBoard, W&B, MLflow, …) what the watcher is told.

A tracker neither ends a run nor asks a question: what it raises costs one line, and from then on it is left alone.
"""

import netrc
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from math import ceil
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import accelerate
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker

from mnist_accel.data.download import one_line
from mnist_accel.errors import UserError
from mnist_accel.files import is_installed
from mnist_accel.recipe import Recipe, keys_of
from mnist_accel.runs.folder import TRACKING
from mnist_accel.runs.watcher import Start, Watcher
from mnist_accel.training.state import EpochStats, StepInfo

PROJECT = "mnist_accel"
POINTS = 20  # at most so many losses of single steps an epoch
FIGURES = ("train_loss", "train_accuracy", "test_loss", "accuracy", "lr")
MLFLOW_STORE = "MLFLOW_TRACKING_URI"


def refuse_missing(name: str) -> None:
    """UserError where the tracker's package is not here; its module is called like the tracker."""
    if name not in LOGGER_TYPE_TO_CLASS:
        raise UserError(
            f"tracker={name}: Accelerate {accelerate.__version__} does not know it yet. "
            "Type pip install --upgrade accelerate"
        )
    if not is_installed(name):
        raise UserError(f"tracker={name}: not installed. Type pip install {name}, or leave tracker out")


@contextmanager
def tracked(name: str, recipe: Recipe, folder: Path, watcher: Watcher) -> Iterator[Watcher]:
    """``watcher``, and beside it the tracker ``name``, which is flushed at the end however the run ends."""
    tracking = Tracking(name, recipe, folder / TRACKING, watcher.on_problem)
    try:
        yield tracking.beside(watcher)
    finally:
        tracking.finish()


class Tracking:
    """Follows one run; ``tell`` is told, once, that the tracker has failed."""

    def __init__(self, name: str, recipe: Recipe, folder: Path, tell: Callable[[str], None]):
        self.name, self.recipe, self.folder, self.tell = name, recipe, folder, tell
        self.journal = Journal(folder / f"{name}.steps")
        self.tracker: GeneralTracker | None = None
        self.failed = False

    def beside(self, watcher: Watcher) -> Watcher:
        def on_start(start: Start) -> None:
            watcher.on_start(start)
            self.attempt(self.start)

        def on_step(info: StepInfo) -> None:
            watcher.on_step(info)
            if is_due(info):
                step = (info.epoch - 1) * info.steps_per_epoch + info.step
                self.attempt(lambda: self.log({"loss": info.loss}, step))

        def on_epoch(stats: EpochStats) -> None:
            watcher.on_epoch(stats)
            self.attempt(lambda: self.log(figures_of(stats), stats.epoch * stats.steps))

        return replace(watcher, on_start=on_start, on_step=on_step, on_epoch=on_epoch)

    def attempt(self, action: Callable[[], None]) -> None:
        if self.failed:
            return
        try:
            action()
        except (Exception, SystemExit) as error:  # anybody's code, which may raise anything
            self.give_up(error)

    def give_up(self, error: BaseException) -> None:
        self.failed = True
        said = one_line(error)
        self.tell(f"tracker={self.name} is told no more, it failed ({type(error).__name__}: {said})")

    def start(self) -> None:
        self.folder.mkdir(exist_ok=True)
        run_id = self.journal.read()
        with nobody_to_ask():
            kind = LOGGER_TYPE_TO_CLASS[self.name]
            tracker = kind(*names_of(kind, self.folder), **self.settings(run_id))
            tracker.start()
        self.tracker = tracker
        if run_id is None:
            self.tracker.store_init_configuration(hyperparameters(self.recipe))
            self.journal.begin(run_id_of(self.tracker))

    def log(self, values: dict[str, float], step: int) -> None:
        if self.tracker is not None and self.journal.note(step):
            self.tracker.log(values, step=step)

    def finish(self) -> None:
        """Also after a failure: what it was told before may still have to be sent."""
        if self.tracker is None:
            return
        if self.failed:
            with suppress(Exception, SystemExit):
                self.tracker.finish()
        self.attempt(self.tracker.finish)

    def settings(self, run_id: str | None) -> dict[str, Any]:
        """Files into the run's folder, and a resumed run under the name that it has had before."""
        if self.name == "wandb":
            return self.settings_of_wandb(run_id)
        if self.name == "mlflow":
            os.environ.setdefault(MLFLOW_STORE, f"sqlite:///{self.folder.absolute()}/mlflow.db")
            artifacts = (self.folder.absolute() / "mlflow").as_uri()
            return {"run_id": run_id, "run_name": self.run_name, "logging_dir": artifacts}
        return {}

    def settings_of_wandb(self, run_id: str | None) -> dict[str, Any]:
        settings = {
            "dir": str(self.folder),
            "name": self.run_name,
            "id": run_id or uuid4().hex,
            "resume": "allow",
            "settings": {"silent": True, "console": "off"},
        }
        if not os.environ.get("WANDB_MODE") and not wandb_has_key():
            # It would ask for one.
            settings["mode"] = "offline"
            self.tell(f"tracker=wandb has no key: what it is told stays in {self.folder}, for wandb sync")
        return settings

    @property
    def run_name(self) -> str:
        return f"{self.recipe.name}/{self.folder.parent.name}"


class Journal:
    """The tracker's own name for the run, then every step that it was told: after a kill nothing is told twice."""

    def __init__(self, path: Path):
        self.path = path
        self.last = 0

    def read(self) -> str | None:
        """The run's name; None where this tracker does not know of the run yet."""
        if not self.path.exists():
            return None
        run_id, *steps = self.path.read_text().splitlines()
        self.last = max((int(step) for step in steps if step.isdecimal()), default=0)
        return run_id

    def begin(self, run_id: str) -> None:
        self.path.write_text(f"{run_id}\n")

    def note(self, step: int) -> bool:
        """Whether the step is new. Before the tracker hears of it: killed in between, a step is lost, not doubled."""
        if step <= self.last:
            return False
        with self.path.open("a") as file:
            file.write(f"{step}\n")
        return True


def is_due(info: StepInfo) -> bool:
    """The last step of an epoch is told with the epoch's figures."""
    every = ceil(info.steps_per_epoch / POINTS)
    return info.step % every == 0 and info.step < info.steps_per_epoch


def figures_of(stats: EpochStats) -> dict[str, float]:
    figures = {name: getattr(stats, name, None) for name in FIGURES}
    figures["images_per_second"] = stats.images / stats.train_seconds
    figures |= asdict(stats.positive) if stats.positive else {}
    return {name: value for name, value in figures.items() if value is not None}


def hyperparameters(recipe: Recipe) -> dict[str, Any]:
    return {name: getattr(recipe, name) for name in ("name", "model", "loss", *keys_of(Recipe))}


def names_of(kind: type[GeneralTracker], folder: Path) -> list[str]:
    """What Accelerate builds a tracker with: a project's name, and where it keeps files of its own a folder.

    TensorBoard makes a folder of the name, and takes the run's path for it.
    """
    if kind.name == "tensorboard":
        return ["", str(folder)]
    return [PROJECT, str(folder)] if kind.requires_logging_directory else [PROJECT]


def run_id_of(tracker: GeneralTracker) -> str:
    """By which it can be gone on with; "-" where Accelerate's class offers no way to."""
    if tracker.name == "wandb":
        return tracker.tracker.id
    return tracker.tracker.info.run_id if tracker.name == "mlflow" else "-"


def wandb_has_key() -> bool:
    """Looked for where W&B does. Asked itself, it may ask back: in a notebook it also does so without a keyboard."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):  # there is none, or nobody can read it
        return False


@contextmanager
def nobody_to_ask() -> Iterator[None]:
    """A package that wants to know something finds the end of the keyboard."""
    before = sys.stdin
    with open(os.devnull) as nothing:
        sys.stdin = nothing
        try:
            yield
        finally:
            sys.stdin = before
