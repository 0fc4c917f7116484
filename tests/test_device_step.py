"""A step that nobody looks at: the same weights bit for bit, and no step after a bad loss, however late it is seen.

On a CPU, where the step runs as it is, and recorded and replayed, which stands for a CUDA graph.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import Fitted
from recorded_step import RecordedStep
from torch import Tensor

import mnist_accel.fit
import mnist_accel.run
from mnist_accel.checkpoint import Checkpoint, capture, newest_intact
from mnist_accel.cli import parse
from mnist_accel.data.batches import Augmentation, ImageStore
from mnist_accel.data.dataset import Dataset
from mnist_accel.device_step import READ_EVERY, DeviceStep, can_capture
from mnist_accel.engine import EachStep
from mnist_accel.errors import Interrupted, TrainingFailed
from mnist_accel.outcome import Watcher
from mnist_accel.runtime import Runtime
from recipes import load

Fit = Callable[..., Fitted]
MakeRuntime = Callable[..., Runtime]
WARPED = Augmentation(rotation=10, translation=0.1, scale=0.1, shear=5)
ALL_AT_ONCE: dict[str, Any] = {
    "epochs": 2,
    "batch_size": 130,  # the last batch of an epoch has 80 images
    "lr_at": lambda step: 0.02 / (step + 1),
    "dropout": 0.5,
    "label_smoothing": 0.1,
    "clip_norm": 1.0,
    "ema": 0.7,
    "augmentation": WARPED,
}
REGIMES: dict[str, dict[str, Any]] = {
    "sgd": ALL_AT_ONCE | {"optimizer": "sgd", "momentum": 0.9, "nesterov": True, "weight_decay": 1e-3},
    "plain sgd": {"optimizer": "sgd", "epochs": 2},
    "adam": ALL_AT_ONCE | {"optimizer": "adam", "weight_decay": 1e-3},
    "adamw": ALL_AT_ONCE | {"optimizer": "adamw", "weight_decay": 0.01},
    "binary": {"network": "is3", "loss": "binary", "dropout": 0.2, "ema": 0.9, "epochs": 2},
    "channel dropout": {"network": "onepoch", "dropout": 0.2, "augmentation": WARPED},
}
WAYS = pytest.mark.parametrize("way", [DeviceStep, RecordedStep])
Way = type[DeviceStep]


class Built:
    """Builds steppers of one kind and keeps the last, for a look at what it worked on."""

    def __init__(self, way: type[EachStep] | Way, **how: Any):
        self.way, self.how = way, how

    def __call__(self, *args: Any) -> Any:
        self.stepper = self.way(*args, **self.how)
        return self.stepper

    def tensors(self) -> dict[str, Tensor]:
        """Everything that training goes on from."""
        return capture(self.stepper.model, self.stepper.optimizer, self.stepper.average)


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def but_statistics(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without batch norm's own, which every forward pass moves, also one whose loss is bad."""
    return {name: tensor for name, tensor in tensors.items() if "running" not in name and "num_batches" not in name}


def trained(fit: Fit, way: type[EachStep] | Way, *args: Any, **how: Any) -> tuple[Fitted, Built]:
    built = Built(way)
    return fit(*args, build_stepper=built, **how), built


# The same training


@WAYS
@pytest.mark.parametrize("regime", REGIMES)
def test_nothing_that_is_learned_differs(fit: Fit, runtime: Runtime, tiny: Dataset, regime: str, way: Way) -> None:
    ordinary, by_steps = trained(fit, EachStep, runtime, tiny, **REGIMES[regime])
    unseen, unlooked = trained(fit, way, runtime, tiny, **REGIMES[regime])
    assert same(by_steps.tensors(), unlooked.tensors())
    for one, other in zip(ordinary.history, unseen.history, strict=True):
        assert one.train_loss == pytest.approx(other.train_loss, rel=1e-12)
        assert (one.test_loss, one.correct, one.images, one.lr) == (
            other.test_loss,
            other.correct,
            other.images,
            other.lr,
        )
    if way is RecordedStep:
        steps = sum(info.images == REGIMES[regime].get("batch_size", 100) for info in unseen.steps)
        assert unlooked.stepper.replays == steps > 0


