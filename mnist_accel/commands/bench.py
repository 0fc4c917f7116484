"""Benchmark loader, epoch, engine, start, precision and time_to_99 against alternatives, in turn, on this machine."""

from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic.dataclasses import dataclass

import recipes
from mnist_accel import cli, commands
from mnist_accel.console import report
from mnist_accel.errors import UserError
from mnist_accel.recipe import CONFIG, REAL_DATA, Needs, Recipe, option

if TYPE_CHECKING:  # a typing mistake must not wait for torch
    from benchmarks.turns import Comparison
    from mnist_accel.data.dataset import Dataset
    from mnist_accel.machine.runtime import Runtime

SCHEMA = 2
ALL = "all"
USAGE = "python -m mnist_accel bench subject=SUBJECT recipe=NAME key=value…"
LOADER = Needs("subject", ("loader",))
STOCK = Needs("subject", ("epoch", "time_to_99"))
TRAINING = Needs("subject", ("epoch", "engine", "precision"))


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class BenchOptions:
    subject: Annotated[
        Literal["loader", "epoch", "engine", "start", "precision", "time_to_99"],
        option(
            "what ours is held against: DataLoaders, the stock script's epoch, a bare loop, importing torch and "
            "accelerate, itself in fp32, or, from the return key to the result, the stock script and the fastest "
            "published network"
        ),
    ]
    recipe: Annotated[
        str | None,
        option(
            "what network, batch size and optimizer; all takes one after the other (default: onepoch; for "
            "time_to_99 speedrun)"
        ),
    ] = None
    pairs: Annotated[int, option("how often each side is measured, in turn", ge=1, le=1000)] = 5
    images: Annotated[int, option("images a pass of the DataLoader", ge=1, le=60_000), LOADER] = 20_000
    steps: Annotated[int, option("steps of the epoch that are timed; 0 times all", ge=0), TRAINING] = 200
    workers: Annotated[
        int | None,
        option(
            "how many the stock script has (default: 0, 2, 4 … up to the cores, whichever is fastest)", ge=0, le=256
        ),
        STOCK,
    ] = None
    dataset: Annotated[Literal["auto", "mnist", "synthetic"], option("as for launch.py")] = "auto"
    data_dir: Annotated[str | None, option("the folder that holds MNIST/raw", min_length=1), REAL_DATA] = None
    device: Annotated[Literal["auto", "cpu", "cuda"], option("auto takes a GPU where there is one")] = "auto"
    threads: Annotated[int, option("CPU threads; 0 takes all cores", ge=0, le=1024)] = 0
    json: Annotated[str | None, option("the file for all the figures", min_length=1)] = None


def main(argv: list[str]) -> int:
    console = report.make_console()
    if cli.asks_for_help(argv):
        return report.show_usage(console, USAGE, BenchOptions)
    options: BenchOptions = cli.read_options(argv, BenchOptions)
    options = replace(options, recipe=options.recipe or default_recipe(options.subject))
    chosen = choose_recipes(options)
    commands.refuse_unwritable(options.json)

    from mnist_accel.data.dataset import load_dataset
    from mnist_accel.machine.runtime import MACHINE_LINE, describe_machine, start_runtime
    from mnist_accel.models import parameters_of

    for recipe in chosen:  # one that cannot be built ends it before minutes of measuring, not after them
        parameters_of(recipe.model, recipe.dropout, recipe.name)
    runtime = start_runtime("fp32", options.device, options.threads)
    data = load_dataset(options.dataset, options.data_dir)
    described = describe_machine(runtime.device_name, runtime.threads)
    rows = [
        ("subject", f"{options.subject}, {options.pairs} pair{'s'[: options.pairs > 1]}"),
        ("recipe", ", ".join(f"{recipe.name} (batch {recipe.batch_size})" for recipe in chosen)),
        ("machine", MACHINE_LINE.format(**described)),
        ("data", f"{data.name}: {data.reason}"),
    ]
    report.facts(console, rows)
    say = partial(console.print, style="dim")
    measured: list[tuple[Recipe, Comparison]] = []
    for recipe in chosen:
        if len(chosen) > 1:
            say(recipe.name)
        measured += [(recipe, comparison) for comparison in measure(options, recipe, runtime, data, say)]
    show(console, measured)
    content = {"schema": SCHEMA, "options": asdict(options), "dataset": data.name, "machine": described}
    commands.write_json(options.json, content | {"comparisons": [figures(*item) for item in measured]})
    return 0


