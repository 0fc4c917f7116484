"""``python -m mnist_accel trace``: shown from a trace alone, two compared, how to open it; a mistake costs a line."""

import gzip
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from test_profiling import USUAL, an_event, gpu_trace, made_up, nested, traced

from mnist_accel.commands import trace
from mnist_accel.console.profile_report import show_profile
from mnist_accel.errors import UserError
from mnist_accel.models import build_model
from mnist_accel.profiling.layers import analyse
from mnist_accel.profiling.roofline import Roofline
from mnist_accel.profiling.summary import Cost, ProfileSummary, RankTimes, as_json, summarise
from mnist_accel.profiling.trace_file import read_trace

PROJECT = Path(__file__).resolve().parents[1]
Said = Callable[..., list[str]]


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as profile=true leaves it."""
    folder = tmp_path_factory.mktemp("profiles") / "onepoch-now"
    folder.mkdir()
    path, _ = traced(build_model("onepoch", 0.1), folder)
    (folder / "rank0.1.pt.trace.json.gz").write_bytes(gzip.compress(path.read_bytes()))
    path.rename(folder / "rank1.1.pt.trace.json")
    summary = summarise(
        analyse(read_trace(folder / "rank0.1.pt.trace.json.gz")),
        Roofline("fp32", 123.0, 45.0),
        recipe="onepoch",
        batch_size=8,
        precision="fp32",
        machine={"cpu": "a [b]machine[/b]", "threads": 1},
        trace="rank0.1.pt.trace.json.gz",
        folder=str(folder),
        cost=Cost(3.0, 2.0, [2.0], [3.0], [2.0, 2.0], 0.5),
        ranks=[RankTimes(0, 3.0, 2.0)],
    )
    (folder / "summary.json").write_text(as_json(summary))
    return folder


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Said:
    def said(*words: str) -> list[str]:
        assert trace.main(list(words)) == 0
        return [line.rstrip() for line in capsys.readouterr().out.splitlines() if line.strip()]

    return said


def cells(lines: list[str], first: str) -> list[str]:
    return next(row for row in (re.split(r" {2,}", line.strip()) for line in lines) if row[0] == first)


def test_a_folder_s_first_trace_is_shown_with_what_the_run_measured(said: Said, profile: Path) -> None:
    lines = said(str(profile))
    assert lines[0] == f"trace     {profile / 'rank0.1.pt.trace.json.gz'}"
    assert lines[1:3] == ["recipe    onepoch, batch 8, fp32", "machine   cpu a [b]machine[/b], threads 1"]
    assert "% of the step" in lines[3]
    assert cells(lines, "the step")[1:3] == ["2", "100.0"]
    assert any(
        re.match(r"Of 3 traced steps \d were set aside, longer than 1.25 times the median; times", x) for x in lines
    )
    assert cells(lines, "conv2")[1] == "8×5×13² → 32×11², 3²" and "-" not in cells(lines, "conv2")
    assert any("matrix product 123 GFLOP/s, copy 45 GB/s" in line for line in lines)
    assert any(
        line.startswith("Profiling: a step took 3.00 ms with it and 2.00 ms without (1.50 times") for line in lines
    )
    assert lines[-1] == f"page      {profile / 'profile.html'}"
    assert any("https://ui.perfetto.dev" in line for line in lines)


def test_a_trace_taken_elsewhere_says_what_cannot_be_had(said: Said, tmp_path: Path) -> None:
    path, _ = traced(build_model("is3", 0.0), tmp_path, annotated=False)
    path = path.rename(tmp_path / "theirs.json")
    lines = said(f"path={path}")
    assert cells(lines, "conv2")[-1] == "-"
    assert any("median; not scaled, for the trace does not tell how long a step is" in line for line in lines)
    assert any(line.startswith("No percent of the roof: there is no summary.json beside the trace") for line in lines)
    assert not any(line.startswith("Profiling") for line in lines)


def test_a_gpu_s_trace(said: Said, tmp_path: Path) -> None:
    lines = said(str(gpu_trace(tmp_path)))
    assert "Launch overhead bounds this run: 30% of the step" in lines[1]
    assert "Of 2 processes rank 1 is shown." in lines
    assert cells(lines, "launch overhead")[1:3] == ["0.03", "30.0"]


def test_two_are_compared_layer_by_layer(said: Said, profile: Path, tmp_path: Path) -> None:
    slow = {name: 2 * us for name, us in USUAL.items()}
    for name, step in (("usual.json", USUAL), ("slow.json", slow)):
        made_up(tmp_path / name, [step] * 5)
    lines = said(str(tmp_path / "usual.json"), f"against={tmp_path / 'slow.json'}")
    start = lines.index(f"Against {tmp_path / 'slow.json'}:")
    for name in ("the step", "forward", "backward", "conv1 forward", "conv1 backward"):
        assert cells(lines[start:], name)[-2:] == ["0.5", "faster"]
    assert not any("this run" in line or line.startswith("Roof") for line in lines), "the first report again"
    other = tmp_path / "other"
    other.mkdir()
    path, _ = traced(build_model("is3", 0.0), other)
    lines = said(str(profile), f"against={path}")
    assert any(line.startswith("Only in this trace: conv1 8×1×28² → 5×26², 3²; conv2 ") for line in lines)
    assert any(line.startswith("Only in the other: conv1 8×1×28² → 16×24², 5²") for line in lines)


def test_what_differs_beside_the_code_is_named(said: Said, profile: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(profile, tmp_path / "other"))
    assert not any(line.startswith("Not alike") for line in said(str(profile), f"against={other}"))
    summary = json.loads((other / "summary.json").read_text())
    summary |= {"recipe": "is3", "machine": summary["machine"] | {"threads": 2}}
    (other / "summary.json").write_text(json.dumps(summary))
    assert "Not alike: recipe onepoch here, is3 there; threads 1 here, 2 there" in said(
        str(profile), f"against={other}"
    )


def test_a_percentage_stands_once_above_the_tables(said: Said, profile: Path) -> None:
    lines = said(str(profile))
    above = " ".join(lines[: next(index for index, line in enumerate(lines) if line.startswith("phase "))])
    named = re.findall(r"([\w' ]+ \d+%)", above)
    assert named and len(named) == len(set(named))
    roof = next(index for index, line in enumerate(lines) if line.startswith("Roof: "))
    assert roof < next(index for index, line in enumerate(lines) if "% of roof" in line and index != roof)


def test_tensorboard_is_named_where_its_plugin_is_installed(
    said: Said, profile: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = traced(build_model("is3", 0.0), tmp_path, annotated=False)
    path = path.rename(tmp_path / "theirs.json")
    for found, says in ((lambda name: None, False), (lambda name: name, True)):
        monkeypatch.setattr(trace, "find_spec", found)
        assert any(f"tensorboard --logdir {profile}, then" in line for line in said(str(profile))) == says
        assert any("names that end in .pt.trace.json" in line for line in said(str(path))) == says


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["against=x"], "trace: no path given. Type python -m mnist_accel trace PATH against=OTHER"),
        (["nowhere"], "nowhere: there is no such file or folder. Name a trace, or a folder of profiles/"),
        (["path=nowhere"], "nowhere: there is no such file or folder. Name a trace, or a folder of profiles/"),
        (["{here}", "other"], "other: a second path beside {here}. Type against=other to compare the two"),
        (["{here}", "against=nowhere"], "nowhere: there is no such file or folder. Name a trace, or a folder"),
        (["{here}", "path={here}"], "path={here}: path is typed twice"),
        (["{here}", "agianst=x"], "agianst=x: no such key. Did you mean against=x?"),
        (["{here}", "--against=x"], "--against=x: keys have no dashes"),
        (["x" * 5000], "x" * 5000 + ": cannot be read (File name too long)"),
        (["~no_such_user/x"], "~no_such_user/x: there is no such home folder"),
        (["{empty}"], "{empty}: holds no trace (*.pt.trace.json.gz). Name a folder that profile=true has made"),
    ],
)
def test_a_mistake_costs_one_line(words: list[str], says: str, profile: Path, tmp_path: Path) -> None:
    places = {"here": str(profile), "empty": str(tmp_path)}
    with pytest.raises(UserError) as error:
        trace.main([word.format(**places) for word in words])
    assert str(error.value).startswith(says.format(**places)) and "\n" not in str(error.value)


def test_a_path_with_an_equals_sign_is_a_path(said: Said, profile: Path, tmp_path: Path) -> None:
    (tmp_path / "lr=0.1").symlink_to(profile)
    assert said(str(tmp_path / "lr=0.1"))[0].startswith("trace ")


HOSTILE = {
    "bomb": gzip.compress(b" " * 400_000_000, 1),  # 1.7 MB that unpack to more than is read
    "truncated": gzip.compress(json.dumps({"traceEvents": []}).encode())[:-9],
    "nested": ('{"traceEvents": ' + nested(1_000_000) + "}").encode(),
    "unclosed": ('{"traceEvents": [' + "[]," * 1_000_000 + "[]]").encode(),
    "strings": json.dumps({"traceEvents": [{"ph": "X", "cat": "cpu_op", "name": "x", "ts": "1", "dur": 1}]}).encode(),
    "foreign": json.dumps({"images": [1, 2]}).encode(),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_files_cost_one_line(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "x.pt.trace.json.gz"
    path.write_bytes(HOSTILE[kind])
    with pytest.raises(UserError) as refused:
        trace.main([str(path)])
    assert str(refused.value).startswith(f"{path}: ") and "\n" not in str(refused.value)
    assert [left.name for left in tmp_path.iterdir()] == [path.name]


def test_a_hostile_file_ends_a_real_process_with_code_2_and_cannot_command_the_terminal(
    tmp_path: Path, clean_environment: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x\x1b]0;title\x07.json"
    path.write_bytes(HOSTILE["nested"])
    ended = subprocess.run(
        [sys.executable, "-m", "mnist_accel", "trace", str(path)],
        cwd=PROJECT,
        env=clean_environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith("error: ") and ended.stderr.count("\n") == 1
    path.write_text(json.dumps({"traceEvents": [an_event()]}))
    assert trace.main([str(path)]) == 0
    for shown in (ended.stderr, capsys.readouterr().out):
        assert not {"\x1b", "\x07"} & set(shown) and "x?]0;title?.json" in shown.replace("\n", "")


# On screens of any width


def test_nothing_is_cut_in_two_at_any_width(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    path, _ = traced(build_model("sub20k", 0.1), tmp_path)
    summary = summarise(
        analyse(read_trace(path)), Roofline("fp32", 1.0, 1.0), cost=Cost(3.0, 2.0, [2.0], [3.0], [], 0.5)
    )
    for columns in (40, 80, 200):
        show_profile(Console(width=columns, force_terminal=True, color_system=None, highlight=False), summary)
        lines = capsys.readouterr().out.splitlines()
        assert max(map(len, lines)) <= columns
        for word in ("conv9", "backward", "the step", "8×16×24²", "Profiling:", "GFLOP/s,"):
            assert any(word in line for line in lines), f"{word} is cut in two at {columns}"
        assert sum(line.startswith("conv9") for line in lines) == (1 if columns == 200 else 2)
        if columns == 40:
            assert sum(line.startswith("  forward %: ") for line in lines) == len(summary.convolutions)


def test_what_ran_is_said(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path, _ = traced(build_model("onepoch", 0.1), tmp_path)
    summary = summarise(analyse(read_trace(path)), None)

    def shown(**changes: Any) -> str:
        changed: ProfileSummary = replace(summary, **changes)
        show_profile(Console(width=300), changed)
        return capsys.readouterr().out

    assert "graph" not in shown()
    assert "A captured graph trains; it was set aside for these steps, which ran eagerly." in shown(usually_eager=False)
    assert "A captured graph ran in these steps" in shown(eager=False)
    assert "There is no convolution in these steps." in shown(convolutions=[])
