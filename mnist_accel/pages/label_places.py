"""Room for labels in a chart: each text in the nearest free place to its point, off all that lies there already."""

import math
from collections.abc import Iterator, Sequence
from itertools import product
from typing import NamedTuple

LETTER = 0.58  # of the type's size: how wide a letter of an unknown font is taken to be
# Degrees, the likeliest first.
DIRECTIONS = (0, 180, *(side for angle in (30, 150, 60, 120, 90, 15, 165, 75, 105) for side in (angle, -angle)))


class Box(NamedTuple):
    left: float
    top: float
    right: float
    bottom: float

    def meets(self, other: "Box", gap: float = 0.0) -> bool:
        return (
            self.left < other.right + gap
            and other.left < self.right + gap
            and self.top < other.bottom + gap
            and other.top < self.bottom + gap
        )

    def is_inside(self, room: "Box") -> bool:
        return (
            room.left <= self.left and self.right <= room.right and room.top <= self.top and self.bottom <= room.bottom
        )

    def nearest(self, x: float, y: float) -> tuple[float, float]:
        return min(max(x, self.left), self.right), min(max(y, self.top), self.bottom)


Line = tuple[float, float, float, float]


class Desk:
    """A panel with what lies on it already: marks of points, of this ``radius``, and texts of ``size``.

    ``dense``: every text is to find a place, however far off its point, and its line may cross others.
    """

    def __init__(self, room: Box, marks: Sequence[Box], size: float, radius: float, dense: bool):
        self.room, self.size, self.radius, self.dense = room, size, radius, dense
        self.marks = list(marks)
        self.taken = list(marks)
        self.labels: list[Box] = []
        self.leads: list[Line] = []

    def find(self, px: float, py: float, text: str) -> tuple[Box, Line | None] | None:
        """The nearest free place, taken. Where every line to one would cross something, a line may."""
        own = around(px, py, self.radius + 1)
        for strict in (True, False)[: 1 + self.dense]:
            for box, stands_off in self.places(px, py, text):
                lead = (px, py, *box.nearest(px, py)) if stands_off else None
                if self.has_room(box, lead, own, strict):
                    self.take(box, lead)
                    return box, lead
        return None

    def has_room(self, box: Box, lead: Line | None, own: Box, strict: bool) -> bool:
        if not box.is_inside(self.room) or any(box.meets(other, 1.5) for other in self.taken):
            return False
        if any(crosses(other, box) for other in self.leads):
            return False
        if lead is None or not strict:
            return True
        in_the_way = [*(mark for mark in self.marks if mark != own), *self.labels]
        return not any(crosses(lead, other) for other in in_the_way) and not any(cut(lead, one) for one in self.leads)

    def take(self, box: Box, lead: Line | None) -> None:
        self.taken.append(box)
        self.labels.append(box)
        if lead:
            self.leads.append(lead)

    def places(self, px: float, py: float, text: str) -> Iterator[tuple[Box, bool]]:
        """Boxes around a point, the nearest first, and whether one stands off and needs a line to its point."""
        width, height = width_of(text, self.size), 1.15 * self.size
        for step in range(24 if self.dense else 3):
            distance = self.radius + 4 + step * 0.7 * self.size
            for degrees in DIRECTIONS:
                angle = math.radians(degrees)
                x = px + math.cos(angle) * (distance + width / 2)
                y = py - math.sin(angle) * (distance + height / 2)
                yield Box(x - width / 2, y - height / 2, x + width / 2, y + height / 2), step > 0
            for share, side in product((0.25, 0.75, 0.0, 1.0), (-1, 1)):  # above and below, further left or right
                left, y = px - share * width, py + side * (distance + height / 2)
                yield Box(left, y - height / 2, left + width, y + height / 2), step > 0


def around(px: float, py: float, reach: float) -> Box:
    return Box(px - reach, py - reach, px + reach, py + reach)


def crosses(line: Line, box: Box) -> bool:
    """Looked at in fortieths of the line, which is shorter than forty of the smallest mark."""
    x1, y1, x2, y2 = line
    for step in range(40):
        x, y = x1 + (x2 - x1) * step / 40, y1 + (y2 - y1) * step / 40
        if box.left < x < box.right and box.top < y < box.bottom:
            return True
    return False


def cut(one: Line, other: Line) -> bool:
    """Whether two lines meet between their ends."""

    def side(line: Line, x: float, y: float) -> float:
        x1, y1, x2, y2 = line
        return (x2 - x1) * (y - y1) - (y2 - y1) * (x - x1)

    return side(one, *other[:2]) * side(one, *other[2:]) < 0 and side(other, *one[:2]) * side(other, *one[2:]) < 0


def shortened(line: Line, by: float) -> Line:
    """From the point's edge, not from its middle."""
    x1, y1, x2, y2 = line
    length = math.hypot(x2 - x1, y2 - y1)
    share = min(by / length, 1.0) if length else 0.0
    return x1 + (x2 - x1) * share, y1 + (y2 - y1) * share, x2, y2


def width_of(text: str, size: float) -> float:
    return LETTER * size * len(text)
