"""The line to type after an interruption is the one that was typed, whatever started the run, with resume=auto."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from mnist_accel.machine.launcher import line_to_go_on

LAUNCH = "import sys\nfrom mnist_accel.machine.launcher import line_to_go_on\nprint(line_to_go_on(sys.argv[1:]))\n"
# Starts what follows its own options, as launchers do.
LAUNCHER = """#!{python}
import os, subprocess, sys
script = next(index for index, word in enumerate(sys.argv) if word.endswith("launch.py"))
child = [sys.executable, "-u", *sys.argv[script:]]
sys.exit(subprocess.run(child, env=os.environ | {{"WORLD_SIZE": "2"}}).returncode)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "launch.py").write_text(LAUNCH)
    (tmp_path / "bin").mkdir()
    for name in ("accelerate", "torchrun"):
        program = tmp_path / "bin" / name
        program.write_text(LAUNCHER.format(python=sys.executable))
        program.chmod(0o755)
    (tmp_path / "module.py").write_text(LAUNCHER.format(python=sys.executable))
    return tmp_path


@pytest.mark.parametrize(
    ("typed", "again"),
    [
        ("python launch.py recipe=is3 epochs=2", "python launch.py recipe=is3 epochs=2 resume=auto"),
        ("python launch.py recipe=is3 'out=a b'", "python launch.py recipe=is3 'out=a b' resume=auto"),
        ("python launch.py resume=runs/x recipe=is3", "python launch.py recipe=is3 resume=auto"),
        ("python bin/../launch.py recipe=is3", "python launch.py recipe=is3 resume=auto"),
        (
            "accelerate launch --num_processes 2 launch.py recipe=is3",
            "accelerate launch --num_processes 2 launch.py recipe=is3 resume=auto",
        ),
        ("torchrun --nproc-per-node 2 launch.py lr=1", "torchrun --nproc-per-node 2 launch.py lr=1 resume=auto"),
        ("python -m module launch.py lr=1", "python -m module launch.py lr=1 resume=auto"),
    ],
)
def test_the_line_that_was_typed_comes_back_with_resume(
    folder: Path, root: Path, clean_environment: dict[str, str], typed: str, again: str
) -> None:
    program, *words = shlex.split(typed)
    python = Path(sys.executable)
    paths = f"{folder / 'bin'}:{python.parent}:{clean_environment['PATH']}"
    ended = subprocess.run(
        [sys.executable if program == "python" else folder / "bin" / program, *words],
        cwd=folder,
        env=clean_environment | {"PYTHONPATH": str(root), "PATH": paths},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (ended.returncode, ended.stderr, ended.stdout) == (0, "", f"{again.replace('python', python.name, 1)}\n")


def test_a_launcher_that_is_not_launch_py_s_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert re.fullmatch(r"\S+ launch\.py recipe=is3 resume=auto", line_to_go_on(["recipe=is3"]))


def test_a_run_that_was_named_is_named_again() -> None:
    line = line_to_go_on(["resume=elsewhere/checkpoints/step-1.safetensors", "recipe=is3"], Path("elsewhere"))
    assert line.endswith("launch.py recipe=is3 resume=elsewhere")
