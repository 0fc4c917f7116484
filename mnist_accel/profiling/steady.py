"""Estimates the step as it is when nothing disturbs it, as long as the run's steps without the profiler.

1. Steps longer than 1.25 times the median of the traced ones are set aside. What writes a checkpoint counts for no
   step's length: it is no disturbance.
2. Each piece of a step is the slowest of the fastest tenth of the n-th pieces of its owner, over the steps that are
   left: on a busy machine a neighbour's job lies on some piece of every step, but seldom on the same one in nine of
   ten. What only some steps do is a mean.
3. All pieces are scaled alike, so that together they take as long as a step of the same run without the profiler. On a
   GPU it is the launching that the profiler slows down: kernels keep their times, and the device's idleness gives way.
   Checkpoints, which few steps write, keep theirs and come on top.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median, quantiles
from typing import TypeVar

from mnist_accel.profiling.attribution import SAVING, Owner
from mnist_accel.profiling.layers import IDLING, Analysis, Piece, StepTimes, with_times
from mnist_accel.profiling.roofline import Measured

T = TypeVar("T")
LONGEST = 1.25  # times the median: what takes longer was disturbed


@dataclass(frozen=True)
class RankTimes:
    """A process's steps, with the profiler and without it."""

    rank: int
    profiled_ms: float
    plain_ms: Measured
    plain_spread_ms: float = 0.0


@dataclass(frozen=True)
class Typical:
    """``step`` is one step: the sums are of its quiet pieces, together as long as a step without the profiler."""

    step: Analysis
    kept: list[StepTimes]
    set_aside: int
    factor: float  # that its pieces were scaled by
    plain: RankTimes | None

    def spread_us(self, us: float, belongs: Callable[[Owner], bool], whole_kernels: bool = False) -> float:
        """Of a row that has ``us`` a step: the range of its middle half over the steps, and its part of the range of
        those without the profiler."""
        of_steps = [
            sum(us for owner, us in (step.whole if whole_kernels else step.pieces) if belongs(owner))
            for step in self.kept
        ]
        of_plain = us * self.plain.plain_spread_ms / self.plain.plain_ms if self.plain else 0.0
        return self.factor * middle_half(of_steps) + of_plain


def undisturbed(steps: Sequence[T], length: Callable[[T], float]) -> list[T]:
    limit = LONGEST * median(map(length, steps))
    return [step for step in steps if length(step) <= limit]


def middle_half(values: Sequence[float]) -> float:
    """From the first to the third quartile: half of the values lie within, and the odd one does not matter."""
    if len(values) < 2:
        return 0.0
    first, _, third = quantiles(values, n=4, method="inclusive")
    return third - first


def typical_step(analysis: Analysis, plain: RankTimes | None) -> Typical:
    """``plain`` is None where the trace is all there is: then the step has the median length of those that are kept."""
    kept = undisturbed(analysis.each, lambda step: step.length)
    target = 1000 * plain.plain_ms if plain else median(step.length for step in kept)
    spent, factor = fitted(undisturbed_pieces([step.pieces for step in kept]), target, analysis.on_gpu)
    whole = {owner: factor * us for owner, us in undisturbed_pieces([step.whole for step in kept]).items()}
    rows = with_times(analysis.convolutions, whole)
    step = replace(analysis, steps=1, total_us=sum(spent.values()), parts=spent, convolutions=rows)
    return Typical(step, kept, len(analysis.each) - len(kept), factor, plain)


def quiet(times: Iterable[float]) -> float:
    """The slowest of the fastest tenth. Beside other jobs even medians of one thing differ by a factor of two from
    minute to minute; what it takes when nobody interferes does not."""
    ordered = sorted(times)
    return ordered[len(ordered) // 10]


def undisturbed_pieces(steps: Sequence[Sequence[Piece]]) -> dict[Owner, float]:
    """What each owner has in a step."""
    of_owner: dict[Owner, list[list[float]]] = defaultdict(list)  # of the steps that have it, its pieces
    for pieces in steps:
        here: dict[Owner, list[float]] = defaultdict(list)
        for owner, us in pieces:
            here[owner].append(us)
        for owner, times in here.items():
            of_owner[owner].append(times)
    return {owner: usual(of_steps, len(steps)) for owner, of_steps in of_owner.items()}


def usual(of_steps: Sequence[Sequence[float]], count: int) -> float:
    if len(of_steps) < count:
        return sum(map(sum, of_steps)) / count
    if len(set(map(len, of_steps))) > 1:  # the n-th is not the same in all
        return quiet(map(sum, of_steps))
    return sum(map(quiet, zip(*of_steps, strict=True)))


def fitted(spent: Mapping[Owner, float], target: float, on_gpu: bool) -> tuple[dict[Owner, float], float]:
    """The pieces, which but for checkpoints now take ``target``; and the factor of those that do not idle."""
    working = {owner: us for owner, us in spent.items() if owner not in (SAVING, IDLING)}
    saving = {owner: us for owner, us in spent.items() if owner == SAVING}
    busy = sum(working.values())
    if on_gpu and busy <= target:
        return {**working, IDLING: target - busy, **saving}, 1.0
    factor = target / busy if busy else 1.0
    return {owner: factor * us for owner, us in working.items()} | saving, factor
