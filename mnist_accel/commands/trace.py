"""Show where a trace says the time went, or what changed against another one, and write it as a page."""

import dataclasses
import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic.dataclasses import dataclass

from mnist_accel import cli
from mnist_accel.console import report
from mnist_accel.errors import UserError, printable
from mnist_accel.files import write_whole
from mnist_accel.recipe import CONFIG, keys_of, option

if TYPE_CHECKING:  # a typing mistake must not wait for torch
    from mnist_accel.pages.profile_page import Place
    from mnist_accel.profiling.layers import Analysis
    from mnist_accel.profiling.steady import RankTimes
    from mnist_accel.profiling.summary import ProfileSummary

USAGE = "python -m mnist_accel trace PATH against=OTHER"


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class TraceOptions:
    path: Annotated[str, option("a trace of torch.profiler, or a folder of profiles/; stands alone", min_length=1)]
    against: Annotated[str | None, option("another trace, to see which layers got faster", min_length=1)] = None
    out: Annotated[
        str | None, option("the page (default: beside the trace, where that can be written)", min_length=1)
    ] = None


def main(argv: list[str]) -> int:
    console = report.make_console()
    if cli.asks_for_help(argv):
        usage = f"{USAGE}   shows what profile=true showed, from the trace alone, and writes the page"
        return report.show_usage(console, usage, TraceOptions)
    words = with_path_named(argv)
    if "path" not in cli.split_words(words):
        raise UserError(f"trace: no path given. Type {USAGE}")
    options: TraceOptions = cli.read_options(words, TraceOptions)
    path = cli.expand_path(options.path, options.path)
    against = cli.expand_path(options.against, options.against) if options.against else None

    from mnist_accel.profiling.trace_file import find_traces

    target = cli.expand_path(options.out, f"out={options.out}") if options.out else None
    if target and (why := why_not_written(target)):
        raise UserError(f"out={options.out}: {why}. Name another file")
    traces = find_traces(path)
    other = find_traces(against)[0] if against else None
    shown, baseline = read(traces[0]), read(other) if other else None
    show(console, shown, baseline, len(traces))
    page = write_page(shown, baseline, target)
    console.print()
    report.facts(console, [*how_to_open(traces[0]), ("page", page)])
    return 0


def with_path_named(argv: Sequence[str]) -> list[str]:
    """The one bare word is the path; ``path=`` before it makes it a key like any other."""
    words, bare = [], ""
    for word in argv:
        is_path = not word.startswith("-") and word.partition("=")[0] not in keys_of(TraceOptions)
        if is_path and ("=" not in word or os.path.exists(word)):
            if bare:
                raise UserError(f"{word}: a second path beside {bare}. Type against={word} to compare the two")
            bare, word = word, f"path={word}"
        words.append(word)
    return words


@dataclasses.dataclass(frozen=True)
class Shown:
    trace: Path
    summary: "ProfileSummary"
    no_roofline: str
    is_whole_run: bool  # the trace that its folder's summary is of

    @property
    def name(self) -> str:
        """Of its page, and in the name of one that compares it."""
        from mnist_accel.profiling.trace_file import SUFFIXES

        suffix = next(filter(self.trace.name.endswith, SUFFIXES), self.trace.suffix)
        return "profile" if self.is_whole_run else self.trace.name.removesuffix(suffix) or "trace"

    @property
    def place(self) -> "Place":
        from mnist_accel.pages.profile_page import Place

        return Place(self.trace.name, str(self.trace.parent if self.is_whole_run else self.trace))


def read(trace: Path) -> Shown:
    summary, no_roofline, is_whole_run = summary_of(trace)
    return Shown(trace, summary, no_roofline, is_whole_run)


def show(console: Any, shown: Shown, baseline: Shown | None, traces: int) -> None:
    from mnist_accel.console import profile_report
    from mnist_accel.profiling.compare import compare

    summary = shown.summary
    rows = [("trace", str(shown.trace) + (f", the first of {traces}" if traces > 1 else ""))]
    if summary.recipe:
        rows.append(("recipe", f"{summary.recipe}, batch {summary.batch_size}, {summary.precision}"))
    if summary.machine:
        rows.append(("machine", ", ".join(f"{key} {value}" for key, value in summary.machine.items())))
    report.facts(console, rows)
    if baseline is None:
        profile_report.show_profile(console, summary, shown.no_roofline)
    else:
        profile_report.show_comparison(console, compare(summary, baseline.summary), printable(str(baseline.trace)))


