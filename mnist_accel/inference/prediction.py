"""What a network says of image files."""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mnist_accel.files import read_regular
from mnist_accel.inference.images import MAX_BYTES, SUFFIXES, NoDigit, read_digit
from mnist_accel.inference.weights import ReadyNetwork

STDIN = "-"
AT_ONCE = 500


@dataclass(frozen=True)
class Prediction:
    """Which digit it is, and which it would be if it were not that one."""

    file: str
    digit: int
    probability: float
    runner_up: int
    runner_up_probability: float


@dataclass(frozen=True)
class Answer:
    """Of a network that knows one digit: whether it is that one, and how probable this answer is."""

    file: str
    positive_class: int
    answer: str  # "yes" or "no"
    probability: float


def predict(
    network: ReadyNetwork, typed: Sequence[str], on_unreadable: Callable[[str, str], None]
) -> list[Prediction | Answer]:
    """In the order typed; of a file that holds no digit ``on_unreadable`` is told why."""
    files, digits = [], []
    for file in files_of(typed, on_unreadable):
        try:
            digits.append(torch.from_numpy(read_digit(content_of(file))))
            files.append(file)
        except NoDigit as error:
            on_unreadable(file, str(error))
    if not files:
        return []
    with torch.inference_mode():
        logits = torch.cat([network(batch) for batch in torch.stack(digits).split(AT_ONCE)])
    return interpreted(files, logits, network.meta.positive_class)


def interpreted(files: Sequence[str], logits: Tensor, positive_class: int | None) -> list[Prediction | Answer]:
    if positive_class is not None:
        yes = logits.double().sigmoid().squeeze(1).tolist()
        return [
            Answer(file, positive_class, "yes" if said > 0.5 else "no", max(said, 1 - said))
            for file, said in zip(files, yes, strict=True)
        ]
    probabilities, classes = logits.double().softmax(dim=1).topk(2)
    rows = zip(files, classes.tolist(), probabilities.tolist(), strict=True)
    return [Prediction(file, first, most, second, next_) for file, (first, second), (most, next_) in rows]


def files_of(typed: Sequence[str], on_unreadable: Callable[[str, str], None]) -> Iterator[str]:
    """A folder stands for the image files in it, by name."""
    for name in typed:
        if name == STDIN or not os.path.isdir(name):
            yield name
            continue
        try:
            images = sorted(entry for entry in os.listdir(name) if entry.lower().endswith(SUFFIXES))
        except OSError as error:
            on_unreadable(name, str(error.strerror))
            continue
        if not images:
            on_unreadable(name, f"no images in that folder ({', '.join(SUFFIXES)})")
        yield from (os.path.join(name, image) for image in images)


def content_of(file: str) -> bytes:
    """NoDigit where there is nothing to be read."""
    if file == STDIN:
        return content_of_stdin()
    try:
        return read_regular(Path(file), MAX_BYTES)
    except (OSError, ValueError) as error:
        raise NoDigit(getattr(error, "strerror", None) or str(error)) from None


def content_of_stdin() -> bytes:
    if sys.stdin is None:  # closed by whoever started us
        raise NoDigit("nothing comes in")
    content = sys.stdin.buffer.read(MAX_BYTES + 1)
    if not 0 < len(content) <= MAX_BYTES:
        raise NoDigit(f"has more than {MAX_BYTES:,} bytes" if content else "nothing comes in")
    return content
