"""Show where a trace says the time went, or what changed against another one, and how to open it."""

import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic.dataclasses import dataclass

from mnist_accel import cli
from mnist_accel.console import report
from mnist_accel.errors import UserError, printable
from mnist_accel.recipe import CONFIG, keys_of, option

if TYPE_CHECKING:  # a typing mistake must not wait for torch
    from mnist_accel.profiling.layers import Analysis
    from mnist_accel.profiling.summary import ProfileSummary, RankTimes

USAGE = "python -m mnist_accel trace PATH against=OTHER"


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class TraceOptions:
    path: Annotated[str, option("a trace of torch.profiler, or a folder of profiles/; stands alone", min_length=1)]
    against: Annotated[str | None, option("another trace, to see which layers got faster", min_length=1)] = None


def main(argv: list[str]) -> int:
    console = report.make_console()
    if not argv or any(word in cli.HELP_WORDS for word in argv):
        console.print(f"{USAGE}   shows what profile=true showed, from the trace alone")
        report.show_keys(console, "Keys", keys_of(TraceOptions).values(), None)
        return 0
    words = with_path_named(argv)
    if "path" not in cli.split_words(words):
        raise UserError(f"trace: no path given. Type {USAGE}")
    options: TraceOptions = cli.read_options(words, TraceOptions)
    path, against = cli.expand_path(options.path, options.path), None
    if options.against:
        against = cli.expand_path(options.against, options.against)

    from mnist_accel.profiling.trace_file import find_traces

    traces = find_traces(path)
    other = find_traces(against)[0] if against else None
    from mnist_accel.console import profile_report
    from mnist_accel.profiling.compare import compare

    summary, no_roofline = summary_of(traces[0])
    baseline = summary_of(other)[0] if other else None
    rows = [("trace", str(traces[0]) + (f", the first of {len(traces)}" if len(traces) > 1 else ""))]
    if summary.recipe:
        rows.append(("recipe", f"{summary.recipe}, batch {summary.batch_size}, {summary.precision}"))
    if summary.machine:
        rows.append(("machine", ", ".join(f"{key} {value}" for key, value in summary.machine.items())))
    report.facts(console, [(name, printable(value)) for name, value in rows])
    if baseline is None:
        profile_report.show_profile(console, summary, no_roofline)
    else:
        profile_report.show_comparison(console, compare(summary, baseline), printable(str(other)))
    console.print()
    report.facts(console, [(name, printable(value)) for name, value in how_to_open(traces[0])])
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


def summary_of(trace: Path) -> "tuple[ProfileSummary, str]":
    """From the trace alone, but for what only the run could measure: that is taken from the summary beside it."""
    from mnist_accel.profiling.layers import analyse
    from mnist_accel.profiling.summary import summarise, summary_beside
    from mnist_accel.profiling.trace_file import read_trace

    read = read_trace(trace)
    beside, why_not = summary_beside(trace)
    facts: dict[str, Any] = {"trace": trace.name, "rank": read.rank, "world_size": read.world_size}
    if beside:
        copied = ("recipe", "batch_size", "precision", "machine", "world_size", "ranks", "usually_eager")
        facts |= {name: getattr(beside, name) for name in (*copied, "without_kernels")}
        facts["cost"] = beside.cost if beside.trace == trace.name else None
    analysis = analyse(read)
    if beside:
        copy_gradients(beside, analysis)
    plain = plain_steps(trace, read.rank, beside) if beside else None
    return summarise(analysis, beside.roofline if beside else None, plain, **facts), why_not


def copy_gradients(beside: "ProfileSummary", analysis: "Analysis") -> None:
    """How backward divides, which the run has measured."""
    known = {(row.module, row.shape): row.weight_share for row in beside.convolutions}
    for row in analysis.convolutions:
        row.measured_weight_share = known.get((row.module, str(row.shape)))


def plain_steps(trace: Path, rank: int | None, beside: "ProfileSummary") -> "RankTimes | None":
    """Those of the trace's own process; a trace that the folder's run did not leave has none."""
    rank = 0 if trace.name == beside.trace else rank
    return next((times for times in beside.ranks or [] if times.rank == rank), None)


def how_to_open(trace: Path) -> list[tuple[str, str]]:
    tensorboard = f"tensorboard --logdir {trace.parent}, then the tab PyTorch Profiler"
    if not (find_spec("tensorboard") and find_spec("torch_tb_profiler")):
        tensorboard += "; not installed here: pip install -e '.[profile]'"
    if not trace.name.endswith((".pt.trace.json", ".pt.trace.json.gz")):
        tensorboard += "; its plugin looks for names that end in .pt.trace.json or .pt.trace.json.gz"
    return [("open", tensorboard), ("or", f"drop {trace.name} onto https://ui.perfetto.dev")]
