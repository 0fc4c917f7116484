"""All that a GPU has to tell, by one command: its tests, a profile of every recipe, every subject of ``bench``.

    make gpu                                         (or python -m benchmarks.gpu)
    make gpu KEYS="part=tests minutes=9"             in pieces, where a command may not last

Each piece runs in a process of its own, and one that fails costs the others nothing. The file is whole after each, and
the same command goes on where the last one stopped: what failed is tried again, what is there is not measured twice.
Exit code 0 where all of it is there and well, else 1.
"""

import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass as plain_dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Literal

from pydantic.dataclasses import dataclass

import recipes
from benchmarks.children import ROOT, run_python
from benchmarks.gpu_record import WELL, Record, open_record, read_record
from mnist_accel import cli, errors
from mnist_accel.errors import CleanExit, UserError
from mnist_accel.recipe import CONFIG, option

SHORTEST = 20.0  # seconds; nothing that is begun with less gets done
LONGEST = 300.0  # for one profile or benchmark
# With the words of each; the others depend on the recipe by its batch size alone.
BENCHES = {
    "epoch": ("pairs=3", "steps=0"),
    "engine": ("pairs=5", "steps=0"),
    "precision": ("pairs=3", "steps=0"),
    "start": ("pairs=5",),
    "loader": ("pairs=3",),
}
OF_EVERY_NETWORK = ("epoch", "engine", "precision")
FIRST = "onepoch"
TESTS = "tests"

Measure = Callable[[float], dict[str, Any]]  # within so many seconds


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class GpuOptions:
    part: Annotated[Literal["all", "tests", "profile", "bench"], option("what of it")] = "all"
    minutes: Annotated[float, option("time for all of it; what is not reached is left for the next call", gt=0)] = 60.0
    out: Annotated[str, option("file for all of it; one that is there is gone on with", min_length=1)] = (
        "profiles/gpu.json"
    )
    dataset: Annotated[Literal["auto", "mnist", "synthetic"], option("as for launch.py")] = "auto"
    commit: Annotated[str | None, option("of the sources, where git cannot tell", min_length=1)] = None


@plain_dataclass(frozen=True)
class Piece:
    part: str
    name: str
    measure: Measure


def main() -> int:
    options: GpuOptions = cli.read_options(sys.argv[1:], GpuOptions)
    import torch  # a typing mistake must not wait for it

    if not torch.cuda.is_available():
        raise UserError("there is no GPU here that torch can use. Type make gpu on a machine with one")
    until = time.monotonic() + 60 * options.minutes
    path = Path(options.out).expanduser()
    record = open_record(path, describe(options.commit))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        record.save()
    except OSError as error:
        raise UserError(f"out={options.out}: cannot be written ({error.strerror}). Name another file") from None
    for name, value in record.facts.items():
        print(f"{name:<10}  {value}")
    left = 0
    if options.part in ("all", TESTS):
        left += run_tests(record, until)
    if options.part != TESTS:
        left += measure_all(record, pieces(options.part, options.dataset), until)
    return conclude(record, left)


def describe(commit: str | None) -> dict[str, Any]:
    """What figures of another machine, or of other sources, differ in."""
    import torch

    from mnist_accel.machine.runtime import describe_machine, usable_cores

    described = describe_machine(torch.cuda.get_device_name(), usable_cores())
    return described | {
        "gpus": torch.cuda.device_count(),
        "driver": said_by("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").partition("\n")[0],
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "python": platform.python_version(),
        "commit": commit or commit_of_sources(),
    }


def commit_of_sources() -> str:
    commit = said_by("git", "rev-parse", "HEAD")
    return f"{commit} with changes" if said_by("git", "status", "--porcelain") not in ("", "unknown") else commit


def said_by(*words: str) -> str:
    try:
        said = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return said.stdout.strip()


