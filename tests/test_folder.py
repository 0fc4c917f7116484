"""The run folder: whole files or none, nobody's work overwritten, and a full disk that stops no training."""

import json
import os
import re
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import recipes
from mnist_accel import cli
from mnist_accel.errors import UserError
from mnist_accel.runs import run
from mnist_accel.runs.checkpoint import CheckpointMeta, read_checkpoint
from mnist_accel.runs.folder import LOCK, RunFolder
from mnist_accel.training.state import EpochStats, Position, Positive

STATS = EpochStats(
    epoch=1,
    steps=2,
    images=200,
    lr=0.1,
    train_loss=0.5,
    test_loss=0.25,
    accuracy=98.13,
    correct=9813,
    total=10_000,
    positive=None,
    train_seconds=1.5,
    eval_seconds=0.5,
)


def names(folder: Path) -> list[str]:
    """Without the lock, which stays where a run has been."""
    return sorted(path.name for path in folder.iterdir() if path.name != LOCK)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "run", "run")
    folder.open()
    return folder


@contextmanager
def disk_full_after(file_bytes: int) -> Iterator[None]:
    """No file may grow beyond this; Python ignores the signal, so that a write fails with EFBIG."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


# Files


def test_what_is_written_is_read_back_and_nothing_else_is_left(folder: RunFolder) -> None:
    weights = {"a": torch.randn(3, 2), "b": torch.arange(4)}
    folder.write_json("result.json", {"accuracy": 98.13, "names": ["ä"]})
    folder.append_history(STATS)
    folder.append_history(STATS)
    folder.write_weights(weights)
    assert names(folder.path) == ["history.jsonl", "model.safetensors", "result.json"]
    assert json.loads((folder.path / "result.json").read_text()) == {"accuracy": 98.13, "names": ["ä"]}
    lines = (folder.path / "history.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [asdict(STATS)] * 2
    read = load_file(folder.path / "model.safetensors")
    assert all(torch.equal(read[name], weights[name]) for name in weights) and len(read) == 2
    assert folder.problems == []


def test_weights_in_channels_last_are_stored_with_their_values_in_place(folder: RunFolder) -> None:
    weight = torch.randn(4, 3, 5, 5).to(memory_format=torch.channels_last)
    folder.write_weights({"weight": weight})
    assert torch.equal(load_file(folder.path / "model.safetensors")["weight"], weight)


def test_numbers_that_json_does_not_know_become_null(folder: RunFolder) -> None:
    """A diverged net has an infinite test loss, and other people's parsers stop at NaN."""
    folder.write_json("result.json", {"a": float("nan"), "b": [float("inf"), 1.0], "c": {"d": float("-inf")}})
    content = (folder.path / "result.json").read_text()
    assert json.loads(content) == {"a": None, "b": [None, 1.0], "c": {"d": None}}
    folder.append_history(EpochStats(**{**asdict(STATS), "test_loss": float("inf")}))
    assert json.loads((folder.path / "history.jsonl").read_text())["test_loss"] is None


def test_a_file_is_whole_or_absent_when_writing_it_fails(folder: RunFolder) -> None:
    told: list[str] = []
    folder.tell = told.append
    with disk_full_after(1_000):
        folder.write_weights({"a": torch.zeros(10_000)})
    assert names(folder.path) == []
    assert folder.problems == told == [f"{folder.path / 'model.safetensors'} could not be written: File too large"]


def test_the_old_content_stays_when_replacing_it_fails(folder: RunFolder) -> None:
    folder.write_json("result.json", {"old": True})
    with disk_full_after(100):
        folder.write_json("result.json", {"new": "x" * 1000})
    assert names(folder.path) == ["result.json"]
    assert json.loads((folder.path / "result.json").read_text()) == {"old": True}


def test_a_problem_is_told_once(folder: RunFolder) -> None:
    told: list[str] = []
    folder.tell = told.append
    with disk_full_after(0):
        folder.append_history(STATS)
        folder.append_history(STATS)
        folder.write_json("result.json", {})
    assert len(told) == len(folder.problems) == 2


