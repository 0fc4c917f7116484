"""Charts drawn in Python: SVG that the page's style colours, so that they follow light and dark."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

from mnist_accel.pages.page import Html, joined, tag

COLOURS = 10  # .s1 to .s10 of style.css
LEFT, RIGHT, TOP, BOTTOM = 46, 14, 10, 38
MOST_DOTS = 60
SMALLEST = 1e-30  # of a log scale, and of a difference that is drawn
CLOSEST = 1e-9  # the same as a share


@dataclass(frozen=True)
class Series:
    """``ys`` may hold None: the line is interrupted there."""

    label: str
    xs: Sequence[float]
    ys: Sequence[float | None]
    colour: int = 1
    dashed: bool = False
    line: bool = True  # else points only
    notes: Sequence[str] = ()  # of each point, shown where it is pointed at


class Scale(NamedTuple):
    """From values to pixels, with the ticks along the axis."""

    low: float
    high: float
    log: bool
    first: float
    last: float

    def __call__(self, value: float) -> float:
        low, high, at = (math.log10(x) if self.log else x for x in (self.low, self.high, value))
        return self.first + (self.last - self.first) * (at - low) / (high - low)

    def ticks(self, count: int) -> list[float]:
        return log_ticks(self.low, self.high) if self.log else even_ticks(self.low, self.high, count)


def line_chart(
    title: str,
    series: Sequence[Series],
    *,
    x_label: str = "",
    y_format: Callable[[float], str] = lambda value: f"{value:.3g}",
    x_format: Callable[[float], str] = lambda value: f"{value:,.6g}",
    log_x: bool = False,
    log_y: bool = False,
    whole_x: bool = False,
    from_zero: bool = False,
    width: int = 360,
    height: int = 222,
    legend: bool = True,
) -> Html:
    """A figure: caption, legend, and lines or points over axes. Values that a log scale cannot show are left out."""
    points = [
        (x, y)
        for one in series
        for x, y in zip(one.xs, one.ys, strict=True)
        if y is not None and is_shown(x, log_x) and is_shown(y, log_y)
    ]
    if not points:
        return Html()
    x = fitted([at for at, _ in points], log_x, LEFT, width - RIGHT, padded=False)
    y = fitted([at for _, at in points] + [0.0] * (from_zero and not log_y), log_y, height - BOTTOM, TOP)
    drawn = [axes(x, y, x_format, y_format, width, height, whole_x), *(draw(one, x, y, y_format) for one in series)]
    if x_label:
        drawn.append(tag("text", x_label, x=width - RIGHT, y=height - 6, class_="axis", text_anchor="end"))
    return figure(
        title, svg(described(title, series, y_format), width, height, drawn), legend_of(series) if legend else ""
    )


def figure(title: str, picture: Html, legend: Html | str = "") -> Html:
    return tag("figure", tag("figcaption", tag("span", title), legend), picture)


def svg(label: str, width: float, height: float, content: Sequence[object]) -> Html:
    return tag("svg", tag("title", label), *content, viewBox=f"0 0 {width} {height}", role="img", aria_label=label)


def described(title: str, series: Sequence[Series], form: Callable[[float], str]) -> str:
    """What somebody who cannot see the chart is told: where each line begins and ends."""
    parts = []
    for one in series:
        known = [y for y in one.ys if y is not None]
        if known:
            ends = form(known[0]) if len(known) == 1 else f"{form(known[0])} to {form(known[-1])}"
            parts.append(f"{one.label} {ends}".strip())
    return f"{title}: {', '.join(parts[:8])}"


def legend_of(series: Sequence[Series]) -> Html:
    if len(series) < 2:
        return Html()
    return tag("span", *(tag("span", swatch(one), one.label, class_="key") for one in series), class_="legend")


def swatch(one: Series) -> Html:
    shape = (
        tag("path", d="M0 5H18", class_=classes(one))
        if one.line
        else tag("circle", cx=9, cy=5, r=3.5, class_=f"dot {colour(one.colour)}")
    )
    return tag("svg", shape, viewBox="0 0 18 10", class_="swatch", aria_hidden="true")


def axes(
    x: Scale,
    y: Scale,
    x_format: Callable[[float], str],
    y_format: Callable[[float], str],
    width: int,
    height: int,
    whole_x: bool = False,
) -> Html:
    parts = []
    for value in y.ticks(4):
        at = f"{y(value):.1f}"
        parts.append(tag("path", d=f"M{LEFT} {at}H{width - RIGHT}", class_="grid"))
        parts.append(tag("text", y_format(value), x=LEFT - 7, y=at, dy="0.32em", class_="axis", text_anchor="end"))
    for value in (value for value in x.ticks(5) if not whole_x or value == round(value)):
        at = f"{x(value):.1f}"
        parts.append(tag("text", x_format(value), x=at, y=height - BOTTOM + 15, class_="axis", text_anchor="middle"))
    return joined(parts)


def draw(one: Series, x: Scale, y: Scale, form: Callable[[float], str]) -> Html:
    places = [
        None if value is None or not (is_shown(at, x.log) and is_shown(value, y.log)) else (x(at), y(value))
        for at, value in zip(one.xs, one.ys, strict=True)
    ]
    parts = []
    if one.line:
        parts = [
            tag("path", d="M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in run), class_=classes(one))
            for run in unbroken(places)
            if len(run) > 1
        ]
    if not one.line or len(places) <= MOST_DOTS:
        for index, place in enumerate(places):
            if place is not None:
                note = one.notes[index] if one.notes else f"{one.label} {form(one.ys[index] or 0.0)}".strip()
                dot = {
                    "cx": f"{place[0]:.1f}",
                    "cy": f"{place[1]:.1f}",
                    "r": 2.2 if one.line and len(places) > 1 else 4,
                }
                parts.append(tag("circle", tag("title", note), **dot, class_=f"dot {colour(one.colour)}"))
    return joined(parts)


def unbroken(places: Sequence[tuple[float, float] | None]) -> Iterator[list[tuple[float, float]]]:
    for is_gap, run in groupby(places, key=lambda place: place is None):
        if not is_gap:
            yield [place for place in run if place is not None]


def classes(one: Series) -> str:
    return f"line {colour(one.colour)}" + " dashed" * one.dashed


def colour(number: int) -> str:
    return f"s{(number - 1) % COLOURS + 1}"


def is_shown(value: float, log: bool) -> bool:
    return math.isfinite(value) and (value > SMALLEST or not log)


def fitted(values: Sequence[float], log: bool, first: float, last: float, padded: bool = True) -> Scale:
    """A scale that holds all values, with some air around them where ``padded``."""
    low, high = min(values), max(values)
    if log:
        if high <= low * (1 + CLOSEST):
            low, high = low / 2, high * 2
        air = (high / low) ** 0.06 if padded else 1.0
        return Scale(low / air, high * air, True, first, last)
    if high - low < max(SMALLEST, CLOSEST * abs(low)):
        around = 0.05 * (abs(low) if abs(low) > SMALLEST else 1.0)
        low, high = low - around, high + around
    air = (high - low) * 0.06 if padded else 0.0
    return Scale(low if low == 0 else low - air, high + air, False, first, last)


def even_ticks(low: float, high: float, count: int) -> list[float]:
    """Round numbers: 1, 2 or 5 times a power of ten apart."""
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * times for times in (1, 2, 5, 10) if power * times >= rough)
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 12) for index in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    span = math.log10(high / low)
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1, max(1, round(span / 6)))
    times = (1, 2, 5) if span < 2.5 else (1,)
    return [10.0**decade * time for decade in decades for time in times if low <= 10.0**decade * time <= high]


def share_bar(
    title: str,
    parts: Sequence[tuple[str, float, str]],
    *,
    unit_text: str = "",
    colours: Sequence[int] = (),
    whole: float = 0.0,
) -> Html:
    """One bar, divided: (name, value, value as it is to be read) each, with a legend that has all the figures.
    ``whole``: what the full width stands for, where that is more than the parts."""
    total = max(sum(value for _, value, _ in parts), whole)
    if total <= 0:
        return Html()
    drawn, keys, at = [], [], 0.0
    for number, (name, value, shown) in zip(colours or range(1, len(parts) + 1), parts, strict=True):
        length = 1000 * value / total
        where = {"x": f"{at:.2f}", "y": 0, "width": f"{length:.2f}", "height": 22}
        drawn.append(tag("rect", tag("title", f"{name} {shown}"), **where, class_=f"fill {colour(number)}"))
        square = tag(
            "svg", tag("rect", width=10, height=10, rx=2, class_=f"fill {colour(number)}"), viewBox="0 0 10 10"
        )
        keys.append(tag("li", tag("span", square, class_="square", aria_hidden="true"), name, " ", tag("b", shown)))
        at += length
    label = f"{title}: " + ", ".join(f"{name} {shown}" for name, _, shown in parts)
    bar = tag(
        "svg",
        tag("title", label),
        *drawn,
        viewBox="0 0 1000 22",
        preserveAspectRatio="none",
        role="img",
        aria_label=label,
        class_="bar",
    )
    return tag("figure", bar, tag("ul", *keys, class_="keys"), tag("p", unit_text, class_="note") if unit_text else "")


def heat_table(rows: Sequence[Sequence[int]], labels: Sequence[str], *, label: str, row: str, column: str) -> Html:
    """Counts by true and predicted class: the diagonal is quiet, what is beside it is coloured by its size."""
    most = max((count for i, line in enumerate(rows) for j, count in enumerate(line) if i != j), default=0)
    head = tag("tr", tag("td", class_="corner"), *(tag("th", name, scope="col") for name in labels))
    body = []
    for i, (name, line) in enumerate(zip(labels, rows, strict=True)):
        cells = []
        for j, count in enumerate(line):
            level = "right" if i == j else f"heat{math.ceil(5 * (count / most) ** 0.5)}" if count else "none"
            note = f"{row} {name}, {column} {labels[j]}: {count}"
            cells.append(tag("td", f"{count:,}" if count else "·", class_=level, title=note))
        body.append(tag("tr", tag("th", name, scope="row"), *cells))
    caption = tag("caption", f"rows: {row}, columns: {column}")
    whole = tag("table", caption, tag("thead", head), tag("tbody", *body), class_="confusion")
    return tag("div", whole, class_="scroll", role="region", aria_label=label, tabindex="0")
