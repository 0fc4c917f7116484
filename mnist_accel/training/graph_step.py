"""Makes the training step of device work alone, so that a GPU replays the whole of it as one captured CUDA graph.

Index, normalise, augment, forward, loss, backward, clip, optimizer and moving average are one function of tensors that
never asks the device anything. A non-finite loss is therefore dealt with on the device: from then on no update is
applied. It is found out at the next reading, which comes at least every ``READ_EVERY`` steps, and always before a
checkpoint, an evaluation and an interrupt's end.

For one process on a GPU that holds the images, in fp32 or bf16. The ordinary step stays where there are several
processes (their sums would have to be in the graph), where fp16 is scaled (its scale changes with what is found), where
images come from host memory, and on CPUs, which have no graphs: there the same function only runs in tests.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from mnist_accel.data.batches import ImageStore, Selection, TrainBatches
from mnist_accel.machine.runtime import is_out_of_memory
from mnist_accel.phase import Phase, unmarked
from mnist_accel.seeding import generator_of, seed_device
from mnist_accel.training.eager_step import backward
from mnist_accel.training.objective import Objective, loss_and_correct
from mnist_accel.training.optim import WeightAverage
from mnist_accel.training.state import BadLoss, StepFigures
from mnist_accel.training.warm_up import WARM_UP_STEPS, undone

READ_EVERY = 50  # steps that a bad loss may stay unseen; a reading waits for the device, which costs about a step


def can_capture(accelerator: Accelerator, store: ImageStore) -> bool:
    return (
        accelerator.device.type == "cuda"
        and accelerator.num_processes == 1
        and accelerator.scaler is None
        and store.resident
    )


@dataclass
class GraphStep:
    """A ``Stepper``: puts steps on the device's queue and reads what came of them now and then.

    Takes the optimizer over: its learning rate becomes a tensor, and ``found_inf`` masks its updates.
    ``tell`` gets a line where a capture failed; while ``eager_now``, steps run uncaptured and each loss is read.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    batches: TrainBatches
    objective: Objective
    accelerator: Accelerator
    clip_norm: float
    average: WeightAverage | None
    tell: Callable[[str], None] = lambda problem: None
    eager_now: Callable[[], bool] = lambda: False
    phase: Phase = unmarked

    def __post_init__(self) -> None:
        self.device = self.accelerator.device
        self.captures = self.device.type == "cuda"
        self.replay: Callable[[], None] | None = None
        self.fixed: Selection | None = None  # where the captured step finds its images
        self.captured: Tensor | None = None  # and where it leaves its loss and correct answers
        self.loss = math.nan
        # Of each unread step: the summed loss and the correct answers.
        self.figures = torch.zeros(READ_EVERY, 2, dtype=torch.float64, device=self.device)
        self.unread: list[int] = []  # images of each step since the last reading

        # Fused optimizers skip an update where this is 1, and take back what they counted: made for fp16's scaler, and
        # so is the one kernel that sets it.
        self.found_inf = torch.zeros((), device=self.device)
        self.unscaled = torch.ones((), device=self.device)
        self.optimizer.found_inf = self.found_inf  # type: ignore[attr-defined]
        # CUDA's fused kernels read a float; those for the CPU take it as the double that the ordinary step gives.
        kind = torch.float32 if self.device.type == "cuda" else torch.float64
        self.lr = torch.zeros((), dtype=kind, device=self.device)
        self.average_weight = torch.zeros((), device=self.device)
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr

    def step(
        self, chosen: Selection, loss_sum: float, lr: float, dropout_seed: int, stop_signal: int, read: bool
    ) -> StepFigures:
        eager = self.eager_now()
        self.lr.fill_(lr)
        if self.average:
            self.average_weight.fill_(self.average.next_weight())
        self.figures[len(self.unread)].copy_(self.enqueue(chosen, dropout_seed, eager))
        self.unread.append(chosen.global_count)
        if read or stop_signal or eager or math.isnan(self.loss) or len(self.unread) >= READ_EVERY:
            loss_sum, correct = self.read(loss_sum)
            return StepFigures(self.loss, loss_sum, correct, stop_signal)
        return StepFigures(self.loss, loss_sum, 0, stop_signal)

    def enqueue(self, chosen: Selection, dropout_seed: int, eager: bool) -> Tensor:
        replay = None if eager else self.replay_of(chosen)
        # A replay copies seed and offset of the default generator to where its dropout kernels read them, and those
        # count on from there as uncaptured ones do (CUDAGraph::replay, CUDAGeneratorState::replay_prologue in torch):
        # seeded alike, both draw the same masks.
        seed_device(self.device, dropout_seed)
        if replay is None:
            return self.body(chosen)
        replay()
        assert self.captured is not None
        return self.captured

    def warm_up(self, chosen: Selection, dropout_seed: int) -> None:
        seed_device(self.device, dropout_seed)
        if self.replay_of(chosen) is None:
            self.try_out(self.body, chosen)

    def replay_of(self, chosen: Selection) -> Callable[[], None] | None:
        """What replays the captured step on these images. An epoch's last batch may be smaller, and a graph has one
        size."""
        if not self.captures or chosen.counted != self.batches.batch_size:
            return None
        self.place(chosen)
        self.replay = self.replay or self.try_capture()
        return self.replay

    def place(self, chosen: Selection) -> None:
        if self.fixed is None:
            warps = None if chosen.warps is None else chosen.warps.clone()
            self.fixed = replace(chosen, images=chosen.images.clone(), labels=chosen.labels.clone(), warps=warps)
            return
        self.fixed.images.copy_(chosen.images)
        self.fixed.labels.copy_(chosen.labels)
        if self.fixed.warps is not None and chosen.warps is not None:
            self.fixed.warps.copy_(chosen.warps)

    def body(self, chosen: Selection) -> Tensor:
        """All that one step does, without asking the device anything, and with nothing from the host that changes from
        step to step: only what these tensors hold. The summed loss and the correct answers."""
        batch = self.batches.load(chosen, self.phase)
        with self.phase("forward"):
            logits = self.model(batch.images)
        with self.phase("loss"):
            loss = self.objective.loss_sum(logits, batch.labels)
            self.mask_from(loss.detach())
            figures = loss_and_correct(self.objective, loss, logits, batch.labels)
        with self.phase("backward"):
            backward(loss, 1 / batch.global_count, self.accelerator)
        with self.phase("optimizer"):
            if self.clip_norm:
                self.accelerator.clip_grad_norm_(self.model.parameters(), self.clip_norm)
            self.optimizer.step()
            if self.average:
                self.average.update_unless(self.found_inf, self.average_weight)
            # Also where a capture needs it: gradients that are there already would be added to, not made by the graph.
            self.optimizer.zero_grad()
        return figures

    def mask_from(self, loss: Tensor) -> None:
        """From the first bad loss on everything is masked: the kernel sets ``found_inf``, and never takes it back."""
        torch._amp_foreach_non_finite_check_and_unscale_([loss], self.found_inf, self.unscaled)

    def read(self, loss_sum: float) -> tuple[float, int]:
        """Waits for the device. ``loss_sum`` with the losses of all steps since the last reading, and the correct
        answers of these."""
        before, correct = loss_sum, 0
        for index, (images, (loss, right)) in enumerate(zip(self.unread, self.figures.tolist(), strict=False)):
            if not math.isfinite(loss):
                bad = len(self.unread) - index
                if self.average:
                    self.average.steps -= bad
                raise BadLoss(loss, loss_sum, correct, steps_back=bad - 1)  # the step under way is not counted yet
            loss_sum += loss / images * images  # rounded as where each step is looked at
            correct += int(right)
        self.loss = (loss_sum - before) / sum(self.unread)
        self.unread.clear()
        return loss_sum, correct

    def try_capture(self) -> Callable[[], None] | None:
        try:
            return self.capture()
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            self.captures = False
            reason = (str(error) or type(error).__name__).splitlines()[0][:200]
            self.tell(f"the training step could not be captured as one CUDA graph ({reason}); it runs uncaptured")
            return None

    def capture(self) -> Callable[[], None]:
        """Records the step, which does not run it, and hands back what replays it."""
        assert self.fixed is not None
        # In older torch, a generator that was in a failed capture refuses to draw ever after.
        generator = generator_of(self.device)
        unharmed = generator.clone_state()
        main, side = torch.cuda.current_stream(self.device), torch.cuda.Stream(self.device)
        side.wait_stream(main)
        graph = torch.cuda.CUDAGraph()
        try:
            # Around torch's own, which does not leave the stream where a capture fails.
            with torch.cuda.stream(side):
                self.try_out(self.body, self.fixed)
                self.allow_capture(True)
                with torch.cuda.graph(graph, stream=side):
                    self.captured = self.body(self.fixed)
        except RuntimeError:
            generator.graphsafe_set_state(unharmed)
            self.optimizer.zero_grad()
            raise
        finally:
            self.allow_capture(False)
            main.wait_stream(side)
        return graph.replay

    def allow_capture(self, allowed: bool) -> None:
        """Adam asks for the word; for a fused one it changes nothing else. Given all the time, it warns."""
        for group in self.optimizer.param_groups:
            if "capturable" in group:
                group["capturable"] = allowed

    def try_out(self, body: Callable[[Selection], Tensor], chosen: Selection) -> None:
        """Steps that leave nothing behind, so that what a library does once is not captured."""
        with undone(self.model, self.optimizer, self.accelerator, self.average, self.found_inf):
            for _ in range(WARM_UP_STEPS):
                body(chosen)
