"""The roofline plot: how fast each pass of a convolution was, at how many operations a byte, under the roof."""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from mnist_accel.pages.charts import BOTTOM, LEFT, RIGHT, TOP, Scale, axes, colour, figure, fitted, svg
from mnist_accel.pages.page import Html, joined, tag
from mnist_accel.profiling.roofline import Roofline
from mnist_accel.profiling.summary import ConvolutionRow
from mnist_accel.profiling.wording import label, three_figures

PLOTTED = 24  # layers: more cannot be told apart
SIZES = {"wide": (960, 470), "narrow": (360, 380)}
LETTER, LINE = 6.4, 14.0  # pixels of a letter and a line of 11 px, generously
LONGEST_NAME = 18
MARK = 4.5  # half a mark's side
COLOURS = {"forward": 1, "weight gradient": 2, "input gradient": 3, "backward": 4}
RADII = (9.0, 15.0, 23.0, 33.0, 46.0, 62.0, 82.0)  # of a label around its mark; far ones get a line to it
FAR = 16.0
PIECES = 40  # that the roof's slope is taken for


class Pass(NamedTuple):
    """One pass of a convolution: forward, or either gradient; backward where nobody knows how that divides."""

    kind: str
    ms: float
    gflop: float
    gflops: float  # a second
    percent: float | None  # of the roof


class Layer(NamedTuple):
    name: str
    intensity: float  # of any of its passes: flops.py
    passes: list[Pass]


class Box(NamedTuple):
    left: float
    top: float
    right: float
    bottom: float

    def meets(self, other: "Box") -> bool:
        apart = self.right <= other.left or other.right <= self.left
        return not (apart or self.bottom <= other.top or other.bottom <= self.top)


def layers_of(rows: Sequence[ConvolutionRow], roofline: Roofline) -> list[Layer]:
    """Those that take longest, with the passes whose speed is known."""
    if not all(map(can_be_drawn, (roofline.matmul_gflops, roofline.copy_gb_s))):
        return []
    found = []
    for row in sorted(rows, key=lambda row: -row.ms):
        passes = list(passes_of(row, roofline))
        if passes and all(map(can_be_drawn, [row.intensity or 0, *(each.gflops for each in passes)])):
            found.append(Layer(brief(label(row)), row.intensity or 0, passes))
    return found[:PLOTTED]


def can_be_drawn(value: float) -> bool:
    """No trace of a real machine has others."""
    return 1e-9 < value < 1e15


def passes_of(row: ConvolutionRow, roofline: Roofline | None) -> Iterator[Pass]:
    """Those that ran and whose operations are known."""
    backward = (row.gflop_weight_gradient or 0.0) + (row.gflop_input_gradient or 0.0)
    times = {
        "forward": (row.forward_ms, row.gflop_forward),
        "weight gradient": (row.weight_gradient_ms, row.gflop_weight_gradient),
        "input gradient": (row.input_gradient_ms, row.gflop_input_gradient),
        "backward": (row.backward_ms if row.weight_gradient_ms is None else None, backward),
    }
    reach = roofline.attainable_gflops(row.intensity or 0.0) if roofline else 0.0
    for kind, (ms, gflop) in times.items():
        if ms and gflop:
            speed = 1000 * gflop / ms
            yield Pass(kind, ms, gflop, speed, 100 * speed / reach if reach else None)


def roofline_chart(rows: Sequence[ConvolutionRow], roofline: Roofline) -> Html:
    """Drawn twice, for screens of either kind: letters have one size on both."""
    layers = layers_of(rows, roofline)
    if not layers:
        return Html()
    title = "GFLOP/s by FLOP/byte, both on log scales"
    pictures = [draw(layers, roofline, width, height, title) for width, height in SIZES.values()]
    kinds = [kind for kind in COLOURS if any(kind == each.kind for layer in layers for each in layer.passes)]
    keys = [tag("span", key_mark(kind), kind, class_="key") for kind in kinds]
    legend = tag("span", *keys, class_="legend")
    return joined(
        tag("div", figure(title, picture, legend), class_=kind) for kind, picture in zip(SIZES, pictures, strict=True)
    )


