"""Learning curves of one run, and of several over each other."""

from collections.abc import Callable, Sequence
from math import ceil
from typing import TypedDict

from mnist_accel.pages.charts import Series, line_chart
from mnist_accel.pages.page import Html, tag
from mnist_accel.runs.record import RunRecord
from mnist_accel.training.optim import lr_factor
from mnist_accel.training.state import EpochStats


class Axes(TypedDict):
    x_label: str
    x_format: Callable[[float], str]
    whole_x: bool


POINTS = 200  # of the planned learning rate
MOST_EPOCHS = 1000


def of_one(record: RunRecord) -> Html:
    """Loss and accuracy, in training and on the images that score it, and the learning rate."""
    history, scored = thinned(record.result.history), scored_on(record)
    epochs = [float(stats.epoch) for stats in history]
    losses = [
        Series("training", epochs, [stats.train_loss for stats in history], 2, dashed=True),
        Series(scored, epochs, [stats.test_loss for stats in history], 1),
    ]
    accuracies = [Series(scored, epochs, [stats.accuracy for stats in history], 1)]
    trained = [stats.train_accuracy for stats in history]
    if any(value is not None for value in trained):
        accuracies.insert(0, Series("training", epochs, trained, 2, dashed=True))
    rate = line_chart("Learning rate", [learning_rate(record)], from_zero=True, **BY_EPOCH)
    if len(history) == 1:  # one point is no curve
        return rate
    return charts(loss_chart("Loss", losses), line_chart("Accuracy, %", accuracies, y_format=percent, **BY_EPOCH), rate)


def of_several(records: Sequence[RunRecord], names: Sequence[str]) -> Html:
    def overlaid(pick: str) -> list[Series]:
        histories = [thinned(record.result.history) for record in records]
        return [
            Series(name, [float(stats.epoch) for stats in history], [getattr(stats, pick) for stats in history], number)
            for number, (name, history) in enumerate(zip(names, histories, strict=True), 1)
        ]

    rates = [learning_rate(record, name, n) for n, (name, record) in enumerate(zip(names, records, strict=True), 1)]
    return charts(
        line_chart("Accuracy, %", overlaid("accuracy"), y_format=percent, legend=False, **BY_EPOCH),
        loss_chart("Loss", overlaid("test_loss"), legend=False),
        line_chart("Training accuracy, %", overlaid("train_accuracy"), y_format=percent, legend=False, **BY_EPOCH),
        loss_chart("Training loss", overlaid("train_loss"), legend=False),
        line_chart("Learning rate", rates, from_zero=True, legend=False, **BY_EPOCH),
    )


def thinned(history: Sequence[EpochStats]) -> Sequence[EpochStats]:
    """At most ``MOST_EPOCHS`` or so of them, the last one included: a page of 100,000 would open nowhere."""
    every = ceil(len(history) / MOST_EPOCHS) or 1
    return [stats for index, stats in enumerate(history) if index % every == 0 or index == len(history) - 1]


def charts(*figures: object) -> Html:
    return tag("div", *figures, class_="charts")


def loss_chart(title: str, series: Sequence[Series], legend: bool = True) -> Html:
    """On a log scale where a linear one would show a flat line at its bottom."""
    values = [value for one in series for value in one.ys if value is not None]
    log = bool(values) and min(values) > 0 and max(values) > 20 * min(values)
    return line_chart(f"{title}{' (log scale)' if log else ''}", series, log_y=log, legend=legend, **BY_EPOCH)


def learning_rate(record: RunRecord, name: str = "", colour: int = 1) -> Series:
    """As its schedule moved it, step by step; as the history has it where the recipe is not known."""
    planned = schedule(record)
    history = thinned(record.result.history)
    xs, ys = planned or ([float(stats.epoch) for stats in history], [stats.lr for stats in history])
    return Series(name, xs, list(ys), colour)


def schedule(record: RunRecord) -> tuple[list[float], list[float]] | None:
    known, result = record.settings, record.result
    steps = ceil(result.train_images / result.batch_size) if result.batch_size > 0 else 0
    total = result.epochs * steps
    lr, name = known.get("lr"), known.get("schedule")
    shape = [known.get(key) for key in ("warmup", "step_epochs", "step_factor")]
    if total < 1 or name not in ("constant", "onecycle", "linear", "step") or not all(map(is_number, [lr, *shape])):
        return None
    warmup, step_epochs, step_factor = (float(value or 0) for value in shape)
    if not (0 <= warmup < 1 and step_epochs >= 1 and 0 < step_factor <= 1):
        return None
    every = max(1, total // POINTS)
    at = [*range(0, total - 1, every), total - 1]
    factors = [
        lr_factor(str(name), k, total, warmup=warmup, steps_per_drop=int(step_epochs) * steps, drop_factor=step_factor)
        for k in at
    ]
    xs = [k / steps for k in at[:-1]] + [float(result.epochs)]  # the last step is drawn where it ends
    return xs, [float(lr or 0) * factor for factor in factors]


def is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def scored_on(record: RunRecord) -> str:
    return "held-out" if record.settings.get("validation") else "test"


def percent(value: float) -> str:
    return f"{value:.4g}"


def whole(value: float) -> str:
    return f"{value:,.6g}"


BY_EPOCH: Axes = {"x_label": "epoch", "x_format": whole, "whole_x": True}