@WAYS
def test_in_bf16_as_well(fit: Fit, make_runtime: MakeRuntime, tiny: Dataset, way: Way) -> None:
    _, by_steps = trained(fit, EachStep, make_runtime("bf16"), tiny, **REGIMES["adamw"])
    _, unlooked = trained(fit, way, make_runtime("bf16"), tiny, **REGIMES["adamw"])
    assert same(by_steps.tensors(), unlooked.tensors())


def test_a_step_asks_the_device_nothing(fit: Fit, runtime: Runtime, tiny: Dataset) -> None:
    for regime in REGIMES.values():
        _, built = trained(fit, RecordedStep, runtime, tiny, **regime)
        called = built.stepper.recording.names
        assert {"index_select", "convolution_backward"} <= called
        assert not called & {"_local_scalar_dense", "item", "is_nonzero", "nonzero", "equal", "masked_select"}


@WAYS
def test_warming_up_leaves_no_trace(fit: Fit, runtime: Runtime, tiny: Dataset, way: Way) -> None:
    _, built = trained(fit, way, runtime, tiny, **REGIMES["sgd"] | {"epochs": 1})
    stepper = built.stepper
    told = (stepper.told, stepper.bad, stepper.found_inf)
    before = {name: tensor.clone() for name, tensor in built.tensors().items()}
    told_before = [tensor.clone() for tensor in told]
    stepper.place(next(stepper.batches.selections(0)))
    stepper.warm_up()
    assert same(before, built.tensors())
    assert all(torch.equal(one, other) for one, other in zip(told, told_before, strict=True))
    assert all(parameter.grad is None for parameter in stepper.model.parameters())


def test_warming_up_before_the_first_step_makes_the_state_that_it_starts_from(
    fit: Fit, runtime: Runtime, tiny: Dataset
) -> None:
    for optimizer in ("sgd", "adam", "adamw"):
        how = {"optimizer": optimizer, "momentum": 0.9}
        _, built = trained(fit, DeviceStep, runtime, tiny, epochs=0, **how)
        built.stepper.place(next(built.stepper.batches.selections(0)))
        built.stepper.warm_up()
        state = {name: tensor for name, tensor in built.tensors().items() if name.startswith("optimizer.")}
        assert state and not any(tensor.any() for tensor in state.values())


# What is told


def test_the_loss_is_read_now_and_then_and_is_the_mean_since(fit: Fit, runtime: Runtime, tiny: Dataset) -> None:
    how: dict[str, Any] = {"batch_size": 10, "epochs": 2}
    each = fit(runtime, tiny, **how).losses
    seen = fit(runtime, tiny, build_stepper=DeviceStep, **how).losses
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

    built = Built(RecordedStep, eager_now=eager_now)
    fitted = fit(runtime, tiny, build_stepper=built, **REGIMES["adam"] | {"batch_size": 100})
    each, by_steps = trained(fit, EachStep, runtime, tiny, **REGIMES["adam"] | {"batch_size": 100})
    assert len(asked) == 12 and built.stepper.replays == 10
    assert same(by_steps.tensors(), built.tensors())
    assert fitted.losses[3] == pytest.approx(each.losses[3], rel=1e-6)
    assert fitted.losses[4] == fitted.losses[3]


def test_a_capture_that_fails_costs_one_line_and_not_the_run(fit: Fit, runtime: Runtime, tiny: Dataset) -> None:
    class NoGraph(RecordedStep):
        def capture(self) -> Callable[[], None]:
            raise RuntimeError("operation not permitted when stream is capturing\nCompile with TORCH_USE_CUDA_DSA")

    said: list[str] = []
    built = Built(NoGraph, tell=said.append)
    fit(runtime, tiny, build_stepper=built, **REGIMES["sgd"])
    _, by_steps = trained(fit, EachStep, runtime, tiny, **REGIMES["sgd"])
    assert said == [
        "the training step could not be captured as one CUDA graph (operation not permitted when stream is capturing); "
        "it runs uncaptured"
    ]
    assert same(by_steps.tensors(), built.tensors())


