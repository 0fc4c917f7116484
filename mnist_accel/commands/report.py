"""Make a run's report again from its folder, or lay several runs side by side in one page."""

import os
from pathlib import Path
from typing import Annotated

from pydantic.dataclasses import dataclass

from mnist_accel import cli
from mnist_accel.console import report
from mnist_accel.errors import UserError, say
from mnist_accel.files import write_whole
from mnist_accel.pages.page import is_ours
from mnist_accel.recipe import CONFIG, option

USAGE = "python -m mnist_accel report RUN… out=FILE"
COMPARISON = "comparison.html"


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class ReportOptions:
    out: Annotated[
        str | None,
        option(f"the page (default: RUN/report.html; for several runs {COMPARISON} here)", min_length=1),
    ] = None


def main(argv: list[str]) -> int:
    console = report.make_console()
    if cli.asks_for_help(argv):
        usage = f"{USAGE}   needs neither training nor MNIST; several runs are laid side by side"
        return report.show_usage(console, usage, ReportOptions)
    paths, words = cli.split_paths(argv, ReportOptions)
    typed = [path for path in paths if not is_ours(Path(path))]  # runs/onepoch/* may hold an earlier page
    options: ReportOptions = cli.read_options(words, ReportOptions)
    if not typed:
        raise UserError(f"report: no run given. Type {USAGE}")
    if len(set(typed)) < len(typed):
        raise UserError("report: the same run twice. Name each once")
    if len(typed) > 1:
        typed = [word for word in typed if has_ended(word)]  # runs/onepoch/* may hold one that is under way, too
    if not typed:
        raise UserError("report: none of these runs has ended. Name one with a result.json")
    folders = [cli.expand_path(word, word) for word in typed]
    target = choose_target(options.out, folders)

    from mnist_accel.pages import comparison_page, report_page  # a typing mistake must not wait for torch

    page = report_page.page_of(folders[0], typed[0]) if len(folders) == 1 else comparison_page.page_of(folders, typed)
    try:
        write_whole(target, page.encode())
    except OSError as error:
        shown = f"out={options.out}" if options.out else str(target)
        raise UserError(f"{shown}: cannot be written ({error.strerror}). Name another with out=FILE") from None
    report.facts(console, [("report", min(str(target), os.path.relpath(target), key=len))])
    return 0


def has_ended(word: str) -> bool:
    ended = os.path.lexists(cli.expand_path(word, word) / "result.json")
    if not ended:
        say(f"{word}: left out, there is no result.json")
    return ended


def choose_target(out: str | None, folders: list[Path]) -> Path:
    """Never over a file that is not such a page."""
    first = folders[0]
    if out:
        target = cli.expand_path(out, f"out={out}")
    else:
        target = first / "report.html" if len(folders) == 1 else Path(COMPARISON)
    shown = f"out={out}" if out else str(target)
    if target.is_dir():
        raise UserError(f"{shown}: is a folder. Name a file in it, as out={out}/report.html")
    if os.path.lexists(target) and not is_ours(target):
        raise UserError(f"{shown}: is a file that this program did not make. Name another with out=FILE")
    return target
