"""The ways a run ends early on purpose; everything else is a bug of ours and keeps its traceback."""

import os
import signal
import sys
from typing import TextIO


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


class OneLine(Exception):
    """Ends the process with one line, from rank 0; or from this rank, where ``here_only`` it knows."""

    exit_code: int

    def __init__(self, message: str, here_only: bool = False):
        super().__init__(message)
        self.here_only = here_only


class UserError(OneLine):
    """A mistake of the user's: one line, exit 2."""

    exit_code = 2


class TrainingFailed(OneLine):
    """Training itself cannot go on (non-finite loss, GPU out of memory): one line, exit 3."""

    exit_code = 3


class PeerLost(TrainingFailed):
    """Another process of the job is gone or hangs: nothing that would happen again, so the run can be gone on with.

    A code of its own tells processes=N that starting all of them anew may help; the user gets 3.
    """

    exit_code = 75  # sysexits.h: temporary failure


class OutOfMemory(TrainingFailed):
    """What the run has saved is still good: a neighbour may have taken the memory."""


class Interrupted(OneLine):
    """Asked to stop, by a signal: exit 128 + its number, as shells say it. ``outlook``: what can be gone on from."""

    def __init__(self, signal_number: int, here_only: bool = False):
        super().__init__(f"stopped by {signal.Signals(signal_number).name}", here_only)
        self.exit_code = 128 + signal_number
        self.outlook = "nothing was saved"
