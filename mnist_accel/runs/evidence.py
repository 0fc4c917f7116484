"""What ``verify`` measured of a recipe, seed by seed, and what follows from it."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Annotated, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from mnist_accel import student
from mnist_accel.cli import Request
from mnist_accel.files import finite
from mnist_accel.machine.runtime import describe_machine
from mnist_accel.models import build_model, parameters_of
from mnist_accel.recipe import CONFIG, Claim, Recipe
from mnist_accel.runs.result import ClaimResult, RunResult, holds
from mnist_accel.runs.weights_file import read_weights
from mnist_accel.training.state import Positive

SHA256 = r"^[0-9a-f]{64}$"
# Which seeds, where files lie and how patiently: nothing that another seed of the same evidence has to share.
NOT_SHARED = (
    "seeds",
    "start",
    "into",
    "json",
    "data_dir",
    "out",
    "resume",
    "timeout",
    "checkpoint_every",
    "profile",
    "tracker",
)
NOT_HASHED = ("name", "claims", "measured", "seed")
Percent = Annotated[float, Field(ge=0, le=100)]
Seconds = Annotated[float, Field(ge=0)]


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class Machine:
    cpu: str
    cores: int


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class Circumstances:
    """What seeds that were measured in one go share."""

    machine: Machine
    versions: dict[str, str]
    commit: str | None
    command: str  # without which seeds, and without folders
    device: str
    precision: str
    world_size: int
    threads: int


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class Epoch:
    accuracy: Percent
    test_loss: float | None
    train_loss: float | None


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class Seed:
    """One run; accuracy and losses are those of its last epoch."""

    seed: Annotated[int, Field(ge=0)]
    under: Annotated[int, Field(ge=0)] = 0  # which of the circumstances
    accuracy: Percent
    loss: float | None  # of the test images; None where it was no number
    train_loss: float | None
    seconds: Seconds | None  # of training; None where it was not alone on the machine
    total_seconds: Seconds | None
    weights_sha256: Annotated[str | None, Field(pattern=SHA256)]  # None where they could not be written
    positive: Positive | None
    history: Annotated[list[Epoch], Field(min_length=1)]

    def value_of(self, claim: Claim) -> float | None:
        if claim.metric == "train_seconds":
            return self.seconds
        if claim.epoch and claim.epoch > len(self.history):
            return None
        value: float | None = getattr(self.history[(claim.epoch or 0) - 1], claim.metric)
        return value


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class Evidence:
    schema: Literal[1] = 1
    recipe: str
    recipe_hash: Annotated[str, Field(pattern=SHA256)]
    model: str
    params: int
    epochs: int
    dataset: Literal["mnist"] = "mnist"
    circumstances: list[Circumstances]
    seeds: list[Seed]

    @property
    def command(self) -> str:
        """What measures all of it again, as seed 0 was measured."""
        return f"{self.circumstances[self.seeds[0].under].command} seeds={len(self.seeds)}"

    @property
    def kinds_of_device(self) -> list[str]:
        """Empty where they differ: a time of both is none of either."""
        kinds = {"cpu" if self.circumstances[seed.under].device == "cpu" else "cuda" for seed in self.seeds}
        return list(kinds) if len(kinds) == 1 else []

    def up_to(self, last: int) -> "Evidence":
        return replace(self, seeds=[seed for seed in self.seeds if seed.seed <= last])

    def refuse_contradictions(self) -> None:
        """ValueError where its parts do not fit together."""
        numbers = [seed.seed for seed in self.seeds]
        if not numbers or numbers != sorted(set(numbers)):
            raise ValueError("seeds: not in their order")
        for seed in self.seeds:
            if seed.under >= len(self.circumstances):
                raise ValueError(f"seed {seed.seed}: under what circumstances is not there")
            last = seed.history[-1]
            if len(seed.history) != self.epochs or (last.accuracy, last.test_loss, last.train_loss) != (
                seed.accuracy,
                seed.loss,
                seed.train_loss,
            ):
                raise ValueError(f"seed {seed.seed}: its figures are not those of its last epoch")

    def joined(self, other: "Evidence") -> "Evidence":
        """With the seeds that ``other`` has besides."""
        circumstances, seeds = list(self.circumstances), list(self.seeds)
        mine = {seed.seed for seed in self.seeds}
        for seed in other.seeds:
            if seed.seed not in mine:
                under = other.circumstances[seed.under]
                circumstances += [] if under in circumstances else [under]
                seeds.append(replace(seed, under=circumstances.index(under)))
        seeds.sort(key=lambda seed: seed.seed)
        return replace(self, circumstances=circumstances, seeds=seeds)


# A recipe's hash


def hash_of(recipe: Recipe) -> str:
    """Of all that decides what is learned but for the seed. A field at its default is left out, so that one that a
    later version adds changes no hash. Of the network it knows its layers with their settings."""
    parameters_of(recipe.model, recipe.dropout, recipe.name)  # a network that cannot be built is the user's
    with torch.device("meta"):
        network = build_model(recipe.model, recipe.dropout)
    settings = {
        field.name: getattr(recipe, field.name)
        for field in fields(recipe)
        if field.name not in NOT_HASHED and (field.default is MISSING or getattr(recipe, field.name) != field.default)
    }
    shapes = {name: list(tensor.shape) for name, tensor in network.state_dict().items()}
    return hashlib.sha256(json.dumps([settings, shapes, str(network)], sort_keys=True).encode()).hexdigest()


def hash_of_weights(state: Mapping[str, Tensor]) -> str:
    """Of names, types, shapes and values: the file's header may differ where the weights do not."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


