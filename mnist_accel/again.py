"""The line to type to go on with a run that was stopped, ready to paste."""

import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

SCRIPT = "launch.py"


def line_to_go_on(words: Sequence[str]) -> str:
    """``words`` are launch.py's as typed. Asked for at the start: a launcher may be gone once the run is stopped."""
    kept = [word for word in words if not word.startswith("resume=")]
    script = os.path.relpath(sys.argv[0]) if Path(sys.argv[0]).name == SCRIPT else SCRIPT
    return shlex.join([*launcher(), script, *kept, "resume=auto"])


def launcher() -> list[str]:
    """What stood before ``launch.py``: in the command of the launcher around us, if it can be known, else in ours."""
    ours = as_typed([sys.orig_argv[0]])
    if not {"WORLD_SIZE", "ACCELERATE_MIXED_PRECISION"} & set(os.environ):
        return ours
    try:
        command = Path(f"/proc/{os.getppid()}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:  # not Linux, or gone already
        return ours
    ends = [index for index, word in enumerate(command) if Path(word).name == SCRIPT]
    return as_typed(command[: ends[0]]) if ends else ours


def as_typed(command: Sequence[str]) -> list[str]:
    """``/x/python /x/accelerate launch`` → ``accelerate launch``: the kernel names a script's interpreter before it."""
    if len(command) > 1 and not command[1].startswith("-"):
        command = command[1:]
    return [short(command[0]), *command[1:]]


def short(program: str) -> str:
    """Its name alone, where the shell would find the same program by it."""
    name = Path(program).name
    return name if shutil.which(name) == program else program
