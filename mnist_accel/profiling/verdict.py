"""Says what bounds the run: one sentence, and percentages that add up to 100."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import floor

from mnist_accel.profiling.attribution import Place
from mnist_accel.profiling.layers import Analysis

NAMES = {
    "all-reduce": "exposed all-reduce",
    "checkpoint": "writing checkpoints",
    "other": "operations outside of layers",
}
PLURAL = ("operations outside of layers", "other layers")


@dataclass(frozen=True)
class Part:
    name: str
    ms: float  # per step
    percent: int


@dataclass(frozen=True)
class Verdict:
    sentence: str
    parts: list[Part]  # the largest first
    other_layers: list[Part]  # what "other layers" consists of, in percent of the step


def find_verdict(analysis: Analysis, names: Sequence[str]) -> Verdict:
    """``names`` are those of the convolutions."""
    spent: dict[str, float] = defaultdict(float)
    layers: dict[str, float] = defaultdict(float)
    name_of = {row.place: name for row, name in zip(analysis.convolutions, names, strict=True)}
    for owner, duration in analysis.parts.items():
        if isinstance(owner.detail, Place):
            spent[f"{name_of[owner.detail]}'s {owner.kind.removeprefix('convolution ')}"] += duration
            continue
        if owner.kind == "other layers":
            layers[owner.detail] += duration
        spent[part_name(owner.kind, analysis.on_gpu)] += duration
    parts = as_parts(spent, analysis.steps)
    of_layers = [
        Part(name, us / analysis.steps / 1000, round(100 * us / analysis.total_us))
        for name, us in sorted(layers.items(), key=lambda item: -item[1])
        if us > 0
    ]
    return Verdict(sentence(parts, of_layers), parts, of_layers)


def part_name(kind: str, on_gpu: bool) -> str:
    if kind == "overhead":
        # On a CPU nothing waits to be launched; but Python's part between the operations is the same cost.
        return "launch overhead" if on_gpu else "Python between the operations"
    return NAMES.get(kind, kind)


def as_parts(spent: Mapping[str, float], steps: int) -> list[Part]:
    names = sorted((name for name in spent if spent[name] > 0), key=lambda name: -spent[name])
    percents = adding_up([spent[name] for name in names])
    return [Part(name, spent[name] / steps / 1000, percent) for name, percent in zip(names, percents, strict=True)]


def adding_up(values: Sequence[float]) -> list[int]:
    """Whole percentages that add up to 100: rounded down, and what is left goes to the largest remainders."""
    whole = sum(values)
    if not values or whole <= 0:
        return [0 for _ in values]
    shares = [100 * (value / whole) for value in values]
    rounded = [floor(share) for share in shares]
    by_remainder = sorted(range(len(values)), key=lambda index: rounded[index] - shares[index])
    for index in by_remainder[: 100 - sum(rounded)]:
        rounded[index] += 1
    return rounded


def sentence(parts: Sequence[Part], other_layers: Sequence[Part]) -> str:
    if not parts:
        return "Nothing ran."
    first, *rest = parts
    verb = "bound" if first.name in PLURAL else "bounds"
    text = f"{first.name[0].upper()}{first.name[1:]} {verb} this run: {first.percent}% of the step"
    largest = ", ".join(f"{part.name} {part.percent}%" for part in other_layers[:3] if part.percent)
    if first.name == "other layers" and largest:
        text = f"Layers other than convolutions bound this run: {first.percent}% of the step ({largest})"
    then = [f"{part.name} {part.percent}%" for part in rest[:3] if part.percent]
    return text + (f", before {', '.join(then)}" if then else "") + "."
