"""One rank of test_world_size's jobs: trains and scores a tiny data set, and rank 0 writes down what came of it."""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mnist_accel import cli, errors
from mnist_accel.data.batches import Augmentation, ImageStore, TestBatches, TrainBatches
from mnist_accel.data.synthetic import draw_dataset
from mnist_accel.machine.job import wait_for_ranks
from mnist_accel.machine.runtime import Runtime, prepare, start_runtime
from mnist_accel.models import build_model
from mnist_accel.models.layers import synchronise_batch_norm
from mnist_accel.runs.checkpoint import CheckpointMeta, read_checkpoint, restore, snapshot, write_checkpoint
from mnist_accel.training.loop import evaluate, train
from mnist_accel.training.objective import build_objective
from mnist_accel.training.optim import WeightAverage, build_optimizer, lr_factor
from mnist_accel.training.state import Position, StepInfo

TRAIN_IMAGES, BATCH_SIZE, EPOCHS = 598, 199, 2  # 199, 199, 199 and 1: nothing divides, and the last has too few
TEST_IMAGES = 205  # by 2, 3 and 7 with a remainder
FEW_TEST_IMAGES = 5


class Doubled(nn.Module):
    """In double precision, in which only a mistake can make ranks differ by more than 1e-12."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network.double()

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images.double())


def main(folder: Path, what: str, resumed_from: Path | None) -> None:
    runtime = start_runtime("fp32", "cpu", 1)
    if what == "halves":
        normalise_halves(folder, runtime)
        return
    ranks = {"rank": runtime.rank, "world_size": runtime.world_size}
    normalisation = {"mean": 0.1307, "std": 0.3081}
    data = draw_dataset(0, TRAIN_IMAGES, TEST_IMAGES)
    test_store = ImageStore(data["test_images"], data["test_labels"], runtime.device)
    test_batches = TestBatches(test_store, batch_size=30, **normalisation, **ranks)
    torch.manual_seed(0)
    binary = what in ("exact", "buckets")  # is3 has no batch norm
    if what == "buckets" and runtime.world_size > 1:
        runtime.accelerator.ddp_handler.bucket_cap_mb = 0.1  # of the 1.2 that is3 has in double precision
    model = Doubled(build_model("is3", 0.0)) if binary else build_model("efficient25k", 0.3)
    if what == "synced":
        model = Doubled(build_model("efficient25k", 0.0))
        if runtime.world_size > 1:
            synchronise_batch_norm(model)
    objective = build_objective("binary" if binary else "cross_entropy", 0.0, 3)
    said: dict[str, object] = {"world_size": runtime.world_size}
    if what == "score":
        scores = []
        for images in (TEST_IMAGES, FEW_TEST_IMAGES):
            store = ImageStore(data["test_images"][:images], data["test_labels"][:images], runtime.device)
            batches = TestBatches(store, batch_size=30, **normalisation, **ranks)
            score = evaluate(model, batches, objective, runtime.accelerator)
            scores.append([score.correct, score.total, score.loss])
        said["scores"] = scores
    else:
        optimizer = build_optimizer("sgd", model.parameters(), lr=1, momentum=0.9, nesterov=False, weight_decay=1e-3)
        prepared, prepared_optimizer = prepare(runtime, model, optimizer)
        average = WeightAverage(model, 0.5)
        place = Position()
        if resumed_from:
            saved = read_checkpoint(resumed_from)
            restore(saved.tensors, model, optimizer, average)
            facts = saved.facts
            average.steps = facts.average_steps
            place = Position(facts.epoch, facts.step, facts.loss_sum, facts.images, facts.seconds)
        augmentation = Augmentation(rotation=10, translation=0.1, scale=0.1, shear=5)
        train_batches = TrainBatches(
            ImageStore(data["train_images"], data["train_labels"], runtime.device),
            batch_size=BATCH_SIZE,
            seed=0,
            augmentation=augmentation,
            **normalisation,
            **ranks,
        )
        rates: list[float] = []
        losses: list[float] = []
        weights: dict[str, Tensor] = {}
        own_buffers_differed, buffers_differ = [], []

        def total_steps() -> int:
            return EPOCHS * train_batches.steps_per_epoch

        def on_step(info: StepInfo) -> None:
            rates.append(optimizer.param_groups[0]["lr"])
            losses.append(info.loss)
            for name, parameter in model.named_parameters():
                weights[f"{len(losses)}.{name}"] = parameter.detach().clone()
            own_buffers_differed.append(differs_between_ranks(model))

        def on_save(position: Position) -> None:
            buffers_differ.append(differs_between_ranks(model))
            if runtime.rank == 0 and position.epoch == 0:
                write_checkpoint(
                    folder / "checkpoints",
                    f"{position.step}.safetensors",
                    snapshot(model, optimizer, average),
                    CheckpointMeta(
                        recipe={},
                        dataset="",
                        world_size=runtime.world_size,
                        epoch=0,
                        step=position.step,
                        loss_sum=position.loss_sum,
                        images=position.images,
                        seconds=position.seconds,
                        average_steps=average.steps,
                    ),
                )

        history = train(
            prepared,
            prepared_optimizer,
            train_batches,
            test_batches,
            objective,
            runtime.accelerator,
            epochs=EPOCHS,
            lr_at=lambda step: 0.05 * lr_factor("onecycle", step, total_steps(), warmup=0.3),
            seed=0,
            clip_norm=1.0,
            average=average,
            position=place,
            save_every=3,
            on_save=on_save,
            on_step=on_step,
        )
        buffers_differ.append(differs_between_ranks(model))
        said |= {"rates": rates, "losses": losses, "images": [stats.images for stats in history]}
        said |= {"scores": [[stats.correct, stats.total, stats.test_loss] for stats in history]}
        said |= {"buffers_differ": buffers_differ, "own_buffers_differed": own_buffers_differed}
        weights |= {f"left.{name}": value.contiguous() for name, value in model.state_dict().items()}
        if runtime.rank == 0:
            save_file({name: value.contiguous() for name, value in weights.items()}, folder / "weights.safetensors")
    if runtime.rank == 0:
        (folder / "said.json").write_text(json.dumps(said))
    wait_for_ranks()
    errors.end(0)


def normalise_halves(folder: Path, runtime: Runtime) -> None:
    """Batch norm in half precision over a batch that one process holds two thirds of, beside torch's own over all."""
    generator = torch.Generator().manual_seed(0)
    everything = torch.randn(3 * 64, 2, 28, 28, generator=generator) * 3 + 40  # 150,528 values a channel
    mine = everything if runtime.world_size == 1 else (everything[:128], everything[128:])[runtime.rank]
    facts: dict[str, object] = {"world_size": runtime.world_size}
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
    if runtime.rank == 0:
        (folder / "said.json").write_text(json.dumps(facts))
    wait_for_ranks()
    errors.end(0)


def differs_between_ranks(model: nn.Module) -> bool:
    buffers = [buffer.double().view(-1) for buffer in model.buffers()]
    if not buffers or not torch.distributed.is_initialized():
        return False
    low, high = torch.cat(buffers), torch.cat(buffers)
    torch.distributed.all_reduce(low, torch.distributed.ReduceOp.MIN)
    torch.distributed.all_reduce(high, torch.distributed.ReduceOp.MAX)
    return not torch.equal(low, high)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]) if len(sys.argv) > 3 else None)
