"""Trains a recipe here and writes down what came of it. Shared by ``launch.py`` and the commands."""

import socket
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from mnist_accel.blame import what_of
from mnist_accel.cli import Request, expand_path, too_small_batch
from mnist_accel.data.dataset import Dataset, hold_out, load_dataset
from mnist_accel.errors import Interrupted, OutOfMemory, PeerLost, TrainingFailed, UserError
from mnist_accel.machine.job import (
    earlier_folder,
    load_on_all_ranks,
    refuse_mismatch,
    tell_later_attempts_failed,
    tell_later_attempts_folder,
)
from mnist_accel.machine.launcher import check_launcher, line_to_go_on
from mnist_accel.machine.runtime import (
    Runtime,
    choose_device,
    choose_precision,
    is_out_of_memory,
    refuse_too_few_gpus,
    start_runtime,
)
from mnist_accel.models import build_model, parameters_of
from mnist_accel.models.layers import whitenable
from mnist_accel.recipe import Recipe, RunOptions
from mnist_accel.runs import evaluation
from mnist_accel.runs.checkout import commit_of
from mnist_accel.runs.evaluation import gather_logits
from mnist_accel.runs.folder import REPORT, RunFolder, default_folder
from mnist_accel.runs.interrupt import naming_lost_peers, watch_for_signals
from mnist_accel.runs.result import Progress, RunResult, describe
from mnist_accel.runs.resume import Resumption, find_resumption
from mnist_accel.runs.tracking import refuse_missing, tracked
from mnist_accel.runs.trainer import Trainer, TrainerCallbacks
from mnist_accel.runs.watcher import Start, Watcher
from mnist_accel.runs.weights_file import WeightsMeta
from mnist_accel.training.exchange import Patience
from mnist_accel.training.state import EpochStats, Position, copy_of

if TYPE_CHECKING:
    from mnist_accel.profiling.summary import ProfileSummary


MakeReport = Callable[[Path], str]  # report.html of a folder in which all else is written


@naming_lost_peers()
def run(
    request: Request, watcher: Watcher, started: float, make_report: MakeReport | None = None
) -> tuple[RunResult, RunFolder]:
    """Trains ``request.recipe`` here; ``started`` is the clock at the process's first line.

    Raises UserError before anything is written, TrainingFailed after the failed run has been written down.
    """
    folder, resumed = check(request)
    try:
        return run_in(folder, resumed, request, watcher, started, make_report), folder
    finally:
        folder.close()  # a notebook, which lives on, may want to go on with it


def run_in(
    folder: RunFolder,
    resumed: Resumption | None,
    request: Request,
    watcher: Watcher,
    started: float,
    make_report: MakeReport | None,
) -> RunResult:
    recipe, options = request.recipe, request.options
    runtime = start_runtime(options.precision, options.device, options.threads, options.timeout)
    if recipe.batch_size < runtime.world_size:
        raise UserError(too_small_batch(recipe.batch_size, runtime.world_size))
    data = load_same_data(options, runtime, resumed)
    refuse_mismatch(
        str(recipe.seed), "seed: the processes were asked for different ones. Give every machine the same files"
    )
    if recipe.validation:
        data = hold_out(data, recipe.validation)
    main = runtime.accelerator.is_main_process
    watcher = watcher if main else Watcher()
    folder.tell = watcher.on_problem
    open_folder(folder, request, runtime, resumed)
    named = resumed.folder if resumed and request.options.resume != "auto" else None
    progress = Progress(again=line_to_go_on(request.command, named), commit=commit_of() if main else None)
    if resumed:  # so that it is known also where the trainer cannot be built
        progress.position = copy_of(resumed.checkpoint.meta.position)
        progress.saved = (progress.position.epoch, progress.position.step)
    try:
        train(request, runtime, data, folder, progress, watcher, resumed)
    except (TrainingFailed, Interrupted) as error:
        progress.error = explained(error, progress)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        progress.error = out_of_memory(recipe.batch_size, runtime)
    result = describe(request, runtime, data, progress, started, resumed)
    if main:
        written = folder.write_json("result.json", asdict(result))
        if result.status == "failed":
            with suppress(PeerLost, RuntimeError):  # the launcher is gone, and nobody is left to tell
                tell_later_attempts_failed(str(progress.error))
        if progress.error is None:
            watcher.on_end(result)
        if make_report and written:
            report(folder, make_report, watcher)
    if progress.error is not None:
        if not progress.error.here_only:
            # A launcher ends all ranks as soon as one has ended: not before rank 0 has written this down.
            runtime.accelerator.wait_for_everyone()
        raise progress.error
    return result


