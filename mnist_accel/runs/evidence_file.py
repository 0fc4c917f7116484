"""``evidence/NAME.json``: written whole after each seed, read with distrust, and shared by processes that measure."""

import json
from dataclasses import asdict
from pathlib import Path

from filelock import FileLock, Timeout
from pydantic import TypeAdapter, ValidationError

from mnist_accel.cli import Request, explain
from mnist_accel.errors import UserError, printable
from mnist_accel.files import finite, refuse_unwritable, write_whole
from mnist_accel.recipe import Recipe
from mnist_accel.runs.evidence import Evidence, circumstances_of, hash_of, seed_of, why_none
from mnist_accel.runs.folder import RunFolder
from mnist_accel.runs.record import read_checked_json
from mnist_accel.runs.result import RunResult

LOCK_SECONDS = 60.0  # a file is written in a fraction of one
WEIGHTS = "model.safetensors"


class Measuring:
    """The seeds that are known: those of ``file``, and those that this process measures. Where what it trains is no
    evidence, ``why_none`` says why, the file is left alone, and only this process's own count."""

    def __init__(self, request: Request, file: "EvidenceFile", wanted: range):
        self.request, self.file = request, file
        self.why_none = why_none(request)
        self.known = None if self.why_none else file.read()
        self.mine: Evidence | None = None
        self.unwritten = ""  # why the newest seed is not in the file
        there = {seed.seed for seed in self.known.seeds} if self.known else set()
        self.missing = [seed for seed in wanted if seed not in there]
        self.standing = [seed for seed in wanted if seed in there]
        if self.missing and not self.why_none:
            file.check()

    def add(self, result: RunResult, folder: RunFolder, alone: bool) -> None:
        """Onto the disk at once. A full one costs evidence, not the seeds to come, which try again with this one."""
        if result.dataset != "mnist" and not self.why_none:
            self.why_none, self.known = "the digits are synthetic", None
        # The program is what it was when this process began, whatever has happened to the checkout since.
        under = self.mine.circumstances[0] if self.mine else circumstances_of(result, self.request.command)
        seed = seed_of(result, folder.path / WEIGHTS, alone)
        one = Evidence(
            recipe=result.recipe,
            recipe_hash=self.file.recipe_hash,
            model=result.model,
            params=result.params,
            epochs=result.epochs,
            circumstances=[under],
            seeds=[seed],
        )
        self.mine = self.mine.joined(one) if self.mine else one
        self.known = self.known.joined(one) if self.known else one
        if not self.why_none:
            try:
                self.known = self.file.add(self.mine)
                self.unwritten = ""
            except (OSError, UserError) as error:  # also where somebody has damaged the file meanwhile
                self.unwritten = getattr(error, "strerror", None) or str(error)
                folder.note(f"{self.file.shown} could not be written: {self.unwritten}")


class EvidenceFile:
    """One recipe's. It is read again before each writing, under a lock: several processes may share the seeds."""

    def __init__(self, path: Path, shown: str, recipe: Recipe, asked: str = ""):
        self.path, self.shown, self.name, self.recipe_hash = path, shown, recipe.name, hash_of(recipe)
        self.asked = asked or shown  # key included, where it was typed

    def check(self) -> None:
        """Whatever can be refused before hours of measuring."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            refuse_unwritable(self.path.parent)
        except OSError as error:
            raise self.unwritable(error) from None

    def unwritable(self, error: OSError) -> UserError:
        return UserError(f"{self.asked}: cannot be written ({error.strerror}). Name another file with into=FILE")

    def read(self) -> Evidence | None:
        """None where there is none yet; UserError where it is damaged, or of the recipe as it was."""
        if self.path.is_dir():
            raise UserError(f"{self.asked}: is a folder. Name a file in it")
        if not self.path.exists():
            return None
        found = read_evidence(self.path, self.asked)
        if (found.recipe, found.recipe_hash) != (self.name, self.recipe_hash):
            of = "with other settings" if found.recipe == self.name else f"of recipe {found.recipe}"
            raise UserError(f"{self.asked}: was measured {of}. Move it away, or name another file with into=FILE")
        return found

    def add(self, mine: Evidence) -> Evidence:
        """What stands in the file afterwards. OSError where it could not be written."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.path.with_name(f".{self.path.name}.lock"), timeout=LOCK_SECONDS)
        try:
            with lock:
                there = self.read()
                whole = there.joined(mine) if there else mine
                write_whole(self.path, as_json(whole).encode())
        except NotImplementedError:
            raise OSError(None, "its file system has no locks") from None
        except Timeout:
            raise OSError(None, f"another process has held {lock.lock_file} for {LOCK_SECONDS:g} s") from None
        return whole


def read_evidence(path: Path, shown: str) -> Evidence:
    """UserError, one line, where it is anything else than what ``as_json`` wrote."""
    remedy = "Take it from a backup or from git, or move it away and measure again"
    try:
        found: Evidence = TypeAdapter(Evidence).validate_python(read_checked_json(path))
        found.refuse_contradictions()
    except ValidationError as error:
        place = ".".join(map(str, error.errors()[0]["loc"]))
        where = f"{printable(place)}: " if place else ""
        raise UserError(f"{shown}: is damaged: {where}{explain(error)}. {remedy}") from None
    except OSError as error:
        raise UserError(f"{shown}: cannot be read ({error.strerror}). Name another file, or move it away") from None
    except ValueError as error:
        raise UserError(f"{shown}: is damaged: {printable(str(error))}. {remedy}") from None
    return found


def as_json(evidence: Evidence) -> str:
    """A line a seed: fifty epochs of ten seeds would fill pages, and a change is to be seen where it is."""
    parts = finite(asdict(evidence))
    seeds = ",\n".join(f"    {json.dumps(seed)}" for seed in parts.pop("seeds"))
    head = json.dumps(parts, indent=2).removesuffix("\n}")
    return f'{head},\n  "seeds": [\n{seeds}\n  ]\n}}\n'
