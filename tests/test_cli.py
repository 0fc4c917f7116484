"""key=value words: what is understood, and every mistake in one line that names key, value and remedy."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Run

import recipes
from mnist_accel import cli, errors
from mnist_accel.errors import TrainingFailed, UserError
from mnist_accel.recipe import Recipe, RunOptions, keys_of


def parse(*words: str) -> cli.Request:
    return cli.parse(words, recipes.names(), recipes.load)


def mistake(*words: str) -> str:
    with pytest.raises(UserError) as caught:
        parse(*words)
    return str(caught.value)


# What is understood


def test_words_override_the_recipe_and_the_options_and_nothing_else() -> None:
    base = recipes.load("compact13k")
    request = parse("recipe=compact13k", "lr=0.5", "threads=3", "nesterov=true", "out=a b")
    assert request.recipe is not None
    assert (request.recipe.lr, request.recipe.nesterov) == (0.5, True)
    assert {name for name in keys_of(Recipe) if getattr(request.recipe, name) != getattr(base, name)} == {
        "lr",
        "nesterov",
    }
    assert request.options == RunOptions(threads=3, out="a b")
    assert request.command == ("recipe=compact13k", "lr=0.5", "threads=3", "nesterov=true", "out=a b")


def test_the_order_of_the_words_does_not_matter() -> None:
    one = parse("recipe=is3", "lr=0.5", "threads=2")
    other = parse("threads=2", "lr=0.5", "recipe=is3")
    assert (one.recipe, one.options) == (other.recipe, other.options)


def test_changed_names_what_differs_from_the_recipe_not_what_was_typed() -> None:
    lr = recipes.load("compact13k").lr
    assert parse("recipe=compact13k", f"lr={lr}", "epochs=3", "threads=2").changed == ("epochs",)
    assert parse("recipe=compact13k").changed == ()


def test_a_value_may_hold_an_equals_sign() -> None:
    assert parse("recipe=is3", "out=a=b").options.out == "a=b"


def help_asked(*words: str) -> cli.Help | None:
    return cli.help_asked(words, recipes.names(), recipes.load)


def test_no_words_at_all_ask_for_the_list() -> None:
    assert help_asked() == cli.Help(lists=True)
    assert help_asked("recipe=is3") is None


@pytest.mark.parametrize("word", ["--help", "-h", "help"])
def test_help_is_asked_for_in_each_usual_way_with_or_without_a_recipe(word: str) -> None:
    assert help_asked(word) == cli.Help(lists=False)
    assert help_asked("recipe=is3", word) == cli.Help(lists=False, recipe=recipes.load("is3"))


def test_every_key_can_be_typed_with_its_own_default() -> None:
    """Spelled as the help spells it, so that a line of the help can be copied."""
    for name, key in keys_of(RunOptions).items():
        if key.default is not None:
            assert parse("recipe=is3", f"{name}={cli.spell(key.default)}").options == RunOptions()
    base = recipes.load("compact13k")
    for name, key in keys_of(Recipe).items():
        words = [f"{name}={cli.spell(getattr(base, name))}"]
        if key.needs and getattr(base, key.needs.key) not in key.needs.values:
            if key.needs.key == "loss":
                continue
            words.append(f"{key.needs.key}={key.needs.values[0]}")
        request = parse("recipe=compact13k", *words)
        assert getattr(request.recipe, name) == getattr(base, name)


# Mistakes: one line each, answered without torch

TYPING_MISTAKES: list[tuple[list[str], str]] = [
    (["recipe=onepoc"], "recipe=onepoc: no such recipe. Did you mean recipe=onepoch?"),
    (["recipe=zzz"], f"recipe=zzz: no such recipe. Recipes are {', '.join(recipes.names())}"),
    (["recipe=../../x"], "recipe=../../x: no such recipe. Recipes are "),
    (["recipe=recipes/onepoch.py"], "recipe=recipes/onepoch.py: no such recipe. Did you mean recipe=onepoch?"),
    (["recipe=/etc/passwd"], "recipe=/etc/passwd: no such recipe. Recipes are "),
    (["recipe=__init__"], "recipe=__init__: no such recipe. "),
    (["recipe="], "recipe=: no value behind the '='. Type recipe=VALUE"),
    (["epochs=2"], "recipe: none named. Type recipe=NAME with one of compact13k, "),
    (["recipe=onepoch", "epoch=2"], "epoch=2: no such key. Did you mean epochs=2?"),
    (["recipe=onepoch", "batchsize=128"], "batchsize=128: no such key. Did you mean batch_size=128?"),
    (["recipe=onepoch", "zzzzz=1"], "zzzzz=1: no such key. --help lists the keys"),
    (["recipe=onepoch", "model=is3"], "model=is3: no such key. "),
    (["recipe=onepoch", "lr=0.1", "lr=0.2"], "lr=0.2: lr is typed twice, first as lr=0.1. Keep one of them"),
    (["recipe=onepoch", "recipe=is3"], "recipe=is3: recipe is typed twice, first as recipe=onepoch. Keep one of them"),
    (["onepoch"], "onepoch: not of the form key=value. Type recipe=onepoch, if that is a recipe; "),
    (["recipe=onepoch", "dry_run"], "dry_run: not of the form key=value. Type dry_run=VALUE"),
    (["recipe=onepoch", "--epochs=2"], "--epochs=2: keys have no dashes. Type epochs=2"),
    (["recipe=onepoch", "--epochs", "2"], "--epochs: keys have no dashes. Type epochs=VALUE"),
    (["recipe=onepoch", "-e=2"], "-e=2: keys have no dashes. Type e=2"),
    (["recipe=compact13k", "epochs=two"], "epochs=two: must be a whole number. For example epochs=20"),
    (["recipe=compact13k", "epochs=1.5"], "epochs=1.5: must be a whole number. For example epochs=20"),
    (["recipe=compact13k", "lr=fast"], "lr=fast: must be a number. For example lr=0.01"),
    (["recipe=onepoch", "dry_run=yes"], "dry_run=yes: must be true or false. "),
    (["recipe=onepoch", "dry_run=1"], "dry_run=1: must be true or false. "),
    (
        ["recipe=compact13k", "optimizer=sgdd"],
        "optimizer=sgdd: must be 'sgd', 'adam' or 'adamw'. For example optimizer=sgd",
    ),
    (
        ["recipe=onepoch", "precision=fp61"],
        "precision=fp61: must be 'auto', 'fp32', 'tf32', 'fp16' or 'bf16'. For example precision=auto",
    ),
    (["recipe=compact13k", "epochs=0"], "epochs=0: must be at least 1. For example epochs=20"),
    (["recipe=compact13k", "epochs=-3"], "epochs=-3: must be at least 1. For example epochs=20"),
    (["recipe=compact13k", "lr=-0.1"], "lr=-0.1: must be greater than 0. For example lr=0.01"),
    (["recipe=compact13k", "lr=0"], "lr=0: must be greater than 0. For example lr=0.01"),
    (["recipe=compact13k", "lr=nan"], "lr=nan: must be a finite number. For example lr=0.01"),
    (["recipe=compact13k", "lr=inf"], "lr=inf: must be a finite number. For example lr=0.01"),
    (["recipe=compact13k", "lr=1e999"], "lr=1e999: must be a finite number. For example lr=0.01"),
    (["recipe=compact13k", "lr="], "lr=: no value behind the '='. Type lr=VALUE, or leave lr out"),
    (["recipe=compact13k", "lr=${HOME}"], "lr=${HOME}: must be a number. For example lr=0.01"),
    (
        ["recipe=onepoch", "batch_size=2", "processes=3"],
        "batch_size=2: smaller than the 3 processes, some would have nothing to do. Type at least batch_size=3",
    ),
    (
        ["recipe=onepoch", "processes=0"],
        "processes=0: must be at least 1. processes is how many processes to start, by torch's own launcher (default: ",
    ),
    (
        ["recipe=onepoch", "batch_size=60001"],
        "batch_size=60001: larger than the 60,000 training images. Type at most batch_size=60000",
    ),
    (
        ["recipe=onepoch", "batch_size=55001", "validation=5000"],
        "batch_size=55001: larger than the 55,000 training images. Type at most batch_size=55000",
    ),
    (["recipe=onepoch", "batch_size=0"], "batch_size=0: must be at least 1. For example batch_size="),
    (["recipe=onepoch", "validation=60000"], "validation=60000: must be less than 60000. For example validation=0"),
    # Keys that the run would ignore
    (
        ["recipe=onepoch", "optimizer=adam", "momentum=0.5"],
        "momentum=0.5: has no effect with optimizer=adam. Leave momentum out, or type optimizer=sgd",
    ),
    (
        ["recipe=onepoch", "optimizer=adamw", "nesterov=true"],
        "nesterov=true: has no effect with optimizer=adamw. Leave nesterov out, or type optimizer=sgd",
    ),
    (
        ["recipe=compact13k", "warmup=0.3"],
        "warmup=0.3: has no effect with schedule=constant. Leave warmup out, or type schedule=onecycle",
    ),
    (
        ["recipe=compact13k", "step_factor=0.5"],
        "step_factor=0.5: has no effect with schedule=constant. Leave step_factor out, or type schedule=step",
    ),
    (
        ["recipe=compact13k", "schedule=linear", "step_epochs=2"],
        "step_epochs=2: has no effect with schedule=linear. Leave step_epochs out, or type schedule=step",
    ),
    (
        ["recipe=onepoch", "positive_class=3"],
        "positive_class=3: has no effect with loss=cross_entropy. Leave positive_class out",
    ),
    (
        ["recipe=is3", "label_smoothing=0.1"],
        "label_smoothing=0.1: has no effect with loss=binary. Leave label_smoothing out",
    ),
    (
        ["recipe=onepoch", "dataset=synthetic", "data_dir=/data"],
        "data_dir=/data: has no effect with dataset=synthetic. Leave data_dir out, or type dataset=auto",
    ),
    (
        ["recipe=compact13k", "nesterov=true", "momentum=0"],
        "nesterov=true: needs momentum above 0. Type momentum=0.9, or nesterov=false",
    ),
]


@pytest.mark.parametrize(("words", "said"), TYPING_MISTAKES, ids=[" ".join(words)[:60] for words, _ in TYPING_MISTAKES])
def test_a_typing_mistake_is_named_with_its_remedy(words: list[str], said: str) -> None:
    assert mistake(*words).startswith(said)


# A mistake of each check, in the order in which they are made: these go through the real program.
LISTED = [
    "recipe=../../x",
    "recipe=onepoch lr=0.1 lr=0.2",
    "recipe=onepoch epochs=two",
    "recipe=onepoch optimizer=adam momentum=0.5",
    "recipe=onepoch batch_size=2 processes=3",
]


def files_below(*folders: Path) -> dict[str, int]:
    """Every file and folder with its time of change."""
    return {str(path): path.stat().st_mtime_ns for folder in folders for path in sorted(folder.rglob("*"))}


def is_one_error_line(text: str) -> bool:
    return re.fullmatch(r"error: [^\n]+\n", text) is not None


@pytest.mark.parametrize("typed", LISTED)
def test_the_program_answers_a_typing_mistake_at_once_with_one_line_and_writes_nothing(
    typed: str, run_launch: Callable[..., Any], tmp_path: Path
) -> None:
    cache = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    ended = run_launch(*typed.split(), launcher=(sys.executable, "-X", "importtime"), cwd=tmp_path, env=cache)
    lines = ended.stderr.splitlines(keepends=True)
    imported = {line.rpartition("|")[2].strip() for line in lines if line.startswith("import time:")}
    said = "".join(line for line in lines if not line.startswith("import time:"))
    assert ended.returncode == 2
    assert is_one_error_line(said) and said == f"error: {mistake(*typed.split())}\n"
    assert ended.stdout == ""
    assert "mnist_accel.cli" in imported and not imported & {"torch", "accelerate", "torchvision", "numpy"}
    assert not files_below(tmp_path)


def test_fp16_without_a_gpu_is_refused_in_one_line(run_launch: Callable[..., Any], tmp_path: Path) -> None:
    ended = run_launch("recipe=onepoch", "dataset=synthetic", "precision=fp16", cwd=tmp_path)
    assert ended.returncode == 2
    assert ended.stderr == "error: precision=fp16: fp16 needs a GPU. Type precision=bf16 or precision=fp32\n"
    assert ended.stdout == "" and not files_below(tmp_path)


def test_an_out_that_holds_a_finished_run_is_refused_and_left_as_it_is(
    run_launch: Callable[..., Any], trained_run: Run
) -> None:
    before = files_below(trained_run.folder)
    ended = run_launch("recipe=onepoch", "dataset=synthetic", "threads=1", f"out={trained_run.folder}")
    assert ended.returncode == 2
    assert ended.stderr == (
        f"error: out={trained_run.folder}: already holds a finished run. Name another folder, or move that one away\n"
    )
    assert ended.stdout == "" and files_below(trained_run.folder) == before


@pytest.mark.parametrize("processes", [1, 2])
def test_an_out_that_cannot_be_written_is_refused_in_one_line(
    run_launch: Callable[..., Any], tmp_path: Path, processes: int
) -> None:
    """Below a file, because root may write into any folder."""
    (tmp_path / "file").write_text("")
    out = tmp_path / "file" / "run"
    ended = run_launch(
        "recipe=onepoch",
        "dataset=synthetic",
        "threads=1",
        "dry_run=true",
        f"out={out}",
        f"processes={processes}",
        cwd=tmp_path,
    )
    assert ended.returncode == 2
    assert is_one_error_line(ended.stderr) and ended.stderr.startswith(f"error: out={out}: cannot be written (")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


# What ends the process


def test_exit_codes_tell_the_kind_of_end(capsys: pytest.CaptureFixture[str]) -> None:
    def end_with(outcome: int | BaseException) -> int:
        def run() -> int:
            if isinstance(outcome, BaseException):
                raise outcome
            return outcome

        with pytest.raises(SystemExit) as caught:
            errors.exit_with_one_line(run)
        return caught.value.code  # type: ignore[return-value]

    assert end_with(0) == 0
    assert end_with(4) == 4
    assert end_with(UserError("a:\n  b")) == 2
    assert end_with(TrainingFailed("c")) == 3
    assert capsys.readouterr().err == "error: a: b\nerror: c\n"
    assert end_with(KeyboardInterrupt()) == 130
    with pytest.raises(ZeroDivisionError):  # a bug of ours keeps its traceback
        end_with(ZeroDivisionError())


def test_a_line_of_up_to_a_thousand_characters_is_shown_whole_a_longer_one_by_head_and_tail() -> None:
    line = "".join(map(str, range(1000)))[:1001]
    assert errors.shortened(line[:1000]) == line[:1000]
    assert errors.shortened(line) == f"{line[:300]} … {line[-300:]}"


@pytest.mark.parametrize(("error", "code"), [(UserError("a"), 2), (TrainingFailed("a"), 3)])
def test_only_rank_0_says_what_went_wrong_and_every_rank_ends_with_the_code(
    error: Exception, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run() -> int:
        raise error

    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, said in (("0", "error: a\n"), ("1", "")):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("LOCAL_RANK", rank)
        with pytest.raises(SystemExit) as caught:
            errors.exit_with_one_line(run)
        assert caught.value.code == code
        assert capsys.readouterr().err == said


# The list and the help


def test_help_explains_every_key_with_type_and_default(run_launch: Callable[..., Any]) -> None:
    ended = run_launch("recipe=compact13k", "--help", launcher=(sys.executable, "-X", "importtime"))
    assert ended.returncode == 0
    assert not re.search(r"\| +torch$", ended.stderr, re.MULTILINE)
    rows = {line.split("  ")[0]: line for line in ended.stdout.splitlines()}
    for owner, values in ((Recipe, recipes.load("compact13k")), (RunOptions, RunOptions())):
        for name, key in keys_of(owner).items():
            cells = [cell.strip() for cell in re.split(r" {2,}", rows[name].strip())]
            default = getattr(values, name)
            assert cells[1] == key.kind.replace("|", " | ")
            assert cells[2:-1] == ([] if default is None else [cli.spell(default)])
            assert cells[-1].startswith(key.description)
            if key.needs:
                assert f"{key.needs.key}={key.needs.values[0]}" in cells[-1]


def test_without_words_the_recipes_are_listed(run_launch: Callable[..., Any]) -> None:
    ended = run_launch()
    assert (ended.returncode, ended.stderr) == (0, "")
    rows = {line.split()[0]: line for line in ended.stdout.splitlines() if line.strip()}
    for name in recipes.names():
        recipe = recipes.load(name)
        exact = [claim for claim in recipe.claims if (claim.metric, claim.relation) == ("parameters", "=")]
        accuracy = [claim for claim in recipe.claims if claim.metric == "accuracy"]
        for shown in (str(recipe.epochs), *(claim.documented for claim in (*exact, *accuracy[:1]))):
            assert shown in rows[name]
        if recipe.measured:
            assert f"{recipe.measured.accuracy:.2f}" in rows[name]


@pytest.mark.parametrize("rank", ["0", "1"])
def test_under_a_launcher_only_rank_0_lists(run_launch: Callable[..., Any], rank: str) -> None:
    ended = run_launch(env={"RANK": rank, "WORLD_SIZE": "2", "LOCAL_RANK": rank})
    assert (ended.returncode, bool(ended.stdout)) == (0, rank == "0")


@pytest.mark.parametrize("rank", ["0", "1"])
def test_processes_inside_a_launcher_are_refused(
    rank: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import launch  # which takes signals as a process's first file may

    for name, value in {"RANK": rank, "WORLD_SIZE": "4", "LOCAL_RANK": rank}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["launch.py", "recipe=onepoch", "processes=2", "dataset=synthetic"])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        errors.exit_with_one_line(launch.main)
    assert ended.value.code == 2
    said = (
        "error: processes=2: a launcher already started this job with 4. "
        "Leave processes out, and give the number to the launcher\n"
    )
    assert capsys.readouterr().err == (said if rank == "0" else "")
    assert not files_below(tmp_path)


def test_a_word_that_is_no_text_is_answered_too(clean_environment: dict[str, str], root: Path) -> None:
    ended = subprocess.run(
        [os.fsencode(sys.executable), b"launch.py", b"recipe=onepoch", b"ep\xff=1\n2\x1b[31m"],
        cwd=root,
        env=clean_environment,
        capture_output=True,
        timeout=60,
    )
    assert ended.returncode == 2
    assert ended.stderr.startswith(b"error: ") and ended.stderr.count(b"\n") == 1