@pytest.mark.parametrize("fails", [False, True])
def test_a_capture_comes_after_a_warm_up_on_the_same_stream_and_cleans_up_behind_it(
    fit: Fit, runtime: Runtime, tiny: Dataset, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    """The one function that only a GPU can run, with torch.cuda replaced by what notes down its calls."""
    happened: list[str] = []

    class Stream:
        def __init__(self, name: str):
            self.name = name

        def wait_stream(self, other: "Stream") -> None:
            happened.append(f"{self.name} waits for {other.name}")

    @contextmanager
    def inside(name: str) -> Iterator[None]:
        happened.append(name)
        try:
            yield
        finally:
            happened.append(f"end of {name}")

    def body(chosen: Any) -> None:
        happened.append("capturable step" if stepper.optimizer.param_groups[0]["capturable"] else "step")
        if fails and "capture on side" in happened:
            raise RuntimeError("not permitted")

    generator = SimpleNamespace(clone_state=lambda: "unharmed", graphsafe_set_state=happened.append)
    monkeypatch.setattr(torch.cuda, "default_generators", (generator,))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream("main"))
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream("side"))
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: inside(stream.name))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(replay=lambda: None))
    monkeypatch.setattr(torch.cuda, "graph", lambda graph, stream: inside(f"capture on {stream.name}"))
    _, built = trained(fit, DeviceStep, runtime, tiny, epochs=0, optimizer="adam")
    stepper = built.stepper
    stepper.body = body
    stepper.place(next(stepper.batches.selections(0)))
    assert (stepper.try_capture() is None) == fails
    assert happened == [
        "side waits for main",
        "side",
        *["step"] * 3,
        "capture on side",
        "capturable step",
        "end of capture on side",
        "end of side",
        *["unharmed"] * fails,
        "main waits for side",
    ]
    assert not stepper.optimizer.param_groups[0]["capturable"]


# A loss that is no number


@WAYS
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
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
    at_once, by_steps = trained(fit, EachStep, runtime, tiny, **how)
    late, unlooked = trained(fit, way, runtime, tiny, **how)
    assert str(late.error) == str(at_once.error) != "None"
    assert len(late.steps) >= len(at_once.steps)
    assert len(late.steps) > len(at_once.steps) or batch_size == 100
    weights, learned = (but_statistics(built.tensors()) for built in (by_steps, unlooked))
    assert same(weights, learned)
    assert all(tensor.isfinite().all() for name, tensor in learned.items() if name.startswith(("model", "average")))
    assert unlooked.stepper.average.steps == by_steps.stepper.average.steps
    for name in ("epoch", "step", "images"):
        assert getattr(late.position, name) == getattr(at_once.position, name), name
    assert [stats.correct for stats in late.history] == [stats.correct for stats in at_once.history]


def test_the_first_bad_loss_is_the_one_that_is_told(fit: Fit, runtime: Runtime, tiny: Dataset) -> None:
    _, built = trained(fit, DeviceStep, runtime, tiny, epochs=0)
    stepper = built.stepper
    for loss, masked in ((1.5, 0), (2.5, 0), (math.inf, 1), (3.0, 1), (math.nan, 1)):
        stepper.judge(torch.tensor(loss))
        assert (stepper.bad, stepper.found_inf) == (bool(masked), masked)
    assert stepper.told.tolist() == [math.inf, 3]


