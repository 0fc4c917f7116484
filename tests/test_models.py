"""The networks: documented shapes, dropout where it was asked for, every parameter in use.

That ours, with its activations behind the pools, equals the documented order stands in test_bench.py.
"""

from itertools import groupby
from pathlib import Path

import pytest
import torch
from torch import nn

from mnist_accel import models
from mnist_accel.models import build_model, count_parameters
from mnist_accel.models.layers import LEVELS, Dropout, fix_first_filters
from mnist_accel.models.onepoch import SECOND_WIDTH

# Heights after each layer that changes them; "28" is the image. Those of the first five are the documents'.
SIZES = {
    "onepoch": [26, 13, 11, 5],
    "efficient25k": [28, 14, 7, 3, 1],
    "sub20k": [26, 24, 22, 11, 9, 7, 5, 1],
    "compact13k": [26, 24, 12, 10, 8, 6, 1],
    "is3": [24, 12, 8, 4],
    "speedrun": [12, 5, 3, 1],
    "under8k": [28, 14, 7, 1],
    "under2k": [28, 14, 7, 1],
}
CONVOLUTIONS = {
    "onepoch": [(1, 5, 3), (5, SECOND_WIDTH, 3)],
    "efficient25k": [(1, 8, 3), (8, 16, 3), (16, 32, 3)],
    "sub20k": [
        (1, 16, 3),
        (16, 16, 3),
        (16, 32, 3),
        (32, 16, 1),
        (16, 16, 3),
        (16, 16, 3),
        (16, 16, 3),
        (16, 32, 3),
        (32, 10, 1),
    ],
    "compact13k": [(1, 16, 3), (16, 32, 3), (32, 10, 1), (10, 16, 3), *[(16, 16, 3)] * 3, (16, 10, 1)],
    "is3": [(1, 16, 5), (16, 32, 5)],
}
WITH_BIAS = {"onepoch": 2, "efficient25k": 3, "sub20k": 1, "compact13k": 0, "is3": 2}


def convolutions(name: str) -> list[nn.Conv2d]:
    return [layer for layer in build_model(name, 0.0).modules() if isinstance(layer, nn.Conv2d)]


def test_every_file_is_a_network() -> None:
    files = {path.stem for path in Path(models.__file__).parent.glob("*.py")} - {"__init__", "layers"}
    assert files == set(models.names())


@pytest.mark.parametrize("name", models.names())
def test_images_become_one_logit_a_class(name: str) -> None:
    logits = build_model(name, 0.1).eval()(1000 * torch.randn(3, 1, 28, 28))
    assert logits.shape == (3, 1 if name == "is3" else 10)
    assert torch.isfinite(logits).all()
    assert not ((logits >= 0) & (logits <= 1)).all()  # no softmax or sigmoid behind them


@pytest.mark.parametrize("name", SIZES)
def test_the_spatial_sizes_are_these(name: str) -> None:
    seen: list[int] = []
    model = build_model(name, 0.0)
    for layer in model.modules():
        layer.register_forward_hook(
            lambda layer, inputs, output: seen.append(output.shape[2]) if output.ndim == 4 else None
        )
    model(torch.randn(2, 1, 28, 28))
    assert [size for size, _ in groupby(seen)] == SIZES[name]


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_the_convolutions_are_the_documented_ones(name: str) -> None:
    found = [(layer.in_channels, layer.out_channels, layer.kernel_size[0]) for layer in convolutions(name)]
    assert found == CONVOLUTIONS[name]
    assert sum(layer.bias is not None for layer in convolutions(name)) == WITH_BIAS[name]


@pytest.mark.parametrize("name", models.names())
def test_dropout_has_the_given_probability_and_is_off_in_evaluation(name: str) -> None:
    model = build_model(name, 0.4)
    drops = [layer for layer in model.modules() if isinstance(layer, (nn.Dropout, nn.Dropout2d))]
    assert drops and all(layer.p == 0.4 for layer in drops)
    images = torch.randn(8, 1, 28, 28)
    assert not torch.equal(model(images), model(images))
    model.eval()
    assert torch.equal(model(images), model(images))


@pytest.mark.parametrize("name", models.names())
def test_without_dropout_training_is_not_random(name: str) -> None:
    model = build_model(name, 0.0)
    images = torch.randn(8, 1, 28, 28)
    assert torch.equal(model(images), model(images))


