"""What ``make gpu`` has found out so far: one JSON file of one machine and one commit, whole after every part of it.

facts   machine, driver, versions, commit
tests   test → outcome (passed, skipped, failed, or broke off where the process did not survive it), seconds, why
parts   what was measured → seconds, and its figures or the error that it ended with
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mnist_accel.errors import UserError

SCHEMA = 1
BROKE_OFF = "broke off"
WELL = ("passed", "skipped")


@dataclass
class Record:
    path: Path
    facts: dict[str, Any]
    tests: dict[str, dict[str, Any]] = field(default_factory=dict)
    parts: dict[str, dict[str, Any]] = field(default_factory=dict)

    def save(self) -> None:
        content = {"schema": SCHEMA, "facts": self.facts, "tests": self.tests, "parts": self.parts}
        aside = self.path.with_name(f".{self.path.name}.new")
        aside.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")
        aside.replace(self.path)

    def has(self, part: str) -> bool:
        """Whether it is measured; what failed may be tried again."""
        return "figures" in self.parts.get(part, {})

    @property
    def failed_tests(self) -> list[str]:
        return [name for name, test in self.tests.items() if test["outcome"] not in WELL]

    @property
    def failed_parts(self) -> list[str]:
        return [name for name in self.parts if not self.has(name)]


def read_record(path: Path) -> Record:
    try:
        content = json.loads(path.read_text())
        if content["schema"] != SCHEMA:
            raise ValueError
        return Record(path, *(dict(content[name]) for name in ("facts", "tests", "parts")))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}). Name the file that make gpu wrote") from None
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path}: is not what make gpu writes. Name another file") from None


def open_record(path: Path, facts: dict[str, Any]) -> Record:
    """The record of this machine and commit that ``path`` holds, or a new one: figures of two do not mix."""
    if not path.exists():
        return Record(path, facts)
    record = read_record(path)
    other = [f"{name} {record.facts.get(name)}" for name in facts if record.facts.get(name) != facts[name]]
    if other:
        raise UserError(f"out={path}: holds figures of {', '.join(other)}. Name another file, or move that one away")
    return record
