"""``python -m mnist_accel eval``: the figures of ``result.json`` again, from the weights alone."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from conftest import RunHere, forget_accelerate

from mnist_accel.commands import eval as verb
from mnist_accel.data.dataset import Dataset
from mnist_accel.errors import UserError
from mnist_accel.inference import scoring

Seen = dict[str, Any]


@pytest.fixture
def seen(tiny: Dataset, monkeypatch: pytest.MonkeyPatch) -> Seen:
    """What the verb asks for; it is given tiny data, on a CPU."""
    seen: Seen = {}

    def load(dataset: str, data_dir: str | None) -> Dataset:
        seen.update(dataset=dataset, data_dir=data_dir)
        return tiny

    start = scoring.start_runtime

    def start_here(precision: str, device: str, threads: int) -> Any:
        seen.update(precision=precision, device=device, threads=threads)
        forget_accelerate()
        return start(precision, device, threads)

    monkeypatch.setattr(scoring, "load_dataset", load)
    monkeypatch.setattr(scoring, "start_runtime", start_here)
    return seen


def columns(printed: str) -> dict[str, list[str]]:
    rows = [re.split(r" {2,}", line.strip()) for line in printed.splitlines()]
    return {row[0]: row[1:] for row in rows if len(row) > 2}


@pytest.mark.parametrize(
    "words",
    [
        "recipe=onepoch ema=0.5",
        "recipe=onepoch precision=bf16",
        "recipe=efficient25k validation=150 mean=0.3",
        "recipe=is3 positive_class=7 lr=0.02 epochs=2",
        "recipe=onepoch precision=bf16 test_shifts=1",
        "recipe=is3 lr=0.02 epochs=2 test_shifts=2",
    ],
)
def test_a_run_is_scored_as_it_was(
    words: str, run_here: RunHere, seen: Seen, capsys: pytest.CaptureFixture[str]
) -> None:
    result = (ran := run_here(*words.split())).result
    assert verb.main([str(ran.folder), "threads=1"]) == 0
    out = capsys.readouterr().out
    pixels = ran.start.recipe.test_shifts
    said = f", scored with shifts of {pixels} pixel{'s'[: pixels > 1]}\n" if pixels else "\n"
    assert f"of recipe {result.recipe}{said}" in out
    printed = columns(out)
    assert printed["accuracy %"] == [f"{result.accuracy:.2f}"] * 2
    assert printed["correct"] == [f"{result.correct:,} of {result.total:,}"] * 2
    assert printed["loss"] == [f"{result.test_loss:.6f}"] * 2
    assert printed.get("F1 %") == (None if result.positive is None else [f"{result.positive.f1:.2f}"] * 2)
    assert seen == {
        "dataset": "synthetic",
        "data_dir": None,
        "precision": result.precision,
        "device": "auto",
        "threads": 1,
    }


def test_weights_alone_are_scored_and_a_dry_run_says_that_its_images_were_fewer(
    run_here: RunHere, seen: Seen, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = run_here("recipe=onepoch")
    alone = tmp_path / "alone.safetensors"
    alone.write_bytes((ran.folder / "model.safetensors").read_bytes())
    assert verb.main([str(alone)]) == 0
    printed = capsys.readouterr().out
    assert f"{ran.result.accuracy:.2f}" in printed and "result.json" not in printed
    stored = json.loads((ran.folder / "result.json").read_text())
    (ran.folder / "result.json").write_text(json.dumps(stored | {"dry_run": True, "total": 50, "accuracy": 12.0}))
    assert verb.main([str(ran.folder)]) == 0
    assert "Not the same images: the run was a dry one." in capsys.readouterr().out


ROWS = {
    "dataset": ("mnist", "mnist", "synthetic"),
    "data_dir": ("there", "there", "."),
    "device": ("cpu", "cpu", "auto"),
    "precision": ("bf16", "bf16", "fp32"),
    "threads": ("2", 2, 0),
}


def test_a_key_reaches_what_it_is_for(run_here: RunHere, seen: Seen) -> None:
    run = str(run_here("recipe=onepoch", "dry_run=true", "dataset=auto", "data_dir=.").folder)
    verb.main([run])
    assert {key: seen[key] for key in ROWS} == {key: without for key, (_, _, without) in ROWS.items()}
    for key, (value, with_it, _) in ROWS.items():
        verb.main([run, f"{key}={value}"])
        assert seen[key] == with_it


def test_a_run_in_a_precision_that_is_not_to_be_had_here_is_scored_in_fp32(run_here: RunHere, seen: Seen) -> None:
    ran = run_here("recipe=onepoch", "dry_run=true")
    result = json.loads((ran.folder / "result.json").read_text())
    (ran.folder / "result.json").write_text(json.dumps(result | {"precision": "fp16"}))
    verb.main([str(ran.folder)])
    assert seen["precision"] == "fp32"


def test_a_result_that_is_none_costs_one_line(run_here: RunHere, seen: Seen) -> None:
    path = run_here("recipe=onepoch", "dry_run=true").folder / "result.json"
    result = json.loads(path.read_text())
    for content, said in (
        (result | {"accuracy": "much"}, "result.json is not a run's: accuracy: "),
        (result | {"history": [1]}, "result.json is not a run's: history.0: "),
        ([], "result.json is not a run's: "),
    ):
        path.write_text(json.dumps(content))
        with pytest.raises(UserError) as refused:
            verb.main([str(path.parent)])
        assert said in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["threads=1"], "eval: no run given. Type python -m mnist_accel eval RUN"),
        (["one", "two"], "eval: more than one run given"),
        (["one", "thread=1"], "thread=1: no such key. Did you mean threads=1?"),
        (["nowhere"], "nowhere: No such file or directory"),
    ],
)
def test_a_mistake_costs_one_line(words: list[str], said: str) -> None:
    with pytest.raises(UserError) as refused:
        verb.main(words)
    assert str(refused.value).startswith(said)
