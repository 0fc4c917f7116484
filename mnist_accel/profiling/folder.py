"""Makes the folder of a profile, ``profiles/<recipe>-<time>/``, and names what is in it.

It holds the summary, its page, and one trace per rank under the name that TensorBoard's plugin looks for.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mnist_accel.files import new_folder
from mnist_accel.profiling.summary import ProfileSummary

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
