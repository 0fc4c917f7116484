"""Measure a recipe over several numbers of processes, each a real job: speed-up, all-reduce, accuracy."""

import importlib
import json
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic.dataclasses import dataclass

import recipes
from mnist_accel import cli
from mnist_accel.console import report
from mnist_accel.errors import UserError
from mnist_accel.files import refuse_unwritable
from mnist_accel.recipe import CONFIG, Recipe, option

if TYPE_CHECKING:  # a typing mistake must not wait for torch
    from benchmarks.scaling import Point

SCHEMA = 1
FIGURES, PICTURE = "scaling.json", "scaling.png"
MOST_PROCESSES = 1024
WIDE_ONLY = ("threads each", "min – max", "ideal")
USAGE = """python -m mnist_accel scaling processes=1,2,4 recipe=NAME key=value…
With the keys of launch.py (epochs is 1 where none are given, recipe is onepoch), and"""


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class ScalingOptions:
    processes: Annotated[str, option("the numbers to compare, rising, from 1 on", min_length=1)] = "1,2,4"
    mode: Annotated[
        Literal["both", "strong", "weak"],
        option("strong keeps the batch of all processes together, weak that of each"),
    ] = "both"
    repeats: Annotated[int, option("how often each number is measured, in turn", ge=1, le=100)] = 3
    threads: Annotated[
        int,
        option(
            "CPU threads a process; 1, so that N processes are compared with one on N cores; 0 shares the cores out, "
            "which compares them with one process on all cores",
            ge=0,
            le=1024,
        ),
    ] = 1
    steps: Annotated[int, option("steps on which the share of all-reduce is measured", ge=1, le=10_000)] = 50
    plot: Annotated[bool, option(f"draw {PICTURE} (needs matplotlib)")] = True
    out: Annotated[
        str | None, option("the folder for the figures (default: profiles/scaling-RECIPE-TIME)", min_length=1)
    ] = None


REFUSED = {
    "resume": "every point is a job from its beginning",
    "dry_run": "one step says nothing about speed",
    "profile": "profiling costs time, which would be measured with it",
}


def main(argv: list[str]) -> int:
    console = report.make_console()
    if cli.asks_for_help(argv):
        return report.show_usage(console, USAGE, ScalingOptions)
    words = cli.split_words(argv)
    own, handed_on = cli.split_options(argv, ScalingOptions, REFUSED)
    counts = read_counts(own.processes)
    if "recipe" not in words:
        handed_on.insert(0, "recipe=onepoch")
    if "epochs" not in words:
        handed_on.append("epochs=1")
    request = cli.parse(handed_on, recipes.names(), recipes.load)
    recipe = request.recipe
    modes = ("strong", "weak") if own.mode == "both" else (own.mode,)
    check_batches(recipe, modes, counts[-1])
    folder = check_folder(own.out, recipe.name)
    no_plot = why_no_plot() if own.plot else ""
    if no_plot and "plot" in words:
        raise UserError(f"plot=true: {no_plot}, or plot=false")

    import torch

    from benchmarks import scaling
    from mnist_accel.data.dataset import load_dataset
    from mnist_accel.machine import runtime
    from mnist_accel.machine.launcher import is_launched
    from mnist_accel.machine.runtime import choose_device, usable_cores
    from mnist_accel.runs.run import check

    if is_launched():
        raise UserError("scaling: starts its own processes. Type python -m mnist_accel scaling without a launcher")
    check(replace(request, options=replace(request.options, processes=counts[-1])))
    data = load_dataset(request.options.dataset, request.options.data_dir)

    device, cores = choose_device(request.options.device), usable_cores()
    device_name = f"{torch.cuda.get_device_name()} × {torch.cuda.device_count()}" if device == "cuda" else "cpu"
    described = runtime.describe_machine(device_name, own.threads)
    each = f"{own.threads} a process" if own.threads else "shared out"
    machine_line = runtime.MACHINE_LINE.format(**described | {"threads": each})
    crowded = [n for n in counts if device == "cpu" and n * max(1, own.threads) > cores]
    points = scaling.plan(modes, counts, recipe.batch_size, crowded)
    repeats = "once each" if own.repeats == 1 else f"{own.repeats} times each, in turn"
    rows = [
        ("scaling", f"{' and '.join(modes)}, {', '.join(map(str, counts))} processes, {repeats}"),
        ("recipe", f"{recipe.name}, batch {recipe.batch_size}, {epochs_of(recipe)}"),
        ("machine", machine_line),
        ("data", f"{data.name}: {data.reason}"),
        ("figures", str(folder)),
    ]
    if no_plot:
        rows.append(("plot", f"left out; {no_plot}"))
    if crowded:
        rows.append(("crowded", too_many(crowded, own.threads, cores)))
    report.facts(console, rows)
    # By its name, so that no job tries a download again that has failed.
    given = [word for word in handed_on if not word.startswith(("dataset=", "batch_size="))]
    job = [*given, f"dataset={data.name}", f"threads={own.threads}"]
    scaling.measure(points, job, repeats=own.repeats, steps=own.steps, say=partial(console.print, style="dim"))

    show(console, points)
    for note in notes(recipe, modes, data.name, own.steps):
        console.print(note, style="dim")
    content = {"schema": SCHEMA, "recipe": recipe.name, "options": asdict(own), "command": job, "dataset": data.name}
    content |= {"epochs": recipe.epochs, "machine": described}
    content |= {"points": [scaling.figures(point, points) for point in points]}
    title = f"{recipe.name}, {epochs_of(recipe)} on {data.name}"
    write(folder, content, partial(draw, points, title, machine_line) if own.plot and not no_plot else None)
    return 0