def check(request: Request) -> tuple[RunFolder, Resumption | None]:
    """Whatever can be refused before a process is spawned, a rank started or a file written."""
    recipe, options = request.recipe, as_an_earlier_attempt(request.options)
    check_launcher()
    device = choose_device(options.device)
    choose_precision(options.precision, device)
    refuse_too_few_gpus(device, options.processes or 1)
    parameters_of(recipe.model, recipe.dropout, recipe.name)
    if recipe.first_filters == "whitening":
        refuse_unfit_filters(recipe)
    if options.tracker != "off":
        refuse_missing(options.tracker)
    out = expand_path(options.out, f"out={options.out}") if options.out else None
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


def refuse_unfit_filters(recipe: Recipe) -> None:
    try:
        with torch.device("meta"):
            whitenable(build_model(recipe.model, recipe.dropout))
    except ValueError as error:
        raise UserError(
            f"first_filters=whitening: network {recipe.model} {error}. Type first_filters=learned"
        ) from None


def as_an_earlier_attempt(options: RunOptions) -> RunOptions:
    """After a restart it is the same run, in its folder, whatever was typed."""
    folder = earlier_folder()
    return replace(options, out=folder, resume="auto") if folder else options


def load_same_data(options: RunOptions, runtime: Runtime, resumed: Resumption | None) -> Dataset:
    """UserError where processes hold different data or checkpoints, or the checkpoint is of other data."""
    data = load_once_per_machine(options, runtime.accelerator)
    refuse_mismatch(
        data.checksum,
        "dataset: the processes hold different data. Give every machine the same MNIST with data_dir=, "
        "or type dataset=synthetic",
    )
    refuse_mismatch(
        resumed.checkpoint.sha256 if resumed else "",
        f"resume={options.resume}: the processes found different checkpoints. Use a folder that all machines share",
    )
    if resumed and resumed.checkpoint.meta.dataset != data.checksum:
        raise UserError(
            f"resume={options.resume}: {resumed.checkpoint.path} was trained on other data than this {data.name}. "
            "Give the same dataset= and data_dir=, or leave resume out"
        )
    return data


def load_once_per_machine(options: RunOptions, accelerator: Accelerator) -> Dataset:
    """The first process on each machine downloads or draws, and the others take by name what it has found.

    So a download that fails is tried once, and not again by each of them.
    """
    machines = gather_object([socket.gethostname()])
    first, rank = machines.index(socket.gethostname()), accelerator.process_index
    mine = load_on_all_ranks(
        accelerator, lambda: load_dataset(options.dataset, options.data_dir) if rank == first else None
    )
    name, reason = gather_object([mine and (mine.name, mine.reason)])[first]
    return load_on_all_ranks(accelerator, lambda: mine or replace(load_dataset(name, options.data_dir), reason=reason))


def open_folder(folder: RunFolder, request: Request, runtime: Runtime, resumed: Resumption | None) -> None:
    main = runtime.accelerator.is_main_process
    history = resumed.checkpoint.meta.position.history if resumed else None
    load_on_all_ranks(runtime.accelerator, lambda: folder.open(history) if main else None)
    if main:
        tell_later_attempts_folder(folder.path)
        for complaint in resumed.complaints if resumed else ():
            folder.tell(complaint)
        folder.write_json("recipe.json", {"recipe": asdict(request.recipe), "options": asdict(request.options)})


