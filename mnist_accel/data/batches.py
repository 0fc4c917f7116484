"""Selects each rank's images per step and loads them onto the device.

The order of an epoch is a pure function of (seed, epoch). The global batch at step k is a slice of it and a rank takes
its part of that slice, so the samples seen do not depend on how many processes there are.
"""

from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from math import ceil

import torch
from torch import Tensor

from mnist_accel.data.augment import draw_warps, warp
from mnist_accel.phase import Phase, unmarked
from mnist_accel.seeding import derive_seed

FLOAT_BYTES = 4
SCORING_BYTES = 2**20  # an image: some 0.3 MB of activations in the widest network, and cuDNN's workspaces


@dataclass(frozen=True)
class Batch:
    images: Tensor  # float [n, 1, 28, 28], normalised, on the device
    labels: Tensor  # int64 [n]
    counted: int  # how many of them are this rank's share; 0 where the batch had fewer images than there are ranks
    global_count: int  # images in this step over all ranks


@dataclass(frozen=True)
class Selection:
    """The images of a step on the device, and how each is to be warped."""

    images: Tensor  # uint8 [n, 28, 28]; float [n, 1, 28, 28] where the whole epoch was normalised at once
    labels: Tensor  # int64 [n]
    warps: Tensor | None  # [n, 2, 3]
    counted: int  # as in Batch
    global_count: int


@dataclass(frozen=True)
class Augmentation:
    """Ranges of the random warp, as in the recipe."""

    rotation: float = 0.0
    translation: float = 0.0
    scale: float = 0.0
    shear: float = 0.0


def rank_slice(start: int, stop: int, rank: int, world_size: int) -> slice:
    """This rank's part of [start, stop): parts differ by one at most, the first ranks take the larger ones."""
    small, larger_parts = divmod(stop - start, world_size)
    begin = start + rank * small + min(rank, larger_parts)
    return slice(begin, begin + small + (rank < larger_parts))