@WAYS
def test_a_bad_loss_at_the_very_first_step(fit: Fit, runtime: Runtime, tiny: Dataset, way: Way) -> None:
    def poison(layer: torch.nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        return output * math.inf

    handle = torch.nn.modules.module.register_module_forward_hook(poison)
    try:
        failed, built = trained(fit, way, runtime, tiny, optimizer="sgd", momentum=0.9, ema=0.5, catch=TrainingFailed)
    finally:
        handle.remove()
    _, clean = trained(fit, way, runtime, tiny, optimizer="sgd", momentum=0.9, ema=0.5, epochs=0)
    assert "at epoch 1, step 1;" in str(failed.error)
    assert failed.steps == [] and (failed.position.step, failed.position.images) == (0, 0)
    assert same(but_statistics(built.tensors()), but_statistics(clean.tensors()))


@WAYS
def test_no_checkpoint_and_no_score_comes_after_a_bad_loss(
    fit: Fit, runtime: Runtime, tiny: Dataset, tmp_path: Path, way: Way
) -> None:
    """The fourth step has no loss; a checkpoint is due after the fifth, and the next reading would be far away."""
    how: dict[str, Any] = {
        "batch_size": 10,
        "save_every": 5,
        "lr_at": lambda step: 1e30 if step == 7 else 0.01,
        "catch": TrainingFailed,
    }
    failed = fit(runtime, tiny, build_stepper=way, save_in=tmp_path, **how)
    assert "at epoch 1, step 9;" in str(failed.error) and len(failed.steps) == 9
    assert [path.name for path in tmp_path.iterdir()] == ["0-5.safetensors"]
    found, complaints = newest_intact(tmp_path)
    assert found is not None and complaints == []
    assert all(tensor.isfinite().all() for tensor in found.tensors.values())
    assert math.isfinite(found.facts.loss_sum) and failed.history == []


# Going on


def interrupted(
    fit: Fit, runtime: Runtime, tiny: Dataset, folder: Path, way: type[EachStep] | Way, how: dict[str, Any]
) -> Checkpoint:
    fit(runtime, tiny, build_stepper=way, save_in=folder, stop_after_steps=8, catch=Interrupted, **how)
    found, _ = newest_intact(folder)
    assert found is not None and (found.facts.epoch, found.facts.step) == (1, 3)
    return found


@pytest.mark.parametrize("regime", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize(
    ("first", "second"),
    [(DeviceStep, DeviceStep), (RecordedStep, RecordedStep), (EachStep, RecordedStep), (RecordedStep, EachStep)],
)
def test_interrupted_and_resumed_is_as_never_interrupted(
    fit: Fit, runtime: Runtime, tiny: Dataset, tmp_path: Path, regime: str, first: Way, second: Way
) -> None:
    """In the middle of the second epoch; also where the graph comes or goes with the interruption."""
    how = REGIMES[regime]
    whole, uninterrupted = trained(fit, first, runtime, tiny, **how)
    checkpoint = interrupted(fit, runtime, tiny, tmp_path, first, how)
    resumed, rest = trained(fit, second, runtime, tiny, resumed=checkpoint, **how)
    assert same(uninterrupted.tensors(), rest.tensors())
    losses, losses_resumed = ([s.train_loss for s in fitted.history] for fitted in (whole, resumed))
    assert losses_resumed == (losses if first is second else pytest.approx(losses, rel=1e-12))
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
    monkeypatch.setattr(mnist_accel.run, "load_dataset", lambda *asked: tiny)
    monkeypatch.setattr(mnist_accel.fit, "can_capture", lambda accelerator, store: store.resident)

    def noting(kind: type) -> Callable[..., Any]:
        return lambda *args, **how: built.append(kind) or kind(*args, **how)

    for kind in (DeviceStep, EachStep):
        monkeypatch.setattr(mnist_accel.fit, kind.__name__, noting(kind))
    weights = []
    for words in (["graph=off"], ["graph=auto"], []):
        folder = tmp_path / str(len(weights))
        typed = ["recipe=onepoch", "batch_size=100", "threads=1", "device=cpu", f"out={folder}", *words]
        request = parse(typed, ["onepoch"], load)
        mnist_accel.run.run(request, Watcher(), time.perf_counter())
        weights.append((folder / "model.safetensors").read_bytes())
    assert built == [EachStep, DeviceStep, DeviceStep]
    assert weights[0] == weights[1] == weights[2]
