"""``profile=true`` in real runs: what it leaves, that it changes nothing, and that nothing stops training."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Launch, Run, a_run
from rich.console import Console
from torch import nn

from mnist_accel import cli
from mnist_accel.commands import trace
from mnist_accel.console.profile_report import show_profile
from mnist_accel.errors import UserError
from mnist_accel.machine.runtime import Runtime
from mnist_accel.profiling import collect, roofline
from mnist_accel.profiling.collect import PLANNED, Profile, plan
from mnist_accel.profiling.layers import analyse
from mnist_accel.profiling.roofline import Roofline
from mnist_accel.profiling.summary import ProfileSummary
from mnist_accel.profiling.trace_file import read_trace
from mnist_accel.training.state import StepInfo
from recipes import load, names

# 3,000 images: 60 steps of everything that may touch the result.
WORDS = ("recipe=efficient25k", "batch_size=50", "validation=57000", "epochs=1", "ema=0.9", "clip_norm=1", "threads=1")
TRACED, TIMED = (plan(59).count(what) for what in ("trace", "before"))  # after the first step


def a_profiled_run(run_launch: Launch, home: Path, *words: str) -> Run:
    home.mkdir()
    return a_run(run_launch, home / "with", *WORDS, "profile=true", *words, cwd=home)


@pytest.fixture(scope="session")
def profiled(run_launch: Launch, made_once: Callable[..., Run]) -> Run:
    return made_once("profiled", lambda home: a_profiled_run(run_launch, home))


@pytest.fixture(scope="session")
def folder(profiled: Run) -> Path:
    """Where it was started."""
    return profiled.folder.parent


@pytest.fixture(scope="session")
def two_ranks(run_launch: Launch, made_once: Callable[..., Run]) -> tuple[Run, Path]:
    words = ("processes=2", "precision=bf16")
    run = made_once("profiled-by-two", lambda home: a_profiled_run(run_launch, home, *words))
    return run, run.folder.parent


def left_in(home: Path) -> tuple[list[str], dict[str, Any]]:
    (profile,) = (home / "profiles").iterdir()
    return sorted(path.name for path in profile.iterdir()), json.loads((profile / "summary.json").read_text())


def test_it_leaves_a_trace_under_the_plugin_s_name_a_summary_and_a_page(profiled: Run, folder: Path) -> None:
    assert (profiled.code, profiled.err) == (0, "")
    names, summary = left_in(folder)
    page, trace, *others = names
    assert (page, others) == ("profile.html", ["summary.json"])
    assert re.fullmatch(r"rank0\.\d+\.pt\.trace\.json\.gz", trace)
    (profile,) = (folder / "profiles").iterdir()
    assert re.fullmatch(r"efficient25k-\d{8}-\d{6}", profile.name)
    assert summary["schema"] == 1 and summary["recipe"] == "efficient25k" and summary["batch_size"] == 50
    assert summary["trace"] == trace and summary["eager"] and summary["usually_eager"]
    assert summary["steps"] == TRACED == len(summary["cost"]["profiled"]) and 0 <= summary["set_aside"] < TRACED
    assert len(summary["cost"]["plain_before"]) == len(summary["cost"]["plain_after"]) == TIMED
    assert summary["step_ms"] == pytest.approx(summary["cost"]["plain_ms"]) and summary["scale"] > 0
    assert summary["step_spread_ms"] > 0 and all(row["backward_spread_ms"] > 0 for row in summary["convolutions"])
    assert sum(part["percent"] for part in summary["verdict"]["parts"]) == 100
    assert {"cpu", "cores", "torch", "threads", "device"} <= set(summary["machine"])
    assert [row["module"] for row in summary["convolutions"]] == ["conv1", "conv2", "conv3"]
    assert all(row["roofline_percent"] > 0 and row["forward_ms"] > 0 for row in summary["convolutions"])


def test_the_trace_has_all_phases_but_no_evaluation(profiled: Run, folder: Path) -> None:
    _, summary = left_in(folder)
    assert [phase["name"] for phase in summary["phases"]] == [
        "data",
        "augmentation",
        "forward",
        "loss",
        "backward",
        "optimizer",
        "outside of these",
    ]
    assert sum(phase["share"] for phase in summary["phases"]) == pytest.approx(100)
    (trace,) = (folder / "profiles").rglob("*.gz")
    events = read_trace(trace).events
    assert sum(event.name.startswith("ProfilerStep#") for event in events) == TRACED
    convolutions = [event for event in events if event.name == "aten::convolution"]
    assert {event.details["Input Dims"][0][0] for event in convolutions} == {50}, "evaluation has batches of 500"


def test_the_console_shows_all_four_parts(profiled: Run) -> None:
    lines = profiled.out.splitlines()
    assert sum("this run: " in line and "% of the step" in line for line in lines) == 1
    rows = [re.split(r" {2,}", line.strip()) for line in lines]
    for phase in ("data", "augmentation", "forward", "loss", "backward", "optimizer", "the step"):
        assert any(row[0] == phase for row in rows), phase
    (header,) = (row for row in rows if "GFLOP forward" in row)
    conv2 = next(row for row in rows if row[0] == "conv2")
    assert len(conv2) == 1 + len(header)  # the name has no header
    assert conv2[1:5] == ["50×8×14² → 16×14², 3² pad 1", "0.0226", "0.0226", "0.0226"]
    assert next(row for row in rows if row[0] == "conv1")[4] == "0"
    assert any(line.startswith("Roof: fp32 matrix product ") for line in lines)
    assert any(line.startswith("Profiling: a step took ") for line in lines)
    assert any(line.startswith("python -m mnist_accel trace profiles/efficient25k-") for line in lines)
    assert any(re.match(r"profiles/efficient25k-\S+/profile.html   shows this", line) for line in lines)


def test_results_with_and_without_it_are_identical(profiled: Run, run_launch: Launch, folder: Path) -> None:
    plain = a_run(run_launch, folder / "without", *WORDS)
    assert plain.code == 0 and "Profiling" not in plain.out
    assert (plain.folder / "model.safetensors").read_bytes() == (profiled.folder / "model.safetensors").read_bytes()
    times = ("train_seconds", "eval_seconds")
    with_it, without = (
        [{key: value for key, value in epoch.items() if key not in times} for epoch in run.result["history"]]
        for run in (profiled, plain)
    )
    assert with_it == without


@pytest.mark.slow
def test_results_of_two_processes_are_identical_too(
    two_ranks: tuple[Run, Path], run_launch: Launch, tmp_path: Path
) -> None:
    words = [word for word in two_ranks[0].words if not word.startswith(("out=", "profile=", "dataset="))]
    plain = a_run(run_launch, tmp_path / "without", *words)
    assert plain.code == 0, plain.err
    files = [run.folder / "model.safetensors" for run in (plain, two_ranks[0])]
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.slow
def test_every_rank_leaves_a_trace_in_the_same_folder(two_ranks: tuple[Run, Path]) -> None:
    run, home = two_ranks
    assert (run.code, run.err) == (0, "")
    names, summary = left_in(home)
    stamps = {name.split(".")[1] for name in names[1:3]}
    assert [name.split(".")[0] for name in names] == ["profile", "rank0", "rank1", "summary"] and len(stamps) == 1
    assert summary["world_size"] == 2 and [rank["rank"] for rank in summary["ranks"]] == [0, 1]
    assert summary["roofline"]["precision"] == summary["precision"] == "bf16"
    assert "all-reduce" in [phase["name"] for phase in summary["phases"]]
    assert "Of 2 processes rank 0 is shown." in run.out and run.out.count("Profiling: ") == 1
    for rank in (0, 1):
        (trace,) = (home / "profiles").rglob(f"rank{rank}.*.gz")
        read = read_trace(trace)
        assert (read.rank, read.world_size) == (rank, 2)
        assert all(row.shape and row.shape.text.startswith("25×") for row in analyse(read).convolutions)


@pytest.mark.slow
def test_a_folder_that_cannot_be_written_costs_a_line_and_code_4(run_launch: Launch, tmp_path: Path) -> None:
    (tmp_path / "profiles").write_text("a file")
    run = a_run(run_launch, tmp_path / "run", *WORDS, "profile=true", cwd=tmp_path)
    assert run.code == 4 and run.result["status"] == "finished"
    (warning,) = (line for line in run.out.splitlines() if line.startswith("warning: "))
    assert re.fullmatch(r"warning: profiles/\S+ could not be made: Not a directory; the run goes on", warning)
    assert "conv2" in run.out, "the tables need no file"


@pytest.mark.slow
def test_a_full_disk_costs_a_line_and_code_4(run_launch: Launch, tmp_path: Path) -> None:
    run = a_run(run_launch, tmp_path / "run", *WORDS, "profile=true", cwd=tmp_path, file_bytes=60_000)
    assert run.code == 4 and "Traceback" not in run.err
    warnings = [line for line in run.out.splitlines() if line.startswith("warning: ") and "profiles/" in line]
    assert warnings and all(line.endswith("; the run goes on") for line in warnings)
    assert not list((tmp_path / "profiles").rglob("*.gz")), "nothing that is cut off"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["dry_run=true"], "a dry run has one step"),
        (["batch_size=10000"], "6 steps an epoch with batch_size=10000, 7 are needed. Type at most batch_size=9999"),
        (["batch_size=100", "validation=59900"], "Type at most batch_size=16"),
    ],
)
def test_what_has_too_few_steps_is_refused_in_one_line(words: list[str], says: str) -> None:
    with pytest.raises(UserError, match=r"^profile=true: ") as error:
        cli.parse(["recipe=is3", "profile=true", *words], names(), load)
    assert says in str(error.value)
    fitting = re.search(r"batch_size=(\d+)$", says)
    if fitting:
        cli.parse(["recipe=is3", "profile=true", *words[1:], f"batch_size={fitting[1]}"], names(), load)


# The profiler itself, stepped by hand


class Told:
    def __init__(self) -> None:
        self.problems: list[str] = []
        self.summaries: list[ProfileSummary] = []
        self.seconds = 0.0


@pytest.fixture
def by_hand(
    runtime: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[Profile, nn.Module, Told, Callable[..., None]]]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(collect, "roofline_that_fits", lambda device, precision: (None, ""))

    def make() -> tuple[Profile, nn.Module, Told, Callable[..., None]]:
        told, model = Told(), nn.Sequential(nn.Conv2d(1, 2, 3))
        profile = Profile(
            runtime,
            model,
            recipe="x",
            batch_size=2,
            usually_eager=True,
            on_problem=told.problems.append,
            on_summary=told.summaries.append,
        )

        def steps(count: int, per_epoch: int, save: Callable[[], None] = lambda: None) -> None:
            for step in range(count):
                with profile.phase("forward"):
                    model(torch.randn(2, 1, 8, 8)).sum().backward()
                told.seconds += profile.after_step(StepInfo(1, step + 1, per_epoch, 0.0, 2))
                with profile.phase("checkpoint"):
                    save()

        return profile, model, told, steps

    return make


def hooks_of(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def test_it_is_active_from_the_first_planned_step_to_the_last_and_gone_afterwards(by_hand: Any) -> None:
    profile, model, told, steps = by_hand()
    planned = sum(PLANNED.values())
    with profile:
        assert not profile.active
        steps(1, 100)
        assert profile.active and hooks_of(model) == 0, "the first steps are timed plainly"
        steps(PLANNED["settle"] + PLANNED["before"], 100)
        assert profile.active and hooks_of(model) == 2 and profile.tracing
        steps(PLANNED["warm up"] + PLANNED["trace"], 100)
        assert profile.active and hooks_of(model) == 0 and not profile.tracing
        steps(planned, 100)
        assert not profile.active
    (summary,) = told.summaries
    assert summary.steps == PLANNED["trace"] and told.problems == []
    assert len(list(Path("profiles").rglob("*.gz"))) == 1


def test_epochs_that_are_too_short_are_told_of(by_hand: Any) -> None:
    profile, model, told, steps = by_hand()
    with profile:
        for _ in range(3):
            steps(5, 5)
    assert told.problems == ["nothing was profiled: no epoch had 7 steps left"]
    assert told.summaries == [] and not Path("profiles").exists() and hooks_of(model) == 0


def test_the_shortest_epoch_that_does(by_hand: Any) -> None:
    profile, _, told, steps = by_hand()
    with profile:
        steps(7, 7)
    assert told.problems == [] and [summary.steps for summary in told.summaries] == [1]


@pytest.mark.parametrize("after", [9, 28, 35])  # plainly timed, warming up, traced
def test_a_run_that_ends_early_leaves_no_hook_no_file_and_its_own_error(by_hand: Any, after: int) -> None:
    profile, model, told, steps = by_hand()
    with pytest.raises(ZeroDivisionError), profile:  # noqa: PT012
        steps(after, 100)
        raise ZeroDivisionError
    assert hooks_of(model) == 0 and not torch.autograd._profiler_enabled()
    assert told.summaries == [] and told.problems == [] and not Path("profiles").exists()


def test_an_interrupted_run_shows_what_it_has(by_hand: Any) -> None:
    profile, _, told, steps = by_hand()
    with pytest.raises(KeyboardInterrupt), profile:  # noqa: PT012
        steps(80, 100)
        raise KeyboardInterrupt
    assert len(told.summaries) == 1


class Clock:
    """Every look at it takes a millisecond."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self, device: torch.device) -> float:
        self.now += 0.001
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(collect, "synchronised_clock", clock)
    return clock


