"""What gradient all-reduce costs a training step, measured in real ranks.

    python benchmarks/all_reduce.py PAIRS STEPS recipe=NAME processes=N key=value…     (keys of launch.py)

The same steps in turn, once as ``launch.py`` trains and once with every rank's gradients left where they are; what the
first takes longer is the all-reduce that backward could not hide. The ranks still tell each other the loss of every
step, so that waiting for a slower rank is in both and no part of the difference. Rank 0 prints one JSON line: the share
of the step, pair by pair. Noise can make a small share negative; it is left as it is.
"""

import json
import sys
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor
from torch.distributed import GradBucket  # type: ignore[attr-defined]
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

import recipes
from benchmarks.sides import our_epoch
from mnist_accel import cli, errors
from mnist_accel.data.dataset import Dataset, load_dataset
from mnist_accel.machine.job import spawn, wait_for_ranks
from mnist_accel.machine.launcher import has_to_spawn
from mnist_accel.machine.runtime import Runtime, start_runtime, synchronised_clock
from mnist_accel.recipe import Recipe
from mnist_accel.training.eager_step import EagerStep
from mnist_accel.training.exchange import Exchange, Patience
from mnist_accel.training.state import BuildStepper, StepInfo

WARM_UP_STEPS = 10  # DDP arranges its buckets after the first
MOST_IMAGES = 200_000  # each rank holds them all


def main() -> int:
    pairs, steps, *words = sys.argv[1:]
    request = cli.parse(words, recipes.names(), recipes.load)
    recipe, options = request.recipe, request.options
    if has_to_spawn(options.processes):
        return spawn(options.processes or 1, __file__, sys.argv[1:])
    runtime = start_runtime(options.precision, options.device, options.threads, options.timeout)
    warm_up, steps_in_all = affordable(int(steps), recipe.batch_size)
    data = repeated(load_dataset(options.dataset, options.data_dir), recipe, steps_in_all)
    patience, shares = Patience(options.timeout), []
    for _ in range(int(pairs)):
        with_it = seconds_a_step(recipe, runtime, data, warm_up, partial(EagerStep, patience=patience))
        without = seconds_a_step(recipe, runtime, data, warm_up, partial(GradientsLeftAlone, patience=patience))
        shares.append((with_it - without) / with_it)
    if runtime.rank == 0:
        print(json.dumps({"world_size": runtime.world_size, "shares": shares}), flush=True)
    wait_for_ranks()
    return 0


def affordable(steps: int, batch_size: int) -> tuple[int, int]:
    """How many steps of warm-up, and how many with them: fewer than asked for where the batches are huge."""
    if (WARM_UP_STEPS + steps) * batch_size <= MOST_IMAGES:
        return WARM_UP_STEPS, WARM_UP_STEPS + steps
    steps_in_all = max(3, MOST_IMAGES // batch_size)
    return min(WARM_UP_STEPS, steps_in_all // 3), steps_in_all


def repeated(data: Dataset, recipe: Recipe, steps: int) -> Dataset:
    """Images for exactly ``steps`` steps, from the beginning again where they run out; few to score."""
    chosen = torch.arange(steps * recipe.batch_size) % len(data.train_labels)
    return replace(
        data,
        train_images=data.train_images[chosen],
        train_labels=data.train_labels[chosen],
        test_images=data.test_images[:500],
        test_labels=data.test_labels[:500],
    )


def seconds_a_step(recipe: Recipe, runtime: Runtime, data: Dataset, warm_up: int, build_stepper: BuildStepper) -> float:
    """Of those after the first ``warm_up``."""
    clocks: dict[int, float] = {}

    def on_step(info: StepInfo) -> None:
        if info.step in (warm_up, info.steps_per_epoch):
            clocks[info.step] = synchronised_clock(runtime.device)

    our_epoch(recipe, runtime, data, on_step, build_stepper)
    first, last = clocks
    return (clocks[last] - clocks[first]) / (last - first)


class LossAlone(Exchange):
    def add_up(self, state: None, bucket: GradBucket) -> Future[Tensor]:
        if bucket.is_last():
            self.send(self.told)
        done: Future[Tensor] = Future()
        done.set_result(bucket.buffer())
        return done


class GradientsLeftAlone(EagerStep):
    """The ranks tell each other their losses only."""

    def __post_init__(self) -> None:
        assert isinstance(self.model, DistributedDataParallel), "there is nothing to switch off"
        self.exchange = LossAlone(self.model, self.patience, self.phase)


if __name__ == "__main__":
    errors.exit_with_one_line(main)
