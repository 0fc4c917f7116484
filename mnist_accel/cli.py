"""``key=value`` words → a Recipe and RunOptions. Every mistake costs one line that names key, value and remedy.

Imports neither torch nor a data set: the answer to a typing mistake comes at once.
"""

import difflib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mnist_accel import models
from mnist_accel.errors import UserError
from mnist_accel.recipe import Key, Recipe, RunOptions, keys_of

HELP_WORDS = ("--help", "-h", "help")
TRAINING_IMAGES = 60_000
FEWEST_PROFILED = 7  # steps an epoch: settling, timing, tracing


@dataclass(frozen=True)
class Request:
    """What is to be run. ``changed`` are the recipe's keys that the user has set to something else."""

    recipe: Recipe
    options: RunOptions
    command: tuple[str, ...]
    changed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Help:
    """What is to be shown instead of running: the list of recipes, or the keys with the defaults of ``recipe``."""

    lists: bool
    recipe: Recipe | None = None


def help_asked(argv: Sequence[str], recipe_names: Sequence[str], load: Callable[[str], Recipe]) -> Help | None:
    words = [word for word in argv if word not in HELP_WORDS]
    if not argv:
        return Help(lists=True)
    if len(words) == len(argv):
        return None
    named = "recipe" in split_words(words)
    return Help(lists=False, recipe=parse(words, recipe_names, load).recipe if named else None)


def asks_for_help(argv: Sequence[str]) -> bool:
    """Of a verb; nor can one do anything without words."""
    return not argv or any(word in HELP_WORDS for word in argv)


def parse(argv: Sequence[str], recipe_names: Sequence[str], load: Callable[[str], Recipe]) -> Request:
    words = split_words(argv)
    base = load(choose_recipe(words, recipe_names))
    keys = all_keys()
    values = {name: read_value(name, text, keys, vars(base)) for name, text in words.items() if name != "recipe"}
    recipe = apply(base, values, Recipe)
    options = apply(RunOptions(), values, RunOptions)
    refuse_ignored(words, keys, vars(recipe) | vars(options))
    check_together(recipe, options)
    changed = tuple(name for name in keys_of(Recipe) if getattr(recipe, name) != getattr(base, name))
    return Request(recipe, options, command=tuple(argv), changed=changed)


def all_keys() -> dict[str, Key]:
    return keys_of(Recipe) | keys_of(RunOptions)


def split_words(argv: Iterable[str]) -> dict[str, str]:
    """``["lr=0.1"]`` → ``{"lr": "0.1"}``, in the order typed."""
    words: dict[str, str] = {}
    for word in argv:
        key, equals, value = word.partition("=")
        if word.startswith("-"):
            bare = word.lstrip("-")
            example = bare if "=" in bare else f"{bare or 'KEY'}=VALUE"
            raise UserError(f"{word}: keys have no dashes. Type {example}, or --help alone")
        if not equals:
            known = word in all_keys()
            remedy = f"{word}=VALUE" if known else f"recipe={word}, if that is a recipe; python launch.py lists them"
            raise UserError(f"{word}: not of the form key=value. Type {remedy}")
        if key in words:
            raise UserError(f"{word}: {key} is typed twice, first as {key}={words[key]}. Keep one of them")
        if not value:
            raise UserError(f"{word}: no value behind the '='. Type {key}=VALUE, or leave {key} out for its default")
        words[key] = value
    return words


def nearest(word: str, known: Iterable[str]) -> str | None:
    matches = difflib.get_close_matches(word.lower(), list(known), n=1, cutoff=0.5)
    return matches[0] if matches else None


def choose_recipe(words: dict[str, str], recipe_names: Sequence[str]) -> str:
    known = ", ".join(recipe_names)
    if "recipe" not in words:
        raise UserError(f"recipe: none named. Type recipe=NAME with one of {known}")
    name = words["recipe"]
    # Only names from the listing reach the file system, so a path cannot name a file elsewhere.
    if name not in recipe_names:
        closest = nearest(name, recipe_names)
        hint = f"Did you mean recipe={closest}?" if closest else f"Recipes are {known}"
        raise UserError(f"recipe={name}: no such recipe. {hint}")
    return name


def refuse_unknown_network(model: str, shown: str) -> None:
    """``shown`` is where the recipe that names it stands."""
    if model not in (known := models.names()):
        closest = nearest(model, known)
        hint = f'Did you mean model="{closest}"?' if closest else f"Networks are {', '.join(known)}"
        raise UserError(f'{shown}: model="{model}": no such file in mnist_accel/models/. {hint}')


