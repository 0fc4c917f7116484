"""The page of a profile: what bounds the run, its step by phase, every convolution and how near it is to the roof.

A trace may come from anywhere: names are escaped and shortened, and of thousands of rows the largest are shown.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from mnist_accel.errors import printable
from mnist_accel.pages.charts import share_bar
from mnist_accel.pages.page import Html, Section, command, document, facts, joined, pill, table, tag
from mnist_accel.pages.roofline_chart import brief, layers_of, passes_of, roofline_chart
from mnist_accel.phase import PHASES
from mnist_accel.profiling.layers import IDLE
from mnist_accel.profiling.summary import ConvolutionRow, PhaseTime, ProfileSummary
from mnist_accel.profiling.wording import label, three_figures, what_is_shown, what_it_cost, what_the_roof_is

MOST = 200  # rows of a table
SPEED = ("GFLOP/s", "FLOP/byte", "% of roof")
LONGEST = 60  # letters of a name
LONGEST_TEXT = 700
# A phase has the same colour in every page.
COLOURED = ("forward", "backward", "data", "augmentation", "loss", "optimizer", "all-reduce", "checkpoint", IDLE)
assert set(PHASES) < set(COLOURED)

Row = TypeVar("Row")


@dataclass(frozen=True)
class Place:
    """Where the trace lies, as whoever reads the page would type it."""

    trace: str
    folder: str = ""  # of profiles/

    @property
    def typed(self) -> str:
        return printable(self.folder or self.trace)


def page_of(summary: ProfileSummary, place: Place, no_roofline: str = "") -> str:
    """``no_roofline`` says why there is no roof."""
    return document(
        f"{title_of(summary, place)}: where its step goes",
        header(summary, place),
        sections(summary, place, no_roofline),
    )


def page_of_run(summary: ProfileSummary) -> str:
    """For ``profile=true``, which has just written the trace."""
    return page_of(summary, Place(summary.trace, summary.folder))


def title_of(summary: ProfileSummary, place: Place) -> str:
    return brief(summary.recipe or printable(place.trace.rpartition("/")[2]), LONGEST)


def header(summary: ProfileSummary, place: Place) -> Html:
    facts_of_run = f"batch {summary.batch_size}, {summary.precision}, " if summary.recipe else ""
    shown = [("a step", milliseconds(summary.step_ms))]
    if summary.cost:
        shown.append(("with the profiler", milliseconds(summary.cost.profiled_ms)))
    if summary.batch_size and summary.step_ms:
        shown.append(("images a second", f"{1000 * summary.batch_size / summary.step_ms:,.0f}"))
    if summary.convolutions_roofline_percent is not None:
        shown.append(("convolutions, of the roof", f"{summary.convolutions_roofline_percent:.0f} %"))
    return joined(
        [
            tag("h1", title_of(summary, place), " ", pill("profile", "plain")),
            tag("p", brief(facts_of_run + place.typed, LONGEST_TEXT), class_="sub"),
            tag("p", brief(summary.verdict.sentence, LONGEST_TEXT), class_="verdict"),
            facts(shown, "figures") if not summary.without_kernels else "",
        ]
    )


def sections(summary: ProfileSummary, place: Place, no_roofline: str) -> Iterator[Section]:
    if not summary.without_kernels:
        yield Section("The step by phase", phases(summary.phases), "phases")
        if summary.convolutions:
            lead = how_to_read(summary)
            yield Section("Against the roof", against_the_roof(summary, no_roofline), "roofline", lead)
        yield Section("Convolutions", convolutions(summary), "convolutions", most_of(summary.convolutions))
        if summary.verdict.other_layers:
            yield Section("Other layers", other_layers(summary), "layers", most_of(summary.verdict.other_layers))
    if summary.ranks and len(summary.ranks) > 1:
        yield Section("Processes", processes(summary), "processes", most_of(summary.ranks))
    yield Section("How it was measured", measured(summary), "measured")
    yield Section("Open the trace", opening(place), "open")


def phases(rows: Sequence[PhaseTime], whole: float = 0.0) -> Html:
    """``whole``: as many ms as the bar could be long."""
    parts = [(row.name, row.ms, f"{milliseconds(row.ms)}, {row.share:.1f} %") for row in rows]
    return share_bar("A step", parts, colours=[colour_of(row.name) for row in rows], whole=whole)


def colour_of(phase: str) -> int:
    return COLOURED.index(phase) + 1 if phase in COLOURED else len(COLOURED) + 1


def convolutions(summary: ProfileSummary) -> Html:
    if not summary.convolutions:
        return tag("p", "There is no convolution in these steps.", class_="note")
    rows = largest(summary.convolutions, lambda row: row.ms)
    columns = ("", "forward ms", "backward ms", "weights", "input", "% of step", *SPEED, "shape")
    shown = [
        (
            brief(label(row), LONGEST),
            three_figures(row.forward_ms),
            three_figures(row.backward_ms),
            three_figures(row.weight_gradient_ms),
            three_figures(row.input_gradient_ms) if row.gflop_input_gradient else "-",
            f"{row.forward_share + row.backward_share:.1f}",
            three_figures(row.gflops),
            three_figures(row.intensity),
            three_figures(row.roofline_percent),
            tag("span", brief(row.shape, LONGEST), class_="shape"),
        )
        for row in rows
    ]
    times = table(columns, shown, label="Time by convolution", numbers=range(1, len(columns) - 1))
    return joined([times, tag("p", what_a_row_means(summary), class_="note below"), pass_by_pass(rows, summary)])


def what_a_row_means(summary: ProfileSummary) -> str:
    alone = (
        "" if summary.on_gpu else ", which are divided as each takes when it is asked for alone, behind the last step"
    )
    return (
        "A shape is images × channels × size → channels × size, kernel. Backward is the gradient of the weights "
        f"and that of the input{alone}. The images need none."
    )


def pass_by_pass(rows: Sequence[ConvolutionRow], summary: ProfileSummary) -> Html:
    columns = ("", "ms", "% of step", "GFLOP", "GFLOP/s", "% of roof")
    shown = [
        (
            f"{brief(label(row), LONGEST)} {each.kind}",
            three_figures(each.ms),
            f"{100 * each.ms / summary.step_ms:.1f}",
            three_figures(each.gflop),
            three_figures(each.gflops),
            three_figures(each.percent),
        )
        for row in rows
        for each in passes_of(row, summary.roofline)
    ]
    whole = table(columns, shown, label="Every pass", numbers=range(1, len(columns)))
    return tag("details", tag("summary", "Pass by pass"), whole) if shown else Html()


def how_to_read(summary: ProfileSummary) -> str:
    if not summary.roofline:
        return ""
    plotted = len(layers_of(summary.convolutions, summary.roofline))
    left_out = f" Drawn are the {plotted} that take longest." if plotted < len(summary.convolutions) else ""
    return (
        "Every mark is one pass of a convolution; its line leads up to what the roof allows. Under the slope memory is "
        "what limits, under the flat part arithmetic." + left_out
    )


def against_the_roof(summary: ProfileSummary, no_roofline: str) -> Html:
    if not summary.roofline:
        why = no_roofline or "the roof could not be measured"
        return tag("p", f"No plot, and no percent of the roof: {brief(printable(why), LONGEST_TEXT)}.", class_="note")
    said = [brief(what_the_roof_is(summary.roofline), LONGEST_TEXT)]
    if any(row.weight_gradient_ms is None and row.backward_ms for row in summary.convolutions):
        said.append("Where nobody has measured how backward divides into its two gradients, it is one mark.")
    notes = [tag("p", text, class_="note below") for text in said]
    return joined([roofline_chart(summary.convolutions, summary.roofline), *notes])


def other_layers(summary: ProfileSummary) -> Html:
    layers = summary.verdict.other_layers[:MOST]
    shown = [(brief(part.name, LONGEST), three_figures(part.ms), str(part.percent)) for part in layers]
    return table(("", "ms", "% of step"), shown, label="Other layers, forward and backward", numbers=(1, 2))


def processes(summary: ProfileSummary) -> Html:
    ranks = largest(summary.ranks or [], lambda times: times.plain_ms)
    shown = [(f"rank {times.rank}", three_figures(times.plain_ms), three_figures(times.profiled_ms)) for times in ranks]
    return table(("", "a step, ms", "with the profiler"), shown, label="A step of each process", numbers=(1, 2))


def measured(summary: ProfileSummary) -> Html:
    said = [brief(line, LONGEST_TEXT) for line in what_is_shown(summary)]
    if summary.cost:
        said.append(what_it_cost(summary.cost))
    machine = [
        (brief(key, LONGEST), brief(str(value), LONGEST)) for key, value in list((summary.machine or {}).items())[:MOST]
    ]
    return joined([*(tag("p", line) for line in said), facts(machine) if machine else ""])


def opening(place: Place) -> Html:
    drop = "Every operation on a time line: drop " + brief(printable(place.trace), LONGEST_TEXT) + " onto "
    link = tag("a", "ui.perfetto.dev", href="https://ui.perfetto.dev", rel="noreferrer")
    lines = [f"python -m mnist_accel trace {place.typed}", f"python -m mnist_accel trace {place.typed} against=OTHER"]
    says = "The same in a terminal; and beside another profile, with what changed:"
    return joined(
        [tag("p", drop, link, ". It opens there without being uploaded."), tag("p", says), command("\n".join(lines))]
    )


def largest(rows: Sequence[Row], size: Callable[[Row], float]) -> list[Row]:
    """The largest of many, in their own order."""
    if len(rows) <= MOST:
        return list(rows)
    chosen = sorted(range(len(rows)), key=lambda index: -size(rows[index]))[:MOST]
    return [rows[index] for index in sorted(chosen)]


def most_of(rows: Sequence[object]) -> str:
    return f"The {MOST} largest of {len(rows):,}." if len(rows) > MOST else ""


def milliseconds(value: float) -> str:
    return f"{three_figures(value)} ms"
