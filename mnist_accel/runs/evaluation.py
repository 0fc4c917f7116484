"""``evaluation.safetensors``: what the network answered to each test image in its last evaluation."""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from mnist_accel.data.batches import TestBatches
from mnist_accel.data.dataset import Dataset
from mnist_accel.training.exchange import Patience

NAME = "evaluation.safetensors"
SHOWN = 24  # wrong answers that are kept with their images
MAX_BYTES = 1 << 24  # 10,000 images take half a megabyte


@dataclass(frozen=True)
class Evaluation:
    """In the order of the test images."""

    logits: Tensor  # float [n, 10], or [n, 1] where one class stands against the rest
    labels: Tensor  # uint8 [n]: digits
    wrong_index: Tensor  # int64 [k], the most confidently wrong first
    wrong_images: Tensor  # uint8 [k, 28, 28]

    def predictions(self, positive_class: int | None) -> Tensor:
        """Digits; or whether it said yes."""
        return self.logits.argmax(1) if positive_class is None else self.logits[:, 0] > 0


class BadEvaluation(ValueError):
    """No such file as we write it: says why."""


def gather_logits(own: list[Tensor], batches: TestBatches, classes: int, world_size: int, patience: Patience) -> Tensor:
    """Those of all ranks, in the order of the test images, on every rank; only of those that were scored."""
    device = batches.store.device
    # The last column counts who scored an image: a dry run scores few. Zeros add nothing, so every logit is exact.
    everything = torch.zeros(len(batches.store), classes + 1, device=device)
    if own:
        logits = torch.cat(own).float()
        mine = everything[batches.places.start : batches.places.start + len(logits)]
        mine[:, :classes], mine[:, classes] = logits, 1
    if world_size > 1:
        patience.wait(torch.distributed.all_reduce(everything, async_op=True), device)
    return everything.cpu()


def packed(gathered: Tensor, data: Dataset, positive_class: int | None) -> bytes:
    """The file's content, from what ``gather_logits`` gave."""
    scored = gathered[:, -1].nonzero()[:, 0]
    logits, labels = gathered[scored, :-1].contiguous(), data.test_labels[scored]
    wrong = most_confidently_wrong(logits, labels, positive_class)
    tensors = {
        "logits": logits,
        "labels": labels.to(torch.uint8),
        "wrong_index": wrong,
        "wrong_images": data.test_images[scored[wrong]].contiguous(),
    }
    return save(tensors)


def most_confidently_wrong(logits: Tensor, labels: Tensor, positive_class: int | None) -> Tensor:
    """At most ``SHOWN`` places, the worst first."""
    if positive_class is None:
        confidence, answers = logits.softmax(1).max(1)
        wrong = answers != labels
    else:
        confidence, wrong = logits[:, 0].abs(), (logits[:, 0] > 0) != (labels == positive_class)
    places = wrong.nonzero()[:, 0]
    return places[confidence[places].argsort(descending=True, stable=True)][:SHOWN]


def read_evaluation(path: Path, classes: int) -> Evaluation:
    """From a file that anybody may have written; BadEvaluation says what is wrong with it."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise BadEvaluation(f"has more than {MAX_BYTES:,} bytes")
        found = load(path.read_bytes())
        evaluation = Evaluation(*(found[name] for name in Evaluation.__dataclass_fields__))
    except KeyError as error:
        raise BadEvaluation(f"{error.args[0]} is missing") from None
    except (OSError, SafetensorError, ValueError, TypeError, RuntimeError) as error:
        raise BadEvaluation(" ".join(str(error).split())[:200]) from None
    count, shown = len(evaluation.labels.view(-1)), len(evaluation.wrong_index.view(-1))
    expected = {
        "logits": (torch.float32, (count, classes)),
        "labels": (torch.uint8, (count,)),
        "wrong_index": (torch.int64, (shown,)),
        "wrong_images": (torch.uint8, (shown, 28, 28)),
    }
    for name, (dtype, shape) in expected.items():
        tensor = getattr(evaluation, name)
        if (tensor.dtype, tuple(tensor.shape)) != (dtype, shape):
            raise BadEvaluation(f"{name} is {tensor.dtype} {list(tensor.shape)}, not {dtype} {list(shape)}")
    if not evaluation.logits.isfinite().all() or (evaluation.labels > 9).any():
        raise BadEvaluation("logits or labels that cannot be")
    if shown > SHOWN or ((evaluation.wrong_index < 0) | (evaluation.wrong_index >= count)).any():
        raise BadEvaluation("wrong_index names images that are not there")
    return evaluation
