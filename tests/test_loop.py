"""The one loop and the one evaluation, on tiny data: exact counts, seeded losses, and no step after a bad loss."""

import math
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import Fitted
from one_rank import Doubled
from torch import Tensor, nn

import mnist_accel.runs.trainer
from mnist_accel.data.augment import draw_warps
from mnist_accel.data.batches import ImageStore, Selection, TestBatches, normalise
from mnist_accel.data.dataset import Dataset
from mnist_accel.errors import Interrupted, TrainingFailed
from mnist_accel.machine.runtime import Runtime
from mnist_accel.models import build_model
from mnist_accel.runs.checkpoint import newest_intact
from mnist_accel.seeding import derive_seed
from mnist_accel.training import loop
from mnist_accel.training.eager_step import EagerStep
from mnist_accel.training.loop import Score, evaluate
from mnist_accel.training.objective import OneAgainstRest, TenClasses

Fit = Callable[..., Fitted]


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def scored_images(data: Dataset) -> tuple[Tensor, Tensor]:
    return normalise(data.test_images, 0.1307, 0.3081), data.test_labels


def scored_store(data: Dataset) -> ImageStore:
    return ImageStore(data.test_images, data.test_labels, torch.device("cpu"))


# Training


def test_training_lowers_the_loss_and_finds_digits(fit: Fit, runtime: Runtime, tiny: Dataset) -> None:
    fitted = fit(runtime, tiny, epochs=5, batch_size=30, lr_at=lambda step: 0.01 * (1 - step / 100))
    losses = [stats.train_loss for stats in fitted.history]
    assert losses == sorted(losses, reverse=True) and losses[-1] < losses[0] / 3
    assert fitted.history[-1].test_loss < math.log(10) / 2
    assert fitted.history[-1].accuracy > 60


