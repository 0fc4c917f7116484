"""The random warp: what is drawn, what it does to an image, and that it is a function of the seed alone."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mnist_accel.data.augment import draw_warps, warp

NOTHING = {"rotation": 0.0, "translation": 0.0, "scale": 0.0, "shear": 0.0}
SIDE = 28


def drawn(count: int = 2_000, seed: int = 0, **ranges: float) -> Tensor:
    warps = draw_warps(count, seed, **{**NOTHING, **ranges})
    assert warps is not None and warps.shape == (count, 2, 3) and warps.dtype == torch.float32
    return warps.double()


def affine(*rows: list[float]) -> Tensor:
    return torch.tensor([rows])


def moved_by(x: int, y: int) -> Tensor:
    """Output → input: what is seen x to the right came from x to the left. An image is 2 wide, so a pixel is 2/28."""
    return affine([1, 0, -x * 2 / SIDE], [0, 1, -y * 2 / SIDE])


def turned(degrees: float) -> Tensor:
    angle = torch.deg2rad(torch.tensor(degrees))
    return affine([angle.cos(), -angle.sin(), 0], [angle.sin(), angle.cos(), 0])


def disc(radius: float) -> Tensor:
    place = torch.arange(SIDE) - (SIDE - 1) / 2
    distance = (place[:, None] ** 2 + place[None, :] ** 2).sqrt()
    return (radius - distance + 0.5).clamp(0, 1)[None]


# What is drawn


def test_without_ranges_there_is_nothing_to_warp() -> None:
    assert draw_warps(10, 0, **NOTHING) is None


@pytest.mark.parametrize("ranges", [{"rotation": 10.0}, {"translation": 0.1}, {"scale": 0.1}, {"shear": 5.0}])
def test_any_single_range_is_enough_to_warp(ranges: dict[str, float]) -> None:
    warps = drawn(50, **ranges)
    assert len(warps.unique(dim=0)) == 50
    assert not torch.allclose(warps, torch.eye(2, 3, dtype=torch.float64).expand(50, 2, 3))


def test_one_seed_gives_the_same_draws_and_another_seed_others() -> None:
    ranges = {"rotation": 10.0, "translation": 0.1, "scale": 0.1, "shear": 5.0}
    assert torch.equal(drawn(seed=3, **ranges), drawn(seed=3, **ranges))
    assert not torch.equal(drawn(seed=3, **ranges), drawn(seed=4, **ranges))


def test_drawing_neither_reads_nor_moves_the_global_random_state() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = drawn(rotation=10)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(drawn(rotation=10), first)


def test_rotations_stay_within_their_range_and_use_it() -> None:
    warps = drawn(rotation=10)
    matrix = warps[:, :, :2]
    assert torch.allclose(matrix @ matrix.mT, torch.eye(2, dtype=torch.float64), atol=1e-6)
    angles = torch.rad2deg(torch.atan2(matrix[:, 1, 0], matrix[:, 0, 0]))
    assert angles.abs().max() <= 10 + 1e-4
    assert angles.min() < -9.9 and angles.max() > 9.9 and angles.mean().abs() < 0.5
    assert torch.equal(warps[:, :, 2], torch.zeros(2_000, 2, dtype=torch.float64))


def test_shifts_stay_within_their_fraction_of_the_image_and_use_it() -> None:
    warps = drawn(translation=0.1)
    assert torch.equal(warps[:, :, :2], torch.eye(2, dtype=torch.float64).expand(2_000, 2, 2))
    fraction = warps[:, :, 2] / 2
    assert fraction.abs().max() <= 0.1 + 1e-6
    for axis in range(2):
        assert fraction[:, axis].min() < -0.099 and fraction[:, axis].max() > 0.099
    assert torch.corrcoef(fraction.T)[0, 1].abs() < 0.1  # the axes are drawn apart


def test_sizes_stay_within_their_range_and_use_it() -> None:
    warps = drawn(scale=0.2)
    size = 1 / warps[:, 0, 0]
    assert torch.equal(warps[:, 0, 0], warps[:, 1, 1])
    assert not warps[:, 0, 1].any() and not warps[:, 1, 0].any() and not warps[:, :, 2].any()
    assert size.min() >= 0.8 - 1e-6 and size.max() <= 1.2 + 1e-6
    assert size.min() < 0.81 and size.max() > 1.19


def test_slants_stay_within_their_range_and_use_it() -> None:
    warps = drawn(shear=15)
    angles = torch.rad2deg(torch.atan(warps[:, 0, 1]))
    assert angles.abs().max() <= 15 + 1e-4 and angles.min() < -14.8 and angles.max() > 14.8
    assert torch.allclose(torch.linalg.det(warps[:, :, :2]), torch.ones(2_000, dtype=torch.float64), atol=1e-6)
    assert torch.equal(warps[:, 0, 0], warps[:, 1, 1]) and not warps[:, 1, 0].any()


def test_turned_and_slanted_at_once_is_the_product_of_both() -> None:
    """The draws of one seed are the same whatever is asked of them."""
    turns, slants, both = (
        drawn(seed=5, **ranges)[:, :, :2]
        for ranges in ({"rotation": 40.0}, {"shear": 30.0}, {"rotation": 40.0, "shear": 30.0})
    )
    torch.testing.assert_close(both, turns @ slants, rtol=0, atol=1e-6)


def test_a_shift_is_measured_in_the_image_as_it_is_seen_whatever_else_is_drawn() -> None:
    """The picture's centre lands at ± 10 % also where it is turned, slanted and made smaller at once."""
    warps = drawn(rotation=45, translation=0.1, scale=0.5, shear=20)
    lands_at = -torch.linalg.solve(warps[:, :, :2], warps[:, :, 2:]).squeeze(2)
    assert lands_at.abs().max() <= 0.2 + 1e-5 and lands_at.abs().max() > 0.195


