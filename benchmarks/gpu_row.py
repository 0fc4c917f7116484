"""Fills the row of docs/speed.md that is about a GPU with what ``make gpu`` has measured.

python -m benchmarks.gpu_row FILE [PAGE]     (docs/speed.md where it is left out)
"""

import re
import sys
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.children import ROOT
from benchmarks.gpu_record import Record, read_record
from benchmarks.turns import shown
from mnist_accel import errors
from mnist_accel.errors import UserError

PART = "bench epoch onepoch"
# Its beginning and its last cell, what was meant, stay.
ROW = re.compile(r"^\| on a GPU\b.*\|([^|\n]*)\|$", re.MULTILINE)


def main() -> int:
    if len(sys.argv) not in (2, 3):
        raise UserError("which file? Type python -m benchmarks.gpu_row profiles/gpu.json")
    readme = Path(sys.argv[2]) if len(sys.argv) == 3 else ROOT / "docs" / "speed.md"
    row = row_of(read_record(Path(sys.argv[1])))
    readme.write_text(filled(readme.read_text(), row))
    print(row)
    return 0


def row_of(record: Record) -> str:
    """Without its last cell."""
    if not record.has(PART):
        raise UserError(f"{record.path}: {PART} is not measured in it. Type make gpu KEYS=part=bench")
    figures: dict[str, Any] = record.parts[PART]["figures"]
    (comparison,) = figures["comparisons"]
    (ours, our_seconds), (theirs, their_seconds) = comparison["sides"].items()
    assert ours == "ours"
    (ratio,) = comparison["ratios"]
    words = " ".join(f"{key}={figures['options'][key]}" for key in ("subject", "recipe", "steps", "pairs"))
    where = f"{record.facts['device']}, {record.facts['cores']} cores, torch {record.facts['torch']}"
    data = "" if figures["dataset"] == "mnist" else ", drawn digits"
    cells = (
        f"on a GPU ({where}{data}): `{words}`, against the {theirs}",
        f"{shown(median(our_seconds))} s",
        f"{shown(median(their_seconds))} s",
        shown(ratio["median"]),
    )
    return f"| {' | '.join(cells)} |"


def filled(text: str, row: str) -> str:
    if len(ROW.findall(text)) != 1:
        raise UserError("docs/speed.md: has not one row that begins with '| on a GPU'. Put it back")
    return ROW.sub(lambda found: f"{row}{found[1]}|", text)


if __name__ == "__main__":
    errors.exit_with_one_line(main)
