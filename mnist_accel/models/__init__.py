"""The networks, one a file: a function of its dropout probability alone, called like its file. A new file is a new one.

Each is imported when it is built, so that a file that fails takes no other network down.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # names are looked up without torch
    from torch import nn


def names() -> list[str]:
    return sorted(path.stem for path in Path(__file__).parent.glob("*.py") if not path.stem.startswith("_"))


def build_model(name: str, dropout: float) -> nn.Module:
    model: nn.Module = getattr(importlib.import_module(f"mnist_accel.models.{name}"), name)(dropout)
    return model


def count_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
