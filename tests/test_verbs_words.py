"""Words of keys and commands: sentences that read, lines that can be typed again."""

from pathlib import Path

import pytest
from jobs import result_of

import recipes
from mnist_accel import cli, commands
from mnist_accel.commands import bench, scaling, trace, verify
from mnist_accel.recipe import Recipe, RunOptions, keys_of

OWNERS = (Recipe, RunOptions, bench.BenchOptions, scaling.ScalingOptions, trace.TraceOptions, verify.VerifyOptions)


@pytest.mark.parametrize("owner", OWNERS, ids=lambda owner: owner.__name__)
def test_what_a_key_is_reads_as_a_sentence(owner: type) -> None:
    """Without a default that would serve as an example, a mistake is answered with "KEY is DESCRIPTION"."""
    for name, key in keys_of(owner).items():
        if key.default is None and owner is not Recipe:  # a recipe gives all of its own
            begins = ("the ", "a ", "another ", "how many ", "what ", "auto (")
            assert key.description.startswith(begins), f"{name} is {key.description}"


@pytest.mark.parametrize("verb", commands.names())
@pytest.mark.parametrize("words", [[], ["--help"]], ids=["alone", "help"])
def test_a_verb_alone_explains_its_keys(verb: str, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert commands.load(verb)(words) == 0
    shown = capsys.readouterr().out
    (owner,) = (owner for owner in OWNERS if owner.__module__ == commands.load(verb).__module__)
    first = {line.split()[0] for line in shown.splitlines() if line.strip()}
    assert shown.startswith(f"python -m mnist_accel {verb} ") and keys_of(owner).keys() <= first


def test_a_command_that_verify_writes_down_trains_the_same_seed_again(
    clean_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", clean_environment["XDG_CACHE_HOME"])
    monkeypatch.chdir(tmp_path)
    words = ["recipe=onepoch", "dataset=synthetic", "dry_run=true", "threads=1", "device=cpu"]
    assert verify.main([*words, "seeds=2"]) == 0
    runs = [result_of(folder) for folder in sorted((tmp_path / "runs" / "onepoch").iterdir())]
    assert sorted(run["seed"] for run in runs) == [0, 1]
    for run in runs:
        again = cli.parse(run["command"], recipes.names(), recipes.load).recipe
        assert again is not None and again.seed == run["seed"]
