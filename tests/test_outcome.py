"""What a run's result says, and with what it may be compared."""

import time
from collections.abc import Callable
from dataclasses import replace

import pytest
from test_results import STATS

import recipes
from mnist_accel import cli
from mnist_accel.data.dataset import Dataset
from mnist_accel.errors import Interrupted, OutOfMemory, PeerLost, TrainingFailed
from mnist_accel.machine.runtime import Runtime
from mnist_accel.runs.result import Progress, RunResult, describe
from mnist_accel.training.state import Position

Described = Callable[..., RunResult]


@pytest.fixture
def described(runtime: Runtime, tiny: Dataset) -> Described:
    """The result of a run of ``onepoch`` on MNIST after its one epoch, but for what is said."""

    def described(*words: str, data: str = "mnist", error: Exception | None = None) -> RunResult:
        request = cli.parse(["recipe=onepoch", *words], recipes.names(), recipes.load)
        progress = Progress(Position(epoch=1, history=[STATS]), error=error)  # type: ignore[arg-type]
        return describe(request, runtime, replace(tiny, name=data), progress, time.perf_counter(), None)

    return described


@pytest.mark.parametrize(
    ("words", "data", "error", "compared"),
    [
        ((), "mnist", None, True),
        (("seed=3",), "mnist", None, True),
        (("threads=1", "checkpoint_every=5"), "mnist", None, True),
        ((), "synthetic", None, False),
        ((), "mnist", TrainingFailed("loss is nan"), False),
        ((), "mnist", PeerLost("gone"), False),
        ((), "mnist", Interrupted(15), False),
        (("validation=5000",), "mnist", None, False),
        (("lr=0.5", "seed=3"), "mnist", None, False),
        (("dry_run=true",), "mnist", None, False),
    ],
)
def test_only_the_documented_run_is_held_against_what_is_documented(
    described: Described, words: tuple[str, ...], data: str, error: Exception | None, compared: bool
) -> None:
    claims = described(*words, data=data, error=error).claims
    accuracy = [claim for claim in claims if claim.name.startswith("accuracy")]
    assert accuracy and all((claim.met is not None) == compared for claim in accuracy)
    assert all(claim.measured == STATS.accuracy for claim in accuracy)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (None, "finished"),
        (TrainingFailed("loss is nan"), "failed"),
        (PeerLost("gone"), "interrupted"),
        (OutOfMemory("full"), "interrupted"),
        (Interrupted(2), "interrupted"),
    ],
)
def test_what_would_fail_again_has_failed_and_everything_else_can_be_gone_on_with(
    described: Described, error: Exception | None, status: str
) -> None:
    result = described(error=error)
    assert (result.status, result.error) == (status, None if error is None else str(error))
