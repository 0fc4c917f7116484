"""One rank of test_world_size's jobs: trains and scores a tiny data set, and rank 0 writes down what came of it.

What is to be done comes as words, one after the other in one job: most of a job's time is its start.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path
from zlib import crc32

import pytest
import torch
from accelerate.utils import gather_object
from safetensors.torch import save_file
from torch import Tensor, nn

from mnist_accel import errors
from mnist_accel.data.dataset import Dataset
from mnist_accel.data.synthetic import draw_dataset
from mnist_accel.machine.job import wait_for_ranks
from mnist_accel.machine.runtime import Runtime, start_runtime
from mnist_accel.models import build_model
from mnist_accel.models.layers import synchronise_batch_norm
from mnist_accel.recipe import Recipe, RunOptions
from mnist_accel.runs import trainer as trainer_module
from mnist_accel.runs.checkpoint import read_checkpoint, write_checkpoint
from mnist_accel.runs.trainer import Trainer, TrainerCallbacks
from mnist_accel.training.loop import evaluate
from mnist_accel.training.objective import TenClasses
from mnist_accel.training.state import Position, StepInfo

TRAIN_IMAGES, EPOCHS = 598, 2  # 199, 199, 199 and 1: nothing divides, and the last has too few
TEST_IMAGES = 205  # by 2, 3 and 7 with a remainder
FEW_TEST_IMAGES = 5


RECIPE = Recipe(
    name="ranks",
    model="efficient25k",
    epochs=EPOCHS,
    batch_size=199,
    optimizer="sgd",
    lr=0.05,
    weight_decay=1e-3,
    schedule="onecycle",
    warmup=0.3,
    clip_norm=1.0,
    ema=0.5,
    dropout=0.0,
    rotation=10,
    translation=0.1,
    scale=0.1,
    shear=5,
)


class Doubled(nn.Module):
    """In double precision, in which only a mistake can make ranks differ by more than 1e-12."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network.double()

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images.double())


def main(home: Path, *everything: str) -> None:
    runtime = start_runtime("fp32", "cpu", 1)
    for asked in everything:
        what, _, resumed_from = asked.partition("=")
        folder = home / what
        folder.mkdir(exist_ok=True)
        if what == "halves":
            said = normalise_halves(folder, runtime)
        elif what == "score":
            said = score(runtime)
        else:
            said = train(folder, what, runtime, Path(resumed_from) if resumed_from else None)
        if runtime.rank == 0:
            (folder / "said.json").write_text(json.dumps({"world_size": runtime.world_size} | said))
    wait_for_ranks()
    errors.end(0)


def build(recipe: Recipe, runtime: Runtime, test_images: int = TEST_IMAGES) -> Trainer:
    data = Dataset(name="synthetic", reason="a test", checksum="0" * 64, **draw_dataset(0, TRAIN_IMAGES, test_images))
    trainer = Trainer.build(recipe, RunOptions(checkpoint_every=3), runtime, data)
    trainer.test_batches.batch_size = 30
    return trainer


def score(runtime: Runtime) -> dict[str, object]:
    scores = []
    for images in (TEST_IMAGES, FEW_TEST_IMAGES):
        trainer = build(RECIPE, runtime, images)
        found = evaluate(trainer.model, trainer.test_batches, TenClasses(), runtime.accelerator)
        scores.append([found.correct, found.total, found.loss])
    return {"scores": scores}


