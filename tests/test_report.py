"""What the user sees: plain lines in a pipe, nothing broken in a narrow terminal, honest verdicts beside the claims."""

import io
import re
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from jobs import Launch, Run, a_run
from rich.console import Console

import recipes
from mnist_accel.console import report
from mnist_accel.recipe import Claim
from mnist_accel.runs.result import ClaimResult, RunResult, compare, compared, holds
from mnist_accel.training.state import EpochStats, Positive, StepInfo

ESCAPE = re.compile(r"\x1b(\[[0-9;?]*[ -/]*[@-~]|\][^\x07]*\x07|.)")
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f]")
Terminal = Callable[..., tuple[int, str]]


def an_epoch(epoch: int, accuracy: float, test_loss: float = 0.1) -> EpochStats:
    return EpochStats(
        epoch=epoch,
        steps=10,
        images=60_000,
        lr=0.1,
        train_loss=0.2,
        test_loss=test_loss,
        accuracy=accuracy,
        correct=round(100 * accuracy),
        total=10_000,
        positive=None,
        train_seconds=3.0,
        eval_seconds=0.5,
    )


def a_result(**changes: Any) -> RunResult:
    whole: dict[str, Any] = {
        "status": "finished",
        "recipe": "efficient25k",
        "model": "efficient25k",
        "params": 8_762,
        "dataset": "mnist",
        "dataset_reason": "a test",
        "train_images": 60_000,
        "test_images": 10_000,
        "epochs": 2,
        "batch_size": 128,
        "optimizer_steps": 20,
        "seed": 0,
        "device": "cpu",
        "world_size": 1,
        "threads": 1,
        "precision": "fp32",
        "accuracy": 98.13,
        "correct": 9_813,
        "total": 10_000,
        "train_loss": 0.2,
        "test_loss": 0.0601,
        "positive": None,
        "train_seconds": 6.25,
        "eval_seconds": 1.0,
        "total_seconds": 9.0,
        "images_per_second": 20_000.0,
        "claims": [],
        "dry_run": False,
        "command": [],
        "history": [an_epoch(1, 97.0, 0.2), an_epoch(2, 98.13, 0.0601)],
        "versions": {},
    }
    return RunResult(**{**whole, **changes})


def printed(capsys: pytest.CaptureFixture[str], result: RunResult) -> list[str]:
    report.RunReport(report.make_console()).on_end(result)
    return [line.rstrip() for line in capsys.readouterr().out.splitlines() if line.strip()]


# Documented beside this run


@pytest.mark.parametrize(
    ("relation", "below", "equal", "above"),
    [
        ("=", False, True, False),
        ("<", True, False, False),
        ("<=", True, True, False),
        (">", False, False, True),
        (">=", False, True, True),
    ],
)
def test_a_claim_is_met_as_its_relation_says(relation: Any, below: bool, equal: bool, above: bool) -> None:
    claim = Claim(metric="accuracy", relation=relation, value=98.13)
    assert [holds(measured, claim) for measured in (98.12, 98.13, 98.14)] == [below, equal, above]


def test_the_last_bit_of_a_division_decides_nothing() -> None:
    claim = Claim(metric="accuracy", relation=">=", value=98.13)
    assert holds(98.13 - 1e-12, claim) and not holds(98.12, claim)
    for correct in range(9_000, 10_001):
        exact = Claim(metric="accuracy", relation="=", value=correct / 100)
        assert holds(100 * correct / 10_000, exact)


@pytest.mark.parametrize(
    ("claim", "measured"),
    [
        (Claim(metric="parameters", relation="<", value=25_000), 8_762),
        (Claim(metric="train_seconds", relation="<=", value=20), 6.25),
        (Claim(metric="accuracy", relation=">=", value=98), 98.13),
        (Claim(metric="accuracy", relation=">=", value=98, epoch=1), 97.0),
        (Claim(metric="accuracy", relation=">=", value=98, epoch=2), 98.13),
        (Claim(metric="accuracy", relation=">=", value=98, epoch=3), None),
        (Claim(metric="test_loss", relation="<=", value=0.1), 0.0601),
        (Claim(metric="test_loss", relation="<=", value=0.1, epoch=1), 0.2),
    ],
)
def test_what_is_measured_is_the_figure_and_the_epoch_that_the_claim_names(
    claim: Claim, measured: float | None
) -> None:
    judged_claim = compare(claim, a_result(), comparable=True)
    assert (judged_claim.name, judged_claim.documented) == (claim.label, claim.documented)
    assert judged_claim.measured == measured
    assert judged_claim.met is (None if measured is None else holds(measured, claim))


