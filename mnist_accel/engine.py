"""The one training loop and the one evaluation. Knows neither console nor files: what it does it tells to callbacks."""

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import islice

import torch
from accelerate import Accelerator
from torch import nn

from mnist_accel.data.batches import Batch, TestBatches, TrainBatches
from mnist_accel.errors import TrainingFailed
from mnist_accel.objective import Objective
from mnist_accel.optim import WeightAverage
from mnist_accel.results import EpochStats, Positive
from mnist_accel.seeding import derive_seed, seed_device


@dataclass(frozen=True)
class StepInfo:
    """A finished optimizer step, over all ranks."""

    epoch: int  # from 1
    step: int  # from 1, within the epoch
    steps_per_epoch: int
    loss: float  # mean over the images of this step
    images: int


@dataclass(frozen=True)
class Score:
    """An evaluation over all ranks."""

    correct: int
    total: int
    loss: float
    positive: Positive | None

    @property
    def accuracy(self) -> float:
        return 100 * self.correct / self.total


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    train_batches: TrainBatches,
    test_batches: TestBatches,
    objective: Objective,
    accelerator: Accelerator,
    *,
    epochs: int,
    lr_at: Callable[[int], float],
    seed: int,
    clip_norm: float = 0.0,
    average: WeightAverage | None = None,
    dry_run: bool = False,
    on_step: Callable[[StepInfo], None] = lambda info: None,
    on_epoch: Callable[[EpochStats], None] = lambda stats: None,
    profiler: AbstractContextManager[object] | None = None,
) -> list[EpochStats]:
    """Trains ``model`` (as Accelerate prepared it) and scores it after every epoch.

    Leaves the model with the weights of the last evaluation, the moving average if there is one.
    """
    history: list[EpochStats] = []
    steps_per_epoch = train_batches.steps_per_epoch
    if accelerator.scaler is None:
        # Accelerate's wrapper searches the disk for an optional package twice a step: 0.3 ms of onepoch's 3.
        # All that it adds here is the gradient scaling of fp16.
        optimizer = getattr(optimizer, "optimizer", optimizer)
    with profiler or nullcontext():
        for epoch in range(1 if dry_run else epochs):
            started = synchronised_clock(accelerator.device)
            loss_sum = 0.0
            images = 0
            model.train()
            for step, batch in enumerate(islice(train_batches.epoch(epoch), 1 if dry_run else None)):
                global_step = epoch * steps_per_epoch + step
                lr = lr_at(global_step)
                for group in optimizer.param_groups:
                    group["lr"] = lr
                # From (seed, step, rank), so that no random state needs saving.
                seed_device(accelerator.device, derive_seed(seed, "dropout", global_step, accelerator.process_index))
                loss = train_step(model, optimizer, batch, objective, accelerator, clip_norm, epoch, step)
                if average:
                    average.update()
                loss_sum += loss * batch.global_count
                images += batch.global_count
                on_step(StepInfo(epoch + 1, step + 1, steps_per_epoch, loss, batch.global_count))
            trained = synchronised_clock(accelerator.device)
            last = epoch + 1 == epochs or dry_run
            with average.in_place(restore=not last) if average else nullcontext():
                share_buffers(model, accelerator)
                score = evaluate(accelerator.unwrap_model(model), test_batches, objective, accelerator, dry_run)
            if not math.isfinite(score.loss):
                raise TrainingFailed(f"test loss is {score.loss} after epoch {epoch + 1}. Try a smaller lr than {lr:g}")
            stats = EpochStats(
                epoch=epoch + 1,
                steps=step + 1,
                images=images,
                lr=lr,
                train_loss=loss_sum / images,
                test_loss=score.loss,
                accuracy=score.accuracy,
                correct=score.correct,
                total=score.total,
                positive=score.positive,
                train_seconds=trained - started,
                eval_seconds=synchronised_clock(accelerator.device) - trained,
            )
            history.append(stats)
            on_epoch(stats)
    return history


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    objective: Objective,
    accelerator: Accelerator,
    clip_norm: float,
    epoch: int,
    step: int,
) -> float:
    """One optimizer step; the mean loss over the global batch. A non-finite loss never reaches the weights."""
    local_sum = objective.loss_sum(model(batch.images), batch.labels)
    if batch.counted == 0:
        local_sum = local_sum * 0
    # DDP averages gradients over ranks; with unequal shares this factor makes that average the exact gradient.
    loss = local_sum * (accelerator.num_processes / batch.global_count)
    mean_loss = accelerator.reduce(local_sum.detach(), "sum").item() / batch.global_count
    if not math.isfinite(mean_loss):
        raise TrainingFailed(
            f"loss is {mean_loss} at epoch {epoch + 1}, step {step + 1}; the weights were left as they were before it. "
            f"Try a smaller lr than {optimizer.param_groups[0]['lr']:g}, or clip_norm=1"
        )
    accelerator.backward(loss)
    if clip_norm:
        accelerator.clip_grad_norm_(model.parameters(), clip_norm)
    optimizer.step()
    optimizer.zero_grad()
    return mean_loss


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    batches: TestBatches,
    objective: Objective,
    accelerator: Accelerator,
    dry_run: bool = False,
) -> Score:
    """Every image of every rank's share exactly once, summed over ranks in one go. ``model`` without DDP around it."""
    model.eval()
    device = accelerator.device
    correct, hits, said_yes, is_yes = (torch.zeros((), dtype=torch.int64, device=device) for _ in range(4))
    loss = torch.zeros((), dtype=torch.float64, device=device)
    total = 0
    for batch in islice(batches, 1 if dry_run else None):
        logits = model(batch.images)
        loss += objective.loss_sum(logits, batch.labels)
        predictions, targets = objective.predictions(logits), objective.targets(batch.labels)
        correct += (predictions == targets).sum()
        total += batch.counted
        if objective.positive_class is not None:
            hits += (predictions & targets).sum()
            said_yes += predictions.sum()
            is_yes += targets.sum()
    counts = torch.stack([correct, hits, said_yes, is_yes, torch.full_like(correct, total)])
    correct_, hits_, said_yes_, is_yes_, total_ = accelerator.reduce(counts, "sum").tolist()
    mean_loss = accelerator.reduce(loss, "sum").item() / total_
    positive = None if objective.positive_class is None else Positive.from_counts(hits_, said_yes_, is_yes_)
    return Score(correct_, total_, mean_loss, positive)


@torch.no_grad()
def share_buffers(model: nn.Module, accelerator: Accelerator) -> None:
    """Batch-norm statistics differ between ranks after training; rank 0's are the ones that are evaluated and saved."""
    if accelerator.num_processes > 1:
        for buffer in model.buffers():
            torch.distributed.broadcast(buffer, src=0)


def synchronised_clock(device: torch.device) -> float:
    """A clock read only after the device has finished what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
