"""``make gpu``: one line where there is no GPU; with one made up: each piece on its own, one file, one row of docs."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import mnist_accel.data.dataset
import mnist_accel.runs.run
import recipes
from benchmarks import fresh, gpu, gpu_profile, gpu_row
from benchmarks.children import run_python
from benchmarks.gpu_record import BROKE_OFF, Record, open_record, read_record
from mnist_accel.data.dataset import Dataset
from mnist_accel.errors import TrainingFailed, UserError

PROJECT = Path(__file__).resolve().parents[1]
FACTS = {"device": "NVIDIA H200", "cores": 16, "torch": "2.11.0+cu130", "commit": "abc"}


def test_where_there_is_no_gpu_it_says_so_in_one_line(clean_environment: dict[str, str], tmp_path: Path) -> None:
    env = clean_environment | {"PYTHONPATH": str(PROJECT)}
    ended = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu"], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120
    )
    line = "error: there is no GPU here that torch can use. Type make gpu on a machine with one\n"
    assert (ended.returncode, ended.stdout, ended.stderr) == (2, "", line)
    assert list(tmp_path.iterdir()) == []


# All of it, with a GPU that is made up


class Machine:
    """Stands for the children: notes what is started, and does what it is told to."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.fails: dict[str, BaseException] = {}
        self.on_tests: Callable[[Path], None] = lambda record: None
        self.seconds_each = 0.0
        self.now = 0.0

    def run_python(self, what: str, *words: str, seconds: float | None = None) -> str:
        self.started.append(what)
        assert seconds is not None and seconds > 0
        self.now += self.seconds_each
        if what in self.fails:
            raise self.fails[what]
        if what == "tests":
            self.on_tests(Path(words[-1]))
        json_file = next((word.removeprefix("json=") for word in words if word.startswith("json=")), None)
        if json_file:
            Path(json_file).write_text(json.dumps(benched(*words)))
        ways = {way: {"step_ms": 0.2} for way in ("replayed", "launched")}
        return "banner\n" + json.dumps(ways | {"profile": {"kernels_a_step": 82.0}})


def benched(*words: str) -> dict[str, Any]:
    options = dict(word.split("=") for word in words if "=" in word) | {"pairs": 3, "steps": 0}
    sides = {"ours": [0.1, 0.2, 0.3], "stock script, 8 workers": [2.0, 4.0, 6.0]}
    ratios = [{"of": "stock script / ours", "values": [20.0, 20.0, 20.0], "median": 20.0}]
    return {"options": options, "dataset": "mnist", "comparisons": [{"sides": sides, "ratios": ratios}]}


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tiny: Dataset) -> Machine:
    machine = Machine()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu, "describe", lambda commit: FACTS | {"commit": commit or "abc"})
    monkeypatch.setattr(gpu, "run_python", machine.run_python)
    monkeypatch.setattr(gpu.time, "monotonic", lambda: machine.now)
    monkeypatch.setattr(fresh, "precisions_of", lambda device: ["fp32", "bf16"])
    monkeypatch.setattr(mnist_accel.data.dataset, "load_dataset", lambda *asked: tiny)
    return machine


@pytest.fixture
def make_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, Record]]:
    def make_gpu(*words: str) -> tuple[int, Record]:
        file = tmp_path / "new" / "gpu.json"
        monkeypatch.setattr(sys, "argv", ["gpu", f"out={file}", *words])
        return gpu.main(), read_record(file)

    return make_gpu


MakeGpu = Callable[..., tuple[int, Record]]
PROFILES = [f"profile {name} {precision}" for precision in ("fp32", "bf16") for name in recipes.one_a_network()]
PARTS = {f"bench {subject} {name}" for subject in ("epoch", "engine", "precision") for name in recipes.one_a_network()}
PARTS |= {*PROFILES, "bench start onepoch", "bench loader onepoch"}


def test_all_of_it_stands_in_one_file(machine: Machine, make_gpu: MakeGpu) -> None:
    code, record = make_gpu()
    assert code == 0 and record.facts == FACTS
    assert record.parts.keys() == PARTS and all(record.has(part) for part in PARTS)
    assert machine.started[:2] == ["tests", "profile of onepoch in fp32"]
    assert machine.started[1 + len(PROFILES)] == "bench epoch of onepoch"  # what the README tells comes first


