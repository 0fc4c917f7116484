"""A trace → time by phase, by part of the network, and a row for every convolution. Means over the traced steps."""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from mnist_accel.errors import UserError
from mnist_accel.phase import PHASES
from mnist_accel.profiling.flops import Shape, gradients_asked, shape_of
from mnist_accel.profiling.owners import BETWEEN, SAVING, Owner, Owners
from mnist_accel.profiling.timeline import Step, steps_of
from mnist_accel.profiling.trace_file import ON_DEVICE, PHASE, Event, Trace

IDLE = "launch overhead"
Launches = dict[tuple[str, int], Owner]
Stretch = tuple[Owner, float, float]  # from, to


@dataclass
class ConvolutionTimes:
    """Of one convolution, over all traced steps together."""

    module: str
    shape: Shape | None = None
    forward_us: float = 0.0
    backward_us: float = 0.0
    forward_flop: int = 0
    weight_flop: int = 0
    input_flop: int = 0
    bytes: int = 0
    calls: int = 0


@dataclass
class Analysis:
    """Sums over ``steps`` steps, in microseconds."""

    steps: int
    total_us: float
    on_gpu: bool
    phases: dict[str, float]
    parts: dict[Owner, float]
    convolutions: list[ConvolutionTimes] = field(default_factory=list)
    eager: bool = True


def analyse(trace: Trace) -> Analysis:
    steps = steps_of(trace)
    if not steps:
        raise UserError(f"{trace.path}: holds no operation of torch. Profile a few training steps")
    found = Analysis(len(steps), sum(step.duration for step in steps), trace.on_gpu, {}, {})
    found.eager = not any(event.name == "cudaGraphLaunch" for event in trace.events)
    owners = [Owners(step) for step in steps]
    by_module: dict[str, list[int]] = defaultdict(list)
    rows = [rows_for(found.convolutions, by_module, of_step) for of_step in owners]
    pieces: list[tuple[Owner, float]] = []
    if found.on_gpu:
        # The CPU may be steps ahead of the device, so a kernel's launch is looked for in all of them.
        launches: Launches = {}
        for of_step, rows_of_step in zip(owners, rows, strict=True):
            for key, owner in of_step.launches():
                launches[key] = over_all_steps(owner, rows_of_step)
        kernels = [(owner_of(event, launches), event) for event in trace.events if event.category in ON_DEVICE]
        for owner, kernel in kernels:
            add_to_row(found.convolutions, owner, kernel.duration)
        stretches = exposed(sorted(kernels, key=lambda pair: pair[1].start))
        ends = [end for _, _, end in stretches]
        for step in steps:
            pieces += device_pieces(step, stretches, bisect_right(ends, step.start))
    else:
        for of_step, rows_of_step in zip(owners, rows, strict=True):
            pieces += [(over_all_steps(owner, rows_of_step), duration) for owner, duration in of_step.pieces()]
        for owner, duration in pieces:
            add_to_row(found.convolutions, owner, duration)
    phases: dict[str, float] = defaultdict(float)
    for owner, duration in pieces:
        found.parts[owner] = found.parts.get(owner, 0.0) + duration
        phases[owner.phase if owner.phase in (*PHASES, IDLE) else BETWEEN] += duration
    found.phases = {name: phases[name] for name in (*PHASES, IDLE, BETWEEN) if phases.get(name)}
    return found


def over_all_steps(owner: Owner, rows: list[int]) -> Owner:
    """A step's own number of a convolution → that of its row."""
    return owner._replace(detail=rows[owner.detail]) if isinstance(owner.detail, int) else owner


def add_to_row(convolutions: list[ConvolutionTimes], owner: Owner, duration: float) -> None:
    if owner.kind == "convolution forward":
        convolutions[int(owner.detail)].forward_us += duration
    elif owner.kind == "convolution backward":
        convolutions[int(owner.detail)].backward_us += duration


def owner_of(kernel: Event, launches: Launches) -> Owner:
    """Through the call that launched it."""
    if "nccl" in kernel.name.lower():
        return Owner("all-reduce", "all-reduce")
    for key in ("correlation", "External id"):
        number = kernel.number(key) or kernel.number(key.lower())
        if number is not None and (key, number) in launches:
            return launches[key, number]
    return Owner(BETWEEN, "other")


def rows_for(convolutions: list[ConvolutionTimes], by_module: dict[str, list[int]], owners: Owners) -> list[int]:
    """The number of each convolution's row: by its module where that is known, else by its place in the step."""
    rows = []
    seen: dict[str, int] = defaultdict(int)
    for convolution in owners.convolutions:
        place = seen[convolution.module]
        seen[convolution.module] += 1
        same = by_module[convolution.module]
        if place == len(same):
            same.append(len(convolutions))
            convolutions.append(ConvolutionTimes(convolution.module))
        row = convolutions[same[place]]
        rows.append(same[place])
        row.calls += 1
        gradients = convolution.gradients()
        shape = shape_of(convolution.inner(), gradients) or shape_of(None, gradients)
        if shape is None:
            continue
        row.shape = row.shape or shape
        row.forward_flop += shape.flop
        row.bytes += shape.bytes
        if gradients is not None:
            of_input, of_weights = gradients_asked(gradients)
            row.input_flop += shape.flop * of_input
            row.weight_flop += shape.flop * of_weights
            row.bytes += shape.bytes * (of_input + of_weights)
    return rows


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
    yield Owner(IDLE, "overhead"), max(left, 0.0)
