"""Dropout with cheap random numbers: what it does to values, gradients and layouts."""

import pytest
import torch

from mnist_accel.models.layers import LEVELS, Dropout


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
