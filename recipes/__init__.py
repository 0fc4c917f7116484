"""The recipes, one file each: a docstring with the evidence, and one ``RECIPE`` literal. A new file is a new recipe."""

import importlib
from pathlib import Path

from mnist_accel.recipe import Recipe


def names() -> list[str]:
    return sorted(path.stem for path in Path(__file__).parent.glob("*.py") if not path.stem.startswith("_"))


def load(name: str) -> Recipe:
    recipe: Recipe = importlib.import_module(f"recipes.{name}").RECIPE
    assert recipe.name == name, f"recipes/{name}.py calls itself {recipe.name}"
    return recipe