def why_no_plot() -> str:
    """A picture is no reason to refuse the figures, unless it was asked for."""
    try:
        importlib.import_module("matplotlib.figure")
    except ImportError as error:
        return f"matplotlib cannot be imported ({error}). Type pip install -e '.[plot]'"
    return ""


def read_counts(typed: str) -> list[int]:
    asked, example = f"processes={typed}", "For example processes=1,2,4"
    if not re.fullmatch(r"[0-9]{1,5}(,[0-9]{1,5})*", typed):
        raise UserError(f"{asked}: must be whole numbers with commas between them. {example}")
    counts = [int(part) for part in typed.split(",")]
    rising = [count for count in sorted({1, *counts}) if 1 <= count <= MOST_PROCESSES]
    if len(rising) == 1:
        raise UserError(f"{asked}: leaves nothing to compare. {example}")
    if counts != rising:
        better = ",".join(map(str, rising))
        raise UserError(
            f"{asked}: must rise from 1, which the others are compared with, to at most {MOST_PROCESSES}. "
            f"Type processes={better}"
        )
    return counts


def check_batches(recipe: Recipe, modes: Sequence[str], most: int) -> None:
    if "strong" in modes and recipe.batch_size < most:
        raise UserError(cli.too_small_batch(recipe.batch_size, most))
    images = cli.TRAINING_IMAGES - recipe.validation
    if "weak" in modes and recipe.batch_size * most > images:
        raise UserError(
            f"batch_size={recipe.batch_size}: weak scaling makes it {most} times as large, more than the {images:,} "
            f"training images. Type at most batch_size={max(1, images // most)}, or mode=strong"
        )


def check_folder(typed: str | None, recipe_name: str) -> Path:
    """Before minutes of measuring, not after them."""
    named = typed or f"profiles/scaling-{recipe_name}-{time.strftime('%Y%m%d-%H%M%S')}"
    folder = cli.expand_path(named, f"out={named}")
    try:
        refuse_unwritable(folder)
        if (folder / FIGURES).exists() or (folder / PICTURE).exists():
            raise UserError(f"out={named}: already holds a measurement. Name another folder, or move that one away")
    except OSError as error:
        raise unwritable(f"out={named}", error) from None
    return folder


def unwritable(asked: str, error: OSError) -> UserError:
    return UserError(f"{asked}: cannot be written ({error.strerror}). Name another folder with out=DIR")


def epochs_of(recipe: Recipe) -> str:
    return f"{recipe.epochs} epoch{'s'[: recipe.epochs > 1]}"


def too_many(crowded: Sequence[int], threads: int, cores: int) -> str:
    each = "1 thread" if threads <= 1 else f"{threads} threads"
    have = "1 core" if cores == 1 else f"{cores} cores"
    numbers = ", ".join(map(str, crowded))
    return f"{numbers} processes of {each} each outnumber the {have} here (*): they take turns, which is no scaling"


def show(console: Any, points: Sequence["Point"]) -> None:
    wide, narrow = table_of(points, wide=True), table_of(points, wide=False)
    console.print()
    report.show_table(console, wide if report.fits(console, wide) else narrow)


def table_of(points: Sequence["Point"], wide: bool) -> Any:
    """Not wide, it fits 80 columns: what can be worked out from the rest, or stands above, is left to the JSON file."""
    from benchmarks.scaling import ideal

    rows: list[dict[str, str]] = []
    for point in points:
        speeds = point.images_per_second
        row = {
            "processes": f"{point.mode} {point.processes}{'*' if point.crowded else ''}",
            "threads each": str(point.threads),
            "batch": f"{point.batch_size:,}",
            "images/s": f"{point.speed:,.0f}",
            "min – max": f"{min(speeds):,.0f} – {max(speeds):,.0f}",
            "ideal": f"{ideal(point, points):,.0f}",
            "speed-up": f"{point.speedup:.2f}",
            "efficiency": f"{100 * point.efficiency:.0f} %",
            "all-reduce": f"{100 * point.all_reduce_share:.0f} %",
            "accuracy %": f"{point.accuracy:.2f}",
        }
        rows.append({name: cell for name, cell in row.items() if wide or name not in WIDE_ONLY})
    table = report.simple_table(*rows[0])
    for row in rows:
        table.add_row(*row.values())
    return table


def notes(recipe: Recipe, modes: Sequence[str], dataset: str, steps: int) -> list[str]:
    """What has to be known to read the table rightly."""
    learned = f"accuracy: after {epochs_of(recipe)} on {dataset}"
    if "weak" in modes:
        learned += "; weak scaling takes fewer and larger steps at the same learning rate, and so learns less"
    return [
        "",
        "efficiency: speed-up by processes; 100 % would be N processes N times as fast as one (the ideal)",
        f"all-reduce: share of a step that exchanging gradients adds, measured on {steps} steps; negative is noise",
        learned,
    ]


def draw(points: Sequence["Point"], title: str, machine_line: str, path: Path) -> None:
    from benchmarks import scaling_plot

    scaling_plot.draw(path, points, title=title, machine=machine_line)


def write(folder: Path, content: dict[str, Any], draw: Callable[[Path], None] | None) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / FIGURES).write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")
        if draw is not None:
            draw(folder / PICTURE)
    except OSError as error:
        raise unwritable(str(folder), error) from None
