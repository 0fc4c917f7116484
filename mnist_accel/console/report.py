"""Prints a run: banner, live progress, a line per epoch, the closing table; and lists, help and tables.

A terminal gets a moving bar and colour; a pipe or a file gets plain lines, one a fact, never wrapped.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from rich.box import SIMPLE
from rich.console import Console
from rich.measure import Measurement
from rich.padding import Padding
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from mnist_accel.cli import spell
from mnist_accel.errors import printable, say, swallow
from mnist_accel.recipe import Recipe, RunOptions, keys_of, with_shifts

if TYPE_CHECKING:  # the list and the help must not wait for torch
    from mnist_accel.runs.result import ClaimResult, RunResult
    from mnist_accel.runs.watcher import Start
    from mnist_accel.training.state import EpochStats, StepInfo

PLAIN_WIDTH = 10_000
NARROW = 60  # columns; the figures matter more than the bar
VERDICTS = {True: Text("pass", style="green"), False: Text("fail", style="red"), None: Text("-")}


class Output:
    """A stream that a full disk cannot stop: what cannot be written is lost, said once on stderr, and remembered."""

    lost = False

    def __init__(self, stream: TextIO):
        self.stream = stream

    def write(self, text: str) -> int:
        self.attempt(lambda: self.stream.write(text))
        return len(text)

    def flush(self) -> None:
        self.attempt(self.stream.flush)

    def attempt(self, action: Callable[[], object]) -> None:
        try:
            action()
        except OSError as error:
            swallow(self.stream)
            if isinstance(error, BrokenPipeError):  # the reader has seen enough
                return
            Output.lost = True
            say(f"warning: the output could not be written: {error.strerror}; the run goes on")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def make_console() -> Console:
    if sys.stdout is None:  # closed by whoever started us
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    # A terminal that cannot show "≥" is no reason to stop training. A notebook's stream has no such setting.
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")
    console = Console(file=Output(sys.stdout), highlight=False)  # type: ignore[arg-type]
    if console.is_jupyter:  # which calls itself a terminal, and keeps every frame of a moving bar
        console = Console(file=console.file, highlight=False, force_jupyter=False, force_terminal=False)
    if not console.is_terminal:
        console.width = PLAIN_WIDTH
    return console


def facts(console: Console, rows: Iterable[tuple[str, str]]) -> None:
    """Label and value, one a line, the value wrapping under itself where the terminal is narrow."""
    rows = [(label, printable(value)) for label, value in rows]
    if not console.is_terminal:
        for label, value in rows:
            console.print(f"{label:9} {value}", markup=False)
        return
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for label, value in rows:
        table.add_row(Text(label), Text(value))
    console.print(table)


def simple_table(*columns: str) -> Table:
    table = Table(box=SIMPLE, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def measure(console: Console, table: Table) -> Measurement:
    """Columns from all words below each other to none, however wide the console is."""
    return Measurement.get(console, console.options.update(max_width=PLAIN_WIDTH), table)


def fits(console: Console, table: Table) -> bool:
    """Whether no cell would have to wrap."""
    return measure(console, table).maximum <= console.width


def show_table(console: Console, table: Table) -> None:
    """Where its longest words do not fit side by side, a table would cut them in two: then a paragraph a row."""
    if measure(console, table).minimum <= console.width:
        console.print(table)
        return
    headers = [str(column.header).replace("\n", " ") for column in table.columns]
    for first, *cells in zip(*(column.cells for column in table.columns), strict=True):
        console.print(Text.assemble(first, style="bold"))
        for header, cell in zip(headers[1:], cells, strict=True):
            if cell:
                console.print(Padding(Text.assemble(f"{header}: " if header else "", cell), (0, 0, 0, 2)))


def show_recipes(console: Console, sound: Iterable[tuple[Recipe, int]], broken: Sequence[str] = ()) -> None:
    """A row for each recipe with its network's parameters, a line for each file that is none."""
    table = simple_table("recipe", "parameters", "epochs", "claim %", "measured %")
    for recipe, parameters in sound:
        accuracy = next((claim for claim in recipe.claims if claim.metric == "accuracy"), None)
        table.add_row(
            recipe.name,
            f"{parameters:,}",
            str(recipe.epochs),
            accuracy.documented if accuracy else "",
            shown_measured(recipe),
        )
    show_table(console, table)
    if broken:
        console.print()
    for line in broken:
        console.print(Text(printable(line), style="yellow"))
    console.print("\npython launch.py recipe=NAME key=value…   python launch.py --help explains the keys")


