"""Builds a recipe's trainer and runs it."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mnist_accel.data.batches import Augmentation, ImageStore, TestBatches, TrainBatches, normalise
from mnist_accel.data.dataset import Dataset
from mnist_accel.machine.runtime import Runtime, prepare, synchronised_clock
from mnist_accel.models import build_model
from mnist_accel.models.layers import fix_first_filters, synchronise_batch_norm
from mnist_accel.recipe import Recipe, RunOptions
from mnist_accel.runs.checkpoint import Checkpoint, CheckpointMeta, restore, snapshot
from mnist_accel.runs.resume import learning
from mnist_accel.seeding import derive_seed
from mnist_accel.training.eager_step import EagerStep
from mnist_accel.training.exchange import Patience
from mnist_accel.training.graph_step import GraphStep, can_capture
from mnist_accel.training.loop import Loop
from mnist_accel.training.objective import build_objective
from mnist_accel.training.optim import WeightAverage, build_optimizer, lr_factor
from mnist_accel.training.state import BuildStepper, Callbacks, Position, Profiler, Unprofiled, copy_of, ignore

if TYPE_CHECKING:
    from mnist_accel.profiling.summary import ProfileSummary

WHITENED_BY = 500  # training images, 72,000 patches at stride 2; more of them change the filters hardly at all


@dataclass
class TrainerCallbacks(Callbacks):
    """Whom training tells what."""

    on_notice: Callable[[str], None] = ignore  # of what goes another way than asked, and is no problem
    on_problem: Callable[[str], None] = ignore  # of a file that could not be written
    on_profile: "Callable[[ProfileSummary], None]" = ignore
    make_profile_page: "Callable[[ProfileSummary], str] | None" = None


@dataclass
class Trainer:
    """A recipe's network, and all that trains it; ``run`` does."""

    recipe: Recipe
    options: RunOptions
    runtime: Runtime
    data: Dataset
    model: nn.Module
    prepared: nn.Module  # the same, as Accelerate wraps it: DDP and mixed precision
    optimizer: torch.optim.Optimizer
    prepared_optimizer: torch.optim.Optimizer
    average: WeightAverage | None
    train_batches: TrainBatches
    test_batches: TestBatches
    position: Position = field(default_factory=Position)
    profiler: Profiler = field(default_factory=Unprofiled)
    build_stepper: BuildStepper | None = None  # else what the device can do
    logits: list[Tensor] = field(default_factory=list)  # once trained: this rank's of the last evaluation

    @classmethod
    def build(cls, recipe: Recipe, options: RunOptions, runtime: Runtime, data: Dataset) -> "Trainer":
        model = new_model(recipe, runtime)
        whitening_seconds = fix_filters(model, recipe, runtime, data)
        if recipe.sync_batchnorm and runtime.world_size > 1:
            synchronise_batch_norm(model)
        optimizer = build_optimizer(
            recipe.optimizer,
            model.parameters(),
            lr=recipe.lr,
            momentum=recipe.momentum,
            nesterov=recipe.nesterov,
            betas=(recipe.beta1, recipe.beta2),
            weight_decay=recipe.weight_decay,
        )
        average = WeightAverage(model, recipe.ema) if recipe.ema else None
        prepared = prepare(runtime, model, optimizer)
        batches = build_batches(recipe, options, runtime, data)
        trainer = cls(recipe, options, runtime, data, model, prepared[0], optimizer, prepared[1], average, *batches)
        trainer.position.seconds = whitening_seconds  # in place of learning them
        return trainer

    def go_on_from(self, checkpoint: Checkpoint) -> None:
        """RuntimeError, ValueError, KeyError or IndexError where it does not fit the network."""
        meta = checkpoint.meta
        restore(checkpoint.tensors, self.model, self.optimizer, self.average)
        if self.average:
            self.average.steps = meta.average_steps
        if self.runtime.accelerator.scaler and meta.scaler:
            self.runtime.accelerator.scaler.load_state_dict(meta.scaler)
        if meta.position.step > self.train_batches.steps_per_epoch:
            raise ValueError(f"an epoch has {self.train_batches.steps_per_epoch} steps, not {meta.position.step}")
        self.position = copy_of(meta.position)

    def checkpoint(self) -> tuple[dict[str, Tensor], CheckpointMeta]:
        """All that ``go_on_from`` needs, as of now."""
        scaler = self.runtime.accelerator.scaler
        meta = CheckpointMeta(
            recipe=learning(self.recipe),
            dataset=self.data.checksum,
            world_size=self.runtime.world_size,
            position=self.position,
            average_steps=self.average.steps if self.average else 0,
            scaler=scaler.state_dict() if scaler else {},
        )
        return snapshot(self.model, self.optimizer, self.average), meta

    @property
    def steps_done(self) -> int:
        return self.position.epoch * self.train_batches.steps_per_epoch + self.position.step

    def phase(self, name: str) -> AbstractContextManager[object]:
        return self.profiler.phase(name)

    def run(self, callbacks: TrainerCallbacks) -> None:
        """Trains from ``position`` on."""
        recipe, options, accelerator = self.recipe, self.options, self.runtime.accelerator
        patience = Patience(options.timeout, callbacks.stop_signal)
        if options.profile:
            self.profiler = self.build_profiler(callbacks)
        build_stepper = self.build_stepper or self.choose_stepper(callbacks, patience)
        # Accelerate's wrapper searches the disk for an optional package twice a step: 0.3 ms of onepoch's 3. All that
        # it adds here is the gradient scaling of fp16.
        optimizer = self.optimizer if accelerator.scaler is None else self.prepared_optimizer
        objective = build_objective(recipe.loss, recipe.label_smoothing, recipe.positive_class)
        loop = Loop(
            model=self.model,
            stepper=build_stepper(
                self.prepared, optimizer, self.train_batches, objective, accelerator, recipe.clip_norm, self.average
            ),
            train_batches=self.train_batches,
            test_batches=self.test_batches,
            objective=objective,
            accelerator=accelerator,
            average=self.average,
            position=self.position,
            epochs=recipe.epochs,
            seed=recipe.seed,
            lr_at=self.lr_at,
            test_shifts=recipe.test_shifts,
            dry_run=options.dry_run,
            save_every=options.checkpoint_every,
            callbacks=callbacks,
            profiler=self.profiler,
            patience=patience,
            logits=self.logits,
        )
        # On a CPU there is nothing that only the first steps do.
        if self.runtime.device.type == "cuda" and not loop.is_over:
            callbacks.on_warm_up(loop.warm_up(optimizer))
        loop.run()

    @property
    def captures(self) -> bool:
        return self.options.graph == "auto" and can_capture(self.runtime.accelerator, self.train_batches.store)

    def build_profiler(self, callbacks: TrainerCallbacks) -> Profiler:
        from mnist_accel.profiling.collect import Profile  # 40 ms of every start

        return Profile(
            self.runtime,
            self.model,
            recipe=self.recipe.name,
            batch_size=self.recipe.batch_size,
            usually_eager=not self.captures,
            on_problem=callbacks.on_problem,
            on_summary=callbacks.on_profile,
            make_page=callbacks.make_profile_page,
        )

    def choose_stepper(self, callbacks: TrainerCallbacks, patience: Patience) -> BuildStepper:
        if not self.captures:
            return partial(EagerStep, phase=self.phase, patience=patience)
        return partial(GraphStep, tell=callbacks.on_notice, eager_now=lambda: self.profiler.active, phase=self.phase)

    def lr_at(self, step: int) -> float:
        recipe, steps_per_epoch = self.recipe, self.train_batches.steps_per_epoch
        return recipe.lr * lr_factor(
            recipe.schedule,
            step,
            recipe.epochs * steps_per_epoch,
            warmup=recipe.warmup,
            steps_per_drop=recipe.step_epochs * steps_per_epoch,
            drop_factor=recipe.step_factor,
        )


