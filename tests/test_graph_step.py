"""A step that nobody looks at: the same weights bit for bit, and no step after a bad loss, however late it is seen.

On a CPU, where the step runs as it is, and recorded and replayed, which stands for a CUDA graph.
"""

import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import AsOnAGpu, Fitted
from recorded_step import RecordedStep
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import mnist_accel.runs.run
import mnist_accel.runs.trainer
from mnist_accel import models
from mnist_accel.cli import parse
from mnist_accel.data.batches import ImageStore, Selection
from mnist_accel.data.dataset import Dataset
from mnist_accel.errors import Interrupted, TrainingFailed
from mnist_accel.machine.runtime import Runtime
from mnist_accel.runs.checkpoint import Checkpoint, newest_intact
from mnist_accel.runs.trainer import Trainer
from mnist_accel.runs.watcher import Watcher
from mnist_accel.training.eager_step import EagerStep, backward
from mnist_accel.training.graph_step import READ_EVERY, GraphStep, can_capture
from mnist_accel.training.state import BadLoss
from mnist_accel.training.warm_up import undone
from recipes import load

Fit = Callable[..., Fitted]
MakeRuntime = Callable[..., Runtime]
WARPED = {"rotation": 10, "translation": 0.1, "scale": 0.1, "shear": 5}
ALL_AT_ONCE: dict[str, Any] = WARPED | {
    "epochs": 2,
    "batch_size": 130,  # the last batch of an epoch has 80 images
    "lr_at": lambda step: 0.02 / (step + 1),
    "dropout": 0.5,
    "label_smoothing": 0.1,
    "clip_norm": 1.0,
    "ema": 0.7,
}
REGIMES: dict[str, dict[str, Any]] = {
    "sgd": ALL_AT_ONCE | {"optimizer": "sgd", "momentum": 0.9, "nesterov": True, "weight_decay": 1e-3},
    "plain sgd": {"optimizer": "sgd", "epochs": 2},
    "adam": ALL_AT_ONCE | {"optimizer": "adam", "weight_decay": 1e-3},
    "adamw": ALL_AT_ONCE | {"optimizer": "adamw", "weight_decay": 0.01},
    "fixed first filters": {"beta1": 0.7, "beta2": 0.9, "first_filters": "whitening", "ema": 0.7, "clip_norm": 1.0},
    "binary": {"model": "is3", "loss": "binary", "dropout": 0.2, "ema": 0.9, "epochs": 2},
    "channel dropout": WARPED | {"model": "onepoch", "dropout": 0.2},
}
ADAM = pytest.param("adam", marks=pytest.mark.slow)  # beside adamw it adds little
WAYS = pytest.mark.parametrize("way", [GraphStep, RecordedStep])
Way = type[GraphStep]


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def but_statistics(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without batch norm's own, which every forward pass moves, also one whose loss is bad."""
    return {name: tensor for name, tensor in tensors.items() if "running" not in name and "num_batches" not in name}


# The same training


@WAYS
@pytest.mark.parametrize("regime", REGIMES)
def test_nothing_that_is_learned_differs(fit: Fit, runtime: Runtime, tiny: Dataset, regime: str, way: Way) -> None:
    ordinary = fit(runtime, tiny, **REGIMES[regime])
    unseen = fit(runtime, tiny, build_stepper=way, **REGIMES[regime])
    assert same(ordinary.tensors, unseen.tensors)
    for one, other in zip(ordinary.history, unseen.history, strict=True):
        assert one.train_loss == other.train_loss
        assert (one.test_loss, one.correct, one.images, one.lr) == (
            other.test_loss,
            other.correct,
            other.images,
            other.lr,
        )
    if way is RecordedStep:
        steps = sum(info.images == REGIMES[regime].get("batch_size", 100) for info in unseen.steps)
        assert unseen.stepper.replays == steps > 0


@WAYS
def test_in_bf16_as_well(fit: Fit, make_runtime: MakeRuntime, tiny: Dataset, way: Way) -> None:
    ordinary = fit(make_runtime("bf16"), tiny, **REGIMES["adamw"])
    unseen = fit(make_runtime("bf16"), tiny, build_stepper=way, **REGIMES["adamw"])
    assert same(ordinary.tensors, unseen.tensors)


def test_a_step_asks_the_device_nothing(fit: Fit, runtime: Runtime, tiny: Dataset) -> None:
    for regime in REGIMES.values():
        called = fit(runtime, tiny, build_stepper=RecordedStep, **regime).stepper.recording.names
        assert {"_amp_foreach_non_finite_check_and_unscale_", "convolution_backward"} <= called
        assert not called & {"_local_scalar_dense", "item", "is_nonzero", "nonzero", "equal", "masked_select"}


# Kernels of one step of each network at the settings of its recipe, ordinary and as a GPU replays it. On a GPU they are
# what a step of such small networks costs: a change that raises one of these has to be worth it.
# Four of them (five with one class) count the correct answers, in place of reading every training image again.
AT_MOST = {
    "onepoch": (56, 58),
    "efficient25k": (66, 68),
    "sub20k": (103, 105),
    "compact13k": (90, 91),
    "is3": (54, 58),
    "speedrun": (60, 60),
    "under8k": (98, 100),
    "under2k": (89, 91),
}
# What only makes another view of the same memory, or takes memory, and runs nothing.
NO_KERNEL = {
    *("_unsafe_view", "alias", "as_strided", "detach", "expand", "permute", "select", "slice", "split", "squeeze", "t"),
    *("transpose", "unbind", "unsqueeze", "view", "empty", "empty_like", "empty_strided", "new_empty"),
    *("_record_function_enter_new", "_record_function_exit"),
}


class Counting(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.called: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.called.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))

    @property
    def kernels(self) -> int:
        return sum(name not in NO_KERNEL for name in self.called)


