"""Dropout whose random numbers cost a CPU a sixth of torch's."""

import torch
from torch import Tensor, nn

LEVELS = 2**16


class Dropout(nn.Dropout):
    """`nn.Dropout` with its probability rounded to 16 bits (0.1 becomes 0.10001), and scaled by what it is then.

    torch draws a double for every value, on one thread: 5.9 ns each, a quarter of `compact13k`'s step. Here four values
    share the 64 bits of one draw: 0.8 ns.
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
