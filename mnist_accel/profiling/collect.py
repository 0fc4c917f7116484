"""Profiles a few steps of a running training, through Accelerate's profiler.

Around the traced steps some are timed without the profiler, before and after it, so that a machine that is getting
slower is not taken for the cost of profiling. What is computed stays as it is: nothing here touches a tensor of it.
"""

import gzip
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import Any

import torch
from accelerate.utils import ProfileKwargs, broadcast_object_list
from torch import nn
from torch.profiler import record_function

from mnist_accel.cli import FEWEST_PROFILED
from mnist_accel.errors import UserError
from mnist_accel.files import write_whole
from mnist_accel.machine.runtime import Runtime, describe_machine, synchronised_clock
from mnist_accel.phase import NOTHING
from mnist_accel.profiling.attribution import SAVING
from mnist_accel.profiling.folder import PAGE, MakePage, make_folder, trace_name
from mnist_accel.profiling.gradients import measure_gradients
from mnist_accel.profiling.layers import analyse
from mnist_accel.profiling.roofline import Roofline, roofline_that_fits
from mnist_accel.profiling.steady import kept_of, middle_half
from mnist_accel.profiling.summary import Cost, ProfileSummary, RankTimes, as_json, summarise
from mnist_accel.profiling.trace_file import LAYER, MODULE, PHASE, SUMMARY, trace_in
from mnist_accel.training.state import StepInfo

# Steps that settle, are timed plainly, warm the profiler up, are traced, settle again, are timed plainly again.
PLANNED = {"settle": 5, "before": 20, "warm up": 3, "trace": 24, "settle again": 2, "after": 20}
assert len(PLANNED) + 1 == FEWEST_PROFILED  # one step each; the first of an epoch is not timed


def plan(steps_left: int) -> list[str]:
    """What each of the coming steps is for: as many as are good, or as the epoch has left; [] where it has too few."""
    spare = min(1.0, (steps_left - len(PLANNED)) / (sum(PLANNED.values()) - len(PLANNED)))
    if spare < 0:
        return []
    return [what for what, steps in PLANNED.items() for _ in range(1 + int(spare * (steps - 1)))]


class Profile:
    """The loop's profiler: it looks at every finished step, and the steps mark their phases through it."""

    def __init__(
        self,
        runtime: Runtime,
        model: nn.Module,
        *,
        recipe: str,
        batch_size: int,
        usually_eager: bool,
        on_problem: Callable[[str], None],
        on_summary: Callable[[ProfileSummary], None],
        make_page: MakePage | None = None,
    ):
        self.runtime, self.model, self.recipe, self.batch_size = runtime, model, recipe, batch_size
        self.on_problem, self.on_summary, self.make_page = on_problem, on_summary, make_page
        self.active = False  # from the first planned step to the last: a captured graph must not run in these
        self.usually_eager = usually_eager  # not where a captured graph trains
        self.planned: list[str] = []
        self.tracing: ExitStack | None = None
        self.times: dict[str, list[float]] = {"before": [], "trace": [], "after": []}
        self.seconds = 0.0
        self.content = b""
        self.folder: Path | None = None
        self.ranks: list[RankTimes] = []
        self.roofline: Roofline | None = None
        self.started = 0.0
        self.saved = 0.0  # seconds since then in which a checkpoint was written

    def after_step(self, info: StepInfo) -> float:
        """The seconds that it took for itself, which are no training time."""
        before = self.seconds
        self.on_step(info)
        return self.seconds - before

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

    def on_step(self, info: StepInfo) -> None:
        """After each step: what it was for is over, and the next one's begins."""
        if self.ranks:
            return
        now = synchronised_clock(self.runtime.device)
        if not self.planned:
            self.planned = plan(info.steps_per_epoch - info.step)
            self.active = bool(self.planned)
        else:
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
        self.started, self.saved = synchronised_clock(self.runtime.device), 0.0
        self.seconds += self.started - now

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
        accelerator = self.runtime.accelerator
        # Now, and on all ranks: under the conditions that the traced steps had.
        self.roofline, why = roofline_that_fits(self.runtime.device, self.runtime.precision)
        if why and accelerator.is_main_process:
            self.on_problem(f"profile=true: {why}")
        said: list[Any] = [None, None, ""]
        if accelerator.is_main_process:
            said = make_folder(self.recipe)
        if accelerator.num_processes > 1:
            broadcast_object_list(said)
        folder, stamp, problem = said
        if not problem:
            try:
                self.folder = Path(folder)
                self.folder.mkdir(parents=True, exist_ok=True)  # on another machine it is not there yet
                self.trace = trace_name(self.runtime.rank, stamp)
                # torch notes only in a log that it could not write a trace to its end.
                if not self.content.rstrip().endswith(b"}"):
                    raise OSError(0, "there was no room for it in the folder for temporary files")
                write_whole(self.folder / self.trace, gzip.compress(self.content, 6))
            except OSError as error:
                problem = f"the trace in {folder} could not be written: {error.strerror}"
        plain = kept_of(self.times["before"] + self.times["after"])
        milliseconds = [1000 * median(kept_of(self.times["trace"])), 1000 * median(plain), 1000 * middle_half(plain)]
        mine = [*milliseconds, float(bool(problem))]
        table = accelerator.gather(torch.tensor([mine], dtype=torch.float64, device=accelerator.device)).tolist()
        self.ranks = [RankTimes(rank, *times) for rank, (*times, _) in enumerate(table)]
        unwritten = [str(rank) for rank, (*_, failed) in enumerate(table) if failed]
        if problem and accelerator.is_main_process:
            self.on_problem(problem)
        elif unwritten and accelerator.is_main_process:
            self.on_problem(f"the traces of ranks {', '.join(unwritten)} in {folder} could not be written")

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
            trace=self.trace if self.folder else "",
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
