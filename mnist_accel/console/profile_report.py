"""Shows a profile: the verdict, the step by phase, a row for every convolution, and what profiling cost."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from mnist_accel.console.report import show_table, simple_table
from mnist_accel.errors import printable
from mnist_accel.profiling.compare import ProfileComparison
from mnist_accel.profiling.roofline import Roofline
from mnist_accel.profiling.summary import ConvolutionRow, Cost, ProfileSummary
from mnist_accel.profiling.trace_file import PAGE
from mnist_accel.profiling.wording import SAME_IS, label, three_figures, what_is_shown, what_it_cost, what_the_roof_is

BAR = 24  # characters of 100 %
ONE_TABLE = 160  # columns

Column = tuple[str, Callable[[ConvolutionRow], str]]


def show_profile(console: Any, summary: ProfileSummary, no_roofline: str = "") -> None:
    """``no_roofline`` says why there is none."""
    console.print()
    say(console, summary.verdict.sentence, style="bold")
    for line in what_is_shown(summary):
        say(console, line)
    if not summary.without_kernels:
        show_phases(console, summary)
        show_convolutions(console, summary, no_roofline)
    if summary.cost:
        show_cost(console, summary.cost)
    if summary.folder:  # of a run that has just written it
        show_where(console, Path(summary.folder))


def show_where(console: Any, folder: Path) -> None:
    console.print()
    if (folder / PAGE).is_file():  # a full disk may have prevented it
        say(console, f"{folder / PAGE}   shows this with a roofline plot", style="")
    say(console, f"python -m mnist_accel trace {folder}   shows it again, and how to open the trace", style="")


def say(console: Any, text: str, style: str = "dim") -> None:
    console.print(text, style=style, markup=False)


def show_phases(console: Any, summary: ProfileSummary) -> None:
    table = simple_table("phase", "ms", "%", "")
    for phase in summary.phases:
        table.add_row(phase.name, three_figures(phase.ms), f"{phase.share:.1f}", "▇" * round(phase.share * BAR / 100))
    table.add_row("the step", three_figures(summary.step_ms), "100.0", "")
    console.print()
    show_table(console, right_aligned(table, 1, 2))


def show_convolutions(console: Any, summary: ProfileSummary, no_roofline: str) -> None:
    if not summary.convolutions:
        console.print("\nThere is no convolution in these steps.")
        return
    columns: list[Column] = [  # two lines of header, to fit into 80 columns
        ("forward\nms", lambda row: three_figures(row.forward_ms)),
        ("forward\n%", lambda row: f"{row.forward_share:.1f}"),
        ("backward\nms", lambda row: three_figures(row.backward_ms)),
        ("backward\n%", lambda row: f"{row.backward_share:.1f}"),
        ("GFLOP/s", lambda row: three_figures(row.gflops)),
        ("FLOP/byte", lambda row: three_figures(row.intensity)),
        ("% of roof", lambda row: three_figures(row.roofline_percent)),
    ]
    arithmetic: list[Column] = [
        ("GFLOP forward", lambda row: three_figures(row.gflop_forward)),
        ("weight gradient", lambda row: three_figures(row.gflop_weight_gradient)),
        ("input gradient", lambda row: three_figures(row.gflop_input_gradient)),
    ]
    show_roofline(console, summary.roofline, no_roofline)
    tables: list[tuple[tuple[str, ...], list[Column]]]
    if console.width >= ONE_TABLE:
        tables = [(("", "shape"), arithmetic + columns)]
    else:
        tables = [(("",), columns), (("", "shape"), arithmetic)]
    for first, chosen in tables:
        table = simple_table(*first, *(header for header, _ in chosen))
        for row in summary.convolutions:
            cells = (label(row), row.shape)[: len(first)]
            table.add_row(*cells, *(cell(row) for _, cell in chosen))
        console.print()
        show_table(console, right_aligned(table, *range(len(first), len(first) + len(chosen))))
    if summary.convolutions_roofline_percent is not None:
        percent = f"{summary.convolutions_roofline_percent:.0f} % of the roof"
        say(console, f"All convolutions, weighted by time: {percent}.")


def show_roofline(console: Any, roofline: Roofline | None, no_roofline: str) -> None:
    """What the last column is of, before the tables."""
    console.print()
    if roofline:
        say(console, what_the_roof_is(roofline))
    elif no_roofline:
        say(console, f"No percent of the roof: {no_roofline}.")


def show_cost(console: Any, cost: Cost) -> None:
    console.print()
    say(console, what_it_cost(cost), style="")


def right_aligned(table: Any, *columns: int) -> Any:
    for column in columns:
        table.columns[column].justify = "right"
    return table


def show_comparison(console: Any, comparison: ProfileComparison, other: str) -> None:
    console.print()
    say(console, f"Against {other}:")
    if comparison.differing:
        unlike = "; ".join(f"{what} {here} here, {there} there" for what, here, there in comparison.differing)
        say(console, f"Not alike: {printable(unlike)}", style="yellow")
    table = simple_table("", "ms", "against", "times", "")
    for change in (comparison.step, *comparison.phases, *comparison.layers):
        figures = map(three_figures, (change.ms, change.against_ms, change.factor))
        table.add_row(change.name, *figures, change.word)
    show_table(console, right_aligned(table, 1, 2, 3))
    say(console, SAME_IS)
    for where, names in (("this trace", comparison.only_here), ("the other", comparison.only_there)):
        if names:
            say(console, f"Only in {where}: {'; '.join(names)}")
