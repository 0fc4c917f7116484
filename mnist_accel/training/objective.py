"""Losses and predictions: ten classes by cross-entropy, or one class against the rest by the binary loss."""

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


class Objective(Protocol):
    @property
    def positive_class(self) -> int | None: ...

    def loss_sum(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Summed, not averaged: only the caller knows over how many images of how many ranks to average."""

    def predictions(self, logits: Tensor) -> Tensor: ...

    def targets(self, labels: Tensor) -> Tensor: ...


@torch.no_grad()
def loss_and_correct(objective: Objective, loss_sum: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
    """Both in one tensor of two, in the loss's type: whole numbers up to 2**24 are exact in it."""
    right = objective.predictions(logits) == objective.targets(labels)
    return torch.stack((loss_sum, right.sum(dtype=loss_sum.dtype)))


class TenClasses:
    positive_class: int | None = None

    def __init__(self, label_smoothing: float = 0.0):
        self.label_smoothing = label_smoothing

    def loss_sum(self, logits: Tensor, labels: Tensor) -> Tensor:
        # Smoothing is a way of training; a test loss with it would not compare with anyone's.
        smoothing = self.label_smoothing if torch.is_grad_enabled() else 0.0
        return F.cross_entropy(logits, labels, reduction="sum", label_smoothing=smoothing)

    def predictions(self, logits: Tensor) -> Tensor:
        return logits.argmax(dim=1)

    def targets(self, labels: Tensor) -> Tensor:
        return labels


class OneAgainstRest:
    """One logit; its sigmoid above one half, so the logit above zero, says yes."""

    def __init__(self, positive_class: int):
        self.positive_class = positive_class

    def loss_sum(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(logits.squeeze(1), self.targets(labels).to(logits), reduction="sum")

    def predictions(self, logits: Tensor) -> Tensor:
        return logits.squeeze(1) > 0

    def targets(self, labels: Tensor) -> Tensor:
        return labels.eq(self.positive_class)


def build_objective(loss: str, label_smoothing: float, positive_class: int) -> Objective:
    return OneAgainstRest(positive_class) if loss == "binary" else TenClasses(label_smoothing)