def test_a_time_on_other_hardware_is_not_held_against_this_run() -> None:
    recipe = recipes.load("efficient25k")
    on_cpu = compared(a_result(), recipe, comparable=True, device_type="cpu").claims
    for claim, found in zip(recipe.claims, on_cpu, strict=True):
        assert (found.met is None) == (claim.device == "cuda")


def test_without_mnist_only_the_parameters_are_judged() -> None:
    recipe = recipes.load("efficient25k")
    for claim, found in zip(
        recipe.claims, compared(a_result(), recipe, comparable=False, device_type="cpu").claims, strict=True
    ):
        assert found.met is (True if claim.metric == "parameters" else None)


# The closing table


def test_the_table_shows_pass_fail_and_neither(capsys: pytest.CaptureFixture[str]) -> None:
    claims = [
        ClaimResult("parameters", "8,762", 8762, True),
        ClaimResult("accuracy %", "≥ 99.4", 98.13, False),
        ClaimResult("training seconds on a GPU", "≤ 5", 6.25, None),
        ClaimResult("test loss", "≤ 0.0186", 0.0601, False),
        ClaimResult("accuracy % at epoch 8", "≥ 99.44", None, None),
    ]
    lines = printed(capsys, a_result(claims=claims))
    rows = [re.split(r" {2,}", line.strip()) for line in lines]
    assert ["documented", "this run"] in rows
    assert ["parameters", "8,762", "8,762", "pass"] in rows
    assert ["accuracy %", "≥ 99.4", "98.13", "fail"] in rows
    assert ["training seconds on a GPU", "≤ 5", "6.25", "-"] in rows
    assert ["test loss", "≤ 0.0186", "0.0601", "fail"] in rows
    assert ["accuracy % at epoch 8", "≥ 99.44", "-"] in rows
    assert "accuracy  98.13 % (9,813 of 10,000 test images)" in lines
    assert "time      training 6.25 s, evaluation 1.00 s, all in all 9.00 s" in lines
    assert not any("ot compared" in line for line in lines)


@pytest.mark.parametrize("name", ["onepoch", "efficient25k", "sub20k", "compact13k", "is3"])
@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"dataset": "synthetic"}, "those are for MNIST, this run used synthetic digits"),
        ({"dry_run": True}, "A dry run is not compared"),
        ({}, "the recipe's settings were changed"),
    ],
)
def test_a_run_that_cannot_be_compared_says_why(
    capsys: pytest.CaptureFixture[str], name: str, changes: dict[str, Any], why: str
) -> None:
    recipe = recipes.load(name)
    result = compared(a_result(**changes), recipe, comparable=False, device_type="cpu")
    assert sum(why in line for line in printed(capsys, result)) == 1


def test_a_small_error_stays_visible_in_what_was_measured(capsys: pytest.CaptureFixture[str]) -> None:
    """is3 documents a loss of 3.96e-5; four decimals would print 0.0000."""
    claim = Claim(metric="test_loss", relation="<=", value=3.96e-5)
    result = a_result(test_loss=8.12e-5, claims=[compare(claim, a_result(test_loss=8.12e-5), True)])
    assert any(re.search(r"8\.12?e-0?5|0\.00008", line) for line in printed(capsys, result))


