"""The picture of accuracies: points land where they should, labels meet nothing, and the same input draws the same."""

import json
import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

import recipes
from mnist_accel.errors import UserError
from mnist_accel.pages import accuracy_picture as drawing
from mnist_accel.pages.accuracy_picture import NARROW, WIDE, Point, picture
from mnist_accel.pages.accuracy_points import our_points, picture_of, their_points
from mnist_accel.pages.label_places import Box, Line, around, cut
from mnist_accel.runs.evidence import Circumstances, Epoch, Evidence, Seed
from mnist_accel.runs.sources import Source, read_sources
from mnist_accel.training.state import Positive

SVG = "{http://www.w3.org/2000/svg}"
SOURCES = recipes.EVIDENCE / "sources.json"
OURS = Point("ours", 10_000, 5.0, 99.0, (98.9, 99.1), ours=True, where="2 CPU cores")
THEIRS = Point("theirs", 100_000, 50.0, 98.0, where="a GPU", how="one run")
CHOSEN = Point("chosen", 1_000, None, 99.5, honest=False)


def group(points: list[Point], kind: str = "wide") -> ElementTree.Element:
    root = ElementTree.fromstring(picture(points))
    return next(found for found in root.iter(f"{SVG}g") if found.get("class") == kind)


def dots(points: list[Point], kind: str = "wide") -> dict[str, list[ElementTree.Element]]:
    """By name, the first panel's before the second's; the legend's have no title."""
    found: dict[str, list[ElementTree.Element]] = {}
    for dot in group(points, kind).iter(f"{SVG}circle"):
        title = dot.find(f"{SVG}title")
        if title is not None:
            found.setdefault(title.text.split(" ")[0], []).append(dot)
    return found


def place(dot: ElementTree.Element) -> tuple[float, float]:
    return float(dot.get("cx")), float(dot.get("cy"))


@pytest.mark.parametrize("kind", ["wide", "narrow"])
def test_points_land_where_their_figures_are(kind: str) -> None:
    found = dots([OURS, THEIRS, CHOSEN], kind)
    assert {name: len(places) for name, places in found.items()} == {"ours": 2, "theirs": 2, "chosen": 1}
    (ours, ours_by_time), (theirs, theirs_by_time), (chosen,) = (
        [place(dot) for dot in found[name]] for name in ("ours", "theirs", "chosen")
    )
    assert chosen[1] < ours[1] < theirs[1] and ours[1] == ours_by_time[1] and theirs[1] == theirs_by_time[1]
    assert ours[0] - chosen[0] == pytest.approx(theirs[0] - ours[0], abs=0.2)  # ten times as many each
    assert ours[1] - chosen[1] == pytest.approx(theirs[1] - ours[1], abs=0.2)  # wrong twice as often each
    for type_, panel, point in ((WIDE, 0, ours), (WIDE, 1, theirs_by_time)):
        if kind == "wide":
            assert type_.panels[panel][0] < point[0] < type_.panels[panel][1] and type_.top < point[1] < type_.bottom


def test_below_the_knee_they_stand_closer() -> None:
    good, fair, poor = (drawing.bent(drawing.error_of(accuracy)) for accuracy in (99.0, 98.0, 96.0))
    assert fair / good == 2 and 1 < poor / fair < 1.5
    assert drawing.bent(drawing.error_of(100.0)) > 0


def test_filled_is_honest_hollow_chosen_and_ours_coloured() -> None:
    found = dots([OURS, THEIRS, CHOSEN])
    kinds = {name: places[0].get("class") for name, places in found.items()}
    assert kinds == {"ours": "ours", "theirs": "other", "chosen": "other hollow"}
    legend = [text.text for text in group([OURS]).iter(f"{SVG}text")][:3]
    assert legend == [
        "this program: mean over seeds, 95 % interval",
        "others: a mean, or a last epoch",
        "others: chosen by the test set",
    ]


def test_an_interval_is_a_bar_from_end_to_end() -> None:
    drawn = [path.get("d") for path in group([OURS, THEIRS]).iter(f"{SVG}path") if path.get("class") == "ours"]
    assert len(drawn) == 2 and [path.get("class") for path in group([THEIRS]).iter(f"{SVG}path")].count("ours") == 0
    (x, y), _ = (place(dot) for dot in dots([OURS, THEIRS])["ours"])
    at, top, bottom = map(float, re.match(r"M([\d.]+) ([\d.]+)V([\d.]+)M", drawn[0]).groups())
    assert at == x and top < y < bottom
    ends = {
        name: place(dot[0])[1] for name, dot in dots([OURS, THEIRS, replace(THEIRS, name="x", accuracy=99.1)]).items()
    }
    assert ends["x"] == top


