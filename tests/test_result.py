"""What a run's result says, and with what it may be compared."""

import json
import re
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

import pytest
from conftest import Ran
from test_folder import STATS

import recipes
from mnist_accel import cli
from mnist_accel.data.dataset import Dataset
from mnist_accel.errors import CleanExit, Interrupted, OutOfMemory, PeerLost, TrainingFailed
from mnist_accel.machine.runtime import Runtime
from mnist_accel.runs.checkout import commit_of
from mnist_accel.runs.record import read_recipe, read_result
from mnist_accel.runs.result import Progress, RunResult, describe
from mnist_accel.runs.watcher import Watcher
from mnist_accel.training.state import EpochStats, Position

Described = Callable[..., RunResult]


@pytest.fixture
def described(runtime: Runtime, tiny: Dataset) -> Described:
    """The result of a run of ``onepoch`` on MNIST after its one epoch, but for what is said."""

    def described(*words: str, data: str = "mnist", error: Exception | None = None) -> RunResult:
        request = cli.parse(["recipe=onepoch", *words], recipes.names(), recipes.load)
        progress = Progress(Position(epoch=1, history=[STATS]), error=error)  # type: ignore[arg-type]
        return describe(request, runtime, replace(tiny, name=data), progress, time.perf_counter(), None)

    return described


def test_a_recipe_that_claims_no_more_than_its_size_is_not_said_to_be_changed(described: Described) -> None:
    changed = described("lr=0.5")
    assert "settings were changed" in changed.why_not_compared
    sized = replace(changed, claims=[claim for claim in changed.claims if claim.name.startswith("parameters")])
    assert sized.claims and sized.why_not_compared == ""


@pytest.mark.parametrize(
    ("words", "data", "error", "compared"),
    [
        ((), "mnist", None, True),
        (("seed=3",), "mnist", None, True),
        (("threads=1", "checkpoint_every=5"), "mnist", None, True),
        ((), "synthetic", None, False),
        ((), "mnist", TrainingFailed("loss is nan"), False),
        ((), "mnist", PeerLost("gone"), False),
        ((), "mnist", Interrupted(15), False),
        (("validation=5000",), "mnist", None, False),
        (("lr=0.5", "seed=3"), "mnist", None, False),
        (("epochs=2",), "mnist", None, False),
        (("batch_size=70",), "mnist", None, False),
        (("rotation=3",), "mnist", None, False),
        (("dry_run=true",), "mnist", None, False),
    ],
)
def test_only_the_documented_run_is_held_against_what_is_documented(
    described: Described, words: tuple[str, ...], data: str, error: Exception | None, compared: bool
) -> None:
    claims = described(*words, data=data, error=error).claims
    accuracy = [claim for claim in claims if claim.name.startswith("accuracy")]
    assert accuracy and all((claim.met is not None) == compared for claim in accuracy)
    assert all(claim.measured == STATS.accuracy for claim in accuracy)
    (parameters,) = [claim for claim in claims if claim.name.startswith("parameters")]
    assert parameters.met is True  # the network has them all the same


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (None, "finished"),
        (TrainingFailed("loss is nan"), "failed"),
        (PeerLost("gone"), "interrupted"),
        (OutOfMemory("full"), "interrupted"),
        (Interrupted(2), "interrupted"),
    ],
)
def test_what_would_fail_again_has_failed_and_everything_else_can_be_gone_on_with(
    described: Described, error: Exception | None, status: str
) -> None:
    result = described(error=error)
    assert (result.status, result.error) == (status, None if error is None else str(error))


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    def git(*words: str) -> None:
        who = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
        subprocess.run(["git", "-C", str(tmp_path), *who, *words], check=True, capture_output=True)

    (tmp_path / "launch.py").write_text("1")
    (tmp_path / "inside").mkdir()
    git("init")
    (tmp_path / "evidence").mkdir()
    (tmp_path / "evidence" / "x.json").touch()
    git("add", "launch.py", "evidence")
    git("commit", "-m", "first")
    git("tag", "-a", "v1", "-m", "a tag must not take the commit's place")
    return tmp_path


