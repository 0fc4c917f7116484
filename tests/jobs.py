"""Runs of ``launch.py`` in real processes: started, watched, killed, compared with one that nobody disturbed."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from mnist_accel.runs.checkpoint import newest_first

ROOT = Path(__file__).resolve().parent.parent

# 120 steps in two epochs.
WORDS = ("recipe=onepoch", "batch_size=1000", "epochs=2", "ema=0.9", "threads=1")
# 60 steps, and not divisible by two processes.
TWO = ("recipe=onepoch", "batch_size=1001", "ema=0.9", "rotation=5", "threads=1", "processes=2")

Launch = Callable[..., "subprocess.CompletedProcess[str]"]


@dataclass(frozen=True)
class Run:
    """A run that has ended, and its folder."""

    code: int
    out: str
    err: str
    folder: Path
    words: list[str]

    @property
    def result(self) -> dict[str, Any]:
        return json.loads((self.folder / "result.json").read_text())


def a_run(run_launch: Launch, folder: Path, *words: str, **how: Any) -> Run:
    typed = [*words, "dataset=synthetic", f"out={folder}"]
    ended = run_launch(*typed, **how)
    return Run(ended.returncode, ended.stdout, ended.stderr, folder, typed)


@dataclass
class Job:
    """A run under way, with all processes that it has started, under whatever parent they are."""

    process: "subprocess.Popen[str]"
    folder: Path
    mark: str

    def processes(self, rank: int | None = None) -> list[int]:
        found = []
        for entry in Path("/proc").iterdir():
            try:
                variables = (entry / "environ").read_bytes().split(b"\0") if entry.name.isdigit() else []
            except OSError:
                continue
            if f"JOB={self.mark}".encode() in variables and (rank is None or f"RANK={rank}".encode() in variables):
                found.append(int(entry.name))
        return found

    @property
    def checkpoints(self) -> list[Path]:
        return newest_first(self.folder / "checkpoints")

    @property
    def step(self) -> int:
        """That of the newest checkpoint."""
        return int(self.checkpoints[0].stem[5:]) if self.checkpoints else 0

    def wait_for_checkpoint(self, step: int = 1) -> None:
        name = f"step-{step:09}.safetensors"
        self.wait_until(lambda: any(path.name >= name for path in self.checkpoints))

    def rank(self, rank: int) -> int:
        (pid,) = self.processes(rank)
        return pid

    def kill_next(self, rank: int, but: "set[int]") -> int:
        """``kill -9`` of a process with this rank, as soon as there is one other than those that are dead already."""
        self.wait_until(lambda: bool(set(self.processes(rank)) - but))
        (pid,) = set(self.processes(rank)) - but
        os.kill(pid, signal.SIGKILL)
        return pid

    def loads_torch(self, rank: int | None = None) -> bool:
        """Whether a process with this rank, or one that the launcher has started, has torch in its memory."""
        try:
            started = set(self.processes(rank)) - {self.process.pid}
            return any("libtorch" in Path(f"/proc/{pid}/maps").read_text() for pid in started)
        except OSError:
            return False

    def wait_for_banner(self) -> None:
        assert self.process.stdout is not None
        while not self.process.stdout.readline().startswith("run "):
            assert self.process.poll() is None, self.process.communicate()

    def wait_until(self, condition: Callable[[], bool], seconds: float = 120, pause: float = 0.01) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < end, "waited in vain"
            time.sleep(pause)

    def wait_until_held(self, rank: int = 0) -> None:
        self.wait_until(lambda: (self.folder.parent / f"held-{rank}").exists())

    def let_go(self) -> None:
        (self.folder.parent / "go").touch()

    def end(self, seconds: float = 120) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=seconds)
        return self.process.returncode, out, err

    def is_gone_within(self, seconds: float) -> bool:
        end = time.monotonic() + seconds
        while self.processes() and time.monotonic() < end:
            time.sleep(0.05)
        return not self.processes()


Begin = Callable[..., Job]


def file_limit(size: int | None) -> Callable[[], None] | None:
    """For a process in which no file may become larger: that is what a full disk is to it."""
    return None if size is None else lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


@contextmanager
def beginning(environment: Mapping[str, str], default: Path) -> Iterator[Begin]:
    """``begin("recipe=onepoch", …)`` is a run under way; what it leaves running is killed at the end.

    ``held`` says where it stops (held_launch.py), after coming by there ``passes`` times.
    """
    jobs: list[Job] = []

    def begin(
        *words: str,
        launcher: Sequence[str] = (sys.executable,),
        folder: Path = default,
        file_bytes: int | None = None,
        script: Path = ROOT / "launch.py",
        env: Mapping[str, str] | None = None,
        dataset: str = "synthetic",
        held: str = "",
        passes: int = 0,
    ) -> Job:
        mark = uuid4().hex
        if held:
            script, beside = ROOT / "tests" / "held_launch.py", folder.parent
            there = {"there": str(beside / "held"), "go": str(beside / "go")}
            env = {"HELD": json.dumps({"where": held, "passes": passes} | there)}
            for left in beside.glob("held-*"):
                left.unlink()
        process = subprocess.Popen(
            [*launcher, str(script), *words, f"dataset={dataset}", f"out={folder}"],
            cwd=ROOT,
            env={**environment, "JOB": mark, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=file_limit(file_bytes),
        )
        jobs.append(Job(process, folder, mark))
        return jobs[-1]

    try:
        yield begin
    finally:
        for job in jobs:
            for pid in job.processes():
                os.kill(pid, signal.SIGKILL)
            job.process.communicate(timeout=60)


def program(name: str) -> str:
    """``accelerate`` or ``torchrun``, of the environment that the tests run in."""
    beside = Path(sys.executable).with_name(name)
    return str(beside) if beside.exists() else shutil.which(name) or name


# Ports of their own: tests run side by side.
ACCELERATE = (program("accelerate"), "launch")
ACCELERATE_TWO = (*ACCELERATE, "--multi_gpu", "--num_processes", "2", "--main_process_port", "0")
TORCHRUN = (program("torchrun"), "--standalone", "--nproc-per-node", "2")


def as_if_killed(run: Run, copy: Path) -> Path:
    """A copy of what a finished run left, as a kill soon after its last checkpoint but one would have left it."""
    shutil.copytree(run.folder, copy)
    for name in ("result.json", "model.safetensors"):
        (copy / name).unlink()
    newest_first(copy / "checkpoints")[0].unlink()
    lines = (copy / "history.jsonl").read_text().splitlines(keepends=True)
    (copy / "history.jsonl").write_text("".join(lines[:-1]))
    return copy


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def result_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text())


def goes_on_as_if_nothing_had_happened(resumed: Run, whole: Run) -> None:
    assert (resumed.code, resumed.err) == (0, "")
    assert weights(resumed.folder) == weights(whole.folder)
    one, other = resumed.result, whole.result
    for name in ("status", "accuracy", "correct", "total", "train_loss", "test_loss", "optimizer_steps", "error"):
        assert one[name] == other[name], name
    lines = [json.loads(line) for line in (resumed.folder / "history.jsonl").read_text().splitlines()]
    assert lines == one["history"] and len(lines) == other["epochs"]
    assert Path(one["resumed_from"]).parent == resumed.folder / "checkpoints"
    assert one["train_seconds"] > 0
