"""Distributed and accelerated MNIST training: recipes of five published systems and our own, one training loop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # importing the package must not wait for torch
    import os

    from mnist_accel.inference.weights import ReadyNetwork
    from mnist_accel.recipe import Recipe
    from mnist_accel.runs.result import RunResult

__version__ = "0.1.0"


def load(run: str | os.PathLike[str]) -> ReadyNetwork:
    """A run's network, ready to use: raw ``uint8`` images ``[n, 28, 28]`` in, logits out. ``run`` is its folder."""
    from mnist_accel.inference import weights

    return weights.load(run)


def train(recipe: str | Recipe, /, **keys: Any) -> RunResult:
    """Trains a recipe, one of ``recipes/`` by its name or any ``Recipe``, in this process: ``train("onepoch",
    epochs=2)``. The keys are those of ``python launch.py --help``."""
    from mnist_accel import notebook

    return notebook.train(recipe, **keys)
