"""Makes the ordinary training step: the loss of every step is looked at before the weights move."""

import math
from dataclasses import dataclass, field

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.autograd.graph import _engine_run_backward

from mnist_accel.data.batches import Batch, Selection, TrainBatches
from mnist_accel.models.layers import count_images
from mnist_accel.phase import Phase, unmarked
from mnist_accel.seeding import seed_device
from mnist_accel.training.exchange import Exchange, Patience
from mnist_accel.training.objective import Objective, loss_and_correct
from mnist_accel.training.optim import WeightAverage
from mnist_accel.training.state import BadLoss, StepFigures
from mnist_accel.training.warm_up import WARM_UP_STEPS


@dataclass
class EagerStep:
    """A ``Stepper`` for every device and any number of processes."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    batches: TrainBatches
    objective: Objective
    accelerator: Accelerator
    clip_norm: float
    average: WeightAverage | None
    phase: Phase = unmarked
    patience: Patience = field(default_factory=Patience)

    def __post_init__(self) -> None:
        self.exchange = Exchange(self.model, self.patience, self.phase)

    def step(
        self, chosen: Selection, loss_sum: float, lr: float, dropout_seed: int, stop_signal: int, read: bool
    ) -> StepFigures:
        batch = self.batches.load(chosen, self.phase)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        seed_device(self.accelerator.device, dropout_seed)
        self.find_gradients(batch, stop_signal)
        with self.phase("loss" if self.exchange.alone else "all-reduce"):
            batch_loss_sum, correct, stop_signal = self.exchange.heard()
        loss = batch_loss_sum / batch.global_count
        if not math.isfinite(loss):
            raise BadLoss(loss, loss_sum)
        self.update()
        return StepFigures(loss, loss_sum + loss * batch.global_count, correct, stop_signal)

    def find_gradients(self, batch: Batch, stop_signal: int) -> None:
        """Forward and backward; on their way the ranks exchange gradients, losses and signals."""
        if batch.global_count < self.accelerator.num_processes:  # some ranks have no share
            count_images(self.model, batch.counted)
        with self.phase("forward"):
            logits = self.model(batch.images)
        with self.phase("loss"):
            local_sum = self.objective.loss_sum(logits, batch.labels)
            figures = loss_and_correct(self.objective, local_sum, logits, batch.labels)
            if batch.counted == 0:
                local_sum, figures = local_sum * 0, figures * 0
                count_images(self.model, 1)
            self.exchange.tell(figures, stop_signal)
        with self.phase("backward"):
            # Over the images of all ranks: added up, the gradients of unequal shares are those of the whole batch.
            backward(local_sum, 1 / batch.global_count, self.accelerator)

    def update(self) -> None:
        with self.phase("optimizer"):
            if self.clip_norm:
                self.accelerator.clip_grad_norm_(self.model.parameters(), self.clip_norm)
            self.optimizer.step()
            self.optimizer.zero_grad()
            if self.average:
                self.average.update()

    def warm_up(self, chosen: Selection, dropout_seed: int) -> None:
        for _ in range(WARM_UP_STEPS):
            try:
                self.step(chosen, 0.0, 0.0, dropout_seed, stop_signal=0, read=True)
            except BadLoss:  # the first step will say it as well
                return


def backward(loss_sum: Tensor, share: float, accelerator: Accelerator) -> None:
    """Of ``share`` times the loss. Accelerate's own divides by the steps between two updates, which are one here."""
    if accelerator.scaler is not None:
        loss_sum = accelerator.scaler.scale(loss_sum)
    # The same gradients from three kernels fewer than multiplying the loss, whose gradient is multiplied again.
    first = torch.full_like(loss_sum, share)
    # What ``loss_sum.backward(first)`` comes down to, but for importing sympy, 0.3 s of a start, to compare two shapes.
    _engine_run_backward((loss_sum,), (first,), False, False, (), allow_unreachable=True, accumulate_grad=True)