def draw(layers: Sequence[Layer], roofline: Roofline, width: int, height: int, title: str) -> Html:
    ridge = roofline.matmul_gflops / roofline.copy_gb_s
    speeds = [each.gflops for layer in layers for each in layer.passes]
    x = fitted([*(layer.intensity for layer in layers), ridge], True, LEFT, width - RIGHT)
    y = fitted([*speeds, roofline.matmul_gflops], True, height - BOTTOM, TOP)
    at = [places_of(layer, x, y) for layer in layers]
    taken = [around(place) for places in at for place in places]
    parts: list[object] = [axes(x, y, three_figures, three_figures, width, height)]
    parts += [stem(layer, x, y, roofline) for layer in layers]
    parts.append(roof(x, y, roofline, ridge))
    parts.append(roof_labels(x, y, roofline, ridge, taken))
    taken += roof_boxes(x, y, roofline, ridge)
    parts += [
        mark(layer, each, place)
        for layer, places in zip(layers, at, strict=True)
        for each, place in zip(layer.passes, places, strict=True)
    ]
    area = Box(LEFT, TOP - 8, width, height - BOTTOM)
    parts += [name(layer.name, places, taken, area) for layer, places in zip(layers, at, strict=True)]
    parts.append(tag("text", "FLOP/byte", x=width - RIGHT, y=height - 3, class_="axis", text_anchor="end"))
    told = ", ".join(
        f"{layer.name} {each.kind} {three_figures(each.percent)} % of the roof"
        for layer in layers[:8]
        for each in layer.passes
    )
    return svg(f"{title}: {told}", width, height, parts)


def places_of(layer: Layer, x: Scale, y: Scale) -> list[tuple[float, float]]:
    """Of passes that are about as fast the later stand beside the first."""
    places: list[tuple[float, float]] = []
    for each in layer.passes:
        at = (x(layer.intensity), y(each.gflops))
        while any(around(at, MARK).meets(around(other, 0.8 * MARK)) for other in places):
            at = (at[0] + 2.2 * MARK, at[1])
        places.append(at)
    return places


def around(place: tuple[float, float], by: float = MARK + 1) -> Box:
    return Box(place[0] - by, place[1] - by, place[0] + by, place[1] + by)


def stem(layer: Layer, x: Scale, y: Scale, roofline: Roofline) -> Html:
    """Through a layer's passes, and to what it could reach."""
    ends = [
        min(max(roofline.attainable_gflops(layer.intensity), y.low), y.high),
        *(each.gflops for each in layer.passes),
    ]
    return tag("path", d=f"M{x(layer.intensity):.1f} {y(min(ends)):.1f}V{y(max(ends)):.1f}", class_="grid")


def roof(x: Scale, y: Scale, roofline: Roofline, ridge: float) -> Html:
    begins = max(x.low, y.low / roofline.copy_gb_s)
    places = [(begins, begins * roofline.copy_gb_s), (ridge, roofline.matmul_gflops), (x.high, roofline.matmul_gflops)]
    return tag("path", d="M" + "L".join(f"{x(a):.1f} {y(b):.1f}" for a, b in places), class_="roof")


def roof_boxes(x: Scale, y: Scale, roofline: Roofline, ridge: float) -> Iterator[Box]:
    """What names keep off: the flat part, and the slope in small pieces."""
    peak, begins = y(roofline.matmul_gflops), max(x.low, y.low / roofline.copy_gb_s)
    yield Box(x(ridge), peak - 2, x.last, peak + 2)
    for piece in range(PIECES + 1):
        at = begins * (ridge / begins) ** (piece / PIECES)
        yield around((x(at), y(at * roofline.copy_gb_s)), 3)


def roof_labels(x: Scale, y: Scale, roofline: Roofline, ridge: float, taken: list[Box]) -> Html:
    """Along the flat part and along the slope, wherever there is room."""
    flat = f"{roofline.precision} matrix product {roofline.matmul_gflops:,.0f} GFLOP/s"
    slope = f"copy {roofline.copy_gb_s:,.0f} GB/s"
    peak, begins = y(roofline.matmul_gflops), max(x.low, y.low / roofline.copy_gb_s)
    rights = [x.last - part * (x.last - x(ridge)) for part in (0, 0.25, 0.5, 0.75)]
    on_flat = [Box(right - LETTER * len(flat), peak - 4 - LINE, right, peak - 4) for right in rights]
    on_flat += [Box(box.left, peak + 4, box.right, peak + 4 + LINE) for box in on_flat]
    on_slope = []
    for part in (0.5, 0.7, 0.3, 0.85, 0.15):
        at = begins * (ridge / begins) ** part
        right, bottom = x(at) - 5, y(at * roofline.copy_gb_s) - 1
        on_slope.append(Box(right - LETTER * len(slope), bottom - LINE, right, bottom))
    return joined(put(text, boxes, taken, x) for text, boxes in ((flat, on_flat), (slope, on_slope)))


