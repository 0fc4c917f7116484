"""One measurement of each side: ours, the stock script, its DataLoader, a batched one, the bare loop.

Reading files, building networks and evaluation are outside every clock; shuffling, drawing the augmentation
and starting the DataLoader's workers are inside. On a GPU every side makes three steps before its clock starts, which
are undone.
"""

import signal
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from math import ceil
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import bare_loop, batched
from benchmarks.turns import Reading
from mnist_accel.data import mnist
from mnist_accel.data.augment import draw_warps
from mnist_accel.data.batches import Augmentation, ImageStore, TrainBatches
from mnist_accel.data.dataset import Dataset
from mnist_accel.data.torchvision_import import import_torchvision
from mnist_accel.errors import Interrupted, UserError
from mnist_accel.machine.runtime import Runtime, synchronised_clock
from mnist_accel.recipe import Recipe, RunOptions
from mnist_accel.runs.interrupt import watch_for_signals
from mnist_accel.runs.trainer import Trainer, TrainerCallbacks, fix_filters, new_model
from mnist_accel.training.objective import build_objective
from mnist_accel.training.optim import build_optimizer, lr_factor
from mnist_accel.training.state import BuildStepper, EpochStats, StepInfo, ignore
from mnist_accel.training.warm_up import WARM_UP_STEPS, undone

SHORTEST_PASS_SECONDS = 0.2


def our_speed(recipe: Recipe, runtime: Runtime, data: Dataset) -> float:
    """Images a second of whole epochs."""
    batches = TrainBatches(
        ImageStore(data.train_images, data.train_labels, runtime.device),
        batch_size=recipe.batch_size,
        seed=recipe.seed,
        mean=recipe.mean,
        std=recipe.std,
        augmentation=Augmentation(**augmentation_of(recipe)),
    )
    epochs, seconds = 0, 0.0
    started = synchronised_clock(runtime.device)
    # An epoch without augmentation lasts a few hundredths of a second: too little to go by.
    while seconds < SHORTEST_PASS_SECONDS:
        for _ in batches.epoch(epochs):
            pass
        epochs += 1
        seconds = synchronised_clock(runtime.device) - started
    return epochs * len(batches.store) / seconds


def loader_speed(runtime: Runtime, batches: Any, num_batches: int) -> float:
    """Images a second of a DataLoader's first batches."""
    images = 0
    with no_interrupt_dropped():
        started = synchronised_clock(runtime.device)
        for batch, labels in islice(batches, num_batches):
            batch, labels = batch.to(runtime.device), labels.to(runtime.device)
            images += len(labels)
        return images / (synchronised_clock(runtime.device) - started)


def our_seconds(recipe: Recipe, runtime: Runtime, data: Dataset) -> float:
    """The ``train_seconds`` of one epoch, as ``launch.py`` would report them."""
    return our_epoch(recipe, runtime, data).train_seconds


def our_whole_epoch(recipe: Recipe, runtime: Runtime, data: Dataset) -> Reading:
    stats = our_epoch(recipe, runtime, data)
    return Reading(stats.train_seconds, stats.accuracy)


def our_epoch(
    recipe: Recipe,
    runtime: Runtime,
    data: Dataset,
    on_step: Callable[[StepInfo], None] = ignore,
    build_stepper: BuildStepper | None = None,
) -> EpochStats:
    trainer = Trainer.build(replace(recipe, epochs=1), RunOptions(), runtime, data)
    trainer.build_stepper = build_stepper
    with nothing_to_resume(), watch_for_signals() as stop:
        trainer.run(TrainerCallbacks(on_step=on_step, stop_signal=lambda: stop.signal_number))
    runtime.accelerator.free_memory()
    return trainer.position.history[-1]


def stock_seconds(recipe: Recipe, runtime: Runtime, batches: Any, steps: int) -> float:
    """The first ``steps`` of the stock script's epoch; 0 for all."""
    return stock_epoch(recipe, runtime, batches, steps)[0]


def stock_whole_epoch(recipe: Recipe, runtime: Runtime, batches: Any, test_batches: Any) -> Reading:
    seconds, model = stock_epoch(recipe, runtime, batches, 0)
    positive = recipe.positive_class if recipe.loss == "binary" else None
    return Reading(seconds, import_stock().evaluate(model, test_batches, runtime.device, positive))


def stock_epoch(recipe: Recipe, runtime: Runtime, batches: Any, steps: int) -> tuple[float, nn.Module]:
    stock = import_stock()
    model, optimizer = stock.build(recipe, runtime.device)
    loss_function = stock.make_loss(recipe.loss, recipe.positive_class)
    if runtime.device.type == "cuda":
        with undone(model, optimizer, runtime.accelerator, None):
            stock.train_epoch(model, [blank_batch(recipe)] * WARM_UP_STEPS, optimizer, loss_function, runtime.device)
    with no_interrupt_dropped():
        started = synchronised_clock(runtime.device)
        stock.train_epoch(model, islice(batches, steps or None), optimizer, loss_function, runtime.device)
        return synchronised_clock(runtime.device) - started, model


def blank_batch(recipe: Recipe) -> tuple[Tensor, Tensor]:
    return torch.zeros(recipe.batch_size, 1, 28, 28), torch.zeros(recipe.batch_size, dtype=torch.int64)


