"""Batches: the same samples, augmented the same way, whatever the number of processes and wherever one resumes."""

from collections.abc import Sequence
from math import ceil
from typing import Any

import pytest
import torch
from torch import Tensor

from mnist_accel.data import batches as batches_module
from mnist_accel.data.batches import (
    Augmentation,
    Batch,
    ImageStore,
    TestBatches,
    TrainBatches,
    normalise,
    rank_slice,
    scored_at_once,
)
from mnist_accel.seeding import derive_seed

CPU = torch.device("cpu")
COUNT = 107
# Every image holds its own number, so that a batch tells which images are in it.
IMAGES = torch.arange(COUNT, dtype=torch.uint8)[:, None, None].expand(COUNT, 28, 28).contiguous()
LABELS = torch.arange(COUNT) % 10
WORLDS = (1, 2, 3, 7)
SIZES = (1, 10, 25, 31, COUNT)  # the last batch of 107: 1, 7, 7, 14 and 107 images
WARPED = Augmentation(rotation=15, translation=0.1, scale=0.1, shear=5)


def a_store(resident_bytes: int | None = None, images: Tensor = IMAGES) -> ImageStore:
    return ImageStore(images, LABELS[: len(images)], CPU, resident_bytes)


def train_batches(store: ImageStore | None = None, **changes: Any) -> TrainBatches:
    settings: dict[str, Any] = {"batch_size": 25, "seed": 0, "mean": 0.0, "std": 1.0, "augmentation": Augmentation()}
    return TrainBatches(store or a_store(), **{**settings, **changes})


def counted(batch: Batch) -> tuple[Tensor, Tensor]:
    """What of a batch is the rank's share."""
    return batch.images[: batch.counted], batch.labels[: batch.counted]


def numbers(images: Tensor) -> list[int]:
    return (images.amax((1, 2, 3)) * 255).round().int().tolist()


def one_by_one(epoch: Sequence[Batch]) -> list[list[int]]:
    return [numbers(counted(batch)[0]) for batch in epoch]


# Which images


def test_the_order_is_a_pure_function_of_seed_and_epoch() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    batches = train_batches(seed=5)
    batches.order(7)
    order = batches.order(3)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(order, train_batches(seed=5).order(3))
    assert not torch.equal(order, train_batches(seed=5).order(2))
    assert not torch.equal(order, train_batches(seed=6).order(3))
    assert sorted(order.tolist()) == list(range(COUNT))


