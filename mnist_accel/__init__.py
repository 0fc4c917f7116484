"""Distributed and accelerated MNIST training: five published systems as recipes, one training loop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # importing the package must not wait for torch
    from mnist_accel.recipe import Recipe
    from mnist_accel.runs.result import RunResult

__version__ = "0.1.0"


def train(recipe: str | Recipe, **keys: Any) -> RunResult:
    """Trains a recipe, one of ``recipes/`` by its name or any ``Recipe``, in this process: ``train("onepoch",
    epochs=2)``. The keys are those of ``python launch.py --help``."""
    from mnist_accel import notebook

    return notebook.train(recipe, **keys)
