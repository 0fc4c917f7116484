"""The cache of verified data sets: one safetensors file each, that several processes and runs share.

A file gets its final name by an atomic rename, under a lock, after it is complete and on the disk. It is
verified again on every load, damaged ones are replaced, and where nothing can be written the run goes on
without a cache.
"""

import os
import time
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

LOCK_SECONDS = 600.0


@dataclass(frozen=True)
class Loaded:
    """Verified tensors of bytes, the SHA-256 of each, and in words where they came from."""

    tensors: dict[str, Tensor]
    digests: dict[str, str]
    origin: str


def cache_folder() -> Path | None:
    """`$XDG_CACHE_HOME/mnist_accel`, else `~/.cache/mnist_accel`; None where there is no home for it."""
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
    """The data set `name` from the cache, else from `make`, which returns tensors and their origin in words.

    Of processes that start at once, one makes it and the others wait; they also share a DownloadError,
    instead of waiting for dead mirrors one after the other.
    """
    folder = cache_folder()
    if folder is None:
        return _without_cache(files, make, "there is no home folder")
    path = folder / f"{name}.safetensors"
    # Without the lock: a warm start also works where the cache is read-only.
    cached, _ = _read(path, files)
    if cached is not None:
        return cached
    waiting_since = time.time()
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
        return _without_cache(files, make, one_line(error))
    try:
        return _load_or_make_locked(path, files, make, waiting_since)
    finally:
        lock.release()


def _load_or_make_locked(
    path: Path,
    files: Sequence[IdxFile],
    make: Callable[[], tuple[dict[str, Tensor], str]],
    waiting_since: float,
) -> Loaded:
    cached, damage = _read(path, files)
    if cached is not None:
        return cached
    notes = [f"the cached copy was damaged ({damage})"] if damage else []
    leftovers = path.parent.glob(f"{path.name}.*.tmp")  # of runs that were killed while they wrote
    for useless in (path, *leftovers):
        with suppress(OSError):
            useless.unlink()
    failure = path.with_suffix(".failed")
    if reason := _failed_since(failure, waiting_since):
        raise DownloadError(reason)
    try:
        tensors, origin = make()
    except DownloadError as error:
        reason = "; ".join([str(error), *notes])
        with suppress(OSError):
            failure.write_text(f"{time.time()} {reason}", encoding="utf-8")
        raise DownloadError(reason) from error
    digests = verify(tensors, files)
    try:
        _write(path, tensors, digests)
    except OSError as error:
        notes.append(f"not cached: {one_line(error)}")
    with suppress(OSError):
        failure.unlink()
    return Loaded(tensors, digests, "; ".join([origin, *notes]))


def _without_cache(files: Sequence[IdxFile], make: Callable[[], tuple[dict[str, Tensor], str]], why: str) -> Loaded:
    tensors, origin = make()
    return Loaded(tensors, verify(tensors, files), f"{origin}; not cached: {why}")


def _read(path: Path, files: Sequence[IdxFile]) -> tuple[Loaded | None, str]:
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
    return Loaded(tensors, digests, f"cached in {_show(path.parent)}"), ""


def _write(path: Path, tensors: dict[str, Tensor], digests: dict[str, str]) -> None:
    aside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(aside, "wb") as file:
            file.write(save(tensors, metadata=digests))
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def _failed_since(failure: Path, moment: float) -> str:
    """Why another process failed after `moment`, or "" if none did."""
    with suppress(OSError, ValueError):
        when, _, reason = failure.read_text(encoding="utf-8").partition(" ")
        if float(when) >= moment:
            return reason
    return ""


def _show(path: Path) -> str:
    """The path with the home folder as ~: it goes into results that people publish."""
    home = os.path.expanduser("~")
    return f"~/{path.relative_to(home)}" if path.is_relative_to(home) else str(path)