def test_two_epochs_are_those_of_a_plain_loop(
    fit: Fit, runtime: Runtime, tiny: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Order, warps, smoothing, clipping, Nesterov's momentum, decay, rates and average, in double precision, where only
    a mistake could make a difference."""
    monkeypatch.setattr(mnist_accel.runs.trainer, "build_model", lambda *asked: Doubled(build_model(*asked)))
    warped = {"rotation": 10.0, "translation": 0.1, "scale": 0.1, "shear": 5.0}
    fitted = fit(
        runtime,
        tiny,
        epochs=2,
        batch_size=130,  # the last batch of an epoch has 80 images
        optimizer="sgd",
        momentum=0.9,
        nesterov=True,
        weight_decay=1e-3,
        lr_at=lambda step: 0.1 / (1 + step),
        label_smoothing=0.1,
        clip_norm=0.5,
        ema=0.5,
        **warped,
    )
    torch.manual_seed(derive_seed(0, "weights"))
    model = Doubled(build_model("efficient25k", 0.0))
    optimizer = torch.optim.SGD(model.parameters(), lr=1, momentum=0.9, nesterov=True, weight_decay=1e-3)
    average = deepcopy(model)
    losses, test_losses = [], []
    for epoch in range(2):
        order = torch.randperm(600, generator=torch.Generator().manual_seed(derive_seed(0, "order", epoch)))
        warps = draw_warps(600, derive_seed(0, "warp", epoch), **warped)
        assert warps is not None
        for chosen, matrices in zip(order.split(130), warps.split(130), strict=True):
            inputs = normalise(tiny.train_images[chosen], 0.1307, 0.3081, matrices)
            loss = F.cross_entropy(model(inputs), tiny.train_labels[chosen], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.param_groups[0]["lr"] = 0.1 / (1 + len(losses))
            optimizer.step()
            losses.append(loss.item())
            decay = min(0.5, len(losses) / (len(losses) + 10))
            for kept, own in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
                kept.copy_(decay * kept + (1 - decay) * own if kept.is_floating_point() else own)
        images, labels = scored_images(tiny)
        with torch.no_grad():
            test_losses.append(F.cross_entropy(average.eval()(images), labels).item())
    assert fitted.losses == pytest.approx(losses, rel=1e-9)
    assert [stats.test_loss for stats in fitted.history] == pytest.approx(test_losses, rel=1e-9)


def test_seconds_are_those_of_the_steps_alone_added_up_over_saves_and_a_resume(
    fit: Fit, runtime: Runtime, tiny: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock on which a step takes one second, warming up a hundred, a save ten and an evaluation a thousand."""
    now = [0.0]

    def step_of(global_step: int) -> float:
        now[0] += 1
        return 0.01

    class Warmed(EagerStep):
        def warm_up(self, chosen: Selection, dropout_seed: int) -> None:
            super().warm_up(chosen, dropout_seed)
            now[0] += 100

    def slow_evaluate(*asked: Any, **how: Any) -> Score:
        now[0] += 0 if "dry_run" in how else 1000  # warming up asks for one batch
        return evaluate(*asked, **how)

    def slow_save(*asked: object) -> None:
        now[0] += 10

    monkeypatch.setattr(loop, "synchronised_clock", lambda device: now[0])
    monkeypatch.setattr(loop, "evaluate", slow_evaluate)
    monkeypatch.setattr(loop.Loop, "share_buffers", slow_save)
    how = {"epochs": 2, "checkpoint_every": 2, "lr_at": step_of, "warm_up": True, "build_stepper": Warmed}
    whole = fit(runtime, tiny, **how)
    assert [stats.train_seconds for stats in whole.history] == [6, 6] and whole.warmup_seconds == 100
    assert all(stats.eval_seconds >= 1000 for stats in whole.history)
    fit(runtime, tiny, save_in=tmp_path, stop_after_steps=11, catch=Interrupted, **how)
    checkpoint, _ = newest_intact(tmp_path)
    assert checkpoint is not None and (checkpoint.meta.position.step, checkpoint.meta.position.seconds) == (5, 5)
    resumed = fit(runtime, tiny, resumed=checkpoint, **how)
    assert [stats.train_seconds for stats in resumed.history] == [6, 6] and resumed.warmup_seconds == 100


def test_an_epoch_is_written_down_as_it_was(fit: Fit, runtime: Runtime, tiny: Dataset) -> None:
    fitted = fit(runtime, tiny, epochs=2, batch_size=130, lr_at=lambda step: 0.01 / (step + 1))
    assert [stats.epoch for stats in fitted.history] == [1, 2]
    for epoch, stats in enumerate(fitted.history):
        assert (stats.steps, stats.images, stats.total) == (5, 600, 200)
        assert stats.lr == pytest.approx(0.01 / (5 * (epoch + 1)))
        assert stats.accuracy == 100 * stats.correct / 200
        # A mean over images: the last batch holds 80 of them.
        losses = fitted.losses[5 * epoch : 5 * epoch + 5]
        assert stats.train_loss == pytest.approx((sum(losses[:4]) * 130 + losses[4] * 80) / 600)
        assert stats.train_seconds > 0 and stats.eval_seconds > 0
        assert stats.positive is None


def test_every_step_is_told_once_with_where_it_is(fit: Fit, runtime: Runtime, tiny: Dataset) -> None:
    seen: list[int] = []

    def lr_at(step: int) -> float:
        seen.append(step)
        return 0.01

    fitted = fit(runtime, tiny, epochs=2, batch_size=250, lr_at=lr_at)
    # An epoch's last rate is asked for again, to be written down.
    assert seen == [0, 1, 2, 2, 3, 4, 5, 5]
    assert [(i.epoch, i.step, i.steps_per_epoch, i.images) for i in fitted.steps] == [
        (1, 1, 3, 250),
        (1, 2, 3, 250),
        (1, 3, 3, 100),
        (2, 1, 3, 250),
        (2, 2, 3, 250),
        (2, 3, 3, 100),
    ]


def test_the_learning_rate_of_every_step_is_the_schedules(fit: Fit, runtime: Runtime, tiny: Dataset) -> None:
    """Plain SGD moves by lr × gradient, so a rate of zero leaves the parameters where they are."""
    fitted = fit(runtime, tiny, optimizer="sgd", lr_at=lambda step: 0.1 if step in (0, 3) else 0.0, keep_states=True)
    weights = [state["conv1.weight"] for state in fitted.states]
    moved = [not torch.equal(a, b) for a, b in pairwise(weights)]
    assert moved == [False, False, True, False, False]


def test_one_step_is_the_gradient_of_the_mean_loss(fit: Fit, runtime: Runtime, tiny: Dataset) -> None:
    """By hand: the images of the first batch, warped and normalised, one plain SGD step."""
    before = fit(runtime, tiny, optimizer="sgd", lr_at=lambda step: 0.0, dry_run=True).model
    after = fit(runtime, tiny, optimizer="sgd", lr=0.1, dry_run=True, rotation=10, translation=0.1)
    generator = torch.Generator().manual_seed(derive_seed(0, "order", 0))
    chosen = torch.randperm(600, generator=generator)[:100]
    warps = draw_warps(600, derive_seed(0, "warp", 0), rotation=10, translation=0.1, scale=0, shear=0)
    assert warps is not None
    inputs = normalise(tiny.train_images[chosen], 0.1307, 0.3081, warps[:100])
    loss = F.cross_entropy(before.train()(inputs), tiny.train_labels[chosen])
    loss.backward()
    assert after.losses == pytest.approx([loss.item()], rel=1e-5)
    for one, other in zip(after.model.parameters(), before.parameters(), strict=True):
        torch.testing.assert_close(one, other - 0.1 * other.grad, rtol=1e-4, atol=1e-6)


def test_clipping_limits_the_step_and_zero_does_not(fit: Fit, runtime: Runtime, tiny: Dataset) -> None:
    still, free, clipped = (
        fit(runtime, tiny, optimizer="sgd", lr_at=lambda step, lr=lr: lr, clip_norm=clip, dry_run=True).model
        for lr, clip in ((0.0, 0.0), (1.0, 0.0), (1.0, 0.05))
    )

    def norm_of_step(model: nn.Module) -> float:
        parts = zip(model.parameters(), still.parameters(), strict=True)
        return math.sqrt(sum((a - b).square().sum().item() for a, b in parts))

    assert norm_of_step(free) > 0.1
    assert norm_of_step(clipped) == pytest.approx(0.05, rel=1e-3)


def test_smoothing_raises_the_training_loss_and_never_the_test_loss(fit: Fit, runtime: Runtime, tiny: Dataset) -> None:
    fitted = fit(runtime, tiny, epochs=2, label_smoothing=0.3)
    images, labels = scored_images(tiny)
    with torch.no_grad():
        logits = fitted.model.eval()(images)
    assert fitted.history[-1].test_loss == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-4)
    plain = fit(runtime, tiny, epochs=2)
    assert fitted.losses[0] != pytest.approx(plain.losses[0], rel=1e-3)


