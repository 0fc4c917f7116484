"""The drawing pad in a real browser: torch's logits, scaled and centred as MNIST was, drawn on by mouse and touch."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from browser import opened
from torch import Tensor, nn

from mnist_accel import models
from mnist_accel.data.dataset import Dataset
from mnist_accel.models import build_model
from mnist_accel.pages import pad
from mnist_accel.pages.page import Section, document, tag

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

MEAN, STD = 0.1307, 0.3081
Point = tuple[float, float]
SEVEN = [(0.3, 0.25), (0.68, 0.25), (0.6, 0.45), (0.45, 0.78)]  # shares of the sheet


def lively(network: nn.Module, seed: int = 0) -> nn.Module:
    """With batch norm's statistics and weights as no fresh network has them."""
    torch.manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            nn.init.normal_(module.running_mean, std=0.5)
            nn.init.uniform_(module.running_var, 0.2, 3.0)
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    return network.eval().requires_grad_(False)


def written(folder: Path, network: nn.Module, digit: int | None = None) -> Path:
    made = pad.drawing_pad(network, MEAN, STD, digit)
    path = folder / "page.html"
    page = document("a page", tag("h1", "a page"), [Section("Draw a digit", made.body)], made.scripts, made.data)
    path.write_text(page, encoding="utf-8")
    return path


def torch_logits(network: nn.Module, images: Tensor) -> Tensor:
    with torch.inference_mode():
        return network((images[:, None] / 255 - MEAN) / STD)


def page_logits(page: "Page", images: Tensor, layers: Any = None) -> Tensor:
    """As pad.js computes them, of the network in the page or of these layers."""
    answers = page.evaluate(
        """([images, given]) => {
            const data = JSON.parse(document.getElementById("network").textContent);
            const layers = forward.prepared(given ?? data.layers);
            const seen = (image) => Float64Array.from(image, (value) => (value / 255 - data.mean) / data.std);
            return images.map((image) => forward.logits(layers, seen(image)));
        }""",
        [images.reshape(len(images), -1).tolist(), layers],
    )
    return torch.tensor(answers)


@pytest.mark.parametrize("name", models.names())
def test_the_page_computes_what_torch_computes(name: str, browser: "Browser", tiny: Dataset, tmp_path: Path) -> None:
    network = lively(build_model(name, 0.1))
    images = tiny.test_images[:100]
    with opened(browser, written(tmp_path, network, 3 if name == "is3" else None)) as page:
        assert page.locator("#pad").is_visible()
        torch.testing.assert_close(page_logits(page, images), torch_logits(network, images), rtol=0, atol=1e-4)
    assert (tmp_path / "page.html").stat().st_size < 1_000_000
