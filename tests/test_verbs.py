"""Every key of every verb, changed alone, reaches what it is for; a key without a row fails."""

import json
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import test_eval
import torch
from conftest import LAUNCHER_VARIABLES
from test_profiling import traced

from benchmarks import compare, fresh, scaling, time_to_99
from benchmarks.turns import Comparison, Ratio
from mnist_accel import commands
from mnist_accel.commands import bench, evidence, predict, report, trace, verify
from mnist_accel.commands import eval as eval_verb
from mnist_accel.commands import scaling as scaling_verb
from mnist_accel.data.dataset import Dataset
from mnist_accel.machine.runtime import Runtime
from mnist_accel.models import build_model
from mnist_accel.recipe import Recipe, RunOptions, keys_of

Seen = dict[str, Any]
OWNERS = (
    Recipe,
    RunOptions,
    bench.BenchOptions,
    eval_verb.EvalOptions,
    evidence.EvidenceOptions,
    predict.PredictOptions,
    report.ReportOptions,
    scaling_verb.ScalingOptions,
    trace.TraceOptions,
    verify.VerifyOptions,
)

# verb: key: another value, what is typed beside it, what is looked at in what was seen, what that is with and without
ROWS: dict[str, dict[str, tuple[str, str, str, Any, Any]]] = {
    "bench": {
        "subject": ("engine", "", "subject", "engine", "loader"),
        "recipe": ("is3", "", "recipe", "is3", "onepoch"),
        "pairs": ("7", "", "pairs", 7, 5),
        "images": ("300", "", "images", 300, 20_000),
        "steps": ("3", "subject=epoch", "steps", 3, 200),
        "workers": ("4", "subject=epoch", "workers", 4, None),
        "dataset": ("mnist", "", "dataset", "mnist", "auto"),
        "data_dir": ("digits", "", "data_dir", "digits", None),
        "device": ("cpu", "", "device", "cpu", "auto"),
        "threads": ("2", "", "threads", 2, 1),
        "json": ("figures.json", "", "files", ["figures.json"], []),
    },
    "scaling": {
        "processes": ("1,3", "", "processes", [1, 3], [1, 2, 4]),
        "mode": ("weak", "", "modes", ["weak"], ["strong"]),
        "repeats": ("4", "", "repeats", 4, 3),
        "threads": ("2", "", "job", "threads=2", "threads=1"),
        "steps": ("9", "", "steps", 9, 50),
        "plot": ("true", "", "files", ["out/scaling.json", "out/scaling.png"], ["out/scaling.json"]),
        "out": ("there", "", "files", ["there/scaling.json"], ["out/scaling.json"]),
    },
}
# What is typed where a row says nothing else.
USUAL = {"bench": {"subject": "loader", "threads": "1"}, "scaling": {"mode": "strong", "plot": "false", "out": "out"}}


def test_every_key_of_every_verb_has_a_row() -> None:
    # doctor has no keys
    assert commands.names() == [
        *("bench", "doctor", "eval", "evidence", "export", "predict", "report", "scaling", "trace", "verify")
    ]
    assert ROWS["bench"].keys() == keys_of(bench.BenchOptions).keys()
    assert ROWS["scaling"].keys() == keys_of(scaling_verb.ScalingOptions).keys()
    assert keys_of(trace.TraceOptions).keys() == {"path", "against", "out"}  # below and tests/test_profile_page.py
    assert keys_of(report.ReportOptions).keys() == {"out"}  # tests/test_report_page.py
    assert keys_of(eval_verb.EvalOptions).keys() == test_eval.ROWS.keys()
    assert keys_of(predict.PredictOptions).keys() == {"json"}  # tests/test_predict.py; export has none
    assert keys_of(evidence.EvidenceOptions).keys() == {"write", "picture"}  # tests/test_evidence.py
    assert keys_of(verify.VerifyOptions).keys() == {"seeds", "start", "into", "json"}  # tests/test_verify.py


@pytest.mark.parametrize("owner", OWNERS, ids=lambda owner: owner.__name__)
def test_what_a_key_is_reads_as_a_sentence(owner: type) -> None:
    """Without a default that would serve as an example, a mistake is answered with "KEY is DESCRIPTION"."""
    for name, key in keys_of(owner).items():
        if key.default is None and owner is not Recipe:  # a recipe gives all of its own
            begins = ("the ", "a ", "another ", "how many ", "what ", "auto (")
            assert key.description.startswith(begins), f"{name} is {key.description}"


