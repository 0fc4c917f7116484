"""The two ways a run ends badly on purpose; everything else is a bug of ours and keeps its traceback."""


class UserError(Exception):
    """A mistake of the user's: one line, exit 2."""


class TrainingFailed(Exception):
    """Training itself cannot go on (non-finite loss, GPU out of memory): one line, exit 3.

    ``here_only`` where the other ranks know nothing of it, so that this one has to say so itself.
    """

    def __init__(self, message: str, here_only: bool = False):
        super().__init__(message)
        self.here_only = here_only
