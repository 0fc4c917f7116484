"""Sides measured in turn: A B A B …, because a machine with noisy neighbours is another machine a minute later.

Each ratio is taken within one turn, and the median of the ratios is what counts.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import median

Say = Callable[[str], None]


@dataclass(frozen=True)
class Reading:
    """One measurement of one side, with the accuracy or loss that the speed was had at."""

    value: float
    quality: float


Measure = Callable[[], float | Reading]


@dataclass(frozen=True)
class Ratio:
    """Turn by turn. The target is for two CPU cores; None elsewhere."""

    of: str
    values: list[float]
    target: float | None = None
    at_most: bool = False

    @property
    def median(self) -> float:
        return median(self.values)

    @property
    def met(self) -> bool | None:
        if self.target is None:
            return None
        return self.median <= self.target if self.at_most else self.median >= self.target


@dataclass(frozen=True)
class Comparison:
    """What each side took or delivered in every turn."""

    label: str
    unit: str
    sides: dict[str, list[float]]
    ratios: list[Ratio]
    quality_of: str = ""
    qualities: dict[str, list[float]] = field(default_factory=dict)


def in_turn(sides: Mapping[str, Measure], pairs: int, unit: str, say: Say) -> dict[str, list[float]]:
    """Every side once, ``pairs`` times over."""
    values, _ = in_turn_with_quality(sides, pairs, unit, say)
    return values


def in_turn_with_quality(
    sides: Mapping[str, Measure], pairs: int, unit: str, say: Say
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    values: dict[str, list[float]] = {name: [] for name in sides}
    qualities: dict[str, list[float]] = {}
    for pair in range(pairs):
        for name, measure in sides.items():
            reading = measure()
            if isinstance(reading, Reading):
                qualities.setdefault(name, []).append(reading.quality)
                reading = reading.value
            values[name].append(reading)
        figures = ", ".join(f"{name} {shown(values[name][-1])} {unit}" for name in sides)
        say(f"{pair + 1}/{pairs}: {figures}")
    return values, qualities


def shown(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def divided(above: list[float], below: list[float]) -> list[float]:
    return [a / b for a, b in zip(above, below, strict=True)]