def test_a_file_is_on_the_disk_before_it_has_its_name(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def spy_fsync(descriptor: int) -> None:
        fsync(descriptor)
        order.append(f"synced {names(folder.path)}")

    def spy_replace(self: Path, target: Path) -> Path:
        order.append(f"named {target.name}")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", spy_fsync)
    monkeypatch.setattr(Path, "replace", spy_replace)
    folder.write_json("result.json", {})
    assert order[0].startswith("synced ['.result.json.")
    assert order[1:] == ["named result.json", "synced ['result.json']"]


def test_a_full_disk_costs_a_checkpoint_and_keeps_the_one_before(folder: RunFolder) -> None:
    told: list[str] = []
    folder.tell = told.append
    meta = CheckpointMeta(recipe={}, dataset="", world_size=1, position=Position(step=1, images=1, seconds=1))
    assert folder.write_checkpoint(1, {"model.a": torch.ones(1000)}, meta)
    with disk_full_after(2_000):
        assert not folder.write_checkpoint(2, {"model.a": torch.zeros(1000)}, meta)
    saved = folder.path / "checkpoints"
    assert told == [f"{saved / 'step-000000002.safetensors'} could not be written: File too large"]
    assert names(saved) == ["step-000000001.safetensors"]
    assert read_checkpoint(saved / "step-000000001.safetensors").tensors["model.a"].sum() == 1000


# Folders


def put(folder: Path, files: dict[str, Any]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))