def test_a_binary_run_shows_precision_recall_and_f1(capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(capsys, a_result(positive=Positive(precision=99.5, recall=98.25, f1=98.87)))
    assert "of yes    precision 99.50 %, recall 98.25 %, F1 98.87 %" in lines


def test_an_epoch_is_one_line_with_its_figures(capsys: pytest.CaptureFixture[str]) -> None:
    shown = report.RunReport(report.make_console())
    shown.total_epochs = 20
    shown.on_epoch(an_epoch(3, 98.13))
    assert capsys.readouterr().out == ("epoch 3/20  loss 0.2000  test 98.13 %, loss 0.1000  3.00 s  20,000 img/s\n")


@pytest.mark.parametrize(("columns", "lines"), [(80, 1), (60, 2), (40, 3)])
def test_an_epoch_breaks_between_two_figures_only(capsys: pytest.CaptureFixture[str], columns: int, lines: int) -> None:
    shown = report.RunReport(report.make_console(), banner=False)
    shown.console.width = columns
    shown.on_start(a_start(recipe=replace(recipes.load("is3"), validation=5_000, epochs=100), dry_run=False))
    shown.on_epoch(replace(an_epoch(100, 98.13), train_seconds=22.78))
    said = capsys.readouterr().out.splitlines()
    assert len(said) == lines and max(map(len, said)) <= columns
    figures = ["epoch 100/100", "loss 0.2000", "held-out 98.13 %, loss 0.1000", "22.78 s", "2,634 img/s"]
    assert re.split(r" {2,}", "  ".join(line.strip() for line in said)) == figures


def test_held_out_images_are_never_called_the_test_set(capsys: pytest.CaptureFixture[str]) -> None:
    shown = report.RunReport(report.make_console())
    shown.on_start(a_start(recipe=replace(recipes.load("is3"), validation=5_000), changed=("validation",)))
    shown.on_epoch(an_epoch(1, 98.13))
    shown.on_end(a_result(correct=4_907, total=5_000))
    said = capsys.readouterr().out
    assert "images    55,000 to train, 5,000 held out, fed from host memory\n" in said
    assert "held-out 98.13 %, loss 0.1000" in said and "(4,907 of 5,000 held-out images)" in said
    assert "test" not in said.replace("a test", "")


def test_a_session_that_goes_on_does_not_call_its_own_time_the_whole(capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(capsys, a_result(total_seconds=2.0, resumed_from="runs/x/checkpoints/y.safetensors"))
    assert "time      training 6.25 s, evaluation 1.00 s, this session alone 2.00 s" in lines


def a_start(**changes: Any) -> Any:
    recipe = replace(recipes.load("compact13k"), lr=0.5)
    runtime = SimpleNamespace(
        device_name="cpu", world_size=2, threads=3, precision="bf16", backend="gloo", config="", ignored="", restart=""
    )
    whole = {
        "recipe": recipe,
        "params": 13_808,
        "runtime": runtime,
        "dataset": "synthetic",
        "dataset_reason": "MNIST could not be downloaded: a [b]reason[/b]",
        "train_images": 55_000,
        "test_images": 5_000,
        "resident": False,
        "folder": "runs/x",
        "dry_run": True,
        "changed": ("lr",),
        "resumed_from": None,
        "found_nothing": False,
    }
    return SimpleNamespace(**{**whole, **changes})


def test_the_banner_tells_what_is_in_effect_and_why(capsys: pytest.CaptureFixture[str]) -> None:
    report.RunReport(report.make_console()).on_start(a_start())
    said = capsys.readouterr().out.splitlines()
    assert said == [
        "recipe    compact13k with lr=0.5",
        "model     compact13k, 13,808 parameters",
        "training  20 epochs, batch 64, sgd lr 0.5 constant, seed 0",
        "device    cpu × 2 processes over gloo, 3 threads each, bf16",
        "data      synthetic: MNIST could not be downloaded: a [b]reason[/b]",
        "images    55,000 to train, 5,000 to test, fed from host memory",
        "run       runs/x",
        "dry run   one step and one evaluation batch; the figures mean nothing",
    ]


@pytest.mark.parametrize(("pixels", "said"), [(1, "1 pixel"), (2, "2 pixels")])
def test_whoever_shows_a_figure_tells_of_shifts(pixels: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = replace(recipes.load("onepoch"), test_shifts=pixels)
    report.RunReport(report.make_console()).on_start(a_start(recipe=recipe, changed=()))
    assert f"5,000 to test, scored with shifts of {said}, fed from" in capsys.readouterr().out
    measured = recipe.measured
    assert measured is not None
    report.show_recipes(report.make_console(), [(recipe, 9606)])
    assert f"{measured.accuracy:.2f} ({measured.seeds} seeds, scored with shifts of {said})" in capsys.readouterr().out


def test_the_banner_tells_where_it_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    report.RunReport(report.make_console()).on_start(a_start(resumed_from="runs/x/checkpoints/y.safetensors"))
    assert "resumed   runs/x/checkpoints/y.safetensors" in capsys.readouterr().out.splitlines()


def test_the_bar_moves_five_times_a_second_and_tells_how_fast_images_went_by(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(report, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    shown = report.RunReport(Console(force_terminal=True, file=io.StringIO(), _environ={}))
    shown.on_start(a_start(dry_run=False))
    assert shown.progress is not None
    told = []
    for step, images in enumerate((100, 100, 300, 300, 100), start=1):
        clock.now += 0.125
        shown.on_step(StepInfo(epoch=2, step=step, steps_per_epoch=5, images=images, loss=0.5))
        (task,) = shown.progress.tasks
        told.append((task.description, task.completed, task.total, task.fields["figures"]))
    shown.stop()
    moved = [
        ("epoch 2/20", 5 + step, 100, f"loss 0.5000 · {speed}/s") for step, speed in ((2, 800), (4, "2,400"), (5, 800))
    ]
    assert told == [("epoch 1", 0, None, ""), moved[0], moved[0], moved[1], moved[2]]


def test_stopping_twice_or_before_the_start_is_harmless(capsys: pytest.CaptureFixture[str]) -> None:
    shown = report.RunReport(report.make_console())
    shown.stop()
    shown.stop()
    assert capsys.readouterr().out == ""


# Pipes


def test_in_a_pipe_there_are_plain_lines_only(dry_run: Run) -> None:
    assert (dry_run.code, dry_run.err) == (0, "")
    assert not CONTROL.search(dry_run.out)
    lines = dry_run.out.splitlines()
    assert max(map(len, lines)) < 200, "a line was padded"
    starts = [line.split()[0] for line in lines if line.strip()]
    for fact in ("recipe", "model", "training", "device", "data", "images", "run", "dry", "epoch", "accuracy", "time"):
        assert fact in starts
    assert sum(line.startswith("epoch 1/1  loss ") for line in lines) == 1


def test_an_output_that_knows_ascii_only_is_written_to_all_the_same(run_launch: Launch) -> None:
    ended = run_launch(env={"PYTHONIOENCODING": "ascii"})
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "? 98.13" in ended.stdout  # ≥


def test_a_synthetic_dry_run_says_that_it_is_not_compared_and_judges_the_parameters(dry_run: Run) -> None:
    rows = [re.split(r" {2,}", line.strip()) for line in dry_run.out.splitlines()]
    assert ["parameters", "8,762", "8,762", "pass"] in rows
    assert [row[0] for row in rows if row[-1] == "fail"] == []
    assert "A dry run is not compared with the documented figures." in dry_run.out


def test_only_rank_0_prints(two_processes: Run) -> None:
    assert (two_processes.code, two_processes.err) == (0, "")
    starts = [line.split()[0] for line in two_processes.out.splitlines() if line.strip()]
    for fact in ("recipe", "model", "device", "run", "epoch", "time"):
        assert starts.count(fact) == 1, fact
    assert "device    cpu × 2 processes over gloo, 1 thread each, fp32" in two_processes.out


# Terminals


def lines_on_screen(sent: str) -> list[str]:
    """Every line that was ever shown, the ones of the progress bar that were wiped again as well."""
    return re.split(r"[\r\n]", ESCAPE.sub("", sent))


def test_at_forty_columns_nothing_is_broken(run_in_terminal: Terminal, tmp_path_factory: Any) -> None:
    out = tmp_path_factory.mktemp("runs") / "narrow"
    words = ("recipe=efficient25k", "dry_run=true", "dataset=synthetic", "threads=1", f"out={out}")
    code, sent = run_in_terminal(*words, columns=40)
    assert code == 0 and "Traceback" not in sent
    shown = lines_on_screen(sent)
    assert max(map(len, shown)) <= 40
    for word in ("8,762 parameters", "documented", "this run", "parameters ", "≥ 95.29", "pass", "accuracy"):
        assert any(word in line for line in shown), f"{word} is cut in two"
    # Wrapped, but all there.
    assert "Adryrunisnotcomparedwiththedocumentedfigures." in re.sub(r"\s+", "", "".join(shown))
    assert str(out) in re.sub(r"\s+", "", "".join(shown))
    assert COLOUR.search(sent) and "\x1b[?25l" in sent, "the bar and the colours of a terminal"
    assert sent.rindex("\x1b[?25h") > sent.rindex("\x1b[?25l"), "the cursor is back"


def test_no_color_leaves_a_terminal_without_colours(run_in_terminal: Terminal, tmp_path_factory: Any) -> None:
    out = tmp_path_factory.mktemp("runs") / "grey"
    words = ("recipe=efficient25k", "dry_run=true", "dataset=synthetic", "threads=1", f"out={out}")
    code, sent = run_in_terminal(*words, columns=100, env={"NO_COLOR": "1"})
    assert code == 0 and "pass" in sent
    codes = {code for found in COLOUR.findall(sent) for code in found[2:-1].split(";")}
    # Bold and dim are no colours: https://no-color.org
    assert codes <= {"", "0", "1", "2", "22"}, codes


@pytest.mark.parametrize("words", [(), ("--help",), ("recipe=is3", "--help"), ("recipe=onepoc",)])
def test_list_help_and_mistakes_fit_into_forty_columns(run_in_terminal: Terminal, words: tuple[str, ...]) -> None:
    code, sent = run_in_terminal(*words, columns=40)
    assert code == (2 if words == ("recipe=onepoc",) else 0)
    assert "Traceback" not in sent
    if code:  # an error is one line, however long
        assert sent.count("\n") == 1
        return
    shown = lines_on_screen(sent)
    assert max(map(len, shown)) <= 40
    in_list = (*recipes.names(), "13,808", "144,833", "99.46", "parameters", "epochs")
    in_help = ("weight_decay", "positive_class", "label_smoothing", "resident_mb", "cross_entropy", "0.3081")
    for word in in_help if words else in_list:
        assert any(word in line for line in shown), f"{word} is cut in two"


# Wishes that came to nothing


@pytest.fixture(scope="module")
def told(run_launch: Launch, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A short run to which a launcher has said what it cannot have, and which finds nothing to go on with."""
    words = ("recipe=onepoch", "batch_size=1000", "validation=5000", "threads=1", "resume=auto")
    env = {"ACCELERATE_MIXED_PRECISION": "no", "ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"}
    return a_run(run_launch, tmp_path_factory.mktemp("runs") / "told", *words, env=env)


@pytest.mark.parametrize(
    "line",
    [
        "launcher  dynamo_backend=inductor has no effect: this program compiles nothing",
        "resumed   nothing: no unfinished run of onepoch was found; it starts anew",
        "images    55,000 to train, 5,000 held out",
    ],
)
def test_a_wish_that_came_to_nothing_is_told_in_one_line(told: Run, line: str) -> None:
    assert (told.code, told.err) == (0, "")
    assert told.out.splitlines().count(line) == 1


def test_a_run_that_was_asked_for_nothing_else_does_not_tell_of_it(dry_run: Run) -> None:
    assert "launcher" not in dry_run.out and "resumed" not in dry_run.out


def test_the_result_of_held_out_images_does_not_speak_of_a_test(told: Run) -> None:
    closing = told.out[told.out.index("epoch 1/1") : told.out.index("\nreport ")]
    assert "held-out" in closing and "test" not in closing