@pytest.mark.parametrize("name", models.names())
def test_every_parameter_takes_part(name: str) -> None:
    model = build_model(name, 0.0)
    model(torch.randn(16, 1, 28, 28)).square().sum().backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), parameter_name


def test_parameters_are_counted_and_buffers_are_not() -> None:
    assert count_parameters(nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))) == 18 + 2 + 2 + 2


# Dropout with cheap random numbers


def dropped_out(images: torch.Tensor, probability: float, seed: int = 0) -> torch.Tensor:
    torch.manual_seed(seed)
    return Dropout(probability).train()(images)


@pytest.mark.parametrize("probability", [0.001, 0.1, 0.5, 0.999])
def test_the_asked_for_share_is_dropped_and_the_mean_stays(probability: float) -> None:
    values = dropped_out(torch.ones(1_000_003), probability)
    share = (values == 0).double().mean().item()
    assert share == pytest.approx(probability, abs=5 * (probability * (1 - probability) / 1e6) ** 0.5 + 0.5 / LEVELS)
    assert values.unique().tolist() == [0, pytest.approx(1 / (1 - probability), rel=0.02)]
    assert values.mean().item() == pytest.approx(1, abs=0.2 if probability == 0.999 else 0.005)


def test_neighbours_that_share_a_draw_are_dropped_independently() -> None:
    kept = (dropped_out(torch.ones(400_000), 0.5) > 0).view(-1, 4).double()
    for one in range(4):
        for other in range(one):
            assert (kept[:, one] * kept[:, other]).mean().item() == pytest.approx(0.25, abs=0.01)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_gradients_pass_where_values_did_and_the_layout_stays(layout: torch.memory_format) -> None:
    images = torch.randn(3, 5, 7, 7).to(memory_format=layout).requires_grad_()
    result = dropped_out(images, 0.3)
    assert result.is_contiguous(memory_format=layout)
    result.sum().backward()
    assert torch.allclose(images.grad * images, result)
    assert torch.equal(result, dropped_out(images, 0.3))
    assert not torch.equal(result, dropped_out(images, 0.3, seed=1))


def test_scoring_drops_nothing() -> None:
    images = torch.randn(4, 4)
    assert torch.equal(Dropout(0.5).eval()(images), images)
    assert torch.equal(Dropout(0.0).train()(images), images)


@pytest.mark.parametrize(("bias", "channels", "stride"), [(True, 16, 2), (False, 16, 1), (True, 7, 1)])
def test_whitening_filters_give_outputs_of_equal_variance_that_do_not_correlate(
    bias: bool, channels: int, stride: int
) -> None:
    images = nn.functional.avg_pool2d(torch.randn(200, 1, 30, 30), 3, stride=1)  # neighbours are alike, as in digits
    model = nn.Sequential(nn.Conv2d(1, channels, 5, stride, bias=bias), nn.ReLU(), nn.Conv2d(channels, 4, 3))
    fix_first_filters(model, 3 * images + 0.5)
    first = model[0]
    outputs = first(3 * images + 0.5).transpose(0, 1).flatten(1).double()
    half = (channels + 1) // 2
    torch.testing.assert_close(outputs[half:], -outputs[: channels - half])
    if bias:
        assert outputs.mean(1).abs().max() < 1e-3
    covariance = torch.cov(outputs[:half])
    assert (covariance - covariance.diag().diag()).abs().max() < 0.02
    assert covariance.diag().min() > 0.8 and covariance.diag().max() < 1.001
    assert not any(parameter.requires_grad for parameter in first.parameters())
    assert all(parameter.requires_grad for parameter in model[2].parameters())


@pytest.mark.parametrize(
    ("first", "said"),
    [
        (nn.Linear(3, 4), "has no Conv2d"),
        (nn.Conv2d(1, 4, 3, padding="same"), "padding is not a number of zeros"),
        (nn.Conv2d(1, 4, 3, padding=1, padding_mode="reflect"), "padding is not a number of zeros"),
        (nn.Conv2d(2, 4, 3), "does not take the image alone"),
        (nn.Conv2d(1, 19, 3), "has 19 first filters, more than twice the values of a patch"),
    ],
)
def test_a_network_without_such_filters_is_refused(first: nn.Module, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        fix_first_filters(first, torch.zeros(1))
