"""``resume=``: which run and which checkpoint are gone on with, what is refused, and at another number of processes.

Figures and weights are compared with a run that nobody disturbed, byte for byte.
"""

import json
import os
import re
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from jobs import WORDS, Launch, Run, a_run, as_if_killed, beginning, goes_on_as_if_nothing_had_happened
from safetensors.torch import load_file
from test_launch import one_error_line

import recipes
from mnist_accel import cli
from mnist_accel.errors import UserError
from mnist_accel.models import build_model
from mnist_accel.runs import run
from mnist_accel.runs.checkpoint import newest_first, read_checkpoint, write_checkpoint


@pytest.fixture(scope="module")
def interrupted(
    clean_environment: dict[str, str], run_launch: Launch, trained_run: Run, tmp_path_factory: pytest.TempPathFactory
) -> Run:
    """A run that Ctrl-C has stopped after some 110 of its 120 steps; meanwhile another one tried to write there."""
    folder = as_if_killed(trained_run, tmp_path_factory.mktemp("runs") / "interrupted")
    with beginning(clean_environment, folder) as begin:
        job = begin(*WORDS, "checkpoint_every=5", "resume=auto")
        job.wait_for_checkpoint(105)
        os.kill(job.process.pid, signal.SIGSTOP)
        second = a_run(run_launch, folder, *WORDS, "resume=auto")
        assert second.code == 2 and one_error_line(second.err)
        assert second.err.startswith(f"error: out={folder}: another run is writing there. ")
        os.kill(job.process.pid, signal.SIGCONT)
        os.killpg(job.process.pid, signal.SIGINT)
        code, out, err = job.end()
    typed = [*WORDS, "checkpoint_every=5", "resume=auto", "dataset=synthetic", f"out={folder}"]
    return Run(code, out, err, folder, typed)


@pytest.fixture
def copied(interrupted: Run, tmp_path: Path) -> Path:
    return Path(shutil.copytree(interrupted.folder, tmp_path / "copied"))


def test_ctrl_c_saves_says_so_in_one_line_and_ends_with_130(interrupted: Run) -> None:
    assert interrupted.code == 130
    typed = " ".join(word for word in interrupted.words if word != "resume=auto")
    line = rf"\S*python\S* launch\.py {re.escape(typed)} resume=auto"
    assert re.fullmatch(rf"stopped by SIGINT; resume=auto goes on from there: {line}\n", interrupted.err)
    assert "Traceback" not in interrupted.out
    result = interrupted.result
    assert (result["status"], result["error"]) == ("interrupted", "stopped by SIGINT")
    newest = read_checkpoint(newest_first(interrupted.folder / "checkpoints")[0])
    assert 60 + newest.meta.position.step == result["optimizer_steps"] >= 105
    assert newest.path.name == f"step-{result['optimizer_steps']:09}.safetensors"
    assert not (interrupted.folder / "model.safetensors").exists()


def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_is_used(
    run_launch: Launch, copied: Path, trained_run: Run
) -> None:
    newest, before = newest_first(copied / "checkpoints")
    newest.write_bytes(newest.read_bytes()[:-1])
    resumed = a_run(run_launch, copied, *WORDS, f"resume={copied}")
    assert str(newest) in resumed.out.replace("\n", "")
    goes_on_as_if_nothing_had_happened(resumed, trained_run)
    assert resumed.result["resumed_from"] == str(before)


def test_a_signed_checkpoint_that_cannot_be_true_is_damaged_too(copied: Path) -> None:
    newest, before = newest_first(copied / "checkpoints")
    read = read_checkpoint(newest)
    untrue = replace(read.meta, position=replace(read.meta.position, step=-1))
    write_checkpoint(newest.parent, newest.name, read.tensors, untrue)
    _, resumed = checked(*WORDS, f"out={copied}", "resume=auto")
    assert resumed is not None and resumed.checkpoint.path == before
    (complaint,) = resumed.complaints
    assert complaint.startswith(f"{newest}: -1 steps cannot have seen ") and "\n" not in complaint
    with pytest.raises(UserError, match=f"^resume={newest}: damaged: ") as refused:
        checked(*WORDS, f"resume={newest}")
    assert "\n" not in str(refused.value)


