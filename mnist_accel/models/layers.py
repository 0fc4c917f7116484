"""Layers that torch does not have, a block that networks share, names for those of a network, and a score that is a
mean over shifted images."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NAMES = {
    "Conv2d": "conv",
    "BatchNorm2d": "bn",
    "Linear": "fc",
    "MaxPool2d": "pool",
    "AvgPool2d": "average",
    "AdaptiveAvgPool2d": "average",
    "Dropout2d": "dropout",
}


def in_order(*layers: nn.Module) -> nn.Sequential:
    """One after the other, each named by its kind and, where there are several, its number: conv1, bn1, …, fc."""
    kinds = [NAMES.get(type(layer).__name__, type(layer).__name__.lower()) for layer in layers]
    several = {kind for kind, count in Counter(kinds).items() if count > 1}
    numbers: Counter[str] = Counter()
    network = nn.Sequential()
    for kind, layer in zip(kinds, layers, strict=True):
        numbers[kind] += 1
        network.add_module(f"{kind}{numbers[kind]}" if kind in several else kind, layer)
    return network


def separable_block(in_channels: int, out_channels: int, kernel_size: int, pool: bool = False) -> list[nn.Module]:
    """A convolution of each channel alone, then one of all channels at each place: of 40 channels into 40 with 5×5
    kernels 2,600 weights, where one convolution has 40,000. ReLU stands after the pool: the same values, less work."""
    return [
        nn.Conv2d(in_channels, in_channels, kernel_size, padding=kernel_size // 2, groups=in_channels, bias=False),
        nn.Conv2d(in_channels, out_channels, kernel_size=1, bias=False),
        nn.BatchNorm2d(out_channels),
        *([nn.MaxPool2d(2)] if pool else []),
        nn.ReLU(inplace=True),
    ]


# Batch norm over the whole global batch, whatever number of processes it is spread over. torch's own works on GPUs
# only, and counts every rank's images, also those that only stand in for an empty share.


class SumOverRanks(torch.autograd.Function):
    """A sum that gradients flow back through: every rank's loss depends on every rank's images."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return all_reduced(tensor)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return all_reduced(gradients[0])


def all_reduced(tensor: Tensor) -> Tensor:
    total = tensor.contiguous().clone()
    torch.distributed.all_reduce(total)
    return total


class SyncBatchNorm(nn.BatchNorm2d):
    """``counted`` is 0 on a rank whose images only keep it in step with the others."""

    counted = 1

    def forward(self, images: Tensor) -> Tensor:
        if not self.training:
            return super().forward(images)
        assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
        assert self.num_batches_tracked is not None
        across = (0, 2, 3)
        # As torch's own: in half precision a count of 100,352 is inf or rounded, and a sum soon so as well.
        values = images.to(torch.promote_types(images.dtype, torch.float32))
        own = values.new_full((1,), self.counted * images.numel() / images.shape[1])  # filled where it is needed
        sums = SumOverRanks.apply(torch.cat([self.counted * values.sum(across), own]))
        count = sums[-1:].detach()
        mean = sums[:-1] / count
        centred = values - mean[:, None, None]
        variance = SumOverRanks.apply(self.counted * centred.square().sum(across)) / count
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(images.dtype)


def synchronise_batch_norm(model: nn.Module) -> None:
    """In place: parameters, buffers and their names stay as they are."""
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SyncBatchNorm


def count_images(model: nn.Module, counted: int) -> None:
    for module in model.modules():
        if isinstance(module, SyncBatchNorm):
            module.counted = min(counted, 1)


# Dropout

LEVELS = 2**16


class Dropout(nn.Dropout):
    """``nn.Dropout`` with its probability rounded to 16 bits (0.1 becomes 0.10001), and scaled by what it is then.

    torch draws a double for every value, on one thread: 5.9 ns each, a quarter of a step of ``compact13k``. Here four
    values share the 64 bits of one draw: 0.8 ns.
    """

    def forward(self, images: Tensor) -> Tensor:
        if not self.training or self.p == 0 or images.device.type != "cpu":
            return super().forward(images)
        return images * noise_like(images, self.p)


