"""Runs that are killed, in real processes with real signals: nothing is lost, nothing is left running.

Most begin twenty steps before the end of a run that nobody disturbed, with whose weights theirs are compared.
"""

import os
import random
import re
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from jobs import (
    ACCELERATE,
    ACCELERATE_TWO,
    TORCHRUN,
    TWO,
    WORDS,
    Begin,
    Job,
    Launch,
    Run,
    a_run,
    goes_on_as_if_nothing_had_happened,
    program,
    result_of,
    weights,
)
from test_resume import checked

from mnist_accel.runs.checkpoint import newest_intact, read_checkpoint

STOPPED = "stopped by {}; resume=auto goes on from there: "


def can_be_gone_on_with(job: Job, words: Sequence[str]) -> None:
    _, resumed = checked(*words, f"out={job.folder}", "resume=auto")
    assert resumed is not None and resumed.complaints == () and resumed.checkpoint.path == job.checkpoints[0]


def lost_nothing(job: Job, words: Sequence[str]) -> None:
    """It can be gone on with at the very step that it stopped at."""
    can_be_gone_on_with(job, words)
    assert int(job.checkpoints[0].stem[5:]) == result_of(job.folder)["optimizer_steps"]


# kill -9


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


def half_written(job: Job) -> set[str]:
    """Checkpoints under the provisional name that they have until they are complete."""
    try:
        return {name for name in os.listdir(job.folder / "checkpoints") if name.startswith(".step-")}
    except FileNotFoundError:
        return set()


@pytest.mark.parametrize(
    ("from_the_start", "trials"), [(False, 1), pytest.param(True, 20, marks=pytest.mark.slow)], ids=["once", "often"]
)
def test_kill_9_while_a_checkpoint_is_written_costs_only_that_one(
    begin: Begin, late: Path, tmp_path: Path, trained_run: Run, from_the_start: bool, trials: int
) -> None:
    """Inside fsync, of the file that has no name yet or of the folder that has just given it one."""
    folder = tmp_path / "run" if from_the_start else late
    chance, unnamed = random.Random(0), 0
    words = (*WORDS, "checkpoint_every=1", "resume=auto")
    for trial in range(trials):
        job = begin(*words, folder=folder, held="/checkpoints", passes=chance.randrange(8) if trial else 0)
        job.wait_until_held()
        written, before = half_written(job), job.checkpoints
        job.process.kill()
        assert job.end()[0] == -signal.SIGKILL
        unnamed += bool(written)
        assert half_written(job) == written and job.checkpoints == before
        intact, damaged = newest_intact(folder / "checkpoints")
        assert damaged == [] and before[:1] == ([intact.path] if intact else [])
    assert 0 < unnamed < trials or trials == 1
    job = begin(*words, folder=folder)
    code, out, err = job.end(300)
    goes_on_as_if_nothing_had_happened(Run(code, out, err, folder, []), trained_run)
    assert half_written(job) == set()


@pytest.mark.slow
@pytest.mark.parametrize(("from_the_start", "trials"), [(False, 1), (True, 5)], ids=["once", "often"])
def test_kill_9_of_all_processes_loses_nothing_that_was_saved(
    begin: Begin, late_two: Path, tmp_path: Path, trained_by_two: Run, from_the_start: bool, trials: int
) -> None:
    """Launcher and ranks, at a random moment."""
    folder = tmp_path / "run" if from_the_start else late_two
    chance = random.Random()
    words = (*TWO, "checkpoint_every=3", "resume=auto")
    for _ in range(trials):
        job = begin(*words, folder=folder)
        at = int(job.checkpoints[0].stem[5:]) if job.checkpoints else 0
        job.wait_for_checkpoint(at + chance.randrange(1, 9))
        time.sleep(chance.random() * 0.2)
        for pid in job.processes():
            os.kill(pid, signal.SIGKILL)
        assert job.end()[0] == -signal.SIGKILL and job.is_gone_within(5)
    code, out, err = begin(*words, folder=folder).end()
    goes_on_as_if_nothing_had_happened(Run(code, out, err, folder, []), trained_by_two)