def test_dropout_is_seeded_at_every_step_so_that_two_runs_are_equal_bit_for_bit(
    fit: Fit, runtime: Runtime, tiny: Dataset
) -> None:
    def draws_on_the_side(step: int) -> float:
        torch.rand(step + 1)
        return 0.01

    one = fit(runtime, tiny, dropout=0.5)
    other = fit(runtime, tiny, dropout=0.5, lr_at=draws_on_the_side)
    assert one.losses == other.losses and same_weights(one.model, other.model)
    assert fit(runtime, tiny, dropout=0.5, seed=1).losses != one.losses
    assert fit(runtime, tiny).losses != one.losses


def test_dropout_differs_from_step_to_step(fit: Fit, runtime: Runtime, tiny: Dataset) -> None:
    """The same image in every batch and a learning rate of zero: only dropout can make the losses differ."""
    same = replace(
        tiny,
        train_images=tiny.train_images[:1].expand(600, 28, 28).contiguous(),
        train_labels=tiny.train_labels[:1].expand(600).contiguous(),
    )
    losses = fit(runtime, same, model="is3", loss="binary", dropout=0.5, lr_at=lambda step: 0.0).losses
    assert len(set(losses)) == 6


def test_a_dry_run_is_one_step_and_one_evaluation_batch(fit: Fit, runtime: Runtime, tiny: Dataset) -> None:
    fitted = fit(runtime, tiny, epochs=5, dry_run=True)
    assert len(fitted.losses) == 1
    (stats,) = fitted.history
    assert (stats.epoch, stats.steps, stats.images, stats.total) == (1, 1, 100, 50)


