"""The README's tables, made from evidence, and what disagrees with it: one line each, with its remedy."""

import re
import textwrap
from collections.abc import Mapping, Sequence

from mnist_accel.machine.runtime import MACHINE_LINE
from mnist_accel.models import parameters_of
from mnist_accel.recipe import Measured, Recipe, with_shifts
from mnist_accel.runs.evidence import Evidence, Summary, hash_of, shown_seeds, summarise

TUNED = "_tuned"
COLUMNS = {"documented": "documented", "tuned": "its original", "own": ""}  # a table: its third column, if any
FIGURES = ("mean ± deviation", "95 % interval", "minimum", "seeds", "training s", "run s")
BEGIN, END = "<!-- evidence: {} -->", "<!-- end of evidence -->"
TABLE = re.compile(rf"{BEGIN.format('([a-z]+)')}\n(.*?){END}", re.DOTALL)
WRITE = "Type python -m mnist_accel evidence write=true"


def table_of(recipe: Recipe, names: Sequence[str]) -> str:
    if original_of(recipe.name, names):
        return "tuned"
    return "documented" if any(claim.metric == "accuracy" for claim in recipe.claims) else "own"


def original_of(name: str, names: Sequence[str]) -> str | None:
    """What ``name`` is the tuned sibling of."""
    stem = name.removesuffix(TUNED)
    return stem if name.endswith(TUNED) and stem in names else None


# What a recipe says of its evidence


def misfit(recipe: Recipe, found: Evidence, file: str) -> str | None:
    """Why the evidence is none of this recipe as it is now."""
    if found.recipe_hash != hash_of(recipe):
        remedy = f"Undo the change, or move {file} away and measure again"
        return f"recipes/{recipe.name}.py: was changed after {file} had been measured. {remedy}"
    params = parameters_of(recipe.model, recipe.dropout, recipe.name)
    if (found.model, found.params, found.epochs) != (recipe.model, params, recipe.epochs):
        return f"{file}: is of {found.model}, {found.params:,} parameters, {found.epochs} epochs. Take it from git"
    for under in found.circumstances:
        if under.commit and under.commit.endswith("+"):
            remedy = "Commit the program first, move the file away and measure again"
            return f"{file}: was measured with files that were changed after {under.commit[:8]}. {remedy}"
    numbers = [seed.seed for seed in found.seeds]
    missing = sorted(set(range(numbers[-1] + 1)) - set(numbers))
    if missing:
        remedy = f"Type python -m mnist_accel verify recipe={recipe.name} seeds={numbers[-1] + 1}"
        return f"{file}: {shown_seeds(missing)} missing, so it may be a choice of seeds. {remedy}"
    return None


def measured_in(found: Evidence) -> Measured:
    """What the recipe has to say of it."""
    summary = summarise(found.seeds)
    spread = None if summary.spread is None else round(summary.spread, 2)
    return Measured(accuracy=round(summary.mean, 2), seeds=summary.seeds, spread=spread, command=found.command)


def wrong_measured(recipe: Recipe, found: Evidence | None, file: str) -> str | None:
    if found is None:
        if recipe.measured is None:
            return None
        remedy = f"Type python -m mnist_accel verify recipe={recipe.name} seeds={recipe.measured.seeds}"
        return f"recipes/{recipe.name}.py: measured: there is no {file} to show it. {remedy}, or leave measured out"
    right = measured_in(found)
    if recipe.measured == right:
        return None
    said = "is not given" if recipe.measured is None else "is another than in"
    where = "" if recipe.measured is None else f" {file}"
    spread = "" if right.spread is None else f", spread={right.spread}"
    literal = f'Measured(accuracy={right.accuracy}, seeds={right.seeds}{spread}, command="{right.command}")'
    return f"recipes/{recipe.name}.py: measured {said}{where}. Write measured={literal}"


# Tables


def tables_of(sound: Sequence[tuple[Recipe, int]], evidence: Mapping[str, Evidence]) -> dict[str, str]:
    """Markdown by name, those with rows; the last one says where all of it was measured.

    ``sound``: every recipe with the parameters of its network. One of somebody's own that nobody has measured is in
    none: what stands in the README must not depend on it.
    """
    names = [recipe.name for recipe, _ in sound]
    rows: dict[str, list[list[str]]] = {table: [] for table in COLUMNS}
    shown: list[Evidence] = []
    for recipe, params in sound:
        table, found = table_of(recipe, names), evidence.get(recipe.name)
        if table == "own" and found is None:
            continue
        cells = [f"`{recipe.name}`", network_of(recipe, params)]
        if COLUMNS[table]:
            original = original_of(recipe.name, names)
            cells.append(shown_original(original, evidence) if original else documented(recipe))
        cells += figures_of(summarise(found.seeds)) if found else ["not measured", *[""] * (len(FIGURES) - 1)]
        rows[table].append(cells)
        shown += [found] if found else []
    tables = {table: as_markdown(COLUMNS[table], rows[table]) for table in COLUMNS if rows[table]}
    if tables:
        tables[list(tables)[-1]] += places_of(shown)
    return tables


