"""Draws random rotation, shift, size and slant, a small matrix per image, and warps a batch by them on the device.

``draw_warps`` is a pure function of its arguments and draws for a whole epoch on the CPU, so what happens to an image
does not depend on the device, on the number of processes, or on where training was resumed.
"""

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor


def draw_warps(
    count: int, seed: int, *, rotation: float, translation: float, scale: float, shear: float
) -> Tensor | None:
    """[count, 2, 3] matrices from output to input coordinates (each axis from -1 to 1), or None if nothing is asked.

    rotation and shear in degrees, translation as a fraction of the image, scale as 1 ± scale; all uniform.
    """
    if not (rotation or translation or scale or shear):
        return None
    generator = torch.Generator().manual_seed(seed)
    draws = torch.rand(count, 5, generator=generator, dtype=torch.float64) * 2 - 1
    angle = torch.deg2rad(draws[:, 0] * rotation)
    slant = torch.tan(torch.deg2rad(draws[:, 1] * shear))
    zoom = 1 / (1 + draws[:, 2] * scale)
    # Output → input is the inverse of what the eye sees; symmetric ranges make that a matter of signs alone.
    cos, sin = torch.cos(angle) * zoom, torch.sin(angle) * zoom
    matrix = torch.stack([cos, cos * slant - sin, sin, sin * slant + cos], dim=1).view(count, 2, 2)
    # An image is 2 wide in these coordinates, so a fraction of it is twice that.
    shift = -(matrix @ (draws[:, 3:] * 2 * translation).unsqueeze(2))
    return torch.cat([matrix, shift], dim=2).float()


def warp(images: Tensor, matrices: Tensor) -> Tensor:
    """Each [28, 28] image of the batch through its own matrix, bilinear, with background 0 beyond the edge.

    The sampling grid is built from one row and one column instead of by ``affine_grid``, whose batched product over
    784 × 3 took three times as long as the sampling itself.
    """
    count, height, width = images.shape
    xs, ys = (pixel_centres(side, images.device, images.dtype) for side in (width, height))
    grid = images.new_empty(count, height, width, 2)
    along_x = matrices[:, :, 0, None] * xs
    along_y = matrices[:, :, 1, None] * ys + matrices[:, :, 2, None]
    for axis in range(2):  # both at once take a CPU a quarter longer
        torch.add(along_x[:, axis, None, :], along_y[:, axis, :, None], out=grid[..., axis])
    return F.grid_sample(images.unsqueeze(1), grid, mode="bilinear", padding_mode="zeros", align_corners=False)


@cache
def pixel_centres(count: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    return (torch.arange(count, device=device, dtype=dtype) * 2 + 1) / count - 1
