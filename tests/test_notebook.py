"""``mnist_accel.train``: the command line's keys and refusals in a process that is afterwards what it was."""

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from conftest import LAUNCHER_VARIABLES, forget_accelerate
from jobs import ROOT
from test_folder import STATS

import recipes
from mnist_accel import notebook, train
from mnist_accel.cli import Request
from mnist_accel.data.dataset import Dataset
from mnist_accel.errors import UserError
from mnist_accel.machine.runtime import Runtime
from mnist_accel.runs import run
from mnist_accel.runs.result import ClaimResult, Progress, RunResult, describe
from mnist_accel.training.state import Position

TINY = {"batch_size": 100, "threads": 1, "device": "cpu", "precision": "fp32"}


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny: Dataset) -> None:
    """A notebook's process, in a folder of its own, with little data."""
    for name in LAUNCHER_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(run, "load_dataset", lambda *asked: tiny)
    monkeypatch.chdir(tmp_path)


def folders() -> list[Path]:
    return sorted(Path("runs").glob("*/*"))


def test_two_calls_are_two_runs_with_the_keys_of_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    first = train("onepoch", epochs=2, lr=0.02, checkpoint_every=None, **TINY)
    second = train("onepoch", **TINY | {"epochs": "1", "precision": "bf16", "dry_run": True})
    assert [(result.epochs, result.precision, result.dry_run) for result in (first, second)] == [
        (2, "fp32", False),
        (1, "bf16", True),
    ]
    assert {"epochs=2", "lr=0.02", "batch_size=100"} <= set(first.command)
    written = [json.loads((folder / "result.json").read_text()) for folder in folders()]
    assert sorted(result["accuracy"] for result in written) == sorted([first.accuracy, second.accuracy])
    assert len({str(folder) for folder in folders()}) == 2
    assert f"run       {folders()[0]}" in capsys.readouterr().out


def test_a_recipe_from_anywhere_borrows_nobody_s_figures() -> None:
    mine = replace(recipes.load("onepoch"), name="mine", lr=0.01)
    changed = replace(recipes.load("onepoch"), lr=0.01)
    as_it_is = recipes.load("onepoch")
    results = [train(recipe, dry_run=True, **TINY) for recipe in (mine, changed, as_it_is)]
    assert [bool(result.claims) for result in results] == [False, False, True]
    again = [[word for word in result.words_to_repeat if word.startswith(("recipe=", "lr="))] for result in results]
    assert again == [[], ["recipe=onepoch", "lr=0.01"], ["recipe=onepoch"]]


@pytest.mark.parametrize(
    ("recipe", "keys", "line"),
    [
        ("onepoc", {}, "recipe=onepoc: no such recipe. Did you mean recipe=onepoch?"),
        ("onepoch", {"epoch": 2}, "epoch=2: no such key. Did you mean epochs=2?"),
        ("onepoch", {"epochs": 0.5}, "epochs=0.5: must be a whole number. For example epochs=1"),
        ("onepoch", {"nesterov": 1}, "nesterov=1: must be true or false. For example nesterov=false"),
        ("onepoch", {"processes": 2}, "processes=2: not here; the process that asks is the one that trains, and "),
        ("onepoch", {"recipe": "is3"}, "recipe=is3: not here; it comes first, without a name"),
        ("onepoch", {"restarts": 2}, "restarts=2: not here; it starts lost processes anew, and here is only the one "),
        ("onepoch", {"warmup": 0.1, "schedule": "step"}, "warmup=0.1: has no effect with schedule=step."),
        (replace(recipes.load("is3"), model="i3"), {}, 'recipe=is3: model="i3": no such file in mnist_accel/models/.'),
    ],
)
def test_a_mistake_is_one_line(recipe: Any, keys: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError) as refused:
        train(recipe, **keys)
    assert str(refused.value).startswith(line) and "\n" not in str(refused.value)
    assert refused.value._render_traceback_() == [f"error: {refused.value}"]
    assert folders() == []


def test_without_a_checkout_a_recipe_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notebook, "ROOT", tmp_path)
    with pytest.raises(UserError, match=r"recipe=onepoch: the folder recipes/ is not here, only the package\. Give a"):
        train("onepoch")
    assert train(recipes.load("onepoch"), dry_run=True, **TINY).recipe == "onepoch"


def test_several_processes_of_a_launcher_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match=r"train\(\): for one process, and a launcher started 2"):
        train("onepoch")


# The process is afterwards what it was