def network_of(recipe: Recipe, params: int) -> str:
    epochs = f"{recipe.epochs} epoch{'s'[: recipe.epochs > 1]}"
    one_class = ", one class" if recipe.loss == "binary" else ""
    return f"{params:,} parameters, {epochs}{one_class}{with_shifts(recipe.test_shifts)}"


def documented(recipe: Recipe) -> str:
    """The accuracy that is claimed of the last epoch, or of none in particular."""
    for epoch in (recipe.epochs, None):
        for claim in recipe.claims:
            if claim.metric == "accuracy" and claim.epoch == epoch:
                return claim.documented + (f" ({claim.note})" if claim.note else "")
    return ""


def shown_original(name: str, evidence: Mapping[str, Evidence]) -> str:
    found = evidence.get(name)
    return f"`{name}` " + (f"{summarise(found.seeds).mean:.2f}" if found else "not measured")


def figures_of(summary: Summary) -> list[str]:
    accuracy = f"**{summary.mean:.2f}**"
    accuracy += "" if summary.spread is None else f" ± {summary.spread:.2f}"
    accuracy += "" if summary.f1 is None else f", F1 {summary.f1:.2f}"
    interval = "" if summary.interval is None else "{:.2f} to {:.2f}".format(*summary.interval)
    seconds = "not alone" if summary.seconds is None else f"{summary.seconds:,.1f}"
    whole = "" if summary.total_seconds is None else f"{summary.total_seconds:,.1f}"
    seconds += f" ({summary.timed} seed{'s'[: summary.timed > 1]})" if 0 < summary.timed < summary.seeds else ""
    return [accuracy, interval, f"{summary.least:.2f}", str(summary.seeds), seconds, whole]


def as_markdown(third: str, rows: Sequence[Sequence[str]]) -> str:
    header = ["recipe", "network", *filter(None, [third]), *FIGURES]
    lines = [f"| {' | '.join(cells)} |" for cells in (header, *rows)]
    return "\n".join([lines[0], "|---" * len(header) + "|", *lines[1:]]) + "\n"


def places_of(measured: Sequence[Evidence]) -> str:
    """A time says nothing without its machine."""
    timed: list[str] = []
    others: list[str] = []
    for found in measured:
        for number, under in enumerate(found.circumstances):
            place = MACHINE_LINE.format(
                cpu=under.machine.cpu,
                cores=under.machine.cores,
                torch=under.versions.get("torch", "unknown"),
                device=under.device,
                threads=under.threads,
            )
            place += "" if under.precision == "fp32" else f", {under.precision}"
            place += "" if under.world_size == 1 else f", {under.world_size} processes"
            has_time = any(seed.under == number and seed.seconds is not None for seed in found.seeds)
            (timed if has_time else others).append(place)
    parts = {"Timed": timed, "not alone": others}
    shown = [f"{kind} on {'; '.join(dict.fromkeys(places))}" for kind, places in parts.items() if places]
    line = f"{'; '.join(shown)}."
    return "\n" + textwrap.fill(line[0].upper() + line[1:], 120, break_on_hyphens=False) + "\n" if shown else ""


# The README


def disagreements(readme: str, tables: Mapping[str, str]) -> list[str]:
    """Between the text of a README and the tables that have to be in it."""
    there = dict(TABLE.findall(readme))
    lines = [
        f"README.md: the table {name} is missing. Write the lines {BEGIN.format(name)} and {END} where it is to stand"
        for name in tables
        if name not in there
    ]
    lines += [
        f"README.md: the table {name} is of no evidence. Take it out, with {BEGIN.format(name)} and {END}"
        for name in there
        if name not in tables
    ]
    for name in tables:
        if name in there and (pair := first_difference(there[name], tables[name])):
            said, right = pair
            lines.append(f'README.md: the table {name} says "{said}", evidence/ says "{right}". {WRITE}')
    return lines


def first_difference(said: str, right: str) -> tuple[str, str] | None:
    lines, expected = said.splitlines(), right.splitlines()
    length = max(len(lines), len(expected))
    for one, other in zip(*(part + [""] * (length - len(part)) for part in (lines, expected)), strict=True):
        if one != other:
            return one, other
    return None


def put_into(readme: str, tables: Mapping[str, str]) -> str:
    """The README with these tables between their marks."""

    def fresh(found: re.Match[str]) -> str:
        return f"{BEGIN.format(found[1])}\n{tables.get(found[1], found[2])}{END}"

    return TABLE.sub(fresh, readme)
