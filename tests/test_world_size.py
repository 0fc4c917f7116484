"""The same result on one process or many: real gloo ranks, in double precision where equality has to be tight."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
from jobs import ROOT, program
from one_rank import EPOCHS, FEW_TEST_IMAGES, TEST_IMAGES, TRAIN_IMAGES
from safetensors.torch import load_file
from torch import Tensor

# Most of a job's time is its start: each number of processes starts once, for all that is asked of it.
ASKED = {
    1: ("exact", "score", "synced"),
    2: ("exact", "buckets", "score", "statistics", "synced", "halves"),
    3: ("exact", "score"),
    7: ("score",),
}


THREE = pytest.param(3, marks=pytest.mark.slow)


@dataclass(frozen=True)
class Said:
    folder: Path

    @cached_property
    def facts(self) -> dict[str, Any]:
        return json.loads((self.folder / "said.json").read_text())

    @cached_property
    def weights(self) -> dict[str, Tensor]:
        return load_file(self.folder / "weights.safetensors")


Ranks = Callable[[int, str], Said]


@pytest.fixture
def ranks(clean_environment: dict[str, str], made_once: Callable[..., Path]) -> Ranks:
    """What rank 0 of a job of ``world_size`` processes wrote down."""

    def ranks(world_size: int, what: str) -> Said:
        home = made_once(
            f"ranks-{world_size}", lambda home: run_ranks(world_size, home, clean_environment, *ASKED[world_size])
        )
        return Said(home / what)

    return ranks


def run_ranks(world_size: int, home: Path, environment: dict[str, str], *asked: str) -> Path:
    launcher = (sys.executable,)
    if world_size > 1:
        launcher = (program("torchrun"), "--standalone", "--nproc-per-node", str(world_size))
    home.mkdir()
    ended = subprocess.run(
        [*launcher, str(ROOT / "tests" / "one_rank.py"), str(home), *asked],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=240,
    )
    assert ended.returncode == 0, ended.stdout
    for what in asked:
        assert Said(home / what.partition("=")[0]).facts["world_size"] == world_size
    return home


@pytest.mark.parametrize(
    ("world_size", "what"), [(2, "exact"), (2, "buckets"), pytest.param(3, "exact", marks=pytest.mark.slow)]
)
def test_many_processes_take_the_steps_of_one(ranks: Ranks, world_size: int, what: str) -> None:
    """In batches that do not divide, and in one with fewer images than processes; augmented, clipped and averaged; also
    with gradients in several messages."""
    one, many = ranks(1, "exact"), ranks(world_size, what)
    assert len(one.facts["losses"]) == 8 and any(name.startswith("8.") for name in one.weights)
    assert many.facts["losses"] == pytest.approx(one.facts["losses"], rel=1e-12, abs=1e-12)
    assert many.facts["train_accuracies"] == one.facts["train_accuracies"]
    for name, tensor in one.weights.items():
        torch.testing.assert_close(many.weights[name], tensor, rtol=0, atol=1e-12, msg=lambda m, name=name: name + m)
    first, last = (one.weights[f"{step}.network.{layer(one)}"] for step in (1, 8))
    assert (first - last).abs().max() > 1e-3  # they did move


@pytest.mark.parametrize(
    ("before", "after"),
    [(2, 1), pytest.param(1, 2, marks=pytest.mark.slow), pytest.param(3, 2, marks=pytest.mark.slow)],
)
def test_at_another_number_of_processes_a_run_goes_on_with_the_same_steps(
    ranks: Ranks, clean_environment: dict[str, str], tmp_path: Path, before: int, after: int
) -> None:
    """From a checkpoint in the middle of an epoch: images, order, augmentation, momentum, clipping and average."""
    one, saved = ranks(1, "exact"), ranks(before, "exact").folder / "checkpoints" / "3.safetensors"
    resumed = Said(run_ranks(after, tmp_path / "resumed", clean_environment, f"exact={saved}") / "exact")
    assert resumed.facts["losses"] == pytest.approx(one.facts["losses"][3:], rel=1e-12, abs=1e-12)
    assert resumed.facts["rates"] == one.facts["rates"][3:]
    for name in ("images", "train_accuracies"):
        assert resumed.facts[name] == one.facts[name]
    left = [name for name in one.weights if name.startswith("left.")]
    for name in left:
        torch.testing.assert_close(resumed.weights[name], one.weights[name], rtol=0, atol=1e-12)
    assert any(
        not torch.equal(one.weights[name], one.weights[name.replace("left.", "8.")]) for name in left
    )  # averaged


def layer(said: Said) -> str:
    return next(name.removeprefix("1.network.") for name in said.weights if name.startswith("1.network."))


@pytest.mark.parametrize("world_size", [2, THREE])
def test_the_learning_rate_is_the_same_at_every_step(ranks: Ranks, world_size: int) -> None:
    """A scheduler prepared by Accelerate steps once for every process."""
    rates = ranks(world_size, "exact").facts["rates"]
    assert rates == ranks(1, "exact").facts["rates"]
    assert len(set(rates)) == 8 and rates[-1] == pytest.approx(0.05 * 1e-4)


@pytest.mark.parametrize("world_size", [1, 2, THREE])
def test_every_training_image_counts_once_an_epoch(ranks: Ranks, world_size: int) -> None:
    assert ranks(world_size, "exact").facts["images"] == [TRAIN_IMAGES] * EPOCHS


@pytest.mark.parametrize("world_size", [2, THREE, pytest.param(7, marks=pytest.mark.slow)])
def test_every_test_image_is_scored_once_also_where_some_processes_have_none(ranks: Ranks, world_size: int) -> None:
    one, many = ranks(1, "score").facts["scores"], ranks(world_size, "score").facts["scores"]
    assert [total for _, total, _ in many] == [TEST_IMAGES, FEW_TEST_IMAGES]
    for (correct, total, loss), alone in zip(many, one, strict=True):
        assert [correct, total] == alone[:2]
        assert loss == pytest.approx(alone[2], rel=1e-6)


def test_batch_norms_statistics_are_made_equal_before_every_score_and_save(ranks: Ranks) -> None:
    said = ranks(2, "statistics").facts
    # In training they are not: each process sees its own part of the batch. At step 4, right after a save, both see
    # the one image that the batch has.
    assert said["own_buffers_differed"] == [True, True, True, False, True, True, True, True]
    assert not any(said["buffers_differ"]) and len(said["buffers_differ"]) == 5
    assert [total for _, total, _ in said["scores"]] == [TEST_IMAGES] * EPOCHS


def test_every_rank_drops_out_at_places_of_its_own(ranks: Ranks) -> None:
    """Equal shares of a batch draw equally often: from one seed all ranks would end in one random state."""
    one, other = ranks(2, "statistics").facts["random_states"]
    assert len(one) == 8 and not set(one) & set(other)


def test_batch_norm_over_all_processes_is_that_of_one(ranks: Ranks) -> None:
    """Also at step 4, whose one image leaves the second process with a stand-in that must not count."""
    one, many = ranks(1, "synced"), ranks(2, "synced")
    assert many.facts["losses"] == pytest.approx(one.facts["losses"], rel=1e-9)
    for name, tensor in one.weights.items():
        torch.testing.assert_close(many.weights[name], tensor, rtol=0, atol=1e-9, msg=lambda m, name=name: name + m)


def test_batch_norm_over_all_processes_is_that_of_one_also_in_half_precision(ranks: Ranks) -> None:
    """Its 150,528 values a channel are more than fp16 can count, and bf16 would round their number."""
    folder = ranks(2, "halves").folder
    for rank in range(2):
        said = json.loads((folder / f"said-{rank}.json").read_text())
        for name, step in (("fp16", 2**-10), ("bf16", 2**-7)):  # between two numbers of this precision above 1
            found = said[name]
            # An output is below 8 and a gradient below 64, each rounded once; a wrong count is off by much more.
            assert found["outputs"] <= 4 * step and found["gradients"] <= 32 * step, (name, found)
            assert found["mean"] < 1e-4 and found["variance"] < 1e-4, (name, found)
