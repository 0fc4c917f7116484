"""What a profile shows: the verdict, the step by phase, a row for every convolution, and what profiling cost."""

from typing import Any

from mnist_accel.profiling.summary import ConvolutionRow, Cost, Summary
from mnist_accel.report import show_table, simple_table

BAR = 24  # characters of 100 %


def show_profile(console: Any, summary: Summary, no_roofline: str = "") -> None:
    """``no_roofline`` says why there is none."""
    console.print()
    console.print(summary.verdict.sentence, style="bold", markup=False)
    console.print(
        ", ".join(f"{part.name} {part.percent} %" for part in summary.verdict.parts), style="dim", markup=False
    )
    for line in what_is_shown(summary):
        console.print(line, style="dim", markup=False)
    show_phases(console, summary)
    show_convolutions(console, summary, no_roofline)
    if summary.cost:
        show_cost(console, summary.cost)
    if summary.folder:
        console.print(f"\npython -m mnist_accel trace {summary.folder}   shows this again and how to open the trace")


def what_is_shown(summary: Summary) -> list[str]:
    lines = []
    if summary.verdict.other_layers:
        largest = ", ".join(f"{part.name} {part.percent} %" for part in summary.verdict.other_layers[:5])
        lines.append(f"Of the step, other layers: {largest}")
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


def show_phases(console: Any, summary: Summary) -> None:
    table = simple_table("phase", "ms", "%", "")
    for phase in summary.phases:
        table.add_row(phase.name, f"{phase.ms:.3f}", f"{phase.share:.1f}", "▇" * round(phase.share * BAR / 100))
    table.add_row("the step", f"{summary.step_ms:.3f}", "100.0", f"mean of {summary.steps}")
    console.print()
    show_table(console, right(table, 1, 2))


def show_convolutions(console: Any, summary: Summary, no_roofline: str) -> None:
    if not summary.convolutions:
        console.print("\nThere is no convolution in these steps.")
        return
    table = simple_table(
        "", "shape", "forward ms", "%", "backward ms", "%", "MFLOP f+w+i", "GFLOP /s", "FLOP /byte", "% of roof"
    )
    for row in summary.convolutions:
        table.add_row(
            label(row),
            row.shape,
            f"{row.forward_ms:.3f}",
            f"{row.forward_share:.1f}",
            f"{row.backward_ms:.3f}",
            f"{row.backward_share:.1f}",
            flops(row),
            number(row.gflops),
            number(row.intensity),
            number(row.roofline_percent),
        )
    console.print()
    show_table(console, right(table, *range(2, 10)))
    lines = ["f+w+i: of the forward pass, of the weights' gradient, of the input's gradient."]
    roofline = summary.roofline
    if roofline:
        lines.append(
            f"Roof: {roofline.precision} matrix product {roofline.matmul_gflops:,.0f} GFLOP/s, copy "
            f"{roofline.copy_gb_s:,.0f} GB/s, measured beside the run; references, not limits."
        )
    elif no_roofline:
        lines.append(f"No percent of the roof: {no_roofline}.")
    if summary.convolutions_roofline_percent is not None:
        lines.append(f"All convolutions, weighted by time: {summary.convolutions_roofline_percent:.0f} % of the roof.")
    for line in lines:
        console.print(line, style="dim", markup=False)


def show_cost(console: Any, cost: Cost) -> None:
    console.print()
    console.print(
        f"Profiling: a step took {cost.profiled_ms:.2f} ms with it and {cost.plain_ms:.2f} ms without "
        f"({cost.factor:.2f} times; medians of {len(cost.profiled)} and "
        f"{len(cost.plain_before) + len(cost.plain_after)} steps, before and after), "
        f"and it added {cost.seconds:.2f} s to the training time.",
        markup=False,
    )


def label(row: ConvolutionRow) -> str:
    return f"{row.name} [{row.module}]" if row.module and row.module != row.name else row.name


def flops(row: ConvolutionRow) -> str:
    each = (row.gflop_forward, row.gflop_weight_gradient, row.gflop_input_gradient)
    return "+".join(number(None if value is None else 1000 * value) for value in each)


def number(value: float | None) -> str:
    """Three figures are as many as a measurement on a shared machine has."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 or value == 0 else f"{value:.1f}" if value >= 10 else f"{value:.2g}"


def right(table: Any, *columns: int) -> Any:
    for column in columns:
        table.columns[column].justify = "right"
    return table
