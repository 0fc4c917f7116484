"""Measures what this machine reaches at best: a matrix product and a copy, on the run's device and threads.

References to compare a convolution with, not limits: a layer whose data stays in the cache may be above them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Annotated

import torch
from pydantic import Field

from mnist_accel.machine.runtime import is_out_of_memory, synchronised_clock

REPEATS = 7
# tf32 is how a matrix product of fp32 is made; start_runtime has set that for the process.
DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# About ten milliseconds each, and a copy far larger than any cache.
SIDE = {"cpu": 768, "cuda": 8192}
COPIED = {"cpu": 2**26, "cuda": 2**30}
SMALLER = (1, 2, 4)  # times, a matrix's side; with a sixteenth of the memory they are still larger than a GPU's cache
Measured = Annotated[float, Field(gt=0, lt=1e15)]  # what it may be where it is read from a file


@dataclass(frozen=True)
class Roofline:
    precision: str
    matmul_gflops: Measured
    copy_gb_s: Measured  # read and written, together

    def attainable_gflops(self, intensity: float) -> float:
        """GFLOP/s that a kernel of so many operations a byte could reach."""
        return min(self.matmul_gflops, intensity * self.copy_gb_s)


def roofline_that_fits(device: torch.device, precision: str) -> tuple[Roofline | None, str]:
    """On a GPU it takes 2.8 GB, which training may not have left: then measured smaller, or there is none; and a line
    that says so."""
    why = ""
    for smaller in SMALLER:
        try:
            return measure_roofline(device, precision, smaller), why
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        finally:
            if device.type == "cuda":
                torch.cuda.empty_cache()  # training may need what this took
        why = "the roof was measured on less than usual: memory is short"
    return None, "there was no memory to measure the roof in"


@torch.no_grad()
def measure_roofline(device: torch.device, precision: str, smaller: int = 1) -> Roofline:
    side, size = SIDE[device.type] // smaller, COPIED[device.type] // smaller**2
    dtype = DTYPES[precision]
    left, right, product = (torch.ones(side, side, dtype=dtype, device=device) for _ in range(3))
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    multiplied = seconds_of(lambda: torch.mm(left, right, out=product), device)
    copied = seconds_of(lambda: target.copy_(source), device)
    return Roofline(precision, 2 * side**3 / multiplied / 1e9, 2 * size / copied / 1e9)


def seconds_of(action: Callable[[], object], device: torch.device) -> float:
    """The median of some repeats, after one that does not count."""
    action()
    times = []
    for _ in range(REPEATS):
        started = synchronised_clock(device)
        action()
        times.append(synchronised_clock(device) - started)
    return median(times)
