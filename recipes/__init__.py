"""The recipes, one file each: a docstring with the evidence, and one ``RECIPE`` literal. A new file is a new recipe."""

import importlib
from dataclasses import fields, replace
from pathlib import Path

from pydantic import ValidationError

from mnist_accel.blame import line_of, what_of
from mnist_accel.cli import explain, nearest, refuse_unknown_network
from mnist_accel.errors import UserError
from mnist_accel.recipe import Claim, Measured, Recipe, is_evidence_its_own, keys_of

FOLDER = Path(__file__).parent
EVIDENCE = FOLDER.parent / "evidence"  # a file a recipe, of what verify measured
OWNERS = (Recipe, Claim, Measured)


def names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.py") if not path.stem.startswith("_"))


def one_a_network() -> list[str]:
    """Of the recipes that share a network the first by name: for what only the network decides."""
    first = {load(name).model: name for name in reversed(names())}
    return sorted(first.values())


def load(name: str) -> Recipe:
    """UserError, one line with file, field and remedy, where the file holds no sound recipe of its own name."""
    file = FOLDER / f"{name}.py"
    try:
        recipe = getattr(importlib.import_module(f"recipes.{name}"), "RECIPE", None)
    except ValidationError as error:
        raise UserError(f"{line_of(error, file)}: {wrong_field(error)}") from None
    except Exception as error:
        raise UserError(f"{line_of(error, file)}: {what_of(error)}. Mend that line, or move the file away") from None
    shown = line_of(Exception(), file)
    if not isinstance(recipe, Recipe):
        raise UserError(f"{shown}: holds no RECIPE. Write RECIPE = Recipe(…), as in recipes/onepoch.py")
    if recipe.name != name:
        raise UserError(f'{shown}: name="{recipe.name}": a recipe is called like its file. Write name="{name}"')
    refuse_unknown_network(recipe.model, shown)
    return recipe if is_evidence_its_own(recipe) else replace(recipe, claims=(), measured=None)


def wrong_field(error: ValidationError) -> str:
    """Of several mistakes the misspelled field: another one is missing only because of it."""
    problems = sorted(error.errors(), key=lambda problem: problem["type"] != "unexpected_keyword_argument")
    field = ".".join(map(str, problems[0]["loc"]))
    if problems[0]["type"] == "unexpected_keyword_argument":
        known = [item.name for kind in OWNERS if kind.__name__ == error.title for item in fields(kind)]
        missing = [str(problem["loc"][0]) for problem in problems if problem["type"].startswith("missing")]
        closest = nearest(field, known) or (missing[0] if missing else None)
        hint = f"Did you mean {closest}?" if closest else f"Fields are {', '.join(known)}"
        return f"{field}: no such field. {hint}"
    key = keys_of(Recipe).get(field)
    meaning = f" ({key.description})" if key else ""
    if problems[0]["type"].startswith("missing"):
        return f"{field}: not given{meaning}. Write {field}=…"
    return f"{field}={problems[0]['input']!r}: {explain(error)}{meaning}. Mend that value"


def survey() -> tuple[list[tuple[Recipe, int]], list[str]]:
    """Every recipe with the parameters of its network, and a line for every one that cannot run."""
    from mnist_accel.models import parameters_of  # a second, for torch: the list alone counts

    sound, broken = [], []
    for name in names():
        try:
            recipe = load(name)
            sound.append((recipe, parameters_of(recipe.model, recipe.dropout, recipe.name)))
        except UserError as error:
            broken.append(str(error))
    return sound, broken
