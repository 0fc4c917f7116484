"""Every command of README, CONTRIBUTING and docs is one that works: each is planned as its program would, not run."""

import re
import shlex
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
from accelerate.commands.launch import launch_command_parser
from conftest import LAUNCHER_VARIABLES
from jobs import ROOT
from torch.distributed.run import get_args_parser

import recipes
from mnist_accel import cli, commands
from mnist_accel.commands import evidence, verify
from mnist_accel.data import dataset
from mnist_accel.data.dataset import Dataset
from mnist_accel.errors import UserError
from mnist_accel.runs import run

# What stands for something of the reader's own.
MEANT = {"NAME": "onepoch", "N": "2", "S": "1", "OTHER": "profiles/sub20k-earlier", "TIME": "20260101-000000"}


def written() -> list[str]:
    """Blocks line by line, and what stands between backticks; the prose leaves the program of a verb out."""
    found = []
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")):
        text = re.sub(r"^```\w+\n.*?^```\n", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)  # no shell's
        blocks = re.findall(r"^```\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
        for block in blocks:
            found += block.replace("\\\n", " ").splitlines()
        prose = re.sub(r"^```\n.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
        found += [" ".join(quoted.split()) for quoted in re.findall(r"`([^`]+)`", prose)]
    verbs = {"subject=": "python -m mnist_accel bench ", "scaling ": "python -m mnist_accel "}
    found = [next((verbs[begin] for begin in verbs if line.startswith(begin)), "") + line for line in found]
    return sorted({re.sub(r"^srun ", "", line.split(" #")[0].strip()) for line in found if is_command(line)})


def is_command(line: str) -> bool:
    programs = ("python ", "accelerate launch", "srun ", "torchrun ", "pytest", "make ", "pip ")
    return line.startswith(programs) and "…" not in line and not re.fullmatch(r"accelerate launch( --\S+)*", line)


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny: Dataset) -> Callable[[str], None]:
    """Everything up to where data is loaded or a run starts."""

    class Planned(Exception):
        pass

    def begins(*words: object, **more: object) -> None:
        raise Planned

    monkeypatch.setattr(verify, "run", begins)
    monkeypatch.setattr(recipes, "EVIDENCE", tmp_path)  # what stands there already is not trained again
    monkeypatch.setattr(dataset, "load_dataset", begins)
    for name in LAUNCHER_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)

    def launch(words: list[str]) -> None:
        words = [re.sub(r"^resume=runs/.*", "resume=auto", word) for word in words]
        if cli.help_asked(words, recipes.names(), recipes.load) is None:
            run.check(cli.parse(words, recipes.names(), recipes.load))

    def python(words: list[str]) -> None:
        if words[0] == "launch.py":
            launch(words[1:])
        elif words[:2] == ["-m", "mnist_accel"] and words[2:3] == ["trace"]:
            assert re.fullmatch(r"profiles/\S+( against=profiles/\S+| out=\S+\.html)?", " ".join(words[3:]))
        elif words[:2] == ["-m", "mnist_accel"] and words[2:3] == ["report"]:
            assert all(re.fullmatch(r"runs/\S+|out=\S+\.html", word) for word in words[3:])
        elif words[:2] == ["-m", "mnist_accel"] and words[2:3] in (["eval"], ["predict"], ["export"]):
            with pytest.raises(UserError, match=rf"^{words[3]}: No such file"):  # everything is understood but the run
                commands.load(words[2])(words[3:])
        elif words[:2] == ["-m", "mnist_accel"] and words[2:3] == ["evidence"]:
            cli.read_options(words[3:], evidence.EvidenceOptions)
        elif words[:2] == ["-m", "mnist_accel"] and words[2:3] == ["doctor"]:
            assert words[3:] == []
        elif words[:2] == ["-m", "mnist_accel"] and words[2:]:
            with pytest.raises(Planned):
                commands.load(words[2])(words[3:])
        elif words[0] == "-m":
            assert find_spec(words[1]), words
        else:
            assert (ROOT / words[0]).is_file(), words

    def planned(line: str) -> None:
        program, *words = shlex.split(line)
        words = [re.sub(r"(?<==)[A-Z]+$|(?<=-)TIME$", lambda found: MEANT[found[0]], word) for word in words]
        if program == "python":
            python(words)
        elif program == "accelerate":
            known = launch_command_parser().parse_args(words[1:])
            assert not known.config_file or (ROOT / known.config_file).is_file()
            python([known.training_script, *known.training_script_args])
        elif program == "torchrun":
            known = get_args_parser().parse_args(words)
            python(["-m"] * known.module + [known.training_script, *known.training_script_args])
        elif program == "pytest":
            assert all((ROOT / word).is_file() for word in words if word.startswith("tests/"))
        elif program == "make":
            assert all(f"\n{goal}:" in (ROOT / "Makefile").read_text() for goal in words if "=" not in goal)
        else:
            assert all(
                f"\n{extra} = [" in (ROOT / "pyproject.toml").read_text() for extra in re.findall(r"\[(\w+)\]", line)
            )

    return planned


@pytest.mark.parametrize("line", written())
def test_a_command_is_one_that_works(line: str, planned: Callable[[str], None]) -> None:
    planned(line)


def test_commands_of_every_kind_were_found() -> None:
    found = "\n".join(written())
    verbs = [f"mnist_accel {verb}" for verb in commands.names()]
    for kind in ("python launch.py", "accelerate launch ", "torchrun ", "make ", "pytest", *verbs):
        assert kind in found
