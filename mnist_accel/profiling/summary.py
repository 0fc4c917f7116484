"""Summarises a profile in plain numbers with names: what ``summary.json`` holds and the console shows."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter
from pydantic_core import from_json

from mnist_accel.errors import printable
from mnist_accel.profiling.layers import Analysis, ConvolutionTimes, phase_of
from mnist_accel.profiling.roofline import Measured, Roofline
from mnist_accel.profiling.steady import RankTimes, Typical, typical_step
from mnist_accel.profiling.trace_file import SUMMARY
from mnist_accel.profiling.verdict import Verdict, find_verdict

SCHEMA = 1
WITHOUT_KERNELS = "The trace has no kernels of the GPU (CUPTI gave none), so it does not tell what bounds this run."


Milliseconds = Annotated[float, Field(ge=0, lt=1e15)]


@dataclass(frozen=True)
class PhaseTime:
    name: str
    ms: float  # per step
    share: float  # percent of the step
    spread_ms: float = 0.0  # of its times over the steps: steady.py


@dataclass(frozen=True)
class ConvolutionRow:
    """Times in ms per step, shares in percent of the step; None where the trace does not tell."""

    name: str
    module: str
    shape: str
    forward_ms: float
    forward_share: float
    backward_ms: float
    backward_share: float
    gflop_forward: float | None
    gflop_weight_gradient: float | None
    gflop_input_gradient: float | None
    gflops: float | None  # achieved, a second
    intensity: float | None  # operations a byte
    roofline_percent: float | None
    forward_spread_ms: float = 0.0
    backward_spread_ms: float = 0.0
    weight_gradient_ms: Milliseconds | None = None  # these two are the backward time
    input_gradient_ms: Milliseconds | None = None

    @property
    def ms(self) -> float:
        return self.forward_ms + self.backward_ms

    @property
    def weight_share(self) -> float | None:
        """Of the two gradients' time, from 0 to 1."""
        both = (self.weight_gradient_ms or 0.0) + (self.input_gradient_ms or 0.0)
        return None if self.weight_gradient_ms is None or not both else self.weight_gradient_ms / both


@dataclass(frozen=True)
class Cost:
    """What profiling itself costs: medians of the same run's undisturbed steps, in ms; and all of these steps."""

    profiled_ms: Measured
    plain_ms: Measured
    plain_before: list[float]
    profiled: list[float]
    plain_after: list[float]
    seconds: float  # that starting it, stopping it and writing the trace added to the run

    @property
    def factor(self) -> float:
        return self.profiled_ms / self.plain_ms


@dataclass(frozen=True, kw_only=True)
class ProfileSummary:
    schema: int = SCHEMA
    recipe: str | None = None  # None: a trace taken elsewhere
    batch_size: int | None = None
    precision: str | None = None
    machine: Mapping[str, Any] | None = None
    world_size: int = 1
    rank: int | None = 0
    trace: str = ""
    folder: str = ""
    on_gpu: bool = False
    eager: bool = True  # False: a captured graph trained in these steps
    usually_eager: bool = True  # False: a captured graph trains, and was set aside for these steps
    steps: int  # traced
    set_aside: int = 0  # of these: longer than 1.25 times their median
    scale: float | None = None  # what the traced times were multiplied by; None: no step without the profiler is known
    step_ms: float
    step_spread_ms: float = 0.0
    without_kernels: bool = False  # of a GPU's run: what the trace tells is not where that run's time went
    verdict: Verdict
    phases: list[PhaseTime]
    convolutions: list[ConvolutionRow]
    convolutions_roofline_percent: float | None  # weighted by time
    roofline: Roofline | None
    cost: Cost | None = None
    ranks: list[RankTimes] | None = None


