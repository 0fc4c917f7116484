"""A profile in words: the console and the page say the same."""

from mnist_accel.profiling.roofline import Roofline
from mnist_accel.profiling.steady import LONGEST
from mnist_accel.profiling.summary import ConvolutionRow, Cost, ProfileSummary

SAME_IS = "Same: within a twentieth, or closer than the middle half of each trace's steps lie apart."


def what_is_shown(summary: ProfileSummary) -> list[str]:
    lines = [how_it_was_scaled(summary)]
    parts = summary.verdict.parts
    if parts and parts[0].name != "other layers":  # else the verdict has named them
        largest = [f"{part.name} {part.percent}%" for part in summary.verdict.other_layers[:3] if part.percent]
        if largest:
            lines.append(f"Layers other than convolutions, in percent of the step: {', '.join(largest)}")
    if summary.world_size > 1:
        shown = f"rank {summary.rank}" if summary.rank is not None else "one"
        lines.append(f"Of {summary.world_size} processes {shown} is shown.")
        if summary.ranks:
            times = ", ".join(f"rank {rank.rank} {rank.plain_ms:.2f} ms" for rank in summary.ranks)
            lines.append(f"A step without the profiler: {times}")
    if not summary.eager:
        lines.append("A captured graph ran in these steps: its kernels do not tell which layer they belong to.")
    elif not summary.usually_eager:
        lines.append("A captured graph trains; it was set aside for these steps, which ran eagerly.")
    return lines


def how_it_was_scaled(summary: ProfileSummary) -> str:
    text = f"Of {summary.steps} traced steps {summary.set_aside} were set aside, longer than {LONGEST} times the median"
    if summary.scale is None:
        return f"{text}; not scaled, for the trace does not tell how long a step is without the profiler."
    if summary.on_gpu and summary.scale == 1:
        return f"{text}; launch overhead is what a step without the profiler leaves beside the kernels."
    return f"{text}; times are scaled by {summary.scale:.2f} to a step without the profiler."


def what_the_roof_is(roofline: Roofline) -> str:
    return (
        f"Roof: {roofline.precision} matrix product {roofline.matmul_gflops:,.0f} GFLOP/s, copy "
        f"{roofline.copy_gb_s:,.0f} GB/s, measured beside the run; % of roof is a layer's GFLOP/s in percent of "
        "what these allow at its FLOP/byte."
    )


def what_it_cost(cost: Cost) -> str:
    return (
        f"Profiling: a step took {cost.profiled_ms:.2f} ms with it and {cost.plain_ms:.2f} ms without "
        f"({cost.factor:.2f} times; medians of {len(cost.profiled)} and "
        f"{len(cost.plain_before) + len(cost.plain_after)} steps, before and after, but for those set aside), "
        f"and reading it out took {cost.seconds:.2f} s, which no training time counts."
    )


def label(row: ConvolutionRow) -> str:
    return f"{row.name} [{row.module}]" if row.module and row.module != row.name else row.name


def three_figures(value: float | None) -> str:
    """Three figures are as many as a measurement on a shared machine has."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 or value == 0 else f"{value:.3g}"
