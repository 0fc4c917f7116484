"""Scaling: real jobs of one and two processes; the arithmetic on made-up ones; mistakes before anything is measured."""

import json
import math
import os
import signal
import struct
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import LAUNCHER_VARIABLES, ROOT

import recipes
from benchmarks import all_reduce, children, scaling
from benchmarks.scaling import Point
from mnist_accel import cli
from mnist_accel.commands import scaling as verb
from mnist_accel.console import report
from mnist_accel.data.dataset import Dataset
from mnist_accel.errors import TrainingFailed, UserError

SHORT = ("recipe=onepoch", "dataset=synthetic", "validation=59000")  # 1,000 images, 16 steps


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in LAUNCHER_VARIABLES:
        monkeypatch.delenv(name, raising=False)


# Mistakes


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("processes=1,two", "processes=1,two: must be whole numbers with commas between them"),
        ("processes=1,,2", "processes=1,,2: must be whole numbers"),
        ("processes=1,-2", "processes=1,-2: must be whole numbers"),
        ("processes=0,2", "processes=0,2: must rise from 1, which the others are compared with, to at most 1024. Type"),
        ("processes=1,2,2000", "processes=1,2,2000: must rise from 1"),
        ("processes=1,2,2", "processes=1,2,2: must rise from 1"),
        ("processes=1,4,2", "processes=1,4,2: must rise from 1"),
        ("processes=1,1", "processes=1,1: leaves nothing to compare"),
        ("processes=1", "processes=1: leaves nothing to compare"),
        ("processes=1,2 mode=srtong", "mode=srtong: must be 'both', 'strong' or 'weak'"),
        ("processes=1,2 recipe=onepok", "recipe=onepok: no such recipe. Did you mean recipe=onepoch?"),
        ("processes=1,2 repeats=0", "repeats=0: must be at least 1"),
        ("processes=1,2 procesess=3", "procesess=3: no such key. Did you mean processes=3?"),
        ("processes=1,2 resume=auto", "resume=auto: not here; every point is a job from its beginning"),
        ("processes=1,2 dry_run=true", "dry_run=true: not here; one step says nothing about speed"),
        ("processes=1,4 batch_size=2", "batch_size=2: smaller than the 4 processes"),
        (
            "processes=1,4 batch_size=20000",
            "batch_size=20000: weak scaling makes it 4 times as large, more than the 60",
        ),
        ("processes=1,2 validation=59900", "batch_size=64: weak scaling makes it 2 times as large, more than the 100 "),
        ("processes=1,2 out=/dev/null/no", "out=/dev/null/no: cannot be written"),
        ("processes=1,2 device=cuda", "device=cuda: there is no GPU here"),
        ("processes=1,2 data_dir=/no/such/folder", "data_dir=/no/such/folder"),
    ],
)
def test_mistakes_are_told_before_anything_is_measured(
    words: str, said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if "cuda" in words and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(scaling, "launched", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", torch)  # a test of its own says what its lack costs
    monkeypatch.setitem(sys.modules, "matplotlib", torch)
    with pytest.raises(UserError) as mistake:
        verb.main(words.split())
    assert str(mistake.value).startswith(said)
    assert list(tmp_path.iterdir()) == []


def test_a_measurement_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "scaling.json").write_text("{}")
    with pytest.raises(UserError, match="already holds a measurement"):
        verb.main(["processes=1,2", f"out={tmp_path}"])


def test_without_matplotlib_one_line_says_so_before_anything_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=r"Type pip install -e '\.\[plot\]', or plot=false"):
        verb.main(["processes=1,2", "plot=true"])


