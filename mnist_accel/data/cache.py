"""Keeps verified data sets in a folder that processes and runs share, one safetensors file each.

A file is written whole, under a lock. It is verified again on every load, damaged ones are replaced, and where nothing
can be written the run goes on without a cache.
"""

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from mnist_accel.data.download import DownloadError, one_line
from mnist_accel.data.mnist import IdxFile, verify
from mnist_accel.errors import UserError
from mnist_accel.files import write_whole

LOCK_SECONDS = 600.0


@dataclass(frozen=True)
class Loaded:
    """Verified tensors of bytes, the SHA-256 of each, and in words where they came from."""

    tensors: dict[str, Tensor]
    digests: dict[str, str]
    origin: str


def cache_folder() -> Path | None:
    """``$XDG_CACHE_HOME/mnist_accel``, else ``~/.cache/mnist_accel``; None where there is no home for it."""
    cache_home = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(cache_home):  # the XDG specification: a relative path is to be ignored
        return Path(cache_home, "mnist_accel")
    home = os.path.expanduser("~")
    return Path(home, ".cache", "mnist_accel") if os.path.isabs(home) and os.path.isdir(home) else None


def load_or_make(
    name: str,
    files: Sequence[IdxFile],
    make: Callable[[], tuple[dict[str, Tensor], str]],
    *,
    lock_seconds: float = LOCK_SECONDS,
) -> Loaded:
    """The data set ``name`` from the cache, else from ``make``, which returns tensors and their origin in words.

    Of processes that start at once, one makes it and the others wait.
    """
    folder = cache_folder()
    if folder is None:
        return make_uncached(files, make, "there is no home folder")
    path = folder / f"{name}.safetensors"
    # Without the lock: a warm start also works where the cache is read-only.
    cached, _ = read_cached(path, files)
    if cached is not None:
        return cached
    lock = FileLock(folder / f"{name}.lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=lock_seconds)
    except Timeout:
        raise UserError(
            f"{lock.lock_file}: another run has held this lock for {lock_seconds:g} s. "
            "Wait for it or end it, or set XDG_CACHE_HOME to another folder"
        ) from None
    except (OSError, NotImplementedError) as error:  # the latter: a file system without locks
        return make_uncached(files, make, one_line(error))
    try:
        return load_or_make_locked(path, files, make)
    finally:
        lock.release()


def load_or_make_locked(
    path: Path, files: Sequence[IdxFile], make: Callable[[], tuple[dict[str, Tensor], str]]
) -> Loaded:
    cached, damage = read_cached(path, files)  # another process may have made it while this one waited
    if cached is not None:
        return cached
    notes = [f"the cached copy was damaged ({damage})"] if damage else []
    leftovers = path.parent.glob(f".{path.name}.*")  # of runs that were killed while they wrote
    for useless in (path, *leftovers):
        with suppress(OSError):
            useless.unlink()
    try:
        tensors, origin = make()
    except DownloadError as error:
        raise DownloadError("; ".join([str(error), *notes])) from error
    digests = verify(tensors, files)
    try:
        write_whole(path, save(tensors, metadata=digests))
    except OSError as error:
        notes.append(f"not cached: {one_line(error)}")
    return Loaded(tensors, digests, "; ".join([origin, *notes]))


def make_uncached(files: Sequence[IdxFile], make: Callable[[], tuple[dict[str, Tensor], str]], why: str) -> Loaded:
    tensors, origin = make()
    return Loaded(tensors, verify(tensors, files), f"{origin}; not cached: {why}")


def read_cached(path: Path, files: Sequence[IdxFile]) -> tuple[Loaded | None, str]:
    """What is cached; else None and the damage, which is "" where there is simply no file."""
    if not os.path.isfile(path):
        return None, ""
    try:
        with safe_open(path, framework="pt") as file:
            stored = file.metadata()
            # A clone: safetensors maps the file, and what is verified must not change with it afterwards.
            tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118
        digests = verify(tensors, files)
        if digests != stored:
            raise ValueError("its SHA-256 is not the one that it was stored with")
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        return None, one_line(error)
    return Loaded(tensors, digests, f"cached in {with_tilde(path.parent)}"), ""


def with_tilde(path: Path) -> str:
    """The path with the home folder as ~: it goes into results that people publish."""
    home = os.path.expanduser("~")
    return f"~/{path.relative_to(home)}" if path.is_relative_to(home) else str(path)