def shown_measured(recipe: Recipe) -> str:
    measured = recipe.measured
    if measured is None:
        return ""
    seeds = f"{measured.seeds} seed{'s'[: measured.seeds > 1]}"
    return f"{measured.accuracy:.2f} ({seeds}{with_shifts(recipe.test_shifts)})"


def show_help(console: Console, recipe: Recipe | None) -> None:
    console.print("python launch.py recipe=NAME key=value…")
    console.print("accelerate launch --quiet launch.py recipe=NAME key=value…   the same by a launcher")
    console.print("python launch.py                                             lists the recipes")
    of_recipe = f"recipe={recipe.name}" if recipe else "the recipe sets those without a default"
    show_keys(console, f"Learning: changes the result ({of_recipe})", Recipe, recipe)
    show_keys(console, "Running: how it happens here", RunOptions)


def show_usage(console: Console, usage: str, owner: type) -> int:
    """Of a verb, whose keys are the fields of ``owner``."""
    console.print(usage)
    show_keys(console, "Keys", owner)
    return 0


def show_keys(console: Console, title: str, owner: type, defaults: object = None) -> None:
    table = simple_table("key", "type", "default", "")
    for key in keys_of(owner).values():
        default = getattr(defaults, key.name, key.default)
        needs = f" (with {key.needs.key}={' or '.join(key.needs.values)})" if key.needs else ""
        shown = "" if default is None else spell(default)
        table.add_row(key.name, key.kind.replace("|", " | "), shown, key.description + needs)
    console.print(f"\n{title}", style="bold")
    show_table(console, table)


