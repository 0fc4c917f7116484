"""From the return key to a scored network: ours, the stock script, and the fastest network published for one epoch.

Each side is a process of its own, in turn, and takes the pair's number as its seed. The whole time is the clock of
whoever starts it: it begins before the process is there and stops when it is gone, so that importing, reading the
images, training, scoring and, on our side, writing the run down with its report are all in it.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import recipes
from benchmarks import published_fast
from benchmarks.children import ROOT, run_python
from benchmarks.compare import plural, with_fastest_workers
from benchmarks.sides import stock_folder
from benchmarks.turns import Comparison, Ratio, Reading, Say, divided, in_turn_with_quality
from mnist_accel.data.dataset import Dataset
from mnist_accel.machine.runtime import Runtime
from mnist_accel.recipe import Recipe

STOCK_RECIPE = "onepoch"  # what the stock script trains, whichever recipe is ours
THEIR_SCRIPT = str(ROOT / "benchmarks" / "their_script.py")
LAUNCH = str(ROOT / "launch.py")
PUBLISHED = "published net, 215,194 parameters"
QUALITY = "accuracy % after it"


@dataclass(frozen=True)
class Outcome:
    whole_seconds: float
    train_seconds: float
    accuracy: float


RunWithSeed = Callable[[int], Outcome]


def time_to_99(
    recipe: Recipe,
    runtime: Runtime,
    data: Dataset,
    *,
    words: Sequence[str],
    workers: int | None,
    pairs: int,
    say: Say,
) -> list[Comparison]:
    """The whole time, and the training in it; ``words`` are keys of launch.py."""
    with stock_folder(data) as folder:
        workers, _ = with_fastest_workers(folder, recipes.load(STOCK_RECIPE), runtime, workers, say)
        published_fast.store(data, folder)
        sides: dict[str, RunWithSeed] = {
            f"ours, {recipe.name}": partial(our_outcome, recipe, words),
            f"stock script, {STOCK_RECIPE}, {plural(workers)}": partial(
                their_outcome, runtime, folder, "stock", (STOCK_RECIPE, str(workers))
            ),
            PUBLISHED: partial(their_outcome, runtime, folder, "published", ()),
        }
        our_outcome(recipe, [*words, "dry_run=true"], 0)  # files into memory, bytecode; theirs are there by now
        outcomes = measured_in_turn(sides, pairs, say)
    training = {name: [outcome.train_seconds for outcome in side] for name, side in outcomes.items()}
    whole = {name: [outcome.whole_seconds for outcome in side] for name, side in outcomes.items()}
    accuracies = {name: [outcome.accuracy for outcome in side] for name, side in outcomes.items()}
    return [
        Comparison(label, "s", values, ratios_of(values), QUALITY, accuracies)
        for label, values in (("from the return key to the result", whole), ("its training alone", training))
    ]


def measured_in_turn(sides: dict[str, RunWithSeed], pairs: int, say: Say) -> dict[str, list[Outcome]]:
    outcomes: dict[str, list[Outcome]] = {name: [] for name in sides}

    def measure(name: str) -> Reading:
        outcomes[name].append(sides[name](len(outcomes[name])))
        return Reading(outcomes[name][-1].whole_seconds, outcomes[name][-1].accuracy)

    in_turn_with_quality({name: partial(measure, name) for name in sides}, pairs, "s", say)
    return outcomes


def ratios_of(values: dict[str, list[float]]) -> list[Ratio]:
    ours, *others = values
    return [Ratio(f"{short(name)} / ours", divided(values[name], values[ours])) for name in others]


def short(side: str) -> str:
    return side.partition(",")[0]


def our_outcome(recipe: Recipe, words: Sequence[str], seed: int) -> Outcome:
    with TemporaryDirectory(prefix="mnist_accel-") as folder:
        started = time.perf_counter()
        run_python("launch.py", LAUNCH, f"recipe={recipe.name}", f"seed={seed}", f"out={folder}", *words)
        seconds = time.perf_counter() - started
        result = json.loads(Path(folder, "result.json").read_text())
    return Outcome(seconds, result["train_seconds"], result["accuracy"])


def their_outcome(runtime: Runtime, folder: str, which: str, more: Sequence[str], seed: int) -> Outcome:
    words = (which, folder, str(seed), runtime.device.type, str(runtime.threads), *more)
    started = time.perf_counter()
    printed = run_python(f"{which} script", THEIR_SCRIPT, *words)
    seconds = time.perf_counter() - started
    said = json.loads(printed.splitlines()[-1])
    return Outcome(seconds, said["train_seconds"], said["accuracy"])
