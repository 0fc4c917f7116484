"""Builds a recipe's network for a trial, on no device: to count its parameters, and before anything is written."""

from pathlib import Path

import torch

import mnist_accel.models
from mnist_accel.blame import line_of, what_of
from mnist_accel.errors import UserError
from mnist_accel.models import build_model, count_parameters
from mnist_accel.recipe import Recipe


def parameters_of(recipe: Recipe) -> int:
    """How many its network has; UserError, with the file that fails, where it cannot be built."""
    try:
        with torch.device("meta"):
            return count_parameters(build_model(recipe.model, recipe.dropout))
    except Exception as error:
        file = Path(mnist_accel.models.__file__).parent / f"{recipe.model}.py"
        raise UserError(
            f"{line_of(error, file)}: {what_of(error)}. The network of recipe={recipe.name} has to be "
            f"def {recipe.model}(dropout: float) -> nn.Module"
        ) from None
