"""Measures ours against the stock script, its DataLoader or a bare loop, in turn, on this machine."""

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic.dataclasses import dataclass

import recipes
from mnist_accel import cli, commands, report
from mnist_accel.recipe import CONFIG, REAL_DATA, Needs, Recipe, keys_of, option

if TYPE_CHECKING:  # a typing mistake must not wait for torch
    from benchmarks.compare import Comparison
    from mnist_accel.data.dataset import Dataset
    from mnist_accel.runtime import Runtime

SCHEMA = 1
LOADER = Needs("subject", ("loader",))
EPOCH = Needs("subject", ("epoch",))
TRAINING = Needs("subject", ("epoch", "engine"))


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class BenchOptions:
    subject: Annotated[
        Literal["loader", "epoch", "engine"],
        option("what ours is held against: DataLoader, the stock script's epoch, or a bare loop"),
    ]
    recipe: Annotated[str, option("whose network, batch size and optimizer")] = "onepoch"
    pairs: Annotated[int, option("how often each side is measured, in turn", ge=1, le=1000)] = 5
    images: Annotated[int, option("images a pass of the DataLoader", ge=1, le=60_000), LOADER] = 20_000
    steps: Annotated[int, option("steps of the epoch that are timed; 0 times all", ge=0), TRAINING] = 200
    workers: Annotated[
        int | None, option("the stock script's (default: 0 or 2, whichever is faster)", ge=0, le=256), EPOCH
    ] = None
    dataset: Annotated[Literal["auto", "mnist", "synthetic"], option("as for launch.py")] = "auto"
    data_dir: Annotated[str | None, option("as for launch.py", min_length=1), REAL_DATA] = None
    device: Annotated[Literal["auto", "cpu", "cuda"], option("auto takes a GPU where there is one")] = "auto"
    threads: Annotated[int, option("CPU threads; 0 takes all cores", ge=0, le=1024)] = 0
    json: Annotated[str | None, option("file for all the figures", min_length=1)] = None


def main(argv: list[str]) -> int:
    console = report.make_console()
    if not argv or any(word in cli.HELP_WORDS for word in argv):
        console.print("python -m mnist_accel bench subject=SUBJECT recipe=NAME key=value…")
        report.show_keys(console, "Keys", keys_of(BenchOptions).values(), None)
        return 0
    options: BenchOptions = commands.read_options(argv, BenchOptions)
    recipe = recipes.load(cli.choose_recipe({"recipe": options.recipe}, recipes.names()))
    commands.refuse_unwritable(options.json)

    from mnist_accel.data.dataset import load_dataset
    from mnist_accel.machine import describe_machine
    from mnist_accel.runtime import start_runtime

    runtime = start_runtime("fp32", options.device, options.threads)
    data = load_dataset(options.dataset, options.data_dir)
    machine = describe_machine(runtime)
    machine_line = "{cpu}, {cores} cores, torch {torch}, device {device}, threads {threads}".format(**machine)
    rows = [
        ("subject", f"{options.subject}, {options.pairs} pair{'s'[: options.pairs > 1]}"),
        ("recipe", f"{recipe.name}, batch {recipe.batch_size}"),
        ("machine", machine_line),
    ]
    report.facts(console, rows)
    comparisons = measure(options, recipe, runtime, data, say=partial(console.print, style="dim"))
    show(console, comparisons)
    figures = [asdict(comparison) | {"ratio": median(comparison.ratios)} for comparison in comparisons]
    content = {"schema": SCHEMA, "options": asdict(options), "batch_size": recipe.batch_size}
    content |= {"dataset": data.name, "machine": machine, "comparisons": figures}
    commands.write_json(options.json, content)
    return 0


def measure(
    options: BenchOptions, recipe: Recipe, runtime: "Runtime", data: "Dataset", say: Callable[[str], None]
) -> list["Comparison"]:
    from benchmarks import compare

    common: dict[str, Any] = {"pairs": options.pairs, "say": say}
    if options.subject == "loader":
        return compare.loader(recipe, runtime, data, images=options.images, **common)
    if options.subject == "epoch":
        return compare.epoch(recipe, runtime, data, steps=options.steps, workers=options.workers, **common)
    return compare.engine(recipe, runtime, data, steps=options.steps, **common)


def show(console: Any, comparisons: list["Comparison"]) -> None:
    table = report.simple_table("", "", "median", "min – max", "", "target", "")
    for comparison in comparisons:
        label = comparison.label
        for name, values in comparison.sides.items():
            table.add_row(label, name, *middle_and_range(values), comparison.unit, "", "")
            label = ""
        middle, spread = middle_and_range(comparison.ratios)
        met = is_met(comparison)
        aim = "" if met is None else f"{'≤' if comparison.at_most else '≥'} {comparison.target:g}"
        table.add_row("", comparison.ratio_of, middle, spread, "", aim, report.VERDICTS[met])
    console.print()
    report.show_table(console, table)


def middle_and_range(values: list[float]) -> tuple[str, str]:
    return number(median(values)), f"{number(min(values))} – {number(max(values))}"


def number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"


def is_met(comparison: "Comparison") -> bool | None:
    if comparison.target is None:
        return None
    ratio = median(comparison.ratios)
    return ratio <= comparison.target if comparison.at_most else ratio >= comparison.target