@pytest.mark.parametrize(
    ("verb", "words"),
    [
        (verb, words)
        for verb in commands.names()
        for words in ([], ["--help"])
        if words or verb not in ("doctor", "evidence")  # which need none
    ],
)
def test_a_verb_alone_explains_its_keys(verb: str, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert commands.load(verb)(words) == 0
    shown = capsys.readouterr().out
    keys = {key for owner in OWNERS if owner.__module__ == commands.load(verb).__module__ for key in keys_of(owner)}
    first = {line.split()[0] for line in shown.splitlines() if line.strip()}
    assert shown.startswith(f"python -m mnist_accel {verb} ") and keys <= first


@pytest.fixture
def seen(tiny: Dataset, make_runtime: Callable[..., Runtime], monkeypatch: pytest.MonkeyPatch) -> Seen:
    """What the verbs hand on to what measures, which is not measured here."""
    seen: Seen = {}

    def load(dataset: str, data_dir: str | None) -> Dataset:
        seen.update(dataset=dataset, data_dir=data_dir)
        return tiny

    def start(precision: str, device: str, threads: int) -> Runtime:
        seen.update(device=device, threads=threads)
        return make_runtime(precision, device, threads)

    def measured_by(subject: str) -> Callable[..., Any]:
        def measured(recipe: Any, *where: Any, **how: Any) -> Any:
            seen.update(how, subject=subject, recipe=recipe.name)
            one = Comparison("", "s", {"ours": [1.0]}, [Ratio("ours / theirs", [1.0])])
            return [one] if subject in ("loader", "time_to_99") else one

        return measured

    def measure(points: list[scaling.Point], job: list[str], **how: Any) -> None:
        seen.update(how, points=points, words=job, job=job[-1], modes=sorted({point.mode for point in points}))
        seen["processes"] = sorted({point.processes for point in points})
        for point in points:
            point.images_per_second, point.accuracies, point.speedups = [1.0], [90.0], [1.0]
            point.all_reduce_shares = [0.0]

    for module, names in (
        (compare, ("loader", "epoch", "engine")),
        (fresh, ("start", "precision")),
        (time_to_99, ("time_to_99",)),
    ):
        for name in names:
            monkeypatch.setattr(module, name, measured_by(name))
    monkeypatch.setattr(scaling, "measure", measure)
    monkeypatch.setattr("mnist_accel.data.dataset.load_dataset", load)
    monkeypatch.setattr("mnist_accel.machine.runtime.start_runtime", start)
    for name in LAUNCHER_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    return seen


@pytest.fixture
def told(seen: Seen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Seen]:
    numbers = count()

    def told(verb: str, typed: dict[str, str]) -> Seen:
        here = tmp_path / str(next(numbers))
        here.mkdir()
        monkeypatch.chdir(here)
        assert commands.load(verb)([f"{key}={value}" for key, value in typed.items()]) == 0
        return seen | {"files": sorted(str(path) for path in Path().rglob("*.*"))}

    return told


@pytest.mark.parametrize(("verb", "key"), [(verb, key) for verb, rows in ROWS.items() for key in rows])
def test_a_key_of_a_verb_reaches_what_it_is_for(verb: str, key: str, told: Callable[..., Seen]) -> None:
    value, beside, looked_at, with_it, without = ROWS[verb][key]
    usual = USUAL[verb] | dict(word.split("=") for word in beside.split())
    assert told(verb, usual)[looked_at] == without
    assert told(verb, usual | {key: value})[looked_at] == with_it


@pytest.mark.parametrize("subject", ["loader", "epoch", "engine", "start", "precision", "time_to_99"])
def test_every_subject_is_measured_by_its_own(subject: str, seen: Seen, told: Callable[..., Seen]) -> None:
    assert told("bench", {"subject": subject, "threads": "1", "data_dir": "x"})["subject"] == subject
    if subject in ("start", "precision", "time_to_99"):
        assert seen["words"] == ["dataset=synthetic", "device=cpu", "threads=1", "data_dir=x"]


def test_scaling_hands_launch_py_s_keys_on_but_for_what_it_varies(seen: Seen, told: Callable[..., Seen]) -> None:
    usual = USUAL["scaling"] | {"processes": "1,2"}
    told("scaling", usual | {"mode": "both", "recipe": "is3", "batch_size": "96", "lr": "0.5", "dataset": "auto"})
    assert seen["words"] == ["recipe=is3", "lr=0.5", "epochs=1", "dataset=synthetic", "threads=1"]
    assert [(point.mode, point.processes, point.batch_size) for point in seen["points"]] == [
        ("strong", 1, 96),
        ("strong", 2, 96),
        ("weak", 1, 96),
        ("weak", 2, 192),
    ]
    told("scaling", usual | {"epochs": "3", "out": "two"})
    assert seen["words"] == ["recipe=onepoch", "epochs=3", "dataset=synthetic", "threads=1"]
    assert json.loads(Path("two/scaling.json").read_text())["epochs"] == 3


def test_trace_shows_its_path_and_compares_with_the_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    paths = []
    for name, steps in (("one", 1), ("two", 2)):
        (tmp_path / name).mkdir()
        paths.append(traced(build_model("onepoch", 0.1), tmp_path / name, steps=steps)[0])
    assert trace.main([str(paths[0])]) == 0
    alone = " ".join(capsys.readouterr().out.split())
    assert str(paths[0]) in alone and str(paths[1]) not in alone
    assert trace.main([str(paths[0]), f"against={paths[1]}"]) == 0
    compared = " ".join(capsys.readouterr().out.split())
    assert compared.index(str(paths[0])) < compared.index(str(paths[1]))