def test_one_piece_that_fails_costs_the_others_nothing_and_is_tried_again(
    machine: Machine, make_gpu: MakeGpu, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.fails["bench engine of is3"] = TrainingFailed("bench engine of is3: ended with code 1 (out of memory)")
    code, record = make_gpu()
    assert code == 1 and record.parts.keys() == PARTS
    assert record.failed_parts == ["bench engine is3"] and "out of memory" in record.parts["bench engine is3"]["error"]
    assert "out of memory" in capsys.readouterr().out
    machine.fails.clear()
    machine.started.clear()
    code, record = make_gpu()
    assert code == 0 and machine.started == ["tests", "bench engine of is3"]
    assert record.parts.keys() == PARTS and record.failed_parts == []


def test_the_parts_may_be_had_one_by_one(machine: Machine, make_gpu: MakeGpu) -> None:
    make_gpu("part=bench")
    assert all(what.startswith("bench") for what in machine.started)
    make_gpu("part=profile")
    code, record = make_gpu("part=tests")
    assert code == 0 and record.parts.keys() == PARTS and machine.started.count("tests") == 1


def test_a_killed_session_leaves_what_it_had(machine: Machine, make_gpu: MakeGpu, tmp_path: Path) -> None:
    machine.fails["profile of is3 in fp32"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        make_gpu("part=profile")
    record = read_record(tmp_path / "new" / "gpu.json")
    assert "profile onepoch fp32" in record.parts and "profile is3 fp32" not in record.parts


def test_what_there_is_no_time_for_is_left_to_the_next_call(
    machine: Machine, make_gpu: MakeGpu, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.seconds_each = 30.0
    code, record = make_gpu("part=profile", "minutes=1.4")  # less than 20 s after the third
    assert code == 1 and len(record.parts) == len(machine.started) == 3
    assert f"{len(PROFILES) - 3} not reached" in capsys.readouterr().out
    code, record = make_gpu("part=profile")
    assert code == 0 and list(record.parts) == [piece.name for piece in gpu.pieces("profile", "auto")]


def test_figures_of_two_machines_or_commits_do_not_mix(machine: Machine, make_gpu: MakeGpu) -> None:
    make_gpu("part=profile")
    with pytest.raises(UserError, match="holds figures of commit abc"):
        make_gpu("part=profile", "commit=def")


@pytest.mark.parametrize("content", ["", "[]", '{"schema": 7}', '{"schema": 1, "facts": {}}'])
def test_what_is_no_record_is_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "gpu.json"
    file.write_text(content)
    with pytest.raises(UserError, match="not what make gpu writes"):
        open_record(file, FACTS)


# The tests' outcomes


SUITE = """
import os, pytest
pytestmark = pytest.mark.gpu

def test_good(): pass
def test_bad(): assert 1 == 2, "one is not two"
@pytest.mark.skip(reason="no two GPUs")
def test_other(): pass
def test_last(): pass
@pytest.fixture
def broken(): raise OSError("no room")
def test_set_up(broken): pass
def test_deadly(): os._exit(1)
def test_behind(): pass
"""


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    file = tmp_path / "suite" / "test_suite.py"
    file.parent.mkdir()
    (file.parent / "pytest.ini").write_text("[pytest]\nmarkers = gpu\naddopts = -q -m 'not slow'\n")
    file.write_text(SUITE)
    return file


def outcomes(record: Record) -> dict[str, str]:
    return {name.rpartition("::")[2]: test["outcome"] for name, test in record.tests.items()}


def test_each_test_s_outcome_is_kept_also_where_one_takes_the_process_with_it(
    suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = Record(tmp_path / "gpu.json", FACTS)
    started: list[str] = []

    def run(what: str, *words: str, seconds: float) -> str:
        started.append(what)
        return run_python(what, *words, str(suite), seconds=seconds)

    monkeypatch.setattr(gpu, "run_python", run)
    assert gpu.run_tests(record, time.monotonic() + 100) == 0
    found = {"test_good": "passed", "test_bad": "failed", "test_other": "skipped", "test_last": "passed"}
    found |= {"test_set_up": "failed", "test_deadly": BROKE_OFF, "test_behind": "passed"}
    assert outcomes(record) == outcomes(read_record(record.path)) == found and len(started) == 2
    why = {name.rpartition("::")[2]: test["why"] for name, test in record.tests.items()}
    assert "one is not two" in why["test_bad"] and "no room" in why["test_set_up"]
    assert (why["test_other"], why["test_good"]) == ("no two GPUs", "")
    assert gpu.conclude(record, 0) == 1

    suite.write_text(SUITE.replace("1 == 2", "1 == 1").replace("os._exit(1)", "pass").replace("raise", "return"))
    assert gpu.run_tests(record, time.monotonic() + 100) == 0
    assert set(outcomes(record).values()) == {"passed", "skipped"} and gpu.conclude(record, 0) == 0


def test_a_suite_that_cannot_be_read_is_told(suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suite.write_text("import nothing_of_that_name")
    record = Record(tmp_path / "gpu.json", FACTS)
    monkeypatch.setattr(gpu, "run_python", lambda what, *words, seconds: run_python(what, *words, str(suite)))
    assert gpu.run_tests(record, time.monotonic() + 100) == 1
    assert any("nothing_of_that_name" in test["why"] for test in record.tests.values())
    assert gpu.conclude(record, 1) == 1


def test_a_test_that_the_time_ends_in_has_no_outcome(suite: Path, tmp_path: Path) -> None:
    mark = tmp_path / "under way"
    suite.write_text(
        "import pathlib, pytest, time\n"
        "pytestmark = pytest.mark.gpu\n"
        "def test_good(): pass\n"
        f"def test_long(): pathlib.Path({str(mark)!r}).touch(); time.sleep(600)\n"
    )
    record = Record(tmp_path / "gpu.json", FACTS)
    record.save()
    child = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.gpu_tests", str(record.path), str(suite)],
        cwd=PROJECT,
        stdout=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    end = time.monotonic() + 60
    while not mark.exists() and time.monotonic() < end:
        time.sleep(0.05)
    assert outcomes(read_record(record.path)) == {"test_good": "passed", "test_long": BROKE_OFF}
    child.send_signal(signal.SIGINT)
    assert child.wait(timeout=60) == pytest.ExitCode.INTERRUPTED
    assert outcomes(read_record(record.path)) == {"test_good": "passed"}


def test_a_test_that_hangs_is_ended(suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suite.write_text("import pytest, time\n@pytest.mark.gpu\ndef test_hangs(): time.sleep(600)\n")
    record = Record(tmp_path / "gpu.json", FACTS)
    record.save()
    code = (
        "import sys, benchmarks.gpu_tests as tests\n"
        "tests.LONGEST_TEST = 1\n"
        f"sys.argv[1:] = {[str(record.path), str(suite)]!r}\n"
        "tests.main()\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1 and "test_hangs" in ended.stderr
    assert outcomes(read_record(record.path)) == {"test_hangs": BROKE_OFF}


def test_a_child_has_so_many_seconds_and_what_it_started_is_stopped_with_it(tmp_path: Path) -> None:
    code = (
        "import pathlib, subprocess, sys, time\n"
        "try: subprocess.run([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"except KeyboardInterrupt: pathlib.Path({str(tmp_path / 'stopped')!r}).touch()\n"
    )
    with pytest.raises(TrainingFailed, match=r"^a long one: not done after 2 s, and stopped$"):
        run_python("a long one", "-c", code, seconds=2)
    assert (tmp_path / "stopped").exists()


# One recipe's figures


def test_a_profile_and_both_ways_of_a_step(
    tiny: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_runtime: Callable[..., Any]
) -> None:
    make_runtime()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(mnist_accel.runs.run, "load_dataset", lambda *asked: tiny)
    found = gpu_profile.profile(["recipe=onepoch", "precision=fp32", "batch_size=10", "device=cpu", "threads=1"])
    assert found["problems"] == []
    for way, epochs in (("profiled", 1), ("replayed", 2), ("launched", 2)):
        assert found[way]["epochs"] == epochs
        assert found[way]["step_ms"] == pytest.approx(1000 * found[way]["epoch_seconds"] / 60)
    profile = found["profile"]
    assert "% of the step" in profile["verdict"] and profile["kernels_a_step"] == 0 and profile["step_ms"] > 0
    assert profile["roofline"]["precision"] == "fp32" and {"forward", "backward"} <= profile["phases_ms"].keys()
    assert (tmp_path / profile["folder"] / "summary.json").exists()
    json.dumps(found, allow_nan=False)


# The row of docs/speed.md


def filled(record: Record, page: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    record.save()
    monkeypatch.setattr(sys, "argv", ["gpu_row", str(record.path), str(page)])
    assert gpu_row.main() == 0
    return page.read_text()


def test_one_command_fills_the_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page, before = tmp_path / "speed.md", (PROJECT / "docs" / "speed.md").read_text()
    page.write_text(before)
    figures = benched("subject=epoch", "recipe=onepoch")
    record = Record(tmp_path / "gpu.json", FACTS, parts={gpu_row.PART: {"figures": figures}})
    after = filled(record, page, monkeypatch)
    row = (
        "| on a GPU (NVIDIA H200, 16 cores, torch 2.11.0+cu130): `subject=epoch recipe=onepoch steps=0 pairs=3`, "
        "against the stock script, 8 workers | 0.2 s | 4 s | 20 | 5 |"
    )
    changed = [lines for lines in zip(before.splitlines(), after.splitlines(), strict=True) if lines[0] != lines[1]]
    assert [now for _, now in changed] == [row] and changed[0][0].startswith("| on a GPU")
    assert filled(record, page, monkeypatch) == after

    figures["dataset"] = "synthetic"
    figures["comparisons"][0]["sides"]["ours"] = [0.05]
    again = filled(record, page, monkeypatch)
    assert "drawn digits" in again and "| 0.05 s |" in again and again.count("| on a GPU") == 1


def test_a_row_needs_its_figures_and_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = Record(tmp_path / "gpu.json", FACTS, parts={gpu_row.PART: {"error": "out of memory"}})
    with pytest.raises(UserError, match="bench epoch onepoch is not measured"):
        gpu_row.row_of(failed)
    for text in ("no row", "| on a GPU | a | 5 |\n| on a GPU | b | 5 |\n"):
        with pytest.raises(UserError, match="not one row"):
            gpu_row.filled(text, "| on a GPU | 1 |")
