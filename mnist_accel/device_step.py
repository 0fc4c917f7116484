"""The training step as device work alone, so that a GPU replays the whole of it as one captured CUDA graph.

Index, normalise, augment, forward, loss, backward, clip, optimizer and moving average are one function of tensors that
never asks the device anything. A non-finite loss therefore masks, on the device, its own update and every later one;
that it happened is found out at the next reading, which comes at least every ``READ_EVERY`` steps, and always before a
checkpoint, an evaluation and an interrupt's end.

For one process on a GPU that holds the images, in fp32 or bf16. The ordinary step stays where there are several
processes (their sums would have to be in the graph), where fp16 is scaled (its scale changes with what is found), where
images come from host memory, and on CPUs, which have no graphs: there the same function only runs in tests.
"""

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from mnist_accel.data.batches import ImageStore, Selection, TrainBatches
from mnist_accel.objective import Objective
from mnist_accel.optim import WeightAverage
from mnist_accel.phase import Phase, unmarked
from mnist_accel.seeding import seed_device
from mnist_accel.stepping import Position, not_finite

READ_EVERY = 50  # steps that a bad loss may stay unseen; a reading waits for the device, which costs about a step
WARM_UP_STEPS = 3  # libraries choose algorithms and allocate workspaces, which a capture must not see


def can_capture(accelerator: Accelerator, store: ImageStore) -> bool:
    return (
        accelerator.device.type == "cuda"
        and accelerator.num_processes == 1
        and accelerator.scaler is None
        and store.resident
    )


