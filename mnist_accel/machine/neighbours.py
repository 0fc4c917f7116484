"""Tells whether anybody else used this machine's processors meanwhile: then a time says nothing about the program."""

import time
from types import TracebackType

import psutil

MOST = 0.1  # of one core, on average: an idle machine's own processes and the clock ticks take a few hundredths
WORKING = ("user", "nice", "system", "irq", "softirq", "steal")  # steal: what other virtual machines took from this one


class Neighbours:
    """What others took between the beginning and the end of a ``with`` block. Others are all but this process and the
    children that it has waited for; who uses the same GPU is not seen."""

    share = 0.0  # of one core's time

    def __enter__(self) -> "Neighbours":
        self.began, self.others = time.perf_counter(), seconds_of_others()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        seconds = time.perf_counter() - self.began
        self.share = (seconds_of_others() - self.others) / seconds

    @property
    def were_quiet(self) -> bool:
        return self.share < MOST


def seconds_of_others() -> float:
    whole, own = psutil.cpu_times(), psutil.Process().cpu_times()
    busy = sum(getattr(whole, name, 0.0) for name in WORKING)  # each system has some of them
    return float(busy - own.user - own.system - own.children_user - own.children_system)
