"""Two profiles side by side: their steps by phase, and and which layers changed by more than the steps' spread."""

from collections.abc import Iterator

from mnist_accel.errors import printable
from mnist_accel.pages.page import Html, Section, command, document, facts, joined, pill, table, tag
from mnist_accel.pages.profile_page import (
    LONGEST,
    LONGEST_TEXT,
    MOST,
    Place,
    largest,
    milliseconds,
    most_of,
    phases,
    title_of,
)
from mnist_accel.pages.roofline_chart import brief
from mnist_accel.profiling.compare import Change, ProfileComparison, compare
from mnist_accel.profiling.summary import ProfileSummary
from mnist_accel.profiling.wording import SAME_IS, three_figures

KINDS = {"faster": "good", "slower": "bad"}


def page_of(summary: ProfileSummary, place: Place, against: ProfileSummary, other: Place) -> str:
    found = compare(summary, against)
    title = f"{title_of(summary, place)} against {title_of(against, other)}"
    return document(title, header(title, found, place, other), sections(found, (summary, place), (against, other)))


def header(title: str, found: ProfileComparison, place: Place, other: Place) -> Html:
    step = found.step
    shown = [("a step here", milliseconds(step.ms)), ("in the other", milliseconds(step.against_ms))]
    if step.factor is not None:
        shown.append(("times", three_figures(step.factor)))
    names = [
        tag("p", f"{said}: {brief(each.typed, LONGEST_TEXT)}", class_="sub")
        for said, each in (("here", place), ("the other", other))
    ]
    return joined([tag("h1", title, " ", marked(step)), *names, facts(shown, "figures")])


def marked(change: Change) -> Html:
    """Only what exceeds the spread is marked."""
    return pill(change.word, KINDS[change.word]) if change.word in KINDS else Html()


def sections(
    found: ProfileComparison, here: tuple[ProfileSummary, Place], there: tuple[ProfileSummary, Place]
) -> Iterator[Section]:
    yield Section("The steps by phase", steps(here, there), "phases", "Both bars have the same scale.")
    changes = [*found.phases, *found.layers]
    yield Section("What changed", changed([found.step, *largest(changes, difference)]), "changes", most_of(changes))
    if found.differing:
        yield Section(
            "Not alike", unlike(found), "unlike", "What makes two times differ, whatever was changed in the code."
        )
    if found.only_here or found.only_there:
        yield Section("In one of them only", in_one(found), "only")
    yield Section("Again", command(f"python -m mnist_accel trace {here[1].typed} against={there[1].typed}"), "again")


def difference(change: Change) -> float:
    return abs(change.ms - change.against_ms)


def steps(*profiles: tuple[ProfileSummary, Place]) -> Html:
    longest = max(summary.step_ms for summary, _ in profiles)
    bars = []
    for said, (summary, _) in zip(("here", "the other"), profiles, strict=True):
        bars += [tag("h3", f"{said}, {milliseconds(summary.step_ms)}"), phases(summary.phases, longest)]
    return joined(bars)


def changed(changes: list[Change]) -> Html:
    rows = [
        (
            joined([brief(change.name, LONGEST), " ", marked(change)]),
            *map(three_figures, (change.ms, change.against_ms, change.factor, change.spread_ms)),
            tag("span", brief(change.shape, LONGEST), class_="shape"),
        )
        for change in changes
    ]
    columns = ("", "here, ms", "the other, ms", "times", "spread, ms", "shape")
    note = tag("p", f"{SAME_IS} The rest is marked.", class_="note below")
    return joined([table(columns, rows, label="What changed", numbers=range(1, 5)), note])


def unlike(found: ProfileComparison) -> Html:
    rows = [[brief(printable(text), LONGEST) for text in row] for row in found.differing[:MOST]]
    return table(("", "here", "the other"), rows, label="What differs beside the code")


def in_one(found: ProfileComparison) -> Html:
    lists = (("only here", found.only_here), ("only in the other", found.only_there))
    rows = [(brief(name, LONGEST), where) for where, names in lists for name in names[:MOST]]
    return table(("convolution", ""), rows, label="Convolutions that only one of them has")