def test_without_matplotlib_the_figures_come_all_the_same(
    clean_environment: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setenv("XDG_CACHE_HOME", clean_environment["XDG_CACHE_HOME"])
    monkeypatch.setattr(scaling, "launched", made_up({(1, 64): [100.0], (2, 64): [150.0]}, []))
    monkeypatch.setattr(scaling, "shares_of", lambda *job: [0.1])
    words = "processes=1,2 mode=strong repeats=1 device=cpu recipe=is3 dataset=synthetic"
    assert verb.main([*words.split(), f"out={tmp_path / 'new'}"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("plot ")]
    assert line.startswith("plot      left out; matplotlib cannot be imported") and line.endswith("'.[plot]'")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["scaling.json"]


def test_it_is_not_for_a_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "1")
    with pytest.raises(UserError, match="starts its own processes"):
        verb.main(["processes=1,2", "plot=false"])


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match="processes=4: more than the 2 GPUs of this machine"):
        verb.main(["processes=1,2,4", "plot=false"])


def test_a_mistake_costs_one_line_and_no_torch(clean_environment: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "mnist_accel", "scaling", "processes=2,1"],
        cwd=ROOT,
        env=clean_environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    lines = [line for line in done.stderr.splitlines() if not line.startswith("import time:")]
    assert done.returncode == 2 and len(lines) == 1 and lines[0].startswith("error: processes=2,1: must rise from 1")
    assert lines[0].endswith(". Type processes=1,2")
    assert "| torch\n" not in done.stderr


# The arithmetic


def made_up(speeds: dict[tuple[int, int], list[float]], seen: list[tuple[int, int]]) -> Any:
    turns = {job: iter(values) for job, values in speeds.items()}

    def launched(what: str, words: object, processes: int, batch_size: int) -> dict[str, Any]:
        seen.append((processes, batch_size))
        speed = next(turns[processes, batch_size])
        return {"threads": 1, "images_per_second": speed, "accuracy": 90.0 - processes}

    return launched


