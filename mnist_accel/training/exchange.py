"""Exchanges gradients, loss, correct answers and signals between the ranks of a job, in one message per step."""

import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor, nn
from torch.distributed import GradBucket, Work  # type: ignore[attr-defined]
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from mnist_accel.errors import Interrupted, peer_lost
from mnist_accel.phase import Phase, unmarked

SIGNALS = (signal.SIGINT, signal.SIGTERM)
GRACE_SECONDS = 10.0  # for the others to hear of a signal: those that live do within a step; launchers kill after 30
LOOK_SECONDS = 1.0  # how often a wait that is not polled looks up
SHORTEST_NAP, LONGEST_NAP = 20e-6, 10e-3  # of one that is; a step on a GPU takes about a millisecond


@dataclass
class Patience:
    """How this process waits for the others of its job: not for ever, and not long once it was asked to stop itself."""

    seconds: float = 600.0
    stop_signal: Callable[[], int] = lambda: 0
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep

    def wait(self, work: Work, device: torch.device) -> None:
        """Until ``work`` is done: PeerLost after ``seconds``, Interrupted ``GRACE_SECONDS`` after a signal.

        NCCL's own wait holds up the stream alone; whoever reads the result then hangs, deaf to signals, until NCCL's
        watchdog aborts the process without a word. So its work is asked, ever less often, whether it is done.
        """
        started, asked, nap = self.clock(), None, SHORTEST_NAP
        while not work.is_completed():
            now = self.clock()
            if self.stop_signal() and asked is None:
                asked = now
            if asked is not None and now - asked >= GRACE_SECONDS:
                raise Interrupted(self.stop_signal(), here_only=True)
            if now - started >= self.seconds:
                raise peer_lost(f"no answer for {self.seconds:g} seconds")
            if device.type == "cuda":
                self.sleep(nap)
                nap = min(2 * nap, LONGEST_NAP)
            else:
                wait_a_moment(work)
        work.wait()  # hands on what went wrong; on a GPU the stream waits, for what is there already


def wait_a_moment(work: Work) -> None:
    """Wakes at once when ``work`` is done, which polling would not; it says by an error that it is not."""
    try:
        work.wait(timedelta(seconds=LOOK_SECONDS))
    except RuntimeError:
        if work.is_completed():
            raise


class Exchange:
    """Every rank's gradients, added up by DDP's hook, and behind the last of them its loss, how many of its images were
    told rightly, and the signal that it got.

    A message of its own for these would cost a step of `efficient25k` as much again: what takes time is waking up, not
    the bytes. They travel in the gradients' type, fp32 also where the network computes in half precision.
    """

    def __init__(self, model: nn.Module, patience: Patience, phase: Phase = unmarked):
        self.patience, self.phase = patience, phase
        self.alone = not isinstance(model, DistributedDataParallel)
        if isinstance(model, DistributedDataParallel):
            model.register_comm_hook(None, self.add_up)

    def tell(self, figures: Tensor, stop_signal: int) -> None:
        """Before backward, which sends it: loss and correct answers. Asks nothing of the device, and copies nothing
        there that it waits for."""
        self.told, self.stop_signal = figures, stop_signal
        if not self.alone:
            self.told = torch.constant_pad_nd(figures, (0, len(SIGNALS)))
            if stop_signal:
                self.told[len(figures) + SIGNALS.index(signal.Signals(stop_signal))].fill_(1)

    def heard(self) -> tuple[float, int, int]:
        """After backward: loss and correct answers over all ranks, and the signal that any of them got."""
        if self.alone:
            loss, correct = self.told.tolist()
            return loss, int(correct), self.stop_signal
        self.patience.wait(self.work, self.told.device)
        loss, correct, *flags = self.told.tolist()
        return loss, int(correct), next((number for number, flag in zip(SIGNALS, flags, strict=True) if flag), 0)

    def add_up(self, state: None, bucket: GradBucket) -> Future[Tensor]:
        """Sums, not averages: the loss is divided by the images of all ranks."""
        gradients = bucket.buffer()
        with self.phase("all-reduce"):
            if bucket.is_last():
                message = torch.cat([gradients, self.told])
                self.send(message)
                gradients.copy_(message[: len(gradients)])
                self.told = message[len(gradients) :]
            else:
                self.send(gradients)
        done: Future[Tensor] = Future()
        done.set_result(gradients)
        return done

    def send(self, message: Tensor) -> None:
        self.work = torch.distributed.all_reduce(message, async_op=True)
        if message.device.type == "cuda":
            self.work.wait()  # the stream alone; the host goes on, and waits in ``heard``
        else:
            self.patience.wait(self.work, message.device)