def default_recipe(subject: str) -> str:
    return "speedrun" if subject == "time_to_99" else "onepoch"


def choose_recipes(options: BenchOptions) -> list[Recipe]:
    known = recipes.names()
    typed = options.recipe or default_recipe(options.subject)
    names = known if typed == ALL else [cli.choose_recipe({"recipe": typed}, known)]
    chosen = [recipes.load(name) for name in names]
    for recipe in chosen:
        if options.subject == "time_to_99" and recipe.loss == "binary":
            raise UserError(
                f"recipe={typed}: {recipe.name} tells one digit from the rest, and the others tell ten. "
                f"Type recipe={default_recipe(options.subject)}"
            )
    return chosen


def measure(
    options: BenchOptions, recipe: Recipe, runtime: "Runtime", data: "Dataset", say: Callable[[str], None]
) -> list["Comparison"]:
    from benchmarks import compare, fresh, time_to_99

    common: dict[str, Any] = {"pairs": options.pairs, "say": say}
    if options.subject == "loader":
        return compare.loader(recipe, runtime, data, images=options.images, **common)
    if options.subject == "epoch":
        return [compare.epoch(recipe, runtime, data, steps=options.steps, workers=options.workers, **common)]
    if options.subject == "engine":
        return [compare.engine(recipe, runtime, data, steps=options.steps, **common)]
    # By its name, so that no child tries a download again that has failed.
    words = [f"dataset={data.name}", f"device={runtime.device.type}", f"threads={runtime.threads}"]
    if options.data_dir:
        words.append(f"data_dir={options.data_dir}")
    if options.subject == "start":
        return [fresh.start(recipe, runtime, words=words, **common)]
    if options.subject == "time_to_99":
        return time_to_99.time_to_99(recipe, runtime, data, words=words, workers=options.workers, **common)
    return [fresh.precision(recipe, runtime, data, words=words, steps=options.steps, **common)]


def figures(recipe: Recipe, comparison: "Comparison") -> dict[str, Any]:
    ratios = [asdict(ratio) | {"median": ratio.median, "met": ratio.met} for ratio in comparison.ratios]
    named = {"recipe": recipe.name, "batch_size": recipe.batch_size}
    return named | asdict(comparison) | {"ratios": ratios}


def show(console: Any, measured: list[tuple[Recipe, "Comparison"]]) -> None:
    quality = next((comparison.quality_of for _, comparison in measured if comparison.qualities), "")
    table = report.simple_table("", "", "median", "min – max", "", quality, "target", "")
    several = len({recipe.name for recipe, _ in measured}) > 1
    for recipe, comparison in measured:
        label = f"{recipe.name}, {comparison.label}" if several else comparison.label
        for name, values in comparison.sides.items():
            qualities = comparison.qualities.get(name)
            reached = f"{median(qualities):.4g}" if qualities else ""
            table.add_row(label, name, *middle_and_range(values), comparison.unit, reached, "", "")
            label = ""
        for ratio in comparison.ratios:
            aim = "" if ratio.target is None else f"{'≤' if ratio.at_most else '≥'} {ratio.target:g}"
            table.add_row("", ratio.of, *middle_and_range(ratio.values), "", "", aim, report.VERDICTS[ratio.met])
    console.print()
    report.show_table(console, table)


def middle_and_range(values: list[float]) -> tuple[str, str]:
    return number(median(values)), f"{number(min(values))} – {number(max(values))}"


def number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}" if value >= 1 else f"{value:.3g}"
