"""Ours and theirs in turn, in one process: what ``python -m mnist_accel bench`` measures.

A B A B …, because a machine with noisy neighbours is another machine a minute later: each ratio is taken
within a pair, and the median of the ratios is what counts. Both sides run a few steps before the first clock
starts.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from math import ceil

from benchmarks.sides import (
    bare_seconds,
    beginning,
    our_seconds,
    our_speed,
    stock_folder,
    stock_loader,
    stock_seconds,
    stock_speed,
)
from mnist_accel.data.dataset import Dataset
from mnist_accel.recipe import Recipe
from mnist_accel.runtime import Runtime

WARM_UP_STEPS = 10
TRIAL_STEPS = 100
WORKERS = (0, 2)
EPOCH_TARGETS = {"onepoch": 3.5, "efficient25k": 3.0}
ENGINE_TARGET = 1.10

Say = Callable[[str], None]


@dataclass(frozen=True)
class Comparison:
    """What each side took or delivered in every pair. The target is for two CPU cores; None elsewhere."""

    label: str
    unit: str
    sides: dict[str, list[float]]
    ratio_of: str
    ratios: list[float]
    target: float | None
    at_most: bool = False


def in_turn(
    sides: Mapping[str, Callable[[], float]],
    pairs: int,
    unit: str,
    say: Say,
) -> dict[str, list[float]]:
    """Every side once, ``pairs`` times over."""
    values: dict[str, list[float]] = {name: [] for name in sides}
    for pair in range(pairs):
        for name, measure in sides.items():
            values[name].append(measure())
        figures = ", ".join(f"{name} {shown(values[name][-1])} {unit}" for name in sides)
        say(f"{pair + 1}/{pairs}: {figures}")
    return values


def shown(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def loader(
    recipe: Recipe,
    runtime: Runtime,
    data: Dataset,
    *,
    pairs: int,
    images: int,
    say: Say,
) -> list[Comparison]:
    """Images a second: our batches against ``images`` from a DataLoader without and with workers."""
    plain = replace(recipe, rotation=0.0, translation=0.0, scale=0.0, shear=0.0)
    warped = replace(plain, rotation=10.0, translation=0.1)
    comparisons = []
    with stock_folder(data) as folder:
        for label, target, chosen in (
            ("no augmentation", 100, plain),
            ("rotation ±10°, translation ±10 %", 20, warped),
        ):
            say(label)
            sides: dict[str, Callable[[], float]] = {"ours": partial(our_speed, chosen, runtime, data)}
            for workers in WORKERS:
                batches = stock_loader(folder, chosen, workers)
                stock_speed(runtime, batches, WARM_UP_STEPS)
                num_batches = ceil(images / chosen.batch_size)
                sides[f"DataLoader, {workers} workers"] = partial(stock_speed, runtime, batches, num_batches)
            our_speed(chosen, runtime, data)
            values = in_turn(sides, pairs, "images/s", say)
            stock_values = [values[name] for name in sides if name != "ours"]
            best = [max(speeds) for speeds in zip(*stock_values, strict=True)]
            ratios = divided(values["ours"], best)
            aim = on_cpu(runtime, target)
            comparisons.append(Comparison(label, "images/s", values, "ours / faster DataLoader", ratios, aim))
    return comparisons


def epoch(
    recipe: Recipe,
    runtime: Runtime,
    data: Dataset,
    *,
    pairs: int,
    steps: int,
    workers: int | None,
    say: Say,
) -> list[Comparison]:
    """Seconds of the first ``steps`` (0: all) of an epoch, ours against the stock script."""
    with stock_folder(data) as folder:
        loaders = {n: stock_loader(folder, recipe, n) for n in (WORKERS if workers is None else (workers,))}
        for batches in loaders.values():
            stock_seconds(recipe, runtime, batches, WARM_UP_STEPS)
        if workers is None:
            trial = {n: stock_seconds(recipe, runtime, loaders[n], TRIAL_STEPS) for n in WORKERS}
            workers = min(trial, key=lambda n: trial[n])
            figures = ", ".join(f"{n} workers {trial[n]:.3g} s" for n in WORKERS)
            say(f"stock script on trial, {TRIAL_STEPS} steps: {figures}")
        our_seconds(recipe, runtime, beginning(recipe, data, WARM_UP_STEPS))
        name = f"stock script, {workers} workers"
        sides = {
            "ours": partial(our_seconds, recipe, runtime, beginning(recipe, data, steps)),
            name: partial(stock_seconds, recipe, runtime, loaders[workers], steps),
        }
        values = in_turn(sides, pairs, "s", say)
    ratios = divided(values[name], values["ours"])
    target = on_cpu(runtime, EPOCH_TARGETS.get(recipe.name))
    return [Comparison(how_long(recipe, data, steps), "s", values, "stock script / ours", ratios, target)]


def engine(
    recipe: Recipe,
    runtime: Runtime,
    data: Dataset,
    *,
    pairs: int,
    steps: int,
    say: Say,
) -> list[Comparison]:
    """Seconds of the first ``steps`` (0: all) of an epoch, our engine against a bare loop."""
    # The bare loop has neither, and they would be work, not overhead.
    recipe = replace(recipe, ema=0.0, clip_norm=0.0)
    for measure in (our_seconds, bare_seconds):
        measure(recipe, runtime, beginning(recipe, data, WARM_UP_STEPS))
    part = beginning(recipe, data, steps)
    sides = {
        "ours": partial(our_seconds, recipe, runtime, part),
        "bare loop": partial(bare_seconds, recipe, runtime, part),
    }
    values = in_turn(sides, pairs, "s", say)
    ratios = divided(values["ours"], values["bare loop"])
    label, target = how_long(recipe, data, steps), on_cpu(runtime, ENGINE_TARGET)
    return [Comparison(label, "s", values, "ours / bare loop", ratios, target, at_most=True)]


def how_long(recipe: Recipe, data: Dataset, steps: int) -> str:
    steps_per_epoch = ceil(len(data.train_labels) / recipe.batch_size)
    if 0 < steps < steps_per_epoch:
        return f"first {steps} of an epoch's {steps_per_epoch} steps"
    return f"one epoch of {steps_per_epoch} steps"


def on_cpu(runtime: Runtime, target: float | None) -> float | None:
    return target if runtime.device.type == "cpu" else None


def divided(above: list[float], below: list[float]) -> list[float]:
    return [a / b for a, b in zip(above, below, strict=True)]
