"""Reads MNIST's four files, from a folder of the user's or through the published mirrors, and verifies every byte.

A file's SHA-256 covers its header too, and the header follows from the shape, so that one constant verifies an unpacked
file, a .gz and a tensor in the cache.
"""

import gzip
import hashlib
import io
import os
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from mnist_accel.data.download import DownloadError, download, host, one_line
from mnist_accel.data.torchvision_import import import_torchvision
from mnist_accel.errors import UserError

RAW_FOLDERS = ("MNIST/raw", "raw", ".")


@dataclass(frozen=True)
class IdxFile:
    """One file of a data set: a tensor of bytes. ``sha256`` is None where it is not known in advance."""

    key: str
    shape: tuple[int, ...]
    sha256: str | None

    @property
    def name(self) -> str:
        """As published: ``test_labels`` is in ``t10k-labels-idx1-ubyte``."""
        return f"{self.key.replace('test', 't10k').replace('_', '-')}-idx{len(self.shape)}-ubyte"


FILES = (
    IdxFile("train_images", (60_000, 28, 28), "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"),
    IdxFile("train_labels", (60_000,), "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"),
    IdxFile("test_images", (10_000, 28, 28), "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"),
    IdxFile("test_labels", (10_000,), "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"),
)


def idx_header(shape: Sequence[int]) -> bytes:
    """The header of an IDX file of bytes: two zeros, type 8 (unsigned byte), rank, then big-endian sizes."""
    return struct.pack(f">HBB{len(shape)}I", 0, 8, len(shape), *shape)


def verify(tensors: Mapping[str, Tensor], files: Sequence[IdxFile]) -> dict[str, str]:
    """The SHA-256 of each tensor; ValueError, saying what is wrong, unless the tensors are these files."""
    if set(tensors) != {file.key for file in files}:
        raise ValueError(f"holds {sorted(tensors)}")
    digests = {}
    for file in files:
        tensor = tensors[file.key]
        if tensor.dtype != torch.uint8 or tuple(tensor.shape) != file.shape:
            raise ValueError(f"{file.key} is {tensor.dtype} {list(tensor.shape)}, not bytes {list(file.shape)}")
        digests[file.key] = idx_sha256(tensor)
        if file.sha256 is not None and digests[file.key] != file.sha256:
            raise ValueError(f"the SHA-256 of {file.key} is not that of the original")
    return digests


def idx_sha256(tensor: Tensor) -> str:
    """SHA-256 of the IDX file that holds this tensor of bytes; reads the tensor in place."""
    digest = hashlib.sha256(idx_header(tensor.shape))
    digest.update(tensor.reshape(-1).numpy().data)
    return digest.hexdigest()


def read_idx(stream: io.BufferedIOBase, file: IdxFile) -> Tensor:
    """The verified tensor of one unpacked file; ValueError says what is wrong with the bytes.

    Reads one byte more than the file should have, whatever the stream holds: a .gz may unpack to terabytes.
    """
    header = idx_header(file.shape)
    size = len(header) + prod(file.shape)
    content = bytearray(stream.read(size + 1))
    if not content.startswith(header):
        raise ValueError(f"begins with {content[: len(header)].hex() or 'nothing'} instead of {header.hex()}")
    if len(content) < size:
        raise ValueError(f"ends after {len(content):,} of {size:,} bytes")
    if len(content) > size:
        raise ValueError(f"has more than {size:,} bytes")
    if hashlib.sha256(content).hexdigest() != file.sha256:
        raise ValueError("its SHA-256 is not that of the original")
    return torch.frombuffer(content, dtype=torch.uint8, offset=len(header)).reshape(file.shape)


def read_folder(folder: str, given_as: str, files: Sequence[IdxFile]) -> dict[str, Tensor]:
    """The verified tensors of a folder that the user names (``given_as``: "data_dir=/x"); writes nothing there."""
    root = Path(os.path.expanduser(folder))
    if not folder or not os.path.isdir(root):
        raise UserError(f"{given_as}: there is no such folder. Give the folder that holds MNIST/raw")
    places = {root / raw: [unpacked_or_gz(root / raw / file.name) for file in files] for raw in RAW_FOLDERS}
    place, paths = max(places.items(), key=lambda item: sum(path is not None for path in item[1]))
    if not any(paths):
        raise UserError(
            f"{given_as}: no MNIST files there (looked for {files[0].name}[.gz] in MNIST/raw, raw and the folder "
            "itself). Give the folder that holds MNIST/raw"
        )
    tensors = {}
    for file, path in zip(files, paths, strict=True):
        if path is None:
            raise UserError(f"{given_as}: {place / file.name}[.gz] is missing. Put the original file there")
        try:
            with open_unpacked(path) as stream:
                tensors[file.key] = read_idx(stream, file)
        except PermissionError as error:
            raise UserError(f"{given_as}: {path} may not be read. Give this user the right to read it") from error
        except (ValueError, OSError, EOFError, zlib.error) as error:
            spare = path.with_name(f"{path.name}.gz")
            remedy = f"Delete it to use {spare.name}" if spare.is_file() else "Replace it with the original file"
            raise UserError(f"{given_as}: {path} is damaged: {one_line(error)}. {remedy}") from error
    return tensors


def unpacked_or_gz(path: Path) -> Path | None:
    """The unpacked file, else the .gz beside it, else None."""
    return next((p for p in (path, path.with_name(f"{path.name}.gz")) if os.path.lexists(p)), None)


def open_unpacked(path: Path) -> io.BufferedIOBase:
    if not path.is_file():
        raise ValueError("it is not a file")
    return gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb")


def fetch(files: Sequence[IdxFile]) -> tuple[dict[str, Tensor], str]:
    """The verified tensors and "downloaded from <host>"; DownloadError when a file is not to be had.

    The first file that fails on every mirror ends it: where there is no network, the other three would only wait too.
    """
    order, md5s = published_lists()
    tensors = {}
    for file in files:
        archive = f"{file.name}.gz"
        content, mirror = download(order, archive, md5s[archive])
        order.sort(key=lambda candidate: candidate != mirror)  # a mirror that hangs is waited for once, not four times
        try:
            with gzip.GzipFile(fileobj=io.BytesIO(content)) as stream:
                tensors[file.key] = read_idx(stream, file)
        except (ValueError, OSError, EOFError, zlib.error) as error:
            raise DownloadError(f"{archive}: {host(mirror)}: {one_line(error)}") from error
    return tensors, f"downloaded from {host(order[0])}"


def published_lists() -> tuple[list[str], dict[str, str]]:
    """torchvision's mirrors, and the MD5 of each .gz."""
    try:
        published = import_torchvision().datasets.MNIST
    except Exception as error:  # a broken installation raises anything; it only means that there are no mirrors
        raise DownloadError(f"torchvision, which knows the mirrors, cannot be imported ({one_line(error)})") from error
    return list(published.mirrors), dict(published.resources)
