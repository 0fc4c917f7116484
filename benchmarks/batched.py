"""The loader of a user who knows torch: resident tensors, ``__getitems__`` for a whole batch, a DataLoader around it.

A DataLoader hands ``__getitems__`` all indices of a batch at once, so nothing is done image by image. torchvision's
random transforms draw once a call, which would be once a batch; hence an affine warp with a matrix an image.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

Pair = tuple[Tensor, Tensor]


class ResidentImages(Dataset[Pair]):
    def __init__(self, images: Tensor, labels: Tensor):
        self.images = images
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Pair:
        return self.images[index], self.labels[index]

    def __getitems__(self, indices: list[int]) -> Pair:
        chosen = torch.tensor(indices, device=self.images.device)
        return self.images[chosen], self.labels[chosen]


def make_collate(
    mean: float, std: float, rotation: float, translation: float, scale: float, shear: float
) -> Callable[[Any], Pair]:
    def collate(batch: Any) -> Pair:
        images, labels = batch  # what __getitems__ returned
        images = images.unsqueeze(1).float().div_(255)
        if rotation or translation or scale or shear:
            matrices = random_matrices(len(images), rotation, translation, scale, shear).to(images.device)
            grid = F.affine_grid(matrices, list(images.shape), align_corners=False)
            images = F.grid_sample(images, grid, align_corners=False)
        return images.sub_(mean).div_(std), labels

    return collate


def random_matrices(count: int, rotation: float, translation: float, scale: float, shear: float) -> Tensor:
    angle = math.radians(rotation) * (2 * torch.rand(count) - 1)
    slant = torch.tan(math.radians(shear) * (2 * torch.rand(count) - 1))
    zoom = 1 / (1 + scale * (2 * torch.rand(count) - 1))
    shift = 2 * translation * (2 * torch.rand(2, count) - 1)
    cos, sin = angle.cos() * zoom, angle.sin() * zoom
    rows = [cos, cos * slant - sin, shift[0], sin, sin * slant + cos, shift[1]]
    return torch.stack(rows, dim=1).view(count, 2, 3)


def make_loader(
    images: Tensor,
    labels: Tensor,
    batch_size: int,
    *,
    mean: float,
    std: float,
    rotation: float = 0.0,
    translation: float = 0.0,
    scale: float = 0.0,
    shear: float = 0.0,
) -> DataLoader[Pair]:
    collate = make_collate(mean, std, rotation, translation, scale, shear)
    return DataLoader(ResidentImages(images, labels), batch_size=batch_size, shuffle=True, collate_fn=collate)