class DeviceStep:
    """A ``Stepper``: puts steps on the device's queue and reads what came of them now and then.

    Takes the optimizer over: its learning rate becomes a tensor, and ``found_inf`` masks its updates.
    ``tell`` gets a line where a capture failed; while ``eager_now``, steps run uncaptured and each loss is read.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        batches: TrainBatches,
        objective: Objective,
        accelerator: Accelerator,
        clip_norm: float,
        average: WeightAverage | None,
        *,
        tell: Callable[[str], None] = lambda problem: None,
        eager_now: Callable[[], bool] = lambda: False,
        phase: Phase = unmarked,
    ):
        self.model, self.optimizer, self.batches, self.objective = model, optimizer, batches, objective
        self.accelerator, self.clip_norm, self.average = accelerator, clip_norm, average
        self.tell, self.eager_now, self.phase = tell, eager_now, phase
        self.device = accelerator.device
        self.captures = self.device.type == "cuda"
        self.replay: Callable[[], None] | None = None
        self.fixed: Selection | None = None  # where the captured step finds its images
        self.epoch = -1
        self.loss = math.nan
        self.unread: list[tuple[int, float]] = []  # images and learning rate of each step since the last reading

        # In one tensor, so that a reading is one copy: the epoch's loss so far, which keeps the first bad loss, and
        # how many steps were masked.
        self.told = torch.zeros(2, dtype=torch.float64, device=self.device)
        self.loss_sum, self.bad_steps = self.told.unbind()
        self.bad = torch.zeros((), dtype=torch.bool, device=self.device)
        # Fused optimizers skip an update where this is 1, and take back what they counted: made for fp16's scaler.
        self.found_inf = torch.zeros((), device=self.device)
        optimizer.found_inf = self.found_inf  # type: ignore[attr-defined]
        # CUDA's fused kernels read a float; those for the CPU take it as the double that the ordinary step gives.
        kind = torch.float32 if self.device.type == "cuda" else torch.float64
        self.lr = torch.zeros((), dtype=kind, device=self.device)
        self.average_weight = torch.zeros((), device=self.device)
        for group in optimizer.param_groups:
            group["lr"] = self.lr
            if group.get("momentum"):
                # SGD's first step is another kernel, which sets the momentum: from zero, all steps are the same.
                for parameter in group["params"]:
                    optimizer.state[parameter].setdefault("momentum_buffer", torch.zeros_like(parameter))

    def step(
        self, chosen: Selection, position: Position, lr: float, dropout_seed: int, stop_signal: int, read: bool
    ) -> tuple[float, int]:
        if self.epoch != position.epoch:  # or the rest of a resumed one
            self.epoch = position.epoch
            self.loss_sum.fill_(position.loss_sum)
        eager = self.eager_now()
        self.lr.fill_(lr)
        if self.average:
            self.average_weight.fill_(self.average.next_weight())
        self.enqueue(chosen, dropout_seed, eager)
        self.unread.append((chosen.global_count, lr))
        if read or stop_signal or eager or math.isnan(self.loss) or len(self.unread) >= READ_EVERY:
            self.read(position)
        return self.loss, stop_signal

    def enqueue(self, chosen: Selection, dropout_seed: int, eager: bool) -> None:
        replay = None
        # An epoch's last batch may be smaller, and a graph has one size.
        if self.captures and not eager and chosen.counted == self.batches.batch_size:
            self.place(chosen)
            replay = self.replay = self.replay or self.try_capture()
        # A replay copies seed and offset of the default generator to where its dropout kernels read them, and those
        # count on from there as uncaptured ones do (CUDAGraph::replay, CUDAGeneratorState::replay_prologue in torch):
        # seeded alike, both draw the same masks.
        seed_device(self.device, dropout_seed)
        if replay:
            replay()
        else:
            self.body(chosen)

    def place(self, chosen: Selection) -> None:
        if self.fixed is None:
            warps = None if chosen.warps is None else chosen.warps.clone()
            self.fixed = replace(chosen, indices=chosen.indices.clone(), warps=warps)
            return
        self.fixed.indices.copy_(chosen.indices)
        if self.fixed.warps is not None and chosen.warps is not None:
            self.fixed.warps.copy_(chosen.warps)

    def body(self, chosen: Selection) -> None:
        """All that one step does, without asking the device anything, and with nothing from the host that changes from
        step to step: only what these tensors hold."""
        batch = self.batches.load(chosen, self.phase)
        with self.phase("forward"):
            logits = self.model(batch.images)
        with self.phase("loss"):
            loss = self.objective.loss_sum(logits, batch.labels)
            mean_loss = loss * (1 / batch.global_count)
            self.judge(loss.detach())
        with self.phase("backward"):
            self.accelerator.backward(mean_loss)
        with self.phase("optimizer"):
            if self.clip_norm:
                self.accelerator.clip_grad_norm_(self.model.parameters(), self.clip_norm)
            self.optimizer.step()
            if self.average:
                self.average.update_unless(self.bad, self.average_weight)
            # Also where a capture needs it: gradients that are there already would be added to, not made by the graph.
            self.optimizer.zero_grad()

    def judge(self, loss: Tensor) -> None:
        """Adds the loss up; from the first bad one on everything is masked, so that the sum keeps that one."""
        self.loss_sum.add_(loss.masked_fill(self.bad, 0))
        # inf - inf and nan - nan are nan, which differs from 0: isfinite in half as many kernels.
        torch.ne(self.loss_sum - self.loss_sum, 0, out=self.bad)
        self.found_inf.copy_(self.bad)
        self.bad_steps.add_(self.found_inf)

    def read(self, position: Position) -> None:
        """Waits for the device. ``position`` does not count the step under way yet."""
        loss_sum, bad_steps = self.told.tolist()
        bad = int(bad_steps)
        if bad:
            uncounted = self.unread[-bad:-1]
            position.step -= len(uncounted)
            position.images -= sum(images for images, _ in uncounted)
            if self.average:
                self.average.steps -= bad
            raise not_finite(loss_sum, position.epoch, position.step, self.unread[-bad][1])
        self.loss = (loss_sum - position.loss_sum) / sum(images for images, _ in self.unread)
        position.loss_sum = loss_sum
        self.unread.clear()

    def try_capture(self) -> Callable[[], None] | None:
        try:
            return self.capture()
        except RuntimeError as error:
            self.captures = False
            reason = (str(error) or type(error).__name__).splitlines()[0][:200]
            self.tell(f"the training step could not be captured as one CUDA graph ({reason}); it runs uncaptured")
            return None

    def capture(self) -> Callable[[], None]:
        """Records the step, which does not run it, and hands back what replays it."""
        assert self.fixed is not None
        # In older torch, a generator that was in a failed capture refuses to draw ever after.
        generator = torch.cuda.default_generators[self.device.index or 0]
        unharmed = generator.clone_state()
        main, side = torch.cuda.current_stream(self.device), torch.cuda.Stream(self.device)
        side.wait_stream(main)
        graph = torch.cuda.CUDAGraph()
        try:
            # Around torch's own, which does not leave the stream where a capture fails.
            with torch.cuda.stream(side):
                self.warm_up()
                self.allow_capture(True)
                with torch.cuda.graph(graph, stream=side):
                    self.body(self.fixed)
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

    def warm_up(self) -> None:
        """Steps as after a bad loss, so that they leave weights, optimizer and average alone; the rest is put back."""
        assert self.fixed is not None
        buffers = list(self.model.buffers())
        before = [tensor.clone() for tensor in (self.told, *buffers)]
        try:
            self.loss_sum.fill_(math.nan)
            self.bad.fill_(True)
            for _ in range(WARM_UP_STEPS):
                self.body(self.fixed)
        finally:
            with torch.no_grad():
                for tensor, value in zip((self.told, *buffers), before, strict=True):
                    tensor.copy_(value)
            self.bad.fill_(False)
            self.found_inf.fill_(0)
