"""Several runs side by side, from their folders alone."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from mnist_accel.pages import curves
from mnist_accel.pages.charts import colour
from mnist_accel.pages.page import Html, Section, document, facts, joined, table, tag
from mnist_accel.pages.report_page import headline, name_of, seconds, spelt
from mnist_accel.runs.record import RunRecord, read_record


def page_of(folders: Sequence[Path], asked: Sequence[str]) -> str:
    """UserError where one of the folders holds no run that can be believed."""
    records = [read_record(folder, typed) for folder, typed in zip(folders, asked, strict=True)]
    names = [name_of(record.folder) for record in records]
    return document(f"{len(records)} runs", header(records), sections(records, names))


def header(records: Sequence[RunRecord]) -> Html:
    known = [record.result.accuracy for record in records if record.result.accuracy is not None]
    shown = [("runs", f"{len(records)}")]
    if known:
        shown = [("highest accuracy", f"{max(known):.2f} %"), ("lowest", f"{min(known):.2f} %"), *shown]
    recipes = sorted({record.result.recipe for record in records})
    title = tag("h1", f"{len(records)} runs, side by side")
    return joined([title, tag("p", ", ".join(recipes), class_="sub"), facts(shown, "figures")])


def sections(records: Sequence[RunRecord], names: Sequence[str]) -> Iterator[Section]:
    yield Section("Figures", figures(records, names), "figures", why_apart(records))
    yield Section("Learning", joined([legend(names), curves.of_several(records, names)]), "learning")
    yield Section("Settings that differ", settings(records, names), "settings")


def why_apart(records: Sequence[RunRecord]) -> str:
    """What a difference may be due to, apart from the settings."""
    data = {record.result.dataset for record in records}
    said = [f"other data ({', '.join(sorted(data))})"] if len(data) > 1 else []
    if len({machine(record) for record in records}) > 1:
        said.append("other machines or threads")
    return f"These runs have {' and '.join(said)}." if said else ""


def machine(record: RunRecord) -> tuple[object, ...]:
    return (record.result.device, record.result.world_size, record.result.threads, record.result.precision)


def figures(records: Sequence[RunRecord], names: Sequence[str]) -> Html:
    rows = []
    for number, (name, record) in enumerate(zip(names, records, strict=True), 1):
        result = record.result
        trained = result.history[-1].train_accuracy if result.history else None
        rows.append(
            (
                named(name, number),
                headline(result),
                loss(result.test_loss),
                "–" if trained is None else f"{trained:.2f} %",
                loss(result.train_loss),
                f"{len(result.history)} of {result.epochs}",
                f"{result.params:,}",
                seconds(result.train_seconds),
                f"{result.images_per_second:,.0f}",
                "dry run" if result.dry_run else result.status,
            )
        )
    columns = ("run", "accuracy", "loss", "in training", "loss", "epochs", "parameters", "training", "images/s", "")
    return table(columns, rows, label="Figures", numbers=range(1, 9))


def loss(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def legend(names: Sequence[str]) -> Html:
    return tag(
        "p", *(tag("span", named(name, number), class_="key") for number, name in enumerate(names, 1)), class_="legend"
    )


def named(name: str, number: int) -> Html:
    patch = tag("rect", width=10, height=10, rx=2, class_=f"fill {colour(number)}")
    return joined(
        [
            tag("span", tag("svg", patch, viewBox="0 0 10 10"), class_="square", aria_hidden="true"),
            tag("span", name, class_="name"),
        ]
    )


def settings(records: Sequence[RunRecord], names: Sequence[str]) -> Html:
    keys = list(dict.fromkeys(key for record in records for key in record.settings))
    rows = []
    for key in ("recipe", *keys):
        values = [record.result.recipe if key == "recipe" else record.settings.get(key) for record in records]
        if key != "out" and len(set(map(repr, values))) > 1:
            rows.append((key, *map(spelt, values)))
    for key in ("began", "commit"):
        values = [getattr(record.result, key) for record in records]
        if len(set(values)) > 1:
            rows.append((key, *map(spelt, values)))
    if not rows:
        return tag("p", "None: they learned and ran alike.", class_="note")
    return table(("", *names), rows, label="Settings that differ")
