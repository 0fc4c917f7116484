"""What is measured in fresh processes: the first step from a cold start, and one precision against another."""

import json
import tempfile
import time
from collections.abc import Sequence
from functools import partial

import torch

from benchmarks.children import ROOT, run_python
from benchmarks.compare import how_long, on_cpu
from benchmarks.turns import Comparison, Measure, Ratio, Reading, Say, divided, in_turn, in_turn_with_quality
from mnist_accel.data.dataset import Dataset
from mnist_accel.machine.runtime import Runtime
from mnist_accel.recipe import Recipe

START_TARGET = 1.3
# Both sides end without Python's teardown, which is no part of starting.
BARE_IMPORTS = "import os, torch, accelerate; os._exit(0)"
FIRST_STEP = str(ROOT / "benchmarks" / "first_step.py")
ONE_PRECISION = str(ROOT / "benchmarks" / "one_precision.py")


def start(recipe: Recipe, runtime: Runtime, *, words: Sequence[str], pairs: int, say: Say) -> Comparison:
    """Seconds from before the process is there to its first optimizer step; ``words`` are keys of launch.py."""
    sides: dict[str, Measure] = {
        "first step of launch.py": partial(seconds_to_first_step, recipe, words),
        "import torch, accelerate": seconds_to_import,
    }
    for warm_up in sides.values():  # files into memory, bytecode, drawn digits
        warm_up()
    values = in_turn(sides, pairs, "s", say)
    ours, bare = values.values()
    ratio = Ratio("first step / imports", divided(ours, bare), on_cpu(runtime, START_TARGET), at_most=True)
    return Comparison("from a cold start", "s", values, [ratio])


def seconds_to_first_step(recipe: Recipe, words: Sequence[str]) -> float:
    with tempfile.TemporaryDirectory(prefix="mnist_accel-") as folder:
        return seconds_of("the first step", FIRST_STEP, f"recipe={recipe.name}", f"out={folder}", *words)


def seconds_to_import() -> float:
    return seconds_of("import torch, accelerate", "-c", BARE_IMPORTS)


def seconds_of(what: str, *words: str) -> float:
    started = time.perf_counter()
    run_python(what, *words)
    return time.perf_counter() - started


def precision(
    recipe: Recipe, runtime: Runtime, data: Dataset, *, words: Sequence[str], pairs: int, steps: int, say: Say
) -> Comparison:
    """Images a second of our epoch in each precision that this device has, with the loss that it came to."""
    sides: dict[str, Measure] = {
        name: partial(speed_and_loss, recipe, name, steps, words) for name in precisions_of(runtime.device)
    }
    values, losses = in_turn_with_quality(sides, pairs, "images/s", say)
    ratios = [Ratio(f"{name} / fp32", divided(values[name], values["fp32"])) for name in sides if name != "fp32"]
    return Comparison(how_long(recipe, data, steps), "images/s", values, ratios, "training loss", losses)


def precisions_of(device: torch.device) -> list[str]:
    if device.type == "cpu":
        return ["fp32", "bf16"]
    newer = (["tf32"] if torch.cuda.is_tf32_supported() else []) + (["bf16"] if torch.cuda.is_bf16_supported() else [])
    return ["fp32", *newer, "fp16"]


def speed_and_loss(recipe: Recipe, name: str, steps: int, words: Sequence[str]) -> Reading:
    printed = run_python(
        f"precision={name}", ONE_PRECISION, str(steps), f"recipe={recipe.name}", f"precision={name}", *words
    )
    said = json.loads(printed.splitlines()[-1])
    return Reading(said["images_per_second"], said["loss"])
