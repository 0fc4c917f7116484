"""``python -m mnist_accel verify``: real runs of several seeds, their mean and spread, claims held against the mean."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pytest
from conftest import Ran

import recipes
from mnist_accel import cli
from mnist_accel.commands import verify
from mnist_accel.data.dataset import Dataset
from mnist_accel.errors import UserError
from mnist_accel.runs import run
from mnist_accel.runs.folder import RunFolder
from recipes import load, names

SHORT = ("recipe=onepoch", "threads=1")  # 10 steps of tiny


@pytest.fixture
def in_an_empty_folder(
    run_here: Callable[..., Ran], tiny: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """Where ``verify`` may leave its runs; its images are few, and called MNIST so that claims are compared."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run, "load_dataset", lambda dataset, data_dir: replace(tiny, name="mnist"))
    monkeypatch.setattr(recipes, "EVIDENCE", tmp_path / "evidence")
    return tmp_path


def learned(result: dict[str, Any]) -> dict[str, Any]:
    return {
        name: result[name] for name in ("seed", "accuracy", "correct", "train_loss", "test_loss", "optimizer_steps")
    }


def test_seeds_are_trained_one_after_the_other_and_held_against_the_claims_together(
    in_an_empty_folder: Path, run_here: Callable[..., Ran], tiny: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verify.main([*SHORT, "seeds=3", "json=figures.json"]) == 0
    shown = capsys.readouterr().out.splitlines()
    stored = json.loads(Path("figures.json").read_text())
    left = [json.loads(path.read_text()) for path in in_an_empty_folder.glob("runs/onepoch/*/result.json")]
    assert sorted(left, key=lambda result: result["seed"]) == stored
    assert [result["seed"] for result in stored] == [0, 1, 2]
    for result in stored:  # what is written down would train the same seed again
        assert cli.parse(result["command"], names(), load).recipe.seed == result["seed"]
    assert len({result["train_loss"] for result in stored}) == 3
    alone = run_here(*SHORT, "seed=2", data=replace(tiny, name="mnist")).result
    assert learned(stored[2]) == learned(vars(alone))

    accuracies = [result["accuracy"] for result in stored]
    assert max(accuracies) - mean(accuracies) > 0.1
    for seed, accuracy in enumerate(accuracies):
        assert any(re.match(rf"seed {seed}  accuracy {accuracy:.2f} %  training \d", line) for line in shown)
    rows = [re.split(r" {2,}", line.strip()) for line in shown]
    claim = load("onepoch").claims[0]
    expected = [claim.label, claim.documented, f"{mean(accuracies):.2f}", "fail"]
    assert expected in [[*row[:3], row[-1]] for row in rows if len(row) == 5]  # p between
    said = {line[:8].strip(): line[10:] for line in shown[-6:]}
    assert said["accuracy"] == (
        f"{mean(accuracies):.2f} ± {stdev(accuracies):.2f} % (mean and standard deviation of 3 seeds, last epoch)"
    )
    reach = 4.30265273 * stdev(accuracies) / 3**0.5
    assert said["mean"].startswith(f"{mean(accuracies) - reach:.2f} to {mean(accuracies) + reach:.2f} % (95 %")
    assert said["minimum"] == f"{min(accuracies):.2f} %, maximum {max(accuracies):.2f} %"
    assert said["evidence"] == "evidence/onepoch.json"


def test_changed_settings_are_handed_on_and_judge_no_claim(
    in_an_empty_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verify.main([*SHORT, "seeds=2", "batch_size=200", "json=figures.json"]) == 0
    stored = json.loads(Path("figures.json").read_text())
    assert [(result["batch_size"], result["optimizer_steps"]) for result in stored] == [(200, 3)] * 2
    assert [[claim["met"] for claim in result["claims"]] for result in stored] == [[None, True]] * 2
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("accuracy % ")]
    assert [row[-1] for row in rows] == ["-"]


def test_a_run_that_could_not_be_written_down_ends_with_4(
    in_an_empty_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RunFolder, "write_weights", lambda folder, *weights: folder.note("the disk is full"))
    assert verify.main([*SHORT, "seeds=2"]) == 4


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("recipe=onepoch seeds=0", "seeds=0: must be at least 1"),
        ("recipe=onepoch seed=1", "seed=1: not here; type seeds=N"),
        ("recipe=onepoch out=x", "out=x: not here; each seed has a folder of its own"),
        ("recipe=onepoch processes=2", "processes=2: not here; torchrun"),
        ("recipe=onepoch json=no/such/folder/x.json", "json=no/such/folder/x.json: cannot be written"),
        ("recipe=onepoch epoch=2", "epoch=2: no such key. Did you mean epochs=2?"),
        ("recipe=onepok", "recipe=onepok: no such recipe"),
        ("seeds=3", "recipe: none named"),
    ],
)
def test_a_mistake_costs_one_line_and_writes_nothing(words: str, said: str, in_an_empty_folder: Path) -> None:
    with pytest.raises(UserError) as mistake:
        verify.main(words.split())
    assert str(mistake.value).startswith(said)
    assert list(in_an_empty_folder.iterdir()) == []