def run_tests(record: Record, until: float) -> int:
    """One process for all of them, and another one wherever a test did not let it live. 1 where some are left."""
    record.tests = {name: test for name, test in record.tests.items() if test["outcome"] in WELL}
    record.parts.pop(TESTS, None)
    record.save()
    print(TESTS, flush=True)
    while True:
        known, started = len(record.tests), time.monotonic()
        try:
            run_python(TESTS, "-m", "benchmarks.gpu_tests", str(record.path), seconds=max(until - started, SHORTEST))
            return 0
        except CleanExit as error:
            problem = str(error)
        finally:
            record.tests = read_record(record.path).tests  # the child wrote them
        print(f"  {problem}", flush=True)
        if len(record.tests) == known or until - time.monotonic() < SHORTEST:
            record.parts[TESTS] = {"error": problem}
            record.save()
            return 1


def measure_all(record: Record, planned: Sequence[Piece], until: float) -> int:
    """How many there was no time for."""
    left = 0
    for piece in planned:
        if record.has(piece.name):
            continue
        started = time.monotonic()
        if until - started < SHORTEST:
            left += 1
            continue
        print(piece.name, flush=True)
        try:
            found: dict[str, Any] = {"figures": piece.measure(min(until - started, LONGEST))}
        except CleanExit as error:
            found = {"error": str(error)}
            print(f"  {error}", flush=True)
        record.parts[piece.name] = {"seconds": time.monotonic() - started} | found
        record.save()
    return left


def pieces(part: str, dataset: str) -> list[Piece]:
    """In the order of what they tell."""
    import torch

    from benchmarks.fresh import precisions_of
    from mnist_accel.data.dataset import load_dataset

    # By its name, so that no child tries a download again that has failed; and drawn once, if it has to be.
    words = (f"dataset={load_dataset(dataset).name}",)
    names = sorted(recipes.one_a_network(), key=lambda name: name != FIRST)
    found = [
        Piece("profile", f"profile {name} {precision}", profiled(name, precision, words))
        for precision in precisions_of(torch.device("cuda"))
        for name in names
    ]
    found += [
        Piece("bench", f"bench {subject} {name}", benched(subject, name, words))
        for name in names
        for subject in (BENCHES if name == FIRST else OF_EVERY_NETWORK)
    ]
    return [piece for piece in found if part in ("all", piece.part)]


def profiled(name: str, precision: str, words: Sequence[str]) -> Measure:
    def measure(seconds: float) -> dict[str, Any]:
        child = ("-m", "benchmarks.gpu_profile", name, precision, *words)
        printed = run_python(f"profile of {name} in {precision}", *child, seconds=seconds)
        figures: dict[str, Any] = json.loads(printed.splitlines()[-1])
        return figures

    return measure


def benched(subject: str, name: str, words: Sequence[str]) -> Measure:
    def measure(seconds: float) -> dict[str, Any]:
        with TemporaryDirectory(prefix="mnist_accel-") as folder:
            file = Path(folder, "figures.json")
            bench = (f"subject={subject}", f"recipe={name}", *BENCHES[subject], *words, f"json={file}")
            run_python(f"bench {subject} of {name}", "-m", "mnist_accel", "bench", *bench, seconds=seconds)
            figures: dict[str, Any] = json.loads(file.read_text())
        return figures

    return measure


def conclude(record: Record, left: int) -> int:
    print()
    for name, part in record.parts.items():
        print(f"{name:<26}  {shown(part['figures']) if record.has(name) else part['error']}")
    for name in record.failed_tests:
        lines = record.tests[name]["why"].splitlines()
        print(f"{name}: {record.tests[name]['outcome']}, {lines[-1] if lines else ''}")
    failed, tests = len(record.failed_tests), len(record.tests)
    print(f"{tests - failed} of {tests} GPU tests well, {len(record.failed_parts)} parts failed, {left} not reached")
    print(f"{record.path}; the README's row of it: python -m benchmarks.gpu_row {record.path}")
    return 1 if failed or left or record.failed_parts else 0


def shown(figures: dict[str, Any]) -> str:
    if "comparisons" in figures:
        ratios = [ratio for comparison in figures["comparisons"] for ratio in comparison["ratios"]]
        return ", ".join(f"{ratio['of']} {ratio['median']:.3g}" for ratio in ratios)
    replayed, launched = (figures[way]["step_ms"] for way in ("replayed", "launched"))
    kernels = figures["profile"]["kernels_a_step"]
    return f"a step {replayed:.3g} ms replayed, {launched:.3g} ms launched, {kernels:.0f} kernels"


if __name__ == "__main__":
    errors.exit_with_one_line(main)
