"""On a GPU: both mixed precisions, the same result as on a CPU, pinned memory, and one line when memory runs out."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Fitted, Launch
from jobs import a_run, as_if_killed

import mnist_accel.device_step
from mnist_accel.checkpoint import newest_intact
from mnist_accel.data.batches import Augmentation, ImageStore, TrainBatches
from mnist_accel.data.dataset import Dataset
from mnist_accel.data.synthetic import draw_dataset
from mnist_accel.device_step import DeviceStep, can_capture
from mnist_accel.errors import Interrupted, TrainingFailed
from mnist_accel.runtime import Runtime

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here that torch can use"),
]
Fit = Callable[..., Fitted]
MakeRuntime = Callable[..., Runtime]
WITH_GPU = {"CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0")}


@pytest.fixture(scope="module")
def larger() -> Dataset:
    """Enough for an accuracy whose noise is a point or two."""
    return Dataset(name="synthetic", reason="a test", checksum="0" * 64, **draw_dataset(0, 6_000, 2_000))


def falling(step: int) -> float:
    return 0.01 * (1 - step / 180)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_every_precision_trains(fit: Fit, make_runtime: MakeRuntime, larger: Dataset, precision: str) -> None:
    if precision == "bf16" and not torch.cuda.is_bf16_supported():
        pytest.skip("this GPU has no bf16")
    runtime = make_runtime(precision, "cuda")
    assert (runtime.precision, runtime.device.type) == (precision, "cuda")
    fitted = fit(runtime, larger, epochs=3, lr_at=falling)
    losses = [stats.train_loss for stats in fitted.history]
    assert losses == sorted(losses, reverse=True) and losses[-1] < losses[0] / 3
    assert fitted.history[-1].accuracy > 85
    parameters = list(fitted.model.parameters())
    assert all(parameter.is_cuda and parameter.dtype == torch.float32 for parameter in parameters)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_is_in_effect_and_close(
    fit: Fit, make_runtime: MakeRuntime, tiny: Dataset, precision: str
) -> None:
    exact = fit(make_runtime("fp32", "cuda"), tiny).losses
    rough = fit(make_runtime(precision, "cuda"), tiny).losses
    assert rough != exact
    assert rough[0] == pytest.approx(exact[0], rel=0.02)


def test_clipping_sees_gradients_without_fp16s_scale(fit: Fit, make_runtime: MakeRuntime, tiny: Dataset) -> None:
    """Scaled by 65,536, every gradient would be clipped to next to nothing."""
    runtime = make_runtime("fp16", "cuda")
    free, clipped = (
        fit(runtime, tiny, optimizer="sgd", lr_at=lambda step: 0.1, clip_norm=clip, epochs=4).losses
        for clip in (0.0, 1_000.0)
    )
    assert free[-1] < free[0] - 0.1
    assert clipped == pytest.approx(free, rel=0.02)


def test_a_gpu_and_a_cpu_agree(fit: Fit, make_runtime: MakeRuntime, larger: Dataset) -> None:
    """The same samples and augmentation: first losses but for rounding, final accuracy within the noise of a seed."""
    augmentation = Augmentation(rotation=10, translation=0.1, scale=0.1, shear=5)
    first, whole = [], []
    for device in ("cpu", "cuda"):
        runtime = make_runtime("fp32", device)
        first.append(fit(runtime, larger, augmentation=augmentation, dry_run=True).losses[0])
        whole.append(fit(runtime, larger, epochs=3, lr_at=falling))
    assert first[1] == pytest.approx(first[0], rel=1e-3)
    on_cpu, on_gpu = whole
    assert on_gpu.losses[:5] == pytest.approx(on_cpu.losses[:5], rel=0.03)
    # Four seeds on a CPU came to 92.6 to 94.2 %.
    assert on_gpu.history[-1].accuracy == pytest.approx(on_cpu.history[-1].accuracy, abs=3)


def test_dropout_is_seeded_on_the_device(fit: Fit, make_runtime: MakeRuntime, tiny: Dataset) -> None:
    runtime = make_runtime("fp32", "cuda")
    first_losses = []
    for unrelated in (1, 2):
        torch.cuda.manual_seed(unrelated)
        first_losses.append(fit(runtime, tiny, dropout=0.5).losses[0])
    assert first_losses[0] == pytest.approx(first_losses[1], rel=1e-5)
    assert first_losses[0] != pytest.approx(fit(runtime, tiny).losses[0], rel=1e-5)


# The captured step


class Graphs:
    """Builds steppers that capture, and keeps the last."""

    def __init__(self, **how: Any):
        self.how = how

    def __call__(self, *args: Any) -> DeviceStep:
        self.stepper = DeviceStep(*args, **self.how)
        return self.stepper


@pytest.fixture
def every_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mnist_accel.device_step, "READ_EVERY", 1)


@pytest.mark.usefixtures("every_loss")
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_captured_step_trains_as_the_ordinary_one(
    fit: Fit, make_runtime: MakeRuntime, tiny: Dataset, optimizer: str, precision: str
) -> None:
    how: dict[str, Any] = {
        "optimizer": optimizer,
        "momentum": 0.9,
        "batch_size": 130,  # the last batch of an epoch has 80 images, and no graph
        "epochs": 2,
        "lr_at": lambda step: 0.003 / (step + 1),
        "dropout": 0.3,
        "clip_norm": 1.0,
        "ema": 0.7,
        "augmentation": Augmentation(rotation=10, translation=0.1, scale=0.1, shear=5),
    }
    said: list[str] = []
    graphs = Graphs(tell=said.append)
    captured = fit(make_runtime(precision, "cuda"), tiny, build_stepper=graphs, **how)
    ordinary = fit(make_runtime(precision, "cuda"), tiny, **how)
    assert graphs.stepper.replay is not None and said == []
    rel = 2e-3 if precision == "fp32" else 2e-2
    assert captured.losses == pytest.approx(ordinary.losses, rel=rel)
    for one, other in zip(captured.history, ordinary.history, strict=True):
        assert one.test_loss == pytest.approx(other.test_loss, rel=rel)


@pytest.mark.usefixtures("every_loss")
@pytest.mark.parametrize("network", ["efficient25k", "onepoch", "compact13k"])
def test_a_captured_step_draws_the_same_dropout(
    fit: Fit, make_runtime: MakeRuntime, tiny: Dataset, network: str
) -> None:
    """Weights that stay where they are leave nothing else that could differ; another mask would by some percent."""
    how: dict[str, Any] = {"network": network, "dropout": 0.5, "lr_at": lambda step: 0.0, "optimizer": "sgd"}
    runtime = make_runtime("fp32", "cuda")
    captured = fit(runtime, tiny, build_stepper=DeviceStep, **how)
    assert captured.losses == pytest.approx(fit(runtime, tiny, **how).losses, rel=1e-5)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_a_bad_loss_in_a_captured_step_never_reaches_the_weights(
    fit: Fit, make_runtime: MakeRuntime, tiny: Dataset, optimizer: str
) -> None:
    """Forty-seven further steps are replayed before anyone looks."""
    how: dict[str, Any] = {
        "optimizer": optimizer,
        "momentum": 0.9,
        "ema": 0.7,
        "batch_size": 10,
        "lr_at": lambda step: 1e30 if step == 3 else 0.01,
        "catch": TrainingFailed,
    }
    runtime = make_runtime("fp32", "cuda")
    graphs = Graphs()
    failed = fit(runtime, tiny, build_stepper=graphs, **how)
    at_once = fit(runtime, tiny, **how)
    assert str(failed.error) == str(at_once.error) and "step 5;" in str(failed.error)
    assert len(failed.steps) == 50 and failed.position.step == at_once.position.step == 4
    assert all(parameter.isfinite().all() for parameter in failed.model.parameters())
    assert all(average.isfinite().all() for average in graphs.stepper.average.average)
    for state in graphs.stepper.optimizer.state.values():
        assert all(tensor.isfinite().all() for tensor in state.values())
        assert state.get("step", torch.tensor(4.0)) == 4


def test_a_captured_run_is_resumed_in_the_middle_of_an_epoch(
    fit: Fit, make_runtime: MakeRuntime, tiny: Dataset, tmp_path: Path
) -> None:
    how: dict[str, Any] = {"epochs": 2, "dropout": 0.3, "ema": 0.7, "optimizer": "sgd", "momentum": 0.9}
    runtime = make_runtime("fp32", "cuda")
    whole = fit(runtime, tiny, build_stepper=DeviceStep, **how)
    fit(runtime, tiny, build_stepper=DeviceStep, save_in=tmp_path, stop_after_steps=8, catch=Interrupted, **how)
    checkpoint, _ = newest_intact(tmp_path)
    assert checkpoint is not None and (checkpoint.facts.epoch, checkpoint.facts.step) == (1, 2)
    resumed = fit(runtime, tiny, build_stepper=DeviceStep, resumed=checkpoint, **how)
    assert resumed.history[1].train_loss == pytest.approx(whole.history[1].train_loss, rel=2e-3)
    assert resumed.history[1].test_loss == pytest.approx(whole.history[1].test_loss, rel=2e-3)


@pytest.mark.usefixtures("every_loss")
def test_a_step_that_cannot_be_captured_trains_uncaptured(fit: Fit, make_runtime: MakeRuntime, tiny: Dataset) -> None:
    """A question to the device, which breaks a capture off in its middle; dropout draws on none the worse."""

    def asks(layer: torch.nn.Module, inputs: Any, output: torch.Tensor) -> None:
        if torch.cuda.is_current_stream_capturing():
            output.sum().item()

    said: list[str] = []
    graphs = Graphs(tell=said.append)
    runtime = make_runtime("fp32", "cuda")
    handle = torch.nn.modules.module.register_module_forward_hook(asks)
    try:
        uncaptured = fit(runtime, tiny, dropout=0.3, build_stepper=graphs)
    finally:
        handle.remove()
    assert graphs.stepper.replay is None and len(said) == 1
    assert uncaptured.losses == pytest.approx(fit(runtime, tiny, dropout=0.3).losses, rel=2e-3)


def test_what_no_graph_is_made_of(make_runtime: MakeRuntime, tiny: Dataset) -> None:
    runtime = make_runtime("fp32", "cuda")
    stores = (ImageStore(tiny.train_images, tiny.train_labels, runtime.device, limit) for limit in (None, 0))
    assert [can_capture(runtime.accelerator, store) for store in stores] == [True, False]
    runtime = make_runtime("fp16", "cuda")
    assert not can_capture(runtime.accelerator, ImageStore(tiny.train_images, tiny.train_labels, runtime.device))


def test_a_run_captures_by_itself_and_graph_off_does_not(run_launch: Launch, tmp_path: Path) -> None:
    accuracies = []
    for graph in ("auto", "off"):
        out = tmp_path / graph
        words = ("recipe=onepoch", "dataset=synthetic", "batch_size=1000", f"graph={graph}", f"out={out}")
        ended = run_launch(*words, env=WITH_GPU)
        assert ended.returncode == 0 and "warning" not in ended.stdout, ended.stderr
        accuracies.append(json.loads((out / "result.json").read_text())["accuracy"])
    assert min(accuracies) > 80 and accuracies[0] == pytest.approx(accuracies[1], abs=3)


# Memory


@pytest.mark.parametrize("augmentation", [Augmentation(), Augmentation(rotation=15, translation=0.1)])
def test_images_from_pinned_host_memory_give_identical_batches(
    make_runtime: MakeRuntime, tiny: Dataset, augmentation: Augmentation
) -> None:
    device = make_runtime("fp32", "cuda").device

    def batches(limit: int | None) -> TrainBatches:
        store = ImageStore(tiny.train_images, tiny.train_labels, device, limit)
        assert (store.resident, store.pinned) == (limit is None, limit is not None)
        assert store.images.is_cuda == store.resident
        return TrainBatches(store, batch_size=64, seed=0, mean=0.1307, std=0.3081, augmentation=augmentation)

    for epoch in range(3):  # many copies in flight: a staging buffer used again too early would show
        fed = list(batches(0).epoch(epoch))
        for one, other in zip(batches(None).epoch(epoch), fed, strict=True):
            assert one.images.is_cuda and other.images.is_cuda
            assert torch.equal(one.images, other.images) and torch.equal(one.labels, other.labels)


def test_a_run_takes_the_gpu_by_itself_and_says_so(run_launch: Launch, tmp_path: Path) -> None:
    out = tmp_path / "run"
    ended = run_launch(
        "recipe=onepoch",
        "dataset=synthetic",
        "batch_size=1000",
        "resident_mb=0",
        "precision=bf16",
        f"out={out}",
        env=WITH_GPU,
    )
    assert ended.returncode == 0, ended.stderr
    result = json.loads((out / "result.json").read_text())
    assert (result["device"], result["precision"]) == (torch.cuda.get_device_name(0), "bf16")
    assert result["accuracy"] > 80
    assert "fed from host memory" in ended.stdout


def test_a_gpu_without_enough_memory_ends_in_one_line_that_names_the_batch_size(
    clean_environment: dict[str, str], tmp_path: Path, root: Path
) -> None:
    """Half a GiB of the GPU for this process, and a batch of all 60,000 images."""
    ended = started_with_little_memory(clean_environment | WITH_GPU, tmp_path, root)
    assert ended.returncode == 3
    assert re.fullmatch(r"error: batch_size=60000: the GPU ran out of memory\. Type batch_size=30000\n", ended.stderr)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["status"] == "failed" and "batch_size=60000" in result["error"]


def started_with_little_memory(
    environment: dict[str, str], tmp_path: Path, root: Path
) -> "subprocess.CompletedProcess[str]":
    code = (
        "import runpy, sys, torch\n"
        "share = 2**29 / torch.cuda.get_device_properties(0).total_memory\n"
        "torch.cuda.set_per_process_memory_fraction(share, 0)\n"
        "sys.argv = sys.argv[1:]\n"
        "sys.path.insert(0, '.')\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    words = ("recipe=sub20k", "dataset=synthetic", "batch_size=60000", f"out={tmp_path / 'run'}")
    return subprocess.run(
        [sys.executable, "-c", code, "launch.py", *words], cwd=root, env=environment, capture_output=True, text=True
    )


def test_a_profile_counts_the_device_s_time(run_launch: Launch, tmp_path: Path) -> None:
    words = ("recipe=efficient25k", "dataset=synthetic", "validation=50000", "profile=true", f"out={tmp_path / 'run'}")
    ended = run_launch(*words, cwd=tmp_path, env=WITH_GPU)
    assert (ended.returncode, ended.stderr) == (0, "")
    (folder,) = (tmp_path / "profiles").iterdir()
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["on_gpu"] and len(summary["convolutions"]) == 3
    assert all(row["forward_ms"] > 0 and row["backward_ms"] > 0 for row in summary["convolutions"])
    assert sum(phase["share"] for phase in summary["phases"]) == pytest.approx(100)
    assert sum(part["percent"] for part in summary["verdict"]["parts"]) == 100
    assert "launch overhead" in [part["name"] for part in summary["verdict"]["parts"]]


def test_an_fp16_run_goes_on_from_its_checkpoint(run_launch: Launch, tmp_path: Path) -> None:
    """With the scale that it had reached."""
    words = ("recipe=onepoch", "batch_size=1000", "precision=fp16", "device=cuda", "checkpoint_every=20")
    whole = a_run(run_launch, tmp_path / "whole", *words, env=WITH_GPU)
    assert whole.code == 0, whole.err
    killed = as_if_killed(whole, tmp_path / "killed")
    resumed = a_run(run_launch, killed, *words, "resume=auto", env=WITH_GPU)
    assert resumed.code == 0, resumed.err
    assert resumed.result["optimizer_steps"] == whole.result["optimizer_steps"] == 60
    assert resumed.result["accuracy"] == pytest.approx(whole.result["accuracy"], abs=1)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there are no two GPUs here")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_two_gpus_train_as_one(run_launch: Launch, tmp_path: Path, precision: str) -> None:
    """Over NCCL, with a batch that two do not divide."""
    words = (
        "recipe=onepoch",
        "batch_size=501",
        "dropout=0",
        "device=cuda",
        f"precision={precision}",
        "checkpoint_every=50",
    )
    env = {"CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0,1")}
    one = a_run(run_launch, tmp_path / "one", *words, "processes=1", "graph=off", env=env)
    two = a_run(run_launch, tmp_path / "two", *words, "processes=2", env=env)
    assert (one.code, two.code) == (0, 0), one.err + two.err
    assert two.result["world_size"] == 2 and "2 processes over nccl" in two.out
    assert two.result["total"] == 10_000
    assert two.result["accuracy"] == pytest.approx(one.result["accuracy"], abs=1.5)
    gone_on = a_run(run_launch, as_if_killed(two, tmp_path / "killed"), *words, "processes=2", "resume=auto", env=env)
    assert gone_on.code == 0, gone_on.err
