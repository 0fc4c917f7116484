"""Python in processes of its own: what must start afresh to be measured, or has several ranks."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from mnist_accel.errors import TrainingFailed, UserError

ROOT = Path(__file__).resolve().parents[1]
SECONDS_TO_STOP = 60  # a launcher gives its ranks 30


def run_python(what: str, *words: str, seconds: float | None = None) -> str:
    """What ``python words…`` prints. ``what`` names it where it fails, in one line of the child's own if it has one,
    or takes longer than ``seconds``.

    However this ends, the child has ended.
    """
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    received: list[int] = []
    with handled_by(lambda number, frame: received.append(number)):  # until there is a child that can be stopped
        child = subprocess.Popen(
            [sys.executable, *words],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
        with handled_by(leave):
            try:
                for number in received:
                    leave(number, None)
                printed, complaints = child.communicate(timeout=seconds)
            except subprocess.TimeoutExpired:
                stop(child, signal.SIGINT)  # not SIGTERM, of which pytest dies without stopping what it has started
                raise TrainingFailed(f"{what}: not done after {seconds:.0f} s, and stopped") from None
            except BaseException:
                stop(child)
                raise
    if child.returncode:
        raise failure(what, child.returncode, complaints.splitlines())
    return printed


@contextmanager
def handled_by(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """A killed benchmark must not leave its child computing on."""
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)


def leave(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)


def stop(child: "subprocess.Popen[str]", number: int = signal.SIGTERM) -> None:
    """Not by SIGKILL at once: a launcher passes others on to its ranks."""
    child.send_signal(number)
    try:
        child.communicate(timeout=SECONDS_TO_STOP)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        child.kill()
        child.communicate()


def failure(what: str, code: int, complaints: Sequence[str]) -> BaseException:
    if code == 128 + signal.SIGINT:  # Ctrl-C reached the child first
        return KeyboardInterrupt()
    said = next((line for line in complaints if line.startswith("error: ")), "").removeprefix("error: ")
    if code == 2 and said:
        return UserError(said)
    last = said or (complaints[-1] if complaints else "it said nothing")
    return TrainingFailed(f"{what}: ended with code {code} ({last})")
