"""Attributes every moment of a step to a phase and a layer: to a convolution, another layer, the optimizer …

Backward belongs to the layer that caused it: autograd numbers its nodes, and a node carries the number that the forward
call had which made it. The last call with a number is the one that made the node: those before it needed no gradient.
"""

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from mnist_accel.profiling.timeline import BACKWARD_NODE, Call, Step
from mnist_accel.profiling.trace_file import LAYER, MODULE, PHASE, Event

OfOneKind = Literal["data", "augmentation", "loss", "optimizer", "all-reduce", "checkpoint"]  # phases of one kind
Kind = OfOneKind | Literal["convolution forward", "convolution backward", "other layers", "overhead", "other"]
BETWEEN = "outside of these"  # the phase of what lies between the phases
CONVOLUTIONS = ("aten::conv", "aten::_convolution")  # the rest is called by these


class Place(NamedTuple):
    """Which convolution of a step: the n-th call of a module; "" where the trace does not name it."""

    module: str
    call: int


class Owner(NamedTuple):
    phase: str
    kind: Kind
    detail: str | Place = ""  # the convolution; or the operation


@dataclass(eq=False)
class Convolution:
    """One convolution of one step: its forward call, and the backward node that it caused."""

    call: Call
    place: Place
    backward: Call | None = None


REDUCING = Owner("all-reduce", "all-reduce")
SAVING = Owner("checkpoint", "checkpoint")


def is_communication(name: str) -> bool:
    return name.startswith(("c10d::", "gloo:", "nccl:"))


def is_backward(call: Call) -> bool:
    return call.event.name.startswith(BACKWARD_NODE)


