"""Prints what a trained network is worth, and what it says."""

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from mnist_accel.console.report import show_table, simple_table
from mnist_accel.errors import printable
from mnist_accel.inference.prediction import Answer, Prediction
from mnist_accel.runs.result import RunResult
from mnist_accel.training.loop import Score


def show_predictions(console: Console, predictions: Sequence[Prediction | Answer]) -> None:
    binary = isinstance(predictions[0], Answer)
    last = f"a {predictions[0].positive_class}?" if isinstance(predictions[0], Answer) else "digit"
    table = simple_table("file", last, "probability", *([] if binary else ["runner-up"]))
    for said in predictions:
        file = Text(printable(said.file))
        if isinstance(said, Answer):
            table.add_row(file, said.answer, percent(said.probability))
        else:
            runner_up = f"{said.runner_up} ({percent(said.runner_up_probability)})"
            table.add_row(file, str(said.digit), percent(said.probability), runner_up)
    show_table(console, table)


def percent(probability: float) -> str:
    return f"{100 * probability:.2f} %"


def show_score(console: Console, score: Score, then: RunResult | None) -> None:
    """``then`` is what the run wrote down, if it did."""
    table = simple_table("", "now", *(["result.json"] if then else []))
    rows = [
        ("accuracy %", f"{score.accuracy:.2f}", then and shown(then.accuracy, 2)),
        ("correct", f"{score.correct:,} of {score.total:,}", then and counted(then)),
        ("loss", f"{score.loss:.6f}", then and shown(then.test_loss, 6)),
    ]
    if score.positive:
        f1 = shown(then.positive.f1, 2) if then and then.positive else None
        rows.append(("F1 %", f"{score.positive.f1:.2f}", f1))
    for label, now, before in rows:
        table.add_row(label, now, *([before or "-"] if then else []))
    console.print()
    show_table(console, table)
    if then and then.total != score.total:
        console.print("\nNot the same images: " + ("the run was a dry one." if then.dry_run else "other data."))


def shown(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def counted(then: RunResult) -> str:
    return "-" if then.correct is None or then.total is None else f"{then.correct:,} of {then.total:,}"
