"""``model.safetensors``: the weights of a run, and in its header what it takes to use them."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from mnist_accel.errors import UserError
from mnist_accel.files import read_regular
from mnist_accel.recipe import MOST_SHIFTS, Recipe

MAX_BYTES = 1 << 30  # ours stay below a megabyte; a hostile one must not fill the memory
# Not said in a header: what has no positive class, and what is scored once, is the file that it always was.
UNSAID = (("positive_class", None), ("test_shifts", 0))


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="ignore", allow_inf_nan=False))
class WeightsMeta:
    """Which network the weights are of, what images go through before they enter it, and how they are scored."""

    network: str  # a name in mnist_accel/models/
    dropout: Annotated[float, Field(ge=0, lt=1)]
    mean: float
    std: Annotated[float, Field(gt=0)]
    recipe: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
    positive_class: Annotated[int, Field(ge=0, le=9)] | None = None  # the digit that a network of one output knows
    test_shifts: Annotated[int, Field(ge=0, le=MOST_SHIFTS)] = 0  # as in the recipe
    format: Literal["pt"] = "pt"  # other programs take it for torch's

    @classmethod
    def of(cls, recipe: Recipe) -> "WeightsMeta":
        return cls(
            network=recipe.model,
            dropout=recipe.dropout,
            mean=recipe.mean,
            std=recipe.std,
            recipe=recipe.name,
            positive_class=recipe.positive_class if recipe.loss == "binary" else None,
            test_shifts=recipe.test_shifts,
        )


def pack(state: Mapping[str, Tensor], meta: WeightsMeta) -> bytes:
    texts = {key: str(value) for key, value in asdict(meta).items() if (key, value) not in UNSAID}
    content = save({name: tensor.cpu().contiguous() for name, tensor in state.items()}, metadata=texts)
    # safetensors shuffles the texts in every process; equal weights are to be equal files.
    header, tensors = split(content)
    header["__metadata__"] = texts
    packed = json.dumps(header, separators=(",", ":")).encode()
    packed += b" " * (-len(packed) % 8)
    return len(packed).to_bytes(8, "little") + packed + tensors


def split(content: bytes) -> tuple[dict[str, object], bytes]:
    """A safetensors file's header and what follows it; ValueError where that is cut off or no JSON."""
    size = int.from_bytes(content[:8], "little")
    if not 0 < size <= len(content) - 8:
        raise ValueError("its header is cut off")
    header = json.loads(content[8 : 8 + size])
    if not isinstance(header, dict):
        raise ValueError("its header is no table")
    return header, content[8 + size :]


def read_weights(path: Path) -> tuple[WeightsMeta, dict[str, Tensor]]:
    """What ``pack`` wrote; UserError, one line, where the file is anything else. Nothing is ever unpickled."""
    try:
        content = read_regular(path, MAX_BYTES)
        texts = split(content)[0].get("__metadata__", {})
        tensors = load(content)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}. Name a run's folder, or its model.safetensors") from None
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: no sound safetensors file ({one_line(error)}). Train that run again") from None
    if not isinstance(texts, dict) or "network" not in texts:
        raise UserError(
            f"{path}: does not say which network it is of; an earlier version wrote it, or another program. "
            "Train that run again with this version"
        )
    try:
        return TypeAdapter(WeightsMeta).validate_strings(texts), tensors
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"]))
        raise UserError(f"{path}: {where} in its header: {problem['msg']}. Train that run again") from None


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
