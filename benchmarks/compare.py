"""Ours and theirs in turn, in one process: loader, epoch and engine of ``python -m mnist_accel bench``.

Both sides run a few steps before the first clock starts.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import count
from math import ceil
from typing import Any

from benchmarks.sides import (
    bare_seconds,
    batched_loader,
    beginning,
    loader_speed,
    our_seconds,
    our_speed,
    our_whole_epoch,
    stock_folder,
    stock_loader,
    stock_seconds,
    stock_whole_epoch,
)
from benchmarks.turns import Comparison, Measure, Ratio, Say, divided, in_turn, in_turn_with_quality
from mnist_accel.data.dataset import Dataset
from mnist_accel.machine.runtime import Runtime, usable_cores
from mnist_accel.recipe import Recipe

WARM_UP_STEPS = 10
TRIAL_STEPS = 100
# Of the DataLoader; more where the machine has the cores for them.
LOADER_WORKERS = (0, 1, 2, 4)
EPOCH_WORKERS = (0, 2)
MORE_WORKERS = (4, 8, 16, 32)
EPOCH_TARGETS = {"onepoch": 5.0, "efficient25k": 4.0, "sub20k": 1.5, "compact13k": 1.5}
ENGINE_TARGET = 1.10
BATCHED = "batched __getitems__"


def loader(
    recipe: Recipe,
    runtime: Runtime,
    data: Dataset,
    *,
    pairs: int,
    images: int,
    say: Say,
) -> list[Comparison]:
    """Images a second: our batches against ``images`` from torchvision's data set and from a batched one."""
    plain = replace(recipe, rotation=0.0, translation=0.0, scale=0.0, shear=0.0)
    warped = replace(plain, rotation=10.0, translation=0.1)
    num_batches = ceil(images / recipe.batch_size)
    comparisons = []
    with stock_folder(data) as folder:
        for label, target, chosen in (
            ("no augmentation", 100, plain),
            ("rotation ±10°, translation ±10 %", 20, warped),
        ):
            say(label)
            tried = workers_on_trial(LOADER_WORKERS)
            loaders = {f"DataLoader, {plural(n)}": stock_loader(folder, chosen, n) for n in tried}
            stock = list(loaders)
            loaders[BATCHED] = batched_loader(data, chosen, runtime)
            sides: dict[str, Measure] = {"ours": partial(our_speed, chosen, runtime, data)}
            for name, batches in loaders.items():
                loader_speed(runtime, batches, WARM_UP_STEPS)
                sides[name] = partial(loader_speed, runtime, batches, num_batches)
            our_speed(chosen, runtime, data)
            values = in_turn(sides, pairs, "images/s", say)
            fastest = [max(speeds) for speeds in zip(*(values[name] for name in stock), strict=True)]
            ratios = [
                Ratio("ours / fastest DataLoader", divided(values["ours"], fastest), on_cpu(runtime, target)),
                Ratio(f"ours / {BATCHED}", divided(values["ours"], values[BATCHED])),
            ]
            comparisons.append(Comparison(label, "images/s", values, ratios))
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
) -> Comparison:
    """Seconds of the first ``steps`` (0: all) of an epoch, ours against the stock script; after a whole one, which of
    them is right more often."""
    with stock_folder(data) as folder:
        workers, batches = with_fastest_workers(folder, recipe, runtime, workers, say)
        our_seconds(recipe, runtime, beginning(recipe, data, WARM_UP_STEPS))
        name = f"stock script, {plural(workers)}"
        sides: dict[str, Measure]
        if is_whole(recipe, data, steps):
            seeds = count()
            test_batches = stock_loader(folder, recipe, train=False)
            sides = {
                "ours": lambda: our_whole_epoch(replace(recipe, seed=next(seeds)), runtime, data),
                name: partial(stock_whole_epoch, recipe, runtime, batches, test_batches),
            }
        else:
            sides = {
                "ours": partial(our_seconds, recipe, runtime, beginning(recipe, data, steps)),
                name: partial(stock_seconds, recipe, runtime, batches, steps),
            }
        values, accuracies = in_turn_with_quality(sides, pairs, "s", say)
    # Two cores' targets, of whole epochs.
    target = on_cpu(runtime, EPOCH_TARGETS.get(recipe.name)) if runtime.threads == 2 and not steps else None
    ratio = Ratio("stock script / ours", divided(values[name], values["ours"]), target)
    return Comparison(how_long(recipe, data, steps), "s", values, [ratio], "accuracy % after it", accuracies)


def with_fastest_workers(
    folder: str, recipe: Recipe, runtime: Runtime, workers: int | None, say: Say
) -> tuple[int, Any]:
    """The stock script's number of workers, chosen by trial where ``workers`` is None, and its batches; all of it has
    run a few steps."""
    tried = workers_on_trial(EPOCH_WORKERS) if workers is None else [workers]
    loaders = {n: stock_loader(folder, recipe, n) for n in tried}
    for batches in loaders.values():
        stock_seconds(recipe, runtime, batches, WARM_UP_STEPS)
    if workers is None:
        trial = {n: stock_seconds(recipe, runtime, loaders[n], TRIAL_STEPS) for n in tried}
        workers = min(trial, key=lambda n: trial[n])
        figures = ", ".join(f"{plural(n)} {trial[n]:.3g} s" for n in tried)
        say(f"stock script on trial, {TRIAL_STEPS} steps: {figures}")
    return workers, loaders[workers]


def engine(
    recipe: Recipe,
    runtime: Runtime,
    data: Dataset,
    *,
    pairs: int,
    steps: int,
    say: Say,
) -> Comparison:
    """Seconds of the first ``steps`` (0: all) of an epoch, our engine against a bare loop."""
    # The bare loop has neither, and they would be work, not overhead.
    recipe = replace(recipe, ema=0.0, clip_norm=0.0)
    for measure in (our_seconds, bare_seconds):
        measure(recipe, runtime, beginning(recipe, data, WARM_UP_STEPS))
    part = beginning(recipe, data, steps)
    sides: dict[str, Measure] = {
        "ours": partial(our_seconds, recipe, runtime, part),
        "bare loop": partial(bare_seconds, recipe, runtime, part),
    }
    values = in_turn(sides, pairs, "s", say)
    ratios = divided(values["ours"], values["bare loop"])
    ratio = Ratio("ours / bare loop", ratios, on_cpu(runtime, ENGINE_TARGET), at_most=True)
    return Comparison(how_long(recipe, data, steps), "s", values, [ratio])


def workers_on_trial(always: Sequence[int]) -> list[int]:
    """``always``, and more up to the cores: the other side gets what serves it best."""
    return [*always, *(n for n in MORE_WORKERS if always[-1] < n <= usable_cores())]


def plural(workers: int) -> str:
    return "1 worker" if workers == 1 else f"{workers} workers"


def steps_of_epoch(recipe: Recipe, data: Dataset) -> int:
    return ceil(len(data.train_labels) / recipe.batch_size)


def is_whole(recipe: Recipe, data: Dataset, steps: int) -> bool:
    return steps == 0 or steps >= steps_of_epoch(recipe, data)


def how_long(recipe: Recipe, data: Dataset, steps: int) -> str:
    if is_whole(recipe, data, steps):
        return f"one epoch of {steps_of_epoch(recipe, data)} steps"
    return f"first {steps} of an epoch's {steps_of_epoch(recipe, data)} steps"


def on_cpu(runtime: Runtime, target: float | None) -> float | None:
    return target if runtime.device.type == "cpu" else None
