"""The drawing pad in a real browser: torch's logits, scaled and centred as MNIST was, drawn on by mouse and touch."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import plain
import pytest
import torch
from browser import Show, Shown
from conftest import Ran
from safetensors.torch import load_file
from torch import Tensor, nn

import recipes
from mnist_accel import models
from mnist_accel.data.dataset import Dataset
from mnist_accel.models import build_model
from mnist_accel.pages import pad, report_page
from mnist_accel.pages.network import UnknownLayer, described
from mnist_accel.pages.page import Section, document, tag

MEAN, STD = 0.1307, 0.3081
Stroke = Sequence[tuple[float, float]]  # shares of the sheet
SEVEN: Stroke = [(0.3, 0.25), (0.68, 0.25), (0.6, 0.45), (0.45, 0.78)]


def lively(name: str) -> nn.Module:
    """The same each time, with batch norm's statistics and weights as no fresh network has them."""
    torch.manual_seed(0)
    network = build_model(name, 0.1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            nn.init.normal_(module.running_mean, std=0.5)
            nn.init.uniform_(module.running_var, 0.2, 3.0)
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    return network.eval().requires_grad_(False)


def written(made: pad.Pad, folder: Path) -> Path:
    path = folder / "page.html"
    path.write_text(document("a page", tag("h1", "a page"), [Section("Draw", made.body)], made.scripts, made.data))
    return path


@pytest.fixture
def padded(tmp_path: Path) -> Path:
    return written(pad.drawing_pad(lively("onepoch"), MEAN, STD, None), tmp_path)


def torch_logits(network: nn.Module, images: Tensor) -> Tensor:
    with torch.inference_mode():
        return network((images[:, None] / 255 - MEAN) / STD)


def page_logits(shown: Shown, images: Tensor, layers: Any = None) -> Tensor:
    """As pad.js computes them, of the network in the page or of ``layers``."""
    code = """([images, given]) => {
        const data = JSON.parse(document.getElementById("network").textContent);
        const layers = forward.prepared(given ?? data.layers);
        const seen = (image) => Float64Array.from(image, (value) => (value / 255 - data.mean) / data.std);
        return images.map((image) => forward.logits(layers, seen(image), data.shifts, -data.mean / data.std));
    }"""
    return torch.tensor(shown.ask(code, [images.reshape(len(images), -1).tolist(), layers]))


def offline_and_content(shown: Shown) -> bool:
    return shown.complaints == [] and len(shown.asked_for) == 1


@pytest.mark.parametrize("name", models.names())
def test_the_page_computes_what_torch_computes(name: str, show: Show, tiny: Dataset, tmp_path: Path) -> None:
    network = lively(name)
    outputs = torch_logits(network, tiny.test_images[:100])
    made = pad.drawing_pad(network, MEAN, STD, 3 if outputs.shape[1] == 1 else None)
    with show(written(made, tmp_path)) as shown:
        torch.testing.assert_close(page_logits(shown, tiny.test_images[:100]), outputs, rtol=0, atol=1e-4)
        assert shown.page.locator("#pad").is_visible() and offline_and_content(shown)


@pytest.mark.parametrize(("name", "pixels"), [("onepoch", 1), ("is3", 2)])
def test_the_page_shifts_images_as_torch_does(
    name: str, pixels: int, show: Show, tiny: Dataset, tmp_path: Path
) -> None:
    network, recipe = lively(name), replace(recipes.load(name), test_shifts=pixels, mean=0.3)
    outputs = plain.scored(recipe, network, tiny.test_images[:100])
    made = pad.drawing_pad(network, 0.3, STD, 3 if outputs.shape[1] == 1 else None, pixels)
    with show(written(made, tmp_path)) as shown:
        torch.testing.assert_close(page_logits(shown, tiny.test_images[:100]), outputs, rtol=0, atol=1e-4)
        assert shown.page.locator("#pad").is_visible() and offline_and_content(shown)


def test_a_page_holds_what_it_has_to_shift_and_what_torch_says_of_that() -> None:
    network, recipe = lively("onepoch"), replace(recipes.load("onepoch"), test_shifts=2)
    data = pad.drawing_pad(network, MEAN, STD, None, 2).data["network"]
    assert data["shifts"] == 2
    expected = plain.scored(recipe, network, pad.pattern()[0])[0]
    torch.testing.assert_close(torch.tensor(data["check"]), expected, rtol=0, atol=1e-5)
    assert pad.drawing_pad(network, MEAN, STD, None).data["network"]["shifts"] == 0


class Own(nn.Module):
    """No Sequential, its layers not in the order of their calls, with settings that our networks do not have."""

    def __init__(self, activation: nn.Module):
        super().__init__()
        self.last = nn.Linear(2 * 5 * 12, 7, bias=False)
        self.activation = activation
        self.inner = nn.Sequential(nn.Conv2d(6, 12, 3, dilation=2, groups=3), nn.BatchNorm2d(12, affine=False))
        self.first = nn.Conv2d(1, 6, (5, 3), stride=(2, 1), padding=(3, 2))
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.small = nn.AdaptiveAvgPool2d((5, 2))
        self.average = nn.AvgPool2d((1, 2), stride=1)
        self.flat = nn.Flatten()

    def forward(self, images: Tensor) -> Tensor:
        images = self.pool(self.activation(self.first(images)))
        images = self.small(self.average(self.inner(self.activation(images))))
        return self.last(self.flat(images))


def test_other_layers_and_another_order_than_the_written_one(padded: Path, show: Show, tiny: Dataset) -> None:
    with show(padded) as shown:
        for activation in (nn.LeakyReLU(0.1), nn.SiLU(), nn.GELU()):
            torch.manual_seed(0)
            network = Own(activation).eval()
            network.inner[1].running_mean, network.inner[1].running_var = torch.rand(12), torch.full((12,), 0.01)
            images = tiny.test_images[:5]
            answers = page_logits(shown, images, described(network))
            torch.testing.assert_close(answers, torch_logits(network, images), rtol=1e-5, atol=1e-5)


class Residual(nn.Sequential):
    def forward(self, images: Tensor) -> Tensor:
        return images + super().forward(images)


class Forgetful(nn.Sequential):
    def forward(self, images: Tensor) -> Tensor:
        super().forward(images)
        return self[0](images)


class Functional(nn.Sequential):
    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.relu(super().forward(images))


class Deciding(nn.Sequential):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images if images.sum() > 0 else -images)


