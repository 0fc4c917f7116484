"""Writes the folder of a run, and tells what a folder holds."""

import json
import re
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from filelock import FileLock, Timeout
from safetensors.torch import save
from torch import Tensor

from mnist_accel.errors import UserError
from mnist_accel.files import finite, new_folder, read_json, refuse_unwritable, write_whole
from mnist_accel.runs import evaluation
from mnist_accel.runs.checkpoint import CheckpointMeta, newest_first, write_checkpoint
from mnist_accel.training.state import EpochStats


def default_folder(recipe_name: str) -> Path:
    """``runs/<recipe>/<time>``; opening it puts a number behind where two runs start within the same second."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    return Path("runs") / recipe_name / stamp


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
            self.make(may_exist=self.typed is not None or history is not None)
            self.lock = FileLock(self.path / LOCK)
            self.lock.acquire(timeout=0)
            if history is None:
                self.check()  # again, now that nobody else can change it
                self.clear()
            else:
                for stale in listing(self.path):
                    if left_aside(stale.name):
                        stale.unlink()
                self.write("history.jsonl", "".join(history_line(stats) for stats in history).encode())
        except Timeout:
            raise UserError(f"{self.asked}: another run is writing there. Name another folder, or wait") from None
        except OSError as error:
            raise self.unwritable(error) from None

    def make(self, may_exist: bool) -> None:
        if may_exist:
            self.path.mkdir(parents=True, exist_ok=True)
        else:
            self.path = new_folder(self.path)

    def clear(self) -> None:
        for stale in listing(self.path):
            if stale.name == CHECKPOINTS:
                shutil.rmtree(stale)
            elif stale.name != LOCK:
                stale.unlink()

    def write_json(self, name: str, value: object) -> bool:
        return self.write(name, (json.dumps(finite(value), indent=2, allow_nan=False) + "\n").encode())

    def append_history(self, stats: EpochStats) -> None:
        try:
            with (self.path / "history.jsonl").open("a") as file:
                file.write(history_line(stats))
        except OSError as error:
            self.note_failure("history.jsonl", error)

    def write_checkpoint(self, step: int, tensors: Mapping[str, Tensor], meta: CheckpointMeta) -> bool:
        """Whether it is on the disk now."""
        name = f"step-{step:09}.safetensors"
        try:
            write_checkpoint(self.path / CHECKPOINTS, name, tensors, meta)
        except OSError as error:
            self.note_failure(f"{CHECKPOINTS}/{name}", error)
            return False
        return True

    def write_weights(self, state: Mapping[str, Tensor]) -> None:
        self.write("model.safetensors", save({name: tensor.cpu().contiguous() for name, tensor in state.items()}))

    def write(self, name: str, content: bytes) -> bool:
        """Whether it is on the disk now."""
        try:
            write_whole(self.path / name, content)
        except OSError as error:
            self.note_failure(name, error)
            return False
        return True

    def note_failure(self, name: str, error: OSError) -> None:
        self.note(f"{self.path / name} could not be written: {error.strerror}")

    def note(self, problem: str) -> None:
        if problem not in self.problems:
            self.problems.append(problem)
            self.tell(problem)


def history_line(stats: EpochStats) -> str:
    return json.dumps(finite(asdict(stats)), allow_nan=False) + "\n"


CHECKPOINTS = "checkpoints"
LOCK = ".lock"
REPORT = "report.html"
OUR_FILES = {"recipe.json", "history.jsonl", "result.json", "model.safetensors"}
OUR_FILES |= {evaluation.NAME, REPORT, CHECKPOINTS, LOCK}


def is_ours(name: str) -> bool:
    return name in OUR_FILES or left_aside(name)


def left_aside(name: str) -> bool:
    """Whether it is what a killed run left of writing one of its files."""
    aside = re.fullmatch(r"\.(.+)\.\d+", name)
    return aside is not None and aside[1] in OUR_FILES


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
