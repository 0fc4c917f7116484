"""Optimizers, learning rates as pure functions of the step, and the moving average of the weights.

No torch scheduler: one prepared by Accelerate steps once for every process, and a pure function of the step needs no
state to resume from.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from inspect import unwrap
from itertools import accumulate

import torch
from torch import Tensor, nn


def build_optimizer(
    name: str,
    parameters: Iterable[Tensor],
    *,
    lr: float,
    momentum: float,
    nesterov: bool,
    weight_decay: float,
    betas: tuple[float, float] = (0.9, 0.999),
) -> torch.optim.Optimizer:
    """Of those that are learned. Fused kernels: one call for all of them instead of several for each."""
    parameters = [parameter for parameter in parameters if parameter.requires_grad]
    build = never_compiled({"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[name])
    if name != "sgd":
        return build(parameters, lr=lr, betas=betas, weight_decay=weight_decay, fused=True)
    optimizer = build(parameters, lr=lr, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay, fused=True)
    if momentum:
        start_from_zero(optimizer)
    return optimizer


def start_from_zero(optimizer: torch.optim.Optimizer) -> None:
    """Torch makes the buffers in the first step, out of memory as it lies, for a kernel that sets them; where fp16's
    scaler masks that step nothing is written, and the next one multiplies what lay there in. From zero the later steps'
    kernel gives the first one's values as well."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


@cache
def never_compiled(optimizer_class: type[torch.optim.Optimizer]) -> Callable[..., torch.optim.Optimizer]:
    """The same optimizer without the wrappers that hide it from torch.compile: they import the whole compiler at their
    first call, which was 1.2 of the 3 seconds to the first step."""
    names = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")
    methods = {name: unwrap(getattr(optimizer_class, name)) for name in names}
    methods["step"] = torch.no_grad()(unwrap(optimizer_class.step))
    lean: Callable[..., torch.optim.Optimizer] = type(optimizer_class.__name__, (optimizer_class,), methods)
    return lean


def lr_factor(
    schedule: str,
    step: int,
    total_steps: int,
    *,
    warmup: float = 0.0,
    steps_per_drop: int = 1,
    drop_factor: float = 1.0,
) -> float:
    """What the recipe's lr is multiplied by at optimizer step ``step`` (from 0) of ``total_steps``.

    onecycle rises along a cosine from 1/25 and falls along a cosine to about zero; linear rises and falls on straight
    lines, reaching zero just after the last step; step drops by ``drop_factor`` every ``steps_per_drop``.
    """
    if schedule == "constant":
        return 1.0
    if schedule == "step":
        return drop_factor ** (step // steps_per_drop)
    rising = warmup * total_steps
    if schedule == "linear":
        if step + 1 < rising:
            return (step + 1) / rising
        return (total_steps - step) / (total_steps - max(rising - 1, 0))
    assert schedule == "onecycle", schedule
    if step < rising:
        return cosine(1 / 25, 1.0, step / rising)
    return cosine(1.0, 1e-4, (step - rising) / max(total_steps - 1 - rising, 1))


def cosine(start: float, end: float, progress: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * min(progress, 1.0))) / 2


class WeightAverage:
    """Exponential moving average of all weights and floating-point buffers (batch norm's statistics belong to them)."""

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.steps = 0
        self.live = [tensor for tensor in model.state_dict().values() if tensor.is_floating_point()]
        self.flat, self.average = in_one_piece(self.live)
        self.flat_choice, self.choice = in_one_piece(self.live)

    @torch.no_grad()
    def update(self) -> None:
        torch._foreach_lerp_(self.average, self.live, self.next_weight())

    def next_weight(self) -> float:
        """What the weights after one more step count for in the average."""
        # The average of the first steps must not be dominated by the random start.
        self.steps += 1
        return 1 - min(self.decay, self.steps / (self.steps + 10))

    @torch.no_grad()
    def update_unless(self, bad: Tensor, weight: Tensor) -> None:
        """``update`` without a look at the device: ``next_weight`` and whether to update at all are tensors there.

        Four kernels, however many weights there are."""
        torch._foreach_copy_(self.choice, self.live)
        # Chosen, not multiplied by zero: zero times nan is nan.
        torch.where(bad.bool(), self.flat, self.flat_choice, out=self.flat_choice)
        self.flat.lerp_(self.flat_choice, weight)

    @contextmanager
    @torch.no_grad()
    def in_place(self, restore: bool) -> Iterator[None]:
        """Inside, the model holds the averaged weights; afterwards its own again, if ``restore`` says so."""
        own = [tensor.clone() for tensor in self.live]
        torch._foreach_copy_(self.live, self.average)
        yield
        if restore:
            torch._foreach_copy_(self.live, own)


def in_one_piece(tensors: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Copies that lie one behind the other, each in its own order of axes, and all of them as one vector."""
    copies = [tensor.clone() for tensor in tensors]
    flat = torch.cat([copy.as_strided((copy.numel(),), (1,)) for copy in copies])
    offsets = accumulate((copy.numel() for copy in copies), initial=0)
    return flat, [
        flat.as_strided(copy.shape, copy.stride(), offset) for copy, offset in zip(copies, offsets, strict=False)
    ]