def read_value(name: str, text: str, keys: Mapping[str, Key], defaults: Mapping[str, Any]) -> Any:
    """``text`` as the key's type, within its bounds; ``defaults`` serve as examples of what would do."""
    if name not in keys:
        closest = nearest(name, keys)
        hint = f"Did you mean {closest}={text}?" if closest else "--help lists the keys"
        raise UserError(f"{name}={text}: no such key. {hint}")
    key = keys[name]
    default = defaults.get(name, key.default)
    remedy = f"{name} is {key.description}" if default is None else f"For example {name}={spell(default)}"
    try:
        # pydantic would read on, yes and 1 as true as well
        if key.kind == "true|false" and text not in ("true", "false"):
            raise UserError(f"{name}={text}: must be true or false. {remedy}")
        # … and 1_0 as 10
        if key.kind in ("int", "float") and ("_" in text or text != text.strip()):
            raise UserError(f"{name}={text}: must be a number in plain digits. {remedy}")
        return key.adapter.validate_python(text)
    except ValidationError as error:
        raise UserError(f"{name}={text}: {explain(error)}. {remedy}") from None


def explain(error: ValidationError) -> str:
    problem = error.errors()[0]
    if problem["type"] in ("int_parsing", "int_from_float"):
        return "must be a whole number"
    said = "must be a number" if problem["type"] == "float_parsing" else problem["msg"]
    said = said.replace("Input should be", "must be")
    return said.replace("greater than or equal to", "at least").replace("less than or equal to", "at most")


def spell(value: Any) -> str:
    """A value as the user would type it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def apply(base: Any, values: dict[str, Any], owner: type) -> Any:
    return replace(base, **{field.name: values[field.name] for field in fields(owner) if field.name in values})


def refuse_ignored(words: Mapping[str, str], keys: Mapping[str, Key], values: Mapping[str, Any]) -> None:
    """A key that the run would not look at is a misunderstanding; swallowing it would hide that."""
    for name, key in keys.items():
        if name not in words or key.needs is None:
            continue
        actual = values[key.needs.key]
        if actual not in key.needs.values:
            remedy = f"Leave {name} out"
            if key.needs.key in keys:
                remedy += f", or type {key.needs.key}={key.needs.values[0]}"
            raise UserError(f"{name}={words[name]}: has no effect with {key.needs.key}={actual}. {remedy}")


def check_together(recipe: Recipe, options: RunOptions) -> None:
    """What no field can check alone."""
    batch, images = f"batch_size={recipe.batch_size}", TRAINING_IMAGES - recipe.validation
    if recipe.batch_size > images:
        raise UserError(f"{batch}: larger than the {images:,} training images. Type at most batch_size={images}")
    if options.resume and options.dry_run:
        raise UserError(f"resume={options.resume}: a dry run would end the run. Leave dry_run out, or resume")
    steps = -(-images // recipe.batch_size)
    if options.profile and options.dry_run:
        raise UserError("profile=true: a dry run has one step, too few to profile. Leave dry_run out, or profile")
    if options.profile and steps < FEWEST_PROFILED:
        remedy = f"Type at most batch_size={(images - 1) // (FEWEST_PROFILED - 1)}"
        raise UserError(f"profile=true: {steps} steps an epoch with {batch}, {FEWEST_PROFILED} are needed. {remedy}")
    if options.processes and recipe.batch_size < options.processes:
        raise UserError(too_small_batch(recipe.batch_size, options.processes))
    if options.restarts and (options.processes or 1) == 1:
        raise UserError(
            f"restarts={options.restarts}: needs processes=N, 2 or more; torch's launchers have --max-restarts. "
            "Type processes=2, or leave restarts out"
        )
    if recipe.nesterov and recipe.momentum == 0:
        raise UserError("nesterov=true: needs momentum above 0. Type momentum=0.9, or nesterov=false")


def too_small_batch(batch_size: int, processes: int) -> str:
    return (
        f"batch_size={batch_size}: smaller than the {processes} processes, some would have nothing to do. "
        f"Type at least batch_size={processes}"
    )


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


def split_paths(argv: Sequence[str], owner: type) -> tuple[list[str], list[str]]:
    """For a verb that takes paths beside its keys: the bare words, and the others. A path may hold an ``=`` if it is
    there and its beginning is no key; ``-`` stands for what comes in."""
    paths: list[str] = []
    words: list[str] = []
    for word in argv:
        key, equals, _ = word.partition("=")
        is_path = key not in keys_of(owner) and os.path.lexists(word) if equals else not word.startswith("-")
        (paths if is_path or word == "-" else words).append(word)
    return paths, words


def split_options(argv: Sequence[str], owner: type, refused: Mapping[str, str]) -> tuple[Any, list[str]]:
    """For a verb that takes launch.py's keys beside its own: the verb's options, and the words left for launch.py.

    ``refused`` are keys of launch.py that make no sense here, with the reason.
    """
    words = split_words(argv)
    mine = [f"{key}={value}" for key, value in words.items() if key in keys_of(owner)]
    own = read_options(mine, owner)
    refuse_keys(words, refused)
    return own, [word for word in argv if word not in mine]


def refuse_keys(words: Mapping[str, str], refused: Mapping[str, str]) -> None:
    for key, why in refused.items():
        if key in words:
            raise UserError(f"{key}={words[key]}: not here; {why}. Leave {key} out")


def expand_path(typed: str, asked: str) -> Path:
    """``~`` as the home folder; ``asked`` is what the user typed, key included."""
    try:
        return Path(typed).expanduser()
    except RuntimeError:
        raise UserError(f"{asked}: there is no such home folder. Name another folder") from None
