"""The picture's points: what ``verify`` measured of each recipe, and what others published."""

from collections.abc import Iterable, Iterator, Mapping

from mnist_accel.pages.accuracy_picture import Point, picture
from mnist_accel.recipe import with_shifts
from mnist_accel.runs.evidence import Evidence, Seed, summarise
from mnist_accel.runs.sources import Source


def picture_of(measured: Iterable[Evidence], shifts: Mapping[str, int], published: Iterable[Source]) -> str:
    """``shifts``: by recipe, those it is scored with."""
    return picture([*our_points(measured, shifts), *their_points(published)])


def our_points(measured: Iterable[Evidence], shifts: Mapping[str, int]) -> Iterator[Point]:
    for evidence in sorted(measured, key=lambda one: one.recipe):
        if any(seed.positive for seed in evidence.seeds):
            continue  # told one class from the rest, where 90 % is nothing
        summary = summarise(evidence.seeds)
        places = {where_of(evidence, seed) for seed in evidence.seeds if seed.seconds is not None}
        is_one_place = len(places) == 1  # else the mean of their seconds is nobody's
        yield Point(
            evidence.recipe,
            evidence.params,
            summary.seconds if is_one_place else None,
            summary.mean,
            summary.interval,
            ours=True,
            where=places.pop() if is_one_place else "",
            how=f"{summary.seeds} seed{'s'[: summary.seeds > 1]}, last epoch"
            + with_shifts(shifts.get(evidence.recipe, 0)),
        )


def where_of(evidence: Evidence, seed: Seed) -> str:
    under = evidence.circumstances[seed.under]
    return f"{under.threads} CPU core{'s'[: under.threads > 1]}" if under.device == "cpu" else under.device


def their_points(published: Iterable[Source]) -> Iterator[Point]:
    for source in published:
        yield Point(
            source.name,
            source.params,
            source.seconds,
            source.accuracy,
            honest=source.honest,
            where=source.machine or "",
            how=source.how,
        )