def checked(*words: str) -> Any:
    return run.check(cli.parse([*words], recipes.names(), recipes.load))


def test_what_was_published_or_measured_may_change_between_two_runs(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = recipes.load("onepoch")
    assert known.claims and known.measured
    monkeypatch.setattr(recipes, "load", lambda name: replace(known, claims=known.claims[:1], measured=None))
    _, resumed = checked(*WORDS, f"out={copied}", "resume=auto")
    assert resumed is not None and resumed.folder == copied


def test_a_checkpoint_from_before_there_was_a_key_is_gone_on_with_at_its_default(copied: Path) -> None:
    for path in newest_first(copied / "checkpoints"):
        read = read_checkpoint(path)
        older = {key: value for key, value in read.meta.recipe.items() if key != "test_shifts"}
        write_checkpoint(path.parent, path.name, read.tensors, replace(read.meta, recipe=older))
    _, resumed = checked(*WORDS, f"out={copied}", "resume=auto")
    assert resumed is not None and resumed.folder == copied
    with pytest.raises(UserError, match="was trained with test_shifts=0, this run has test_shifts=1"):
        checked(*WORDS, f"out={copied}", "resume=auto", "test_shifts=1")


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
        ((*WORDS, f"resume={copied / 'recipe.json'}"), f"resume={copied / 'recipe.json'}: lies in no run's folder. "),
        (
            (*WORDS, f"resume={copied}", f"out={copied.parent / 'elsewhere'}"),
            f"out={copied.parent / 'elsewhere'}: resume={copied} goes on in its own folder, {copied}. Leave out out",
        ),
        ((*WORDS, out, "resume=auto", "dry_run=true"), "resume=auto: a dry run would end the run. "),
    ):
        with pytest.raises(UserError) as refused:
            checked(*words)
        assert str(refused.value).startswith(message)
        assert "\n" not in str(refused.value)
    assert sorted(path.name for path in copied.rglob("*")) == before


def test_a_single_checkpoint_of_a_run_that_is_over_is_refused(trained_run: Run) -> None:
    for path in newest_first(trained_run.folder / "checkpoints"):
        with pytest.raises(UserError, match=r"^resume=\S+: that run is over\. Leave resume out to start a new one$"):
            checked(*WORDS, f"resume={path}")


def test_what_a_dry_run_wrote_beside_checkpoints_does_not_end_their_run(copied: Path) -> None:
    (copied / "result.json").write_text('{"status": "finished", "dry_run": true}')
    _, resumed = checked(*WORDS, f"out={copied}", "resume=auto")
    assert resumed is not None and resumed.folder == copied


