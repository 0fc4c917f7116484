"""Device, processes, threads and precision of a run, as they really are in effect; describes the machine."""

import ctypes
import os
import platform
import time
import warnings
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, DistributedType
from accelerate.utils import GradientAccumulationPlugin
from torch import nn
from torch.optim import Optimizer

from mnist_accel.errors import UserError
from mnist_accel.machine.job import start_process_group, which_restart
from mnist_accel.machine.launcher import ignored_settings, inherited_config, launched_world_size

# What launchers say in ACCELERATE_MIXED_PRECISION, in our words.
LAUNCHER_PRECISIONS = {"no": "fp32", "fp16": "fp16", "bf16": "bf16"}

SUPPORTED_TYPES = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)

# glibc's malloc.h
M_TRIM_THRESHOLD = -1
M_MMAP_MAX = -4


@dataclass(frozen=True)
class Runtime:
    """What is in effect, not what was asked for."""

    accelerator: Accelerator
    device_name: str
    precision: str
    threads: int
    backend: str = ""  # gloo or nccl, where there are several processes
    config: str = ""  # a default config file that nobody named
    ignored: str = ""  # what the launcher asks for in vain
    restart: str = ""  # "1 of 3", where an earlier attempt at this job lost a process

    @property
    def device(self) -> torch.device:
        return self.accelerator.device

    @property
    def rank(self) -> int:
        return self.accelerator.process_index

    @property
    def world_size(self) -> int:
        return self.accelerator.num_processes


def choose_device(asked: str) -> str:
    """``cpu`` or ``cuda``."""
    has_gpu = torch.cuda.is_available()
    if asked == "cuda" and not has_gpu:
        raise UserError("device=cuda: there is no GPU here that torch can use. Type device=cpu, or leave device out")
    # accelerate launch --cpu; Accelerate itself obeys this variable, whatever it is told.
    if os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("true", "1", "yes"):
        if asked == "cuda":
            raise UserError("device=cuda: the launcher says CPU. Leave --cpu (use_cpu) out of it, or device")
        return "cpu"
    return "cuda" if has_gpu and asked != "cpu" else "cpu"


def refuse_too_few_gpus(device: str, processes: int) -> None:
    if device == "cuda" and processes > torch.cuda.device_count():
        raise UserError(
            f"processes={processes}: more than the {torch.cuda.device_count()} GPUs of this machine. "
            f"Start {torch.cuda.device_count()}, or type device=cpu"
        )


def choose_precision(asked: str, device: str) -> str:
    source = f"precision={asked}"
    chosen = asked
    if asked == "auto":
        launcher = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
        source = f"mixed_precision={launcher} (from the launcher)"
        if launcher not in LAUNCHER_PRECISIONS:
            raise UserError(f"{source}: not supported here. Type precision=bf16, precision=fp16 or precision=fp32")
        chosen = LAUNCHER_PRECISIONS[launcher]
    if chosen in ("fp16", "tf32") and device == "cpu":
        # Accelerate would train in fp32 and still call it fp16.
        raise UserError(f"{source}: {chosen} needs a GPU. Type precision=bf16 or precision=fp32")
    if chosen == "bf16" and device == "cuda" and not torch.cuda.is_bf16_supported():
        raise UserError(f"{source}: this GPU has no bf16. Type precision=fp16 or precision=fp32")
    if chosen == "tf32" and not torch.cuda.is_tf32_supported():
        raise UserError(f"{source}: this GPU has no tf32. Type precision=fp16 or precision=fp32")
    return chosen


