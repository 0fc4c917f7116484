"""Recipes and networks of one's own: a mistake is one line with file, field and remedy, and hurts no other."""

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Type = Callable[..., "subprocess.CompletedProcess[str]"]

SHOWN = ("compact13k", "efficient25k", "is3", "onepoch", "sub20k", "tuned")  # the reader may have more

RECIPE = """from mnist_accel.recipe import Claim, Measured, Recipe

RECIPE = Recipe(name="{name}", model="is3", epochs=1, batch_size=64, optimizer="sgd", lr=0.1, dropout=0.0)
"""
# A file's name, what is changed in a sound recipe, and what is said of it.
BROKEN = [
    ("unknown", ('"is3"', '"is33"'), 'model="is33": no such file in mnist_accel/models/. Did you mean model="is3"?'),
    ("misspelled", ("lr=", "learning_rate="), "learning_rate: no such field. Did you mean lr?"),
    ("missing", ("lr=0.1, ", ""), "lr: not given (learning rate; the peak, where a schedule moves it). Write lr=…"),
    ("wild", ("lr=0.1", "lr=-1"), "lr=-1: must be greater than 0 (learning rate; the peak"),
    ("claiming", ("lr=", 'claims=(Claim(metric="speed", relation="=", value=1),), lr='), "metric='speed': must be "),
    ("copied", ('"copied"', '"is3"'), 'name="is3": a recipe is called like its file. Write name="copied"'),
    ("Capital", ("", ""), "name='Capital': "),
    ("nothing", ("RECIPE =", "recipe ="), "holds no RECIPE. Write RECIPE = Recipe(…)"),
    ("failing", ("RECIPE =", "RECIPE = 1 / 0 or"), "ZeroDivisionError: division by zero. Mend that line"),
    ("unfinished", ("dropout=0.0)", "dropout=0.0"), "SyntaxError: '(' was never closed. Mend that line"),
    ("importing", ("from mnist", "import nowhere\nfrom mnist"), "ModuleNotFoundError: No module named 'nowhere'. Mend"),
]
# A network's file, and what is said of the recipe that names it.
NETWORKS = [
    ("without", "def without(): return nn.Flatten()", "without() takes 0 positional arguments but 1 was given."),
    ("nameless", "def other(dropout): return nn.Flatten()", "has no attribute 'nameless'."),
    ("raising", "def raising(dropout): return nn.Linear('a', 1)", "TypeError: "),
    ("unreadable", "def unreadable(dropout) return", "SyntaxError: "),
]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Path:
    """The project with all of these files in it."""
    copy = tmp_path_factory.mktemp("checkout")
    shutil.copy(root / "launch.py", copy)
    for folder in ("recipes", "mnist_accel"):
        shutil.copytree(root / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name, (old, new), _ in BROKEN:
        (copy / "recipes" / f"{name}.py").write_text(RECIPE.format(name=name).replace(old, new, 1))
    for name, network, _ in NETWORKS:
        (copy / "mnist_accel" / "models" / f"{name}.py").write_text(f"from torch import nn\n\n{network}\n")
        (copy / "recipes" / f"{name}.py").write_text(RECIPE.format(name=name).replace('"is3"', f'"{name}"'))
    tuned = (root / "recipes" / "onepoch.py").read_text().replace('name="onepoch"', 'name="tuned"')
    (copy / "recipes" / "tuned.py").write_text(tuned.replace("lr=0.03", "lr=0.02"))
    return copy


@pytest.fixture(scope="module")
def type_there(checkout: Path, clean_environment: dict[str, str]) -> Type:
    def type_there(*words: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "launch.py", *words],
            cwd=checkout,
            env=clean_environment | {"PYTHONPATH": str(checkout)},
            capture_output=True,
            text=True,
            timeout=120,
        )

    return type_there


@pytest.fixture(scope="module")
def listed(type_there: Type) -> str:
    ended = type_there()
    assert (ended.returncode, ended.stderr) == (0, "")
    return ended.stdout


def test_the_list_shows_every_sound_recipe_with_its_networks_parameters(listed: str) -> None:
    rows = [line.split()[:2] for line in listed.splitlines() if re.match(r"\w+ +[\d,]+ ", line)]
    assert [row for row in rows if row[0] in SHOWN] == [
        ["compact13k", "13,808"],
        ["efficient25k", "8,762"],
        ["is3", "144,833"],
        ["onepoch", "9,606"],
        ["sub20k", "19,712"],
        ["tuned", "9,606"],
    ]


def test_a_copy_is_not_credited_with_what_the_original_reached(listed: str) -> None:
    (original,) = [line for line in listed.splitlines() if line.startswith("onepoch ")]
    (copy,) = [line for line in listed.splitlines() if line.startswith("tuned ")]
    assert "98.54 (20 seeds)" in original and "≥ 98.13" in original
    assert copy.split() == ["tuned", "9,606", "1"]


@pytest.mark.parametrize(("name", "said"), [(name, said) for name, _, said in [*BROKEN, *NETWORKS]])
def test_each_broken_file_costs_one_line_of_the_list(listed: str, name: str, said: str) -> None:
    folder = "mnist_accel/models" if name in [network for network, _, _ in NETWORKS] else "recipes"
    (line,) = [line for line in listed.splitlines() if line.startswith(f"{folder}/{name}.py")]
    assert said in line
    if folder == "mnist_accel/models":
        assert line.endswith(f"The network of recipe={name} has to be def {name}(dropout: float) -> nn.Module")


@pytest.mark.parametrize("name", ["misspelled", "failing", "unknown", "without", "unreadable"])
def test_a_broken_recipe_is_refused_in_that_line_and_nothing_is_written(
    type_there: Type, checkout: Path, listed: str, name: str
) -> None:
    ended = type_there(f"recipe={name}", "dataset=synthetic", "threads=1", "processes=2")
    assert (ended.returncode, ended.stdout) == (2, "")
    (line,) = ended.stderr.splitlines()
    assert line.removeprefix("error: ") in listed.splitlines()
    assert not (checkout / "runs").exists()
