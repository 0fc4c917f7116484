"""Train a recipe over several seeds and keep what they measured: their mean beside the documented figures."""

import time
from dataclasses import asdict, replace
from functools import partial
from typing import Annotated

from pydantic.dataclasses import dataclass

import recipes
from mnist_accel import cli, commands, errors
from mnist_accel.cli import Request
from mnist_accel.console import report
from mnist_accel.console.profile_report import show_profile
from mnist_accel.errors import UserError
from mnist_accel.files import finite
from mnist_accel.machine.neighbours import Neighbours
from mnist_accel.pages.profile_page import page_of_run
from mnist_accel.pages.report_page import page_of
from mnist_accel.recipe import CONFIG, option
from mnist_accel.runs.evidence import Evidence, judge, shown_p, shown_seeds, summarise, why_none
from mnist_accel.runs.evidence_file import EvidenceFile, Measuring
from mnist_accel.runs.result import RunResult
from mnist_accel.runs.run import run
from mnist_accel.runs.watcher import Watcher


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class VerifyOptions:
    seeds: Annotated[int, option("how many", ge=1, le=1000)] = 3
    start: Annotated[int, option("the first of them; several verify may share a recipe's", ge=0, le=1_000_000)] = 0
    into: Annotated[
        str | None,
        option("the file that each seed is added to (default: evidence/RECIPE.json in the checkout)", min_length=1),
    ] = None
    json: Annotated[str | None, option("the file for the results of the seeds trained now", min_length=1)] = None


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
    measuring = Measuring(request, file_of(request, own.into), range(own.start, own.start + own.seeds))
    if measuring.standing and errors.is_first_rank():
        stand = f"{shown_seeds(measuring.standing)} stand{'s'[: len(measuring.standing) == 1]}"
        console.print(f"{stand} in {measuring.file.shown}; into=FILE measures anew", markup=False)

    results: list[RunResult] = []
    problems: list[str] = []
    for seed in measuring.missing:
        shown = report.RunReport(console, banner=not results)
        watcher = Watcher(shown.on_start, shown.on_step, shown.on_epoch, shown.on_problem)
        watcher.on_profile, watcher.make_profile_page = partial(show_profile, console), page_of_run
        try:
            started = time.perf_counter()
            of_seed = replace(request.recipe, seed=seed)
            # What is written down has to train this seed again.
            command = (*request.command, f"seed={seed}")
            with Neighbours() as neighbours:
                result, folder = run(replace(request, recipe=of_seed, command=command), watcher, started, page_of)
        finally:
            shown.stop()
        results.append(result)
        if errors.is_first_rank():
            console.print(f"seed {seed}  accuracy {result.accuracy:.2f} %  training {result.train_seconds:.2f} s")
            measuring.add(result, folder, neighbours.were_quiet)
        problems += folder.problems
    if not errors.is_first_rank() or measuring.known is None:
        return 0

    known = measuring.known.up_to(own.start + own.seeds - 1)
    judged = [judge(claim, known, comparable=not measuring.why_none) for claim in request.recipe.claims]
    report.show_claims(console, [one.claim for one in judged], [shown_p(one.p) for one in judged])
    kept = f"none: {measuring.why_none}" if measuring.why_none else measuring.file.shown
    kept += f" could not be written: {measuring.unwritten}" if measuring.unwritten else ""
    console.print()
    report.facts(console, [*rows_of(known), ("evidence", kept)])
    if results:
        commands.write_json(own.json, [finite(asdict(result)) for result in results])
    return 4 if problems or report.Output.lost else 0


def file_of(request: Request, into: str | None) -> EvidenceFile:
    if into is None:
        path = recipes.EVIDENCE / f"{request.recipe.name}.json"
        return EvidenceFile(path, f"{path.parent.name}/{path.name}", request.recipe)
    if why := why_none(request):
        raise UserError(f"into={into}: there will be no evidence: {why}. Leave into out")
    return EvidenceFile(cli.expand_path(into, f"into={into}"), into, request.recipe, f"into={into}")


def rows_of(known: Evidence) -> list[tuple[str, str]]:
    summary = summarise(known.seeds)
    of = f"{summary.seeds} seeds, last epoch"
    if summary.spread is None or summary.interval is None:
        rows = [("accuracy", f"{summary.mean:.2f} % ({shown_seeds([seed.seed for seed in known.seeds])}, last epoch)")]
    else:
        low, high = summary.interval
        rows = [
            ("accuracy", f"{summary.mean:.2f} ± {summary.spread:.2f} % (mean and standard deviation of {of})"),
            ("mean", f"{low:.2f} to {high:.2f} % (95 % interval, by Student's t)"),
            ("minimum", f"{summary.least:.2f} %, maximum {summary.most:.2f} %"),
        ]
    if summary.f1 is not None:
        rows.append(("of yes", f"F1 {summary.f1:.2f} %"))
    if summary.seconds is None:
        time_of_all = "not timed: other programs used this machine meanwhile, or several processes trained"
    elif summary.timed == summary.seeds:
        time_of_all = f"{summary.seconds:.2f} s"
    else:
        time_of_all = f"{summary.seconds:.2f} s (of the {summary.timed} that ran alone)"
    return [*rows, ("training", time_of_all)]
