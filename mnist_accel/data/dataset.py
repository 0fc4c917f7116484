"""Chooses the data set of a run and says why: MNIST where it is to be had, else the one that this project draws."""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mnist_accel.data import mnist
from mnist_accel.data.cache import load_or_make
from mnist_accel.data.download import DownloadError
from mnist_accel.errors import UserError

DATA_DIR_VARIABLE = "MNIST_ACCEL_DATA"
HOLD_OUT_SEED = 0


@dataclass(frozen=True)
class Dataset:
    """Verified images (uint8 [N, 28, 28]) and labels (int64 [N]) on the CPU.

    ``reason`` says in one sentence why it is this data set and where it came from. ``checksum`` is the SHA-256 over
    the SHA-256 of the four tensors' bytes; the ranks of a run compare it.
    """

    name: str
    reason: str
    checksum: str
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def load_dataset(dataset: str = "auto", data_dir: str | None = None) -> Dataset:
    """MNIST from ``data_dir`` (else $MNIST_ACCEL_DATA), from the cache or from the mirrors that torchvision knows.

    A folder that is named must hold intact files: it is never passed over. "synthetic" looks at no folder.
    """
    if dataset == "synthetic":
        return load_synthetic("dataset=synthetic")

    key = "data_dir" if data_dir is not None else DATA_DIR_VARIABLE
    folder = data_dir if data_dir is not None else os.environ.get(DATA_DIR_VARIABLE) or None
    if folder is not None:
        tensors = mnist.read_folder(folder, f"{key}={folder}", mnist.FILES)
        digests = {file.key: str(file.sha256) for file in mnist.FILES}
        return assemble("mnist", f"found in {folder} ({key})", tensors, digests)
    try:
        loaded = load_or_make("mnist", mnist.FILES, lambda: mnist.fetch(mnist.FILES))
    except DownloadError as error:
        if dataset == "mnist":
            raise UserError(
                f"dataset=mnist: MNIST could not be downloaded: {error}. Set data_dir or {DATA_DIR_VARIABLE} to a "
                "folder that holds MNIST/raw, or give dataset=synthetic"
            ) from error
        return load_synthetic(f"MNIST could not be downloaded: {error}")
    return assemble("mnist", loaded.origin, loaded.tensors, loaded.digests)


def load_synthetic(why: str) -> Dataset:
    from mnist_accel.data import synthetic  # only here: MNIST needs none of it

    def draw() -> tuple[dict[str, Tensor], str]:
        tensors = synthetic.draw_dataset(seed=0)
        return {key: tensor.to(torch.uint8).contiguous() for key, tensor in tensors.items()}, "drawn by mnist_accel"

    # The same files as MNIST's but for their content, whose SHA-256 the cached file carries itself.
    files = [replace(file, sha256=None) for file in mnist.FILES]
    loaded = load_or_make(f"synthetic-v{synthetic.SYNTHETIC_VERSION}-seed0", files, draw)
    return assemble("synthetic", f"{why}; {loaded.origin}", loaded.tensors, loaded.digests)


def assemble(name: str, reason: str, tensors: Mapping[str, Tensor], digests: Mapping[str, str]) -> Dataset:
    return Dataset(
        name=name,
        reason=reason,
        checksum=hashlib.sha256("".join(digests[file.key] for file in mnist.FILES).encode()).hexdigest(),
        train_images=tensors["train_images"],
        train_labels=tensors["train_labels"].long(),
        test_images=tensors["test_images"],
        test_labels=tensors["test_labels"].long(),
    )


def hold_out(data: Dataset, count: int) -> Dataset:
    """The same data with ``count`` training images in the place of the test set, and the rest to train on.

    For choosing settings without a look at the test set. Which images: a random draw, not the last ones, because
    neighbours in MNIST are by the same writers and labels may follow a pattern; and the same draw whatever the
    run's seed, so that all runs are scored on the same images.
    """
    available = len(data.train_labels)
    if not 0 < count < available:
        raise UserError(f"validation={count}: give 1 to {available - 1:,} of the {available:,} training images")
    order = torch.randperm(available, generator=torch.Generator().manual_seed(HOLD_OUT_SEED))
    held_out, kept = order[:count].sort().values, order[count:].sort().values
    return replace(
        data,
        reason=f"{data.reason}; scored on {count:,} held-out training images",
        train_images=data.train_images[kept],
        train_labels=data.train_labels[kept],
        test_images=data.train_images[held_out],
        test_labels=data.train_labels[held_out],
    )