class Standardised(nn.Conv2d):
    def forward(self, images: Tensor) -> Tensor:
        return self._conv_forward(images, self.weight / self.weight.std(), self.bias)


def hooked(layer: nn.Module) -> nn.Module:
    """As torch.nn.utils.weight_norm does it."""
    layer.register_forward_pre_hook(lambda layer, inputs: (inputs[0] * 2,))
    return layer


UNKNOWN = {
    "Softplus": nn.Softplus(),
    "uses add": Residual(nn.Identity()),
    "no plain chain": Forgetful(nn.ReLU()),
    "uses relu": Functional(nn.Identity()),
    "uses 1.weight": Standardised(1, 1, 3),
    "cannot be followed": Deciding(nn.Identity()),
    "ceil_mode=True": nn.MaxPool2d(3, ceil_mode=True),
    "padding='same'": nn.Conv2d(1, 1, 3, padding="same"),
    "padding_mode=reflect": nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect"),
    "without statistics": nn.BatchNorm2d(1, track_running_stats=False),
    "hooks": hooked(nn.ReLU()),
}


@pytest.mark.parametrize("why", UNKNOWN)
def test_what_could_be_computed_differently_is_refused(why: str) -> None:
    network = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), UNKNOWN[why], nn.Flatten(), nn.Linear(784, 10))
    with pytest.raises(UnknownLayer, match=why):
        described(network)


