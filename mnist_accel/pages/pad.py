"""The drawing pad of a report: a sheet to draw on, and the run's network in the page to say what it is."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mnist_accel.data.batches import background_of
from mnist_accel.errors import UserError
from mnist_accel.inference.weights import load
from mnist_accel.models.layers import logits_over_shifts
from mnist_accel.pages.network import UnknownLayer, described
from mnist_accel.pages.page import HERE, Html, joined, tag
from mnist_accel.runs.record import RunRecord

SCRIPTS = ("forward.js", "ink.js", "pad.js")
MOST_BYTES = 2_000_000  # of weights in base64; a page may have 3 MB


@dataclass(frozen=True)
class Pad:
    """What ``document`` takes: a section's body, scripts, and what they read."""

    body: Html
    scripts: tuple[str, ...] = ()
    data: Mapping[str, Any] = field(default_factory=dict)


def pad_of(record: RunRecord) -> Pad | None:
    """That of a run's folder; None where it has no weights, as of a run that did not end."""
    path = record.folder / "model.safetensors"
    if not path.is_file():
        return None
    try:
        ready = load(path)
    except UserError as error:
        return without_pad(f"its weights cannot be loaded: {error}")
    except Exception as error:  # whatever somebody's network does
        return without_pad(f"its weights cannot be loaded ({type(error).__name__})")
    meta = ready.meta
    return drawing_pad(ready.network, meta.mean, meta.std, meta.positive_class, meta.test_shifts)


def drawing_pad(network: nn.Module, mean: float, std: float, positive_class: int | None, test_shifts: int = 0) -> Pad:
    """For a network in evaluation mode on the CPU, from normalised images to logits. One that forward.js does not
    know, or that is too large, costs the pad: a sentence stands there."""
    try:
        layers = described(network)
    except UnknownLayer as error:
        return without_pad(f"it {error}, which the script of this page does not know")
    size = sum(len(value) for layer in layers for value in layer.values() if isinstance(value, str))
    if size > MOST_BYTES:
        return without_pad(
            f"its weights would take {size / 1e6:.1f} MB of the page, and may take {MOST_BYTES / 1e6:.0f}"
        )
    with torch.inference_mode():
        image = (pattern() / 255 - mean) / std
        check = logits_over_shifts(network, image, test_shifts, background_of(mean, std))[0]
    if not check.isfinite().all():
        return without_pad("it answers with numbers that are none")
    scoring = {"mean": mean, "std": std, "shifts": test_shifts, "digit": positive_class}
    data = {"layers": layers, **scoring, "check": check.tolist()}
    scripts = tuple((HERE / name).read_text(encoding="utf-8") for name in SCRIPTS)
    return Pad(body(range(10) if positive_class is None else [positive_class]), scripts, {"network": data})


def pattern() -> Tensor:
    """The image that the page shows to its network before anybody else may: agreesWithTorch in pad.js makes the
    same."""
    return (torch.arange(28 * 28) * 37 % 256).reshape(1, 1, 28, 28)


def without_pad(why: str) -> Pad:
    return Pad(tag("p", f"No pad for this network: {why}.", class_="note"))


def body(digits: Iterable[int]) -> Html:
    """Shown by pad.js, once it has seen that it works here."""
    chances = [
        tag("li", tag("b", digit), tag("span", tag("i"), class_="track"), tag("span", "–", class_="chance"))
        for digit in digits
    ]
    picture = tag("canvas", id="seen", width=28, height=28, role="img", aria_label="The image that the network sees")
    legend = tag("span", "what the network sees: 28 × 28 pixels, scaled and centred as MNIST was")
    seen = tag("div", picture, legend, class_="seen")
    sheet = tag("canvas", id="sheet", width=560, height=560, role="img", aria_label="A sheet to draw a digit on")
    clear = tag("button", "Clear", type="button", id="clear")
    answer = tag("p", id="answer", role="status")
    beside = tag("div", answer, tag("ul", *chances, id="chances"), seen)
    broken = "No pad here: this browser does not compute what the network computed when it was trained."
    return joined(
        [
            tag("noscript", tag("p", "Drawing needs JavaScript, which is switched off here.", class_="note")),
            tag("p", broken, class_="note", id="no-pad", hidden=True),
            tag("div", tag("div", sheet, clear), beside, class_="pad", id="pad", hidden=True),
        ]
    )
