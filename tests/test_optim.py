"""Update rules equal torch's own, learning rates equal their curves, and the moving average equals a plain loop."""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mnist_accel.training.optim import WeightAverage, build_optimizer, lr_factor

SETTINGS: dict[str, Any] = {"lr": 0.1, "momentum": 0.0, "nesterov": False, "weight_decay": 0.0}


def start() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).requires_grad_() for shape in ((5, 3), (5,), (2, 1, 3, 3))]


def five_steps(parameters: list[Tensor], optimizer: torch.optim.Optimizer) -> list[Tensor]:
    for step in range(5):
        optimizer.zero_grad()
        loss = sum(((parameter - step) ** 2 * (1 + index)).sum() for index, parameter in enumerate(parameters))
        assert isinstance(loss, Tensor)
        loss.backward()
        optimizer.step()
    return parameters


@pytest.mark.parametrize(
    ("name", "changes", "theirs"),
    [
        ("sgd", {}, lambda p: torch.optim.SGD(p, lr=0.1)),
        ("sgd", {"momentum": 0.9}, lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)),
        (
            "sgd",
            {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
            lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
        ),
        ("adam", {"weight_decay": 0.1}, lambda p: torch.optim.Adam(p, lr=0.1, weight_decay=0.1)),
        ("adamw", {"weight_decay": 0.1}, lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.1)),
        (
            "adamw",
            {"betas": (0.6, 0.9)},
            lambda p: torch.optim.AdamW(p, lr=0.1, betas=(0.6, 0.9), weight_decay=0.0),
        ),
        ("adamw", {"weight_decay": 0.0}, lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.0)),
    ],
)
def test_parameters_change_as_under_torchs_own_optimizer(
    name: str, changes: dict[str, Any], theirs: Callable[[list[Tensor]], torch.optim.Optimizer]
) -> None:
    ours, expected = start(), start()
    five_steps(ours, build_optimizer(name, ours, **{**SETTINGS, **changes}))
    five_steps(expected, theirs(expected))
    for one, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("nesterov", [False, True])
def test_momentum_from_zero_gives_torchs_own_steps_bit_for_bit(nesterov: bool) -> None:
    settings = {**SETTINGS, "momentum": 0.9, "nesterov": nesterov, "weight_decay": 0.1}
    ours, theirs = start(), start()
    mine, fused = build_optimizer("sgd", ours, **settings), torch.optim.SGD(theirs, fused=True, **settings)
    assert all(not state["momentum_buffer"].any() for state in mine.state.values()) and len(mine.state) == 3
    five_steps(ours, mine)
    five_steps(theirs, fused)
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one, other)
        assert torch.equal(mine.state[one]["momentum_buffer"], fused.state[other]["momentum_buffer"])
    assert not build_optimizer("sgd", start(), **SETTINGS).state


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_a_first_step_that_is_masked_leaves_nothing_behind(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As fp16's scaler masks it where gradients overflow. Memory that nobody has written may hold anything."""
    monkeypatch.setattr(torch, "empty_like", lambda tensor, **how: torch.full_like(tensor, math.nan, **how))
    masked, plain = start(), start()
    settings = {**SETTINGS, "momentum": 0.9}
    optimizer = build_optimizer(name, masked, **settings)
    optimizer.found_inf = torch.ones(())  # type: ignore[attr-defined]
    for parameter in masked:
        parameter.grad = torch.full_like(parameter, math.inf)
    optimizer.step()
    optimizer.found_inf.zero_()  # type: ignore[attr-defined]
    five_steps(masked, optimizer)
    five_steps(plain, build_optimizer(name, plain, **settings))
    assert all(torch.equal(one, other) for one, other in zip(masked, plain, strict=True))


def test_decay_is_decoupled_with_adamw_only() -> None:
    """Where the loss asks for nothing, AdamW still shrinks by lr × decay; Adam's normalised step is a whole lr."""
    for name, after in (("adamw", 1 - 0.1 * 0.1), ("adam", 1 - 0.1)):
        weight = torch.ones(1, requires_grad=True)
        weight.grad = torch.zeros(1)
        build_optimizer(name, [weight], **{**SETTINGS, "weight_decay": 0.1}).step()
        assert weight.item() == pytest.approx(after, rel=1e-4)


def test_the_learning_rate_of_a_step_is_read_from_the_groups() -> None:
    """The engine sets it there before every step."""
    for name in ("sgd", "adam", "adamw"):
        weight = torch.zeros(1, requires_grad=True)
        optimizer = build_optimizer(name, [weight], **SETTINGS)
        optimizer.param_groups[0]["lr"] = 0.25
        weight.grad = torch.ones(1)
        optimizer.step()
        assert weight.item() == pytest.approx(-0.25, rel=1e-4)


# Learning rates


def curve(schedule: str, total_steps: int, **settings: Any) -> list[float]:
    return [lr_factor(schedule, step, total_steps, **settings) for step in range(total_steps)]


def test_constant_stays() -> None:
    assert curve("constant", 10) == [1.0] * 10


def test_linear_rises_to_the_peak_and_falls_to_zero_just_after_the_last_step() -> None:
    factors = curve("linear", 100, warmup=0.2)
    assert factors[0] == pytest.approx(1 / 20)
    assert factors[19] == 1.0 and max(factors) == 1.0
    assert factors[-1] == pytest.approx(1 / 81)
    rises = [b - a for a, b in pairwise(factors[:20])]
    falls = [a - b for a, b in pairwise(factors[19:])]
    assert rises == pytest.approx([1 / 20] * 19) and falls == pytest.approx([1 / 81] * 80)
    assert lr_factor("linear", 100, 100, warmup=0.2) == 0


def test_linear_without_warmup_starts_at_the_peak() -> None:
    assert curve("linear", 4, warmup=0.0) == [1.0, 0.75, 0.5, 0.25]


def test_onecycle_rises_and_falls_along_cosines() -> None:
    factors = curve("onecycle", 101, warmup=0.25)
    assert factors[0] == pytest.approx(1 / 25)
    rising = 0.25 * 101
    middle = lr_factor("onecycle", 10, 101, warmup=0.25)
    assert middle == pytest.approx(1 / 25 + (1 - 1 / 25) * (1 - math.cos(math.pi * 10 / rising)) / 2)
    peak = factors.index(max(factors))
    assert peak in (25, 26) and factors[peak] > 0.999
    assert factors[:peak] == sorted(factors[:peak]) and factors[peak:] == sorted(factors[peak:], reverse=True)
    assert factors[-1] == pytest.approx(1e-4)


def test_onecycle_without_warmup_starts_at_the_peak() -> None:
    factors = curve("onecycle", 11, warmup=0.0)
    assert factors[0] == 1.0 and factors[5] == pytest.approx(0.5, rel=1e-3) and factors[-1] == pytest.approx(1e-4)
    assert curve("onecycle", 2, warmup=0.0) == pytest.approx([1.0, 1e-4])


def test_step_drops_every_so_many_steps() -> None:
    factors = curve("step", 9, steps_per_drop=3, drop_factor=0.1)
    assert factors == pytest.approx([1, 1, 1, 0.1, 0.1, 0.1, 0.01, 0.01, 0.01])


@pytest.mark.parametrize("schedule", ["constant", "onecycle", "linear", "step"])
@pytest.mark.parametrize("total_steps", [1, 2, 3, 1000])
@pytest.mark.parametrize("warmup", [0.0, 0.2, 0.99])
def test_no_schedule_leaves_the_range_from_zero_to_the_peak(schedule: str, total_steps: int, warmup: float) -> None:
    factors = curve(schedule, total_steps, warmup=warmup, steps_per_drop=2, drop_factor=0.5)
    assert all(0 < factor <= 1 for factor in factors)
    assert total_steps < 1000 or max(factors) > 0.99


# The moving average


def a_model() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))


