"""One recipe on this GPU: a profile, and a step's time replayed as one graph and launched kernel by kernel.

python -m benchmarks.gpu_profile RECIPE PRECISION key=value…     (keys of launch.py)

The last line that it prints is JSON.
"""

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

import recipes
from mnist_accel import cli, errors
from mnist_accel.files import finite
from mnist_accel.profiling.summary import ProfileSummary
from mnist_accel.profiling.trace_file import read_trace
from mnist_accel.runs import run
from mnist_accel.runs.watcher import Watcher

# The second epoch is timed: the first one's steps may wait for what is set up only once.
WAYS = {"profiled": ("epochs=1", "profile=true"), "replayed": ("epochs=2",), "launched": ("epochs=2", "graph=off")}


def main() -> int:
    name, precision, *words = sys.argv[1:]
    print(json.dumps(finite(profile([f"recipe={name}", f"precision={precision}", *words])), allow_nan=False))
    return 0


def profile(words: Sequence[str]) -> dict[str, Any]:
    figures: dict[str, Any] = {"problems": []}
    for way, more in WAYS.items():
        with TemporaryDirectory(prefix="mnist_accel-") as folder:
            request = cli.parse([*words, *more, f"out={folder}"], recipes.names(), recipes.load)
            watcher = Watcher(
                on_problem=figures["problems"].append,
                on_profile=lambda summary: figures.update(profile=key_figures(summary)),
            )
            result, _ = run.run(request, watcher, time.perf_counter())
        last = result.history[-1]
        figures[way] = {
            "step_ms": 1000 * last.train_seconds / last.steps,
            "epoch_seconds": last.train_seconds,
            "eval_seconds": last.eval_seconds,
            "warmup_seconds": result.warmup_seconds,
            "accuracy": last.accuracy,
            "epochs": result.epochs,
        }
    return figures | {"peak_memory_mb": torch.cuda.max_memory_allocated() / 2**20}


def key_figures(summary: ProfileSummary) -> dict[str, Any]:
    """The rest stands in the folder."""
    trace = read_trace(Path(summary.folder, summary.trace))
    kernels = sum(event.category == "kernel" for event in trace.events)
    return {
        "verdict": summary.verdict.sentence,
        "step_ms": summary.step_ms,
        "plain_ms": summary.cost.plain_ms if summary.cost else None,
        "kernels_a_step": kernels / summary.steps,
        "phases_ms": {phase.name: phase.ms for phase in summary.phases},
        "convolutions_roofline_percent": summary.convolutions_roofline_percent,
        "roofline": asdict(summary.roofline) if summary.roofline else None,
        "folder": summary.folder,
    }


if __name__ == "__main__":
    errors.exit_with_one_line(main)
