"""The networks, one a file: a function of its dropout probability, called like its file. A new file is a new network.

Each is imported when it is built, so that a file that fails takes no other network down.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

from mnist_accel.blame import line_of, what_of
from mnist_accel.errors import UserError

if TYPE_CHECKING:  # names are looked up without torch
    from torch import nn


FOLDER = Path(__file__).parent
NO_NETWORKS = ("__init__", "layers")


def names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.py") if path.stem not in NO_NETWORKS)


def build_model(name: str, dropout: float) -> nn.Module:
    model: nn.Module = getattr(importlib.import_module(f"mnist_accel.models.{name}"), name)(dropout)
    return model


def count_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def parameters_of(name: str, dropout: float, recipe: str) -> int:
    """How many the network has. Built for a trial, on no device: UserError, with the file that fails, where it cannot
    be."""
    import torch

    try:
        with torch.device("meta"):
            return count_parameters(build_model(name, dropout))
    except Exception as error:
        raise UserError(
            f"{line_of(error, FOLDER / f'{name}.py')}: {what_of(error)}. The network of recipe={recipe} has to be "
            f"def {name}(dropout: float) -> nn.Module"
        ) from None
