"""Finds the unfinished run and the newest intact checkpoint that ``resume=auto|PATH`` means, or says why not."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mnist_accel.errors import UserError
from mnist_accel.recipe import Recipe, keys_of
from mnist_accel.runs.checkpoint import Checkpoint, DamagedCheckpoint, newest_first, newest_intact, read_checkpoint
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
        checkpoint, about_newer_ones = newest_intact(folder / CHECKPOINTS)
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
            checkpoint = read_checkpoint(path)
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


def refuse_other_recipe(checkpoint: Checkpoint, recipe: Recipe, typed: str) -> None:
    """Going on with other settings would be neither run."""
    # Of a key that came after the checkpoint was written nothing but its default was in effect.
    usual = {key.name: key.default for key in keys_of(Recipe).values() if key.default is not None}
    then, now = usual | checkpoint.meta.recipe, learning(recipe)
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
