"""What a whole run says of its claims: which runs are held against them, which are not, and that the result says so."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import Ran

import recipes
from mnist_accel.data.dataset import Dataset
from mnist_accel.errors import CleanExit, TrainingFailed
from mnist_accel.runs.watcher import Watcher
from mnist_accel.training.state import EpochStats

CHANGES = {"epochs": "2", "batch_size": "70", "lr": "0.01", "validation": "100", "dropout": "0.2", "rotation": "3"}


@pytest.fixture
def mnist(tiny: Dataset) -> Dataset:
    """A few images that go by MNIST's name."""
    return replace(tiny, name="mnist")


def compared(result: Any) -> list[bool | None]:
    return [claim.met for claim in result.claims if claim.name != "parameters (our choice)"]


def test_the_recipe_as_it_is_is_held_against_its_claims_with_any_seed(
    run_here: Callable[..., Ran], mnist: Dataset
) -> None:
    assert compared(run_here("recipe=onepoch", data=mnist).result) == [False]
    assert compared(run_here("recipe=onepoch", "seed=3", data=mnist).result) == [False]


@pytest.mark.parametrize("key", CHANGES)
def test_changed_settings_are_held_against_no_claim(key: str, run_here: Callable[..., Ran], mnist: Dataset) -> None:
    result = run_here("recipe=onepoch", f"{key}={CHANGES[key]}", data=mnist).result
    assert compared(result) == [None] and result.claims[0].measured is not None
    assert result.claims[1].met is True  # the network has its parameters all the same


def test_drawn_digits_and_a_dry_run_are_held_against_no_claim(
    run_here: Callable[..., Ran], mnist: Dataset, tiny: Dataset
) -> None:
    drawn = run_here("recipe=onepoch").result
    dry = run_here("recipe=onepoch", "dry_run=true", data=mnist).result
    assert compared(drawn) == compared(dry) == [None]
    assert (drawn.status, dry.status, dry.dry_run) == ("finished", "finished", True)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (TrainingFailed("lost its way"), "failed"),
        (RuntimeError("DefaultCPUAllocator: not enough memory"), "interrupted"),
    ],
)
def test_a_run_that_failed_is_held_against_no_claim(
    error: Exception, status: str, run_here: Callable[..., Ran], mnist: Dataset, tmp_path: Path
) -> None:
    def fail(stats: EpochStats) -> None:
        raise error

    with pytest.raises(CleanExit):
        run_here("recipe=onepoch", f"out={tmp_path / 'failed'}", data=mnist, watcher=Watcher(on_epoch=fail))
    result = json.loads((tmp_path / "failed" / "result.json").read_text())
    assert (result["status"], result["optimizer_steps"]) == (status, 10)
    assert [(claim["measured"] is not None, claim["met"]) for claim in result["claims"]] == [(True, None), (True, True)]


def test_a_result_says_what_was_trained_on_what_and_where(run_here: Callable[..., Ran], tiny: Dataset) -> None:
    words = ("recipe=is3", "epochs=2", "batch_size=250", "seed=4", "validation=100", "threads=1")
    ran = run_here(*words)
    result, recipe = ran.result, recipes.load("is3")
    assert (result.recipe, result.model, result.params) == ("is3", recipe.model, 144_833)
    assert (result.dataset, result.train_images, result.test_images) == ("synthetic", 500, 100)
    assert "scored on 100 held-out" in result.dataset_reason
    assert (result.epochs, result.batch_size, result.optimizer_steps, result.seed) == (2, 250, 4, 4)
    assert (result.device, result.world_size, result.threads, result.precision) == ("cpu", 1, 1, "fp32")
    first, last = result.history
    assert (first.epoch, last.epoch, first.steps, last.images) == (1, 2, 2, 500)
    for name in ("accuracy", "correct", "total", "train_loss", "test_loss", "positive"):
        assert getattr(result, name) == getattr(last, name), name
    assert result.train_seconds == pytest.approx(first.train_seconds + last.train_seconds)
    assert result.eval_seconds == pytest.approx(first.eval_seconds + last.eval_seconds)
    assert result.total_seconds > result.train_seconds + result.eval_seconds
    assert result.images_per_second == pytest.approx(1000 / result.train_seconds)
    assert result.command[: len(words)] == list(words)
    assert (result.status, result.error, result.resumed_from, result.dry_run) == ("finished", None, None, False)
    stored = json.loads((ran.folder / "recipe.json").read_text())
    assert stored["recipe"]["batch_size"] == 250 and stored["options"]["threads"] == 1
    assert json.loads((ran.folder / "result.json").read_text())["correct"] == result.correct
