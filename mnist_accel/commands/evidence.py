"""Print the README's tables from evidence/, draw its picture, and say where README, recipes and evidence disagree."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

from pydantic.dataclasses import dataclass

import recipes
from mnist_accel import cli
from mnist_accel.console import report
from mnist_accel.errors import UserError, say
from mnist_accel.files import write_whole
from mnist_accel.recipe import CONFIG, Recipe, option

if TYPE_CHECKING:
    from mnist_accel.runs.evidence import Evidence

USAGE = "python -m mnist_accel evidence"
README = recipes.FOLDER.parent / "README.md"
PICTURE = "docs/accuracy.svg"  # beside README.md
SOURCES = "sources"  # in evidence/, and of no recipe: what others published


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class EvidenceOptions:
    write: Annotated[bool, option("put the tables into README.md, between the marks that are there for them")] = False
    picture: Annotated[
        str | None,
        option("the SVG file for the picture of all accuracies, ours and others'; README's is docs/accuracy.svg"),
    ] = None


def main(argv: list[str]) -> int:
    console = report.make_console()
    if any(word in cli.HELP_WORDS for word in argv):
        usage = f"{USAGE}   prints the README's tables; ends with 1 where README, recipes and evidence/ disagree"
        return report.show_usage(console, usage, EvidenceOptions)
    own: EvidenceOptions = cli.read_options(argv, EvidenceOptions)

    from mnist_accel.runs import evidence_table  # a typing mistake must not wait for torch

    sound, broken = recipes.survey()
    by_name = {recipe.name: recipe for recipe, _ in sound}
    found, unfit = read_all(by_name)
    tables = evidence_table.tables_of(sound, found)
    for name, table in tables.items():
        console.print(f"{name}\n\n{table}", markup=False, soft_wrap=True)
    if unmeasured := [name for name in by_name if name not in found]:
        console.print(f"not measured: {', '.join(unmeasured)}", markup=False, soft_wrap=True)

    readme = read_readme()
    faults = [*broken, *unfit.values()]
    if own.write and not faults:  # else what they measured would be lost from it
        readme = evidence_table.put_into(readme, tables)
        try:
            write_whole(README, readme.encode())
        except OSError as error:
            raise UserError(f"README.md: cannot be written ({error.strerror}). Leave write out") from None
    if not faults:
        faults += check_picture(found, by_name, own.picture)
    wrong = [
        evidence_table.wrong_measured(recipe, found.get(name), shown(name))
        for name, recipe in by_name.items()
        if name not in unfit
    ]
    # Tables of what is left would be other tables.
    untrue = [] if unfit else evidence_table.disagreements(readme, tables)
    differences = [*faults, *filter(None, wrong), *untrue]
    for line in differences:
        say(line)
    return 1 if differences else 0


def read_readme() -> str:
    try:
        return README.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "is no UTF-8"
        raise UserError(f"README.md: cannot be read ({why}). Take it from git") from None


def check_picture(found: Mapping[str, "Evidence"], by_name: Mapping[str, Recipe], typed: str | None) -> list[str]:
    """Draws it where one is asked for; a line where what README.md shows is another."""
    from mnist_accel.pages.accuracy_points import picture_of
    from mnist_accel.runs.sources import read_sources

    sources = recipes.EVIDENCE / f"{SOURCES}.json"
    shifts = {name: recipe.test_shifts for name, recipe in by_name.items()}
    try:
        published = read_sources(sources, shown(SOURCES)) if sources.exists() else []
    except UserError as error:
        return [str(error)]
    drawn = picture_of(found.values(), shifts, published)
    if typed:
        try:
            write_whole(cli.expand_path(typed, f"picture={typed}"), drawn.encode())
        except OSError as error:
            raise UserError(f"picture={typed}: cannot be written ({error.strerror}). Name another file") from None
    committed, remedy = README.parent / PICTURE, f"Type {USAGE} picture={PICTURE}"
    if not committed.exists():
        is_shown = PICTURE in read_readme()
        return [f"{PICTURE}: README.md shows it, and it is not there. {remedy}"] if is_shown else []
    is_drawn = committed.is_file() and committed.read_bytes() == drawn.encode()
    return [] if is_drawn else [f"{PICTURE}: is not what evidence/ draws. {remedy}"]


def read_all(by_name: Mapping[str, Recipe]) -> tuple[dict[str, "Evidence"], dict[str, str]]:
    """By recipe the evidence that is sound and of the recipe as it is; and of each other file what is wrong."""
    from mnist_accel.runs.evidence_file import read_evidence
    from mnist_accel.runs.evidence_table import misfit

    found, unfit = {}, {}
    for name in sorted({path.stem for path in recipes.EVIDENCE.glob("[!.]*.json")} - {SOURCES}):
        try:
            evidence = read_evidence(recipes.EVIDENCE / f"{name}.json", shown(name))
        except UserError as error:
            unfit[name] = str(error)
            continue
        if name not in by_name or evidence.recipe != name:
            unfit[name] = f"{shown(name)}: is of {evidence.recipe}, no recipe of the file's name. Move it away"
        elif why := misfit(by_name[name], evidence, shown(name)):
            unfit[name] = why
        else:
            found[name] = evidence
    return found, unfit


def shown(name: str) -> str:
    return f"{recipes.EVIDENCE.name}/{name}.json"
