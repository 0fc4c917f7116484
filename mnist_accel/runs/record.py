"""Reads a run's folder back. Anybody may have written what lies there: nothing is believed unseen."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from mnist_accel.cli import explain
from mnist_accel.errors import UserError, printable
from mnist_accel.files import read_regular
from mnist_accel.recipe import MOST_SHIFTS, Recipe, RunOptions, keys_of
from mnist_accel.runs import evaluation
from mnist_accel.runs.evaluation import BadEvaluation, Evaluation
from mnist_accel.runs.result import SCHEMA, RunResult

MAX_BYTES = 1 << 26  # a history of 100,000 epochs takes 40 MB
MAX_NUMBER = 1e15
Setting = bool | int | float | str | None


@dataclass(frozen=True)
class RunRecord:
    """A run as its folder tells it; what an older version did not write is None or empty."""

    folder: Path
    result: RunResult
    settings: dict[str, Setting]  # of the recipe and of how it ran, as far as they can be typed
    positive_class: int | None
    evaluation: Evaluation | None
    without: str = ""  # why there is no evaluation

    @property
    def loss(self) -> str:
        return "cross_entropy" if self.positive_class is None else "binary"

    @property
    def test_shifts(self) -> int:
        pixels = self.settings.get("test_shifts")
        return pixels if isinstance(pixels, int) and 0 <= pixels <= MOST_SHIFTS else 0

    @property
    def typed(self) -> set[str]:
        """Keys that stood on the command line."""
        return {word.partition("=")[0] for word in self.result.command} - {"recipe"}


def read_record(folder: Path, asked: str) -> RunRecord:
    """UserError, in one line, where ``folder`` holds no run that can be believed."""
    result = read_result(folder, asked)
    recipe, options = settings_of(folder)
    is_binary = recipe.get("loss") == "binary" or (not recipe and result.positive is not None)
    digit = recipe.get("positive_class", 3)
    positive = digit if is_binary and isinstance(digit, int) and 0 <= digit <= 9 else None
    kept, without = read_matching(folder / evaluation.NAME, result, positive)
    shown = {key: recipe[key] for key in keys_of(Recipe) if key in recipe}
    shown |= {key: options[key] for key in keys_of(RunOptions) if key in options}
    return RunRecord(folder, result, shown, positive, kept, without)


def read_result(folder: Path, asked: str) -> RunResult:
    """A run's ``result.json``, of this version or an earlier one."""
    if not os.path.lexists(folder / "result.json"):
        raise UserError(f"{asked}: no result.json there. Name the folder of a run that has ended, as runs/RECIPE/TIME")
    result: RunResult = read_as(RunResult, folder / "result.json", asked)
    if result.schema != SCHEMA:
        raise UserError(f"{asked}: result.json has schema {result.schema}, which this version does not know")
    return result


def read_recipe(folder: Path, asked: str) -> Recipe:
    """What a run's ``recipe.json`` says was learned: settings alone, nothing published or measured."""
    known = {*keys_of(Recipe), "name", "model", "loss"}

    def settings(raw: Any) -> Any:
        recipe = raw.get("recipe") if isinstance(raw, dict) else None
        return {key: value for key, value in recipe.items() if key in known} if isinstance(recipe, dict) else recipe

    recipe: Recipe = read_as(Recipe, folder / "recipe.json", asked, settings)
    return recipe


def read_as(owner: type, path: Path, asked: str, part: Callable[[Any], Any] = lambda raw: raw) -> Any:
    try:
        return TypeAdapter(owner).validate_python(part(read_checked_json(path)))
    except ValidationError as error:
        place = ".".join(map(str, error.errors()[0]["loc"]))
        raise UserError(f"{asked}: {path.name} is not a run's: {printable(place)}: {explain(error)}") from None
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise UserError(f"{asked}: {path.name} cannot be read: {printable(why)}") from None


def read_checked_json(path: Path) -> Any:
    """Of sane size and depth, with numbers that can be computed with and printed."""
    try:
        value = json.loads(read_regular(path, MAX_BYTES))
        refuse_absurd(value)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return value


def refuse_absurd(value: Any) -> None:
    if isinstance(value, dict):
        for item in value.values():
            refuse_absurd(item)
    elif isinstance(value, list):
        for item in value:
            refuse_absurd(item)
    elif isinstance(value, (int, float)) and not abs(value) <= MAX_NUMBER:  # nor nan
        raise ValueError("it holds a number that cannot be")


def settings_of(folder: Path) -> tuple[dict[str, Setting], dict[str, Setting]]:
    """Loosely: a recipe of another version has other keys, and is shown all the same."""
    try:
        raw = read_checked_json(folder / "recipe.json")
    except (OSError, ValueError):
        return {}, {}
    parts = [raw.get(name) if isinstance(raw, dict) else None for name in ("recipe", "options")]
    recipe, options = (
        {key: value for key, value in part.items() if isinstance(value, Setting)} if isinstance(part, dict) else {}
        for part in parts
    )
    return recipe, options


def read_matching(path: Path, result: RunResult, positive_class: int | None) -> tuple[Evaluation | None, str]:
    """The evaluation, or why there is none: it has to be the one that the result speaks of."""
    if not path.is_file():
        return None, "" if result.status == "finished" else "a run that did not end has none"
    try:
        kept = evaluation.read_evaluation(path, 10 if positive_class is None else 1)
    except BadEvaluation as error:
        return None, f"{path.name}: {error}"
    truth = kept.labels.long() if positive_class is None else kept.labels == positive_class
    correct = int((kept.predictions(positive_class) == truth).sum())
    if (correct, len(truth)) != (result.correct, result.total):
        return None, f"{path.name} is not of this run: it scores {correct:,} of {len(truth):,}"
    return kept, ""