@contextmanager
def nothing_to_resume() -> Iterator[None]:
    """A run that is asked to stop saves itself and says how to go on; one that is only measured just stops."""
    try:
        yield
    except Interrupted as error:
        if error.exit_code == 128 + signal.SIGINT:
            raise KeyboardInterrupt from None
        raise SystemExit(error.exit_code) from None


@contextmanager
def no_interrupt_dropped() -> Iterator[None]:
    """Python drops a Ctrl-C that comes while it clears a DataLoader's workers away, and prints a traceback instead."""
    dropped: list[object] = []
    before = sys.unraisablehook

    def keep(unraisable: Any) -> None:
        if issubclass(unraisable.exc_type, KeyboardInterrupt):
            dropped.append(unraisable.exc_type)
        else:
            before(unraisable)

    sys.unraisablehook = keep
    try:
        yield
    finally:
        sys.unraisablehook = before
        if dropped:
            raise KeyboardInterrupt


def bare_seconds(recipe: Recipe, runtime: Runtime, data: Dataset) -> float:
    """One epoch of the bare loop over the same images as `our_seconds`."""
    model = new_model(recipe, runtime)
    fix_filters(model, recipe, runtime, data)
    images, labels = data.train_images.to(runtime.device), data.train_labels.to(runtime.device)
    optimizer = build_optimizer(recipe.optimizer, model.parameters(), **optimizer_settings(recipe))
    objective = build_objective(recipe.loss, recipe.label_smoothing, recipe.positive_class)
    steps = ceil(len(labels) / recipe.batch_size)

    def lr_at(step: int) -> float:
        # Of one epoch, so "step" has not dropped yet.
        return recipe.lr * lr_factor(recipe.schedule, step, steps, warmup=recipe.warmup, steps_per_drop=steps)

    def loss_function(logits: Tensor, targets: Tensor) -> Tensor:
        return objective.loss_sum(logits, targets) / len(targets)

    def train_on(images: Tensor, labels: Tensor, warps: Tensor | None) -> None:
        bare_loop.train_epoch(
            model,
            optimizer,
            loss_function,
            images,
            labels,
            batch_size=recipe.batch_size,
            mean=recipe.mean,
            std=recipe.std,
            lr_at=lr_at,
            warps=None if warps is None else warps.to(runtime.device),
        )

    def drawn(count: int) -> Tensor | None:
        return draw_warps(count, recipe.seed, **augmentation_of(recipe))

    if runtime.device.type == "cuda":
        few = min(WARM_UP_STEPS * recipe.batch_size, len(labels))
        with undone(model, optimizer, runtime.accelerator, None):
            train_on(images[:few], labels[:few], drawn(few))
    started = synchronised_clock(runtime.device)
    train_on(images, labels, drawn(len(labels)))
    return synchronised_clock(runtime.device) - started


def beginning(recipe: Recipe, data: Dataset, steps: int) -> Dataset:
    """Images for ``steps`` steps (0: all of them), and few to score: evaluation is outside the clock."""
    images = steps * recipe.batch_size or None
    return replace(
        data,
        train_images=data.train_images[:images],
        train_labels=data.train_labels[:images],
        test_images=data.test_images[:500],
        test_labels=data.test_labels[:500],
    )


def augmentation_of(recipe: Recipe) -> dict[str, float]:
    return {name: getattr(recipe, name) for name in ("rotation", "translation", "scale", "shear")}


def optimizer_settings(recipe: Recipe) -> dict[str, Any]:
    settings = {name: getattr(recipe, name) for name in ("lr", "momentum", "nesterov", "weight_decay")}
    return settings | {"betas": (recipe.beta1, recipe.beta2)}


def stock_loader(folder: str, recipe: Recipe, workers: int = 0, train: bool = True) -> Any:
    augmentation = augmentation_of(recipe) if train else {}
    return import_stock().make_loader(
        folder, recipe.batch_size, workers, train=train, mean=recipe.mean, std=recipe.std, **augmentation
    )


def batched_loader(data: Dataset, recipe: Recipe, runtime: Runtime) -> Any:
    images, labels = data.train_images.to(runtime.device), data.train_labels.to(runtime.device)
    settings = {"mean": recipe.mean, "std": recipe.std, **augmentation_of(recipe)}
    return batched.make_loader(images, labels, recipe.batch_size, **settings)


def import_stock() -> ModuleType:
    """Here, not above: the engine's benchmark needs no torchvision."""
    try:
        import_torchvision()
    except ImportError:
        raise UserError("torchvision: the stock script needs it. Type pip install torchvision") from None
    from benchmarks import stock

    # What more workers than cores do is a thing to measure.
    warnings.filterwarnings("ignore", message=".*worker processes in total")
    return stock


@contextmanager
def stock_folder(data: Dataset) -> Iterator[str]:
    """The data set as torchvision wants it: unpacked. The user's own folder may hold .gz and be read-only."""
    with tempfile.TemporaryDirectory(prefix="mnist_accel-") as folder:
        raw = Path(folder, "MNIST", "raw")
        raw.mkdir(parents=True)
        for file in mnist.FILES:
            tensor: Tensor = getattr(data, file.key)
            with open(raw / file.name, "wb") as stream:
                stream.write(mnist.idx_header(tensor.shape))
                stream.write(tensor.byte().numpy().tobytes())
        yield folder
