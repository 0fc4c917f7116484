"""Scores a run's network again, on the images that the run was scored on."""

from dataclasses import dataclass
from pathlib import Path

from mnist_accel.data.batches import ImageStore, TestBatches
from mnist_accel.data.dataset import Dataset, hold_out, load_dataset
from mnist_accel.errors import UserError
from mnist_accel.inference.weights import ReadyNetwork
from mnist_accel.machine.runtime import Runtime, choose_device, choose_precision, start_runtime
from mnist_accel.runs.record import read_recipe, read_result, settings_of
from mnist_accel.runs.result import RunResult
from mnist_accel.training.loop import Score, evaluate
from mnist_accel.training.objective import build_objective


@dataclass(frozen=True)
class Then:
    """What a run's folder says of how it was scored; all of it unknown for weights that lie alone."""

    result: RunResult | None = None
    validation: int = 0
    data_dir: str | None = None

    @classmethod
    def of(cls, folder: Path) -> "Then":
        data_dir = settings_of(folder)[1].get("data_dir")
        return cls(
            result=read_result(folder, str(folder)) if (folder / "result.json").exists() else None,
            validation=read_recipe(folder, str(folder)).validation if (folder / "recipe.json").exists() else 0,
            data_dir=data_dir if isinstance(data_dir, str) and Path(data_dir).is_dir() else None,
        )


def load_data(then: Then, dataset: str, data_dir: str | None) -> Dataset:
    """The data set that the run used, unless another is asked for."""
    if dataset == "auto" and then.result and then.result.dataset in ("mnist", "synthetic"):
        dataset = then.result.dataset
    data = load_dataset(dataset, data_dir or then.data_dir)
    return hold_out(data, then.validation) if then.validation else data


def start_as(then: Then, precision: str, device: str, threads: int) -> Runtime:
    """``precision=auto`` is the run's own, where this device has it."""
    if precision == "auto":
        precision = then.result.precision if then.result else "fp32"
        try:
            precision = choose_precision(precision, choose_device(device))
        except UserError:
            precision = "fp32"
    return start_runtime(precision, device, threads)


def score(network: ReadyNetwork, data: Dataset, runtime: Runtime) -> Score:
    meta = network.meta
    store = ImageStore(data.test_images, data.test_labels, runtime.device)
    batches = TestBatches(store, mean=meta.mean, std=meta.std, rank=runtime.rank, world_size=runtime.world_size)
    # Mixed precision, as while training; a single evaluation has no use for DDP.
    model = runtime.accelerator.prepare_model(
        network.network.to(runtime.device), device_placement=False, evaluation_mode=True
    )
    binary = meta.positive_class is not None
    objective = build_objective("binary" if binary else "cross_entropy", 0.0, meta.positive_class or 0)
    return evaluate(model, batches, objective, runtime.accelerator, test_shifts=meta.test_shifts)