def test_a_dry_run_leaves_the_weights_that_it_evaluated(fit: Fit, runtime: Runtime, tiny: Dataset) -> None:
    """Its one epoch is its last: the average stays in the model."""
    start, own, left = (
        fit(runtime, tiny, epochs=5, **how).model.state_dict()["conv1.weight"]
        for how in ({"dry_run": True, "lr_at": lambda step: 0.0}, {"dry_run": True}, {"dry_run": True, "ema": 0.7})
    )
    assert not torch.equal(left, own)
    torch.testing.assert_close(left, start / 11 + own * 10 / 11)


def test_images_from_host_memory_train_the_same_net(fit: Fit, runtime: Runtime, tiny: Dataset) -> None:
    resident = fit(runtime, tiny)
    assert fit(runtime, tiny, resident_mb=0).losses == resident.losses


def test_bf16_trains_on_a_cpu_with_weights_in_fp32(
    fit: Fit, make_runtime: Callable[..., Runtime], tiny: Dataset
) -> None:
    exact = fit(make_runtime("fp32"), tiny, epochs=2)
    rough = fit(make_runtime("bf16"), tiny, epochs=2)
    assert rough.losses != exact.losses  # it is in effect
    assert rough.losses[:3] == pytest.approx(exact.losses[:3], rel=0.05)
    assert rough.history[1].train_loss < rough.history[0].train_loss
    assert all(parameter.dtype == torch.float32 for parameter in rough.model.parameters())


# The moving average


def test_the_averaged_weights_are_evaluated_and_left_in_the_model(fit: Fit, runtime: Runtime, tiny: Dataset) -> None:
    plain = fit(runtime, tiny, epochs=2, keep_states=True)
    averaged = fit(runtime, tiny, epochs=2, keep_states=True, ema=0.7)
    for step, (one, other) in enumerate(zip(plain.states, averaged.states, strict=True)):
        # Also after the first epoch's evaluation the training goes on from its own weights.
        assert all(torch.equal(one[name], other[name]) for name in one), f"step {step + 1}"

    by_hand = {name: value.clone() for name, value in fit(runtime, tiny, epochs=0).model.state_dict().items()}
    for step, state in enumerate(averaged.states, start=1):
        decay = min(0.7, step / (step + 10))
        for name, value in state.items():
            if value.is_floating_point():
                by_hand[name] = decay * by_hand[name] + (1 - decay) * value
    left = averaged.model.state_dict()
    for name, value in by_hand.items():
        if value.is_floating_point():
            torch.testing.assert_close(left[name], value, rtol=1e-4, atol=1e-6)
            assert name.endswith("bias") or not torch.equal(left[name], averaged.states[-1][name])

    score = evaluate(averaged.model, averaged.trainer.test_batches, TenClasses(), runtime.accelerator)
    last = averaged.history[-1]
    assert (score.correct, score.total, score.loss) == (last.correct, last.total, last.test_loss)
    assert last.test_loss != plain.history[-1].test_loss


# A loss that is no number


@pytest.mark.parametrize("epochs_before", [0, 1])
def test_a_loss_that_is_no_number_stops_before_the_step_and_says_where(
    fit: Fit, runtime: Runtime, tiny: Dataset, epochs_before: int
) -> None:
    """The third step of the epoch is far too large, so the fourth has no loss."""
    too_far = 6 * epochs_before + 2
    fitted = fit(
        runtime,
        tiny,
        epochs=2,
        optimizer="sgd",
        momentum=0.9,
        lr_at=lambda step: 1e30 if step == too_far else 0.01,
        keep_states=True,
        catch=TrainingFailed,
    )
    assert len(fitted.losses) == too_far + 1 and all(map(math.isfinite, fitted.losses))
    assert f"at epoch {epochs_before + 1}, step 4;" in str(fitted.error)
    assert "Try a smaller lr than 0.01" in str(fitted.error)
    for name, parameter in fitted.model.named_parameters():
        assert torch.equal(parameter, fitted.states[-1][name]), name