def test_there_is_a_bound_for_every_network() -> None:
    assert {load(name).model for name in AT_MOST} == set(models.names())


class CountedEagerStep(EagerStep):
    def step(self, *args: Any) -> Any:
        with Counting() as self.counting:
            return super().step(*args)


class CountedGraphStep(GraphStep):
    def body(self, chosen: Selection) -> Tensor:
        with Counting() as self.counting:
            return super().body(chosen)


COUNTED = (CountedEagerStep, CountedGraphStep)


@pytest.mark.parametrize("name", AT_MOST)
def test_a_step_takes_no_more_kernels_than_it_did(fit: Fit, runtime: Runtime, tiny: Dataset, name: str) -> None:
    here = ("epochs", "batch_size", "lr", "schedule")
    keys = {key: value for key, value in vars(load(name)).items() if key not in here}
    steppers = [fit(runtime, tiny, build_stepper=way, ahead=True, **keys).stepper for way in COUNTED]
    counted = [stepper.counting.kernels for stepper in steppers]
    assert all(kernels <= bound for kernels, bound in zip(counted, AT_MOST[name], strict=True)), counted


@WAYS
@pytest.mark.parametrize("regime", REGIMES)
def test_images_put_in_order_ahead_are_the_same(
    fit: Fit, runtime: Runtime, tiny: Dataset, regime: str, way: Way
) -> None:
    """As on a GPU with room for copies, where a step's images are a slice, and often normalised already."""
    ordinary = fit(runtime, tiny, **REGIMES[regime])
    ahead = fit(runtime, tiny, build_stepper=way, ahead=True, **REGIMES[regime])
    assert same(ordinary.tensors, ahead.tensors)


# Warming up before the clock


