"""Random rotation, shift, size and slant: one small matrix an image, drawn ahead, and one batched warp on the device.

``draw_warps`` is a pure function of its arguments and draws for a whole epoch on the CPU, so what happens to an image
does not depend on the device, on the number of processes, or on where training was resumed.
"""

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
    xs = pixel_centres(width, images)
    ys = pixel_centres(height, images)
    grid = images.new_empty(count, height, width, 2)
    for axis in range(2):
        along_x = matrices[:, axis, 0, None] * xs
        along_y = matrices[:, axis, 1, None] * ys + matrices[:, axis, 2, None]
        torch.add(along_x[:, None, :], along_y[:, :, None], out=grid[..., axis])
    return F.grid_sample(images.unsqueeze(1), grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def pixel_centres(count: int, like: Tensor) -> Tensor:
    return (torch.arange(count, device=like.device, dtype=like.dtype) * 2 + 1) / count - 1