def write_page(shown: Shown, baseline: Shown | None, asked: Path | None) -> str:
    """Where it is, or why there is none: beside a trace nobody has asked for it, so there it may fail."""
    from mnist_accel.pages import profile_comparison, profile_page

    target = asked or beside(shown, baseline)
    why = why_not_written(target)
    if not why:
        if baseline is None:
            page = profile_page.page_of(shown.summary, shown.place, shown.no_roofline)
        else:
            page = profile_comparison.page_of(shown.summary, shown.place, baseline.summary, baseline.place)
        try:
            write_whole(target, page.encode())
            return str(target)
        except OSError as error:
            why = f"cannot be written ({error.strerror})"
    if asked:
        raise UserError(f"out={asked}: {why}. Name another file")
    return f"none: {target} {why}; out=FILE names another"


def beside(shown: Shown, baseline: Shown | None) -> Path:
    name = shown.name
    if baseline:
        name += f"-against-{baseline.trace.absolute().parent.name if baseline.is_whole_run else baseline.name}"
    return shown.trace.with_name(f"{name}.html")


def why_not_written(target: Path) -> str:
    """Never over a file that is no such page."""
    from mnist_accel.pages.page import is_ours

    if target.is_dir():
        return "is a folder"
    if os.path.lexists(target) and not (target.is_file() and is_ours(target)):
        return "is a file that this program did not make"
    return "" if os.access(target.absolute().parent, os.W_OK | os.X_OK) else "cannot be written"


def summary_of(trace: Path) -> "tuple[ProfileSummary, str, bool]":
    """From the trace alone, but for what only the run could measure: that is taken from the summary beside it."""
    from mnist_accel.profiling.layers import analyse
    from mnist_accel.profiling.summary import summarise, summary_beside
    from mnist_accel.profiling.trace_file import read_trace

    content = read_trace(trace)
    beside, why_not = summary_beside(trace)
    facts: dict[str, Any] = {"trace": trace.name, "rank": content.rank, "world_size": content.world_size}
    if beside:
        copied = ("recipe", "batch_size", "precision", "machine", "world_size", "ranks", "usually_eager")
        facts |= {name: getattr(beside, name) for name in (*copied, "without_kernels")}
        facts["cost"] = beside.cost if beside.trace == trace.name else None
    analysis = analyse(content)
    if beside:
        copy_gradients(beside, analysis)
    plain = plain_steps(trace, content.rank, beside) if beside else None
    summary = summarise(analysis, beside.roofline if beside else None, plain, **facts)
    return summary, why_not, bool(beside and beside.trace == trace.name)


def copy_gradients(beside: "ProfileSummary", analysis: "Analysis") -> None:
    """How backward divides, which the run has measured."""
    known = {(row.module, row.shape): row.weight_share for row in beside.convolutions}
    for row in analysis.convolutions:
        if row.shape:
            row.measured_weight_share = known.get((row.place.module, row.shape.text))


def plain_steps(trace: Path, rank: int | None, beside: "ProfileSummary") -> "RankTimes | None":
    """Those of the trace's own process; a trace that the folder's run did not leave has none."""
    rank = 0 if trace.name == beside.trace else rank
    return next((times for times in beside.ranks or [] if times.rank == rank), None)


def how_to_open(trace: Path) -> list[tuple[str, str]]:
    """TensorBoard's plugin is no longer kept up: it is named where it is installed."""
    ways = [("open", f"drop {trace.name} onto https://ui.perfetto.dev")]
    if find_spec("tensorboard") and find_spec("torch_tb_profiler"):
        told = f"tensorboard --logdir {trace.parent}, then the tab PyTorch Profiler"
        if not trace.name.endswith((".pt.trace.json", ".pt.trace.json.gz")):
            told += "; its plugin looks for names that end in .pt.trace.json or .pt.trace.json.gz"
        ways.append(("or", told))
    return ways