def state() -> dict[str, Any]:
    cudnn = torch.backends.cudnn
    return {
        "signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
        "environment": {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"},
        "threads": torch.get_num_threads(),
        "dtype": torch.get_default_dtype(),
        "tf32": (cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32, cudnn.benchmark),
        "random": torch.get_rng_state().tolist(),
        "grad": torch.is_grad_enabled(),
        "accelerate": [dict(kind._shared_state) for kind in (PartialState, AcceleratorState, GradientState)],
        "path": list(sys.path),
    }


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Has the process set in ways that no run would choose; what is checked at the end is that it still is."""
    forget_accelerate()
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    own = Accelerator(cpu=True, mixed_precision="bf16")
    torch.set_num_threads(2)
    torch.backends.cudnn.benchmark = True
    torch.set_default_dtype(torch.float64)
    signal.signal(signal.SIGTERM, lambda *_: None)
    torch.manual_seed(5)
    before = state()

    def settled() -> None:
        after = state()
        assert {name for name in before if after[name] != before[name]} == set()
        assert own.mixed_precision == "bf16"

    try:
        yield settled
    finally:
        torch.set_default_dtype(torch.float32)
        torch.backends.cudnn.benchmark = False
        torch.set_num_threads(1)
        forget_accelerate()


def test_a_run_leaves_the_process_as_it_was(settled: Callable[[], None]) -> None:
    with torch.no_grad():
        result = train("onepoch", **TINY)
    settled()
    assert (result.precision, result.threads) == ("fp32", 1)


def test_a_refused_and_a_failed_run_do_too(settled: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError):
        train("onepoch", out=__file__, **TINY)
    monkeypatch.setattr(run, "train", lambda *parts: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train("onepoch", **TINY)
    settled()
    monkeypatch.undo()


def interrupts(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """A signal from outside, once the run is in its second epoch."""
    from mnist_accel.console.report import RunReport

    def on_step(self: RunReport, info: Any) -> None:
        if (info.epoch, info.step) == (2, 2):
            os.kill(os.getpid(), number)

    monkeypatch.setattr(RunReport, "on_step", on_step)


def test_an_interrupt_is_one_and_the_run_goes_on_in_the_same_process(
    settled: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        interrupts(patch, signal.SIGINT)
        with pytest.raises(KeyboardInterrupt) as stopped:
            train("onepoch", epochs=3, **TINY)
    settled()
    assert str(stopped.value) == 'stopped by SIGINT; resume="auto" goes on from there'
    (folder,) = folders()
    assert json.loads((folder / "result.json").read_text())["status"] == "interrupted"
    result = train("onepoch", epochs=3, resume="auto", **TINY)  # while the exception is held, as notebooks do
    assert (result.status, len(result.history), folders()) == ("finished", 3, [folder])
    assert Path(result.resumed_from or "").parent.parent == folder


def test_another_signal_goes_where_it_would_have_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    came: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: came.append(number))
    interrupts(monkeypatch, signal.SIGTERM)
    with pytest.raises(Exception, match="stopped by SIGTERM"):
        train("onepoch", epochs=3, **TINY)
    assert came == [signal.SIGTERM]


def test_another_thread_trains_and_only_one_at_a_time(settled: Callable[[], None]) -> None:
    results: list[RunResult] = []
    thread = threading.Thread(target=lambda: results.append(train("onepoch", epochs=2, **TINY)))
    thread.start()
    while not notebook.busy.locked() and thread.is_alive():
        time.sleep(0.001)
    with pytest.raises(UserError, match="another run is under way in this process"):
        train("onepoch", **TINY)
    thread.join()
    assert [result.status for result in results] == ["finished"]
    settled()


# What it is shown in


def test_in_a_notebook_plain_lines_are_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its stream cannot be reconfigured, and it wants colours; no bar that moves, no page for each line."""
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    train("onepoch", dry_run=True, **TINY)
    assert "recipe    onepoch" in stream.getvalue() and "\x1b" not in stream.getvalue()


def test_a_result_shows_itself_escaped(runtime: Runtime, tiny: Dataset) -> None:
    data = replace(tiny, reason="found in <b>&lt;/script></b>")
    request = Request(recipes.load("onepoch"), notebook.read("onepoch", {}).options, ())
    result = describe(request, runtime, data, Progress(Position(epoch=1, history=[STATS])), time.perf_counter(), None)
    claim = ClaimResult("accuracy <i>", "≥ 98.13", 98.13, True)
    shown = replace(result, claims=[claim], recipe="<one>")._repr_html_()
    assert "98.13 % (9,813 of 10,000)" in shown and "&lt;one&gt;, 9,606 parameters" in shown
    assert "found in &lt;b&gt;&amp;lt;/script&gt;&lt;/b&gt;" in shown and "<i>" not in shown and "pass" in shown
    assert "_repr_html_" not in asdict(result)
    empty = describe(request, runtime, data, Progress(), time.perf_counter(), None)._repr_html_()
    assert "None" not in empty and "accuracy</th>" not in empty


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = "import sys; from mnist_accel import train; print(*{'torch', 'accelerate', 'pydantic'} & set(sys.modules))"
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (ended.stdout, ended.stderr) == ("\n", "")