def test_an_unknown_layer_costs_the_pad_not_the_page(show: Show, tmp_path: Path) -> None:
    made = pad.drawing_pad(nn.Sequential(nn.Softplus(), nn.Flatten()), MEAN, STD, None)
    assert (made.scripts, made.data) == ((), {})
    with show(written(made, tmp_path)) as shown:
        assert "it has a layer Softplus, which" in shown.page.locator("section").inner_text()
        assert offline_and_content(shown)
    large = pad.drawing_pad(nn.Sequential(nn.Flatten(), nn.Linear(784, 600)), MEAN, STD, None)
    assert "2.5 MB" in large.body and large.data == {}


def test_a_browser_that_computes_something_else_says_so(show: Show, tmp_path: Path) -> None:
    made = pad.drawing_pad(lively("onepoch"), MEAN, STD, None)
    made.data["network"]["check"][4] += 0.5
    with show(written(made, tmp_path)) as shown:
        assert "does not compute" in shown.page.locator("#no-pad").inner_text()
        assert not shown.page.locator("#pad").is_visible() and offline_and_content(shown)


def test_without_javascript_the_section_says_so(padded: Path, show: Show) -> None:
    with show(padded, java_script_enabled=False) as shown:
        assert "needs JavaScript" in shown.page.locator("section").inner_text()
        assert not shown.page.locator("#pad").is_visible()


# Drawing


def by_mouse(shown: Shown, stroke: Stroke) -> None:
    mouse, (first, *others) = shown.page.mouse, on_sheet(shown, stroke)
    with until_shown(shown):
        mouse.move(*first)
        mouse.down()
        for point in others:
            mouse.move(*point, steps=4)
        mouse.up()


def by_touch(shown: Shown, stroke: Stroke) -> None:
    """As a finger: the browser itself decides whether it scrolls or draws."""
    client = shown.page.context.new_cdp_session(shown.page)

    def touch(kind: str, *points: tuple[float, float]) -> None:
        client.send(
            "Input.dispatchTouchEvent", {"type": f"touch{kind}", "touchPoints": [{"x": x, "y": y} for x, y in points]}
        )

    first, *others = on_sheet(shown, stroke)
    with until_shown(shown):
        touch("Start", first)
        for point in others:
            touch("Move", point)
        touch("End")


def on_sheet(shown: Shown, stroke: Stroke) -> list[tuple[float, float]]:
    sheet = shown.page.locator("#sheet")
    sheet.scroll_into_view_if_needed()
    box = sheet.bounding_box()
    return [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in stroke]


@contextmanager
def until_shown(shown: Shown) -> Iterator[None]:
    """Events reach the page some time after they were sent; what they change is drawn a frame later."""
    shown.ask("""() => {
        const frames = (done) => requestAnimationFrame(() => requestAnimationFrame(done));
        const ends = ["pointerup", "pointercancel"]; // the latter where the browser scrolls instead
        const lifted = (done) => ends.forEach((end) => document.addEventListener(end, () => frames(done)));
        window.shown = new Promise(lifted);
    }""")
    yield
    shown.ask("() => window.shown")


def chances(shown: Shown) -> list[str]:
    return shown.page.locator("#chances .chance").all_inner_texts()


def preview(shown: Shown) -> Tensor:
    return pixels(shown, "seen", 28)


def pixels(shown: Shown, canvas: str, side: int) -> Tensor:
    """How much ink there is."""
    code = """([canvas, side]) => {
        const copy = new OffscreenCanvas(side, side).getContext("2d");
        copy.drawImage(document.getElementById(canvas), 0, 0, side, side);
        return [...copy.getImageData(0, 0, side, side).data].filter((_, index) => index % 4 === 3);
    }"""
    return torch.tensor(shown.ask(code, [canvas, side])).reshape(side, side)