# What it does


def test_the_identity_changes_nothing() -> None:
    images = torch.rand(3, SIDE, SIDE)
    out = warp(images, affine([1, 0, 0], [0, 1, 0]).expand(3, 2, 3))
    assert out.shape == (3, 1, SIDE, SIDE)
    torch.testing.assert_close(out[:, 0], images, atol=1e-5, rtol=0)


def test_a_warp_is_torchs_own_affine_sampling() -> None:
    images = torch.rand(64, SIDE, SIDE, generator=torch.Generator().manual_seed(0)) * 255
    warps = drawn(64, rotation=30, translation=0.2, scale=0.3, shear=20).float()
    grid = F.affine_grid(warps, [64, 1, SIDE, SIDE], align_corners=False)
    expected = F.grid_sample(images[:, None], grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    torch.testing.assert_close(warp(images, warps), expected, atol=0.01, rtol=0)


@pytest.mark.parametrize(("x", "y"), [(3, 0), (0, -2), (-5, 4)])
def test_a_shift_by_whole_pixels_moves_whole_pixels_and_lets_background_in(x: int, y: int) -> None:
    image = torch.rand(1, SIDE, SIDE) + 1
    moved = warp(image, moved_by(x, y))[0, 0]
    kept = (slice(max(0, y), SIDE + min(0, y)), slice(max(0, x), SIDE + min(0, x)))
    source = (slice(max(0, -y), SIDE + min(0, -y)), slice(max(0, -x), SIDE + min(0, -x)))
    torch.testing.assert_close(moved[kept], image[0][source], atol=1e-4, rtol=0)
    moved[kept] = 0
    assert moved.abs().max() < 1e-4


def test_a_quarter_turn_is_a_quarter_turn() -> None:
    image = torch.rand(1, SIDE, SIDE)
    out = warp(image, turned(90))[0, 0]
    torch.testing.assert_close(out, image[0].rot90(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("degrees", [7.0, 45.0, -130.0])
def test_turning_keeps_the_mass_of_a_centred_disc(degrees: float) -> None:
    image = disc(8)
    out = warp(image, turned(degrees))
    assert out.sum() == pytest.approx(image.sum().item(), rel=0.01)
    assert (out[0] - image).abs().max() < 0.3  # soft edges get softer, a disc that moved would be 1 off


def test_making_it_smaller_takes_the_square_of_the_mass() -> None:
    image = disc(8)
    out = warp(image, affine([1 / 0.5, 0, 0], [0, 1 / 0.5, 0]))
    assert out.sum() == pytest.approx(0.25 * image.sum().item(), rel=0.03)


def test_background_stays_zero() -> None:
    image = disc(5).expand(200, SIDE, SIDE)
    out = warp(image.clone(), drawn(200, rotation=180).float())[:, 0]
    edge = torch.ones(SIDE, SIDE, dtype=torch.bool)
    edge[6:-6, 6:-6] = False
    assert out[:, edge].count_nonzero() == 0
    full = warp(torch.ones(1, SIDE, SIDE), moved_by(40, 0))
    assert full.count_nonzero() == 0  # nothing is repeated or mirrored from beyond the edge


def test_each_image_goes_through_its_own_matrix() -> None:
    images = torch.rand(4, SIDE, SIDE)
    warps = drawn(4, rotation=90, translation=0.3).float()
    together = warp(images, warps)
    alone = [warp(images[i : i + 1], warps[i : i + 1]) for i in range(4)]
    assert torch.equal(together, torch.cat(alone))


def test_the_callers_images_are_left_alone() -> None:
    images = torch.rand(2, SIDE, SIDE)
    before: Any = images.clone()
    warp(images, drawn(2, rotation=90).float())
    assert torch.equal(images, before)