def test_no_training_time_has_what_profiling_takes_and_no_step_what_a_checkpoint_takes(
    by_hand: Any, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile, _, told, steps = by_hand()

    def measure(device: torch.device, precision: str) -> tuple[None, str]:
        clock.now += 1000
        return None, ""

    def save() -> None:
        clock.now += 50

    monkeypatch.setattr(collect, "roofline_that_fits", measure)
    with profile:
        steps(80, 80, save)
    # The loop adds up all that passes between two steps, so this is taken off: two looks in each planned step and in
    # the one before them, and the measuring.
    looks = sum(PLANNED.values()) + 1
    assert told.seconds == pytest.approx(1000 + looks * 0.001)
    (summary,) = told.summaries
    assert summary.cost is not None and summary.cost.seconds == pytest.approx(told.seconds)
    # A look around the checkpoint and one at the step's end: no step has the 50 seconds.
    assert {round(1000 * second) for times in profile.times.values() for second in times} == {2}
    assert summary.cost.plain_ms == pytest.approx(2)


@pytest.mark.parametrize("smaller_fits", [True, False])
def test_no_memory_for_the_roof_costs_a_line(by_hand: Any, smaller_fits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(device: torch.device, precision: str, smaller: int = 1) -> Roofline:
        if smaller == 1 or not smaller_fits:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 256.00 MiB")
        return Roofline(precision, 1.0, 1.0)

    monkeypatch.setattr(collect, "roofline_that_fits", roofline.roofline_that_fits)
    monkeypatch.setattr(roofline, "measure_roofline", measure)
    profile, _, told, steps = by_hand()
    with profile:
        steps(80, 80)
    less = "the roof was measured on less than usual: memory is short"
    assert told.problems == [
        "profile=true: " + (less if smaller_fits else "there was no memory to measure the roof in")
    ]
    assert (told.summaries[0].roofline is not None) == smaller_fits


@pytest.mark.usefixtures("clock")
def test_a_gpu_s_trace_without_kernels_gets_no_verdict(
    by_hand: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where CUPTI may not be used: what the trace then tells is the CPU's time."""
    profile, _, told, steps = by_hand()
    monkeypatch.setattr(Runtime, "device", torch.device("cuda"))
    with profile:
        steps(80, 80)
    (summary,) = told.summaries
    assert summary.without_kernels and not summary.on_gpu
    show_profile(Console(width=200), summary)
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines() if line.strip()]
    says = "The trace has no kernels of the GPU (CUPTI gave none), so it does not tell what bounds this run."
    assert lines[0] == says and not any(line.startswith(("phase", "conv", "forward")) for line in lines)
    assert trace.main([summary.folder]) == 0
    shown = capsys.readouterr().out
    assert says in shown.replace("\n", " ") and "conv1" not in shown


def test_a_convolution_that_fails_leaves_no_open_annotation(runtime: Runtime) -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3))
    with collect.naming_layers(model):
        for _ in range(2):
            with pytest.raises(RuntimeError):
                model(torch.randn(2, 5, 8, 8))
        model(torch.randn(2, 1, 8, 8))
    assert hooks_of(model) == 0
