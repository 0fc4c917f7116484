"""``tracker=``: TensorBoard for real, and trackers that fail, are missing or know nothing of what was before."""

import signal
import sys
from pathlib import Path
from typing import Any, get_args, get_type_hints

import accelerate
import pytest
from accelerate import tracking as accelerates
from conftest import RunHere
from jobs import Launch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mnist_accel.errors import Interrupted, TrainingFailed, UserError
from mnist_accel.recipe import RunOptions
from mnist_accel.runs import tracking
from mnist_accel.runs.watcher import Watcher
from mnist_accel.training.state import StepInfo

Points = dict[str, list[tuple[int, float]]]

# 6 steps an epoch; 40 with the smaller batch, of which every second is told.
WORDS = ("recipe=onepoch", "batch_size=100", "epochs=2", "tracker=tensorboard")


def points(folder: Path) -> Points:
    """Every event of every file, in TensorBoard's own words: nothing is left out that it would pass over."""
    read = EventAccumulator(str(folder / "tracking"), size_guidance={"scalars": 0}, purge_orphaned_data=False).Reload()
    return {tag: [(event.step, event.value) for event in read.Scalars(tag)] for tag in read.Tags()["scalars"]}


def stop_at(epoch: int, step: int, number: int = signal.SIGTERM) -> Watcher:
    def stop(info: StepInfo) -> None:
        if (info.epoch, info.step) == (epoch, step):
            signal.raise_signal(number)

    return Watcher(on_step=stop)


def test_tensorboard_reads_what_the_history_says(run_here: RunHere) -> None:
    ran = run_here(*WORDS)
    read = points(ran.folder)
    for name in ("train_loss", "test_loss", "accuracy", "lr"):
        expected = [(6 * stats.epoch, getattr(stats, name)) for stats in ran.result.history]
        assert read[name] == [(step, pytest.approx(value)) for step, value in expected], name
    rates = [stats.images / stats.train_seconds for stats in ran.result.history]
    assert [rate for _, rate in read["images_per_second"]] == pytest.approx(rates)
    assert [step for step, _ in read["loss"]] == [1, 2, 3, 4, 5, 7, 8, 9, 10, 11]
    (settings,) = (ran.folder / "tracking").glob("*/hparams.yml")
    assert {"batch_size: 100", "name: onepoch", "optimizer: adamw"} <= set(settings.read_text().splitlines())


def test_a_resumed_run_tells_every_step_once(run_here: RunHere, tmp_path: Path) -> None:
    words, out = (*WORDS[1:], "recipe=onepoch", "checkpoint_every=7"), tmp_path / "stopped"
    words = tuple(word.replace("batch_size=100", "batch_size=15") for word in words)
    whole = points(run_here(*words).folder)
    with pytest.raises(Interrupted):
        run_here(*words, f"out={out}", watcher=stop_at(2, 9))
    older, newest = sorted((out / "checkpoints").iterdir())
    newest.unlink()  # as kill -9 leaves it: the checkpoint is from before the last that was told
    before = points(out)["loss"][-1][0]
    assert int(older.stem.partition("-")[2]) < before
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    run_here(*words, f"resume={out}")
    after = points(out)
    for name in ("loss", "train_loss", "accuracy"):
        assert after[name] == whole[name], name
    assert len(list((out / "tracking").glob("events*"))) == 2
    assert len(list((out / "tracking").glob("*/hparams.yml"))) == 1


def test_an_interrupted_and_a_failed_run_are_flushed(run_here: RunHere, tmp_path: Path) -> None:
    ended: list[str] = []

    def fail(stats: object) -> None:
        raise TrainingFailed("lost its way")

    with pytest.MonkeyPatch.context() as patch:
        finish = accelerates.TensorBoardTracker.finish
        patch.setattr(accelerates.TensorBoardTracker, "finish", lambda self: (finish(self), ended.append("flushed")))
        with pytest.raises(Interrupted):
            run_here(*WORDS, f"out={tmp_path / 'stopped'}", watcher=stop_at(1, 3))
        with pytest.raises(TrainingFailed):
            run_here(*WORDS, f"out={tmp_path / 'failed'}", watcher=Watcher(on_epoch=fail))
    assert ended == ["flushed", "flushed"]
    assert [step for step, _ in points(tmp_path / "stopped")["loss"]] == [1, 2, 3, 4]
    assert [step for step, _ in points(tmp_path / "failed")["loss"]] == [1, 2, 3, 4, 5]


