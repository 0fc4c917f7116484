"""``mnist_accel.train``: a run in a process that lives on, such as a notebook's."""

import importlib
import signal
import sys
import threading
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from mnist_accel import cli, errors
from mnist_accel.errors import Interrupted, UserError
from mnist_accel.machine.launcher import launched_world_size
from mnist_accel.recipe import Recipe, is_evidence_its_own, keys_of

if TYPE_CHECKING:  # a typing mistake must not wait for torch
    from mnist_accel.runs.result import RunResult

ROOT = Path(__file__).parent.parent  # of the checkout, or of all installed packages
REFUSED = {
    "recipe": "it comes first, without a name",
    "processes": "the process that asks is the one that trains, and python launch.py starts several",
    "restarts": "it starts lost processes anew, and here is only the one that asks",
}
busy = threading.Lock()  # signals, threads and Accelerate's state are there once a process


def train(recipe: str | Recipe, /, **keys: Any) -> "RunResult":
    request = read(recipe, keys)
    if (processes := launched_world_size()) > 1:
        raise UserError(f"train(): for one process, and a launcher started {processes}. Start launch.py with it")
    if not busy.acquire(blocking=False):
        raise UserError("train(): another run is under way in this process. Wait for it, or start another process")
    try:
        from mnist_accel.machine.borrowed import borrowed_process

        with borrowed_process():
            return run_here(request)
    except Interrupted as stopped:
        raise handed_on(stopped) from None
    finally:
        busy.release()


def read(recipe: str | Recipe, keys: dict[str, Any]) -> cli.Request:
    """As from the command line; None leaves a key out."""
    words = [f"{key}={cli.spell(value)}" for key, value in keys.items() if value is not None]
    cli.refuse_keys(cli.split_words(words), REFUSED)
    shelf = recipes_of_checkout()
    if isinstance(recipe, Recipe):
        cli.refuse_unknown_network(recipe.model, f"recipe={recipe.name}")
        chosen = with_own_evidence(recipe, shelf)
        request = cli.parse([f"recipe={recipe.name}", *words], [recipe.name], lambda name: chosen)
        return replace(request, command=words_for(request, file_of(recipe.name, shelf)))
    if shelf is None:
        raise UserError(
            f"recipe={recipe}: the folder recipes/ is not here, only the package. Give a Recipe, or use a checkout"
        )
    return cli.parse([f"recipe={recipe}", *words], shelf.names(), shelf.load)


def words_for(request: cli.Request, file: Recipe | None) -> tuple[str, ...]:
    """What launch.py would have to be told; nothing where no words make this recipe of its file."""
    recipe, known = request.recipe, keys_of(Recipe)
    if file is None or (recipe.model, recipe.loss) != (file.model, file.loss):
        return ()
    typed = cli.split_words(request.command)
    other = {name: getattr(recipe, name) for name in known if getattr(recipe, name) != getattr(file, name)}
    counts = [name for name in other if not (need := known[name].needs) or getattr(recipe, need.key) in need.values]
    return (*request.command, *(f"{name}={cli.spell(other[name])}" for name in counts if name not in typed))


def with_own_evidence(recipe: Recipe, shelf: ModuleType | None) -> Recipe:
    """What was published and measured belongs to the recipe as its file has it, not to one derived from it."""
    if is_evidence_its_own(recipe) and file_of(recipe.name, shelf) in (None, recipe):
        return recipe
    return replace(recipe, claims=(), measured=None)


def file_of(name: str, shelf: ModuleType | None) -> Recipe | None:
    return shelf.load(name) if shelf and name in shelf.names() else None


def recipes_of_checkout() -> ModuleType | None:
    """Which the package was installed from, or lies in, whatever the working folder is."""
    if not (ROOT / "recipes" / "__init__.py").is_file():
        return None
    sys.path.insert(0, str(ROOT))
    try:
        return importlib.import_module("recipes")
    finally:
        sys.path.remove(str(ROOT))


def run_here(request: cli.Request) -> "RunResult":
    from mnist_accel.console import report
    from mnist_accel.pages.report_page import page_of
    from mnist_accel.runs import run
    from mnist_accel.runs.watcher import Watcher

    started = time.perf_counter()
    shown = report.RunReport(report.make_console())
    watcher = Watcher(shown.on_start, shown.on_step, shown.on_epoch, shown.on_problem, shown.on_end, shown.on_report)
    if request.options.profile:
        from mnist_accel.console.profile_report import show_profile
        from mnist_accel.pages.profile_page import page_of_run

        watcher.on_profile, watcher.make_profile_page = partial(show_profile, shown.console), page_of_run
    try:
        return run.run(request, watcher, started, page_of)[0]
    finally:
        shown.stop()


def handed_on(stopped: Interrupted) -> BaseException:
    """The signal, which goes where it would have gone without the run, now that this is saved."""
    outlook = stopped.outlook.partition(": ")[0]  # behind it stands a command line
    said = f"{stopped}; {outlook}".replace("resume=auto", 'resume="auto"')
    number = signal.Signals(stopped.exit_code - 128)
    if number == signal.SIGINT:
        return KeyboardInterrupt(said)
    errors.say(said)
    signal.raise_signal(number)
    return stopped
