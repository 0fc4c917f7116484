"""Makes the folder of a profile, ``profiles/<recipe>-<time>/``, and names what is in it.

It holds the summary, its page, and one trace per rank under the name that TensorBoard's plugin looks for.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mnist_accel.files import new_folder, write_whole
from mnist_accel.profiling.summary import ProfileSummary, as_json
from mnist_accel.profiling.trace_file import SUMMARY

PROFILES = Path("profiles")
PAGE = "profile.html"
MakePage = Callable[[ProfileSummary], str]


def make_folder(recipe: str) -> list[Any]:
    """The new folder, the stamp of its traces, and what went wrong."""
    first = PROFILES / f"{recipe}-{time.strftime('%Y%m%d-%H%M%S')}"
    stamp = time.time_ns()
    try:
        PROFILES.mkdir(exist_ok=True)
        return [str(new_folder(first)), stamp, ""]
    except OSError as error:
        return [str(first), stamp, f"{first} could not be made: {error.strerror}"]


def trace_name(rank: int, stamp: int) -> str:
    return f"rank{rank}.{stamp}.pt.trace.json.gz"


def write_summary(folder: Path, summary: ProfileSummary, make_page: MakePage | None) -> None:
    """And the page that shows it, where somebody makes one."""
    write_whole(folder / SUMMARY, as_json(summary).encode())
    if make_page:
        write_whole(folder / PAGE, make_page(summary).encode())
