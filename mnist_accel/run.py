"""A recipe and its options → a trained, evaluated, written-down run. Shared by ``launch.py`` and the commands."""

from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from torch import nn

from mnist_accel.checkpoint import Facts, capture, restore
from mnist_accel.cli import Request, too_small_batch
from mnist_accel.data.batches import Augmentation, ImageStore, TestBatches, TrainBatches
from mnist_accel.data.dataset import Dataset, hold_out, load_dataset
from mnist_accel.device_step import DeviceStep, can_capture
from mnist_accel.engine import EachStep, train
from mnist_accel.errors import Interrupted, OutOfMemory, PeerLost, TrainingFailed, UserError
from mnist_accel.interrupt import naming_lost_peers, watch_for_signals
from mnist_accel.models import build_model, count_parameters
from mnist_accel.objective import build_objective
from mnist_accel.optim import WeightAverage, build_optimizer, lr_factor
from mnist_accel.outcome import Progress, Start, Watcher, describe
from mnist_accel.phase import unmarked
from mnist_accel.recipe import Recipe, RunOptions
from mnist_accel.results import EpochStats, RunFolder, RunResult, default_folder
from mnist_accel.resume import Resumption, find_resumption, history_of, learning, position_of
from mnist_accel.runtime import (
    Runtime,
    check_launcher,
    choose_device,
    choose_precision,
    is_launched,
    is_out_of_memory,
    prepare,
    refuse_mismatch,
    refuse_too_few_gpus,
    start_runtime,
    together,
)
from mnist_accel.seeding import derive_seed
from mnist_accel.stepping import BuildStepper, Position
from mnist_accel.syncbn import synchronise_batch_norm


@naming_lost_peers()
def run(request: Request, watcher: Watcher, started: float, parent: int | None = None) -> tuple[RunResult, RunFolder]:
    """Trains ``request.recipe`` here; ``started`` and ``parent`` are clock and parent at the process's first line.

    Raises UserError before anything is written, TrainingFailed after the failed run has been written down.
    """
    recipe, options = request.recipe, request.options
    assert recipe is not None
    folder, resumed = check(request)
    runtime = start_runtime(options.precision, options.device, options.threads, options.timeout)
    if recipe.batch_size < runtime.world_size:
        raise UserError(too_small_batch(recipe.batch_size, runtime.world_size))
    data = together(runtime.accelerator, lambda: load_dataset(options.dataset, options.data_dir))
    refuse_mismatch(
        runtime.accelerator,
        data.checksum,
        "dataset: the processes hold different data. Give every machine the same MNIST with data_dir=, "
        "or type dataset=synthetic",
    )
    refuse_mismatch(
        runtime.accelerator,
        resumed.checkpoint.sha256 if resumed else "",
        f"resume={options.resume}: the processes found different checkpoints. Use a folder that all machines share",
    )
    if resumed and resumed.checkpoint.facts.dataset != data.checksum:
        raise UserError(
            f"resume={options.resume}: {resumed.checkpoint.path} was trained on other data than this {data.name}. "
            "Give the same dataset= and data_dir=, or leave resume out"
        )
    if recipe.validation:
        data = hold_out(data, recipe.validation)
    main = runtime.accelerator.is_main_process
    if main:
        folder.tell = watcher.on_problem
    history = history_of(resumed.checkpoint) if resumed else None
    together(runtime.accelerator, lambda: folder.open(history) if main else None)
    if main:
        for complaint in resumed.complaints if resumed else ():
            watcher.on_problem(complaint)
        folder.write_json("recipe.json", {"recipe": asdict(recipe), "options": asdict(options)})

    progress = Progress(position_of(resumed) if resumed else Position())
    if resumed:
        progress.saved = (progress.position.epoch, progress.position.step)
    model = new_model(recipe, runtime)
    try:
        fit(
            recipe,
            options,
            runtime,
            data,
            model,
            folder,
            progress,
            watcher=watcher if main else Watcher(),
            changed=request.changed,
            resumed=resumed,
            launcher=parent if is_launched() else None,
        )
    except Interrupted as error:
        error.outlook = progress.outlook()
        progress.error = error
    except PeerLost as error:
        hope = "resume=auto goes on from the last checkpoint" if progress.saved else "Nothing was saved"
        progress.error = PeerLost(f"{error}. {hope}", here_only=True)
    except TrainingFailed as error:
        progress.error = error
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        owner = "machine" if runtime.device.type == "cpu" else "GPU"
        smaller = recipe.batch_size // 2
        remedy = f"Type batch_size={smaller}" if smaller else "Even one image is too much for it"
        message = f"batch_size={recipe.batch_size}: the {owner} ran out of memory. {remedy}"
        progress.error = OutOfMemory(message, here_only=True)
    result = describe(request, runtime, data, model, progress, started, resumed)
    if main:
        folder.write_json("result.json", asdict(result))
        if progress.error is None:
            watcher.on_end(result)
    if progress.error is not None:
        if not progress.error.here_only:
            # A launcher ends all ranks as soon as one has ended: not before rank 0 has written this down.
            runtime.accelerator.wait_for_everyone()
        raise progress.error
    return result, folder


def check(request: Request) -> tuple[RunFolder, Resumption | None]:
    """Whatever can be refused before a process is spawned, a rank started or a file written."""
    recipe, options = request.recipe, request.options
    assert recipe is not None
    check_launcher()
    device = choose_device(options.device)
    choose_precision(options.precision, device)
    refuse_too_few_gpus(device, options.processes or 1)
    try:
        out = Path(options.out).expanduser() if options.out else None
    except RuntimeError:
        raise UserError(f"out={options.out}: there is no such home folder. Name another folder") from None
    resumed = find_resumption(options.resume, recipe, out) if options.resume else None
    folder = RunFolder(resumed.folder if resumed else out or default_folder(recipe.name), options.out)
    if resumed is None:
        folder.check()
    elif out and out.resolve() != resumed.folder.resolve():
        raise UserError(
            f"out={options.out}: resume={options.resume} goes on in its own folder, {resumed.folder}. Leave out out"
        )
    else:
        folder.check_writable()
    return folder, resumed


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
    launcher: int | None = None,
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
        if not runtime.accelerator.is_main_process or options.dry_run:
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
    build_stepper: BuildStepper = partial(EachStep, phase=phase)
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
    )
    with watch_for_signals(launcher) as stop, naming_lost_peers(lambda: stop.signal_number):
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
            profiler=profile,
            on_step=profile.after(watcher.on_step, progress.position) if profile else watcher.on_step,
        )
    if runtime.accelerator.is_main_process:
        folder.write_weights(model.state_dict())
