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
from safetensors.torch import load_file

import recipes
from mnist_accel import cli
from mnist_accel.commands import verify
from mnist_accel.data.dataset import Dataset
from mnist_accel.errors import UserError
from mnist_accel.files import write_whole
from mnist_accel.runs import evidence_file, run
from mnist_accel.runs.evidence import hash_of_weights
from mnist_accel.runs.evidence_file import as_json, read_evidence
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
    shown = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in shown if line.startswith("accuracy % ")] == ["-"]
    assert shown[-1] == "evidence  none: batch_size was changed" and not Path("evidence").exists()


def test_synthetic_digits_are_no_evidence(
    in_an_empty_folder: Path, tiny: Dataset, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verify.main([*SHORT, "seeds=1", "timeout=60"]) == 0
    before = Path("evidence/onepoch.json").read_text()
    monkeypatch.setattr(run, "load_dataset", lambda dataset, data_dir: tiny)  # MNIST has gone since
    assert verify.main([*SHORT, "seeds=3"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[-1] == "evidence  none: the digits are synthetic"
    assert "deviation of 2 seeds" in next(line for line in reversed(shown) if line.startswith("accuracy  "))
    assert Path("evidence/onepoch.json").read_text() == before


def test_only_seeds_that_are_missing_are_trained(in_an_empty_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def trained(*words: str) -> list[int]:
        Path("now.json").write_text("[]")  # and left alone where nothing is trained
        assert verify.main([*SHORT, "json=now.json", *words]) == 0
        return [result["seed"] for result in json.loads(Path("now.json").read_text())]

    assert trained("seeds=1", "start=1") == [1]
    assert "accuracy  " in (said := capsys.readouterr().out) and "% (seed 1, last epoch)" in said
    assert trained("seeds=3") == [0, 2]
    assert capsys.readouterr().out.startswith("seed 1 stands in evidence/onepoch.json; into=FILE measures anew")
    assert trained("seeds=2") == []
    said = capsys.readouterr().out
    assert said.startswith("seeds 0 and 1 stand in evidence/onepoch.json") and "deviation of 2 seeds" in said
    assert trained("seeds=2", "into=anew.json") == [0, 1]
    one, two = (read_evidence(Path(name), name) for name in ("evidence/onepoch.json", "anew.json"))
    assert [seed.seed for seed in one.seeds] == [0, 1, 2]
    assert [seed.weights_sha256 for seed in one.seeds[:2]] == [seed.weights_sha256 for seed in two.seeds]
    left = {hash_of_weights(load_file(path)) for path in Path("runs/onepoch").glob("*/model.safetensors")}
    assert left == {seed.weights_sha256 for seed in one.seeds}
    assert one.command == "python -m mnist_accel verify recipe=onepoch threads=1 seeds=3"

    Path("anew.json").write_text(as_json(replace(two, recipe_hash="0" * 64)))
    with pytest.raises(UserError, match=r"^into=anew.json: was measured with other settings. Move it away"):
        verify.main([*SHORT, "seeds=3", "into=anew.json"])


def test_a_seed_that_could_not_be_added_is_added_with_the_next(
    in_an_empty_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Path] = []

    def full_at_first(target: Path, content: bytes) -> None:
        calls.append(target)
        if len(calls) == 1:
            raise OSError(28, "No space left on device")
        write_whole(target, content)

    monkeypatch.setattr(evidence_file, "write_whole", full_at_first)
    assert verify.main([*SHORT, "seeds=2"]) == 4
    assert [seed.seed for seed in read_evidence(Path("evidence/onepoch.json"), "x").seeds] == [0, 1]


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
        ("recipe=onepoch into=.", "into=.: is a folder. Name a file in it"),
        ("recipe=onepoch lr=0.1 into=x.json", "into=x.json: there will be no evidence: lr was changed"),
        ("recipe=onepoch dry_run=true into=x", "into=x: there will be no evidence: a dry run's figures mean nothing"),
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
