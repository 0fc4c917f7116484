"""What an expert would write by hand over the same resident tensors: the floor under our engine.

One process, one device, nothing logged, nothing saved, no random state to account for.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from mnist_accel.data.augment import warp


def train_epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss_function: Callable[[Tensor, Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    *,
    batch_size: int,
    mean: float,
    std: float,
    lr_at: Callable[[int], float],
    warps: Tensor | None,
) -> float:
    """One epoch over uint8 ``images`` in random order, each through its own of ``warps``; the mean loss."""
    model.train()
    order = torch.randperm(len(images)).to(images.device)
    loss_sum = torch.zeros((), device=images.device)
    for step, start in enumerate(range(0, len(order), batch_size)):
        chosen = order[start : start + batch_size]
        batch = images[chosen].float()
        batch = batch.unsqueeze(1) if warps is None else warp(batch, warps[start : start + batch_size])
        batch.sub_(255 * mean).div_(255 * std)
        for group in optimizer.param_groups:
            group["lr"] = lr_at(step)
        loss = loss_function(model(batch), labels[chosen])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        loss_sum += loss.detach() * len(chosen)
    return loss_sum.item() / len(images)
