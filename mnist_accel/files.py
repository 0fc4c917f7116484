"""Writes a file whole or not at all, reads plain files and JSON, makes new folders."""

import errno
import json
import math
import os
import stat
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

MOST_JSON = 1 << 28  # bytes


def write_whole(target: Path, content: bytes) -> None:
    """Aside, synced, renamed: under its own name a file is whole or absent, and it is on the disk."""
    aside = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with aside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(target)
        sync_folder(target.parent)
    except OSError:
        with suppress(OSError):
            aside.unlink()
        raise


def sync_folder(folder: Path) -> None:
    """A rename is on the disk only when its folder is."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_regular(path: Path, most: int) -> bytes:
    """A plain file of at most so many bytes, else OSError. Anything else that a name may stand for could be waited for
    without end: a pipe, a terminal."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "is no plain file")
        with open(descriptor, "rb", closefd=False) as file:
            content = file.read(most + 1)
    finally:
        os.close(descriptor)
    if len(content) > most:
        raise OSError(errno.EFBIG, f"has more than {most:,} bytes")
    return content


def finite(value: Any) -> Any:
    """``value`` with None for the numbers that JSON does not know."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(path: Path) -> Any:
    """None where there is none to be read."""
    try:
        return json.loads(read_regular(path, MOST_JSON))
    except (OSError, ValueError, RecursionError):
        return None


def is_installed(package: str) -> bool:
    """More than a folder of its name, which W&B, for one, leaves wherever it was started."""
    found = find_spec(package)
    return found is not None and found.origin is not None


def new_folder(first: Path) -> Path:
    """``first``, or with a number behind where another run began within the same second."""
    folder, number = first, 1
    while True:
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            number += 1
            folder = first.with_name(f"{first.name}-{number}")


def nearest_there(folder: Path) -> Path:
    """``folder``, or the one above in which it would be made."""
    return next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())


def refuse_unwritable(folder: Path) -> None:
    """OSError where ``folder`` could not be made or written, without writing: this is asked before processes start."""
    nearest = nearest_there(folder)
    if not nearest.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