# SIGTERM and Ctrl-C


def test_sigterm_saves_says_so_in_one_line_and_ends_with_143(
    begin: Begin, run_launch: Launch, late: Path, trained_run: Run
) -> None:
    job = begin(*WORDS, "checkpoint_every=5", "resume=auto", folder=late)
    job.wait_for_checkpoint(105)
    job.process.terminate()
    code, out, err = job.end()
    assert code == 143 and err.startswith(STOPPED.format("SIGTERM")) and err.count("\n") == 1 and "Traceback" not in out
    assert result_of(late)["status"] == "interrupted"
    lost_nothing(job, WORDS)
    goes_on_as_if_nothing_had_happened(a_run(run_launch, late, *WORDS, "resume=auto"), trained_run)


@pytest.mark.parametrize("written", ["/checkpoints", pytest.param("result.json", marks=pytest.mark.slow)])
def test_a_second_signal_does_not_cut_the_saving_off(begin: Begin, late: Path, written: str) -> None:
    """The launcher sends its own after the terminal's; an impatient user too."""
    job = begin(*WORDS, "resume=auto", folder=late, held=written)
    job.wait_for_banner()
    job.process.terminate()
    job.wait_until_held()
    job.process.send_signal(signal.SIGINT)
    job.process.terminate()
    job.let_go()
    code, out, err = job.end()
    assert code == 143 and err.startswith(STOPPED.format("SIGTERM")) and err.count("\n") == 1 and "Traceback" not in out
    lost_nothing(job, WORDS)


