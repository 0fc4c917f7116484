"""What a run tells before it trains: wishes that came to nothing, which set of images is scored, in whole lines."""

from pathlib import Path

import pytest
from jobs import Launch, Run, a_run


@pytest.fixture(scope="module")
def told(run_launch: Launch, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A short run to which a launcher has said what it cannot have, and which finds nothing to go on with."""
    words = ("recipe=onepoch", "batch_size=1000", "validation=5000", "threads=1", "resume=auto")
    env = {"ACCELERATE_MIXED_PRECISION": "no", "ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"}
    return a_run(run_launch, tmp_path_factory.mktemp("runs") / "told", *words, env=env)


@pytest.mark.parametrize(
    "line",
    [
        "launcher  dynamo_backend=inductor has no effect: this program compiles nothing",
        "resumed   nothing: no unfinished run of onepoch was found; it starts anew",
        "images    55,000 to train, 5,000 held out",
    ],
)
def test_a_wish_that_came_to_nothing_is_told_in_one_line(told: Run, line: str) -> None:
    assert (told.code, told.err) == (0, "")
    assert told.out.splitlines().count(line) == 1


def test_a_run_that_was_asked_for_nothing_else_does_not_tell_of_it(dry_run: Run) -> None:
    assert "launcher" not in dry_run.out and "resumed" not in dry_run.out


def test_the_result_of_held_out_images_does_not_speak_of_a_test(told: Run, tmp_path: Path) -> None:
    closing = told.out[told.out.index("epoch 1/1") :]
    assert "held-out" in closing and "test" not in closing
