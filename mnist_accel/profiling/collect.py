"""Profiles a few steps of a running training, through Accelerate's profiler.

Around the traced steps some are timed without the profiler, before and after it, so that a machine that is getting
slower is not taken for the cost of profiling. What is computed stays as it is: nothing here touches a tensor of it.
"""

import gzip
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import Any

import torch
from accelerate.utils import ProfileKwargs, broadcast_object_list, gather_object
from torch import nn
from torch.profiler import record_function

from mnist_accel.cli import FEWEST_PROFILED
from mnist_accel.errors import UserError
from mnist_accel.files import new_folder, write_whole
from mnist_accel.machine.runtime import Runtime, describe_machine, synchronised_clock
from mnist_accel.phase import NOTHING
from mnist_accel.profiling.attribution import SAVING
from mnist_accel.profiling.gradients import measure_gradients
from mnist_accel.profiling.layers import analyse
from mnist_accel.profiling.roofline import Roofline, roofline_that_fits
from mnist_accel.profiling.steady import RankTimes, middle_half, undisturbed
from mnist_accel.profiling.summary import Cost, ProfileSummary, as_json, summarise
from mnist_accel.profiling.trace_file import LAYER, MODULE, PAGE, PHASE, SUMMARY, trace_in
from mnist_accel.training.state import StepInfo

PROFILES = Path("profiles")
MakePage = Callable[[ProfileSummary], str]

# Steps that settle, are timed plainly, warm the profiler up, are traced, settle again, are timed plainly again.
PLANNED = {"settle": 5, "before": 20, "warm up": 3, "trace": 24, "settle again": 2, "after": 20}
assert len(PLANNED) + 1 == FEWEST_PROFILED  # one step each; the first of an epoch is not timed


def plan(steps_left: int) -> list[str]:
    """What each of the coming steps is for: as many as are good, or as the epoch has left; [] where it has too few."""
    spare = min(1.0, (steps_left - len(PLANNED)) / (sum(PLANNED.values()) - len(PLANNED)))
    if spare < 0:
        return []
    return [what for what, steps in PLANNED.items() for _ in range(1 + int(spare * (steps - 1)))]