def test_a_commit_is_that_of_the_checkout_and_marks_what_was_changed(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_DIR", "/nowhere")  # as in a git hook
    head = commit_of(checkout)
    assert head and re.fullmatch(r"[0-9a-f]{40}", head)
    (checkout / "runs").mkdir()
    (checkout / "runs" / "untracked").touch()
    assert commit_of(checkout) == head
    (checkout / "evidence" / "x.json").write_text("more")
    assert commit_of(checkout) == head
    (checkout / "launch.py").write_text("2")
    assert commit_of(checkout) == head + "+"
    assert commit_of(checkout / "inside") is None  # installed somewhere inside another project's checkout
    monkeypatch.setenv("PATH", "")
    assert commit_of(checkout) is None


def test_results_of_earlier_versions_can_be_read(run_here: Callable[..., Ran]) -> None:
    folder = run_here("recipe=onepoch", "dry_run=true").folder
    stored = json.loads((folder / "result.json").read_text())
    assert {"began", "commit", "profile"} <= stored.keys()
    for later in ("began", "commit", "profile"):
        del stored[later]
    (folder / "result.json").write_text(json.dumps(stored | {"of a later version": 1}))
    result = read_result(folder, "that run")
    assert (result.began, result.accuracy) == (None, stored["accuracy"])
    assert read_recipe(folder, "that run") == replace(recipes.load("onepoch"), claims=(), measured=None)


# Of whole runs


@pytest.mark.parametrize(("words", "met"), [((), False), (("seed=3",), False), (("lr=0.01",), None)])
def test_a_run_is_held_against_its_claims_where_it_is_the_documented_one(
    run_here: Callable[..., Ran], tiny: Dataset, words: tuple[str, ...], met: bool | None
) -> None:
    accuracy, _ = run_here("recipe=onepoch", *words, data=replace(tiny, name="mnist")).result.claims
    assert (accuracy.met, accuracy.measured is not None) == (met, True)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (TrainingFailed("lost its way"), "failed"),
        (RuntimeError("DefaultCPUAllocator: not enough memory"), "interrupted"),
    ],
)
def test_a_run_that_failed_is_held_against_no_claim(
    error: Exception, status: str, run_here: Callable[..., Ran], tiny: Dataset, tmp_path: Path
) -> None:
    def fail(stats: EpochStats) -> None:
        raise error

    with pytest.raises(CleanExit):
        run_here(
            "recipe=onepoch",
            f"out={tmp_path / 'failed'}",
            data=replace(tiny, name="mnist"),
            watcher=Watcher(on_epoch=fail),
        )
    result = json.loads((tmp_path / "failed" / "result.json").read_text())
    assert (result["status"], result["optimizer_steps"]) == (status, 10)
    assert [(claim["measured"] is not None, claim["met"]) for claim in result["claims"]] == [(True, None), (True, True)]


def test_a_result_says_what_was_trained_on_what_and_where(run_here: Callable[..., Ran], tiny: Dataset) -> None:
    words = ("recipe=is3", "epochs=2", "batch_size=250", "seed=4", "validation=100", "threads=1")
    ran = run_here(*words)
    result, recipe = ran.result, recipes.load("is3")
    assert (result.recipe, result.model, result.params) == ("is3", recipe.model, 144_833)
    assert (result.dataset, result.train_images, result.test_images) == ("synthetic", 500, 100)
    assert "scored on 100 held-out" in result.dataset_reason
    assert (result.epochs, result.batch_size, result.optimizer_steps, result.seed) == (2, 250, 4, 4)
    assert (result.device, result.world_size, result.threads, result.precision) == ("cpu", 1, 1, "fp32")
    first, last = result.history
    assert (first.epoch, last.epoch, first.steps, last.images) == (1, 2, 2, 500)
    for name in ("accuracy", "correct", "total", "train_loss", "test_loss", "positive"):
        assert getattr(result, name) == getattr(last, name), name
    assert result.train_seconds == pytest.approx(first.train_seconds + last.train_seconds)
    assert result.eval_seconds == pytest.approx(first.eval_seconds + last.eval_seconds)
    assert result.total_seconds > result.train_seconds + result.eval_seconds
    assert result.images_per_second == pytest.approx(1000 / result.train_seconds)
    assert result.command[: len(words)] == list(words)
    assert result.began and 0 <= (datetime.now(timezone.utc) - datetime.fromisoformat(result.began)).seconds < 300
    assert (result.commit, result.profile) == (commit_of(), None)
    assert read_result(ran.folder, "it").history == result.history
    assert (result.status, result.error, result.resumed_from, result.dry_run) == ("finished", None, None, False)
    stored = json.loads((ran.folder / "recipe.json").read_text())
    assert stored["recipe"]["batch_size"] == 250 and stored["options"]["threads"] == 1
    assert json.loads((ran.folder / "result.json").read_text())["correct"] == result.correct
