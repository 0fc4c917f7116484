"""``evidence/sources.json``: what others published or we measured of theirs, written by hand."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from mnist_accel.cli import explain
from mnist_accel.errors import UserError, printable
from mnist_accel.recipe import CONFIG
from mnist_accel.runs.record import read_checked_json

Words = Annotated[str, Field(min_length=1, max_length=300)]


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class Source:
    """``honest``: a mean over seeds or a last epoch; else it was chosen by its accuracy on the test images."""

    name: Annotated[str, Field(min_length=1, max_length=40)]
    params: Annotated[int, Field(gt=0)]
    accuracy: Annotated[float, Field(ge=0, le=100)]
    seconds: Annotated[float, Field(gt=0)] | None  # of training
    machine: Words | None  # None where it is not known, or no seconds are
    honest: bool
    how: Words
    address: Annotated[str, Field(pattern=r"^https://\S+$")] | None


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class Sources:
    schema: Literal[1]
    sources: list[Source]


def read_sources(path: Path, shown: str) -> list[Source]:
    """UserError, one line that names the place, where it is not as it should be."""
    try:
        found: Sources = TypeAdapter(Sources).validate_python(read_checked_json(path))
    except ValidationError as error:
        place = ".".join(map(str, error.errors()[0]["loc"]))
        raise UserError(f"{shown}: {printable(place)}: {explain(error)}. Mend that value") from None
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise UserError(f"{shown}: cannot be read ({printable(why)}). Mend it, or take it from git") from None
    return found.sources
