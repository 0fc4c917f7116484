"""Each convolution timed alone beside its row in the profile: ``python -m benchmarks.convolutions RECIPE``.

Alone means its own forward and backward on tensors of the same sizes, strides and type, all layers in turn as in a
step, so that none finds its data in the cache because nothing else ran. The traced steps come from the same process, in
turn with that. A layer that takes more than a twentieth of the step should agree within a quarter.
"""

import shutil
import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import recipes
from benchmarks.sides import beginning
from mnist_accel import cli, errors
from mnist_accel.console import report
from mnist_accel.data.dataset import Dataset, load_dataset
from mnist_accel.errors import UserError
from mnist_accel.machine.runtime import Runtime, start_runtime, synchronised_clock
from mnist_accel.profiling.collect import PLANNED
from mnist_accel.profiling.layers import Analysis, analyse
from mnist_accel.profiling.steady import quiet
from mnist_accel.profiling.summary import ProfileSummary
from mnist_accel.profiling.trace_file import STEP, read_trace
from mnist_accel.recipe import Recipe, RunOptions
from mnist_accel.runs.trainer import Trainer, TrainerCallbacks, fix_filters, new_model

ROUNDS = 3
REPEATS = 40  # a round
WARM_UP = 3
COUNTS_FROM = 5.0  # percent of the step
WITHIN = 1.25

Samples = dict[str, list[float]]  # of each convolution, by its module's name


@dataclass(frozen=True)
class Agreement:
    """Over the steps of all rounds, in ms of forward and backward together."""

    name: str
    share: float  # percent of the step
    in_step: float
    alone: float

    @property
    def factor(self) -> float:
        return self.in_step / self.alone

    @property
    def met(self) -> bool | None:
        if self.share < COUNTS_FROM:
            return None
        return 1 / WITHIN <= self.factor <= WITHIN


def measure(
    recipe: Recipe, runtime: Runtime, data: Dataset, rounds: int = ROUNDS, repeats: int = REPEATS
) -> list[Agreement]:
    alone: Samples = defaultdict(list)
    in_step: Samples = defaultdict(list)
    steps: list[float] = []
    for _ in range(rounds):
        for name, times in alone_ms(recipe, runtime, data, repeats).items():
            alone[name] += times
        for analysis in analyses(profiled(recipe, runtime, data)):
            steps.append(analysis.total_us / 1000)
            for row in analysis.convolutions:
                in_step[row.place.module].append((row.forward_us + row.backward_us) / 1000)
    return [
        Agreement(name, 100 * quiet(in_step[name]) / quiet(steps), quiet(in_step[name]), quiet(times))
        for name, times in alone.items()
    ]


def analyses(summary: ProfileSummary) -> list[Analysis]:
    """Of each traced step by itself. The trace is not kept: there is one for each round."""
    trace = read_trace(Path(summary.folder, summary.trace))
    shutil.rmtree(summary.folder)
    steps = [event for event in trace.events if event.name.startswith(STEP)]
    return [
        analyse(replace(trace, events=[event for event in trace.events if step.start <= event.start < step.end]))
        for step in steps
    ]


def alone_ms(recipe: Recipe, runtime: Runtime, data: Dataset, repeats: int) -> Samples:
    calls = calls_of(recipe, runtime, data)
    forward = [(name, call.forward) for name, call in calls.items()]
    backward = [(name, call.backward) for name, call in reversed(calls.items())]
    samples: Samples = defaultdict(list)
    for repeat in range(repeats + WARM_UP):
        # Held until the end, as a step holds them: memory that is handed back at once costs no page faults.
        held = []
        times: dict[str, float] = defaultdict(float)
        for name, action in forward + backward:
            started = synchronised_clock(runtime.device)
            held.append(action())
            times[name] += 1000 * (synchronised_clock(runtime.device) - started)
        for name, milliseconds in times.items() if repeat >= WARM_UP else ():
            samples[name].append(milliseconds)
    return samples


@dataclass(frozen=True)
class Call:
    """A convolution with what it was given in a real step: its input, and the gradient of its output."""

    module: nn.Conv2d
    images: Tensor
    gradient: Tensor

    def forward(self) -> Tensor:
        return self.module(self.images)

    def backward(self) -> Any:
        """torch's own backward of a convolution, without the rest of autograd."""
        module = self.module
        bias = None if module.bias is None else [module.out_channels]
        asked = [self.images.requires_grad, True, bias is not None]
        return torch.ops.aten.convolution_backward(
            self.gradient,
            self.images,
            module.weight,
            bias,
            module.stride,
            module.padding,
            module.dilation,
            False,
            [0, 0],
            module.groups,
            asked,
        )


def calls_of(recipe: Recipe, runtime: Runtime, data: Dataset) -> dict[str, Call]:
    model = new_model(recipe, runtime).train()
    fix_filters(model, recipe, runtime, data)
    given: dict[str, Tensor] = {}
    gradients: dict[str, Tensor] = {}

    def watch(name: str) -> Callable[..., None]:
        def on_forward(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            given[name] = inputs[0]
            output.register_hook(lambda gradient: gradients.__setitem__(name, gradient))

        return on_forward

    convolutions = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d) and module.weight.requires_grad
    }
    for name, module in convolutions.items():
        module.register_forward_hook(watch(name))
    images = data.train_images[: recipe.batch_size].to(runtime.device).float().unsqueeze(1) / 255
    model(images).square().sum().backward()
    for module in convolutions.values():
        module._forward_hooks.clear()
    return {
        name: Call(module, given[name].detach().requires_grad_(given[name].requires_grad), gradients[name])
        for name, module in convolutions.items()
    }


def profiled(recipe: Recipe, runtime: Runtime, data: Dataset) -> ProfileSummary:
    """The table of a real run just long enough for it."""
    summaries: list[ProfileSummary] = []
    steps = sum(PLANNED.values()) + 1
    trainer = Trainer.build(
        replace(recipe, epochs=1), RunOptions(profile=True), runtime, beginning(recipe, data, steps)
    )
    trainer.run(TrainerCallbacks(on_profile=summaries.append))
    runtime.accelerator.free_memory()
    return summaries[0]


def main(argv: list[str]) -> int:
    if len(argv) != 1:
        raise UserError("recipe: none named. Type python -m benchmarks.convolutions RECIPE")
    recipe = recipes.load(cli.choose_recipe({"recipe": argv[0]}, recipes.names()))
    runtime = start_runtime("fp32", "auto", 1)
    rows = measure(recipe, runtime, load_dataset("auto", None))
    console = report.make_console()
    table = report.simple_table("", "% of step", "in the step ms", "alone ms", "times", "")
    for row in rows:
        cells = (f"{row.share:.1f}", f"{row.in_step:.3f}", f"{row.alone:.3f}", f"{row.factor:.2f}")
        table.add_row(row.name, *cells, report.VERDICTS[row.met])
    console.print(f"{recipe.name}, batch {recipe.batch_size}, {runtime.device_name}, 1 thread; forward and backward")
    report.show_table(console, table)
    return 0


if __name__ == "__main__":
    errors.exit_with_one_line(lambda: main(sys.argv[1:]))
