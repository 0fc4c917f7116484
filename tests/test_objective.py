"""The two losses: summed, smoothed only in training, and what they take for the answer."""

import math

import pytest
import torch
import torch.nn.functional as F

from mnist_accel.training.objective import OneAgainstRest, TenClasses, build_objective

LOGITS = torch.randn(12, 10, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(12) % 10


def test_the_loss_of_ten_classes_is_the_summed_cross_entropy() -> None:
    by_hand = -sum(
        math.log(math.exp(row[label]) / sum(map(math.exp, row)))
        for row, label in zip(LOGITS.tolist(), LABELS.tolist(), strict=True)
    )
    assert TenClasses().loss_sum(LOGITS, LABELS).item() == pytest.approx(by_hand, rel=1e-5)


def test_smoothing_spreads_the_target_in_training_and_not_in_evaluation() -> None:
    objective = TenClasses(label_smoothing=0.2)
    target = torch.full((12, 10), 0.02)
    target[torch.arange(12), LABELS] += 0.8
    smoothed = -(target * LOGITS.log_softmax(1)).sum()
    torch.testing.assert_close(objective.loss_sum(LOGITS, LABELS), smoothed)
    for without_gradients in (torch.no_grad, torch.inference_mode):
        with without_gradients():
            assert torch.equal(objective.loss_sum(LOGITS, LABELS), TenClasses().loss_sum(LOGITS, LABELS))


def test_the_answer_of_ten_classes_is_the_largest_logit() -> None:
    objective = TenClasses()
    assert objective.positive_class is None
    assert torch.equal(objective.predictions(LOGITS), LOGITS.argmax(1))
    assert torch.equal(objective.targets(LABELS), LABELS)


def test_the_binary_loss_is_the_summed_log_loss_of_the_sigmoid() -> None:
    objective = OneAgainstRest(3)
    logits = LOGITS[:, :1]
    says_yes = torch.sigmoid(logits[:, 0])
    is_three = (LABELS == 3).float()
    by_hand = -(is_three * says_yes.log() + (1 - is_three) * (1 - says_yes).log()).sum()
    torch.testing.assert_close(objective.loss_sum(logits, LABELS), by_hand)


def test_the_binary_loss_stays_finite_where_a_sigmoid_would_round_to_one() -> None:
    loss = OneAgainstRest(3).loss_sum(torch.tensor([[200.0], [-200.0]]), torch.tensor([0, 3]))
    assert loss.item() == pytest.approx(400.0)


@pytest.mark.parametrize("positive_class", [0, 3, 9])
def test_the_binary_answer_is_yes_above_one_half(positive_class: int) -> None:
    objective = OneAgainstRest(positive_class)
    logits = torch.tensor([[-2.0], [-1e-6], [0.0], [1e-6], [2.0]])
    assert objective.positive_class == positive_class
    assert objective.predictions(logits).tolist() == [False, False, False, True, True]
    assert objective.predictions(logits).tolist() == (torch.sigmoid(logits.double())[:, 0] > 0.5).tolist()
    assert objective.targets(LABELS).tolist() == [label == positive_class for label in LABELS.tolist()]


@pytest.mark.parametrize("objective", [TenClasses(), OneAgainstRest(3)])
def test_the_loss_is_a_sum_so_that_parts_add_up_to_the_whole(objective: TenClasses | OneAgainstRest) -> None:
    logits = LOGITS if objective.positive_class is None else LOGITS[:, :1]
    parts = objective.loss_sum(logits[:5], LABELS[:5]) + objective.loss_sum(logits[5:], LABELS[5:])
    torch.testing.assert_close(parts, objective.loss_sum(logits, LABELS))


def test_the_loss_is_computed_in_the_precision_of_the_logits() -> None:
    for objective, logits in ((TenClasses(), LOGITS), (OneAgainstRest(3), LOGITS[:, :1])):
        assert objective.loss_sum(logits.double(), LABELS).dtype == torch.float64
        whole = objective.loss_sum(logits, LABELS).item()
        assert objective.loss_sum(logits.bfloat16().float(), LABELS).item() == pytest.approx(whole, rel=0.02)


def test_the_recipes_words_choose_the_objective() -> None:
    ten = build_objective("cross_entropy", 0.3, 3)
    assert isinstance(ten, TenClasses) and ten.label_smoothing == 0.3
    binary = build_objective("binary", 0.0, 7)
    assert isinstance(binary, OneAgainstRest) and binary.positive_class == 7
    expected = F.cross_entropy(LOGITS, LABELS, reduction="sum", label_smoothing=0.3)
    torch.testing.assert_close(ten.loss_sum(LOGITS, LABELS), expected)