def start_runtime(precision: str = "auto", device: str = "auto", threads: int = 0, timeout: float = 600.0) -> Runtime:
    device = choose_device(device)
    precision = choose_precision(precision, device)
    local_processes = int(os.environ.get("LOCAL_WORLD_SIZE", launched_world_size()))
    refuse_too_few_gpus(device, local_processes)
    threads = threads or max(1, usable_cores() // local_processes)
    # Accelerate warns where this is unset, and accelerate launch exports 1, which nobody asked for.
    os.environ["OMP_NUM_THREADS"] = str(threads)
    start_process_group(device, timedelta(seconds=timeout))
    accelerator = Accelerator(
        # Without cpu=True a --multi_gpu job on a machine without GPU becomes N jobs of one process each.
        cpu=device == "cpu",
        mixed_precision=precision if precision in ("fp16", "bf16") else "no",
        # A forgotten default config of accelerate's may ask for either: one would compile the network within the
        # first timed step, the other divide every gradient. How to learn is the recipe's to say.
        dynamo_backend="no",
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        # Buffers are made equal where it matters, before evaluating and saving, instead of in every forward pass.
        # Every step uses every parameter, once: told so, DDP does 0.2 ms less (CPU time, of 10 ms of efficient25k).
        kwargs_handlers=[
            DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True, static_graph=True)
        ],
    )
    if accelerator.distributed_type not in SUPPORTED_TYPES:
        raise UserError(
            f"the launcher asks for {accelerator.distributed_type.value}, which these networks have no use for. "
            "Leave it out of accelerate's config, or name another with --config_file accelerate_config.yaml"
        )
    if accelerator.num_processes != launched_world_size():
        raise UserError(
            f"the launcher says {launched_world_size()} processes, but this one finds itself in a job of "
            f"{accelerator.num_processes}: all would write the same files. Type python launch.py processes=N"
        )
    torch.set_num_threads(threads)
    fix_kernels(precision)
    keep_freed_memory()
    name = "cpu" if device == "cpu" else torch.cuda.get_device_name(accelerator.device)
    backend = torch.distributed.get_backend() if accelerator.num_processes > 1 else ""
    return Runtime(
        accelerator, name, precision, threads, backend, inherited_config(), ignored_settings(), which_restart()
    )


def fix_kernels(precision: str) -> None:
    """cuDNN convolves in TF32 unless told otherwise: 10 bits of mantissa. That has a word of its own here."""
    # By these names: beside the newer fp32_precision torch.compile and torch.export refuse to read them.
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    # Chosen by timing them, kernels may differ after a resume.
    torch.backends.cudnn.benchmark = False


def keep_freed_memory() -> None:
    """Has glibc keep what is freed: it would give each large activation back to the system and take it anew, zeroed
    page by page, in the next step: 8,000 page faults and a fifth of the time of a `sub20k` step."""
    with suppress(OSError, AttributeError, TypeError):  # another C library than glibc
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def prepare(runtime: Runtime, model: nn.Module, optimizer: Optimizer) -> tuple[nn.Module, Optimizer]:
    """Accelerate's: DDP and mixed precision."""
    with warnings.catch_warnings():
        # torch 2.13 renames DDP's broadcast_buffers; Accelerate knows the old name only, and so does torch 2.11.
        warnings.filterwarnings("ignore", message=".*broadcast_buffers.*", category=FutureWarning)
        # The model is where it belongs; asked to place it, Accelerate imports all of torch's sharding first: 0.4 s.
        prepared_model, prepared_optimizer = runtime.accelerator.prepare(
            model, optimizer, device_placement=[False, False]
        )
    return prepared_model, prepared_optimizer


def usable_cores() -> int:
    """Cores that this process may use: its affinity, or less where a container's quota says so."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(cores, int(quota) // int(period)))
    except (OSError, ValueError):  # no cgroup, or "max": no quota
        return cores


def is_out_of_memory(error: RuntimeError) -> bool:
    """Of the GPU or of the machine, whichever library asked for it."""
    signs = ("CUDA out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED", "DefaultCPUAllocator")
    return isinstance(error, torch.OutOfMemoryError) or any(sign in str(error) for sign in signs)


def synchronised_clock(device: torch.device) -> float:
    """A clock read only after the device has finished what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


MACHINE_LINE = "{cpu}, {cores} cores, torch {torch}, device {device}, threads {threads}"


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
