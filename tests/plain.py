"""What a recipe says, trained by torch's own means in one flat loop, to hold the program's own training against.

Nothing of ours in it but the networks, the seeds, the drawing of warps and the choice of held-out images.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mnist_accel.data.augment import draw_warps
from mnist_accel.data.dataset import Dataset, hold_out
from mnist_accel.models import build_model
from mnist_accel.recipe import Recipe
from mnist_accel.seeding import derive_seed


@dataclass
class Trained:
    weights: dict[str, Tensor]
    lrs: list[float] = field(default_factory=list)  # of every step
    train_losses: list[float] = field(default_factory=list)  # of every epoch
    train_accuracies: list[float] = field(default_factory=list)
    test_loss: float = 0.0
    correct: int = 0


def train(recipe: Recipe, data: Dataset, half: bool = False) -> Trained:
    """``half``: in bf16."""
    if recipe.validation:
        data = hold_out(data, recipe.validation)
    torch.manual_seed(derive_seed(recipe.seed, "weights"))
    model = build_model(recipe.model, recipe.dropout).to(memory_format=torch.channels_last)
    if recipe.first_filters == "whitening":
        whiten(model, (data.train_images[:500, None] / 255 - recipe.mean) / recipe.std)
    optimizer = optimizer_of(recipe, model)
    steps = -(-len(data.train_labels) // recipe.batch_size)
    average = {name: value.clone() for name, value in model.state_dict().items()}
    trained = Trained(model.state_dict())
    for epoch in range(recipe.epochs):
        model.train()
        generator = torch.Generator().manual_seed(derive_seed(recipe.seed, "order", epoch))
        order = torch.randperm(len(data.train_labels), generator=generator)
        warps = draw_warps(
            len(order),
            derive_seed(recipe.seed, "warp", epoch),
            rotation=recipe.rotation,
            translation=recipe.translation,
            scale=recipe.scale,
            shear=recipe.shear,
        )
        losses, told_rightly = [], 0
        for step in range(steps):
            mine = slice(step * recipe.batch_size, (step + 1) * recipe.batch_size)
            images = data.train_images[order[mine], None] / 255
            if warps is not None:
                grid = F.affine_grid(warps[mine], images.shape, align_corners=False)
                images = F.grid_sample(images, grid, align_corners=False)
            images = (images - recipe.mean) / recipe.std
            trained.lrs.append(lr_at(recipe, epoch * steps + step, steps))
            for group in optimizer.param_groups:
                group["lr"] = trained.lrs[-1]
            torch.manual_seed(derive_seed(recipe.seed, "dropout", epoch * steps + step, 0))
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                logits = model(images)
            loss = loss_of(recipe, recipe.label_smoothing)(logits.float(), data.train_labels[order[mine]])
            optimizer.zero_grad()
            loss.backward()
            if recipe.clip_norm:
                nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm)
            optimizer.step()
            decay = min(recipe.ema, len(trained.lrs) / (len(trained.lrs) + 10))
            for name, value in model.state_dict().items():
                average[name] = decay * average[name] + (1 - decay) * value if value.is_floating_point() else value
            losses += [loss.item()] * len(images)
            told_rightly += count_correct(recipe, logits, data.train_labels[order[mine]])
        trained.train_losses.append(sum(losses) / len(losses))
        trained.train_accuracies.append(100 * told_rightly / len(losses))
    model.load_state_dict(average)
    model.eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=half):
        logits = scored(recipe, model, data.test_images)
    trained.test_loss = loss_of(recipe, 0.0)(logits, data.test_labels).item()
    trained.correct = count_correct(recipe, logits, data.test_labels)
    return trained


def scored(recipe: Recipe, model: nn.Module, images: Tensor) -> Tensor:
    """The mean over what five windows of a framed image show: the middle one and those ``test_shifts`` beside it."""
    frame = recipe.test_shifts
    framed = torch.zeros(len(images), 1, 28 + 2 * frame, 28 + 2 * frame)
    framed[:, 0, frame : frame + 28, frame : frame + 28] = images
    middle = (frame, frame)
    corners = {middle, (0, frame), (2 * frame, frame), (frame, 0), (frame, 2 * frame)}  # one, without a frame
    windows = [framed[:, :, y : y + 28, x : x + 28] for y, x in corners]
    return torch.stack([model((window / 255 - recipe.mean) / recipe.std).float() for window in windows]).mean(0)


def count_correct(recipe: Recipe, logits: Tensor, labels: Tensor) -> int:
    answers = logits[:, 0] > 0 if recipe.loss == "binary" else logits.argmax(1)
    right = labels == recipe.positive_class if recipe.loss == "binary" else labels
    return int((answers == right).sum())


def optimizer_of(recipe: Recipe, model: nn.Module) -> torch.optim.Optimizer:
    own: dict[str, Any] = {"lr": recipe.lr, "weight_decay": recipe.weight_decay}
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(model.parameters(), momentum=recipe.momentum, nesterov=recipe.nesterov, **own)
    own["betas"] = (recipe.beta1, recipe.beta2)
    return {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[recipe.optimizer](model.parameters(), **own)


def whiten(model: nn.Module, images: Tensor) -> None:
    """Gives the first convolution, 3×3 at stride 1, filters whose outputs have variance 1 and do not correlate, and
    the negatives of those."""
    first = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    patches = images.unfold(2, 3, 1).unfold(3, 3, 1).reshape(-1, 9).double().numpy()
    _, singular, directions = np.linalg.svd(patches - patches.mean(0), full_matrices=False)
    filters = []
    for direction, value in zip(directions, singular, strict=True):
        direction *= np.sign(direction[np.abs(direction).argmax()])
        filters.append(direction / np.sqrt(value**2 / len(patches) + 0.01))
    count = first.out_channels
    half = filters[: (count + 1) // 2]
    first.weight.data.copy_(torch.tensor(np.array([*half, *(-one for one in half)])[:count]).view(first.weight.shape))
    if first.bias is not None:
        first.bias.data.copy_(-first.weight.data.flatten(1) @ torch.tensor(patches.mean(0)).float())
    first.requires_grad_(False)


def loss_of(recipe: Recipe, smoothing: float) -> Callable[[Tensor, Tensor], Tensor]:
    if recipe.loss == "binary":
        return lambda logits, labels: F.binary_cross_entropy_with_logits(
            logits[:, 0], (labels == recipe.positive_class).float()
        )
    return lambda logits, labels: F.cross_entropy(logits, labels, label_smoothing=smoothing)


def lr_at(recipe: Recipe, step: int, steps_per_epoch: int) -> float:
    """In closed form; one cycle's cosines are tests/test_optim.py's."""
    total = recipe.epochs * steps_per_epoch
    if recipe.schedule == "linear":
        return recipe.lr * float(np.interp(step, [-1, recipe.warmup * total - 1, total], [0, 1, 0]))
    if recipe.schedule == "step":
        return recipe.lr * recipe.step_factor ** (step // (recipe.step_epochs * steps_per_epoch))
    assert recipe.schedule == "constant"
    return recipe.lr
