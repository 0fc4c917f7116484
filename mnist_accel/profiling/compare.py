"""Compares two profiles: which convolutions got faster or slower, by more than steps differ among themselves."""

from dataclasses import dataclass
from typing import Any

from mnist_accel.profiling.summary import ConvolutionRow, ProfileSummary

SAME = 1.05  # within this factor two times are called the same


@dataclass(frozen=True)
class Change:
    name: str
    ms: float
    against_ms: float
    spread_ms: float = 0.0  # of the steps: the mean of both traces'
    shape: str = ""  # of a convolution

    @property
    def factor(self) -> float | None:
        return self.ms / self.against_ms if self.against_ms else None

    @property
    def word(self) -> str:
        if self.factor is None:
            return ""
        if abs(self.ms - self.against_ms) <= self.spread_ms:
            return "same"
        return "slower" if self.factor > SAME else "faster" if self.factor < 1 / SAME else "same"


@dataclass(frozen=True)
class ProfileComparison:
    step: Change
    phases: list[Change]
    layers: list[Change]  # forward and backward of what both have, by name and shape
    only_here: list[str]
    only_there: list[str]
    differing: list[tuple[str, str, str]]  # beside the code: what, here, there


def compare(summary: ProfileSummary, against: ProfileSummary) -> ProfileComparison:
    here, there = by_key(summary), by_key(against)
    layers = []
    for row, other in ((here[key], there[key]) for key in here if key in there):
        forward = (row.forward_spread_ms + other.forward_spread_ms) / 2
        layers.append(Change(f"{row.name} forward", row.forward_ms, other.forward_ms, forward, row.shape))
        backward = (row.backward_spread_ms + other.backward_spread_ms) / 2
        layers.append(Change(f"{row.name} backward", row.backward_ms, other.backward_ms, backward, row.shape))
    before = {phase.name: phase for phase in against.phases}
    phases = [(phase, before[phase.name]) for phase in summary.phases if phase.name in before]
    return ProfileComparison(
        Change("the step", summary.step_ms, against.step_ms, (summary.step_spread_ms + against.step_spread_ms) / 2),
        [Change(here.name, here.ms, there.ms, (here.spread_ms + there.spread_ms) / 2) for here, there in phases],
        layers,
        [" ".join(key) for key in here if key not in there],
        [" ".join(key) for key in there if key not in here],
        differing(summary, against),
    )


def differing(summary: ProfileSummary, against: ProfileSummary) -> list[tuple[str, str, str]]:
    """What makes two times differ, whatever was changed in the code."""
    both = [circumstances(summary), circumstances(against)]
    if summary.machine and against.machine:
        for facts, machine in zip(both, (summary.machine, against.machine), strict=True):
            facts.update(machine)
    here, there = both
    names = [name for name in {**here, **there} if here.get(name) != there.get(name)]
    return [(name, known(here.get(name)), known(there.get(name))) for name in names]


def circumstances(summary: ProfileSummary) -> dict[str, Any]:
    return {
        "recipe": summary.recipe,
        "batch_size": summary.batch_size,
        "precision": summary.precision,
        "processes": summary.world_size,
        "machine": None if summary.machine is None else "known",
    }


def known(value: Any) -> str:
    return "not known" if value is None else str(value)


def by_key(summary: ProfileSummary) -> dict[tuple[str, str], ConvolutionRow]:
    return {(row.name, row.shape): row for row in summary.convolutions}
