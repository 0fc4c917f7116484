"""Adds up a trace's time by phase, by part of the network and by convolution: step by step, and over all steps."""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from mnist_accel.errors import UserError
from mnist_accel.phase import PHASES
from mnist_accel.profiling.attribution import BETWEEN, REDUCING, SAVING, Owner, Owners, Place
from mnist_accel.profiling.flops import Shape, gradients_asked, shape_of
from mnist_accel.profiling.timeline import Call, Step, steps_of
from mnist_accel.profiling.trace_file import ON_DEVICE, PHASE, Event, Trace

IDLE = "launch overhead"
IDLING = Owner(IDLE, "overhead")
Launches = dict[tuple[str, int], tuple[int, Owner]]  # the step that launched it, and for whom
Piece = tuple[Owner, float]
Stretch = tuple[Owner, float, float]  # from, to
Key = TypeVar("Key")


@dataclass
class ConvolutionTimes:
    """Of one convolution: times and calls over all traced steps together, arithmetic per step."""

    place: Place
    shape: Shape | None = None
    forward_us: float = 0.0
    backward_us: float = 0.0
    forward_flop: float = 0
    weight_flop: float = 0
    input_flop: float = 0
    bytes: float = 0
    calls: int = 0
    weight_us: float = 0.0  # of kernels whose name tells which gradient they make
    input_us: float = 0.0
    measured_weight_share: float | None = None  # gradients.py, where the trace does not tell

    @property
    def weight_share(self) -> float | None:
        """Which part of the backward time the gradient of the weights takes; the rest is the input's."""
        if not (self.weight_flop and self.input_flop):
            return 1.0 if self.weight_flop else 0.0 if self.input_flop else None
        if self.weight_us and self.input_us:
            return self.weight_us / (self.weight_us + self.input_us)
        return self.measured_weight_share


@dataclass(frozen=True)
class StepTimes:
    """One step in microseconds: all its moments, in their order; and on a GPU whole kernels, also where others hide
    them."""

    pieces: list[Piece]
    whole: list[Piece]

    @property
    def length(self) -> float:
        """Without what writes checkpoints: few steps do."""
        return sum(us for owner, us in self.pieces if owner != SAVING)


@dataclass
class Analysis:
    """Sums over ``steps`` steps, in microseconds."""

    steps: int
    total_us: float
    on_gpu: bool
    eager: bool
    each: list[StepTimes]
    parts: dict[Owner, float]
    convolutions: list[ConvolutionTimes]

    @property
    def phases(self) -> dict[str, float]:
        phases = added_up((phase_of(owner), us) for owner, us in self.parts.items())
        return {name: phases[name] for name in (*PHASES, IDLE, BETWEEN) if phases.get(name)}


def analyse(trace: Trace) -> Analysis:
    steps = steps_of(trace)
    if not steps:
        raise UserError(f"{trace.path}: holds no operation of torch. Profile a few training steps")
    owners = [Owners(step) for step in steps]
    rows = rows_for(owners)
    if trace.on_gpu:
        each = on_device(trace, steps, owners, rows)
    else:
        each = [StepTimes(pieces, pieces) for pieces in (list(of_step.pieces()) for of_step in owners)]
    return Analysis(
        steps=len(steps),
        total_us=sum(step.duration for step in steps),
        on_gpu=trace.on_gpu,
        eager=not any(event.name == "cudaGraphLaunch" for event in trace.events),
        each=each,
        parts=added_up(piece for step in each for piece in step.pieces),
        convolutions=with_times(rows.values(), added_up(piece for step in each for piece in step.whole)),
    )


def added_up(pieces: Iterable[tuple[Key, float]]) -> dict[Key, float]:
    sums: dict[Key, float] = defaultdict(float)
    for key, us in pieces:
        sums[key] += us
    return dict(sums)


def with_times(convolutions: Iterable[ConvolutionTimes], us: Mapping[Owner, float]) -> list[ConvolutionTimes]:
    """The rows with the time that each one's owner has."""
    return [
        replace(
            row,
            forward_us=us.get(Owner("forward", "convolution forward", row.place), 0.0),
            backward_us=us.get(Owner("backward", "convolution backward", row.place), 0.0),
        )
        for row in convolutions
    ]


def on_device(
    trace: Trace, steps: list[Step], owners: list[Owners], rows: Mapping[Place, ConvolutionTimes]
) -> list[StepTimes]:
    # The CPU may be steps ahead of the device, so a kernel's launch is looked for in all of them: a row has the kernels
    # that its step launched, whenever they ran.
    launches: Launches = {}
    for number, of_step in enumerate(owners):
        for key, owner in of_step.launches():
            launches[key] = number, owner
    launched: list[list[Piece]] = [[] for _ in steps]
    kernels = []
    ran = [event for event in trace.events if event.category in ON_DEVICE]
    for event in sorted(ran, key=lambda event: event.start):
        by_step, owner = launch_of(event, launches)
        kernels.append((owner, event))
        if isinstance(owner.detail, Place) and owner.kind == "convolution backward":
            note_gradient(rows[owner.detail], event)
        if by_step is not None:
            launched[by_step].append((owner, event.duration))
    stretches = exposed(kernels)
    ends = [end for _, _, end in stretches]
    return [
        StepTimes(list(device_pieces(step, stretches, bisect_right(ends, step.start))), launched[number])
        for number, step in enumerate(steps)
    ]


