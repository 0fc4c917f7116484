"""TensorBoard with torch-tb-profiler really opens what ``profile=true`` leaves: asked over HTTP, as its page asks."""

import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest
from jobs import Launch, a_run

from mnist_accel.profiling.layers import analyse
from mnist_accel.profiling.trace_file import read_trace

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (find_spec("tensorboard") and find_spec("torch_tb_profiler")),
        reason="the extra is not installed: pip install -e '.[profile]'",
    ),
]
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
WORDS = ("recipe=onepoch", "batch_size=50", "validation=57000", "threads=1", "processes=2", "profile=true")
Ask = Callable[..., Any]


@pytest.fixture(scope="module")
def home(run_launch: Launch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("board")
    assert a_run(run_launch, home / "run", *WORDS, cwd=home).code == 0
    return home


@pytest.fixture(scope="module")
def board(home: Path, clean_environment: dict[str, str]) -> Iterator[str]:
    """The address of a TensorBoard that shows ``profiles/``."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with (home / "tensorboard.log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "tensorboard.main", "--logdir=profiles", "--host=127.0.0.1", f"--port={port}"],
            cwd=home,
            env=clean_environment,
            stdout=log,
            stderr=log,
        )
    yield f"http://127.0.0.1:{port}"
    server.terminate()
    server.wait(timeout=30)


@pytest.fixture(scope="module")
def ask(board: str, home: Path) -> Ask:
    def ask(route: str, **words: str) -> Any:
        with urlopen(f"{board}/data/plugin/pytorch_profiler/{route}?{urlencode(words)}", timeout=30) as answer:
            return json.load(answer)

    give_up = time.monotonic() + 120
    while True:
        try:
            found = ask("runs")
            if found["runs"] and not found["loading"]:
                return ask
        except URLError:  # not up yet
            pass
        assert time.monotonic() < give_up, (home / "tensorboard.log").read_text()
        time.sleep(0.3)


def test_the_plugin_finds_the_run_and_a_worker_for_every_rank(ask: Ask, home: Path) -> None:
    (profile,) = (home / "profiles").iterdir()
    assert ask("runs")["runs"] == [profile.name]
    assert set(ask("views", run=profile.name)) >= {"Overview", "Operator", "Trace", "Distributed"}
    assert ask("workers", run=profile.name, view="Overview") == ["rank0", "rank1"]


def test_overview_and_operator_table_show_our_steps_and_convolutions(ask: Ask, home: Path) -> None:
    (profile,) = (home / "profiles").iterdir()
    summary = json.loads((profile / "summary.json").read_text())
    place = {"run": profile.name, "worker": "rank0"}
    (span,) = ask("spans", **place)
    overview = ask("overview", **place, span=span, view="Overview")
    assert len(overview["steps"]["rows"]) == summary["steps"]
    table = ask("operation/table", **place, span=span, view="Operator", group_by="Operation")["data"]
    by_name = {row["name"]: row for row in table}
    calls = summary["steps"] * len(summary["convolutions"])
    assert by_name["aten::conv2d"]["calls"] == by_name["aten::convolution_backward"]["calls"] == calls
    # Two readings of the same trace, disturbed steps and all: the plugin's table has sums over every step.
    (trace,) = profile.glob("rank0.*")
    forward = sum(row.forward_us for row in analyse(read_trace(trace)).convolutions)
    assert by_name["aten::conv2d"]["host_total_duration"] == pytest.approx(forward, rel=0.01)


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="there is no Chromium here")
def test_the_page_shows_the_run_in_a_browser(ask: Ask, board: str, home: Path) -> None:
    """The charts come from Google's servers, the names of run, view and worker from ours."""
    assert BROWSER
    browser = [BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=25000"]
    shot = home / "page.png"
    subprocess.run(
        [*browser, f"--screenshot={shot}", f"{board}/#pytorch_profiler"], check=True, capture_output=True, timeout=120
    )
    assert shot.stat().st_size > 10_000
    frame = subprocess.run(
        [*browser, "--dump-dom", f"{board}/data/plugin/pytorch_profiler/index.html"],
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    ).stdout
    (profile,) = (home / "profiles").iterdir()
    for word in (profile.name, "Overview", "rank0"):
        assert word in frame