@dataclass
class Profile:
    """The loop's profiler: it looks at every finished step, and the steps mark their phases through it."""

    runtime: Runtime
    model: nn.Module
    recipe: str
    batch_size: int
    usually_eager: bool  # not where a captured graph trains
    on_problem: Callable[[str], None]
    on_summary: Callable[[ProfileSummary], None]
    make_page: MakePage | None = None
    active: bool = False  # from the first planned step to the last: a captured graph must not run in these
    planned: list[str] = field(default_factory=list)
    tracing: ExitStack | None = None
    times: dict[str, list[float]] = field(default_factory=lambda: {"before": [], "trace": [], "after": []})
    seconds: float = 0.0
    content: bytes = b""
    folder: Path | None = None
    trace: str = ""  # its name there
    ranks: list[RankTimes] = field(default_factory=list)
    roofline: Roofline | None = None
    started: float = 0.0
    saved: float = 0.0  # seconds since then in which a checkpoint was written

    def after_step(self, info: StepInfo) -> float:
        """What the step was for is over, and the next one's begins. The seconds that this took are no training time."""
        if self.ranks:
            return 0.0
        now = synchronised_clock(self.runtime.device)
        if self.planned:
            self.advance(now)
        else:
            self.planned = plan(info.steps_per_epoch - info.step)
            self.active = bool(self.planned)
        self.started, self.saved = synchronised_clock(self.runtime.device), 0.0
        self.seconds += self.started - now
        return self.started - now

    def phase(self, name: str) -> AbstractContextManager[object]:
        mark = record_function(PHASE + name) if self.tracing else NOTHING
        return self.saving(mark) if self.active and name == SAVING.phase else mark

    @contextmanager
    def saving(self, mark: AbstractContextManager[object]) -> Iterator[None]:
        """No step's length has what writes a checkpoint: few steps do."""
        began = synchronised_clock(self.runtime.device)
        with mark:
            yield
        self.saved += synchronised_clock(self.runtime.device) - began

    def __enter__(self) -> "Profile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.tracing:  # training ended amid the traced steps
            self.tracing.close()
            self.tracing = None
        if not self.runtime.accelerator.is_main_process:
            return
        if self.ranks:
            self.conclude()
        elif kind is None:
            self.on_problem(f"nothing was profiled: no epoch had {FEWEST_PROFILED} steps left")

    def advance(self, now: float) -> None:
        what = self.planned.pop(0)
        if what in self.times:
            self.times[what].append(now - self.started - self.saved)
        if self.tracing:
            self.tracing_step()
        following = self.planned[0] if self.planned else ""
        if self.tracing and following not in ("warm up", "trace"):
            self.tracing.close()
            self.tracing = None
        if following == "warm up" and not self.tracing:
            self.begin_tracing()
        if not following:
            self.active = False
            self.share()

    def begin_tracing(self) -> None:
        # Two lines of its own on stderr, which are no news to anybody.
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")
        steps = {"warmup": self.planned.count("warm up"), "active": self.planned.count("trace")}
        settings = ProfileKwargs(
            schedule_option={"skip_first": 0, "wait": 0, "repeat": 1, **steps},
            on_trace_ready=self.on_trace_ready,
            record_shapes=True,
        )
        self.tracing = ExitStack()
        self.tracing.enter_context(naming_layers(self.model))
        profiler = self.tracing.enter_context(self.runtime.accelerator.profile(settings))
        self.tracing_step = profiler.step

    def on_trace_ready(self, profiler: torch.profiler.profile) -> None:
        if self.planned and self.planned[0] == "trace":  # training ended before the last of them
            return
        try:
            with tempfile.TemporaryDirectory(prefix="mnist_accel-") as folder:
                file = Path(folder, "trace.json")
                profiler.export_chrome_trace(str(file))
                self.content = file.read_bytes()
        except OSError:
            self.content = b""

    def share(self) -> None:
        """Every rank writes its trace into the folder that rank 0 has made; rank 0 learns of all times."""
        main = self.runtime.accelerator.is_main_process
        # Now, and on all ranks: under the conditions that the traced steps had.
        self.roofline, why = roofline_that_fits(self.runtime.device, self.runtime.precision)
        ((folder, stamp, problem),) = broadcast_object_list([make_folder(self.recipe) if main else None])
        if not problem:
            self.folder = Path(folder)
            self.trace = f"rank{self.runtime.rank}.{stamp}.pt.trace.json.gz"  # as TensorBoard's plugin looks for it
            problem = self.write_trace(self.folder / self.trace)
        plain, profiled = (
            [1000 * seconds for seconds in undisturbed(times, float)]
            for times in (self.times["before"] + self.times["after"], self.times["trace"])
        )
        mine = RankTimes(self.runtime.rank, median(profiled), median(plain), middle_half(plain))
        gathered = gather_object([(mine, problem)])
        self.ranks = [times for times, _ in gathered]
        problems = [f"profile=true: {why}" if why else "", *(problem for _, problem in gathered)]
        for problem in dict.fromkeys(filter(None, problems)):
            if main:
                self.on_problem(problem)

    def write_trace(self, path: Path) -> str:
        """What went wrong."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)  # on another machine it is not there yet
            # torch notes only in a log that it could not write a trace to its end.
            if not self.content.rstrip().endswith(b"}"):
                raise OSError(0, "there was no room for it in the folder for temporary files")
            write_whole(path, gzip.compress(self.content, 6))
        except OSError as error:
            return f"{path} could not be written: {error.strerror}"
        return ""

    def conclude(self) -> None:
        """After training: nobody waits for this."""
        folder = self.folder or Path("profiles")
        try:
            analysis = analyse(trace_in(self.content, folder / "the trace"))
        except UserError as error:
            self.on_problem(str(error))
            return
        measure_gradients(analysis, self.model)
        mine = self.ranks[0]
        cost = Cost(
            profiled_ms=mine.profiled_ms,
            plain_ms=mine.plain_ms,
            plain_before=[1000 * seconds for seconds in self.times["before"]],
            profiled=[1000 * seconds for seconds in self.times["trace"]],
            plain_after=[1000 * seconds for seconds in self.times["after"]],
            seconds=self.seconds,
        )
        summary = summarise(
            analysis,
            self.roofline,
            mine,
            recipe=self.recipe,
            world_size=self.runtime.world_size,
            precision=self.runtime.precision,
            trace=self.trace,
            folder=str(self.folder or ""),
            usually_eager=self.usually_eager,
            without_kernels=self.runtime.device.type == "cuda" and not analysis.on_gpu,
            cost=cost,
            ranks=self.ranks,
            batch_size=self.batch_size,
            machine=describe_machine(self.runtime.device_name, self.runtime.threads),
        )
        if self.folder:
            self.leave(self.folder / SUMMARY, as_json(summary))
            if self.make_page:
                self.leave(self.folder / PAGE, self.make_page(summary))
        self.on_summary(summary)

    def leave(self, path: Path, text: str) -> None:
        try:
            write_whole(path, text.encode())
        except OSError as error:
            self.on_problem(f"{path} could not be written: {error.strerror}")


def make_folder(recipe: str) -> tuple[str, int, str]:
    """The new folder ``profiles/<recipe>-<time>/``, the stamp of its traces, and what went wrong."""
    first = PROFILES / f"{recipe}-{time.strftime('%Y%m%d-%H%M%S')}"
    stamp = time.time_ns()
    try:
        return str(new_folder(first)), stamp, ""
    except OSError as error:
        return str(first), stamp, f"{first} could not be made: {error.strerror}"


@contextmanager
def naming_layers(model: nn.Module) -> Iterator[None]:
    """Inside, each convolution's forward pass stands in the trace under its module's name, another layer's under its
    class: to torch our dropout is a multiplication and a comparison.

    No hooks for backward: those tell the first convolution's wrongly, because the images need no gradient.
    """
    handles = []
    for name, module in model.named_modules():
        convolves = isinstance(module, nn.modules.conv._ConvNd)
        if convolves or not any(module.children()):
            begin, end = marks(LAYER + name if convolves else MODULE + type(module).__name__)
            handles.append(module.register_forward_pre_hook(begin))
            handles.append(module.register_forward_hook(end, always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def marks(name: str) -> tuple[Callable[..., None], Callable[..., None]]:
    under_way: list[record_function] = []

    def begin(*_: Any) -> None:
        mark = record_function(name)
        mark.__enter__()
        under_way.append(mark)

    def end(*_: Any) -> None:
        if under_way:
            under_way.pop().__exit__(None, None, None)

    return begin, end