# From a run to evidence


def why_none(request: Request) -> str:
    """Why what this request trains is no evidence for its recipe; empty where it may be."""
    changed = [key for key in request.changed if key != "seed"]
    if changed:
        return f"{' and '.join(changed)} {'was' if len(changed) == 1 else 'were'} changed"
    if request.options.dry_run:
        return "a dry run's figures mean nothing"
    return "the digits are synthetic" if request.options.dataset == "synthetic" else ""


def circumstances_of(result: RunResult, command: Sequence[str]) -> Circumstances:
    words = [word for word in command if word.partition("=")[0] not in NOT_SHARED]
    program = "python" if result.world_size == 1 else f"torchrun --nproc-per-node {result.world_size}"
    described = describe_machine(result.device, result.threads)
    return Circumstances(
        machine=Machine(cpu=described["cpu"], cores=described["cores"]),
        versions=result.versions,
        commit=result.commit,
        command=" ".join([program, "-m mnist_accel verify", *words]),
        device=result.device,
        precision=result.precision,
        world_size=result.world_size,
        threads=result.threads,
    )


def seed_of(result: RunResult, weights: Path, alone: bool) -> Seed:
    """``weights`` is the run's file of them; ``alone``: nobody else used the machine meanwhile."""
    # What a profile traced took longer, and nobody has watched a run's first part where it went on later.
    timed = alone and result.world_size == 1 and not result.profile and not result.resumed_from
    history = [
        Epoch(accuracy=stats.accuracy, test_loss=finite(stats.test_loss), train_loss=finite(stats.train_loss))
        for stats in result.history
    ]
    return Seed(
        seed=result.seed,
        accuracy=history[-1].accuracy,
        loss=history[-1].test_loss,
        train_loss=history[-1].train_loss,
        seconds=round(result.train_seconds, 3) if timed else None,
        total_seconds=round(result.total_seconds, 3) if timed else None,
        weights_sha256=hash_of_weights(read_weights(weights)[1]) if weights.exists() else None,
        positive=result.positive,
        history=history,
    )


# What follows from it


@dataclass(frozen=True)
class Summary:
    """Of the last epoch's accuracy over seeds."""

    seeds: int
    mean: float
    spread: float | None  # standard deviation; None of one seed
    interval: tuple[float, float] | None  # holds the true mean with 95 %
    least: float
    most: float
    f1: float | None
    seconds: float | None  # of training, mean over those that ran alone
    total_seconds: float | None  # of the whole run: data, network, training, scoring, files
    timed: int  # how many did


def summarise(seeds: Sequence[Seed]) -> Summary:
    accuracies = [seed.accuracy for seed in seeds]
    seconds = [seed.seconds for seed in seeds if seed.seconds is not None]
    total_seconds = [seed.total_seconds for seed in seeds if seed.total_seconds is not None]
    found = [seed.positive.f1 for seed in seeds if seed.positive]
    return Summary(
        seeds=len(seeds),
        mean=mean(accuracies),
        spread=stdev(accuracies) if len(seeds) > 1 else None,
        interval=student.interval(accuracies),
        least=min(accuracies),
        most=max(accuracies),
        f1=mean(found) if found else None,
        seconds=mean(seconds) if seconds else None,
        total_seconds=mean(total_seconds) if total_seconds else None,
        timed=len(seconds),
    )


@dataclass(frozen=True)
class Judged:
    """A claim beside the mean of several seeds: one lucky seed meets nothing.

    ``p`` is the chance of a mean at least as good if the true mean were the documented figure.
    """

    claim: ClaimResult
    p: float | None


def judge(claim: Claim, evidence: Evidence, comparable: bool = True) -> Judged:
    """``comparable`` says whether what was documented was trained at all."""
    if claim.metric == "parameters":
        met = holds(evidence.params, claim)
        return Judged(ClaimResult(claim.label, claim.documented, evidence.params, met), None)
    values = [seed.value_of(claim) for seed in evidence.seeds]
    # Times are of those that ran alone; any other figure every seed has, or it is no mean of them.
    known = [value for value in values if value is not None]
    if not known or (len(known) < len(values) and claim.metric != "train_seconds"):
        return Judged(ClaimResult(claim.label, claim.documented, None, None), None)
    average = mean(known)
    if not comparable or claim.device not in (None, *evidence.kinds_of_device):
        return Judged(ClaimResult(claim.label, claim.documented, average, None), None)
    p = None
    if claim.relation in (">", ">="):
        p = student.chance_of_so_high(known, claim.value)
    elif claim.relation in ("<", "<="):
        p = student.chance_of_so_high([-value for value in known], -claim.value)
    return Judged(ClaimResult(claim.label, claim.documented, average, holds(average, claim)), p)


def shown_p(p: float | None) -> str:
    if p is None:
        return ""
    return "< 0.001" if p < 0.001 else "> 0.999" if p > 0.999 else f"{p:.3f}"


def shown_seeds(numbers: Sequence[int]) -> str:
    """``seeds 0 to 4, 7``"""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    between = {1: "", 2: " and "}
    shown = ", ".join(f"{run[0]}{between.get(len(run), ' to ')}{run[-1] if run[1:] else ''}" for run in runs)
    return f"seed{'s'[: len(numbers) > 1]} {shown}"
