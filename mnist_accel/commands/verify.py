"""Train a recipe over several seeds: mean and spread of the last epoch beside the documented figures."""

import time
from dataclasses import asdict, replace
from functools import partial
from statistics import mean, stdev
from typing import Annotated

from pydantic.dataclasses import dataclass

import recipes
from mnist_accel import cli, commands, errors
from mnist_accel.console import report
from mnist_accel.console.profile_report import show_profile
from mnist_accel.files import finite
from mnist_accel.pages.profile_page import page_of_run
from mnist_accel.pages.report_page import page_of
from mnist_accel.recipe import CONFIG, option
from mnist_accel.runs.result import compared_on_average
from mnist_accel.runs.run import run
from mnist_accel.runs.watcher import Watcher


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class VerifyOptions:
    seeds: Annotated[int, option("how many, from 0 on", ge=2, le=1000)] = 3
    json: Annotated[str | None, option("the file for the figures", min_length=1)] = None


REFUSED = {
    "seed": "type seeds=N for seeds 0 to N-1",
    "out": "each seed has a folder of its own in runs/",
    "processes": "torchrun --nproc-per-node N -m mnist_accel verify starts several",
}


def main(argv: list[str]) -> int:
    console = report.make_console()
    if cli.asks_for_help(argv):
        usage = "python -m mnist_accel verify recipe=NAME key=value…   with the keys of launch.py, and"
        return report.show_usage(console, usage, VerifyOptions)
    own, handed_on = cli.split_options(argv, VerifyOptions, REFUSED)
    request = cli.parse(handed_on, recipes.names(), recipes.load)
    commands.refuse_unwritable(own.json)

    results = []
    problems: list[str] = []
    for seed in range(own.seeds):
        shown = report.RunReport(console, banner=seed == 0)
        watcher = Watcher(shown.on_start, shown.on_step, shown.on_epoch, shown.on_problem)
        watcher.on_profile, watcher.make_profile_page = partial(show_profile, console), page_of_run
        try:
            started = time.perf_counter()
            of_seed = replace(request.recipe, seed=seed)
            # What is written down has to train this seed again.
            command = (*request.command, f"seed={seed}")
            result, folder = run(replace(request, recipe=of_seed, command=command), watcher, started, page_of)
        finally:
            shown.stop()
        problems += folder.problems
        results.append(result)
        if errors.is_first_rank():
            console.print(f"seed {seed}  accuracy {result.accuracy:.2f} %  training {result.train_seconds:.2f} s")
    if not errors.is_first_rank():
        return 0

    report.show_claims(console, compared_on_average(results, request.recipe))
    accuracies = [result.accuracy for result in results if result.accuracy is not None]
    console.print(
        f"\naccuracy {mean(accuracies):.2f} ± {stdev(accuracies):.2f} % (mean and standard deviation of "
        f"{len(results)} seeds, last epoch; {min(accuracies):.2f} to {max(accuracies):.2f}), "
        f"training {mean(result.train_seconds for result in results):.2f} s"
    )
    commands.write_json(own.json, [finite(asdict(result)) for result in results])
    return 4 if problems or report.Output.lost else 0