def noise_like(images: Tensor, probability: float) -> Tensor:
    """0 with about ``probability``, else what keeps the mean at 1."""
    count = images.numel()
    dropped = min(round(probability * LEVELS), LEVELS - 1)
    draws = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
    noise = torch.empty_like(images)  # in the order in memory that images have
    torch.ge(draws[:count], dropped - LEVELS // 2, out=noise.as_strided((count,), (1,)))
    return noise.mul_(LEVELS / (LEVELS - dropped))


# First filters

NOISE = 0.01  # variance below which a direction of the patches is not blown up


def whitenable(model: nn.Module) -> nn.Conv2d:
    """The first convolution; ValueError, with why, where its filters cannot be found from patches."""
    first = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    if first is None:
        raise ValueError("has no Conv2d")
    if isinstance(first.padding, str) or first.padding_mode != "zeros":
        raise ValueError("has a first Conv2d whose padding is not a number of zeros")
    if first.in_channels != 1 or first.groups != 1:
        raise ValueError("has a first Conv2d that does not take the image alone")
    if first.out_channels > 2 * first.weight[0].numel():
        raise ValueError(f"has {first.out_channels} first filters, more than twice the values of a patch")
    return first


@torch.no_grad()
def fix_first_filters(model: nn.Module, images: Tensor) -> None:
    """Gives the first convolution the filters that whiten patches of ``images``, float [n, 1, h, w], and fixes them.

    Each filter is an eigenvector of the patches' covariance, of largest variance first, scaled to an output of
    variance 1; the second half are the first half's negatives, so that what ReLU cuts off is not lost. Nothing before
    the second convolution is learned then, and its backward, the longest of all, needs no gradient of its input.
    """
    first = whitenable(model)
    assert isinstance(first.padding, tuple)
    patches = F.unfold(images, first.kernel_size, first.dilation, first.padding, first.stride)
    patches = patches.transpose(1, 2).flatten(0, 1).double()
    mean = patches.mean(0)
    half = (first.out_channels + 1) // 2
    patches -= mean
    variances, directions = torch.linalg.eigh(patches.T @ patches / len(patches))
    directions = directions.T.flip(0)[:half]
    # An eigenvector's sign is the library's whim.
    directions *= directions.gather(1, directions.abs().argmax(1, keepdim=True)).sign()
    filters = directions / (variances.flip(0)[:half, None] + NOISE).sqrt()
    filters = torch.cat([filters, -filters])[: first.out_channels]
    first.weight.copy_(filters.view_as(first.weight))
    if first.bias is not None:
        first.bias.copy_(-filters @ mean)
    first.requires_grad_(False)


# Order in memory


class RowMajor(nn.Module):
    """Leaves channels-last for batch norm on a CPU, whose kernel takes 1.1 ms there over 5 channels, 0.2 ms in
    row-major order.

    (Batch 64, two threads, forward and backward: an epoch of 2.9 s in place of 3.4.) The values are the same.
    On a GPU it would be two kernels more.
    """

    def forward(self, images: Tensor) -> Tensor:
        return images.contiguous() if images.device.type == "cpu" else images


# Scoring

SHIFTS = ((-1, 0), (1, 0), (0, -1), (0, 1))  # down, right


def logits_over_shifts(network: Callable[[Tensor], Tensor], images: Tensor, pixels: int, background: float) -> Tensor:
    """Of normalised images; with ``pixels`` the mean of five: of each as it is, and shifted by so many up, down, left
    and right, ``background`` coming in from the edge.

    Five passes, not one over five times the images: on a CPU that leaves the cache (10,000 images by 500 through
    ``onepoch`` and ``compact13k``, one thread: 1.6 times as long), on a GPU a batch takes what memory there is already.
    """
    logits = network(images)
    if not pixels:
        return logits
    for down, right in SHIFTS:
        margins = (right * pixels, -right * pixels, down * pixels, -down * pixels)  # a negative one is cut off
        logits = logits + network(F.pad(images, margins, value=background))
    return logits / (1 + len(SHIFTS))