def test_points_take_turns_and_are_compared_within_one(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []
    speeds = {(1, 64): [100.0, 50.0, 80.0], (2, 64): [150.0, 90.0, 100.0], (2, 128): [200.0, 80.0, 120.0]}
    monkeypatch.setattr(scaling, "launched", made_up(speeds, seen))
    monkeypatch.setattr(scaling, "shares_of", lambda what, words, n, batch, pairs, steps: [0.1, 0.3, 0.2])
    points = scaling.plan(("strong", "weak"), [1, 2], 64, crowded=[2])
    assert [(point.mode, point.processes, point.batch_size, point.crowded) for point in points] == [
        ("strong", 1, 64, False),
        ("strong", 2, 64, True),
        ("weak", 1, 64, False),
        ("weak", 2, 128, True),
    ]
    scaling.measure(points, [], repeats=3, steps=5, say=lambda line: None)
    assert seen == [(1, 64), (2, 64), (2, 128)] * 3  # one process is the same job in both modes
    first, strong, _, weak = points
    assert strong.speedups == [1.5, 1.8, 1.25] and weak.speedups == [2.0, 1.6, 1.5]
    assert strong.speedup == 1.5 and strong.efficiency == 0.75 and weak.efficiency == 0.8
    assert scaling.ideal(strong, points) == 160.0 and scaling.ideal(first, points) == first.speed == 80.0
    assert first.all_reduce_share == 0.0 and strong.all_reduce_share == 0.2
    assert weak.accuracy == 88.0


def test_more_processes_than_cores_are_said_and_marked(
    clean_environment: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    seen: list[tuple[int, int]] = []
    monkeypatch.setenv("XDG_CACHE_HOME", clean_environment["XDG_CACHE_HOME"])
    monkeypatch.setattr("mnist_accel.machine.runtime.usable_cores", lambda: 3)
    monkeypatch.setattr(scaling, "launched", made_up({(n, 64): [100.0 * n] for n in (1, 2, 4)}, seen))
    monkeypatch.setattr(scaling, "shares_of", lambda *job: [0.1])
    words = "processes=1,2,4 mode=strong repeats=1 threads=2 device=cpu plot=false recipe=is3 dataset=synthetic"
    assert verb.main([*words.split(), f"out={tmp_path / 'new'}"]) == 0
    shown = capsys.readouterr().out
    assert "2, 4 processes of 2 threads each outnumber the 3 cores here (*)" in shown
    assert "weak" not in shown
    points = json.loads((tmp_path / "new" / "scaling.json").read_text())["points"]
    assert [point["crowded"] for point in points] == [False, True, True]


@pytest.mark.parametrize("columns", [140, 80, 60, 40])
def test_the_table_fits_into_a_terminal(columns: int, capsys: pytest.CaptureFixture[str]) -> None:
    console = report.make_console()
    console.width = columns
    most = Point("strong", 16, 64, True, 1, [369_600.0, 403_200.0], [12.3, 12.4], [98.0, 98.1], [-0.02, 0.1])
    verb.show(console, [Point("strong", 1, 64, False, 1, [21_000.0], [1.0], [98.0], [0.0]), most])
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert max(map(len, lines)) <= columns
    if columns >= 80:  # a row a point
        (row,) = [line.split() for line in lines if line.startswith("strong 16*")]
        assert row[-6:] == ["12.35", "77", "%", "4", "%", "98.05"]
        assert ("369,600 – 403,200" in "".join(lines)) == (columns == 140)


@pytest.mark.parametrize(
    ("typed", "batch_sizes", "epochs"),
    [((), [64, 64, 128], 1), (("epochs=3", "batch_size=100"), [100, 100, 200], 3)],
    ids=["as the recipe says", "as typed"],
)
def test_every_job_gets_each_key_once(
    typed: tuple[str, ...],
    batch_sizes: list[int],
    epochs: int,
    clean_environment: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Both kinds of job, as the keys that they would read. A key twice is refused there; `is3` has 50 epochs."""
    monkeypatch.setenv("XDG_CACHE_HOME", clean_environment["XDG_CACHE_HOME"])
    jobs: list[cli.Request] = []

    def printed(what: str, *argv: str) -> str:
        words = list(argv[1:]) if argv[0].endswith("launch.py") else list(argv[3:])
        request = cli.parse(words, recipes.names(), recipes.load)
        jobs.append(request)
        result = {"threads": 1, "images_per_second": 100.0, "accuracy": 98.0}
        if request.options.out:
            Path(request.options.out, "result.json").write_text(json.dumps(result))
        return json.dumps({"shares": [0.1]})

    monkeypatch.setattr(scaling, "run_python", printed)
    words = (
        "processes=1,2",
        "repeats=1",
        "plot=false",
        "device=cpu",
        "dataset=synthetic",
        "recipe=is3",
        "seed=7",
        *typed,
    )
    assert verb.main([*words, f"out={tmp_path / 'new'}"]) == 0
    told = [(job.options.processes, job.recipe.batch_size, job.recipe.epochs, job.recipe.seed) for job in jobs]
    alone, strong, weak = batch_sizes
    launched = [(1, alone, epochs, 7), (2, strong, epochs, 7), (2, weak, epochs, 7)]
    assert told == [*launched, *launched[1:]]  # then what all-reduce costs those of several processes
    assert {job.options.threads for job in jobs} == {1} and {job.options.dataset for job in jobs} == {"synthetic"}


# Real jobs


@pytest.fixture(scope="module")
def measured(
    clean_environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> tuple["subprocess.CompletedProcess[str]", Path]:
    folder = tmp_path_factory.mktemp("scaling")
    words = ("processes=1,2", "mode=strong", "repeats=1", "steps=3", "plot=false", f"out={folder}", *SHORT)
    done = subprocess.run(
        [sys.executable, "-m", "mnist_accel", "scaling", *words],
        cwd=ROOT,
        env=clean_environment,
        capture_output=True,
        text=True,
        timeout=180,
    )
    return done, folder


@pytest.mark.slow
def test_real_jobs_leave_whole_and_finite_figures(measured: tuple["subprocess.CompletedProcess[str]", Path]) -> None:
    done, folder = measured
    assert (done.returncode, done.stderr) == (0, "")
    assert {path.name for path in folder.iterdir()} == {"scaling.json"}
    content = json.loads((folder / "scaling.json").read_text())
    assert (content["schema"], content["recipe"], content["dataset"], content["epochs"]) == (
        1,
        "onepoch",
        "synthetic",
        1,
    )
    assert {"cpu", "cores", "torch", "device", "threads"} == content["machine"].keys()
    one, two = content["points"]
    assert (one["processes"], two["processes"], one["threads"], two["threads"]) == (1, 2, 1, 1)
    for point in (one, two):
        assert point["mode"] == "strong" and point["batch_size"] == 64
        assert point["median_images_per_second"] > 0 and 0 < point["accuracy"] <= 100
        lists = [point[name] for name in ("images_per_second", "speedups", "accuracies", "all_reduce_shares")]
        assert all(len(values) == 1 and math.isfinite(values[0]) for values in lists)
    assert (one["speedup"], one["efficiency"], one["all_reduce_share"]) == (1, 1, 0)
    assert two["efficiency"] == two["speedup"] / 2
    assert two["speedup"] == two["images_per_second"][0] / one["images_per_second"][0]
    assert two["ideal_images_per_second"] == 2 * one["median_images_per_second"]
    assert two["all_reduce_share"] not in (0, None) and two["all_reduce_share"] < 1


@pytest.mark.slow
def test_real_jobs_are_shown_in_a_table(measured: tuple["subprocess.CompletedProcess[str]", Path]) -> None:
    done, folder = measured
    for expected in ("speed-up", "efficiency", "all-reduce", "accuracy %", "(the ideal)", str(folder), "1 epoch"):
        assert expected in done.stdout


@pytest.mark.slow
def test_the_share_is_measured_against_gradients_that_stay_where_they_are(
    tmp_path: Path, clean_environment: dict[str, str]
) -> None:
    script = tmp_path / "ranks.py"
    script.write_text(
        textwrap.dedent(
            """
            import json, sys, torch
            from benchmarks.all_reduce import LossAlone
            from mnist_accel import errors
            from mnist_accel.machine.job import spawn, wait_for_ranks
            from mnist_accel.machine.launcher import has_to_spawn
            from mnist_accel.machine.runtime import prepare, start_runtime
            from mnist_accel.training.exchange import Exchange, Patience

            def step(runtime, kind):
                model = torch.nn.Linear(2, 1)
                prepared, _ = prepare(runtime, model, torch.optim.SGD(model.parameters(), lr=0.1))
                exchange = kind(prepared, Patience())
                exchange.tell(torch.tensor([10.0 ** runtime.rank, 1.0]), 0)
                prepared(torch.full((1, 2), 1.0 + runtime.rank)).sum().backward()
                return [model.weight.grad[0, 0].item(), exchange.heard()[0]]

            def main():
                if has_to_spawn(2):
                    return spawn(2, __file__, [])
                runtime = start_runtime("fp32", "cpu", 1)
                apart = step(runtime, LossAlone)
                # In one piece: the ranks write side by side.
                sys.stdout.write(json.dumps([runtime.rank, apart, step(runtime, Exchange)]) + "\\n")
                wait_for_ranks()
                return 0

            errors.exit_with_one_line(main)
            """
        )
    )
    done = subprocess.run(
        [sys.executable, str(script)],
        env=clean_environment | {"PYTHONPATH": f"{ROOT}{os.pathsep}{clean_environment.get('PYTHONPATH', '')}"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert sorted(json.loads(line) for line in done.stdout.splitlines()) == [
        [0, [1.0, 11.0], [3.0, 11.0]],
        [1, [2.0, 11.0], [3.0, 11.0]],
    ]


def test_all_reduce_is_measured_on_as_many_steps_as_fit_in_memory(tiny: Dataset) -> None:
    recipe = recipes.load("onepoch")
    warm_up, steps = all_reduce.affordable(50, 64)
    assert (warm_up, steps) == (10, 60)
    assert len(all_reduce.repeated(tiny, recipe, steps).train_labels) == 60 * 64  # more than there are
    assert all_reduce.affordable(50, 60_000) == (1, 3)


# Children


def test_a_child_s_own_line_is_handed_on() -> None:
    with pytest.raises(UserError, match=r"^lr=x: no number$"):
        children.run_python(
            "a job", "-c", "import sys; sys.exit(print('error: lr=x: no number', file=sys.stderr) or 2)"
        )
    with pytest.raises(TrainingFailed, match=r"^a job: ended with code 3 \(loss is nan\)$"):
        children.run_python("a job", "-c", "import sys; print('error: loss is nan', file=sys.stderr); sys.exit(3)")
    with pytest.raises(TrainingFailed, match=r"^a job: ended with code -9 \(it said nothing\)$"):
        children.run_python("a job", "-c", "import os; os.kill(os.getpid(), 9)")
    with pytest.raises(KeyboardInterrupt):
        children.run_python("a job", "-c", "import sys; sys.exit(130)")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_benchmark_leaves_no_child_behind(
    number: signal.Signals, code: int, tmp_path: Path, clean_environment: dict[str, str]
) -> None:
    pid_file = tmp_path / "pid"
    write = f"import os, pathlib; pathlib.Path({str(pid_file)!r}).write_text(str(os.getpid()))"
    child = f"{write}; import time; time.sleep(60)"
    parent = (
        "from benchmarks.children import run_python; from mnist_accel import errors; "
        f"errors.exit_with_one_line(lambda: run_python('a job', '-c', {child!r}))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", parent], cwd=ROOT, env=clean_environment, stderr=subprocess.PIPE, text=True
    ) as process:
        while not (pid_file.exists() and pid_file.read_text()):
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(number)
        _, complaint = process.communicate(timeout=30)
    assert (process.returncode, complaint) == (code, "interrupted\n" if number == signal.SIGINT else "")
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid_file.read_text()), 0)


# The picture


def point(mode: str, processes: int, speed: float, crowded: bool) -> Point:
    return Point(mode, processes, 64, crowded, 1, [speed, speed * 1.2], [1.0, 1.1], [98.0, 98.0], [-0.02, 0.1])


@pytest.mark.parametrize("modes", [("strong", "weak"), ("weak",)])
@pytest.mark.parametrize("first_crowded", [1, 4, 99])
def test_the_plot_is_a_png_of_the_size_it_is_meant_to_have(
    modes: tuple[str, ...], first_crowded: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    from benchmarks import scaling_plot

    monkeypatch.delenv("DISPLAY", raising=False)
    points = [point(mode, n, 100.0 * n, n >= first_crowded) for mode in modes for n in (1, 2, 4)]
    path = tmp_path / "scaling.png"
    scaling_plot.draw(path, points, title="onepoch", machine="a machine")
    content = path.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n" and content[-8:-4] == b"IEND"
    width, height = struct.unpack(">II", content[16:24])
    assert (width, height) == tuple(round(inches * scaling_plot.DOTS_AN_INCH) for inches in scaling_plot.SIZE_INCHES)
    assert len(set(content)) > 100  # something is drawn


def test_the_verb_leaves_the_picture_beside_the_figures(
    clean_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setenv("XDG_CACHE_HOME", clean_environment["XDG_CACHE_HOME"])
    monkeypatch.chdir(tmp_path)
    speeds = {(1, 64): [100.0], (2, 64): [150.0], (2, 128): [200.0]}
    monkeypatch.setattr(scaling, "launched", made_up(speeds, []))
    monkeypatch.setattr(scaling, "shares_of", lambda *job: [0.1])
    assert verb.main(["processes=1,2", "repeats=1", "device=cpu", "recipe=is3", "dataset=synthetic"]) == 0
    (folder,) = (tmp_path / "profiles").iterdir()
    assert folder.name.startswith("scaling-is3-")
    assert {path.name for path in folder.iterdir()} == {"scaling.json", "scaling.png"}


def test_its_keys_and_launch_py_s_do_not_collide() -> None:
    from mnist_accel.recipe import keys_of

    both = keys_of(verb.ScalingOptions).keys() & cli.all_keys().keys()
    assert both == {"processes", "threads", "out"}  # which it sets for every job
