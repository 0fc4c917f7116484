"""The one training loop and the one evaluation; only the loop changes the training position.

Knows neither console, files nor profiler: what it does it tells to callbacks.
"""

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import islice

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from mnist_accel.data.batches import Selection, TestBatches, TrainBatches, background_of
from mnist_accel.errors import Interrupted, TrainingFailed
from mnist_accel.machine.runtime import synchronised_clock
from mnist_accel.models.layers import logits_over_shifts
from mnist_accel.seeding import derive_seed
from mnist_accel.training.exchange import Patience
from mnist_accel.training.objective import Objective
from mnist_accel.training.optim import WeightAverage
from mnist_accel.training.state import (
    BadLoss,
    Callbacks,
    EpochStats,
    Position,
    Positive,
    Profiler,
    StepFigures,
    StepInfo,
    Stepper,
    Unprofiled,
)
from mnist_accel.training.warm_up import undone


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
class Loop:
    """Trains from ``position`` on, and scores the network after every epoch.

    Saving (``on_save``, on every rank) comes after each ``save_every`` steps (0: never), at each epoch's end before it
    is scored, and before Interrupted is raised because some rank was asked to stop. At the end the network has the
    weights of the last evaluation, the moving average if there is one.
    """

    model: nn.Module  # without DDP around it
    stepper: Stepper
    train_batches: TrainBatches
    test_batches: TestBatches
    objective: Objective
    accelerator: Accelerator
    average: WeightAverage | None
    position: Position
    epochs: int
    seed: int
    lr_at: Callable[[int], float]  # by optimizer step, from 0
    test_shifts: int = 0
    dry_run: bool = False
    save_every: int = 0
    callbacks: Callbacks = field(default_factory=Callbacks)
    profiler: Profiler = field(default_factory=Unprofiled)
    patience: Patience = field(default_factory=Patience)
    logits: list[Tensor] = field(default_factory=list)  # of this rank's share of the last evaluation, batch by batch

    def run(self) -> None:
        with self.profiler:
            while not self.is_over:
                self.train_epoch()
                self.score_epoch()

    @property
    def last_epoch(self) -> int:
        return 0 if self.dry_run else self.epochs - 1

    @property
    def is_over(self) -> bool:
        return self.position.epoch > self.last_epoch

    def warm_up(self, optimizer: torch.optim.Optimizer) -> float:
        """Does what only the first steps do, and takes them back. The seconds that it took."""
        started = self.clock()
        with undone(self.model, optimizer, self.accelerator, self.average):
            self.model.train()
            chosen = next(self.train_batches.selections(self.position.epoch))
            self.stepper.warm_up(chosen, self.dropout_seed(0))
            evaluate(
                self.model,
                self.test_batches,
                self.objective,
                self.accelerator,
                dry_run=True,
                patience=self.patience,
                test_shifts=self.test_shifts,
            )
        return self.clock() - started

    def train_epoch(self) -> None:
        """All that is left of the epoch's steps: none, where a run goes on that was stopped before the scoring."""
        position = self.position
        self.model.train()
        if position.step == 0:
            position.correct = 0
        started = self.clock()
        selections = self.train_batches.selections(position.epoch, position.step, self.profiler.phase)
        for chosen in islice(selections, self.steps_per_epoch - position.step):
            saves = self.save_every > 0 and (self.global_step + 1) % self.save_every == 0
            figures = self.step(chosen, read=saves or position.step + 1 == self.steps_per_epoch)
            position.step += 1
            position.images += chosen.global_count
            position.loss_sum = figures.loss_sum
            self.count(figures.correct)
            info = StepInfo(position.epoch + 1, position.step, self.steps_per_epoch, figures.loss, chosen.global_count)
            self.callbacks.on_step(info)
            position.seconds -= self.profiler.after_step(info)
            if figures.stop_signal or saves:
                position.seconds += self.clock() - started
                self.save()
                if figures.stop_signal:
                    raise Interrupted(figures.stop_signal)
                started = self.clock()
        position.seconds += self.clock() - started
        self.save()

    def step(self, chosen: Selection, read: bool) -> StepFigures:
        position = self.position
        try:
            return self.stepper.step(
                chosen,
                position.loss_sum,
                self.lr_at(self.global_step),
                self.dropout_seed(self.global_step),
                self.callbacks.stop_signal(),
                read,
            )
        except BadLoss as bad:
            position.step -= bad.steps_back
            position.images = position.step * self.train_batches.batch_size  # an epoch's last step comes after these
            position.loss_sum = bad.loss_sum
            self.count(bad.correct)
            raise TrainingFailed(
                f"loss is {bad.loss} at epoch {position.epoch + 1}, step {position.step + 1}; the weights were left as "
                f"they were before it. Try a smaller lr than {self.lr_at(self.global_step):g}, or clip_norm=1"
            ) from None

    def count(self, correct: int) -> None:
        if self.position.correct is not None:
            self.position.correct += correct

    def score_epoch(self) -> None:
        """Scores the network, and begins the next epoch."""
        position, average = self.position, self.average
        started = self.clock()
        with average.in_place(restore=position.epoch < self.last_epoch) if average else nullcontext():
            if average:  # of statistics that each rank took for itself; the model's own are equal since the save
                self.share_buffers()
            score = evaluate(
                self.model,
                self.test_batches,
                self.objective,
                self.accelerator,
                self.dry_run,
                self.patience,
                keep=self.logits if position.epoch == self.last_epoch else None,
                test_shifts=self.test_shifts,
            )
        lr = self.lr_at(self.global_step - 1)
        if not math.isfinite(score.loss):
            raise TrainingFailed(
                f"test loss is {score.loss} after epoch {position.epoch + 1}. Try a smaller lr than {lr:g}"
            )
        stats = EpochStats(
            epoch=position.epoch + 1,
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
            eval_seconds=self.clock() - started,
            train_accuracy=None if position.correct is None else 100 * position.correct / position.images,
        )
        position.history.append(stats)
        position.epoch += 1
        position.step, position.images, position.correct = 0, 0, 0
        position.loss_sum, position.seconds = 0.0, 0.0
        self.callbacks.on_epoch(stats)

    def save(self) -> None:
        self.share_buffers()
        self.callbacks.on_save(self.position)

    @torch.no_grad()
    def share_buffers(self) -> None:
        """Batch-norm statistics differ between ranks after training; rank 0's are evaluated and saved."""
        if self.accelerator.num_processes > 1:
            for buffer in self.model.buffers():
                self.patience.wait(torch.distributed.broadcast(buffer, src=0, async_op=True), self.accelerator.device)

    @property
    def steps_per_epoch(self) -> int:
        return 1 if self.dry_run else self.train_batches.steps_per_epoch

    @property
    def global_step(self) -> int:
        """Of the coming step, from 0."""
        return self.position.epoch * self.train_batches.steps_per_epoch + self.position.step

    def dropout_seed(self, global_step: int) -> int:
        """From (seed, step, rank), so that no random state needs saving."""
        return derive_seed(self.seed, "dropout", global_step, self.accelerator.process_index)

    def clock(self) -> float:
        return synchronised_clock(self.accelerator.device)


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    batches: TestBatches,
    objective: Objective,
    accelerator: Accelerator,
    dry_run: bool = False,
    patience: Patience | None = None,
    keep: list[Tensor] | None = None,
    test_shifts: int = 0,
) -> Score:
    """Every image of every rank's share exactly once, summed over ranks in one go. ``model`` without DDP around it.

    ``keep`` gets this rank's logits, batch by batch; with ``test_shifts`` each is the mean of five."""
    model.eval()
    device, background = accelerator.device, background_of(batches.mean, batches.std)
    correct, hits, said_yes, is_yes = (torch.zeros((), dtype=torch.int64, device=device) for _ in range(4))
    loss = torch.zeros((), dtype=torch.float64, device=device)
    total = 0
    for batch in islice(batches, 1 if dry_run else None):
        logits = logits_over_shifts(model, batch.images, test_shifts, background)
        loss += objective.loss_sum(logits, batch.labels)
        predictions, targets = objective.predictions(logits), objective.targets(batch.labels)
        correct += (predictions == targets).sum()
        total += batch.counted
        if keep is not None:
            keep.append(logits)
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