def train(
    request: Request,
    runtime: Runtime,
    data: Dataset,
    folder: RunFolder,
    progress: Progress,
    watcher: Watcher,
    resumed: Resumption | None,
) -> None:
    trainer = Trainer.build(request.recipe, request.options, runtime, data)
    if resumed:
        go_on(trainer, resumed, request.options)
    progress.position = trainer.position
    main = runtime.accelerator.is_main_process

    def on_epoch(stats: EpochStats) -> None:
        if main:
            folder.append_history(stats)
            watcher.on_epoch(stats)

    def on_save(position: Position) -> None:
        written = not main  # as far as this process can know
        if main and not request.options.dry_run:
            with trainer.phase("checkpoint"):
                written = folder.write_checkpoint(trainer.steps_done, *trainer.checkpoint())
        if written:
            progress.saved = (position.epoch, position.step)

    def on_profile(summary: "ProfileSummary") -> None:
        progress.profile = summary.folder or None
        watcher.on_profile(summary)

    name = request.options.tracker if main else "off"
    follow = nullcontext(watcher) if name == "off" else tracked(name, request.recipe, folder.path, watcher)
    with watch_for_signals() as stop, follow as watcher, naming_lost_peers(lambda: stop.signal_number):
        # Whoever reads the banner may press Ctrl-C at once.
        watcher.on_start(Start.of(request, trainer, folder.path, resumed))
        trainer.run(
            TrainerCallbacks(
                on_warm_up=progress.note_warm_up,
                on_step=watcher.on_step,
                on_save=on_save,
                on_epoch=on_epoch,
                on_notice=watcher.on_problem,
                on_problem=folder.note,
                on_profile=on_profile,
                make_profile_page=watcher.make_profile_page,
                stop_signal=lambda: stop.signal_number,
            )
        )
        positive = request.recipe.positive_class if request.recipe.loss == "binary" else None
        patience = Patience(request.options.timeout, lambda: stop.signal_number)
        logits = gather_logits(
            trainer.logits, trainer.test_batches, 10 if positive is None else 1, runtime.world_size, patience
        )
    if main:
        folder.write_weights(trainer.model.state_dict(), WeightsMeta.of(request.recipe))
        folder.write(evaluation.NAME, evaluation.packed(logits, data, positive))


def go_on(trainer: Trainer, resumed: Resumption, options: RunOptions) -> None:
    try:
        trainer.go_on_from(resumed.checkpoint)
    except (RuntimeError, ValueError, KeyError, IndexError):
        raise UserError(
            f"resume={options.resume}: {resumed.checkpoint.path} does not fit the network as it is now. "
            "Leave resume out to start a new run"
        ) from None


def report(folder: RunFolder, make_report: MakeReport, watcher: Watcher) -> None:
    try:
        page = make_report(folder.path)
    except Exception as error:  # a network of the user's is in it, and the run is over: nothing may cost it now
        folder.note(f"{folder.path / REPORT} could not be made: {what_of(error)}")
        return
    if folder.write(REPORT, page.encode()):
        watcher.on_report(folder.path / REPORT)


def explained(error: TrainingFailed | Interrupted, progress: Progress) -> TrainingFailed | Interrupted:
    """The error with what can be gone on from."""
    if isinstance(error, Interrupted):
        error.outlook = progress.outlook()
    if isinstance(error, PeerLost):
        hope = f"resume=auto goes on from the last checkpoint: {progress.again}"
        return PeerLost(f"{error}. {hope if progress.saved else 'Nothing was saved'}", here_only=True)
    return error


def out_of_memory(batch_size: int, runtime: Runtime) -> OutOfMemory:
    owner = "machine" if runtime.device.type == "cpu" else "GPU"
    smaller = batch_size // 2
    remedy = f"Type batch_size={smaller}" if smaller else "Even one image is too much for it"
    return OutOfMemory(f"batch_size={batch_size}: the {owner} ran out of memory. {remedy}", here_only=True)