def new_model(recipe: Recipe, runtime: Runtime) -> nn.Module:
    torch.manual_seed(derive_seed(recipe.seed, "weights"))
    model = build_model(recipe.model, recipe.dropout).to(runtime.device)
    # Channels-last: see CONTRIBUTING for what it brings each network.
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def fix_filters(model: nn.Module, recipe: Recipe, runtime: Runtime, data: Dataset) -> float:
    """Where the recipe wants its first filters fixed. The seconds that it took."""
    if recipe.first_filters == "learned":
        return 0.0
    started = synchronised_clock(runtime.device)
    fix_first_filters(model, normalise(data.train_images[:WHITENED_BY], recipe.mean, recipe.std))
    return synchronised_clock(runtime.device) - started


def build_batches(
    recipe: Recipe, options: RunOptions, runtime: Runtime, data: Dataset
) -> tuple[TrainBatches, TestBatches]:
    limit = None if options.resident_mb is None else options.resident_mb * 2**20
    store = ImageStore(data.train_images, data.train_labels, runtime.device, limit)
    test_store = ImageStore(data.test_images, data.test_labels, runtime.device, limit)
    train_batches = TrainBatches(
        store,
        batch_size=recipe.batch_size,
        seed=recipe.seed,
        mean=recipe.mean,
        std=recipe.std,
        augmentation=Augmentation(recipe.rotation, recipe.translation, recipe.scale, recipe.shear),
        rank=runtime.rank,
        world_size=runtime.world_size,
    )
    test_batches = TestBatches(
        test_store, mean=recipe.mean, std=recipe.std, rank=runtime.rank, world_size=runtime.world_size
    )
    return train_batches, test_batches
