"""Two profiles, convolution by convolution: which got faster, which slower."""

from dataclasses import dataclass

from mnist_accel.profiling.summary import ConvolutionRow, Summary

SAME = 1.05  # within this factor two times are called the same


@dataclass(frozen=True)
class Change:
    name: str
    shape: str
    ms: float
    against_ms: float

    @property
    def factor(self) -> float | None:
        return self.ms / self.against_ms if self.against_ms else None

    @property
    def word(self) -> str:
        if self.factor is None:
            return ""
        return "slower" if self.factor > SAME else "faster" if self.factor < 1 / SAME else "same"


@dataclass(frozen=True)
class Comparison:
    step: Change
    phases: list[Change]
    layers: list[Change]  # forward and backward of what both have, by name and shape
    only_here: list[str]
    only_there: list[str]


def compare(summary: Summary, against: Summary) -> Comparison:
    here, there = by_key(summary), by_key(against)
    layers = []
    for key, row in here.items():
        if key in there:
            other = there[key]
            layers.append(Change(f"{row.name} forward", row.shape, row.forward_ms, other.forward_ms))
            layers.append(Change(f"{row.name} backward", row.shape, row.backward_ms, other.backward_ms))
    before = {phase.name: phase.ms for phase in against.phases}
    return Comparison(
        Change("the step", "", summary.step_ms, against.step_ms),
        [Change(phase.name, "", phase.ms, before[phase.name]) for phase in summary.phases if phase.name in before],
        layers,
        [" ".join(key) for key in here if key not in there],
        [" ".join(key) for key in there if key not in here],
    )


def by_key(summary: Summary) -> dict[tuple[str, str], ConvolutionRow]:
    return {(row.name, row.shape): row for row in summary.convolutions}
