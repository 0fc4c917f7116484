"""The verbs of ``python -m mnist_accel``: a file each, with a one-line docstring and ``main(argv) -> int``.

A new file is a new verb. Their keys are the fields of a frozen pydantic dataclass, like those of a recipe.
"""

import ast
import importlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from mnist_accel.cli import read_value, refuse_ignored, split_words
from mnist_accel.errors import UserError
from mnist_accel.recipe import keys_of

FOLDER = Path(__file__).parent


def names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.py") if not path.stem.startswith("_"))


def summary(name: str) -> str:
    """The first line of a verb's docstring, read without importing it: the list must not wait for torch."""
    return (ast.get_docstring(ast.parse((FOLDER / f"{name}.py").read_text(encoding="utf-8"))) or "").partition("\n")[0]


def load(name: str) -> Callable[[list[str]], int]:
    main: Callable[[list[str]], int] = importlib.import_module(f"mnist_accel.commands.{name}").main
    return main


def read_options(argv: Sequence[str], owner: type) -> Any:
    """``key=value`` words → the dataclass of a verb's keys; every mistake is a UserError of one line."""
    keys = keys_of(owner)
    words = split_words(argv)
    values = {name: read_value(name, text, keys, {}) for name, text in words.items()}
    for field in fields(owner):
        if field.default is MISSING and field.name not in values:
            choices = keys[field.name].kind.replace("|", ", ")
            raise UserError(f"{field.name}: not given. Type {field.name}= with one of {choices}")
    options = owner(**values)
    refuse_ignored(words, keys, vars(options))
    return options


def split_options(argv: Sequence[str], owner: type, refused: Mapping[str, str]) -> tuple[Any, list[str]]:
    """For a verb that takes launch.py's keys beside its own: the verb's options, and the words left for launch.py.

    ``refused`` are keys of launch.py that make no sense here, with the reason.
    """
    words = split_words(argv)
    mine = [f"{key}={value}" for key, value in words.items() if key in keys_of(owner)]
    own = read_options(mine, owner)
    for key, why in refused.items():
        if key in words:
            raise UserError(f"{key}={words[key]}: not here; {why}. Leave {key} out")
    return own, [word for word in argv if word not in mine]


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
