"""Trains a recipe: ``accelerate launch launch.py recipe=NAME key=value…``. Without arguments it lists the recipes."""

import time

STARTED = time.perf_counter()  # total_seconds counts from the first line, imports included
from mnist_accel.machine import launcher

launcher.end_with_launcher()  # which may be gone by the time torch is imported

import signal
import sys
from functools import partial
from pathlib import Path
from typing import Any

signal.signal(signal.SIGINT, signal.SIG_DFL)  # a Ctrl-C amid the imports ends at once, without their traceback

import recipes
from mnist_accel import cli, errors
from mnist_accel.console import report


def main() -> int:
    wanted = cli.help_asked(sys.argv[1:], recipes.names(), recipes.load)
    if wanted is not None:
        return show(wanted)
    request = cli.parse(sys.argv[1:], recipes.names(), recipes.load)
    from mnist_accel.machine import job  # torch only where there is something to train
    from mnist_accel.runs import run
    from mnist_accel.runs.watcher import Watcher

    signal.signal(signal.SIGINT, signal.default_int_handler)
    options = request.options
    if options.processes is not None and launcher.has_to_spawn(options.processes):
        run.check(request)
        return job.spawn(options.processes, __file__, sys.argv[1:], options.restarts)
    shown = report.RunReport(report.make_console())
    watcher = Watcher(shown.on_start, shown.on_step, shown.on_epoch, shown.on_problem, shown.on_end, shown.on_report)
    watcher.on_profile, watcher.make_profile_page = partial(show_profile, shown), make_profile_page
    try:
        _, folder = run.run(request, watcher, STARTED, make_report)
    finally:
        shown.stop()
    job.wait_for_ranks()
    return 4 if folder.problems or report.Output.lost else 0


def make_report(folder: Path) -> str:
    from mnist_accel.pages import report_page  # when there is something to report

    return report_page.page_of(folder)


def make_profile_page(summary: Any) -> str:
    from mnist_accel.pages import profile_page

    return profile_page.page_of_run(summary)


def show_profile(shown: report.RunReport, summary: Any) -> None:
    from mnist_accel.console import profile_report  # for those who asked

    profile_report.show_profile(shown.console, summary)


def show(wanted: cli.Help) -> int:
    if errors.is_first_rank():
        console = report.make_console()
        if wanted.lists:
            report.show_recipes(console, *recipes.survey())
        else:
            report.show_help(console, wanted.recipe)
    return 0


if __name__ == "__main__":
    errors.exit_with_one_line(main)
