"""Make a run's report again from its folder, or lay several runs side by side in one page."""

import os
from pathlib import Path
from typing import Annotated

from pydantic.dataclasses import dataclass

from mnist_accel import cli
from mnist_accel.console import report
from mnist_accel.errors import UserError, printable
from mnist_accel.files import write_whole
from mnist_accel.pages.page import is_ours
from mnist_accel.recipe import CONFIG, keys_of, option

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
    if not argv or any(word in cli.HELP_WORDS for word in argv):
        console.print(f"{USAGE}   needs neither training nor MNIST; several runs are laid side by side")
        report.show_keys(console, "Keys", keys_of(ReportOptions).values(), None)
        return 0
    typed, words = runs_and_keys(argv)
    typed = [word for word in typed if not is_ours(Path(word))]  # runs/onepoch/* may hold an earlier page
    options: ReportOptions = cli.read_options(words, ReportOptions)
    if not typed:
        raise UserError(f"report: no run given. Type {USAGE}")
    if len(set(typed)) < len(typed):
        raise UserError("report: the same run twice. Name each once")
    folders = [cli.expand_path(word, word) for word in typed]
    target = choose_target(options.out, folders)

    from mnist_accel.pages import comparison_page, report_page  # a typing mistake must not wait for torch

    page = report_page.page_of(folders[0], typed[0]) if len(folders) == 1 else comparison_page.page_of(folders, typed)
    try:
        write_whole(target, page.encode())
    except OSError as error:
        shown = f"out={options.out}" if options.out else str(target)
        raise UserError(f"{shown}: cannot be written ({error.strerror}). Name another with out=FILE") from None
    report.facts(console, [("report", printable(min(str(target), os.path.relpath(target), key=len)))])
    return 0


def runs_and_keys(argv: list[str]) -> tuple[list[str], list[str]]:
    """Bare words are folders, also those with an equals sign in their name."""
    runs = [
        word
        for word in argv
        if not word.startswith("-") and word.partition("=")[0] not in keys_of(ReportOptions)
        if "=" not in word or os.path.exists(word)
    ]
    return runs, [word for word in argv if word not in runs]


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