def test_neighbouring_seeds_and_epochs_do_not_collide() -> None:
    """Seed plus epoch would give (0, 1) and (1, 0) the same order."""
    orders = {tuple(train_batches(seed=seed).order(epoch).tolist()) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25
    seeds = {derive_seed(seed, what, step) for seed in range(20) for what in ("order", "warp") for step in range(20)}
    assert len(seeds) == 800 and all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize("batch_size", SIZES)
def test_an_epoch_is_its_order_cut_into_batches(batch_size: int) -> None:
    batches = train_batches(batch_size=batch_size)
    seen = list(batches.epoch(2))
    order = batches.order(2).tolist()
    assert len(seen) == batches.steps_per_epoch == ceil(COUNT / batch_size)
    assert one_by_one(seen) == [order[start : start + batch_size] for start in range(0, COUNT, batch_size)]
    assert sum(batch.global_count for batch in seen) == COUNT
    for batch in seen:
        assert batch.labels.tolist() == LABELS[numbers(batch.images)].tolist()


@pytest.mark.parametrize("world_size", WORLDS)
@pytest.mark.parametrize("batch_size", [7, *SIZES[1:]])
def test_the_parts_of_the_ranks_are_the_global_batch_in_its_order(world_size: int, batch_size: int) -> None:
    alone = one_by_one(list(train_batches(batch_size=batch_size).epoch(1)))
    ranks = [
        list(train_batches(batch_size=batch_size, rank=rank, world_size=world_size).epoch(1))
        for rank in range(world_size)
    ]
    assert all(len(rank) == len(alone) for rank in ranks)
    for step, together in enumerate(alone):
        parts = [rank[step] for rank in ranks]
        assert [number for part in parts for number in numbers(counted(part)[0])] == together
        assert {part.global_count for part in parts} == {len(together)}
        shares = [part.counted for part in parts]
        assert max(shares) - min(shares) <= 1 and shares == sorted(shares, reverse=True)


def test_a_rank_without_a_share_still_gets_an_image_to_run_that_counts_for_nothing() -> None:
    """107 images in batches of 15: the last has two, for seven ranks."""
    last = [list(train_batches(batch_size=15, rank=rank, world_size=7).epoch(0))[-1] for rank in range(7)]
    assert [batch.counted for batch in last] == [1, 1, 0, 0, 0, 0, 0]
    assert [len(batch.images) for batch in last] == [1] * 7
    assert [len(batch.labels) for batch in last] == [1] * 7
    assert {batch.global_count for batch in last} == {2}


@pytest.mark.parametrize("world_size", WORLDS)
@pytest.mark.parametrize(("start", "stop"), [(0, 0), (0, 1), (5, 18), (100, 107), (0, 64)])
def test_slices_of_the_ranks_partition_any_range(start: int, stop: int, world_size: int) -> None:
    parts = [rank_slice(start, stop, rank, world_size) for rank in range(world_size)]
    assert [index for part in parts for index in range(part.start, part.stop)] == list(range(start, stop))
    lengths = [part.stop - part.start for part in parts]
    assert max(lengths) - min(lengths) <= 1


# What happens to them


@pytest.mark.parametrize("world_size", WORLDS[1:])
def test_an_image_is_augmented_the_same_way_at_any_world_size(world_size: int) -> None:
    images = torch.randint(256, (COUNT, 28, 28), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    store = a_store(images=images)
    alone = list(train_batches(store, augmentation=WARPED).epoch(4))
    ranks = [
        train_batches(store, augmentation=WARPED, rank=rank, world_size=world_size).epoch(4)
        for rank in range(world_size)
    ]
    for whole, *parts in zip(alone, *ranks, strict=True):
        torch.testing.assert_close(torch.cat([counted(part)[0] for part in parts]), whole.images, atol=1e-5, rtol=0)
        assert torch.equal(torch.cat([counted(part)[1] for part in parts]), whole.labels)


def test_augmentation_is_new_in_every_epoch_and_with_every_seed() -> None:
    """The same image in the same place of the order, so that only the warp can make the difference."""

    def first_of(seed: int, epoch: int) -> Tensor:
        store = a_store(images=IMAGES[50:51].expand(20, 28, 28).contiguous())
        return next(train_batches(store, seed=seed, augmentation=WARPED).epoch(epoch)).images

    assert torch.equal(first_of(0, 0), first_of(0, 0))
    assert not torch.equal(first_of(0, 0), first_of(0, 1))
    assert not torch.equal(first_of(0, 0), first_of(1, 0))


@pytest.mark.parametrize("augmentation", [Augmentation(), WARPED])
@pytest.mark.parametrize("first_step", [0, 1, 4, 5])
def test_resuming_at_a_step_gives_the_batches_that_were_left(augmentation: Augmentation, first_step: int) -> None:
    whole = list(train_batches(augmentation=augmentation).epoch(6))
    rest = list(train_batches(augmentation=augmentation).epoch(6, first_step=first_step))
    assert len(rest) == len(whole) - first_step
    for again, before in zip(rest, whole[first_step:], strict=True):
        assert torch.equal(again.images, before.images) and torch.equal(again.labels, before.labels)


def test_pixels_become_normalised_floats() -> None:
    raw = torch.tensor([[[0, 255], [51, 102]]], dtype=torch.uint8)
    expected = (raw.double()[:, None] / 255 - 0.1307) / 0.3081
    out = normalise(raw, 0.1307, 0.3081)
    assert out.dtype == torch.float32 and out.shape == (1, 1, 2, 2)
    torch.testing.assert_close(out.double(), expected, atol=1e-6, rtol=0)
    assert raw.tolist() == [[[0, 255], [51, 102]]]


def test_background_that_a_warp_lets_in_is_normalised_like_background() -> None:
    raw = torch.zeros(3, 28, 28, dtype=torch.uint8)
    warps = torch.eye(2, 3).expand(3, 2, 3) + torch.tensor([[0, 0, 0.5], [0, 0, 0.3]])
    torch.testing.assert_close(normalise(raw, 0.1307, 0.3081, warps), normalise(raw, 0.1307, 0.3081))


def test_training_batches_are_normalised_with_the_given_mean_and_std() -> None:
    plain, normalised = (
        next(train_batches(mean=mean, std=std).epoch(0)).images for mean, std in ((0.0, 1.0), (0.2, 0.5))
    )
    torch.testing.assert_close(normalised, (plain - 0.2) / 0.5)


# Where the images are


@pytest.mark.parametrize("augmentation", [Augmentation(), WARPED])
def test_images_that_may_not_be_resident_give_the_same_batches(augmentation: Augmentation) -> None:
    resident, fed = a_store(), a_store(resident_bytes=1000)
    assert resident.resident and not fed.resident
    assert len(resident) == len(fed) == COUNT
    both = (
        list(train_batches(store, augmentation=augmentation, rank=1, world_size=2).epoch(0))
        for store in (resident, fed)
    )
    for one, other in zip(*both, strict=True):
        assert torch.equal(one.images, other.images) and torch.equal(one.labels, other.labels)
    both_tests = (list(TestBatches(store, mean=0.1, std=0.3)) for store in (resident, fed))
    for one, other in zip(*both_tests, strict=True):
        assert torch.equal(one.images, other.images) and torch.equal(one.labels, other.labels)


@pytest.mark.parametrize("augmentation", [Augmentation(), WARPED])
@pytest.mark.parametrize(("world_size", "batch_size", "first_step"), [(1, 25, 0), (1, 31, 2), (2, 25, 3), (7, 15, 0)])
@pytest.mark.parametrize("copies", [1, 5])
def test_images_put_in_order_once_an_epoch_give_the_same_batches(
    augmentation: Augmentation, world_size: int, batch_size: int, first_step: int, copies: int
) -> None:
    """With room for bytes in order, and for floats besides; a rank without a share and the middle of an epoch as well.
    107 images in batches of 15 leave two for seven ranks."""
    size = IMAGES.numel()
    roomy = a_store()
    assert roomy.room == 0  # on a CPU batch by batch is faster
    roomy.room = copies * size
    for rank in range(world_size):
        how = {"augmentation": augmentation, "batch_size": batch_size, "rank": rank, "world_size": world_size}
        step_by_step, ahead = train_batches(std=0.3, mean=0.1, **how), train_batches(roomy, std=0.3, mean=0.1, **how)
        once = copies == 5 and augmentation != WARPED
        assert (ahead.orders_ahead, ahead.normalises_ahead, step_by_step.orders_ahead) == (True, once, False)
        selections = list(ahead.selections(3, first_step))
        assert {chosen.images.is_floating_point() for chosen in selections} == {once}
        # Views of one piece of memory, which holds what this rank takes and nothing else.
        pieces = {chosen.images.untyped_storage().data_ptr() for chosen in selections}
        taken = sum(chosen.images.nbytes for chosen in selections)
        assert len(pieces) == 1 and selections[0].images.untyped_storage().nbytes() == taken
        for one, other in zip(step_by_step.epoch(3, first_step), ahead.epoch(3, first_step), strict=True):
            assert torch.equal(one.images, other.images) and torch.equal(one.labels, other.labels)
            assert (one.counted, one.global_count) == (other.counted, other.global_count)
    roomy.room = size - 1
    assert not train_batches(roomy).orders_ahead


@pytest.mark.parametrize(("free_gb", "at_once"), [(80, 10_000), (4, 4_096), (0, 1)])
def test_a_gpu_scores_as_many_images_at_once_as_fit(
    monkeypatch: pytest.MonkeyPatch, free_gb: int, at_once: int
) -> None:
    monkeypatch.setattr(batches_module, "free_memory", lambda device: free_gb * 2**30)
    assert scored_at_once(torch.device("cuda", 0)) == at_once
    assert scored_at_once(CPU) == 500


def test_images_are_resident_up_to_exactly_the_limit() -> None:
    size = COUNT * 28 * 28 + COUNT * 8
    assert a_store(resident_bytes=size).resident
    assert not a_store(resident_bytes=size - 1).resident
    assert a_store(resident_bytes=None).resident


# The test set


@pytest.mark.parametrize("world_size", [*WORLDS, 150])
@pytest.mark.parametrize("batch_size", [1, 10, 500])
def test_every_test_image_is_scored_exactly_once(world_size: int, batch_size: int) -> None:
    seen: list[int] = []
    for rank in range(world_size):
        for batch in TestBatches(a_store(), mean=0.0, std=1.0, rank=rank, world_size=world_size, batch_size=batch_size):
            assert len(batch.images) == batch.counted <= batch_size
            assert batch.labels.tolist() == LABELS[numbers(batch.images)].tolist()
            seen += numbers(batch.images)
    assert sorted(seen) == list(range(COUNT))
