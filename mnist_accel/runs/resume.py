"""Finds the unfinished run and the newest intact checkpoint that ``resume=auto|PATH`` means, or says why not."""

import json
import math
import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mnist_accel.errors import UserError
from mnist_accel.recipe import Recipe
from mnist_accel.runs.checkpoint import (
    Checkpoint,
    DamagedCheckpoint,
    newest_first,
    newest_intact,
    read_checkpoint,
)
from mnist_accel.runs.folder import CHECKPOINTS, being_written, unfinished_run

# What was published and measured about a recipe may change between two runs of it.
NOT_LEARNING = ("claims", "measured")


@dataclass(frozen=True)
class Resumption:
    folder: Path
    checkpoint: Checkpoint
    complaints: tuple[str, ...]  # about newer checkpoints that had to be passed over


def find_resumption(resume: str, recipe: Recipe, out: Path | None) -> Resumption | None:
    """None where ``resume=auto`` finds no unfinished run: then this one starts from the beginning."""
    typed = f"resume={resume}"
    if resume == "auto":
        unfinished = unfinished_runs(recipe.name) if out is None else [out] if unfinished_run(out) else []
        found = newest_in(unfinished, typed) if unfinished else None
    else:
        found = resume_from_path(Path(resume).expanduser(), typed)
    if found is not None:
        refuse_other_recipe(found.checkpoint, recipe, typed)
    return found


def unfinished_runs(recipe_name: str) -> list[Path]:
    """Those that nobody is training, in the order of their newest checkpoints; a folder's name may be anything."""
    folders = [
        folder for folder in Path("runs", recipe_name).glob("*") if unfinished_run(folder) and not being_written(folder)
    ]
    return sorted(folders, key=lambda folder: newest_first(folder / CHECKPOINTS)[0].stat().st_mtime, reverse=True)


def newest_in(folders: Sequence[Path], typed: str) -> Resumption:
    """The newest sound checkpoint of the first folder that has one."""
    complaints: list[str] = []
    for folder in folders:
        checkpoint, about_newer_ones = newest_intact(folder / CHECKPOINTS, read_sound)
        complaints += about_newer_ones
        if checkpoint:
            return Resumption(folder, checkpoint, tuple(complaints))
    raise UserError(
        f"{typed}: every checkpoint is damaged ({complaints[0]}). "
        "Leave resume out to start a new run, in another folder"
    )


def resume_from_path(path: Path, typed: str) -> Resumption:
    if path.is_file():
        home = path.absolute().parent
        if home.name != CHECKPOINTS:
            raise UserError(f"{typed}: lies in no run's folder. Name RUN/{CHECKPOINTS}/{path.name}, or the folder RUN")
        try:
            checkpoint = read_sound(path)
        except DamagedCheckpoint as error:
            raise UserError(f"{typed}: damaged: {error}. Name its run's folder to take an older one") from None
        if not unfinished_run(home.parent):
            raise UserError(f"{typed}: that run is over. Leave resume out to start a new one")
        return Resumption(home.parent, checkpoint, ())
    if not newest_first(path / CHECKPOINTS):
        raise UserError(f"{typed}: no checkpoint there. Name a run's folder, or type resume=auto")
    if not unfinished_run(path):
        raise UserError(f"{typed}: that run is over. Leave resume out to start a new one")
    return newest_in([path], typed)


def read_sound(path: Path) -> Checkpoint:
    """A verified checkpoint whose position can also be true; it was signed, but perhaps not by this program."""
    checkpoint = read_checkpoint(path)
    position = checkpoint.meta.position
    epochs = [stats.epoch for stats in position.history]
    if len(epochs) != position.epoch or epochs != list(range(1, len(epochs) + 1)):
        raise DamagedCheckpoint(f"its history is not that of {position.epoch} finished epochs")
    if min(position.step, position.images) < 0 or (position.step == 0) != (position.images == 0):
        raise DamagedCheckpoint(f"{position.step} steps cannot have seen {position.images} images")
    if not 0 <= (position.correct or 0) <= position.images:
        raise DamagedCheckpoint(f"{position.correct} correct answers for {position.images} images")
    if not math.isfinite(position.loss_sum) or not 0 <= position.seconds < math.inf:
        raise DamagedCheckpoint(f"a loss of {position.loss_sum} after {position.seconds} seconds")
    return checkpoint


def refuse_other_recipe(checkpoint: Checkpoint, recipe: Recipe, typed: str) -> None:
    """Going on with other settings would be neither run."""
    then, now = checkpoint.meta.recipe, learning(recipe)
    for key in now:
        if then.get(key) != now[key]:
            raise UserError(
                f"{typed}: {checkpoint.path} was trained with {key}={then.get(key)}, this run has {key}={now[key]}. "
                f"Type the same settings, or leave resume out"
            )


def learning(recipe: Recipe) -> dict[str, Any]:
    """The recipe as it stands in a checkpoint: what changes the result, as JSON would give it back."""
    kept = {key: value for key, value in asdict(recipe).items() if key not in NOT_LEARNING}
    settings: dict[str, Any] = json.loads(json.dumps(kept))
    return settings


SCRIPT = "launch.py"


def line_to_go_on(words: Sequence[str], resumed: Path | None = None) -> str:
    """``words`` are launch.py's as typed, ``resumed`` is the folder that resume=PATH named.

    Asked for at the start: a launcher may be gone once the run is stopped.
    """
    kept = [word for word in words if not word.startswith("resume=")]
    script = os.path.relpath(sys.argv[0]) if Path(sys.argv[0]).name == SCRIPT else SCRIPT
    return shlex.join([*launcher(), script, *kept, f"resume={resumed or 'auto'}"])


def launcher() -> list[str]:
    """What stood before ``launch.py``: in the command of the launcher around us, if it can be known, else in ours."""
    ours = as_typed([sys.orig_argv[0]])
    if not {"WORLD_SIZE", "ACCELERATE_MIXED_PRECISION"} & set(os.environ):
        return ours
    try:
        command = Path(f"/proc/{os.getppid()}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:  # not Linux, or gone already
        return ours
    ends = [index for index, word in enumerate(command) if Path(word).name == SCRIPT]
    return as_typed(command[: ends[0]]) if ends else ours


def as_typed(command: Sequence[str]) -> list[str]:
    """``/x/python /x/accelerate launch`` → ``accelerate launch``: the kernel names a script's interpreter before it."""
    if len(command) > 1 and not command[1].startswith("-"):
        command = command[1:]
    return [short(command[0]), *command[1:]]


def short(program: str) -> str:
    """Its name alone, where the shell would find the same program by it."""
    name = Path(program).name
    return name if shutil.which(name) == program else program
