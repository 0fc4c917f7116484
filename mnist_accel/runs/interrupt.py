"""Notices between two steps what ends a run from outside, so that it can save first: Ctrl-C or SIGTERM, which the
launcher's death brings as well (machine/launcher.py). Says in one line that another process of the job was lost."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch

from mnist_accel.errors import Interrupted, PeerLost, peer_lost


class StopRequest:
    """``signal_number`` is 0 until this process is asked to stop, then the signal that asked."""

    signal_number = 0

    def receive(self, number: int, frame: FrameType | None) -> None:
        # A second signal changes nothing: the launcher sends its own after the terminal's.
        self.signal_number = self.signal_number or number


@contextmanager
def watch_for_signals() -> Iterator[StopRequest]:
    """Inside, SIGINT and SIGTERM are only noted down; in the main thread, which they come to."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before: dict[signal.Signals, Any] = {
        number: signal.signal(number, request.receive) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield request
    except (Interrupted, PeerLost):
        # What is left is to write it down and to go: the launcher's signal, after the terminal's, must not cut it off.
        before = dict.fromkeys(before, signal.SIG_IGN)
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def naming_lost_peers(stop_signal: Callable[[], int] = lambda: 0) -> Iterator[None]:
    """Inside, a process of the job that ended or hung costs one line; none where this one was asked to stop as well."""
    try:
        yield
    except RuntimeError as error:
        # NCCL's have a class of their own, gloo's are known by their text.
        if not isinstance(error, torch.distributed.DistError) and "gloo" not in str(error):
            raise
        if stop_signal():
            raise Interrupted(stop_signal(), here_only=True) from None
        raise peer_lost(str(error).partition("] ")[2].partition(". ")[0] or str(error)) from None