def note_gradient(row: ConvolutionTimes, kernel: Event) -> None:
    """cuDNN's names say it, of most kernels; what only converts or copies counts for neither."""
    row.weight_us += kernel.duration * ("wgrad" in kernel.name)
    row.input_us += kernel.duration * ("dgrad" in kernel.name)


def phase_of(owner: Owner) -> str:
    return owner.phase if owner.phase in (*PHASES, IDLE) else BETWEEN


def launch_of(kernel: Event, launches: Launches) -> tuple[int | None, Owner]:
    """The step that launched it, None where no call of one did; and for whom."""
    if "nccl" in kernel.name.lower():
        return None, REDUCING
    for key in ("correlation", "External id"):
        if (key, kernel.details.get(key)) in launches:
            return launches[key, kernel.details[key]]
    return None, Owner(BETWEEN, "other")


def rows_for(owners: Sequence[Owners]) -> dict[Place, ConvolutionTimes]:
    rows: dict[Place, ConvolutionTimes] = {}
    for convolution in (convolution for of_step in owners for convolution in of_step.convolutions):
        row = rows.setdefault(convolution.place, ConvolutionTimes(convolution.place))
        row.calls += 1
        gradients = first_named("aten::convolution_backward", convolution.backward)
        forward = first_named("aten::convolution", convolution.call)  # it carries stride, padding and the rest
        shape = shape_of(forward) if forward else None
        if shape is None:
            continue
        row.shape = row.shape or shape
        flop, moved = shape.flop / len(owners), shape.bytes / len(owners)
        row.forward_flop += flop
        row.bytes += moved
        if gradients is not None:
            of_input, of_weights = gradients_asked(gradients)
            row.input_flop += flop * of_input
            row.weight_flop += flop * of_weights
            row.bytes += moved * (of_input + of_weights)
    return rows


def first_named(name: str, call: Call | None) -> Event | None:
    return next((inner.event for inner in call.within() if inner.event.name == name), None) if call else None


def device_pieces(step: Step, stretches: list[Stretch], first: int) -> Iterator[tuple[Owner, float]]:
    """The step's time as the device spent it: a kernel's owner, communication that nothing hides, or idleness.

    ``first``: the first of the stretches that ends within the step or after it.
    """
    waits = [(owner, call.event) for call in step.main if (owner := waiting_for(call.event))]
    ends = [event.end for _, event in waits]
    place = step.start
    for index in range(first, len(stretches)):
        owner, start, end = stretches[index]
        if start >= step.end:
            break
        start, end = max(start, step.start), min(end, step.end)
        yield from idle(waits, ends, place, start)
        yield owner, end - start
        place = end
    yield from idle(waits, ends, place, step.end)


def exposed(kernels: Iterable[tuple[Owner, Event]]) -> list[Stretch]:
    """Disjoint stretches; where several kernels run, computation hides communication, and an earlier one a later.

    The kernels come in the order of their beginning.
    """
    computing: list[Stretch] = []
    communicating: list[Stretch] = []
    for owner, kernel in kernels:
        lane = communicating if owner.kind == "all-reduce" else computing
        start = max(kernel.start, lane[-1][2]) if lane else kernel.start
        if kernel.end > start:
            lane.append((owner, start, kernel.end))
    found = computing.copy()
    next_busy = 0
    for owner, start, end in communicating:
        while next_busy < len(computing) and computing[next_busy][2] <= start:
            next_busy += 1
        # The last of these may hide the next communication too, so it is not passed yet.
        while next_busy < len(computing) and computing[next_busy][1] < end:
            _, busy_from, busy_to = computing[next_busy]
            if busy_from > start:
                found.append((owner, start, busy_from))
            start = busy_to
            if busy_to > end:
                break
            next_busy += 1
        if end > start:
            found.append((owner, start, end))
    return sorted(found, key=lambda stretch: stretch[1])


def waiting_for(event: Event) -> Owner | None:
    """What the CPU does that keeps it from launching anything."""
    if event.name.startswith("enumerate(DataLoader)#"):
        return Owner("data", "data")
    return SAVING if event.name == PHASE + SAVING.phase else None


def idle(
    waits: list[tuple[Owner, Event]], ends: list[float], start: float, end: float
) -> Iterator[tuple[Owner, float]]:
    """The device waits: for what the CPU is known to do (``waits``, which end at ``ends``), else for launches."""
    if end <= start:
        return
    left = end - start
    for index in range(bisect_right(ends, start), len(waits)):
        owner, event = waits[index]
        if event.start >= end:
            break
        waiting = min(end, event.end) - max(start, event.start)
        yield owner, waiting
        left -= waiting
    yield IDLING, max(left, 0.0)
