"""Writes and reads checkpoints: one safetensors file each, verified before anything in it is used, never unpickled.

A file holds the tensors, and as JSON in its header what is no tensor. The SHA-256 beside them covers all
of it, so a flipped bit or a cut-off tail is noticed wherever it is. A file is written aside, synced and renamed; older
ones are pruned only after that.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, field
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from mnist_accel.files import write_whole
from mnist_accel.recipe import CONFIG
from mnist_accel.training.optim import WeightAverage
from mnist_accel.training.state import Position

KEEP = 2
MAX_BYTES = 1 << 30  # ours stay below a megabyte; a hostile one must not fill the memory

Count = Annotated[int, Field(ge=0)]


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class CheckpointMeta:
    """What was being trained and how far it was: everything in a checkpoint that is no tensor."""

    recipe: dict[str, Any]
    dataset: str  # checksum
    world_size: Count
    position: Position
    average_steps: Count = 0
    scaler: dict[str, int | float] = field(default_factory=dict)
    strides: dict[str, list[int]] = field(default_factory=dict)


@dataclass(frozen=True, config={"arbitrary_types_allowed": True})
class Checkpoint:
    path: Path
    sha256: str
    meta: CheckpointMeta
    tensors: dict[str, Tensor]


class DamagedCheckpoint(ValueError):
    """Not a checkpoint as we write them: says why."""


def snapshot(model: nn.Module, optimizer: torch.optim.Optimizer, average: WeightAverage | None) -> dict[str, Tensor]:
    """All tensors that training would need to go on as if nothing had happened."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{key}": value for key, value in state.items() if isinstance(value, Tensor)}
    if average is not None:
        tensors |= {f"average.{index}": tensor for index, tensor in enumerate(average.average)}
    return tensors


def restore(
    tensors: Mapping[str, Tensor], model: nn.Module, optimizer: torch.optim.Optimizer, average: WeightAverage | None
) -> None:
    """The inverse of ``snapshot``, in place: what holds on to the model's tensors holds on to them still."""
    model.load_state_dict(dict(with_prefix("model.", tensors)))
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in with_prefix("optimizer.", tensors):
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    if average is not None:
        for index, tensor in with_prefix("average.", tensors):
            average.average[int(index)].copy_(tensor)


def with_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    return ((name.removeprefix(prefix), tensor) for name, tensor in tensors.items() if name.startswith(prefix))


def write_checkpoint(folder: Path, name: str, tensors: Mapping[str, Tensor], meta: CheckpointMeta) -> Path:
    """Commits a checkpoint, then prunes all but the newest. OSError, with nothing pruned, where the disk is full."""
    packed = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
    # safetensors keeps values in row-major order only; fused optimizers differ if a state comes back in another one.
    strides = {key: list(tensor.stride()) for key, tensor in tensors.items()}
    text = json.dumps(asdict(meta) | {"strides": strides}, sort_keys=True)
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / name
    write_whole(target, save(packed, metadata={"meta": text, "sha256": digest(text, packed)}))
    # Newer ones, which a resume had to pass over, must not cost this one its place.
    older = [path for path in newest_first(folder) if path.name < name]
    for old in [*older[KEEP - 1 :], *folder.glob(".*.safetensors.*")]:  # and what a kill left half-written
        with suppress(OSError):
            old.unlink()
    return target


def digest(text: str, tensors: Mapping[str, Tensor]) -> str:
    whole = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        whole.update(f"{name} {tensor.dtype} {list(tensor.shape)};".encode())
        whole.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return whole.hexdigest()


def read_checkpoint(path: Path) -> Checkpoint:
    """A verified checkpoint; DamagedCheckpoint says what is wrong with the file."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise DamagedCheckpoint(f"has more than {MAX_BYTES:,} bytes")
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            # A clone: safetensors maps the file, and what is verified must not change with it afterwards.
            packed = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        if "meta" not in metadata:
            raise DamagedCheckpoint("was not written by this version of the program")
        if digest(metadata["meta"], packed) != metadata["sha256"]:
            raise DamagedCheckpoint("its SHA-256 is not the one that it was stored with")
        meta: CheckpointMeta = TypeAdapter(CheckpointMeta).validate_json(metadata["meta"])
        refuse_impossible(meta.position)
        tensors = {name: with_strides(tensor, meta.strides[name]) for name, tensor in packed.items()}
    except DamagedCheckpoint:
        raise
    except (OSError, SafetensorError, ValidationError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise DamagedCheckpoint(in_one_line(error)) from None
    return Checkpoint(path, metadata["sha256"], meta, tensors)


def refuse_impossible(position: Position) -> None:
    """What no training reaches: a checkpoint is signed, but perhaps not by this program."""
    epochs = [stats.epoch for stats in position.history]
    if len(epochs) != position.epoch or epochs != list(range(1, len(epochs) + 1)):
        raise DamagedCheckpoint(f"its history is not that of {position.epoch} finished epochs")
    step, images, seconds = position.step, position.images, position.seconds
    if min(step, images, seconds) < 0 or (step == 0) != (images == 0):
        raise DamagedCheckpoint(f"{step} steps cannot have seen {images} images in {seconds} seconds")
    if not 0 <= (position.correct or 0) <= images:
        raise DamagedCheckpoint(f"{position.correct} correct answers for {images} images")


def in_one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def with_strides(tensor: Tensor, strides: list[int]) -> Tensor:
    if list(tensor.stride()) == strides:
        return tensor
    if not is_dense_order(list(tensor.shape), strides):
        raise DamagedCheckpoint(f"strides {strides} do not fit {list(tensor.shape)}")
    return torch.empty_strided(tensor.shape, strides, dtype=tensor.dtype).copy_(tensor)


def is_dense_order(shape: list[int], strides: list[int]) -> bool:
    """Whether the strides only order the axes of one dense block: those of a file must not reach beyond it."""
    if min(strides, default=0) < 0:  # also of an axis of one, where torch would take it
        return False
    expected = 1
    for stride, size in sorted((stride, size) for stride, size in zip(strides, shape, strict=True) if size > 1):
        if stride != expected:
            return False
        expected *= size
    return True


def newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"), reverse=True) if folder.is_dir() else []


def newest_intact(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that is not damaged, and a line for each newer one that is."""
    complaints: list[str] = []
    for path in newest_first(folder):
        try:
            return read_checkpoint(path), complaints
        except DamagedCheckpoint as error:
            complaints.append(f"{path}: {error}")
    return None, complaints