class Owners:
    """Of all calls of one step."""

    def __init__(self, step: Step):
        self.step = step
        self.convolutions: list[Convolution] = []
        self.module_of: dict[Call, str] = {}  # the class of the module that was called, where the trace marks it
        self.of_call: dict[Call, Owner] = {}
        forward_calls = self.find_forward()
        self.made = self.link(forward_calls)
        self.conv_of = {call: conv.place for conv in self.convolutions for call in conv.call.within()}
        linked = list(self.made.values())
        self.forward_from = min((call.event.start for call in linked), default=step.end)
        self.backward_from = min((node.event.start for node in self.made), default=step.end)
        for call in (*step.main, *step.others):
            self.assign(call)

    def find_forward(self) -> list[Call]:
        """The calls before and outside of backward, in the order of time; convolutions among them are noted."""
        found, convolutions = [], []
        waiting = [(call, "", "", False) for call in reversed((*self.step.main, *self.step.others))]
        while waiting:
            call, module, kind, within = waiting.pop()
            name = call.event.name
            if is_backward(call):
                continue
            if name.startswith(LAYER):
                module = name.removeprefix(LAYER)
            if name.startswith(MODULE):
                kind = name.removeprefix(MODULE)
            if call.event.category == "cpu_op":
                found.append(call)
                if kind:
                    self.module_of[call] = kind
                if not within and name.startswith(CONVOLUTIONS):
                    convolutions.append((call, module))
                    within = True
            waiting.extend((inner, module, kind, within) for inner in reversed(call.calls))
        seen: Counter[str] = Counter()
        for call, module in sorted(convolutions, key=lambda found: found[0].event.start):
            self.convolutions.append(Convolution(call, Place(module, seen[module])))
            seen[module] += 1
        return sorted(found, key=lambda call: call.event.start)

    def link(self, forward_calls: list[Call]) -> dict[Call, Call]:
        """Backward node → the forward call that made it."""
        numbered: dict[tuple[tuple[str, str], int], list[Call]] = {}
        for call in forward_calls:
            number = call.event.details.get("Sequence number")
            if number is not None:
                numbered.setdefault((call.event.thread, number), []).append(call)
        nodes = [
            (call, number)
            for call in self.step.calls()
            if is_backward(call) and (number := call.event.details.get("Sequence number")) is not None
        ]
        threads = list(dict.fromkeys(thread for thread, _ in numbered))  # in the order of time
        # Each thread counts for itself; a node says on whose count it is, in numbers of the profiler's own.
        thread_ids = sorted({call.event.details.get("Fwd thread id", 0) for call, _ in nodes})
        place_of = {thread_id: place for place, thread_id in enumerate(thread_ids)}
        made = {}
        for node, number in nodes:
            place = place_of[node.event.details.get("Fwd thread id", 0)]
            for thread in threads[min(place, len(threads) - 1) :] + threads:
                candidates = numbered.get((thread, number), [])
                before = bisect_right(candidates, node.event.start, key=lambda call: call.event.start)
                if before:
                    made[node] = candidates[before - 1]
                    break
        by_call = {call: convolution for convolution in self.convolutions for call in convolution.call.within()}
        for node, maker in made.items():
            if maker in by_call and "onv" in node.event.name:
                by_call[maker].backward = node
        return made

    def assign(self, outermost: Call) -> None:
        waiting: list[tuple[Call, Owner]] = [(outermost, Owner(BETWEEN, "overhead"))]
        while waiting:
            call, inherited = waiting.pop()
            owner = self.owner(call, inherited)
            self.of_call[call] = owner
            waiting.extend((inner, owner) for inner in call.calls)

    def owner(self, call: Call, inherited: Owner) -> Owner:
        event = call.event
        if event.category == "user_annotation":
            return annotated(event.name, inherited)
        if is_communication(event.name) and inherited != SAVING:
            return REDUCING
        if inherited.kind not in ("overhead", "other layers") or event.category != "cpu_op":
            return inherited
        if is_backward(call):
            return self.backward_owner(call)
        if call in self.conv_of:
            return Owner("forward", "convolution forward", self.conv_of[call])
        if inherited.kind == "other layers":
            return inherited
        if inherited.phase in ("forward", "loss"):
            return Owner(inherited.phase, "other layers", self.layer(call))
        if inherited.phase == BETWEEN:  # a trace that does not name the phases
            if "loss" in event.name or "cross_entropy" in event.name:
                return Owner("loss", "loss")
            if self.forward_from <= event.start < self.backward_from:
                return Owner("forward", "other layers", self.layer(call))
        return Owner(inherited.phase, "other")

    def backward_owner(self, node: Call) -> Owner:
        maker = self.made.get(node)
        if maker is None:
            return Owner("backward", "other")
        if maker in self.conv_of and "onv" in node.event.name:
            return Owner("backward", "convolution backward", self.conv_of[maker])
        top = maker
        for call in maker.ancestors():
            if call.event.name == PHASE + "loss":
                return Owner("backward", "loss")
            if call.event.category == "cpu_op":
                top = call
        if "loss" in top.event.name or "cross_entropy" in top.event.name:
            return Owner("backward", "loss")
        if maker in self.conv_of:  # the bias or a cast around it
            return Owner("backward", "convolution backward", self.conv_of[maker])
        return Owner("backward", "other layers", self.module_of.get(maker) or short(top.event.name))

    def layer(self, call: Call) -> str:
        """Its module's class; where nothing marks it, what it is to torch."""
        return self.module_of.get(call) or short(call.event.name)

    def launches(self) -> Iterator[tuple[tuple[str, int], Owner]]:
        """What kernels name the call by that launched them."""
        for call, owner in self.of_call.items():
            for key in ("correlation", "External id"):
                if key in call.event.details and call.event.category != "user_annotation":
                    yield (key, call.event.details[key]), owner

    def pieces(self) -> Iterator[tuple[Owner, float]]:
        """The training thread's time, each microsecond once: calls less the calls within, and the gaps."""
        if not self.step.main:
            yield Owner(BETWEEN, "overhead"), self.step.duration
            return
        whole = Call(Event("", "user_annotation", ("", ""), self.step.start, self.step.duration), None, self.step.main)
        self.of_call[whole] = Owner(BETWEEN, "overhead")
        for call in whole.within():
            owner = self.of_call[call]
            end = min(call.event.end, self.step.end)
            place = call.event.start
            waits = after_backward = False
            last_node = self.last_node(call)
            for inner in call.calls:
                yield REDUCING if waits else owner, max(inner.event.start - place, 0.0)
                place = max(place, min(inner.event.end, end))
                if inner is last_node:
                    waits = after_backward = True
                else:
                    # Where the phases are named, all that is left of backward is DDP's.
                    waits = is_communication(inner.event.name) or (after_backward and call is not whole)
                    waits = waits and owner != SAVING
            yield REDUCING if waits else owner, max(end - place, 0.0)

    def last_node(self, call: Call) -> Call | None:
        """Behind it DDP waits for the gradients of the other processes."""
        nodes = [inner for inner in call.calls if is_backward(inner)]
        communicates = any(is_communication(inner.event.name) for node in nodes for inner in node.within())
        return nodes[-1] if communicates else None


def annotated(name: str, inherited: Owner) -> Owner:
    if name.startswith(PHASE):
        phase = name.removeprefix(PHASE)
        return Owner(phase, next((kind for kind in get_args(OfOneKind) if kind == phase), "overhead"))
    if name.startswith(("Optimizer.step#", "Optimizer.zero_grad#")):
        return Owner("optimizer", "optimizer")
    if name.startswith("enumerate(DataLoader)#"):
        return Owner("data", "data")
    return inherited


def short(name: str) -> str:
    """``aten::max_pool2d`` → ``max_pool2d``."""
    return name.rpartition("::")[2].strip("_")