@pytest.mark.parametrize("draw", [by_mouse, by_touch])
def test_a_stroke_moves_the_probabilities_and_clear_takes_it_back(
    draw: Callable[[Shown, Stroke], None], padded: Path, show: Show
) -> None:
    with show(padded, width=390, has_touch=draw is by_touch) as shown:
        shown.ask("() => { document.body.style.minHeight = '3000px'; scrollTo(0, 40); }")
        assert chances(shown) == ["–"] * 10 and not preview(shown).any()
        draw(shown, SEVEN[:2])
        bar = chances(shown)
        draw(shown, SEVEN[1:])
        seven = chances(shown)
        sheet = pixels(shown, "sheet", 100)
        assert all(sheet[int(100 * y), int(100 * x)] == 255 for x, y in SEVEN) and sheet[78, 30] == 0
        assert bar != seven and sum(float(chance.split()[0]) for chance in seven) == pytest.approx(100, abs=0.5)
        # What is told is what torch says of the image that is shown.
        image = preview(shown)
        network = lively("onepoch")
        told = torch_logits(network, image[None]).softmax(1)[0]
        assert seven == [f"{100 * chance:.1f} %" for chance in told.tolist()]
        assert shown.page.locator("#answer").inner_text().endswith(f" {told.argmax()}")
        shown.page.locator("#clear").click()
        assert chances(shown) == ["–"] * 10 and not preview(shown).any()
        assert shown.page.locator("#answer").inner_text() == "Draw a digit"
        assert shown.ask("() => scrollY") == 40 and offline_and_content(shown)


def test_the_probabilities_move_while_the_pen_is_down(padded: Path, show: Show) -> None:
    others = "(before) => document.querySelector('#chances .chance').textContent !== before"
    with show(padded) as shown:
        mouse, points = shown.page.mouse, on_sheet(shown, SEVEN)
        mouse.move(*points[0])
        mouse.down()
        shown.page.wait_for_function(others, arg="–", timeout=10_000)
        for point in points[1:]:
            before = chances(shown)[0]
            mouse.move(*point)
            shown.page.wait_for_function(others, arg=before, timeout=10_000)


def test_a_stroke_that_ends_beside_the_sheet_has_ended(padded: Path, show: Show) -> None:
    with show(padded) as shown:
        by_mouse(shown, [(0.5, 0.5), (1.1, 0.6)])
        before = chances(shown)
        with until_shown(shown):
            for point in on_sheet(shown, [(0.2, 0.2), (0.3, 0.8), (1.1, 0.8)]):
                shown.page.mouse.move(*point)
            shown.page.mouse.down()
            shown.page.mouse.up()
        assert chances(shown) == before != ["–"] * 10


def test_one_class_has_one_probability(show: Show, tmp_path: Path) -> None:
    network = lively("is3")
    with show(written(pad.drawing_pad(network, MEAN, STD, 8), tmp_path)) as shown:
        by_mouse(shown, SEVEN)
        yes = torch_logits(network, preview(shown)[None]).sigmoid().item()
        assert chances(shown) == [f"{100 * yes:.1f} %"]
        assert shown.page.locator("#answer").inner_text() == f"Looks like {'no' if yes < 0.5 else 'an'} 8"


def test_where_and_how_large_it_is_drawn_makes_little_difference(padded: Path, show: Show) -> None:
    seen = []
    with show(padded) as shown:
        for size, x, y in ((1.0, 0.0, 0.0), (1.0, -0.17, 0.1), (1.2, -0.05, -0.15)):
            shown.page.locator("#clear").click()
            by_mouse(shown, [(x + size * a, y + size * b) for a, b in SEVEN])
            seen.append(preview(shown).double())
    assert (seen[0] - seen[1]).abs().max() <= 60  # a pixel of the sheet more or less
    assert (seen[0] - seen[2]).abs().mean() < 8  # the pen is thinner beside the digit
    for image in seen:
        assert sides(image) == (20, sides(image)[1]) and centre(image) == pytest.approx((14, 14), abs=0.51)


def sides(image: Tensor) -> tuple[int, int]:
    """Height and width of the ink."""
    return tuple(int((line := (image > 0).any(axis).nonzero()).max() - line.min()) + 1 for axis in (1, 0))  # type: ignore[return-value]


def centre(image: Tensor) -> tuple[float, float]:
    place = torch.arange(28.0).double()
    return float(image.sum(1) @ place / image.sum()), float(image.sum(0) @ place / image.sum())


# Scaled and centred as MNIST was


