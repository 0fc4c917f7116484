"""Divides events into steps, and nests the calls of each thread."""

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise

from mnist_accel.profiling.trace_file import ON_DEVICE, STEP, Event, Trace

BACKWARD_NODE = "autograd::engine::evaluate_function: "


@dataclass(slots=True, eq=False)
class Call:
    """An event on a CPU thread, with the calls that it made."""

    event: Event
    parent: "Call | None" = None
    calls: list["Call"] = field(default_factory=list)

    def ancestors(self) -> Iterator["Call"]:
        call = self.parent
        while call is not None:
            yield call
            call = call.parent

    def within(self) -> Iterator["Call"]:
        """It and all calls within, in the order of their beginning; a trace may nest deeper than Python recurses."""
        waiting = [self]
        while waiting:
            call = waiting.pop()
            yield call
            waiting.extend(reversed(call.calls))


@dataclass(frozen=True)
class Step:
    """One training step: its calls on all threads, outermost first."""

    start: float
    end: float
    main: list[Call]  # the outermost calls of the thread that trains
    others: list[Call]  # those of the other threads: on a GPU, backward has one of its own

    @property
    def duration(self) -> float:
        return self.end - self.start

    def calls(self) -> Iterator[Call]:
        for call in (*self.main, *self.others):
            yield from call.within()


def nest(events: Iterable[Event]) -> list[Call]:
    """The outermost calls of one thread."""
    outermost: list[Call] = []
    open_calls: list[Call] = []
    for event in sorted(events, key=lambda event: (event.start, -event.duration)):
        while open_calls and open_calls[-1].event.end <= event.start:
            open_calls.pop()
        parent = open_calls[-1] if open_calls else None
        call = Call(event, parent)
        (parent.calls if parent else outermost).append(call)
        open_calls.append(call)
    return outermost


def steps_of(trace: Trace) -> list[Step]:
    """The steps that the trace marks; else what lies between two steps of the optimizer; else all of it as one."""
    on_cpu = [event for event in trace.events if event.category not in ON_DEVICE]
    if not on_cpu:
        return []
    main, windows = windows_of(on_cpu)
    by_thread = defaultdict(list)
    starts = [start for start, _ in windows]
    for event in on_cpu:
        # A call that a step begins within is around the steps, not part of one.
        if not event.name.startswith(STEP) and bisect_right(starts, event.start) == bisect_left(starts, event.end):
            by_thread[event.thread].append(event)
    steps = [Step(start, end, [], []) for start, end in windows]
    for thread, events in by_thread.items():
        for call in nest(events):
            index = bisect_right(starts, call.event.start) - 1
            if index >= 0 and call.event.start < steps[index].end:
                (steps[index].main if thread == main else steps[index].others).append(call)
    return steps


def windows_of(events: list[Event]) -> tuple[tuple[str, str], list[tuple[float, float]]]:
    """The thread that trains, and from when to when each step lasts."""
    marked = [event for event in events if event.name.startswith(STEP)]
    if marked:
        main = marked[0].thread
        return main, without_overlap(sorted((event.start, event.end) for event in marked if event.thread == main))
    updates = [event for event in events if event.name.startswith("Optimizer.step#")]
    ends = sorted(event.end for event in updates)
    busiest: dict[tuple[str, str], float] = defaultdict(float)
    for event in events:
        busiest[event.thread] += event.duration
    main = updates[0].thread if updates else max(busiest, key=lambda thread: busiest[thread])
    start = min(event.start for event in events if event.thread == main)
    if len(ends) > 1:
        # The part before the first update may lack the beginning of its step.
        return main, without_overlap(pairwise(ends))
    end = max(event.end for event in events if event.thread == main)
    return main, [(start, end)] if end > start else []


def without_overlap(windows: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """No two at the same time: a moment belongs to one step."""
    disjoint: list[tuple[float, float]] = []
    for start, end in windows:
        start = max(start, disjoint[-1][1]) if disjoint else start
        if end > start:
            disjoint.append((start, end))
    return disjoint
