"""The ways a run ends early on purpose; everything else is a bug of ours and keeps its traceback."""

import signal


class UserError(Exception):
    """A mistake of the user's: one line, exit 2."""


class TrainingFailed(Exception):
    """Training itself cannot go on (non-finite loss, GPU out of memory): one line, exit 3.

    ``here_only`` where the other ranks know nothing of it, so that this one has to say so itself.
    """

    def __init__(self, message: str, here_only: bool = False):
        super().__init__(message)
        self.here_only = here_only


class Interrupted(Exception):
    """Asked to stop, by a signal, and saved: exit 128 + its number, as shells say it."""

    def __init__(self, signal_number: int):
        super().__init__(f"stopped by {signal.Signals(signal_number).name}")
        self.exit_code = 128 + signal_number