def as_mnist(shown: Shown, small: np.ndarray, times: int = 1) -> np.ndarray:
    """Of ``small`` enlarged so many times."""
    code = """([side, values, times]) => {
        const sheet = ink.sheet(side * times);
        const at = (index) => Math.floor((index % sheet.side) / times) + side * Math.floor(index / sheet.side / times);
        return [...ink.asMnist({ side: sheet.side, values: sheet.values.map((_, index) => values[at(index)]) })];
    }"""
    return np.array(shown.ask(code, [len(small), small.ravel().tolist(), times])).reshape(28, 28)


def reference(sheet: np.ndarray) -> np.ndarray:
    """Every pixel of the sheet as 20 × 20, so that each of the small image's is the mean of a whole square of them."""
    rows, columns = np.flatnonzero(sheet.any(1)), np.flatnonzero(sheet.any(0))
    cut = sheet[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    longest = max(cut.shape)
    large = np.zeros((20 * longest, 20 * longest))
    large[: 20 * cut.shape[0], : 20 * cut.shape[1]] = np.kron(cut, np.ones((20, 20)))
    small = large.reshape(20, longest, 20, longest).mean((1, 3))
    image = np.zeros((28, 28))
    image[:20, :20] = np.rint(255 * small / small.max())
    down, right = (round(14 - float(small.sum(axis) @ np.arange(20) / small.sum())) for axis in (1, 0))
    return np.roll(image, (down, right), (0, 1))


def test_a_drawing_is_scaled_and_centred_as_the_reference_has_it(padded: Path, show: Show) -> None:
    code = """([side, radius, points]) => {
        const sheet = ink.sheet(side);
        points.forEach((point, index) => ink.line(sheet, points[Math.max(index - 1, 0)], point, radius));
        return [...sheet.values];
    }"""
    chance = np.random.default_rng(0)
    with show(padded) as shown:
        for radius in (4.5, 4.5, 4.5, 1.5, 1.5):
            corners = chance.uniform(10, 85, (4, 2)) * chance.uniform(0.5, 1, 2)
            points = [{"x": x, "y": y} for x, y in [(5, 5), *corners]]
            sheet = np.array(shown.ask(code, [97, radius, points])).reshape(97, 97)
            assert (sheet == 1).any() and ((sheet > 0) & (sheet < 1)).any()  # ink, with soft edges
            assert np.abs(as_mnist(shown, sheet) - reference(sheet)).max() <= 1
        assert shown.ask("() => ink.asMnist(ink.sheet(97))") is None


def test_an_image_enlarged_comes_back_as_it_was(padded: Path, show: Show, tiny: Dataset) -> None:
    images = [image for image in tiny.test_images if max(sides(image)) == 20 and image.max() == 255]
    assert len(images) > 3
    with show(padded) as shown:
        for image in images[:5]:
            moved = image.roll((2, -3), (0, 1))
            back = torch.from_numpy(as_mnist(shown, moved.numpy() / 255, 10))
            # Which way half a pixel is rounded may differ.
            assert min((back.roll((y, x), (0, 1)) - image).abs().max() for y in (-1, 0, 1) for x in (-1, 0, 1)) <= 1


# In a report


def test_the_pad_of_a_report_is_the_runs_own(run_here: Callable[..., Ran], show: Show, tiny: Dataset) -> None:
    words = ("recipe=onepoch", "epochs=1", "batch_size=100", "mean=0.25", "std=0.4", "test_shifts=1")
    ran = run_here(*words, make_report=report_page.page_of)
    kept = load_file(ran.folder / "evaluation.safetensors")["logits"]
    with show(ran.folder / "report.html") as shown:
        by_mouse(shown, SEVEN)
        assert "–" not in chances(shown)
        torch.testing.assert_close(page_logits(shown, tiny.test_images[:50]), kept[:50], rtol=0, atol=1e-4)
        assert shown.complaints == []
    (ran.folder / "model.safetensors").write_bytes(b"nothing")
    page = report_page.page_of(ran.folder)
    assert "cannot be loaded" in page and 'id="network"' not in page
    (ran.folder / "model.safetensors").unlink()
    assert "Draw a digit" not in report_page.page_of(ran.folder)