STEP = {"checkpoints/step-000000001.safetensors": ""}
FINISHED = "already holds a finished run. Name another folder, or move that one away"
UNFINISHED = "holds an unfinished run. Type resume=auto to go on with it, or name another folder"
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a finished run": ({"result.json": {"status": "finished", "dry_run": False}}, FINISHED),
    "weights without a result, for which the disk was full": ({"model.safetensors": "weights"}, FINISHED),
    "a killed run": (STEP, UNFINISHED),
    "an interrupted run": (STEP | {"result.json": {"status": "interrupted"}}, UNFINISHED),
    "a run whose result is no JSON": (STEP | {"result.json": "half a fi"}, UNFINISHED),
    "other files": ({"thesis.tex": ""}, "holds other files (thesis.tex). Name a new or empty folder"),
}
# Worth less than the name of a folder: opening it leaves nothing of these, which would pass for the new run's.
REPEATED: dict[str, dict[str, Any]] = {
    "a dry run": {"result.json": {"status": "finished", "dry_run": True}, "history.jsonl": "{}\n"},
    "a failed run": {"result.json": {"status": "failed", "dry_run": False}, "history.jsonl": "{}\n"},
    "checkpoints of a failed run, which would fail again": STEP | {"result.json": {"status": "failed"}},
    "a result that is no JSON": {"result.json": "half a fi"},
    "a result that is a list": {"result.json": "[]"},
    "weights of a result that says nothing": {"recipe.json": {}, "result.json": {}, "model.safetensors": "{}"},
    "a run killed between writing aside and renaming": {".model.safetensors.12345": "half", "recipe.json": {}},
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_folder_with_something_to_lose_is_refused_and_left_as_it_is(tmp_path: Path, kind: str) -> None:
    files, said = REFUSED[kind]
    put(tmp_path, files)
    for refuse in (RunFolder(tmp_path, "my/run").check, RunFolder(tmp_path, "my/run").open):
        with pytest.raises(UserError, match=f"^{re.escape(f'out=my/run: {said}')}$"):
            refuse()
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert left - {LOCK} == files.keys()


@pytest.mark.parametrize("kind", REPEATED)
def test_a_folder_with_nothing_to_lose_is_emptied(tmp_path: Path, kind: str) -> None:
    put(tmp_path, REPEATED[kind])
    RunFolder(tmp_path, "run").check()
    RunFolder(tmp_path, "run").open()
    assert names(tmp_path) == []


def test_two_runs_cannot_write_to_one_folder_at_once(folder: RunFolder) -> None:
    folder.write_json("result.json", {"status": "failed"})
    for history in (None, []):
        with pytest.raises(UserError, match=r"^out=run: another run is writing there\. Name another folder, or wait$"):
            RunFolder(folder.path, "run").open(history)
    assert names(folder.path) == ["result.json"]


def test_going_on_keeps_the_files_and_takes_back_the_history(tmp_path: Path) -> None:
    """An epoch that was told after the last checkpoint will be told again."""
    put(tmp_path, {"recipe.json": {}, "history.jsonl": "{}\n{}\n{}\n", ".result.json.12345": "left half-wr"})
    RunFolder(tmp_path).open([STATS])
    assert names(tmp_path) == ["history.jsonl", "recipe.json"]
    assert json.loads((tmp_path / "history.jsonl").read_text()) == asdict(STATS)


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    put(tmp_path, {"file": ""})
    with pytest.raises(UserError, match=r"^out=file: is no folder\. Name a folder$"):
        RunFolder(tmp_path / "file", "file").check()


def test_a_folder_is_made_with_its_parents_and_checking_makes_nothing(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "a" / "b")
    folder.check()
    assert names(tmp_path) == []
    folder.open()
    assert (tmp_path / "a" / "b").is_dir() and names(tmp_path / "a" / "b") == []


@pytest.mark.parametrize("out", ["x" * 300, "~nobody-of-this-name/run"])
def test_a_name_that_no_folder_can_have_is_the_users_mistake(out: str) -> None:
    request = cli.parse(["recipe=is3", f"out={out}"], recipes.names(), recipes.load)
    with pytest.raises(UserError, match=f"^out={out}: "):
        run.check(request)


def test_out_below_the_home_folder_may_be_typed_with_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    request = cli.parse(["recipe=is3", "out=~/run"], recipes.names(), recipes.load)
    assert run.check(request)[0].path == tmp_path / "run"


def test_runs_of_the_same_second_get_folders_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folders = []
    for _ in range(3):
        folder = RunFolder(Path("runs/is3/20261120-120000"))
        folder.check()
        folder.open()
        folder.write_json("result.json", {"status": "finished", "dry_run": False})
        folders.append(folder.path)
    assert len(set(folders)) == 3 and all(folder.parent == Path("runs/is3") for folder in folders)


# Numbers


@pytest.mark.parametrize(
    ("hits", "said_yes", "is_yes", "expected"),
    [
        (8, 10, 16, (80.0, 50.0, 200 * 0.8 * 0.5 / 1.3)),
        (10, 10, 10, (100.0, 100.0, 100.0)),
        (0, 0, 10, (0.0, 0.0, 0.0)),
        (0, 10, 0, (0.0, 0.0, 0.0)),
        (0, 0, 0, (0.0, 0.0, 0.0)),
    ],
)
def test_precision_recall_and_f1_in_percent_also_where_nothing_was_found(
    hits: int, said_yes: int, is_yes: int, expected: tuple[float, float, float]
) -> None:
    found = Positive.from_counts(hits, said_yes, is_yes)
    assert (found.precision, found.recall, found.f1) == pytest.approx(expected)


# A full disk in a real run


def test_a_full_disk_does_not_stop_the_training_and_the_exit_code_tells(
    run_launch: Callable[..., Any], tmp_path: Path
) -> None:
    """512 bytes a file: enough for a line of history, too little for recipe, weights and result."""
    out = tmp_path / "run"
    ended = run_launch(
        "recipe=onepoch",
        "dataset=synthetic",
        "batch_size=1000",
        "threads=1",
        f"out={out}",
        file_bytes=512,
    )
    assert ended.returncode == 4
    lines = ended.stdout.splitlines()
    problems = [line for line in lines if "could not be written" in line]
    written = ("recipe.json", "checkpoints/step-000000060.safetensors", "model.safetensors")
    written += ("evaluation.safetensors", "result.json")
    for line, name in zip(problems, written, strict=True):
        assert str(out / name) in line and "File too large" in line
    (epoch,) = [line for line in lines if line.startswith("epoch 1/1")]
    assert lines.index(problems[1]) < lines.index(epoch) < lines.index(problems[2])
    assert any(line.startswith("accuracy") and "of 10,000" in line for line in lines)
    assert ended.stderr == ""
    assert names(out) == ["checkpoints", "history.jsonl"] and names(out / "checkpoints") == []
    assert json.loads((out / "history.jsonl").read_text())["total"] == 10_000


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_log_on_the_full_disk_does_not_stop_the_training(run_launch: Callable[..., Any], tmp_path: Path) -> None:
    """``python launch.py … > log 2>&1`` on the disk that fills: the output is lost, the run is not."""
    out = tmp_path / "run"
    typed = f"{sys.executable} launch.py recipe=onepoch dataset=synthetic dry_run=true threads=1 out={out}"
    ended = run_launch(launcher=("bash", "-c", f"{typed} >/dev/full 2>&1"))
    assert {"result.json", "model.safetensors"} <= set(names(out))
    assert ended.returncode == 4 and ended.stderr == ""
