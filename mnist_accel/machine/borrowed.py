"""Lends a process that lives on, a notebook's, to one run, and leaves it as it was."""

import ctypes
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch
from accelerate.state import AcceleratorState, GradientState, PartialState

from mnist_accel.machine.runtime import M_MMAP_MAX, M_TRIM_THRESHOLD

# glibc's own, until somebody sets them
MMAP_MAX = 65_536
TRIM_THRESHOLD = 128 * 1024


@contextmanager
def borrowed_process() -> Iterator[None]:
    """Inside it is as at a process's start, whatever was trained here before."""
    with ExitStack() as stack:
        for kept in (signals, environment, accelerates_state, settings_of_torch, random_state, freed_memory):
            stack.enter_context(kept())
        yield


@contextmanager
def signals() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # which alone may set them
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def environment() -> Iterator[None]:
    before = dict(os.environ)
    try:
        yield
    finally:
        for name in set(os.environ) - set(before):
            del os.environ[name]
        os.environ.update(before)


@contextmanager
def accelerates_state() -> Iterator[None]:
    """One for the process, and it refuses a second precision or device."""
    states = [kind._shared_state for kind in (PartialState, AcceleratorState, GradientState)]
    before = [dict(state) for state in states]
    for state in states:
        state.clear()
    try:
        yield
    finally:
        for state, kept in zip(states, before, strict=True):
            state.clear()
            state.update(kept)


@contextmanager
def settings_of_torch() -> Iterator[None]:
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    benchmark, put_back_tf32 = torch.backends.cudnn.benchmark, tf32_as_it_is()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.enable_grad():
            yield
    finally:
        torch.set_num_threads(threads)
        torch.set_default_dtype(dtype)
        torch.backends.cudnn.benchmark = benchmark
        put_back_tf32()


def tf32_as_it_is() -> Callable[[], None]:
    """There are two sets of names for it, and torch cannot read the older where somebody has used the newer."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    newer: list[tuple[Any, str]] = [(part, part.fp32_precision) for part in (cudnn.conv, cudnn.rnn, matmul)]  # type: ignore[attr-defined]
    try:
        older = cudnn.allow_tf32, matmul.allow_tf32
    except RuntimeError:
        older = None

    def put_back() -> None:
        if older:
            cudnn.allow_tf32, matmul.allow_tf32 = older
            return
        for part, value in newer:
            part.fp32_precision = value

    return put_back


@contextmanager
def random_state() -> Iterator[None]:
    """That of each GPU too, where there is one yet."""
    gpus = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=gpus):
        yield


@contextmanager
def freed_memory() -> Iterator[None]:
    """Which a run keeps (``runtime.keep_freed_memory``), goes back to the system."""
    try:
        yield
    finally:
        with suppress(OSError, AttributeError, TypeError):  # another C library than glibc
            libc = ctypes.CDLL(None)
            libc.mallopt(M_MMAP_MAX, MMAP_MAX)
            libc.mallopt(M_TRIM_THRESHOLD, TRIM_THRESHOLD)
            libc.malloc_trim(0)