@pytest.mark.parametrize("way", [EagerStep, GraphStep, RecordedStep])
@pytest.mark.parametrize("regime", REGIMES)
def test_warming_up_leaves_no_trace(
    fit: Fit, runtime: Runtime, tiny: Dataset, regime: str, way: type[EagerStep] | Way
) -> None:
    def kept(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor.clone() for name, tensor in tensors.items()}

    cold = fit(runtime, tiny, build_stepper=way, **REGIMES[regime])
    warm = fit(runtime, tiny, build_stepper=way, warm_up=True, **REGIMES[regime])
    assert (cold.warmup_seconds, warm.warmup_seconds > 0) == (0, True)
    assert same(cold.tensors, warm.tensors) and warm.losses == cold.losses
    assert [stats.test_loss for stats in warm.history] == [stats.test_loss for stats in cold.history]
    # Again, now that there is momentum and an average: nothing that training goes on from may differ.
    stepper, before = warm.stepper, kept(warm.tensors)
    steps, drawn = stepper.average and stepper.average.steps, torch.get_rng_state()
    with undone(stepper.model, stepper.optimizer, runtime.accelerator, stepper.average):
        stepper.model.train()
        stepper.warm_up(next(stepper.batches.selections(0)), 1)
        assert way is not EagerStep or not same(before, warm.tensors)  # the others' leaves no trace by itself
    assert same(before, warm.tensors)
    assert (stepper.average and stepper.average.steps) == steps
    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(parameter.grad is None for parameter in stepper.model.parameters())


@WAYS
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_warming_up_before_the_first_step_makes_the_state_that_it_starts_from(
    fit: Fit, runtime: Runtime, tiny: Dataset, optimizer: str, way: Way
) -> None:
    fitted = fit(runtime, tiny, build_stepper=way, epochs=0, optimizer=optimizer, momentum=0.9)
    stepper = fitted.stepper
    with undone(stepper.model, stepper.optimizer, runtime.accelerator, None):
        stepper.warm_up(next(stepper.batches.selections(0)), 1)
    state = {name: tensor for name, tensor in fitted.tensors.items() if name.startswith("optimizer.")}
    assert state and not any(tensor.any() for tensor in state.values())


def test_fp16s_scale_is_taken_back(fit: Fit, runtime: Runtime, tiny: Dataset) -> None:
    """It doubles after one good step here, where warming up takes three."""
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=1)
    model = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    accelerator = SimpleNamespace(device=torch.device("cpu"), scaler=scaler)
    with undone(model, optimizer, accelerator, None):  # type: ignore[arg-type]
        backward(model(torch.ones(1, 1)).sum(), 0.5, accelerator)  # type: ignore[arg-type]
        assert model.weight.grad is not None and model.weight.grad.item() == 0.5 * 4
        scaler.step(optimizer)
        scaler.update()
        assert scaler.get_scale() == 8
    assert scaler.get_scale() == 4 and model.weight.grad is None