@pytest.mark.parametrize("saved_before", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_what_a_full_disk_did_not_take_is_not_promised(
    begin: Begin, late: Path, tmp_path: Path, saved_before: bool
) -> None:
    """No file here may become as large as a checkpoint."""
    before = {path.name: path.read_bytes() for path in (late / "checkpoints").iterdir()}
    folder = late if saved_before else tmp_path / "new"
    job = begin(*WORDS, "resume=auto", folder=folder, file_bytes=60_000)
    job.wait_for_banner()
    job.process.send_signal(signal.SIGINT)
    code, out, err = job.end()
    outlook = "that could not be saved; resume=auto goes on from the checkpoint before: "
    assert code == 130 and err.count("\n") == 1
    assert err.startswith(f"stopped by SIGINT; {outlook if saved_before else 'nothing was saved'}")
    assert "could not be written: File too large" in out
    if saved_before:
        assert {path.name: path.read_bytes() for path in (late / "checkpoints").iterdir()} == before
        can_be_gone_on_with(job, WORDS)


def to_the_launcher(job: Job) -> None:
    job.process.terminate()


def to_everyone(job: Job) -> None:
    os.killpg(job.process.pid, signal.SIGINT)
    for rank in range(2):  # which get another one from torch's launcher
        for pid in job.processes(rank):
            os.kill(pid, signal.SIGINT)


def to_one_rank(job: Job) -> None:
    os.kill(job.rank(1), signal.SIGTERM)


@pytest.mark.parametrize(
    ("send", "code", "name", "to_the_end"),
    [
        (to_the_launcher, 143, "SIGTERM", False),
        pytest.param(to_the_launcher, 143, "SIGTERM", True, marks=pytest.mark.slow),
        pytest.param(to_everyone, 130, "SIGINT", True, marks=pytest.mark.slow),
        pytest.param(to_one_rank, 143, "SIGTERM", True, marks=pytest.mark.slow),
    ],
)
def test_all_ranks_stop_at_one_step_save_and_go_on(
    begin: Begin,
    run_launch: Launch,
    late_two: Path,
    trained_by_two: Run,
    send: Callable[[Job], None],
    code: int,
    name: str,
    to_the_end: bool,
) -> None:
    job = begin(*TWO, "checkpoint_every=3", "resume=auto", folder=late_two)
    job.wait_for_checkpoint(45)
    send(job)
    ended, out, err = job.end()
    assert job.is_gone_within(5)
    assert ended == code and err.startswith(STOPPED.format(name)) and err.count("\n") == 1
    assert "Traceback" not in out
    assert result_of(job.folder)["status"] == "interrupted"
    assert read_checkpoint(job.checkpoints[0]).meta.world_size == 2
    lost_nothing(job, TWO)
    if to_the_end:
        goes_on_as_if_nothing_had_happened(a_run(run_launch, job.folder, *TWO, "resume=auto"), trained_by_two)


# One rank dies or hangs


@pytest.mark.parametrize("notices", ["by itself", pytest.param("whoever is first", marks=pytest.mark.slow)])
def test_a_rank_that_dies_ends_the_job_within_15_seconds(begin: Begin, late_two: Path, notices: str) -> None:
    """The other one notices by itself, or is told to stop by the launcher that did: one line either way."""
    job = begin(*TWO, "checkpoint_every=3", "resume=auto", folder=late_two)
    job.wait_for_checkpoint(42)
    lost = r"error: process 0 lost another of this job, which ended .*\. resume=auto goes on from the last checkpoint.*"
    told = r"stopped by SIGTERM; (that could not be saved; )?resume=auto goes on from .*"
    killed = time.monotonic()
    if notices == "by itself":
        job.process.send_signal(signal.SIGSTOP)
        survivor = job.rank(0)
        os.kill(job.rank(1), signal.SIGKILL)
        job.wait_until(lambda: survivor not in job.processes())
        job.process.send_signal(signal.SIGCONT)
        told = lost
    else:
        os.kill(job.rank(1), signal.SIGKILL)
    code, out, err = job.end()
    assert code != 0 and time.monotonic() - killed < 15
    assert job.is_gone_within(15)
    assert re.fullmatch(rf"({lost}|{told})\n", err), err
    assert "Traceback" not in out
    can_be_gone_on_with(job, TWO)


@pytest.mark.slow
@pytest.mark.parametrize("survivor", [0, 1])
def test_a_rank_that_dies_while_another_is_asked_to_stop_leaves_no_traceback(
    begin: Begin, late_two: Path, survivor: int
) -> None:
    """In this order, whatever the machine does meanwhile: the other one cannot take part any more, then it is gone."""
    job = begin(*TWO, "checkpoint_every=3", "resume=auto", folder=late_two)
    job.wait_for_checkpoint(42)
    ranks = [job.rank(0), job.rank(1)]
    os.kill(ranks[1 - survivor], signal.SIGSTOP)
    os.kill(ranks[survivor], signal.SIGINT)
    time.sleep(0.5)  # for a survivor that waits for the other, which is where it would be in a job that hangs
    os.kill(ranks[1 - survivor], signal.SIGKILL)
    code, out, err = job.end()
    assert code != 0 and job.is_gone_within(15)
    assert "Traceback" not in out + err
    if survivor == 0:
        assert re.fullmatch(r"stopped by SIGINT; (that could not be saved; )?resume=auto goes on from .*\n", err)
        assert result_of(job.folder)["status"] == "interrupted"
    else:
        assert err == ""  # only the first rank speaks
    can_be_gone_on_with(job, TWO)


@pytest.mark.slow
def test_a_rank_that_hangs_ends_the_job_after_the_timeout(begin: Begin) -> None:
    """torch's launcher gives the hung rank 30 seconds to react to SIGTERM, which a stopped process cannot."""
    job = begin(*TWO, "checkpoint_every=5", "timeout=5")
    job.wait_for_checkpoint(10)
    os.kill(job.rank(1), signal.SIGSTOP)
    code, _, _ = job.end(90)
    assert code != 0 and job.is_gone_within(15)
    assert read_checkpoint(job.checkpoints[0]).meta.position.step >= 10


# A lost process, and a job that heals itself


def heals_itself(
    begin: Begin, folder: Path, whole: Run, words: Sequence[str], launcher: Sequence[str], kills: Sequence[int]
) -> None:
    """A process of each of these ranks is killed, one after the other, and the weights are those of ``whole``."""
    job = begin(*words, "checkpoint_every=3", folder=folder, launcher=launcher)
    at, dead = job.step, set()
    for rank in kills:
        job.wait_for_checkpoint(at + 1)
        dead.add(job.kill_next(rank, dead))
        at = job.step
    code, out, err = job.end(300)
    assert code == 0 and "Traceback" not in out, err
    restarts = re.findall(r"^restarted +(\d) of 3.*; from \S+/checkpoints/step-(\d+)\.safetensors$", out, re.MULTILINE)
    assert [int(number) for number, _ in restarts] == [1 + index for index in range(len(kills))]
    assert job.is_gone_within(5)
    goes_on_as_if_nothing_had_happened(Run(code, out, "", folder, []), whole)


RESTARTING = pytest.mark.parametrize(
    ("launcher", "words"),
    [
        pytest.param((sys.executable,), (*TWO, "restarts=3", "resume=auto"), id="processes=2"),
        pytest.param(
            (program("torchrun"), "--standalone", "--nproc-per-node", "2", "--max-restarts", "3"),
            (*TWO[:-1], "resume=auto"),
            id="torchrun",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            (*ACCELERATE_TWO, "--max_restarts", "3"),
            (*TWO[:-1], "resume=auto"),
            id="accelerate launch",
            marks=pytest.mark.slow,
        ),
    ],
)


@RESTARTING
def test_a_job_that_loses_a_process_goes_on_from_its_newest_checkpoint(
    begin: Begin, late_two: Path, trained_by_two: Run, launcher: Sequence[str], words: Sequence[str]
) -> None:
    heals_itself(begin, late_two, trained_by_two, words, launcher, kills=[1])


@pytest.mark.slow
@pytest.mark.parametrize("kills", [(0, 1), (1, 0), (0, 0), (1, 1)], ids=str)
@RESTARTING
def test_a_job_heals_itself_twice(
    begin: Begin,
    tmp_path: Path,
    trained_by_two: Run,
    launcher: Sequence[str],
    words: Sequence[str],
    kills: Sequence[int],
) -> None:
    heals_itself(begin, tmp_path / "run", trained_by_two, words, launcher, kills)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
@RESTARTING
def test_a_job_that_loses_a_process_while_it_loads_begins_anew(
    begin: Begin, tmp_path: Path, trained_by_two: Run, launcher: Sequence[str], words: Sequence[str], rank: int
) -> None:
    words = [word for word in words if word != "resume=auto"]
    job = begin(*words, launcher=launcher)
    job.wait_until(lambda: job.loads_torch(rank))
    job.kill_next(rank, set())
    code, out, err = job.end()
    assert code == 0, err
    assert len(re.findall(r"^restarted +1 of 3.*; from the beginning$", out, re.MULTILINE)) == 1
    assert weights(job.folder) == weights(trained_by_two.folder)


@pytest.mark.slow
def test_torchrun_starts_a_loss_that_is_no_number_again_and_it_ends_at_once(begin: Begin) -> None:
    """As everything that ended in failure; with the same line. ``restarts=`` knows better: test_launch.py."""
    launcher = (program("torchrun"), "--standalone", "--nproc-per-node", "2", "--max-restarts", "2")
    code, out, err = begin("recipe=onepoch", "lr=1e30", "threads=1", launcher=launcher).end()
    assert code == 1 and len(re.findall(r"^recipe +onepoch", out, re.MULTILINE)) == 1
    assert len(re.findall(r"^error: loss is (?:nan|inf) at epoch 1, step \d+", err, re.MULTILINE)) == 3, err


@pytest.mark.slow
def test_what_was_asked_to_stop_is_not_started_again(begin: Begin, late_two: Path) -> None:
    job = begin(*TWO, "restarts=2", "checkpoint_every=3", "resume=auto", folder=late_two)
    job.wait_for_checkpoint(42)
    to_one_rank(job)
    code, out, err = job.end()
    assert code == 143 and err.startswith(STOPPED.format("SIGTERM")) and "restarted" not in out
    lost_nothing(job, TWO)


# Other people's launchers, and ours


@pytest.mark.slow
def test_the_end_of_accelerate_launch_ends_its_training_which_saves(begin: Begin) -> None:
    """It dies of SIGTERM without passing it on."""
    job = begin(*WORDS, "checkpoint_every=1", launcher=ACCELERATE)
    job.wait_for_checkpoint(5)
    job.process.terminate()
    ends_interrupted(job, "SIGTERM", WORDS)


@pytest.mark.slow
def test_the_end_of_accelerate_launch_ends_what_has_not_begun_to_train(begin: Begin) -> None:
    job = begin(*WORDS, launcher=ACCELERATE)
    job.wait_until(lambda: len(job.processes()) > 1)
    job.process.terminate()
    assert job.is_gone_within(5) and not (job.folder / "result.json").exists()


@pytest.mark.slow
def test_sigterm_to_torchrun_ends_all_ranks_which_save(begin: Begin) -> None:
    job = begin(*TWO[:-1], "checkpoint_every=1", launcher=TORCHRUN)
    job.wait_for_checkpoint(5)
    job.process.terminate()
    ends_interrupted(job, "SIGTERM", TWO[:-1])


@pytest.mark.parametrize(
    "launcher",
    [
        pytest.param(ACCELERATE, id="accelerate launch", marks=pytest.mark.slow),
        pytest.param(ACCELERATE_TWO, id="accelerate launch of two"),
        pytest.param(TORCHRUN, id="torchrun", marks=pytest.mark.slow),
    ],
)
def test_ctrl_c_to_a_launcher_ends_all_processes_which_save(begin: Begin, launcher: tuple[str, ...]) -> None:
    job = begin(*TWO[:-1], "checkpoint_every=1", launcher=launcher)
    job.wait_for_checkpoint(5)
    os.killpg(job.process.pid, signal.SIGINT)  # as a terminal does
    ends_interrupted(job, "SIGINT", TWO[:-1])


ALL_LAUNCHERS = {
    "processes=2": ((sys.executable,), ("processes=2",)),
    "torchrun": (TORCHRUN, ()),
    "accelerate launch of two": (ACCELERATE_TWO, ()),
    "accelerate launch": (ACCELERATE, ()),
}


def left_behind(begin: Begin, launcher: str, seconds: float | None) -> int:
    """How many processes are there five seconds after ``kill -9`` of their launcher, this long after its start or as
    soon as one loads torch."""
    program, words = ALL_LAUNCHERS[launcher]
    job = begin("recipe=compact13k", "threads=1", *words, launcher=program)
    if seconds is None:
        job.wait_until(lambda: job.loads_torch())
    else:
        time.sleep(seconds)
    job.process.kill()
    left = 0 if job.is_gone_within(5) else len(job.processes())
    for pid in job.processes():
        os.kill(pid, signal.SIGKILL)
    job.end()
    return left


@pytest.mark.parametrize("launcher", ["processes=2", "accelerate launch"])
def test_kill_9_of_a_launcher_leaves_nobody_behind(begin: Begin, launcher: str) -> None:
    assert left_behind(begin, launcher, None) == 0


@pytest.mark.slow
@pytest.mark.parametrize("launcher", list(ALL_LAUNCHERS))
def test_kill_9_of_a_launcher_at_any_moment_leaves_nobody_behind(begin: Begin, launcher: str) -> None:
    """Fourteen moments, from its start until long after its ranks have begun to train."""
    moments = [tenths / 10 for tenths in range(0, 41, 3)]
    assert {seconds: left_behind(begin, launcher, seconds) for seconds in moments} == dict.fromkeys(moments, 0)


def ends_interrupted(job: Job, name: str, words: Sequence[str]) -> None:
    code, out, err = job.end()
    assert code != 0 and job.is_gone_within(15)
    assert result_of(job.folder)["status"] == "interrupted", out + err
    assert err.count(STOPPED.format(name)) == 1
    lost_nothing(job, words)
