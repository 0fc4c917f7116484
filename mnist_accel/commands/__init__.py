"""The verbs of ``python -m mnist_accel``: a file each, with a one-line docstring and ``main(argv) -> int``.

A new file is a new verb. Their keys are the fields of a frozen pydantic dataclass, like those of a recipe.
"""

import ast
import importlib
from collections.abc import Callable, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mnist_accel.cli import explain, nearest, split_words
from mnist_accel.errors import UserError
from mnist_accel.recipe import Key, keys_of

FOLDER = Path(__file__).parent


def names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.py") if not path.stem.startswith("_"))


def summary(name: str) -> str:
    """The first line of a verb's docstring, read without importing it: the list must not wait for torch."""
    return (ast.get_docstring(ast.parse((FOLDER / f"{name}.py").read_text())) or "").partition("\n")[0]


def load(name: str) -> Callable[[list[str]], int]:
    main: Callable[[list[str]], int] = importlib.import_module(f"mnist_accel.commands.{name}").main
    return main


def read_options(argv: Sequence[str], owner: type) -> Any:
    """``key=value`` words → the dataclass of a verb's keys; every mistake is a UserError of one line."""
    keys = keys_of(owner)
    words = split_words(argv)
    values = {name: read_value(name, text, keys) for name, text in words.items()}
    for name in required_keys(owner):
        if name not in values:
            choices = keys[name].kind.replace("|", ", ")
            raise UserError(f"{name}: not given. Type {name}= with one of {choices}")
    options = owner(**values)
    for name, needs in ((name, keys[name].needs) for name in words):
        if needs and (actual := getattr(options, needs.key)) not in needs.values:
            raise UserError(
                f"{name}={words[name]}: has no effect with {needs.key}={actual}. "
                f"Leave {name} out, or type {needs.key}={needs.values[0]}"
            )
    return options


def required_keys(owner: type) -> list[str]:
    return [field.name for field in fields(owner) if field.default is MISSING]


def read_value(name: str, text: str, keys: dict[str, Key]) -> Any:
    if name not in keys:
        closest = nearest(name, keys)
        raise UserError(
            f"{name}={text}: no such key. "
            + (f"Did you mean {closest}={text}?" if closest else f"Keys are {', '.join(keys)}")
        )
    key = keys[name]
    try:
        if key.kind == "true|false" and text not in ("true", "false"):
            raise UserError(f"{name}={text}: must be true or false. For example {name}=true")
        return key.adapter.validate_python(text)
    except ValidationError as error:
        default = key.default
        remedy = f"{name} is {key.description}" if default is None else f"For example {name}={default}"
        raise UserError(f"{name}={text}: {explain(error)}. {remedy}") from None
