"""A recipe and its options → a trained, evaluated, written-down run. Shared by ``launch.py`` and the commands."""

from dataclasses import asdict, replace
from pathlib import Path

from mnist_accel.again import line_to_go_on
from mnist_accel.cli import Request, too_small_batch
from mnist_accel.data.dataset import hold_out, load_dataset
from mnist_accel.errors import Interrupted, OutOfMemory, PeerLost, TrainingFailed, UserError
from mnist_accel.fit import fit, new_model
from mnist_accel.interrupt import naming_lost_peers
from mnist_accel.job import earlier_folder, tell_later_attempts_failed, tell_later_attempts_folder
from mnist_accel.outcome import Progress, Watcher, describe
from mnist_accel.recipe import RunOptions
from mnist_accel.results import RunFolder, RunResult, default_folder
from mnist_accel.resume import Resumption, find_resumption, history_of, position_of
from mnist_accel.runtime import (
    check_launcher,
    choose_device,
    choose_precision,
    is_out_of_memory,
    refuse_mismatch,
    refuse_too_few_gpus,
    start_runtime,
    together,
)
from mnist_accel.stepping import Position
from mnist_accel.trial import parameters_of


@naming_lost_peers()
def run(request: Request, watcher: Watcher, started: float) -> tuple[RunResult, RunFolder]:
    """Trains ``request.recipe`` here; ``started`` is the clock at the process's first line.

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
        tell_later_attempts_folder(folder.path)
        for complaint in resumed.complaints if resumed else ():
            watcher.on_problem(complaint)
        folder.write_json("recipe.json", {"recipe": asdict(recipe), "options": asdict(options)})

    progress = Progress(position_of(resumed) if resumed else Position(), again=line_to_go_on(request.command))
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
        )
    except Interrupted as error:
        error.outlook = progress.outlook()
        progress.error = error
    except PeerLost as error:
        hope = f"resume=auto goes on from the last checkpoint: {progress.again}"
        hope = hope if progress.saved else "Nothing was saved"
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
        if result.status == "failed":
            tell_later_attempts_failed(str(progress.error))
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
    recipe, options = request.recipe, as_an_earlier_attempt(request.options)
    assert recipe is not None
    check_launcher()
    device = choose_device(options.device)
    choose_precision(options.precision, device)
    refuse_too_few_gpus(device, options.processes or 1)
    parameters_of(recipe)
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


def as_an_earlier_attempt(options: RunOptions) -> RunOptions:
    """After a restart it is the same run, in its folder, whatever was typed."""
    folder = earlier_folder()
    return replace(options, out=folder, resume="auto") if folder else options
