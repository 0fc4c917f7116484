"""Accuracy against parameters and against seconds, ours and what others published, as one SVG file.

It is drawn twice into the same frame: for a page's width with a name at every point, and in large type for a phone,
where only those names stand that find room. The file's own style shows the one that fits.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from mnist_accel.pages.charts import Scale
from mnist_accel.pages.label_places import Box, Desk, Line, around, shortened, width_of
from mnist_accel.pages.page import Html, joined, tag

WIDTH, HEIGHT = 960, 560
TICKS = (50.0, 80.0, 90.0, 95.0, 98.0, 99.0, 99.5, 99.7, 99.8, 99.9)  # percent right
LEAST_ERROR = 0.005  # half an image of 10,000: a log scale has no room for none
USUAL_MACHINE = "2 CPU cores"  # the others are named at their points
KNEE = 2.0  # percent wrong: where most of the networks begin
BELOW_KNEE = 0.45  # of the room that a log scale would give to those that are wrong more often
STYLE = """
svg { font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Noto Sans", sans-serif; }
.paper { fill: #fcfbf9; } text { fill: #1f2328; } .quiet { fill: #646a73; } .grid { stroke: #e7e3dc; }
.other { fill: #7b8794; stroke: #7b8794; } .ours { fill: #c4682f; stroke: #c4682f; } text.ours { stroke: none; }
.lead { stroke: #bcb5a9; } circle { stroke-width: 1.8; } circle.hollow { fill: #fcfbf9; }
.narrow { display: none; }
@media (max-width: 560px) { .wide { display: none; } .narrow { display: inline; } }
@media (prefers-color-scheme: dark) {
  .paper { fill: #15171b; } text { fill: #e6e4df; } .quiet { fill: #9aa0a8; } .grid { stroke: #2c3037; }
  .other { fill: #93a0ae; stroke: #93a0ae; } .ours { fill: #e8a06c; stroke: #e8a06c; } circle.hollow { fill: #15171b; }
  .lead { stroke: #565c65; }
}
"""


@dataclass(frozen=True)
class Point:
    """``honest``: a mean over seeds or a last epoch; else it was chosen by its accuracy on the test images."""

    name: str  # points of one name share a label
    params: int
    seconds: float | None  # of training
    accuracy: float  # percent
    interval: tuple[float, float] | None = None  # percent; holds the true mean with 95 %
    honest: bool = True
    ours: bool = False
    where: str = ""
    how: str = ""


class Place(NamedTuple):
    """Where a panel has a point."""

    x: float
    y: float
    point: Point


@dataclass(frozen=True)
class Height:
    """Accuracies by the logarithm of what is wrong, closer together below the knee."""

    scale: Scale

    def __call__(self, accuracy: float) -> float:
        return self.scale(bent(error_of(accuracy)))


@dataclass(frozen=True)
class Type:
    """How large letters and marks are drawn, and where the two panels begin and end."""

    class_: str
    size: float
    dot: float
    panels: tuple[tuple[float, float], tuple[float, float]]
    top: float
    bottom: float
    dense: bool  # a name at every point, and the words of the legend in full


WIDE = Type("wide", 13, 5, ((62, 500), (562, 942)), 76, HEIGHT - 56, True)
NARROW = Type("narrow", 25, 9, ((104, 500), (612, 944)), 124, HEIGHT - 88, False)


@dataclass(frozen=True)
class Label:
    text: str
    box: Box
    anchor: str
    lead: Line | None  # the line from the point to a label that stands off
    ours: bool


def in_thousands(value: float) -> str:
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


@dataclass(frozen=True)
class Axis:
    title: str
    value_of: Callable[[Point], float | None]
    form: Callable[[float], str]
    names_machine: bool


AXES = (
    Axis("parameters", lambda point: point.params, in_thousands, False),
    Axis("training seconds", lambda point: point.seconds, lambda value: f"{value:g} s", True),
)


def picture(points: Sequence[Point]) -> str:
    """The whole file, the same for the same points."""
    label = "Test accuracy on MNIST against parameters and against training seconds: " + ", ".join(map(told, points))
    return (
        tag(
            "svg",
            *lines(
                tag("title", label),
                tag("style", Html(STYLE)),
                tag("rect", width=WIDTH, height=HEIGHT, rx=10, class_="paper"),
                *(drawn(points, type_) for type_ in (WIDE, NARROW)),
            ),
            xmlns="http://www.w3.org/2000/svg",
            viewBox=f"0 0 {WIDTH} {HEIGHT}",
            role="img",
        )
        + "\n"
    )


def drawn(points: Sequence[Point], type_: Type) -> Html:
    errors = [error_of(accuracy) for point in points for accuracy in (point.accuracy, *(point.interval or ()))]
    y = Height(spread([bent(error) for error in errors or [0.5, 2.0]], type_.top, type_.bottom))
    parts = [legend(type_)]
    for axis, (left, right) in zip(AXES, type_.panels, strict=True):
        parts.append(panel(points, axis, y, left, right, type_))
    return tag("g", *lines(*parts), class_=type_.class_, font_size=type_.size)


def panel(points: Sequence[Point], axis: Axis, y: Height, left: float, right: float, type_: Type) -> Html:
    placed = [(value, point) for point in points if (value := axis.value_of(point)) is not None and value > 0]
    x = spread([value for value, _ in placed] or [1.0, 10.0], left, right)
    at = [Place(x(value), y(point.accuracy), point) for value, point in placed]
    at.sort(key=lambda place: (place.point.ours, place.point.honest))  # ours on top
    parts = [frame(axis, x, y, left, right, type_)]
    parts += [bar(place, y, type_) for place in at if place.point.interval]
    parts += [tie(place, at) for place in at if not place.point.honest]
    parts += [mark(place, type_, told_at_length(place.point)) for place in at]
    parts += [written(label, type_) for label in labels(at, y, axis, Box(left, type_.top, right, type_.bottom), type_)]
    return joined(lines(*filter(None, parts)))


def frame(axis: Axis, x: Scale, y: Height, left: float, right: float, type_: Type) -> Html:
    parts = []
    for accuracy in TICKS:
        if type_.top <= y(accuracy) <= type_.bottom:
            at = rounded(y(accuracy))
            parts.append(tag("path", d=f"M{left} {at}H{right}", class_="grid"))
            parts.append(words(f"{accuracy:g} %", left - 7, at, "end", "quiet", dy="0.35em"))
    for value in round_values(x, (1, 3) if type_.dense else (1,)):
        below = type_.bottom + 1.4 * type_.size
        parts.append(words(axis.form(value), x(value), below, "middle", "quiet"))
    parts.append(words("test accuracy", left, type_.top - 0.8 * type_.size, "start", "quiet"))
    title = axis.title + f" ({USUAL_MACHINE} unless named)" * (axis.names_machine and type_.dense)
    parts.append(words(title, right, type_.bottom + 2.8 * type_.size, "end"))
    return joined(lines(*parts))


def round_values(x: Scale, times: Sequence[int]) -> list[float]:
    every = [10.0**power * factor for power in range(-3, 10) for factor in times]
    return [value for value in every if x.low <= value <= x.high]


def legend(type_: Type) -> Html:
    """What colour and filling mean."""
    kinds = [
        (True, True, "this program: mean over seeds, 95 % interval", "ours, mean"),
        (False, True, "others: a mean, or a last epoch", "others"),
        (False, False, "others: chosen by the test set", "chosen by the test set"),
    ]
    parts, at = [], type_.panels[0][0] - (0 if type_.dense else 80)
    for ours, honest, full, brief in kinds:
        text = full if type_.dense else brief
        height = 1.8 * type_.size + 8
        point = Point(text, 1, None, 99.0, honest=honest, ours=ours)
        parts.append(mark(Place(at + type_.dot, height, point), type_))
        parts.append(words(text, at + 2.8 * type_.dot, height, "start", dy="0.35em"))
        at += 2.8 * type_.dot + width_of(text, type_.size) + 2 * type_.size
    return joined(lines(*parts))


def mark(place: Place, type_: Type, note: str = "") -> Html:
    kind = "ours" if place.point.ours else "other"
    kind += "" if place.point.honest else " hollow"
    where = {"cx": rounded(place.x), "cy": rounded(place.y), "r": type_.dot}
    return tag("circle", *([tag("title", note)] if note else []), **where, class_=kind)


def bar(place: Place, y: Height, type_: Type) -> Html:
    box = bar_box(place, y, type_)
    ends = "".join(f"M{rounded(box.left)} {rounded(end)}H{rounded(box.right)}" for end in (box.top, box.bottom))
    line = f"M{rounded(place.x)} {rounded(box.top)}V{rounded(box.bottom)}{ends}"
    return tag("path", d=line, class_="ours" if place.point.ours else "other", stroke_width=0.1 * type_.size)


def tie(place: Place, at: Sequence[Place]) -> Html:
    """From what was chosen to what the same run had in its last epoch."""
    last = next((other.y for other in at if other.point.name == place.point.name and other.point.honest), None)
    if last is None:
        return Html()
    return tag("path", d=f"M{rounded(place.x)} {rounded(place.y)}V{rounded(last)}", class_="other")


def written(label: Label, type_: Type) -> Html:
    parts = []
    if label.lead:
        x1, y1, x2, y2 = map(rounded, label.lead)
        parts.append(tag("path", d=f"M{x1} {y1}L{x2} {y2}", class_="lead"))
    # A font may be narrower than was reckoned with: the word begins or ends beside its point all the same.
    x = {"start": label.box.left, "end": label.box.right}.get(label.anchor, (label.box.left + label.box.right) / 2)
    middle = (label.box.top + label.box.bottom) / 2
    parts.append(words(label.text, x, middle, label.anchor, "ours" if label.ours else "quiet", dy="0.35em"))
    return joined(parts)


# Where labels go


def labels(at: Sequence[Place], y: Height, axis: Axis, room: Box, type_: Type) -> Iterator[Label]:
    """One for each name, ours first, each in the nearest place that is free; none where there is none."""
    marks = [around(place.x, place.y, type_.dot + 1) for place in at]
    desk = Desk(room, marks, type_.size, type_.dot, type_.dense)
    desk.taken += [bar_box(place, y, type_) for place in at if place.point.interval]
    named = set()
    for px, py, point in sorted(at, key=lambda place: (not place.point.ours, not place.point.honest, place.y, place.x)):
        if point.name in named:
            continue
        named.add(point.name)
        text = point.name
        if axis.names_machine and point.where not in ("", USUAL_MACHINE) and type_.dense:
            text += f" ({point.where})"
        found = desk.find(px, py, text)
        if found:
            box, lead = found
            anchor = "start" if box.left > px else "end" if box.right < px else "middle"
            yield Label(text, box, anchor, shortened(lead, type_.dot + 1) if lead else None, point.ours)


def bar_box(place: Place, y: Height, type_: Type) -> Box:
    assert place.point.interval is not None
    low, high = place.point.interval
    return Box(place.x - type_.dot, y(high), place.x + type_.dot, y(low))


# Scales and words


def bent(error: float) -> float:
    return error if error <= KNEE else KNEE * (error / KNEE) ** BELOW_KNEE


def error_of(accuracy: float) -> float:
    return max(100 - accuracy, LEAST_ERROR)


def spread(values: Sequence[float], first: float, last: float) -> Scale:
    """A log scale with air around its outermost values."""
    low, high = min(values), max(values)
    air = (high / low) ** 0.07 if high > low else 2.0
    return Scale(low / air, high * air, True, first, last)


def words(text: str, x: float, y: float, anchor: str, class_: str | None = None, dy: str | None = None) -> Html:
    return tag("text", text, x=rounded(x), y=rounded(y), text_anchor=anchor, class_=class_, dy=dy)


def told(point: Point) -> str:
    return f"{point.name} {point.accuracy:.2f} %"


def told_at_length(point: Point) -> str:
    parts = [told(point), f"{point.params:,} parameters"]
    if point.seconds is not None:
        parts.append(f"{point.seconds:.3g} s" + f" on {point.where}" * bool(point.where))
    return ", ".join(parts) + f": {point.how}" * bool(point.how)


def rounded(value: float) -> float:
    return round(value, 1)


def lines(*parts: Html) -> Iterable[Html]:
    """One below the other, so that a change of one is seen in a diff."""
    for part in parts:
        yield Html("\n")
        yield part
