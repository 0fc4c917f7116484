"""A recipe over several numbers of processes: what ``python -m mnist_accel scaling`` measures.

Strong scaling keeps the global batch, so each process gets less to do; weak scaling keeps each process's batch, so the
global one grows. Every point is a job of its own, ``python launch.py processes=N``, and what it reached stands in its
``result.json``. The points take turns, and a speed-up is taken within a turn.
"""

import json
import tempfile
from collections.abc import Container, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.children import ROOT, run_python
from benchmarks.turns import Say, divided, shown

ALL_REDUCE = str(ROOT / "benchmarks" / "all_reduce.py")
LAUNCH = str(ROOT / "launch.py")


@dataclass
class Point:
    """One number of processes in one mode; the lists have an entry a turn."""

    mode: str
    processes: int
    batch_size: int
    crowded: bool = False  # more processes than this machine has cores for
    threads: int = 0  # a process, as they were in effect
    images_per_second: list[float] = field(default_factory=list)
    speedups: list[float] = field(default_factory=list)
    accuracies: list[float] = field(default_factory=list)
    all_reduce_shares: list[float] = field(default_factory=list)

    @property
    def speed(self) -> float:
        return median(self.images_per_second)

    @property
    def speedup(self) -> float:
        return median(self.speedups)

    @property
    def efficiency(self) -> float:
        return self.speedup / self.processes

    @property
    def accuracy(self) -> float:
        return median(self.accuracies)

    @property
    def all_reduce_share(self) -> float:
        return median(self.all_reduce_shares)


def plan(modes: Sequence[str], counts: Sequence[int], batch_size: int, crowded: Container[int] = ()) -> list[Point]:
    """``counts`` begins with 1, which every other is compared with."""
    return [
        Point(mode, n, batch_size * n if mode == "weak" else batch_size, n in crowded) for mode in modes for n in counts
    ]


def measure(points: Sequence[Point], words: Sequence[str], *, repeats: int, steps: int, say: Say) -> None:
    """Fills in ``points``; ``words`` are keys of launch.py."""
    # One process is the same job in both modes.
    jobs = {(point.processes, point.batch_size): describe(point) for point in points}
    for turn in range(repeats):
        results = {}
        for (processes, batch_size), what in jobs.items():
            result = results[processes, batch_size] = launched(what, words, processes, batch_size)
            say(f"{turn + 1}/{repeats}: {what}: {shown(result['images_per_second'])} images/s")
        for point in points:
            result = results[point.processes, point.batch_size]
            point.threads = result["threads"]
            point.images_per_second.append(result["images_per_second"])
            point.accuracies.append(result["accuracy"])
    shares = {}
    for (processes, batch_size), what in jobs.items():
        if processes == 1:
            shares[processes, batch_size] = [0.0] * repeats  # nobody to tell
            continue
        shares[processes, batch_size] = shares_of(what, words, processes, batch_size, repeats, steps)
        say(f"{what}: all-reduce {100 * median(shares[processes, batch_size]):.0f} % of a step")
    for point in points:
        point.speedups = divided(point.images_per_second, alone(point, points).images_per_second)
        point.all_reduce_shares = shares[point.processes, point.batch_size]


def describe(point: Point) -> str:
    if point.processes == 1:
        return f"1 process, batch {point.batch_size}"
    return f"{point.mode}, {point.processes} processes, batch {point.batch_size}"


def launched(what: str, words: Sequence[str], processes: int, batch_size: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="mnist_accel-") as folder:
        run_python(what, LAUNCH, *words, f"processes={processes}", f"batch_size={batch_size}", f"out={folder}")
        result: dict[str, Any] = json.loads(Path(folder, "result.json").read_text())
    return result


def shares_of(what: str, words: Sequence[str], processes: int, batch_size: int, pairs: int, steps: int) -> list[float]:
    job = (f"processes={processes}", f"batch_size={batch_size}")
    printed = run_python(f"all-reduce of {what}", ALL_REDUCE, str(pairs), str(steps), *words, *job)
    shares: list[float] = json.loads(printed.splitlines()[-1])["shares"]
    return shares


def ideal(point: Point, points: Sequence[Point]) -> float:
    """Images a second if N processes were N times one: nothing told, nothing shared, a core or GPU for each."""
    return point.processes * alone(point, points).speed


def alone(point: Point, points: Sequence[Point]) -> Point:
    """One process in the same mode."""
    return next(other for other in points if (other.mode, other.processes) == (point.mode, 1))


def figures(point: Point, points: Sequence[Point]) -> dict[str, Any]:
    return vars(point) | {
        "median_images_per_second": point.speed,
        "ideal_images_per_second": ideal(point, points),
        "speedup": point.speedup,
        "efficiency": point.efficiency,
        "accuracy": point.accuracy,
        "all_reduce_share": point.all_reduce_share,
    }
