"""Which machine gave a figure: a figure without it says nothing."""

import platform
from pathlib import Path
from typing import Any

import torch

from mnist_accel.runtime import usable_cores

LINE = "{cpu}, {cores} cores, torch {torch}, device {device}, threads {threads}"


def describe_machine(device_name: str, threads: int) -> dict[str, Any]:
    return {
        "cpu": cpu_name(),
        "cores": usable_cores(),
        "torch": torch.__version__,
        "threads": threads,
        "device": device_name,
    }


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()
