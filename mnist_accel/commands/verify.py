"""Train a recipe over several seeds: mean and spread of the last epoch beside the documented figures."""

import json
import time
from dataclasses import asdict, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Annotated

from pydantic.dataclasses import dataclass

import recipes
from mnist_accel import cli, report
from mnist_accel.claims import judged_on_average
from mnist_accel.commands import read_options
from mnist_accel.errors import UserError
from mnist_accel.recipe import CONFIG, option
from mnist_accel.run import Watcher, run


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class VerifyOptions:
    seeds: Annotated[int, option("how many, from 0 on", ge=2, le=1000)] = 3
    json: Annotated[str | None, option("file for the figures", min_length=1)] = None


def main(argv: list[str]) -> int:
    words = cli.split_words(argv)
    own = read_options([f"{key}={words[key]}" for key in ("seeds", "json") if key in words], VerifyOptions)
    for key, why in (
        ("seed", "type seeds=N for seeds 0 to N-1"),
        ("out", "each seed has a folder of its own in runs/"),
    ):
        if key in words:
            raise UserError(f"{key}={words[key]}: not here; {why}. Leave {key} out")
    rest = [word for word in argv if word.partition("=")[0] not in ("seeds", "json")]
    request = cli.parse(rest or ["recipe="], recipes.names(), recipes.load)
    assert request.recipe is not None

    console = report.make_console()
    results = []
    for seed in range(own.seeds):
        shown = report.RunReport(console)
        watcher = Watcher(shown.on_start, shown.on_step, shown.on_epoch) if seed == 0 else Watcher()
        try:
            started = time.perf_counter()
            result, _ = run(replace(request, recipe=replace(request.recipe, seed=seed)), watcher, started)
        finally:
            shown.stop()
        console.print(f"seed {seed}  accuracy {result.accuracy:.2f} %  training {result.train_seconds:.2f} s")
        results.append(result)

    report.show_claims(console, judged_on_average(results, request.recipe))
    accuracies = [result.accuracy for result in results if result.accuracy is not None]
    console.print(
        f"\naccuracy {mean(accuracies):.2f} ± {stdev(accuracies):.2f} % (mean and standard deviation of "
        f"{len(results)} seeds, last epoch; {min(accuracies):.2f} to {max(accuracies):.2f}), "
        f"training {mean(result.train_seconds for result in results):.2f} s"
    )
    if own.json:
        Path(own.json).write_text(json.dumps([asdict(result) for result in results], indent=2) + "\n")
    return 0
