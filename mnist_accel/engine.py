"""The one training loop and the one evaluation. Knows neither console nor files: what it does it tells to callbacks."""

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import islice

import torch
from accelerate import Accelerator
from torch import nn

from mnist_accel.data.batches import Batch, Selection, TestBatches, TrainBatches
from mnist_accel.errors import Interrupted, PeerLost, TrainingFailed
from mnist_accel.exchange import Exchange, Patience
from mnist_accel.objective import Objective
from mnist_accel.optim import WeightAverage
from mnist_accel.phase import Phase, unmarked
from mnist_accel.results import EpochStats, Positive
from mnist_accel.seeding import derive_seed, seed_device
from mnist_accel.stepping import WARM_UP_STEPS, BuildStepper, Position, StepInfo, backward, not_finite, undone
from mnist_accel.syncbn import count_images


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


@dataclass
class EachStep:
    """The ordinary way: the loss of every step is looked at before the weights move."""

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
        self, chosen: Selection, position: Position, lr: float, dropout_seed: int, stop_signal: int, read: bool
    ) -> tuple[float, int]:
        batch = self.batches.load(chosen, self.phase)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        seed_device(self.accelerator.device, dropout_seed)
        loss, signal_number = train_step(
            self.model,
            self.optimizer,
            batch,
            self.objective,
            self.accelerator,
            self.clip_norm,
            (position.epoch, position.step),
            stop_signal,
            self.exchange,
            self.phase,
        )
        if self.average:
            with self.phase("optimizer"):
                self.average.update()
        position.loss_sum += loss * batch.global_count
        return loss, signal_number

    def warm_up(self, chosen: Selection, dropout_seed: int) -> None:
        for _ in range(WARM_UP_STEPS):
            try:
                self.step(chosen, Position(), 0.0, dropout_seed, stop_signal=0, read=True)
            except PeerLost:
                raise
            except TrainingFailed:  # a bad loss, which the first step will say as well
                return


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
    position: Position | None = None,
    save_every: int = 0,
    stop_signal: Callable[[], int] = lambda: 0,
    warm_up: bool = False,
    on_warm_up: Callable[[float], None] = lambda seconds: None,
    on_save: Callable[[Position], None] = lambda position: None,
    on_step: Callable[[StepInfo], None] = lambda info: None,
    on_epoch: Callable[[EpochStats], None] = lambda stats: None,
    build_stepper: BuildStepper = EachStep,
    profiler: AbstractContextManager[object] | None = None,
    patience: Patience | None = None,
    phase: Phase = unmarked,
) -> list[EpochStats]:
    """Trains ``model`` (as Accelerate prepared it) from ``position`` on, and scores it after every epoch.

    ``on_save`` is called on every rank after each ``save_every`` steps (0: never), at each epoch's end before it is
    scored, and before Interrupted is raised because some rank's ``stop_signal`` was not 0.
    With ``warm_up`` what only the first steps do is done before any clock starts, and ``on_warm_up`` gets its seconds.
    Leaves the model with the weights of the last evaluation, the moving average if there is one.
    """
    position = position or Position()
    patience = patience or Patience()
    if accelerator.scaler is None:
        # Accelerate's wrapper searches the disk for an optional package twice a step: 0.3 ms of onepoch's 3.
        # All that it adds here is the gradient scaling of fp16.
        optimizer = getattr(optimizer, "optimizer", optimizer)
    stepper = build_stepper(model, optimizer, train_batches, objective, accelerator, clip_norm, average)
    device = accelerator.device
    steps_per_epoch = 1 if dry_run else train_batches.steps_per_epoch

    def save() -> None:
        share_buffers(model, accelerator, patience)
        on_save(position)

    epochs = 1 if dry_run else epochs
    if warm_up and position.epoch < epochs:
        started = synchronised_clock(device)
        with undone(bare(model), optimizer, accelerator, average):
            model.train()
            dropout_seed = derive_seed(seed, "dropout", 0, accelerator.process_index)
            stepper.warm_up(next(train_batches.selections(position.epoch)), dropout_seed)
            evaluate(bare(model), test_batches, objective, accelerator, dry_run=True)
        on_warm_up(synchronised_clock(device) - started)
    with profiler or nullcontext():
        while position.epoch < epochs:
            epoch = position.epoch
            model.train()
            started = synchronised_clock(device)
            selections = train_batches.selections(epoch, position.step, phase)
            for step, chosen in zip(range(position.step, steps_per_epoch), selections, strict=False):
                global_step = epoch * train_batches.steps_per_epoch + step
                saves = save_every > 0 and (global_step + 1) % save_every == 0
                # From (seed, step, rank), so that no random state needs saving.
                dropout_seed = derive_seed(seed, "dropout", global_step, accelerator.process_index)
                read = saves or step + 1 == steps_per_epoch
                loss, signal_number = stepper.step(
                    chosen, position, lr_at(global_step), dropout_seed, stop_signal(), read
                )
                position.step = step + 1
                position.images += chosen.global_count
                on_step(StepInfo(epoch + 1, step + 1, steps_per_epoch, loss, chosen.global_count))
                if signal_number or saves:
                    position.seconds += synchronised_clock(device) - started
                    save()
                    if signal_number:
                        raise Interrupted(signal_number)
                    started = synchronised_clock(device)
            position.seconds += synchronised_clock(device) - started
            save()
            last = epoch + 1 == epochs
            scored = synchronised_clock(device)
            with average.in_place(restore=not last) if average else nullcontext():
                if average:  # of statistics that each rank took for itself; the model's own are equal since the save
                    share_buffers(model, accelerator, patience)
                score = evaluate(bare(model), test_batches, objective, accelerator, dry_run, patience)
            lr = lr_at(epoch * train_batches.steps_per_epoch + position.step - 1)
            if not math.isfinite(score.loss):
                raise TrainingFailed(f"test loss is {score.loss} after epoch {epoch + 1}. Try a smaller lr than {lr:g}")
            stats = EpochStats(
                epoch=epoch + 1,
                steps=position.step,
                images=position.images,
                lr=lr,
                train_loss=position.loss_sum / position.images,
                test_loss=score.loss,
                accuracy=score.accuracy,
                correct=score.correct,
                total=score.total,
                positive=score.positive,
                train_seconds=position.seconds,
                eval_seconds=synchronised_clock(device) - scored,
            )
            position.history.append(stats)
            position.epoch, position.step = epoch + 1, 0
            position.loss_sum, position.images, position.seconds = 0.0, 0, 0.0
            on_epoch(stats)
    return position.history


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    objective: Objective,
    accelerator: Accelerator,
    clip_norm: float,
    place: tuple[int, int],
    stop_signal: int,
    exchange: Exchange,
    phase: Phase = unmarked,
) -> tuple[float, int]:
    """One optimizer step: the mean loss over the global batch, and the signal that any rank was asked to stop by.

    A non-finite loss never reaches the weights.
    """
    if batch.global_count < accelerator.num_processes:  # some ranks have no share
        count_images(model, batch.counted)
    with phase("forward"):
        logits = model(batch.images)
    with phase("loss"):
        local_sum = objective.loss_sum(logits, batch.labels)
        if batch.counted == 0:
            local_sum = local_sum * 0
            count_images(model, 1)
        exchange.tell(local_sum.detach(), stop_signal)
    with phase("backward"):
        # Over the images of all ranks: added up, the gradients of unequal shares are those of the whole batch.
        backward(local_sum, 1 / batch.global_count, accelerator)
    with phase("loss" if exchange.alone else "all-reduce"):
        loss_sum, stop_signal = exchange.heard()
    mean_loss = loss_sum / batch.global_count
    if not math.isfinite(mean_loss):
        raise not_finite(mean_loss, *place, optimizer.param_groups[0]["lr"])
    with phase("optimizer"):
        if clip_norm:
            accelerator.clip_grad_norm_(model.parameters(), clip_norm)
        optimizer.step()
        optimizer.zero_grad()
    return mean_loss, stop_signal


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    batches: TestBatches,
    objective: Objective,
    accelerator: Accelerator,
    dry_run: bool = False,
    patience: Patience | None = None,
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
    sums = torch.cat([counts.double(), loss.view(1)])  # doubles hold whole numbers exactly, up to 9e15
    if accelerator.num_processes > 1:
        (patience or Patience()).wait(torch.distributed.all_reduce(sums, async_op=True), device)
    *counted, loss_sum = sums.tolist()
    correct_, hits_, said_yes_, is_yes_, total_ = map(int, counted)
    mean_loss = loss_sum / total_
    positive = None if objective.positive_class is None else Positive.from_counts(hits_, said_yes_, is_yes_)
    return Score(correct_, total_, mean_loss, positive)


def bare(model: nn.Module) -> nn.Module:
    """Without DDP around it. Accelerate's way imports torch's compiler, 1.2 s, to ask whether it was used."""
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model


@torch.no_grad()
def share_buffers(model: nn.Module, accelerator: Accelerator, patience: Patience) -> None:
    """Batch-norm statistics differ between ranks after training; rank 0's are the ones that are evaluated and saved."""
    if accelerator.num_processes > 1:
        for buffer in model.buffers():
            patience.wait(torch.distributed.broadcast(buffer, src=0, async_op=True), accelerator.device)


def synchronised_clock(device: torch.device) -> float:
    """A clock read only after the device has finished what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
