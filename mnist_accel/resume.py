"""``resume=auto|PATH`` → an unfinished run and its newest intact checkpoint, or a line that says why not."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from mnist_accel.checkpoint import Checkpoint, DamagedCheckpoint, newest_first, newest_intact, read_checkpoint
from mnist_accel.errors import UserError
from mnist_accel.recipe import Recipe
from mnist_accel.results import CHECKPOINTS, EpochStats, unfinished_run
from mnist_accel.stepping import Position

# What was published and measured about a recipe may change between two runs of it.
NOT_LEARNING = ("claims", "measured")


@dataclass(frozen=True)
class Resumption:
    folder: Path
    checkpoint: Checkpoint
    complaints: tuple[str, ...]  # about newer checkpoints that had to be passed over


def find_resumption(resume: str, recipe: Recipe, out: Path | None) -> Resumption | None:
    """None where ``resume=auto`` finds nothing to go on with: then the run starts from the beginning."""
    if resume == "auto":
        folders = [out] if out else unfinished_runs(Path("runs") / recipe.name)
        found = next((newest for newest in map(newest_of, folders) if newest), None)
    else:
        found = named(Path(resume).expanduser(), f"resume={resume}")
    if found is not None:
        refuse_other_recipe(found.checkpoint, recipe, f"resume={resume}")
    return found


def unfinished_runs(parent: Path) -> list[Path]:
    """Newest first; their names are times."""
    return sorted((folder for folder in parent.glob("*") if unfinished_run(folder)), reverse=True)


def newest_of(folder: Path) -> Resumption | None:
    if not unfinished_run(folder):
        return None
    checkpoint, complaints = newest_intact(folder / CHECKPOINTS)
    return Resumption(folder, checkpoint, tuple(complaints)) if checkpoint else None


def named(path: Path, typed: str) -> Resumption:
    if path.is_file():
        try:
            return Resumption(path.absolute().parent.parent, read_checkpoint(path), ())
        except DamagedCheckpoint as error:
            raise UserError(f"{typed}: damaged: {error}. Name its run's folder to take an older one") from None
    if not newest_first(path / CHECKPOINTS):
        raise UserError(f"{typed}: no checkpoint there. Name a run's folder, or type resume=auto")
    if not unfinished_run(path):
        raise UserError(f"{typed}: that run is over. Leave resume out to start a new one")
    found = newest_of(path)
    if found is None:
        raise UserError(f"{typed}: every checkpoint there is damaged. Leave resume out to start a new run")
    return found


def refuse_other_recipe(checkpoint: Checkpoint, recipe: Recipe, typed: str) -> None:
    """Going on with other settings would be neither run."""
    then, now = checkpoint.facts.recipe, learning(recipe)
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


def position_of(resumed: Resumption) -> Position:
    facts = resumed.checkpoint.facts
    return Position(facts.epoch, facts.step, facts.loss_sum, facts.images, facts.seconds, history_of(resumed))


def history_of(resumed: Resumption) -> list[EpochStats]:
    read = TypeAdapter(EpochStats).validate_python
    return [read(stats) for stats in resumed.checkpoint.facts.history]
