"""The picture of a scaling measurement: images a second and efficiency over the number of processes."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.scaling import Point, ideal

SIZE_INCHES = (11.0, 4.6)
DOTS_AN_INCH = 120
STYLES = {"strong": ("tab:blue", "o"), "weak": ("tab:orange", "s")}


def draw(path: Path, points: Sequence[Point], *, title: str, machine: str) -> None:
    """Needs no display. Shaded: where the machine has fewer cores than the processes want."""
    figure = Figure(figsize=SIZE_INCHES, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    figure.supxlabel(machine, fontsize=8)
    speed, share = figure.subplots(1, 2)
    modes = list(dict.fromkeys(point.mode for point in points))
    counts = sorted({point.processes for point in points})
    crowded = sorted({point.processes for point in points if point.crowded})
    for mode in modes:
        own = [point for point in points if point.mode == mode]
        colour, marker = STYLES[mode]
        numbers = [point.processes for point in own]
        speeds = [point.speed for point in own]
        below = [point.speed - min(point.images_per_second) for point in own]
        above = [max(point.images_per_second) - point.speed for point in own]
        batch = f"batch {own[0].batch_size}" + (" a process" if mode == "weak" else "")
        speed.errorbar(
            numbers, speeds, [below, above], color=colour, marker=marker, capsize=3, label=f"{mode}, {batch}"
        )
        share.plot(
            numbers, [100 * point.efficiency for point in own], color=colour, marker=marker, label=f"{mode}: efficiency"
        )
        share.plot(
            numbers,
            [100 * point.all_reduce_share for point in own],
            color=colour,
            marker=marker,
            linestyle=":",
            label=f"{mode}: all-reduce",
        )
    alike = [point for point in points if point.mode == modes[0]]
    ideals = [ideal(point, points) for point in alike]
    speed.plot([point.processes for point in alike], ideals, color="grey", linestyle="--", label="ideal machine")
    share.axhline(100, color="grey", linestyle="--", label="ideal machine")
    speed.set_ylabel("images/s")
    share.set_ylabel("efficiency and all-reduce, %")
    for axes in (speed, share):
        if crowded:
            axes.axvspan(halfway_to(crowded[0], counts), counts[-1], color="grey", alpha=0.12, label="more than cores")
        axes.set_xlabel("processes")
        axes.set_xticks(counts)
        axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=DOTS_AN_INCH, format="png")


def halfway_to(count: int, counts: Sequence[int]) -> float:
    """From the one before it."""
    return (counts[max(0, counts.index(count) - 1)] + count) / 2