class ImageStore:
    """The uint8 images where they are fastest to reach: on the device if they fit, else in host memory."""

    def __init__(self, images: Tensor, labels: Tensor, device: torch.device, resident_bytes: int | None = None):
        size = images.numel() * images.element_size() + labels.numel() * labels.element_size()
        limit = free_memory(device) if resident_bytes is None else resident_bytes
        self.resident = size <= limit
        self.device = device
        home = device if self.resident else torch.device("cpu")
        self.images = images.to(home)
        self.labels = labels.to(home)
        self.pinned = not self.resident and device.type == "cuda"
        # What copies of the images may take besides. On a CPU a copy would cost more than it saves: 60,000 images put
        # in order at once and then normalised by the batch take 160 ms, batch by batch, which stay in the cache, 72.
        self.room = 0 if not self.resident or device.type == "cpu" else min(limit - size, free_memory(device))

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 images and labels at ``indices`` (which live beside the images), on the device."""
        if self.resident:
            return self.images.index_select(0, indices), self.labels.index_select(0, indices)
        return self.send(self.images, indices), self.send(self.labels, indices)

    def send(self, source: Tensor, indices: Tensor) -> Tensor:
        # Pinned staging memory comes from torch's caching allocator, which hands a block out again only after the
        # copy that reads it has run; so the copy may overlap with the previous step.
        staging = torch.empty((len(indices), *source.shape[1:]), dtype=source.dtype, pin_memory=self.pinned)
        torch.index_select(source, 0, indices, out=staging)
        return staging.to(self.device, non_blocking=self.pinned)


def free_memory(device: torch.device) -> int:
    """Bytes that the data set may take: half of what the GPU has free; on a CPU it is in memory already."""
    return torch.cuda.mem_get_info(device)[0] // 2 if device.type == "cuda" else 2**62


@dataclass
class TrainBatches:
    """The training set of one rank, epoch by epoch."""

    store: ImageStore
    _: KW_ONLY
    batch_size: int
    seed: int
    mean: float
    std: float
    augmentation: Augmentation
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        self.steps_per_epoch = ceil(len(self.store) / self.batch_size)
        # On a GPU a step of such small networks is bound by the number of its kernels, so what can be done for a whole
        # epoch at once is. Decided here once: a captured step expects the same kind of images in every epoch.
        pixels, room = self.store.images.numel(), self.store.room
        self.orders_ahead = pixels <= room
        # A warp pads with background before normalising, and there nothing can be normalised ahead.
        self.normalises_ahead = not any(vars(self.augmentation).values()) and pixels + FLOAT_BYTES * pixels <= room

    def order(self, epoch: int) -> Tensor:
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "order", epoch))
        return torch.randperm(len(self.store), generator=generator)

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """The batches of ``selections``, ready for the network."""
        return map(self.load, self.selections(epoch, first_step))

    def load(self, chosen: Selection, phase: Phase = unmarked) -> Batch:
        images = chosen.images
        if not images.is_floating_point():
            with phase("data"):
                images = normalise(images, self.mean, self.std, chosen.warps, phase)
        return Batch(images, chosen.labels, chosen.counted, chosen.global_count)

    def selections(self, epoch: int, first_step: int = 0, phase: Phase = unmarked) -> Iterator[Selection]:
        """The steps of one epoch from ``first_step`` on, which makes resuming in its middle exact."""
        with phase("data"):
            shares = [self.share(step) for step in range(first_step, self.steps_per_epoch)]
            loaded = self.ahead(epoch, shares) if self.orders_ahead else self.one_by_one(epoch, shares)
            warps = draw_warps(len(self.store), derive_seed(self.seed, "warp", epoch), **vars(self.augmentation))
            if warps is not None:
                warps = warps.to(self.store.device)
        for mine, counted, global_count in shares:
            with phase("data"):
                images, labels = next(loaded)
            yield Selection(images, labels, None if warps is None else warps[mine], counted, global_count)

    def share(self, step: int) -> tuple[slice, int, int]:
        """This rank's part of the epoch's order in ``step``, how many of its images count, and how many of all do."""
        start, stop = step * self.batch_size, min((step + 1) * self.batch_size, len(self.store))
        mine = rank_slice(start, stop, self.rank, self.world_size)
        counted = mine.stop - mine.start
        # Every rank has to run forward and backward; one without a share does with an image that counts for nothing.
        return mine if counted else slice(start, start + 1), counted, stop - start

    def one_by_one(self, epoch: int, shares: Sequence[tuple[slice, int, int]]) -> Iterator[tuple[Tensor, Tensor]]:
        order = self.order(epoch).to(self.store.images.device)
        return (self.store.take(order[mine]) for mine, *_ in shares)

    def ahead(self, epoch: int, shares: Sequence[tuple[slice, int, int]]) -> Iterator[tuple[Tensor, Tensor]]:
        """All that this rank still takes in the epoch put in order at once, so that a step's images are a slice."""
        order = self.order(epoch)
        parts = [order[mine] for mine, *_ in shares]
        images, labels = self.store.take(torch.cat(parts).to(self.store.images.device))
        if self.normalises_ahead:
            images = normalise(images, self.mean, self.std)
        sizes = [len(part) for part in parts]
        return zip(images.split(sizes), labels.split(sizes), strict=True)


@dataclass
class TestBatches:
    """This rank's share of the test set: over all ranks every image exactly once."""

    __test__ = False  # for pytest, which takes the name for a test

    store: ImageStore
    _: KW_ONLY
    mean: float
    std: float
    rank: int = 0
    world_size: int = 1
    batch_size: int | None = None

    @property
    def places(self) -> slice:
        return rank_slice(0, len(self.store), self.rank, self.world_size)

    def __iter__(self) -> Iterator[Batch]:
        share, batch_size = self.places, self.batch_size or scored_at_once(self.store.device)
        for start in range(share.start, share.stop, batch_size):
            stop = min(start + batch_size, share.stop)
            indices = torch.arange(start, stop, device=self.store.images.device)
            raw, labels = self.store.take(indices)
            yield Batch(normalise(raw, self.mean, self.std), labels, stop - start, global_count=stop - start)


def scored_at_once(device: torch.device) -> int:
    """On a GPU as many images as memory lets there be; on a CPU as many as stay in its cache."""
    return 500 if device.type == "cpu" else max(1, min(10_000, free_memory(device) // SCORING_BYTES))


def normalise(raw: Tensor, mean: float, std: float, warps: Tensor | None = None, phase: Phase = unmarked) -> Tensor:
    """uint8 [n, 28, 28] → normalised float [n, 1, 28, 28], in place."""
    images = raw.float()
    if warps is None:
        images = images.unsqueeze(1)
    else:
        with phase("augmentation"):
            images = warp(images, warps)
    return images.mul_(1 / (255 * std)).sub_(mean / std)


def background_of(mean: float, std: float) -> float:
    """What ``normalise`` makes of a pixel without ink."""
    return -mean / std