class RunReport:
    """Follows one run; its methods are the run's callbacks."""

    def __init__(self, console: Console, banner: bool = True):
        self.console = console
        self.banner = banner
        self.scored = "test"  # which images an accuracy is of
        self.progress: Progress | None = None
        self.total_epochs = 0
        self.clock = 0.0
        self.images = 0

    def on_start(self, start: Start) -> None:
        runtime, recipe = start.runtime, start.recipe
        processes = "1 process" if runtime.world_size == 1 else f"{runtime.world_size} processes"
        threads = "1 thread" if runtime.threads == 1 else f"{runtime.threads} threads"
        changed = ", ".join(f"{key}={getattr(recipe, key)}" for key in start.changed)
        batch = f"{recipe.epochs} epoch{'s'[: recipe.epochs > 1]}, batch {recipe.batch_size}, {recipe.optimizer}"
        if runtime.backend:
            processes += f" over {runtime.backend}"
        scored = f"{start.test_images:,} {'held out' if recipe.validation else 'to test'}"
        scored += with_shifts(recipe.test_shifts)
        where = "" if start.resident else ", fed from host memory"
        rows = [
            ("recipe", recipe.name + (f" with {changed}" if changed else "")),
            ("model", f"{recipe.model}, {start.params:,} parameters"),
            ("training", f"{batch} lr {recipe.lr:g} {recipe.schedule}, seed {recipe.seed}"),
            ("device", f"{runtime.device_name} × {processes}, {threads} each, {runtime.precision}"),
            ("data", f"{start.dataset}: {start.dataset_reason}"),
            ("images", f"{start.train_images:,} to train, {scored}" + where),
            ("run", str(start.folder)),
        ]
        if runtime.config:
            rows.append(("launcher", f"settings from {runtime.config}, which nobody named"))
        if runtime.restart:
            rows.append(("restarted", f"{runtime.restart}; from {start.resumed_from or 'the beginning'}"))
        elif start.resumed_from:
            rows.append(("resumed", start.resumed_from))
        if start.dry_run:
            rows.append(("dry run", "one step and one evaluation batch; the figures mean nothing"))
        if start.found_nothing:
            rows.append(("resumed", f"nothing: no unfinished run of {recipe.name} was found; it starts anew"))
        self.scored = "held-out" if recipe.validation else "test"
        if runtime.ignored:
            rows.append(("launcher", f"{runtime.ignored} has no effect: this program compiles nothing"))
        if self.banner:
            facts(self.console, rows)
        self.total_epochs = 1 if start.dry_run else recipe.epochs
        self.clock = time.perf_counter()
        if self.console.is_terminal and not self.console.is_dumb_terminal:
            bar = [BarColumn(bar_width=None)] if self.console.width >= NARROW else []
            self.progress = Progress(
                TextColumn("{task.description}"),
                *bar,
                TextColumn("{task.fields[figures]}"),
                TimeRemainingColumn(compact=True),
                console=self.console,
                transient=True,
                refresh_per_second=4,  # the refreshing thread competes with training for the interpreter
                expand=True,
            )
            self.progress.add_task("epoch 1", total=None, figures="")
            self.progress.start()

    def on_step(self, info: StepInfo) -> None:
        if self.progress is None:
            return
        self.images += info.images
        now = time.perf_counter()
        if now - self.clock < 0.2 and info.step < info.steps_per_epoch:
            return
        speed, self.clock, self.images = self.images / max(now - self.clock, 1e-9), now, 0
        self.progress.update(
            self.progress.task_ids[0],
            description=f"epoch {info.epoch}/{self.total_epochs}",
            completed=(info.epoch - 1) * info.steps_per_epoch + info.step,
            total=self.total_epochs * info.steps_per_epoch,
            figures=f"loss {info.loss:.4f} · {speed:,.0f}/s",
        )

    def on_epoch(self, stats: EpochStats) -> None:
        figures = (
            f"epoch {stats.epoch}/{self.total_epochs}",
            f"loss {stats.train_loss:.4f}",
            f"{self.scored} {stats.accuracy:.2f} %, loss {stats.test_loss:.4f}",
            f"{stats.train_seconds:.2f} s",
            f"{stats.images / stats.train_seconds:,.0f} img/s",
        )
        for line in side_by_side(figures, self.console.width):
            self.console.print(line)
        if stats.epoch == self.total_epochs:
            self.stop()  # nothing moves any more

    def stop(self) -> None:
        """The cursor back and the bar gone, however the run ended."""
        if self.progress is not None:
            self.progress.stop()
            self.progress = None

    def on_problem(self, problem: str) -> None:
        """At once, not at the end: a long run leaves time to make room."""
        self.console.print(Text(f"warning: {problem}; the run goes on", style="yellow"))

    def on_end(self, result: RunResult) -> None:
        self.stop()
        show_claims(self.console, result.claims)
        if result.why_not_compared:
            self.console.print(f"\n{result.why_not_compared}", style="dim")
        rows = [("accuracy", f"{result.accuracy:.2f} % ({result.correct:,} of {result.total:,} {self.scored} images)")]
        if result.positive:
            found = result.positive
            of_yes = f"precision {found.precision:.2f} %, recall {found.recall:.2f} %, F1 {found.f1:.2f} %"
            rows.append(("of yes", of_yes))
        times = f"training {result.train_seconds:.2f} s, evaluation {result.eval_seconds:.2f} s"
        if result.warmup_seconds:
            times = f"warm-up {result.warmup_seconds:.2f} s, {times}"
        # What trained before the interruption counts as training, but this process was not there.
        whole = "this session alone" if result.resumed_from else "all in all"
        rows.append(("time", f"{times}, {whole} {result.total_seconds:.2f} s"))
        self.console.print()
        facts(self.console, rows)

    def on_report(self, path: Path) -> None:
        facts(self.console, [(f"{'report':8}", str(path))])


def side_by_side(figures: Iterable[str], columns: int) -> list[str]:
    """In one line, or where that is too long in several, broken between two figures only."""
    lines: list[str] = []
    for figure in figures:
        if lines and len(lines[-1]) + 2 + len(figure) <= columns:
            lines[-1] += f"  {figure}"
        else:
            lines.append(f"  {figure}" if lines else figure)
    return lines


def show_claims(console: Console, claims: Sequence[ClaimResult], chances: Sequence[str] | None = None) -> None:
    """``chances``: of claims held against a mean over seeds, that of such a mean where the documented one is true."""
    if not claims:
        return
    columns = ("this run", "") if chances is None else ("mean", "p", "")
    table = simple_table("", "documented", *columns)
    for index, claim in enumerate(claims):
        chance = [] if chances is None else [chances[index]]
        table.add_row(claim.name, claim.documented, claim.shown, *chance, VERDICTS[claim.met])
    console.print()
    show_table(console, table)
