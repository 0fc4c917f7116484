"""What a process knows of the launcher that started it; and its end with that one, from the first line on.

Imported before everything else, so it imports next to nothing.
"""

import ctypes
import os
import signal
import sys
import threading
import time

# Set for the processes that processes=N starts: its own process id, their parent.
SPAWNED = "MNIST_ACCEL_SPAWNED"

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def is_launched() -> bool:
    """Whether accelerate launch, torchrun or processes=N started this process."""
    return "WORLD_SIZE" in os.environ or "ACCELERATE_MIXED_PRECISION" in os.environ


def launched_world_size() -> int:
    """How many processes the launcher around us says there are."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def end_with_launcher() -> None:
    """Has a SIGTERM come when the launcher is gone, killed or not: accelerate launch, for one, dies without passing it
    on. Until training begins it ends this process on the spot, also amid torch's rendezvous, which would wait for
    ``timeout=``; from then on the run saves first.

    Without a launcher the parent is a shell, which may go away while training is meant to stay.
    """
    if not is_launched():
        return
    parent = os.getppid()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    else:
        threading.Thread(target=watch, args=(parent,), daemon=True).start()
    if os.getppid() != parent or is_orphaned():  # in the meantime, or before the first line
        os.kill(os.getpid(), signal.SIGTERM)


def watch(parent: int) -> None:
    """Where the kernel does not tell of a parent's death it is asked for."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGTERM)


def is_orphaned() -> bool:
    """Whether whoever takes orphans in is our parent already, as far as that can be seen: torch's launcher starts ranks
    in sessions of their own, others in theirs, which a child never leaves."""
    if spawner := os.environ.get(SPAWNED):
        return os.getppid() != int(spawner)
    session = os.getsid(0)
    return session != os.getpid() and os.getsid(os.getppid()) != session
