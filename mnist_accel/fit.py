"""What trains, built from a recipe: batches, network, optimizer, checkpoints, profiler; and the training itself."""

from dataclasses import asdict
from functools import partial

import torch
from torch import nn

from mnist_accel.checkpoint import Facts, capture, restore
from mnist_accel.data.batches import Augmentation, ImageStore, TestBatches, TrainBatches
from mnist_accel.data.dataset import Dataset
from mnist_accel.device_step import DeviceStep, can_capture
from mnist_accel.engine import EachStep, train
from mnist_accel.errors import UserError
from mnist_accel.exchange import Patience
from mnist_accel.interrupt import naming_lost_peers, watch_for_signals
from mnist_accel.models import build_model, count_parameters
from mnist_accel.objective import build_objective
from mnist_accel.optim import WeightAverage, build_optimizer, lr_factor
from mnist_accel.outcome import Progress, Start, Watcher
from mnist_accel.phase import unmarked
from mnist_accel.recipe import Recipe, RunOptions
from mnist_accel.results import EpochStats, RunFolder
from mnist_accel.resume import Resumption, learning
from mnist_accel.runtime import Runtime, prepare
from mnist_accel.seeding import derive_seed
from mnist_accel.stepping import BuildStepper, Position
from mnist_accel.syncbn import synchronise_batch_norm


def new_model(recipe: Recipe, runtime: Runtime) -> nn.Module:
    torch.manual_seed(derive_seed(recipe.seed, "weights"))
    model = build_model(recipe.model, recipe.dropout).to(runtime.device)
    # Channels-last: see CONTRIBUTING for what it brings each network.
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def fit(
    recipe: Recipe,
    options: RunOptions,
    runtime: Runtime,
    data: Dataset,
    model: nn.Module,
    folder: RunFolder,
    progress: Progress,
    *,
    watcher: Watcher,
    changed: tuple[str, ...] = (),
    resumed: Resumption | None = None,
) -> None:
    limit = None if options.resident_mb is None else options.resident_mb * 2**20
    store = ImageStore(data.train_images, data.train_labels, runtime.device, limit)
    test_store = ImageStore(data.test_images, data.test_labels, runtime.device, limit)
    ranks = {"rank": runtime.rank, "world_size": runtime.world_size}
    train_batches = TrainBatches(
        store,
        batch_size=recipe.batch_size,
        seed=recipe.seed,
        mean=recipe.mean,
        std=recipe.std,
        augmentation=Augmentation(recipe.rotation, recipe.translation, recipe.scale, recipe.shear),
        **ranks,
    )
    test_batches = TestBatches(test_store, mean=recipe.mean, std=recipe.std, **ranks)
    optimizer = build_optimizer(
        recipe.optimizer,
        model.parameters(),
        lr=recipe.lr,
        momentum=recipe.momentum,
        nesterov=recipe.nesterov,
        weight_decay=recipe.weight_decay,
    )
    if recipe.sync_batchnorm and runtime.world_size > 1:
        synchronise_batch_norm(model)
    prepared, prepared_optimizer = prepare(runtime, model, optimizer)
    average = WeightAverage(model, recipe.ema) if recipe.ema else None
    captures = options.graph == "auto" and can_capture(runtime.accelerator, store)
    total_steps = recipe.epochs * train_batches.steps_per_epoch

    def lr_at(step: int) -> float:
        return recipe.lr * lr_factor(
            recipe.schedule,
            step,
            total_steps,
            warmup=recipe.warmup,
            steps_per_drop=recipe.step_epochs * train_batches.steps_per_epoch,
            drop_factor=recipe.step_factor,
        )

    def on_epoch(stats: EpochStats) -> None:
        if runtime.accelerator.is_main_process:
            folder.append_history(stats)
            watcher.on_epoch(stats)

    def on_save(position: Position) -> None:
        if not runtime.accelerator.is_main_process:
            progress.saved = (position.epoch, position.step)  # as far as this process can know
            return
        if options.dry_run:
            return
        facts = Facts(
            recipe=learning(recipe),
            dataset=data.checksum,
            world_size=runtime.world_size,
            epoch=position.epoch,
            step=position.step,
            loss_sum=position.loss_sum,
            images=position.images,
            seconds=position.seconds,
            history=[asdict(stats) for stats in position.history],
            average_steps=average.steps if average else 0,
            scaler=runtime.accelerator.scaler.state_dict() if runtime.accelerator.scaler else {},
        )
        steps = position.epoch * train_batches.steps_per_epoch + position.step
        with phase("checkpoint"):
            written = folder.write_checkpoint(steps, capture(model, optimizer, average), facts)
        if written:
            progress.saved = (position.epoch, position.step)

    if resumed:
        try:
            restore(resumed.checkpoint.tensors, model, optimizer, average)
        except (RuntimeError, ValueError, KeyError, IndexError):
            raise UserError(
                f"resume={options.resume}: {resumed.checkpoint.path} does not fit the network as it is now. "
                "Leave resume out to start a new run"
            ) from None
        if average:
            average.steps = resumed.checkpoint.facts.average_steps
        if runtime.accelerator.scaler and resumed.checkpoint.facts.scaler:
            runtime.accelerator.scaler.load_state_dict(resumed.checkpoint.facts.scaler)
    profile = None
    if options.profile:
        from mnist_accel.profiling.collect import Profile  # 40 ms of every start

        profile = Profile(
            runtime,
            model,
            recipe=recipe.name,
            batch_size=recipe.batch_size,
            usually_eager=not captures,
            on_problem=folder.note,
            on_summary=watcher.on_profile,
        )
    phase = profile.phase if profile else unmarked
    patience = Patience(options.timeout, lambda: stop.signal_number)  # which is asked below, where there is one
    build_stepper: BuildStepper = partial(EachStep, phase=phase, patience=patience)
    if captures:
        eager_now = (lambda: profile.active) if profile else (lambda: False)
        build_stepper = partial(DeviceStep, tell=watcher.on_problem, eager_now=eager_now, phase=phase)
    start = Start(
        recipe=recipe,
        params=count_parameters(model),
        runtime=runtime,
        dataset=data.name,
        dataset_reason=data.reason,
        train_images=len(store),
        test_images=len(test_store),
        resident=store.resident,
        folder=folder.path,
        dry_run=options.dry_run,
        changed=changed,
        resumed_from=str(resumed.checkpoint.path) if resumed else None,
        found_nothing=bool(options.resume) and resumed is None,
    )
    with watch_for_signals() as stop, naming_lost_peers(lambda: stop.signal_number):
        # Whoever reads the banner may press Ctrl-C at once.
        watcher.on_start(start)
        train(
            prepared,
            prepared_optimizer,
            train_batches,
            test_batches,
            build_objective(recipe.loss, recipe.label_smoothing, recipe.positive_class),
            runtime.accelerator,
            epochs=recipe.epochs,
            lr_at=lr_at,
            seed=recipe.seed,
            clip_norm=recipe.clip_norm,
            average=average,
            dry_run=options.dry_run,
            position=progress.position,
            save_every=options.checkpoint_every,
            stop_signal=lambda: stop.signal_number,
            on_save=on_save,
            on_epoch=on_epoch,
            build_stepper=build_stepper,
            # On a CPU there is nothing that only the first steps do.
            warm_up=runtime.device.type == "cuda",
            on_warm_up=partial(setattr, progress, "warmup_seconds"),
            profiler=profile,
            patience=patience,
            phase=phase,
            on_step=profile.after(watcher.on_step, progress.position) if profile else watcher.on_step,
        )
    if runtime.accelerator.is_main_process:
        folder.write_weights(model.state_dict())