def train(folder: Path, what: str, runtime: Runtime, resumed_from: Path | None) -> dict[str, object]:
    recipe = replace(RECIPE, sync_batchnorm=what == "synced", dropout=0.3 if what == "statistics" else 0.0)
    if what in ("exact", "buckets"):
        recipe = replace(recipe, model="is3", loss="binary")  # which has no batch norm
    with pytest.MonkeyPatch.context() as patch:
        if what == "buckets":
            patch.setattr(runtime.accelerator.ddp_handler, "bucket_cap_mb", 0.1)  # of is3's 1.2 in double precision
        if what != "statistics":
            patch.setattr(trainer_module, "build_model", lambda *asked: Doubled(build_model(*asked)))
        trainer = build(recipe, runtime)
    model = trainer.model
    if resumed_from:
        trainer.go_on_from(read_checkpoint(resumed_from))
    rates: list[float] = []
    losses: list[float] = []
    weights: dict[str, Tensor] = {}
    own_buffers_differed, buffers_differ = [], []
    random_states: list[int] = []

    def on_step(info: StepInfo) -> None:
        rates.append(trainer.optimizer.param_groups[0]["lr"])
        losses.append(info.loss)
        for name, parameter in model.named_parameters():
            weights[f"{len(losses)}.{name}"] = parameter.detach().clone()
        own_buffers_differed.append(differs_between_ranks(model))
        random_states.append(crc32(torch.get_rng_state().numpy().tobytes()))

    def on_save(position: Position) -> None:
        buffers_differ.append(differs_between_ranks(model))
        if runtime.rank == 0 and position.epoch == 0:
            write_checkpoint(folder / "checkpoints", f"{position.step}.safetensors", *trainer.checkpoint())

    trainer.run(TrainerCallbacks(on_step=on_step, on_save=on_save))
    buffers_differ.append(differs_between_ranks(model))
    weights |= {f"left.{name}": value for name, value in model.state_dict().items()}
    if runtime.rank == 0:
        save_file({name: value.contiguous() for name, value in weights.items()}, folder / "weights.safetensors")
    history = trainer.position.history
    return {
        "rates": rates,
        "losses": losses,
        "images": [stats.images for stats in history],
        "train_accuracies": [stats.train_accuracy for stats in history],
        "scores": [[stats.correct, stats.total, stats.test_loss] for stats in history],
        "buffers_differ": buffers_differ,
        "own_buffers_differed": own_buffers_differed,
        "random_states": gather_object([random_states]),
    }


def normalise_halves(folder: Path, runtime: Runtime) -> dict[str, object]:
    """Batch norm in half precision over a batch that one process holds two thirds of, beside torch's own over all."""
    generator = torch.Generator().manual_seed(0)
    everything = torch.randn(3 * 64, 2, 28, 28, generator=generator) * 3 + 40  # 150,528 values a channel
    mine = everything if runtime.world_size == 1 else (everything[:128], everything[128:])[runtime.rank]
    facts: dict[str, object] = {}
    for name, dtype in (("fp16", torch.float16), ("bf16", torch.bfloat16)):
        whole, layer = nn.BatchNorm2d(2), nn.BatchNorm2d(2)
        synchronise_batch_norm(layer)
        expected, inputs = everything.to(dtype).requires_grad_(), mine.to(dtype).requires_grad_()
        expected_output, output = whole(expected), layer(inputs)
        (expected_output.float() ** 3).sum().backward()
        (output.float() ** 3).sum().backward()
        share = slice(0, 128) if runtime.rank == 0 else slice(128, 192)
        pairs = {
            "outputs": (output, expected_output[share]),
            "gradients": (inputs.grad, expected.grad[share]),
            "mean": (layer.running_mean, whole.running_mean),
            "variance": (layer.running_var, whole.running_var),
        }
        facts[name] = {key: (one - other).abs().max().item() for key, (one, other) in pairs.items()}
        assert output.dtype == dtype and layer.running_var.dtype == torch.float32
    (folder / f"said-{runtime.rank}.json").write_text(json.dumps(facts))
    return facts


def differs_between_ranks(model: nn.Module) -> bool:
    buffers = [buffer.double().view(-1) for buffer in model.buffers()]
    if not buffers or not torch.distributed.is_initialized():
        return False
    low, high = torch.cat(buffers), torch.cat(buffers)
    torch.distributed.all_reduce(low, torch.distributed.ReduceOp.MIN)
    torch.distributed.all_reduce(high, torch.distributed.ReduceOp.MAX)
    return not torch.equal(low, high)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