def test_where_every_checkpoint_is_damaged_nothing_starts_from_the_beginning_unasked(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in newest_first(copied / "checkpoints"):
        path.write_bytes(b"damaged")
    for typed in ((f"out={copied}", "resume=auto"), (f"resume={copied}",)):
        with pytest.raises(UserError, match=r"^resume=\S+: every checkpoint is damaged \(.*\)\. Leave resume out "):
            checked(*WORDS, *typed)
    shutil.copytree(copied, copied.parent / "runs" / "onepoch" / "1")
    monkeypatch.chdir(copied.parent)
    with pytest.raises(UserError, match=r"^resume=auto: every checkpoint is damaged"):
        checked(*WORDS, "resume=auto")


def test_a_checkpoint_of_other_data_is_refused(run_launch: Launch, copied: Path) -> None:
    for path in newest_first(copied / "checkpoints"):
        read = read_checkpoint(path)
        write_checkpoint(path.parent, path.name, read.tensors, replace(read.meta, dataset="ab" * 32))
    ended = a_run(run_launch, copied, *WORDS, "resume=auto")
    assert (ended.code, ended.out) == (2, "") and one_error_line(ended.err)
    assert "was trained on other data than this synthetic. " in ended.err


def test_a_checkpoint_of_an_older_network_is_refused(run_launch: Launch, copied: Path) -> None:
    """Of the same recipe, written before somebody changed the network."""
    for path in newest_first(copied / "checkpoints"):
        read = read_checkpoint(path)
        tensors = {name: tensor for name, tensor in read.tensors.items() if not name.endswith(".bias")}
        write_checkpoint(path.parent, path.name, tensors, read.meta)
    ended = a_run(run_launch, copied, *WORDS, "resume=auto")
    assert (ended.code, ended.out) == (2, "") and one_error_line(ended.err)
    assert "does not fit the network as it is now. " in ended.err


def test_a_finished_run_is_not_gone_on_with(trained_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="that run is over"):
        checked(*WORDS, f"resume={trained_run.folder}")
    with pytest.raises(UserError, match="already holds a finished run"):
        checked(*WORDS, f"out={trained_run.folder}", "resume=auto")
    folder, resumed = checked(*WORDS, "resume=auto")  # nothing here yet: it starts from the beginning
    assert resumed is None and folder.path.parent == Path("runs/onepoch") and list(tmp_path.iterdir()) == []


def test_auto_takes_the_newest_unfinished_run_of_this_recipe_that_has_an_intact_checkpoint(
    interrupted: Run, trained_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folders = [tmp_path / "runs" / "onepoch" / name for name in "123"]
    for folder, source in zip(folders, (interrupted, interrupted, trained_run), strict=True):
        shutil.copytree(source.folder, folder)
    os.utime(newest_first(folders[0] / "checkpoints")[0], (0, 0))  # a folder's name tells nothing of its age
    with FileLock(folders[1] / ".lock"):  # as by somebody who trains there
        assert checked(*WORDS, "resume=auto")[0].path == Path("runs/onepoch/1")
    folder, resumed = checked(*WORDS, "resume=auto")
    assert resumed is not None and folder.path == resumed.folder == Path("runs/onepoch/2")
    for path in newest_first(folders[1] / "checkpoints"):
        path.write_bytes(b"damaged")
    folder, resumed = checked(*WORDS, "resume=auto")
    assert folder.path == Path("runs/onepoch/1") and len(resumed.complaints) == 2
    assert all(complaint.startswith("runs/onepoch/2/checkpoints/step-") for complaint in resumed.complaints)


# At any number of processes


@pytest.mark.parametrize("run", ["trained_run", "trained_by_two"])
def test_the_weights_that_are_left_are_the_average_that_was_saved(run: str, request: pytest.FixtureRequest) -> None:
    trained = request.getfixturevalue(run)
    saved = read_checkpoint(newest_first(trained.folder / "checkpoints")[0]).tensors
    left = load_file(trained.folder / "model.safetensors")
    names = [name for name, tensor in build_model("onepoch", 0).state_dict().items() if tensor.is_floating_point()]
    for index, name in enumerate(names):
        assert torch.equal(left[name], saved[f"average.{index}"])
        assert not torch.equal(left[name], saved[f"model.{name}"])


# At another number of processes; that it takes the same steps is for test_world_size to show, in double precision


@pytest.mark.parametrize(
    ("unfinished", "whole", "processes"),
    [("late_two", "trained_by_two", 1), pytest.param("late", "trained_run", 2, marks=pytest.mark.slow)],
)
def test_a_run_goes_on_with_fewer_or_more_processes(
    run_launch: Launch, request: pytest.FixtureRequest, unfinished: str, whole: str, processes: int
) -> None:
    folder, undisturbed = request.getfixturevalue(unfinished), request.getfixturevalue(whole)
    words = [word for word in undisturbed.words if word.partition("=")[0] not in ("processes", "dataset", "out")]
    resumed = a_run(run_launch, folder, *words, "resume=auto", f"processes={processes}")
    assert (resumed.code, resumed.err) == (0, "")
    one, other = resumed.result, undisturbed.result
    assert one["resumed_from"] and {one["world_size"], other["world_size"]} == {1, 2}
    assert one["world_size"] == processes
    for name in ("status", "optimizer_steps", "total"):
        assert one[name] == other[name], name
    for mine, theirs in zip(one["history"], other["history"], strict=True):
        assert [mine[name] for name in ("epoch", "steps", "images", "lr")] == [
            theirs[name] for name in ("epoch", "steps", "images", "lr")
        ]
    # Batch norm and dropout see another share of each batch.
    assert one["train_loss"] == pytest.approx(other["train_loss"], abs=0.02)
    assert one["accuracy"] == pytest.approx(other["accuracy"], abs=1)
    lines = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    assert lines == one["history"]