def summarise(
    analysis: Analysis, roofline: Roofline | None, plain: RankTimes | None = None, **facts: Any
) -> ProfileSummary:
    """``plain``: the traced process's steps without the profiler; None where nobody knows them."""
    typical = typical_step(analysis, plain)
    names = names_of(analysis.convolutions)
    common = dict(
        on_gpu=analysis.on_gpu,
        eager=analysis.eager,
        steps=analysis.steps,
        set_aside=typical.set_aside,
        scale=typical.factor if plain else None,
        step_ms=typical.step.total_us / 1000,
        step_spread_ms=typical.spread_us(typical.step.total_us, lambda owner: True) / 1000,
        roofline=roofline,
        **facts,
    )
    if facts.get("without_kernels"):
        verdict = Verdict(WITHOUT_KERNELS, [], [])
        return ProfileSummary(verdict=verdict, phases=[], convolutions=[], convolutions_roofline_percent=None, **common)
    rows = [row_of(*row, typical, roofline) for row in zip(names, typical.step.convolutions, strict=True)]
    weighed = [(row.ms, row.roofline_percent) for row in rows if row.roofline_percent is not None and row.ms]
    whole = sum(ms for ms, _ in weighed)
    return ProfileSummary(
        verdict=find_verdict(typical.step, names),
        phases=[phase_row(name, us, typical) for name, us in typical.step.phases.items()],
        convolutions=rows,
        convolutions_roofline_percent=sum(ms * percent for ms, percent in weighed) / whole if whole else None,
        **common,
    )


def phase_row(name: str, us: float, typical: Typical) -> PhaseTime:
    spread = typical.spread_us(us, lambda owner: phase_of(owner) == name)
    return PhaseTime(name, us / 1000, 100 * us / typical.step.total_us, spread / 1000)


def names_of(convolutions: list[ConvolutionTimes]) -> list[str]:
    """``conv1``, ``conv2`` … in the order of a step; a module's own name where it has one."""
    names = []
    for number, times in enumerate(convolutions, start=1):
        module = times.place.module
        own = module.rpartition(".")[2]
        names.append(module if own and not own.isdecimal() else f"conv{number}")
    count = Counter(names)
    return [name if count[name] == 1 else f"{name} ({number})" for number, name in enumerate(names, start=1)]


def row_of(name: str, times: ConvolutionTimes, typical: Typical, roofline: Roofline | None) -> ConvolutionRow:
    whole = typical.step.total_us
    flop = times.forward_flop + times.weight_flop + times.input_flop
    seconds = (times.forward_us + times.backward_us) / 1e6
    achieved = flop / seconds / 1e9 if flop and seconds else None
    intensity = flop / times.bytes if flop and times.bytes else None
    reach = roofline.attainable_gflops(intensity) if roofline and intensity else 0.0

    share, backward_ms = times.weight_share, times.backward_us / 1000

    def spread_ms(us: float, kind: str) -> float:
        return typical.spread_us(us, lambda owner: owner[1:] == (kind, times.place), whole_kernels=True) / 1000

    return ConvolutionRow(
        name=name,
        module=times.place.module,
        shape=times.shape.text if times.shape else "",
        forward_ms=times.forward_us / 1000,
        forward_share=100 * times.forward_us / whole,
        backward_ms=backward_ms,
        backward_share=100 * times.backward_us / whole,
        gflop_forward=times.forward_flop / 1e9 if times.shape else None,
        gflop_weight_gradient=times.weight_flop / 1e9 if times.shape else None,
        gflop_input_gradient=times.input_flop / 1e9 if times.shape else None,
        gflops=achieved,
        intensity=intensity,
        roofline_percent=100 * achieved / reach if achieved and reach else None,
        forward_spread_ms=spread_ms(times.forward_us, "convolution forward"),
        backward_spread_ms=spread_ms(times.backward_us, "convolution backward"),
        weight_gradient_ms=None if share is None else share * backward_ms,
        input_gradient_ms=None if share is None else (1 - share) * backward_ms,
    )


def as_json(summary: ProfileSummary) -> str:
    return json.dumps(asdict(summary), indent=2, allow_nan=False) + "\n"


def summary_beside(trace: Path) -> tuple[ProfileSummary | None, str]:
    """What ``profile=true`` left in the trace's folder; else None and why not. It is believed as little as a trace."""
    path = trace.parent / SUMMARY
    try:
        return TypeAdapter(ProfileSummary).validate_python(all_printable(from_json(path.read_bytes()))), ""
    except FileNotFoundError:
        return None, f"there is no {SUMMARY} beside the trace that tells what its machine reaches"
    except (OSError, ValueError):
        return None, f"{path} does not tell what its machine reaches"


def all_printable(value: Any) -> Any:
    """JSON with all its texts so; its depth is bounded by who has read it."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, list):
        return [all_printable(item) for item in value]
    if isinstance(value, dict):
        return {printable(key): all_printable(item) for key, item in value.items()}
    return value
