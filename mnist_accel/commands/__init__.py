"""The verbs of ``python -m mnist_accel``: a file each, with a one-line docstring and ``main(argv) -> int``.

A new file is a new verb. Their keys are the fields of a frozen pydantic dataclass, like those of a recipe.
"""

import ast
import importlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mnist_accel.errors import UserError

FOLDER = Path(__file__).parent


def names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.py") if not path.stem.startswith("_"))


def summary(name: str) -> str:
    """The first line of a verb's docstring, read without importing it: the list must not wait for torch."""
    return (ast.get_docstring(ast.parse((FOLDER / f"{name}.py").read_text(encoding="utf-8"))) or "").partition("\n")[0]


def load(name: str) -> Callable[[list[str]], int]:
    main: Callable[[list[str]], int] = importlib.import_module(f"mnist_accel.commands.{name}").main
    return main


def refuse_unwritable(path: str | None) -> None:
    """Before minutes of measuring, not after them."""
    if path is None:
        return
    target = Path(path).expanduser()
    if target.is_dir() or not os.access(target if target.exists() else target.parent, os.W_OK):
        raise UserError(f"json={path}: cannot be written. Name a file in a folder that is there")


def write_json(path: str | None, content: Any) -> None:
    if path is None:
        return
    try:
        Path(path).expanduser().write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")
    except OSError as error:
        raise UserError(f"json={path}: cannot be written ({error.strerror}). Name another file") from None
