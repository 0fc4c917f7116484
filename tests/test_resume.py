"""Runs that are killed, in real processes with real signals: nothing is lost, nothing is left running.

Figures and weights are compared with a run that nobody disturbed, byte for byte.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from conftest import ROOT, Launch, Run, a_run
from test_launch import one_error_line, program

import recipes
from mnist_accel import cli, run
from mnist_accel.checkpoint import newest_first, read_checkpoint, write_checkpoint
from mnist_accel.errors import UserError

# Those of the fixture ``trained_run``: 120 steps.
WORDS = ("recipe=onepoch", "batch_size=1000", "epochs=2", "ema=0.9", "threads=1")
# Short, and not divisible by two processes.
TWO = ("recipe=onepoch", "batch_size=1001", "ema=0.9", "threads=1", "processes=2")


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

    def wait_for_checkpoint(self, step: int = 1) -> None:
        name = f"step-{step:09}.safetensors"
        self.wait_until(lambda: any(path.name >= name for path in self.checkpoints))

    def wait_until(self, condition: Callable[[], bool], seconds: float = 120) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < end, "waited in vain"
            time.sleep(0.01)

    def end(self, seconds: float = 120) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=seconds)
        return self.process.returncode, out, err

    def is_gone_within(self, seconds: float) -> bool:
        end = time.monotonic() + seconds
        while self.processes() and time.monotonic() < end:
            time.sleep(0.05)
        return not self.processes()


Begin = Callable[..., Job]


@pytest.fixture
def begin(clean_environment: dict[str, str], tmp_path: Path) -> Iterator[Begin]:
    """``begin("recipe=onepoch", …)`` is a run under way; what it leaves running is killed when the test is over."""
    jobs: list[Job] = []

    def begin(*words: str, launcher: Sequence[str] = (sys.executable,), folder: Path | None = None) -> Job:
        folder = folder or tmp_path / "run"
        mark = uuid4().hex
        process = subprocess.Popen(
            [*launcher, str(ROOT / "launch.py"), *words, "dataset=synthetic", f"out={folder}"],
            cwd=ROOT,
            env=clean_environment | {"JOB": mark},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        jobs.append(Job(process, folder, mark))
        return jobs[-1]

    yield begin
    for job in jobs:
        for pid in job.processes():
            os.kill(pid, signal.SIGKILL)
        job.process.communicate(timeout=60)


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


# One process


@pytest.fixture(scope="module")
def interrupted(clean_environment: dict[str, str], run_launch: Launch, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that Ctrl-C has stopped after some 20 of its 120 steps; meanwhile another one tried to write there."""
    folder = tmp_path_factory.mktemp("runs") / "interrupted"
    words = [*WORDS, "checkpoint_every=5", "dataset=synthetic", f"out={folder}"]
    process = subprocess.Popen(
        [sys.executable, "launch.py", *words],
        cwd=ROOT,
        env=clean_environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    job = Job(process, folder, "")
    job.wait_for_checkpoint(10)
    os.kill(process.pid, signal.SIGSTOP)
    second = a_run(run_launch, folder, *WORDS, "resume=auto")
    assert second.code == 2 and one_error_line(second.err)
    assert second.err.startswith(f"error: out={folder}: another run is writing there. ")
    os.kill(process.pid, signal.SIGCONT)
    os.killpg(process.pid, signal.SIGINT)
    code, out, err = job.end()
    return Run(code, out, err, folder, words)


@pytest.fixture
def copied(interrupted: Run, tmp_path: Path) -> Path:
    return Path(shutil.copytree(interrupted.folder, tmp_path / "copied"))


def test_ctrl_c_saves_says_so_in_one_line_and_ends_with_130(interrupted: Run) -> None:
    assert interrupted.code == 130
    assert interrupted.err == "stopped by SIGINT; resume=auto goes on from there\n"
    assert "Traceback" not in interrupted.out
    result = interrupted.result
    assert (result["status"], result["error"]) == ("interrupted", "stopped by SIGINT")
    newest = read_checkpoint(newest_first(interrupted.folder / "checkpoints")[0])
    assert newest.facts.step == result["optimizer_steps"] >= 10
    assert newest.path.name == f"step-{newest.facts.step:09}.safetensors"
    assert not (interrupted.folder / "model.safetensors").exists()


def test_an_interrupted_run_goes_on_to_the_same_weights(run_launch: Launch, copied: Path, trained_run: Run) -> None:
    goes_on_as_if_nothing_had_happened(a_run(run_launch, copied, *WORDS, "resume=auto"), trained_run)


def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_is_used(
    run_launch: Launch, copied: Path, trained_run: Run
) -> None:
    newest, before = newest_first(copied / "checkpoints")
    newest.write_bytes(newest.read_bytes()[:-1])
    resumed = a_run(run_launch, copied, *WORDS, f"resume={copied}")
    assert str(newest) in resumed.out.replace("\n", "")
    goes_on_as_if_nothing_had_happened(resumed, trained_run)
    assert resumed.result["resumed_from"] == str(before)


@pytest.mark.slow
def test_a_run_goes_on_with_more_processes(run_launch: Launch, copied: Path, trained_run: Run) -> None:
    resumed = a_run(run_launch, copied, *WORDS, "resume=auto", "processes=2")
    assert (resumed.code, resumed.err) == (0, "")
    result = resumed.result
    assert (result["status"], result["world_size"], result["optimizer_steps"]) == ("finished", 2, 120)
    assert [stats["images"] for stats in result["history"]] == [60_000, 60_000]
    assert result["total"] == 10_000
    assert result["accuracy"] == pytest.approx(trained_run.result["accuracy"], abs=1)
    assert [stats["lr"] for stats in result["history"]] == [s["lr"] for s in trained_run.result["history"]]


def checked(*words: str) -> None:
    run.check(cli.parse([*words], recipes.names(), recipes.load))


def test_what_would_be_another_run_is_refused_in_one_line(copied: Path, interrupted: Run) -> None:
    """Before anything is started or written."""
    before = sorted(path.name for path in copied.rglob("*"))
    out = f"out={copied}"
    newest = newest_first(copied / "checkpoints")[0]
    for words, message in (
        ((*WORDS, out), f"{out}: holds an unfinished run. Type resume=auto to go on with it, or name another folder"),
        ((*WORDS, out, "resume=auto", "lr=0.5"), f"resume=auto: {newest} was trained with lr="),
        ((*WORDS, f"resume={newest}", "seed=1"), f"resume={newest}: {newest} was trained with seed=0, this run has"),
        ((*WORDS, f"resume={copied}", "rotation=5"), f"resume={copied}: {newest} was trained with rotation=0.0, this"),
        (("recipe=is3", out, "resume=auto"), f"resume=auto: {newest} was trained with "),
        ((*WORDS, f"resume={copied.parent}"), f"resume={copied.parent}: no checkpoint there. "),
        ((*WORDS, f"resume={copied / 'recipe.json'}"), f"resume={copied / 'recipe.json'}: damaged: "),
    ):
        with pytest.raises(UserError) as refused:
            checked(*words)
        assert str(refused.value).startswith(message)
        assert "\n" not in str(refused.value)
    assert sorted(path.name for path in copied.rglob("*")) == before


def test_a_refusal_ends_the_program_with_2(run_launch: Launch, copied: Path) -> None:
    ended = a_run(run_launch, copied, *WORDS, "lr=0.5", "resume=auto")
    assert (ended.code, ended.out) == (2, "") and one_error_line(ended.err)


def test_a_checkpoint_of_other_data_is_refused(run_launch: Launch, copied: Path) -> None:
    for path in newest_first(copied / "checkpoints"):
        read = read_checkpoint(path)
        write_checkpoint(path.parent, path.name, read.tensors, replace(read.facts, dataset="ab" * 32))
    ended = a_run(run_launch, copied, *WORDS, "resume=auto")
    assert (ended.code, ended.out) == (2, "") and one_error_line(ended.err)
    assert "was trained on other data than this synthetic. " in ended.err


def test_a_checkpoint_of_an_older_network_is_refused(run_launch: Launch, copied: Path) -> None:
    """Of the same recipe, written before somebody changed the network."""
    for path in newest_first(copied / "checkpoints"):
        read = read_checkpoint(path)
        tensors = {name: tensor for name, tensor in read.tensors.items() if not name.endswith(".bias")}
        write_checkpoint(path.parent, path.name, tensors, read.facts)
    ended = a_run(run_launch, copied, *WORDS, "resume=auto")
    assert (ended.code, ended.out) == (2, "") and one_error_line(ended.err)
    assert "does not fit the network as it is now. " in ended.err


def test_a_finished_run_is_not_gone_on_with(trained_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="that run is over"):
        checked(*WORDS, f"resume={trained_run.folder}")
    with pytest.raises(UserError, match="already holds a finished run"):
        checked(*WORDS, f"out={trained_run.folder}", "resume=auto")
    checked(*WORDS, "resume=auto")  # nothing here yet: it starts from the beginning


def test_auto_takes_the_newest_unfinished_run_of_this_recipe(
    interrupted: Run, trained_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, source in (("1", interrupted), ("2", interrupted), ("3", trained_run)):
        shutil.copytree(source.folder, tmp_path / "runs" / "onepoch" / name)
    request = cli.parse([*WORDS, "resume=auto"], recipes.names(), recipes.load)
    folder, resumed = run.check(request)
    assert resumed is not None and folder.path == resumed.folder == Path("runs/onepoch/2")


def test_kill_9_loses_nothing_that_was_saved(
    begin: Begin, run_launch: Launch, clean_environment: dict[str, str], trained_run: Run
) -> None:
    job = begin(*WORDS, "checkpoint_every=5")
    job.wait_for_checkpoint(10)
    job.process.kill()
    assert job.end()[0] == -signal.SIGKILL
    assert not (job.folder / "result.json").exists()
    goes_on_as_if_nothing_had_happened(a_run(run_launch, job.folder, *WORDS, "resume=auto"), trained_run)


@pytest.mark.slow
def test_kill_9_at_random_moments_loses_nothing(begin: Begin, run_launch: Launch, trained_run: Run) -> None:
    """Twenty times: at whatever the run is doing then, writing a checkpoint after every step included."""
    chance = random.Random(0)
    words = (*WORDS, "checkpoint_every=1", "resume=auto")
    job, kills = begin(*words), 0
    while kills < 20:
        at = int(job.checkpoints[0].stem[5:]) if job.checkpoints else 0
        job.wait_for_checkpoint(at + chance.randrange(1, 5))
        time.sleep(chance.random() * 0.05)
        job.process.kill()
        job.end()
        kills += 1
        job = begin(*words)
    code, _, err = job.end(300)
    resumed = Run(code, "", err, job.folder, [])
    goes_on_as_if_nothing_had_happened(resumed, trained_run)


# Several processes


@pytest.fixture(scope="module")
def undisturbed(run_launch: Launch, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return a_run(run_launch, tmp_path_factory.mktemp("runs") / "undisturbed", *TWO)


def to_the_launcher(job: Job) -> None:
    job.process.terminate()


def to_everyone(job: Job) -> None:
    os.killpg(job.process.pid, signal.SIGINT)
    for rank in range(2):  # which get another one from torch's launcher
        for pid in job.processes(rank):
            os.kill(pid, signal.SIGINT)


def to_one_rank(job: Job) -> None:
    (pid,) = job.processes(rank=1)
    os.kill(pid, signal.SIGTERM)


@pytest.mark.parametrize(
    ("send", "code", "name"),
    [
        (to_the_launcher, 143, "SIGTERM"),
        pytest.param(to_everyone, 130, "SIGINT", marks=pytest.mark.slow),
        pytest.param(to_one_rank, 143, "SIGTERM", marks=pytest.mark.slow),
    ],
)
def test_all_ranks_stop_at_one_step_save_and_go_on(
    begin: Begin, run_launch: Launch, undisturbed: Run, send: Callable[[Job], None], code: int, name: str
) -> None:
    job = begin(*TWO, "checkpoint_every=5")
    job.wait_for_checkpoint(10)
    send(job)
    ended, out, err = job.end()
    assert job.is_gone_within(5)
    assert (ended, err) == (code, f"stopped by {name}; resume=auto goes on from there\n")
    assert "Traceback" not in out
    result = result_of(job.folder)
    assert result["status"] == "interrupted"
    newest = read_checkpoint(job.checkpoints[0]).facts
    assert (newest.step, newest.world_size) == (result["optimizer_steps"], 2)
    goes_on_as_if_nothing_had_happened(a_run(run_launch, job.folder, *TWO, "resume=auto"), undisturbed)


def test_a_rank_that_dies_ends_the_job_within_15_seconds(begin: Begin) -> None:
    job = begin(*TWO, "checkpoint_every=5")
    job.wait_for_checkpoint(10)
    (pid,) = job.processes(rank=1)
    killed = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    code, _, _ = job.end()
    assert code != 0 and time.monotonic() - killed < 15
    assert job.is_gone_within(15)
    assert read_checkpoint(job.checkpoints[0]).facts.step >= 10


@pytest.mark.slow
def test_a_rank_that_hangs_ends_the_job_after_the_timeout(begin: Begin) -> None:
    """torch's launcher gives the hung rank 30 seconds to react to SIGTERM, which a stopped process cannot."""
    job = begin(*TWO, "checkpoint_every=5", "timeout=5")
    job.wait_for_checkpoint(10)
    (pid,) = job.processes(rank=1)
    os.kill(pid, signal.SIGSTOP)
    code, _, _ = job.end(90)
    assert code != 0 and job.is_gone_within(15)
    assert read_checkpoint(job.checkpoints[0]).facts.step >= 10


# Other people's launchers


@pytest.mark.parametrize("moment", ["while it loads", "while it trains"])
def test_the_end_of_accelerate_launch_ends_its_training_which_saves(begin: Begin, moment: str) -> None:
    """It dies of SIGTERM without passing it on."""
    job = begin(*WORDS, "checkpoint_every=5", launcher=(program("accelerate"), "launch"))
    if moment == "while it loads":
        job.wait_until(lambda: len(job.processes()) > 1)
        time.sleep(1)
    else:
        job.wait_for_checkpoint(5)
    ends_interrupted(job)


def test_sigterm_to_torchrun_ends_all_ranks_which_save(begin: Begin) -> None:
    job = begin(*TWO[:-1], "checkpoint_every=5", launcher=(program("torchrun"), "--nproc-per-node", "2"))
    job.wait_for_checkpoint(5)
    ends_interrupted(job)


def ends_interrupted(job: Job) -> None:
    job.process.terminate()
    code, out, err = job.end()
    assert code != 0 and job.is_gone_within(15)
    assert result_of(job.folder)["status"] == "interrupted", out + err
    assert err.count("stopped by SIGTERM; resume=auto goes on from there\n") == 1
    assert read_checkpoint(job.checkpoints[0]).facts.step > 0