def test_a_loss_that_is_no_number_at_the_first_step_leaves_the_starting_weights(
    fit: Fit, runtime: Runtime, tiny: Dataset
) -> None:
    def poison(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        return output * math.inf

    untouched = fit(runtime, tiny, epochs=0)
    handle = torch.nn.modules.module.register_module_forward_hook(poison)
    try:
        failed = fit(runtime, tiny, catch=TrainingFailed)
    finally:
        handle.remove()
    assert "loss is nan at epoch 1, step 1;" in str(failed.error) or "loss is inf" in str(failed.error)
    assert failed.history == [] and failed.losses == []
    for one, other in zip(failed.model.parameters(), untouched.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_test_loss_that_is_no_number_ends_the_run(fit: Fit, runtime: Runtime, tiny: Dataset) -> None:
    def poison(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        return output if layer.training else output * math.nan

    handle = torch.nn.modules.module.register_module_forward_hook(poison)
    try:
        failed = fit(runtime, tiny, epochs=2, catch=TrainingFailed)
    finally:
        handle.remove()
    assert str(failed.error) == "test loss is nan after epoch 1. Try a smaller lr than 0.01"
    assert failed.history == [] and len(failed.losses) == 6


# Evaluation


def test_evaluation_counts_every_image_exactly(fit: Fit, runtime: Runtime, tiny: Dataset) -> None:
    model = fit(runtime, tiny, dropout=0.5).model
    images, labels = scored_images(tiny)
    with torch.no_grad():
        logits = model.eval()(images)
    model.train()
    for batch_size in (1, 37, 200, 500):
        batches = TestBatches(scored_store(tiny), mean=0.1307, std=0.3081, batch_size=batch_size)
        score = evaluate(model, batches, TenClasses(), runtime.accelerator)
        assert (score.correct, score.total) == ((logits.argmax(1) == labels).sum().item(), 200)
        assert score.loss == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)
        assert score.accuracy == 100 * score.correct / 200
        assert score.positive is None


def test_precision_recall_and_f1_are_those_of_a_count_by_hand(runtime: Runtime, tiny: Dataset) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 1))  # says yes about as often as no
    images, labels = scored_images(tiny)
    with torch.no_grad():
        says_yes = model(images)[:, 0] > 0
    is_three = labels == 3
    hits = (says_yes & is_three).sum().item()
    assert 0 < hits < min(says_yes.sum(), is_three.sum())

    batches = TestBatches(scored_store(tiny), mean=0.1307, std=0.3081, batch_size=37)
    score = evaluate(model, batches, OneAgainstRest(3), runtime.accelerator)
    precision, recall = hits / says_yes.sum().item(), hits / is_three.sum().item()
    assert (score.correct, score.total) == ((says_yes == is_three).sum().item(), 200)
    assert score.positive is not None
    assert score.positive.precision == pytest.approx(100 * precision)
    assert score.positive.recall == pytest.approx(100 * recall)
    assert score.positive.f1 == pytest.approx(100 * 2 * precision * recall / (precision + recall))


def test_always_answering_no_has_an_f1_of_zero(runtime: Runtime, tiny: Dataset) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 1))
    nn.init.zeros_(model[1].weight)
    nn.init.constant_(model[1].bias, -1)
    batches = TestBatches(scored_store(tiny), mean=0.1307, std=0.3081)
    score = evaluate(model, batches, OneAgainstRest(3), runtime.accelerator)
    assert score.correct == (tiny.test_labels != 3).sum()
    assert score.positive is not None
    assert (score.positive.precision, score.positive.recall, score.positive.f1) == (0, 0, 0)


def test_a_binary_run_is_trained_and_scored_as_one(fit: Fit, runtime: Runtime, tiny: Dataset) -> None:
    fitted = fit(runtime, tiny, model="is3", loss="binary", epochs=5, batch_size=30)
    assert fitted.history[-1].train_loss < fitted.history[0].train_loss / 2
    assert fitted.history[-1].positive is not None and fitted.history[-1].positive.f1 > 50
    assert fitted.history[-1].accuracy > 90


def test_evaluation_leaves_no_gradients_and_no_changed_statistics(fit: Fit, runtime: Runtime, tiny: Dataset) -> None:
    model = fit(runtime, tiny).model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    batches = TestBatches(scored_store(tiny), mean=0.1307, std=0.3081)
    evaluate(model, batches, TenClasses(), runtime.accelerator)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
