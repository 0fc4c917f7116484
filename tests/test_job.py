"""The ranks of a job, each with its own part of it, and what they make sure of before they train: real launchers."""

import shutil
import socket
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from threading import Thread

import pytest
from jobs import ROOT, TORCHRUN, TWO, Launch
from test_resume import checked
from torch.distributed import HashStore

from mnist_accel.errors import PeerLost
from mnist_accel.machine.job import (
    code_of,
    earlier_folder,
    meet,
    refuse_dead_launcher,
    tell_later_attempts_folder,
    was_lost,
)
from mnist_accel.runs.checkpoint import newest_first, read_checkpoint, write_checkpoint

SOON = timedelta(seconds=60)


def a_job_of_two(run_launch: Launch, folder: Path, change: str, *words: str) -> "tuple[int, str, str]":
    """Under torchrun; ``change`` is what the two ranks do before they start as usual."""
    script = folder / "rank.py"
    script.write_text(
        f"import os, sys\nsys.path.insert(0, {str(ROOT)!r})\nimport launch\nfrom mnist_accel import errors\n"
        f"RANK = int(os.environ['RANK'])\n{change}\nerrors.exit_with_one_line(launch.main)\n"
    )
    ended = run_launch(*words, launcher=TORCHRUN, script=script)
    return ended.returncode, ended.stdout, ended.stderr