def test_the_machine_is_named_where_it_is_not_the_usual_one() -> None:
    texts = [text.text for text in group([OURS, THEIRS]).iter(f"{SVG}text")]
    assert texts.count("ours") == 2 and texts.count("theirs") == 1 and texts.count("theirs (a GPU)") == 1


def test_one_name_has_one_label_and_a_line_between_its_points() -> None:
    last, best = Point("log", 8_000, None, 99.41), Point("log", 8_000, None, 99.46, honest=False)
    drawn = group([last, best, THEIRS])
    assert [text.text for text in drawn.iter(f"{SVG}text")].count("log") == 1
    ties = [path.get("d") for path in drawn.iter(f"{SVG}path") if path.get("class") == "other"]
    lower, upper = sorted((place(dot) for dot in dots([last, best, THEIRS])["log"]), key=lambda at: -at[1])
    assert ties == [f"M{upper[0]} {upper[1]}V{lower[1]}"]


def test_the_same_points_draw_the_same_and_names_are_no_markup() -> None:
    odd = Point('<script>"&', 5_000, 3.0, 97.0, how="a < b")
    assert picture([OURS, odd]) == picture([OURS, odd])
    assert "<script" not in picture([OURS, odd])
    assert '<script>"&' in [text.text for text in group([OURS, odd]).iter(f"{SVG}text")]


def test_nothing_to_draw_is_a_picture_too() -> None:
    assert dots([]) == {}
    assert list(dots([Point("alone", 1, 0.0, 100.0)])) == ["alone"]


def published() -> list[Point]:
    return list(their_points(read_sources(SOURCES, "evidence/sources.json")))


def test_every_source_has_its_label_and_no_label_meets_a_point_or_another() -> None:
    points = published()
    figures = {"onepoch": 98.5, "sub20k": 99.5, "compact13k": 99.4, "efficient25k": 91.9}
    for name, accuracy in figures.items():
        params = next(point.params for point in points if point.name.startswith(name))
        interval = (accuracy - 0.05, accuracy + 0.05)
        points.append(Point(name, params, accuracy, accuracy, interval, ours=True, where="2 CPU cores"))
    texts = {text.text for text in group(points).iter(f"{SVG}text")}
    assert {point.name for point in points} <= texts
    for type_ in (WIDE, NARROW):
        for axis, (left, right) in zip(drawing.AXES, type_.panels, strict=True):
            found = labels_of(points, axis, left, right, type_)
            boxes, marks = found
            assert all(left <= box.left and box.right <= right for box in boxes)
            for number, box in enumerate(boxes):
                assert not any(box.meets(other) for other in [*boxes[:number], *marks])


def labels_of(
    points: list[Point], axis: drawing.Axis, left: float, right: float, type_: drawing.Type
) -> tuple[list[Box], list[Box]]:
    y = drawing.Height(
        drawing.spread([drawing.bent(drawing.error_of(p.accuracy)) for p in points], type_.top, type_.bottom)
    )
    shown = [(axis.value_of(point), point) for point in points if axis.value_of(point)]
    x = drawing.spread([value for value, _ in shown], left, right)
    at = [drawing.Place(x(value), y(point.accuracy), point) for value, point in shown]
    room = Box(left, type_.top, right, type_.bottom)
    marks = [around(one.x, one.y, type_.dot) for one in at]
    return [label.box for label in drawing.labels(at, y, axis, room, type_)], marks


@pytest.mark.parametrize(
    ("one", "other", "met"),
    [
        ((0, 0, 10, 10), (0, 10, 10, 0), True),
        ((0, 0, 10, 10), (0, 1, 9, 10), False),
        ((0, 0, 4, 4), (0, 10, 10, 0), False),
    ],
)
def test_lines_meet_between_their_ends(one: Line, other: Line, met: bool) -> None:
    assert cut(one, other) is cut(other, one) is met


# From the files