def put(text: str, boxes: Sequence[Box], taken: list[Box], x: Scale) -> Html:
    """At the first of the places that is free; at none where none is: the text beside the plot says it too."""
    for box in boxes:
        if box.left >= x.first and box.top >= 0 and not any(box.meets(other) for other in taken):
            taken.append(box)
            where = {"x": f"{box.right:.1f}", "y": f"{box.bottom - 3:.1f}"}
            return tag("text", text, **where, class_="axis halo", text_anchor="end")
    return Html()


def mark(layer: Layer, each: Pass, place: tuple[float, float]) -> Html:
    figures = f"{three_figures(each.ms)} ms, {three_figures(each.gflops)} GFLOP/s"
    told = f"{layer.name}, {each.kind}: {figures}, {three_figures(each.percent)} % of the roof"
    return tag(
        "path", tag("title", told), d=outline(each.kind, *place), class_=f"dot ringed {colour(COLOURS[each.kind])}"
    )


def key_mark(kind: str) -> Html:
    drawn = tag("path", d=outline(kind, 6, 6), class_=f"dot {colour(COLOURS[kind])}")
    return tag("svg", drawn, viewBox="0 0 12 12", class_="mark", aria_hidden="true")


def outline(kind: str, x: float, y: float) -> str:
    """A circle, a square, a triangle, a diamond: told apart without colours too."""
    r = MARK
    if kind == "forward":
        return f"M{x - r:.1f} {y:.1f}a{r} {r} 0 1 0 {2 * r} 0a{r} {r} 0 1 0 {-2 * r} 0z"
    corners = {
        "weight gradient": ((-1, -1), (1, -1), (1, 1), (-1, 1)),
        "input gradient": ((0, -1.2), (1.2, 1), (-1.2, 1)),
        "backward": ((0, -1.3), (1.3, 0), (0, 1.3), (-1.3, 0)),
    }[kind]
    scale = 0.9 * r
    return "M" + "L".join(f"{x + scale * a:.1f} {y + scale * b:.1f}" for a, b in corners) + "z"


def name(text: str, places: Sequence[tuple[float, float]], taken: list[Box], area: Box) -> Html:
    """As near to one of the layer's marks as there is room; none where there is no room at all."""
    width = LETTER * len(text)
    for radius in RADII:
        for place in sorted(places, key=lambda place: place[1]):
            for box in boxes_around(place, radius, width):
                inside = (
                    area.left <= box.left
                    and box.right <= area.right
                    and area.top <= box.top
                    and box.bottom <= area.bottom
                )
                if inside and not any(box.meets(other) for other in taken):
                    taken.append(box)
                    return named(text, box, place if radius > FAR else None)
    return Html()


def boxes_around(place: tuple[float, float], radius: float, width: float) -> Iterator[Box]:
    """Right, above, left, below, and between these."""
    for eighth in (0, 2, 4, 6, 1, 3, 5, 7):
        angle = eighth * math.pi / 4
        a, b = math.cos(angle), -math.sin(angle)
        x = place[0] + radius * a + (a - 1) / 2 * width
        y = place[1] + radius * b + (b - 1) / 2 * LINE
        yield Box(x, y, x + width, y + LINE)


def named(text: str, box: Box, line_to: tuple[float, float] | None) -> Html:
    middle = (box.left + box.right) / 2
    written = tag("text", text, x=f"{middle:.1f}", y=f"{box.bottom - 3:.1f}", class_="name halo", text_anchor="middle")
    if line_to is None:
        return written
    end = min(max(line_to[0], box.left), box.right), min(max(line_to[1], box.top + 2), box.bottom - 2)
    line = tag("path", d=f"M{line_to[0]:.1f} {line_to[1]:.1f}L{end[0]:.1f} {end[1]:.1f}", class_="leader")
    return joined([line, written])


def brief(text: str, most: int = LONGEST_NAME) -> str:
    """Names come from anywhere: head and tail of a long one."""
    return text if len(text) <= most else f"{text[: most // 2]}…{text[-(most - 1) // 2 :]}"