@torch.no_grad()
def change(model: nn.Module, by: float) -> None:
    for value in model.state_dict().values():
        value += 1 if value.dtype == torch.int64 else by


def floats(model: nn.Module) -> list[Tensor]:
    return [value.clone() for value in model.state_dict().values() if value.is_floating_point()]


def test_the_average_equals_a_plain_loop() -> None:
    model = a_model()
    average = WeightAverage(model, decay=0.6)
    by_hand = floats(model)
    for step in range(1, 31):
        change(model, by=step)
        average.update()
        decay = min(0.6, step / (step + 10))  # the first steps are not held back by the random start
        by_hand = [decay * old + (1 - decay) * new for old, new in zip(by_hand, floats(model), strict=True)]
    with average.in_place(restore=True):
        for one, other in zip(floats(model), by_hand, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_an_average_that_asks_the_device_nothing_is_the_same_bit_for_bit_and_skips_what_is_bad() -> None:
    models = [a_model().to(memory_format=torch.channels_last) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    plain, unasked = (WeightAverage(model, decay=0.8) for model in models)
    assert [tensor.stride() for tensor in unasked.average] == [tensor.stride() for tensor in unasked.live]
    for step in range(1, 16):
        for model in models:
            change(model, by=0.1 * step)
        plain.update()
        unasked.update_unless(torch.zeros(()), torch.tensor(unasked.next_weight()))
    before = [tensor.clone() for tensor in unasked.average]
    assert all(torch.equal(one, other) for one, other in zip(plain.average, before, strict=True))
    change(models[1], by=math.nan)
    unasked.update_unless(torch.ones(()), torch.tensor(0.5))
    assert all(torch.equal(one, other) for one, other in zip(unasked.average, before, strict=True))


def test_the_average_is_in_the_model_inside_and_the_models_own_weights_return() -> None:
    model = a_model()
    average = WeightAverage(model, decay=0.9)
    change(model, by=5)
    average.update()
    own = {name: value.clone() for name, value in model.state_dict().items()}
    with average.in_place(restore=True):
        assert not torch.equal(model[0].weight, own["0.weight"])
        assert not torch.equal(model[1].running_mean, own["1.running_mean"])
    assert all(torch.equal(value, own[name]) for name, value in model.state_dict().items())


def test_the_average_stays_where_it_is_kept() -> None:
    model = a_model()
    average = WeightAverage(model, decay=0.9)
    change(model, by=5)
    average.update()
    with average.in_place(restore=True):
        averaged = {name: value.clone() for name, value in model.state_dict().items()}
    with average.in_place(restore=False):
        pass
    assert all(torch.equal(value, averaged[name]) for name, value in model.state_dict().items())
    assert model[1].num_batches_tracked == 1  # a count is no weight


def test_averaging_leaves_the_models_own_weights_alone() -> None:
    model = a_model()
    average = WeightAverage(model, decay=0.9)
    change(model, by=5)
    own = floats(model)
    average.update()
    assert all(torch.equal(one, other) for one, other in zip(floats(model), own, strict=True))