@pytest.mark.slow
def test_of_two_processes_one_tells(run_launch: Launch, tmp_path: Path) -> None:
    words = ("recipe=onepoch", "dry_run=true", "processes=2", "threads=1", "dataset=synthetic", "tracker=tensorboard")
    ended = run_launch(*words, f"out={tmp_path / 'run'}")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert len(list((tmp_path / "run" / "tracking").glob("events*"))) == 1
    assert [step for step, _ in points(tmp_path / "run")["accuracy"]] == [1]


# Others


class Faulty(accelerates.GeneralTracker):
    """As Accelerate's wandb, but for the method ``at``, which raises; ``calls`` are those of all that were built."""

    name, requires_logging_directory, tracker = "comet_ml", False, None
    at = ""
    error: type[BaseException] = ConnectionError
    calls: list[str]

    def __init__(self, project: str, **how: Any):
        super().__init__()

    def call(self, name: str) -> None:
        self.calls.append(name)
        if name == self.at:
            raise self.error(f"no\nway to {name}")

    def start(self) -> None:
        self.call("start")
        assert sys.stdin.read() == ""  # nobody to ask

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.call("configure")
        assert values["batch_size"] == 100 and "claims" not in values

    def log(self, values: dict[str, Any], step: int | None = None, **how: Any) -> None:
        self.call("log")

    def finish(self) -> None:
        self.call("finish")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The calls of ``Faulty``, which is installed."""
    monkeypatch.setattr(Faulty, "calls", [], raising=False)
    monkeypatch.setitem(accelerates.LOGGER_TYPE_TO_CLASS, "comet_ml", Faulty)
    monkeypatch.setattr(tracking, "is_installed", lambda name: True)
    return Faulty.calls


@pytest.mark.parametrize("error", [ConnectionError, SystemExit])
@pytest.mark.parametrize(
    ("at", "calls"),
    [
        ("", ["start", "configure", *["log"] * 12, "finish"]),
        ("start", ["start"]),
        ("configure", ["start", "configure", "finish"]),
        ("log", ["start", "configure", "log", "finish"]),
        ("finish", ["start", "configure", *["log"] * 12, "finish"]),
    ],
)
def test_a_tracker_that_fails_costs_one_line_and_no_run(
    at: str,
    calls: list[str],
    error: type[BaseException],
    fake: list[str],
    run_here: RunHere,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Faulty, "at", at)
    monkeypatch.setattr(Faulty, "error", error)
    told: list[str] = []
    ran = run_here(*WORDS[:-1], "tracker=comet_ml", watcher=Watcher(on_problem=told.append))
    assert (ran.result.status, fake) == ("finished", calls)
    line = f"tracker=comet_ml is told no more, it failed ({error.__name__}: no way to {at})"
    assert told == ([line] if at else [])


def test_ranks_other_than_0_tell_nobody(
    fake: list[str], run_here: RunHere, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accelerate.Accelerator, "is_main_process", False)
    (tmp_path / "run1").mkdir()  # by rank 0
    with pytest.raises(KeyError, match="start"):  # of run_here, whose watcher is told nothing either
        run_here(*WORDS[:-1], "tracker=comet_ml")
    assert fake == []


def test_every_tracker_of_accelerate_s_can_be_named() -> None:
    known = get_args(get_args(get_type_hints(RunOptions, include_extras=True)["tracker"])[0])
    assert set(known) - {"off"} == set(accelerates.LOGGER_TYPE_TO_CLASS)


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("tracker=wandb", "tracker=wandb: not installed. Type pip install wandb, or leave tracker out"),
        ("tracker=mlflow", "tracker=mlflow: not installed. Type pip install mlflow, or leave tracker out"),
    ],
)
def test_a_missing_package_costs_one_line_before_anything_is_written(
    word: str, line: str, run_here: RunHere, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = word.removeprefix("tracker=")
    monkeypatch.delitem(sys.modules, name, raising=False)
    (tmp_path / name).mkdir()  # which W&B leaves behind, and which Python takes for a package
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(UserError) as refused:
        run_here("recipe=onepoch", word, f"out={tmp_path / 'run'}")
    assert str(refused.value) == line and not (tmp_path / "run").exists()


def test_one_that_this_accelerate_does_not_know(run_here: RunHere, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(accelerates.LOGGER_TYPE_TO_CLASS, "trackio")
    with pytest.raises(UserError, match=f"tracker=trackio: Accelerate {accelerate.__version__} does not know it yet"):
        run_here("recipe=onepoch", "tracker=trackio")
