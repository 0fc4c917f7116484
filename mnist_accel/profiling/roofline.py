"""What this machine gives at best, measured on the spot: a matrix product and a copy, on the run's device and threads.

References to hold a convolution against, not limits: a layer whose data stays in the cache may be above them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch

from mnist_accel.engine import synchronised_clock

REPEATS = 7
# tf32 is how a matrix product of fp32 is made; start_runtime has set that for the process.
DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# About ten milliseconds each, and a copy far larger than any cache.
SIDE = {"cpu": 768, "cuda": 8192}
COPIED = {"cpu": 2**26, "cuda": 2**30}


@dataclass(frozen=True)
class Roofline:
    precision: str
    matmul_gflops: float
    copy_gb_s: float  # read and written, together

    def reach(self, intensity: float) -> float:
        """GFLOP/s that a kernel of so many operations a byte could reach."""
        return min(self.matmul_gflops, intensity * self.copy_gb_s)


@torch.no_grad()
def measure_roofline(device: torch.device, precision: str) -> Roofline:
    side, size = SIDE[device.type], COPIED[device.type]
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
