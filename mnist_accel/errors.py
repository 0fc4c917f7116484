"""The ways a process ends on purpose, each with one line; everything else is a bug of ours and keeps its traceback."""

import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn, TextIO

# Set for the processes that processes=N starts: its own process id, their parent.
SPAWNED = "MNIST_ACCEL_SPAWNED"


def printable(text: str) -> str:
    """Names and paths may come from anybody: what a terminal would take for a command is shown as a question mark."""
    return text if text.isprintable() else "".join(sign if sign.isprintable() else "?" for sign in text)


def say(line: str) -> None:
    """One line on stderr. That it cannot be written there must not change how the process ends."""
    if sys.stderr is None:  # closed by whoever started us
        return
    try:
        print(printable(line), file=sys.stderr, flush=True)
    except OSError:
        swallow(sys.stderr)


def swallow(stream: TextIO) -> None:
    """Sends what is still in the stream's buffer, and all that follows, to nowhere: it would fail again, at the latest
    when Python ends, and change the exit code."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


class CleanExit(Exception):
    """Ends the process with one line, from rank 0; or from this rank, where ``here_only`` it knows."""

    exit_code: int

    def __init__(self, message: str, here_only: bool = False):
        super().__init__(message)
        self.here_only = here_only

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows in place of a traceback."""
        return [f"error: {self}"]


class UserError(CleanExit):
    """A mistake of the user's: one line, exit 2."""

    exit_code = 2


class TrainingFailed(CleanExit):
    """Training itself cannot go on (non-finite loss, GPU out of memory): one line, exit 3."""

    exit_code = 3


class PeerLost(TrainingFailed):
    """Another process of the job is gone or hangs: nothing that would happen again, so the run can be gone on with.

    A code of its own tells processes=N that starting all of them anew may help; the user gets 3.
    """

    exit_code = 75  # sysexits.h: temporary failure


class OutOfMemory(TrainingFailed):
    """What the run has saved is still good: a neighbour may have taken the memory."""


class Interrupted(CleanExit):
    """Asked to stop, by a signal: exit 128 + its number, as shells say it. ``outlook``: what can be gone on from."""

    def __init__(self, signal_number: int, here_only: bool = False):
        super().__init__(f"stopped by {signal.Signals(signal_number).name}", here_only)
        self.exit_code = 128 + signal_number
        self.outlook = "nothing was saved"


def peer_lost(reason: str) -> PeerLost:
    rank = os.environ.get("RANK", "?")
    return PeerLost(
        f"process {rank} lost another of this job, which ended or kept it waiting for longer than timeout= allows "
        f"({reason})",
        here_only=True,
    )


def exit_with_one_line(run: Callable[[], int]) -> NoReturn:
    """Ends the process with the house's exit codes; a bug of ours keeps its traceback."""
    try:
        code = run()
    except (UserError, TrainingFailed) as error:
        if str(error) and (error.here_only or speaks()):
            say(shortened(f"error: {' '.join(str(error).split())}"))
        code = error.exit_code
        if isinstance(error, PeerLost) and SPAWNED not in os.environ:
            code = TrainingFailed.exit_code
    except Interrupted as error:
        if is_first_rank():
            say(f"{error}; {error.outlook}")
        code = error.exit_code
    except KeyboardInterrupt:
        if is_first_rank():
            say("interrupted")
        code = 130
    end(code)


def end(code: int) -> NoReturn:
    """With ``code``, whatever happens while Python takes itself apart: gloo's threads abort a rank then, one time in
    ten, and the launcher would call a finished job failed."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.distributed.is_initialized():
        for stream in filter(None, (sys.stdout, sys.stderr)):
            with suppress(OSError):
                stream.flush()
        os._exit(code)
    sys.exit(code)


def speaks() -> bool:
    """Whether this process tells of a mistake: rank 0, or one a machine before they know of each other."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.distributed.is_initialized():
        return is_first_rank()
    return is_first_rank() or os.environ["LOCAL_RANK"] == "0"


def is_first_rank() -> bool:
    """Before anything is known of the process group. Schedulers set RANK alone for purposes of their own."""
    return not {"RANK", "WORLD_SIZE", "LOCAL_RANK"} <= set(os.environ) or os.environ["RANK"] == "0"


def shortened(line: str) -> str:
    """A value of thousands of characters must not bury what is wrong with it: head and tail are kept."""
    return line if len(line) <= 1000 else f"{line[:300]} … {line[-300:]}"