def test_a_loss_that_is_no_number_is_told_by_the_first_step_as_without_a_warm_up(
    fit: Fit, runtime: Runtime, tiny: Dataset
) -> None:
    def poison(layer: torch.nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        return output * math.inf

    for way in (EagerStep, GraphStep, RecordedStep):
        handle = torch.nn.modules.module.register_module_forward_hook(poison)
        try:
            failed = fit(runtime, tiny, build_stepper=way, warm_up=True, ema=0.5, catch=TrainingFailed)
        finally:
            handle.remove()
        clean = fit(runtime, tiny, build_stepper=way, ema=0.5, epochs=0)
        assert "at epoch 1, step 1;" in str(failed.error) and "lr than 0.01" in str(failed.error)
        learned = but_statistics(failed.tensors)
        assert all(torch.equal(tensor, learned[name]) for name, tensor in but_statistics(clean.tensors).items())


# What is told


def test_the_loss_is_read_now_and_then_and_is_the_mean_since(fit: Fit, runtime: Runtime, tiny: Dataset) -> None:
    how: dict[str, Any] = {"batch_size": 10, "epochs": 2}
    each = fit(runtime, tiny, **how).losses
    seen = fit(runtime, tiny, build_stepper=GraphStep, **how).losses
    assert len(seen) == len(each) == 120
    # The first step, so that there is a number at all; fifty later; and an epoch's end.
    expected = [each[0]] * 50 + [sum(each[1:51]) / 50] * 9 + [sum(each[51:60]) / 9] * 50
    assert READ_EVERY == 50
    assert seen[:109] == pytest.approx(expected, rel=1e-6)
    assert seen[109:119] == pytest.approx([sum(each[60:110]) / 50] * 10, rel=1e-6)
    assert seen[119] == pytest.approx(sum(each[110:]) / 10, rel=1e-6)


def test_while_a_profiler_looks_every_step_runs_by_itself_and_is_read(
    fit: Fit, runtime: Runtime, tiny: Dataset
) -> None:
    asked: list[int] = []

    def eager_now() -> bool:
        asked.append(1)
        return 3 <= len(asked) <= 4

    regime = REGIMES["adam"] | {"batch_size": 100}
    fitted = fit(runtime, tiny, build_stepper=partial(RecordedStep, eager_now=eager_now), **regime)
    each = fit(runtime, tiny, **regime)
    assert len(asked) == 12 and fitted.stepper.replays == 10
    assert same(each.tensors, fitted.tensors)
    assert fitted.losses[3] == pytest.approx(each.losses[3], rel=1e-6)
    assert fitted.losses[4] == fitted.losses[3]


def test_a_capture_that_fails_costs_one_line_and_not_the_run(fit: Fit, runtime: Runtime, tiny: Dataset) -> None:
    class NoGraph(RecordedStep):
        def capture(self) -> Callable[[], None]:
            raise RuntimeError("operation not permitted when stream is capturing\nCompile with TORCH_USE_CUDA_DSA")

    said: list[str] = []
    uncaptured = fit(runtime, tiny, build_stepper=partial(NoGraph, tell=said.append), **REGIMES["sgd"])
    ordinary = fit(runtime, tiny, **REGIMES["sgd"])
    assert said == [
        "the training step could not be captured as one CUDA graph (operation not permitted when stream is capturing); "
        "it runs uncaptured"
    ]
    assert same(ordinary.tensors, uncaptured.tensors)


@pytest.mark.parametrize("warm_up", [False, True])
def test_a_warm_up_without_enough_memory_is_no_failed_capture(
    fit: Fit, runtime: Runtime, tiny: Dataset, warm_up: bool
) -> None:
    class NoMemory(RecordedStep):
        def try_out(self, body: Callable[..., Tensor], chosen: Selection) -> None:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    said: list[str] = []
    with pytest.raises(torch.OutOfMemoryError):
        fit(runtime, tiny, build_stepper=partial(NoMemory, tell=said.append), warm_up=warm_up)
    assert said == []


# A loss that is no number


@WAYS
@pytest.mark.parametrize("optimizer", ["sgd", ADAM, "adamw"])
@pytest.mark.parametrize(("batch_size", "too_far"), [(10, 3), (10, 64), (100, 5)])
def test_a_bad_loss_stops_every_later_step(
    fit: Fit, runtime: Runtime, tiny: Dataset, way: Way, optimizer: str, batch_size: int, too_far: int
) -> None:
    """Nobody looks for up to fifty steps; weights, optimizer, average and position are as the ordinary step leaves
    them, which stops at once."""
    how: dict[str, Any] = {
        "optimizer": optimizer,
        "momentum": 0.9,
        "ema": 0.7,
        "epochs": 2,
        "batch_size": batch_size,
        "lr_at": lambda step: 1e30 if step == too_far else 0.01,
        "catch": TrainingFailed,
    }
    at_once = fit(runtime, tiny, **how)
    late = fit(runtime, tiny, build_stepper=way, **how)
    assert str(late.error) == str(at_once.error) != "None"
    assert len(late.steps) >= len(at_once.steps)
    assert len(late.steps) > len(at_once.steps) or batch_size == 100
    weights, learned = (but_statistics(fitted.tensors) for fitted in (at_once, late))
    assert same(weights, learned)
    assert all(tensor.isfinite().all() for name, tensor in learned.items() if name.startswith(("model", "average")))
    assert late.trainer.average.steps == at_once.trainer.average.steps
    for name in ("epoch", "step", "images", "correct"):
        assert getattr(late.position, name) == getattr(at_once.position, name), name
    for name in ("correct", "train_accuracy"):
        assert [getattr(stats, name) for stats in late.history] == [getattr(stats, name) for stats in at_once.history]


def test_the_first_bad_loss_is_the_one_that_is_told(fit: Fit, runtime: Runtime, tiny: Dataset) -> None:
    stepper = fit(runtime, tiny, build_stepper=GraphStep, epochs=0).stepper
    for loss, masked in ((1.5, 0), (2.5, 0), (math.inf, 1), (3.0, 1), (math.nan, 1)):
        value = torch.tensor(loss)
        stepper.mask_from(value)
        assert stepper.found_inf == masked
        assert value.item() == loss or math.isnan(loss)
        stepper.figures[len(stepper.unread)].copy_(torch.stack((value, torch.tensor(4.0))))
        stepper.unread.append(10)
    with pytest.raises(BadLoss) as bad:  # during the fifth step, which the loop has not counted yet
        stepper.read(7.0)
    assert (bad.value.loss, bad.value.loss_sum, bad.value.correct) == (math.inf, 7.0 + 1.5 + 2.5, 8)
    assert bad.value.steps_back == 2


@WAYS
def test_a_bad_loss_at_the_very_first_step(fit: Fit, runtime: Runtime, tiny: Dataset, way: Way) -> None:
    def poison(layer: torch.nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        return output * math.inf

    how: dict[str, Any] = {"build_stepper": way, "optimizer": "sgd", "momentum": 0.9, "ema": 0.5}
    handle = torch.nn.modules.module.register_module_forward_hook(poison)
    try:
        failed = fit(runtime, tiny, catch=TrainingFailed, **how)
    finally:
        handle.remove()
    clean = fit(runtime, tiny, epochs=0, **how)
    assert "at epoch 1, step 1;" in str(failed.error)
    assert failed.steps == [] and (failed.position.step, failed.position.images) == (0, 0)
    assert same(but_statistics(failed.tensors), but_statistics(clean.tensors))


@WAYS
def test_no_checkpoint_and_no_score_comes_after_a_bad_loss(
    fit: Fit, runtime: Runtime, tiny: Dataset, tmp_path: Path, way: Way
) -> None:
    """The fourth step has no loss; a checkpoint is due after the fifth, and the next reading would be far away."""
    how: dict[str, Any] = {
        "batch_size": 10,
        "checkpoint_every": 5,
        "lr_at": lambda step: 1e30 if step == 7 else 0.01,
        "catch": TrainingFailed,
    }
    failed = fit(runtime, tiny, build_stepper=way, save_in=tmp_path, **how)
    assert "at epoch 1, step 9;" in str(failed.error) and len(failed.steps) == 9
    assert [path.name for path in tmp_path.iterdir()] == ["0-5.safetensors"]
    found, complaints = newest_intact(tmp_path)
    assert found is not None and complaints == []
    assert all(tensor.isfinite().all() for tensor in found.tensors.values())
    assert math.isfinite(found.meta.position.loss_sum) and failed.history == []


# Going on


def interrupted(
    fit: Fit, runtime: Runtime, tiny: Dataset, folder: Path, way: type[EagerStep] | Way, how: dict[str, Any]
) -> Checkpoint:
    fit(runtime, tiny, build_stepper=way, save_in=folder, stop_after_steps=8, catch=Interrupted, **how)
    found, _ = newest_intact(folder)
    assert found is not None and (found.meta.position.epoch, found.meta.position.step) == (1, 3)
    return found


@pytest.mark.parametrize("regime", ["sgd", ADAM, "adamw"])
@pytest.mark.parametrize(
    ("first", "second"),
    [(GraphStep, GraphStep), (RecordedStep, RecordedStep), (EagerStep, RecordedStep), (RecordedStep, EagerStep)],
)
def test_interrupted_and_resumed_is_as_never_interrupted(
    fit: Fit, runtime: Runtime, tiny: Dataset, tmp_path: Path, regime: str, first: Way, second: Way
) -> None:
    """In the middle of the second epoch; also where the graph comes or goes with the interruption."""
    how = REGIMES[regime]
    whole = fit(runtime, tiny, build_stepper=first, **how)
    checkpoint = interrupted(fit, runtime, tiny, tmp_path, first, how)
    resumed = fit(runtime, tiny, build_stepper=second, resumed=checkpoint, **how)
    assert same(whole.tensors, resumed.tensors)
    assert [s.train_loss for s in resumed.history] == [s.train_loss for s in whole.history]
    assert [s.test_loss for s in resumed.history] == [s.test_loss for s in whole.history]


# Where it is used


def test_it_is_for_one_process_on_a_gpu_that_holds_the_images(tiny: Dataset) -> None:
    gpu = SimpleNamespace(device=torch.device("cuda", 0), num_processes=1, scaler=None)
    resident, fed = (
        ImageStore(tiny.train_images, tiny.train_labels, torch.device("cpu"), limit) for limit in (None, 0)
    )
    assert can_capture(gpu, resident)  # type: ignore[arg-type]
    assert not can_capture(gpu, fed)  # type: ignore[arg-type]
    for other in ({"num_processes": 2}, {"scaler": object()}, {"device": torch.device("cpu")}):
        assert not can_capture(SimpleNamespace(**vars(gpu) | other), resident)  # type: ignore[arg-type]


def test_a_run_takes_it_where_it_can_and_graph_off_does_not(
    make_runtime: MakeRuntime, tiny: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_runtime()
    built: list[type] = []
    monkeypatch.setattr(mnist_accel.runs.run, "load_dataset", lambda *asked: tiny)
    monkeypatch.setattr(mnist_accel.runs.trainer, "can_capture", lambda accelerator, store: store.resident)

    def noting(kind: type) -> Callable[..., Any]:
        return lambda *args, **how: built.append(kind) or kind(*args, **how)

    for kind in (GraphStep, EagerStep):
        monkeypatch.setattr(mnist_accel.runs.trainer, kind.__name__, noting(kind))
    weights = []
    for words in (["graph=off"], ["graph=auto"], []):
        folder = tmp_path / str(len(weights))
        typed = ["recipe=onepoch", "batch_size=100", "threads=1", "device=cpu", f"out={folder}", *words]
        request = parse(typed, ["onepoch"], load)
        mnist_accel.runs.run.run(request, Watcher(), time.perf_counter())
        weights.append((folder / "model.safetensors").read_bytes())
    assert built == [EagerStep, GraphStep, GraphStep]
    assert weights[0] == weights[1] == weights[2]


def test_the_seconds_of_warming_up_stand_beside_those_of_training(
    make_runtime: MakeRuntime, tiny: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which happens by itself on a GPU only; a run that is made to do it here leaves the same weights."""
    make_runtime()
    monkeypatch.setattr(mnist_accel.runs.run, "load_dataset", lambda *asked: tiny)
    build = Trainer.build.__func__
    results, weights = [], []
    for kind in (Runtime, AsOnAGpu):

        def build_as(*parts: Any, kind: type[Runtime] = kind) -> Trainer:
            trainer = build(*parts)
            trainer.runtime = kind(**vars(trainer.runtime))
            return trainer

        monkeypatch.setattr(Trainer, "build", classmethod(build_as))
        folder = tmp_path / str(len(weights))
        typed = ["recipe=onepoch", "batch_size=100", "threads=1", "device=cpu", f"out={folder}"]
        request = parse(typed, ["onepoch"], load)
        results.append(mnist_accel.runs.run.run(request, Watcher(), time.perf_counter())[0])
        weights.append((folder / "model.safetensors").read_bytes())
    assert results[0].warmup_seconds == 0 < results[1].warmup_seconds
    assert weights[0] == weights[1]
