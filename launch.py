"""Trains a recipe: ``accelerate launch launch.py recipe=NAME key=value…``. Without arguments it lists the recipes."""

import time

STARTED = time.perf_counter()  # total_seconds counts from the first line, imports included
from mnist_accel import launcher

launcher.end_with_launcher()  # which may be gone by the time torch is imported

import signal
import sys
from functools import partial
from typing import Any

signal.signal(signal.SIGINT, signal.SIG_DFL)  # a Ctrl-C amid the imports ends at once, without their traceback

import recipes
from mnist_accel import cli, report


def main() -> int:
    request = cli.parse(sys.argv[1:], recipes.names(), recipes.load)
    if request.help or request.recipe is None:
        return show(request)
    from mnist_accel import job, outcome, run, runtime  # torch only where there is something to train

    signal.signal(signal.SIGINT, signal.default_int_handler)
    if runtime.has_to_spawn(request.options.processes):
        run.check(request)
        return job.spawn(request.options.processes, __file__, sys.argv[1:], request.options.restarts)
    shown = report.RunReport(report.make_console())
    told = (shown.on_start, shown.on_step, shown.on_epoch, shown.on_problem, shown.on_end)
    watcher = outcome.Watcher(*told, partial(show_profile, shown))
    try:
        _, folder = run.run(request, watcher, STARTED)
    finally:
        shown.stop()
    runtime.leave()
    return 4 if folder.problems or report.Output.lost else 0


def show_profile(shown: report.RunReport, summary: Any) -> None:
    from mnist_accel import report_profile  # for those who asked

    report_profile.show_profile(shown.console, summary)


def show(request: cli.Request) -> int:
    if cli.is_first_rank():
        console = report.make_console()
        if request.help:
            report.show_help(console, request.recipe)
        else:
            report.show_recipes(console, *recipes.survey())
    return 0


if __name__ == "__main__":
    cli.exit_with_one_line(main)