def test_the_sources_hold_what_the_documents_claim() -> None:
    sources = read_sources(SOURCES, "evidence/sources.json")
    names = {source.name for source in sources}
    for recipe in (recipes.load(name) for name in recipes.names()):
        stated = [claim.value for claim in recipe.claims if claim.metric == "accuracy"]
        if recipe.loss == "binary" or not stated:
            continue
        found = [source for source in sources if source.name == f"{recipe.name}, published"]
        assert found, recipe.name
        assert all(min(abs(source.accuracy - value) for value in stated) < 0.1 for source in found)
    assert "train_mnist_fast" in names
    assert all(source.machine for source in sources if source.seconds is not None)
    measured_here = [source for source in sources if "measured by this project" in source.how]
    assert {source.machine for source in measured_here} == {"2 CPU cores"} and len(measured_here) == 4


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"accuracy": 101}, r"sources\.0\.accuracy: .*less than or equal|at most"),
        ({"address": "javascript:x"}, r"sources\.0\.address"),
        ({"colour": "red"}, r"sources\.0\.colour"),
        (None, r"cannot be read"),
    ],
)
def test_a_mistake_in_the_sources_costs_one_line(change: dict[str, object] | None, said: str, tmp_path: Path) -> None:
    file = tmp_path / "sources.json"
    content = json.loads(SOURCES.read_text())
    if change is None:
        file.write_text("{")
    else:
        content["sources"][0].update(change)
        file.write_text(json.dumps(content))
    with pytest.raises(UserError, match=said) as mistake:
        read_sources(file, "evidence/sources.json")
    assert "\n" not in str(mistake.value)


UNDER = Circumstances(
    machine={"cpu": "x", "cores": 2},
    versions={},
    commit=None,
    command="python -m mnist_accel verify recipe=a",
    device="cpu",
    precision="fp32",
    world_size=1,
    threads=2,
)


def seed(number: int, accuracy: float, seconds: float | None = None, under: int = 0) -> Seed:
    return Seed(
        seed=number,
        under=under,
        accuracy=accuracy,
        loss=0.1,
        train_loss=0.1,
        seconds=seconds,
        total_seconds=seconds,
        weights_sha256=None,
        positive=None,
        history=[Epoch(accuracy=accuracy, test_loss=0.1, train_loss=0.1)],
    )


def evidence(*seeds: Seed, recipe: str = "a", circumstances: tuple[Circumstances, ...] = (UNDER,)) -> Evidence:
    return Evidence(
        recipe=recipe,
        recipe_hash="0" * 64,
        model="a",
        params=1_234,
        epochs=1,
        circumstances=list(circumstances),
        seeds=list(seeds),
    )


def test_our_point_is_the_mean_over_seeds_with_its_interval_and_the_seconds_of_one_place() -> None:
    (point,) = our_points([evidence(seed(0, 99.0, 4.0), seed(1, 99.2), seed(2, 99.1, 6.0))], {"a": 1, "b": 0})
    low, high = point.interval
    assert (point.name, point.params, point.seconds, point.where) == ("a", 1_234, 5.0, "2 CPU cores")
    assert point.accuracy == pytest.approx(99.1) and low < 99.0 < 99.2 < high
    assert point.ours and point.honest and point.how == "3 seeds, last epoch, scored with shifts of 1 pixel"

    one_thread = replace(UNDER, threads=1)
    (mixed,) = our_points(
        [evidence(seed(0, 99.0, 4.0), seed(1, 99.2, 9.0, under=1), circumstances=(UNDER, one_thread))], {}
    )
    assert (mixed.seconds, mixed.where) == (None, "")
    (single,) = our_points([evidence(seed(0, 99.0, 4.0, under=1), circumstances=(UNDER, one_thread))], {})
    assert (single.where, single.interval, single.how) == ("1 CPU core", None, "1 seed, last epoch")
    on_a_gpu = replace(UNDER, device="NVIDIA H200")
    (gpu,) = our_points([evidence(seed(0, 99.0, 4.0), circumstances=(on_a_gpu,))], {})
    assert gpu.where == "NVIDIA H200"


def test_what_tells_one_class_from_the_rest_is_left_out() -> None:
    positive = Positive(precision=99.0, recall=99.0, f1=99.0)
    assert list(our_points([evidence(replace(seed(0, 99.9), positive=positive))], {})) == []


def test_the_files_draw_the_same_in_any_order() -> None:
    files = [evidence(seed(0, 99.0, 4.0), recipe="a"), evidence(seed(0, 98.0, 2.0), recipe="b")]
    source = Source(
        name="theirs", params=5, accuracy=97.0, seconds=None, machine=None, honest=False, how="best", address=None
    )
    drawn = picture_of(files, {}, [source])
    assert drawn == picture_of(files[::-1], {}, [source]) and "theirs" in drawn
