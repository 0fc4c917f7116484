"""What a run leaves behind: numbers with names, and the folder they stand in."""

import errno
import json
import math
import os
import re
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors.torch import save
from torch import Tensor

from mnist_accel.checkpoint import Facts, newest_first, write_checkpoint
from mnist_accel.errors import UserError

SCHEMA = 1


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


@dataclass(frozen=True)
class ClaimResult:
    """A published figure beside this run's. ``met`` is None where the two cannot be compared."""

    name: str
    documented: str
    measured: float | None
    met: bool | None


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """``result.json``: a stable contract. README explains the fields; they are only ever added to."""

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


def default_folder(recipe_name: str) -> Path:
    """``runs/<recipe>/<time>``; opening it puts a number behind where two runs start within the same second."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    return Path("runs") / recipe_name / stamp


def new_folder(first: Path) -> Path:
    """``first``, or with a number behind where another run began within the same second."""
    folder, number = first, 1
    while True:
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            number += 1
            folder = first.with_name(f"{first.name}-{number}")


class RunFolder:
    """Writes the files of a run. After ``open``, a full disk costs files, not the training: ``problems`` tells."""

    def __init__(self, path: Path, typed: str | None = None):
        self.path = path
        self.typed = typed
        self.asked = f"out={typed}" if typed else str(path)
        self.lock: FileLock | None = None
        self.problems: list[str] = []
        self.tell: Callable[[str], None] = lambda problem: None

    def check(self) -> None:
        """A folder that must not be used is the user's mistake, told before anything is started or written."""
        if self.typed is None and self.path.is_dir():  # of a run within the same second: this one's gets a number
            self.check_writable()
            return
        try:
            if (self.path.exists() or self.path.is_symlink()) and not self.path.is_dir():
                raise UserError(f"{self.asked}: is no folder. Name a folder")
            if finished_run(self.path):
                raise UserError(
                    f"{self.asked}: already holds a finished run. Name another folder, or move that one away"
                )
            if unfinished_run(self.path):
                raise UserError(
                    f"{self.asked}: holds an unfinished run. Type resume=auto to go on with it, or name another folder"
                )
            if foreign := sorted(entry.name for entry in listing(self.path) if not is_ours(entry.name)):
                raise UserError(f"{self.asked}: holds other files ({foreign[0]}). Name a new or empty folder")
            self.check_writable()
        except OSError as error:
            raise self.unwritable(error) from None

    def check_writable(self) -> None:
        try:
            refuse_unwritable(self.path)
        except OSError as error:
            raise self.unwritable(error) from None

    def unwritable(self, error: OSError) -> UserError:
        return UserError(f"{self.asked}: cannot be written ({error.strerror}). Name another folder with out=DIR")

    def open(self, history: Sequence[EpochStats] | None = None) -> None:
        """Makes the folder, for this run alone: clean, or with the ``history`` that is being gone on from."""
        try:
            self._make(may_exist=self.typed is not None or history is not None)
            self.lock = FileLock(self.path / LOCK)
            self.lock.acquire(timeout=0)
            if history is None:
                self.check()  # again, now that nobody else can change it
                self._clean()
            else:
                for stale in listing(self.path):
                    if left_aside(stale.name):
                        stale.unlink()
                self._write("history.jsonl", "".join(history_line(stats) for stats in history).encode())
        except Timeout:
            raise UserError(f"{self.asked}: another run is writing there. Name another folder, or wait") from None
        except OSError as error:
            raise self.unwritable(error) from None

    def _make(self, may_exist: bool) -> None:
        if may_exist:
            self.path.mkdir(parents=True, exist_ok=True)
        else:
            self.path = new_folder(self.path)

    def _clean(self) -> None:
        for stale in listing(self.path):
            if stale.name == CHECKPOINTS:
                shutil.rmtree(stale)
            elif stale.name != LOCK:
                stale.unlink()

    def write_json(self, name: str, value: object) -> None:
        self._write(name, (json.dumps(finite(value), indent=2, allow_nan=False) + "\n").encode())

    def append_history(self, stats: EpochStats) -> None:
        try:
            with (self.path / "history.jsonl").open("a") as file:
                file.write(history_line(stats))
        except OSError as error:
            self._failed("history.jsonl", error)

    def write_checkpoint(self, step: int, tensors: Mapping[str, Tensor], facts: Facts) -> bool:
        """Whether it is on the disk now."""
        name = f"step-{step:09}.safetensors"
        try:
            write_checkpoint(self.path / CHECKPOINTS, name, tensors, facts)
        except OSError as error:
            self._failed(f"{CHECKPOINTS}/{name}", error)
            return False
        return True

    def write_weights(self, state: Mapping[str, Tensor]) -> None:
        self._write("model.safetensors", save({name: tensor.cpu().contiguous() for name, tensor in state.items()}))

    def _write(self, name: str, content: bytes) -> None:
        try:
            write_whole(self.path / name, content)
        except OSError as error:
            self._failed(name, error)

    def _failed(self, name: str, error: OSError) -> None:
        self.note(f"{self.path / name} could not be written: {error.strerror}")

    def note(self, problem: str) -> None:
        if problem not in self.problems:
            self.problems.append(problem)
            self.tell(problem)


def write_whole(target: Path, content: bytes) -> None:
    """Aside, synced, renamed: under its own name a file is whole or absent."""
    aside = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with aside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(target)
    except OSError:
        with suppress(OSError):
            aside.unlink(missing_ok=True)
        raise


def finite(value: Any) -> Any:
    """``value`` with None for the numbers that JSON does not know."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def history_line(stats: EpochStats) -> str:
    return json.dumps(finite(asdict(stats)), allow_nan=False) + "\n"


CHECKPOINTS = "checkpoints"
LOCK = ".lock"
OUR_FILES = {"recipe.json", "history.jsonl", "result.json", "model.safetensors", CHECKPOINTS, LOCK}


def is_ours(name: str) -> bool:
    return name in OUR_FILES or left_aside(name)


def left_aside(name: str) -> bool:
    """Whether it is what a killed run left of writing one of its files."""
    aside = re.fullmatch(r"\.(.+)\.\d+", name)
    return aside is not None and aside[1] in OUR_FILES


def refuse_unwritable(folder: Path) -> None:
    """OSError where ``folder`` could not be made or written, without writing: this is asked before processes start."""
    nearest = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if not nearest.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def listing(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def finished_run(folder: Path) -> bool:
    """A dry run is over as well, but there is nothing in it to lose."""
    if not (folder / "result.json").exists():
        return (folder / "model.safetensors").exists()  # trained; then the disk was full
    result = read_json(folder / "result.json")
    return isinstance(result, dict) and result.get("status") == "finished" and not result.get("dry_run")


def unfinished_run(folder: Path) -> bool:
    """Has something to go on from, and has neither ended nor failed (which it would do again)."""
    result = read_json(folder / "result.json")
    ended = isinstance(result, dict) and result.get("status") in ("finished", "failed") and not result.get("dry_run")
    return not ended and bool(newest_first(folder / CHECKPOINTS))


def being_written(folder: Path) -> bool:
    """Whether another run holds it. Where that cannot be asked, opening it will tell."""
    if not (folder / LOCK).exists():
        return False
    try:
        with FileLock(folder / LOCK, timeout=0):
            return False
    except Timeout:
        return True
    except OSError:
        return False


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None