OTHER_DATA = """
from dataclasses import replace
from mnist_accel.runs import run
load = run.load_dataset
run.load_dataset = lambda *words: replace(load(*words), checksum=f"0{RANK}" * 32)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (OTHER_DATA, "error: dataset: the processes hold different data. Give every machine the same MNIST "),
        ("sys.argv.append(f'seed={RANK}')", "error: seed: the processes were asked for different ones. Give every "),
    ],
    ids=["data", "seed"],
)
def test_ranks_that_would_train_otherwise_refuse_to(run_launch: Launch, tmp_path: Path, change: str, said: str) -> None:
    words = ("recipe=onepoch", "dataset=synthetic", "threads=1", "dry_run=true", f"out={tmp_path / 'run'}")
    code, out, err = a_job_of_two(run_launch, tmp_path, change, *words)
    assert code != 0 and "recipe " not in out
    assert err.count(said) == 1, err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_ranks_that_find_different_checkpoints_refuse_to_go_on(
    run_launch: Launch, late_two: Path, tmp_path: Path
) -> None:
    """A folder each, as on machines that share none, with what two runs have left there."""
    other = Path(shutil.copytree(late_two, tmp_path / "other"))
    read = read_checkpoint(newest_first(other / "checkpoints")[0])
    write_checkpoint(read.path.parent, read.path.name, read.tensors, replace(read.meta, average_steps=1))
    (tmp_path / "both").mkdir()
    change = f"sys.argv.append('out=' + ({str(late_two)!r}, {str(other)!r})[RANK])"
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json*")}
    code, out, err = a_job_of_two(run_launch, tmp_path / "both", change, *TWO[:-1], "dataset=synthetic", "resume=auto")
    assert code != 0 and "recipe " not in out
    assert err.count("error: resume=auto: the processes found different checkpoints. Use a folder that all ") == 1, err
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json*")} == before


# How the ranks of an attempt find each other


def test_the_ranks_of_an_attempt_share_a_key_that_no_other_attempt_has() -> None:
    """In one store, in which attempts before have left theirs and some of their processes died at different places."""
    store, parts = HashStore(), {}
    store.set_timeout(SOON)
    store.set("ticket/1", "a dead rank's")
    store.set("ticket/2", "another's")
    store.set("key for another's", "a dead key")
    for attempt in range(3):

        def arrive(rank: int, attempt: int = attempt) -> None:
            part = meet(store, rank, 3, SOON)
            part.set(f"seen by {rank}", f"in attempt {attempt}")
            parts[attempt, rank] = part

        ranks = [Thread(target=arrive, args=(rank,)) for rank in ((2, 1, 0), (0, 1, 2), (1, 0, 2))[attempt]]
        for rank in ranks:
            rank.start()
        for rank in ranks:
            rank.join(60)
    assert len(parts) == 9
    for (attempt, _), part in parts.items():
        assert [part.get(f"seen by {rank}").decode() for rank in range(3)] == [f"in attempt {attempt}"] * 3


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_whose_others_never_come_says_so(rank: int) -> None:
    with pytest.raises(PeerLost, match=f"^process {rank} waited for others of this job to start for longer than"):
        meet(HashStore(), rank, 2, timedelta(seconds=0.1))


def test_a_dead_launcher_is_told_of_by_every_rank_that_finds_it_so() -> None:
    """Rank 0 may have ended before: nobody else would say it."""
    with socket.socket() as nobody_listens:
        nobody_listens.bind(("127.0.0.1", 0))
        with pytest.raises(PeerLost, match=r"^the launcher of this job is gone$") as caught:
            refuse_dead_launcher(*nobody_listens.getsockname())
    assert caught.value.here_only


# What is started anew


@pytest.mark.parametrize(
    ("codes", "again"),
    [
        ([-9], True),
        ([-11, 75], True),
        ([-9, -15], True),  # torch's launcher has stopped the other one, before it trained
        ([75, 143], True),  # and while it did
        ([3, 143], False),
        ([-15, -15], False),
        ([75, 75], True),
        ([2], False),
        ([3, 3], False),
        ([3, -9], False),
        ([4], False),
        ([1], False),
        ([-2], False),
        ([-15, 75], False),
        ([130, 130], False),
        ([143, 75], False),
    ],
)
def test_only_a_lost_process_starts_all_of_them_anew(codes: list[int], again: bool) -> None:
    assert was_lost(codes) is again


def test_the_code_of_a_job_is_that_of_a_run() -> None:
    assert [code_of(code) for code in (0, 2, 4, 143, -9, 75)] == [0, 2, 4, 143, 137, 3]


def test_an_attempt_of_restarts_goes_on_in_the_folder_of_the_one_before(
    late_two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever was typed; and begins anew there, where nothing had been saved."""
    monkeypatch.chdir(tmp_path)
    note = tmp_path / "note"
    monkeypatch.setenv("MNIST_ACCEL_FOLDER_FILE", str(note))
    words = (*TWO, "restarts=1")
    assert checked(*words)[0].path.parent == Path("runs/onepoch")  # the first attempt: there is no note yet
    empty = tmp_path / "empty"
    for folder, goes_on in ((late_two, True), (empty, False)):
        note.write_text(str(folder))
        newest = newest_first(late_two / "checkpoints")[-1]
        for typed in ((), ("resume=auto",), (f"out={tmp_path / 'x'}",), (f"resume={newest}",)):
            run_folder, resumed = checked(*words, *typed)
            assert run_folder.path == folder and (resumed is not None) == goes_on


def test_an_attempt_tells_the_next_one_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MNIST_ACCEL_FOLDER_FILE", raising=False)
    tell_later_attempts_folder(Path("run"))  # no attempt of restarts=N: nobody would read it
    assert earlier_folder() is None and list(tmp_path.iterdir()) == []
    monkeypatch.setenv("MNIST_ACCEL_FOLDER_FILE", str(tmp_path / "note"))
    assert earlier_folder() is None
    tell_later_attempts_folder(Path("run"))
    assert earlier_folder() == str(tmp_path / "run")


def test_restarts_need_processes(run_launch: Launch, tmp_path: Path) -> None:
    for words in ((), ("processes=1",)):
        ended = run_launch("recipe=onepoch", "restarts=3", f"out={tmp_path / 'run'}", *words)
        assert ended.returncode == 2 and ended.stderr == (
            "error: restarts=3: needs processes=N, 2 or more; torch's launchers have --max-restarts. "
            "Type processes=2, or leave restarts out\n"
        )
    assert list(tmp_path.iterdir()) == []
