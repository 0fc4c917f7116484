"""What ranks tell each other, and how one waits for another that does not answer: with a clock and work made up,
and with real ranks of gloo."""

import json
import math
import os
import re
import signal
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from torch import nn

from mnist_accel.errors import CleanExit, Interrupted, PeerLost
from mnist_accel.training.exchange import GRACE_SECONDS, LONGEST_NAP, SHORTEST_NAP, Exchange, Patience

DEVICES = [torch.device("cpu"), torch.device("cuda")]


@dataclass
class Later:
    """Work of another rank's that is done at some time, on a clock that goes on by waiting alone; ``fails`` then."""

    done_at: float
    fails: str = ""
    now: float = 0.0
    looks: int = 0

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert SHORTEST_NAP <= seconds <= LONGEST_NAP
        self.now += seconds

    def is_completed(self) -> bool:
        self.looks += 1
        return self.now >= self.done_at

    def wait(self, timeout: timedelta | None = None) -> None:
        if self.now < self.done_at:
            assert timeout is not None, "this waits for ever"
            self.now = min(self.now + timeout.total_seconds(), self.done_at)
            if self.now < self.done_at:
                raise RuntimeError("Operation timed out!")
        if self.fails:
            raise RuntimeError(self.fails)


@pytest.mark.parametrize("device", DEVICES, ids=str)
@pytest.mark.parametrize(
    ("done_at", "fails", "asked_at", "ends", "said"),
    [
        pytest.param(0, "", math.inf, 0, None, id="it was there already"),
        pytest.param(0.003, "", math.inf, 0.003, None, id="soon"),
        pytest.param(59, "", math.inf, 59, None, id="late, within timeout="),
        pytest.param(math.inf, "", math.inf, 60, PeerLost, id="never"),
        pytest.param(0.5, "Connection closed", math.inf, 0.5, RuntimeError, id="the other one ended"),
        pytest.param(2.5, "", 0.0, 2.5, None, id="asked to stop, and the others answer"),
        pytest.param(math.inf, "", 5.0, 5 + GRACE_SECONDS, Interrupted, id="asked to stop, and nobody answers"),
        pytest.param(math.inf, "", 55.0, 60, PeerLost, id="asked to stop right before the deadline"),
    ],
)
def test_nobody_waits_for_ever(
    device: torch.device, done_at: float, fails: str, asked_at: float, ends: float, said: type[Exception] | None
) -> None:
    work = Later(done_at, fails)
    asked = lambda: signal.SIGTERM if work.now >= asked_at else 0  # noqa: E731
    patience = Patience(60, asked, work.clock, work.sleep)
    error = None
    try:
        patience.wait(work, device)  # type: ignore[arg-type]
    except (CleanExit, RuntimeError) as caught:
        error = caught
    assert type(error) is (said or type(None))
    assert ends <= work.now <= ends + (0.02 if device.type == "cuda" else 1)
    if isinstance(error, CleanExit):
        assert error.here_only and "\n" not in str(error)
    if isinstance(error, PeerLost):
        assert "lost another of this job" in str(error) and "no answer for 60 seconds" in str(error)


def test_a_gpu_is_asked_often_at_first_and_then_rarely() -> None:
    soon, late = Later(0.001), Later(10)
    for work in (soon, late):
        Patience(60, clock=work.clock, sleep=work.sleep).wait(work, torch.device("cuda"))  # type: ignore[arg-type]
    assert soon.now < 0.0015 and soon.looks < 10
    assert late.looks < 10 / LONGEST_NAP + 20


@pytest.mark.parametrize("stop_signal", [0, signal.SIGTERM])
def test_one_process_hears_itself(stop_signal: int) -> None:
    exchange = Exchange(nn.Linear(1, 1), Patience())
    exchange.tell(torch.tensor([2.5, 7.0]), stop_signal)
    assert exchange.heard() == (2.5, 7, stop_signal)


# Real ranks

RANKS = """
import json, signal, sys, time
import torch
from torch import nn
from mnist_accel import errors
from mnist_accel.machine.job import spawn, wait_for_ranks
from mnist_accel.machine.launcher import has_to_spawn
from mnist_accel.machine.runtime import prepare, start_runtime
from mnist_accel.runs.interrupt import naming_lost_peers
from mnist_accel.training import exchange
from mnist_accel.training.exchange import Exchange, Patience

def main():
    if has_to_spawn(2):
        return spawn(2, __file__, [])
    runtime = start_runtime("fp32", "cpu", 1, timeout=TIMEOUT)
    model = nn.Linear(2, 1)
    prepared, _ = prepare(runtime, model, torch.optim.SGD(model.parameters(), lr=0.1))
    asked = [0]
    exchange.GRACE_SECONDS = 0.5
    told = Exchange(prepared, Patience(TIMEOUT, lambda: asked[0]))
    with naming_lost_peers():
        BODY
    wait_for_ranks()
    return 0

errors.exit_with_one_line(main)
"""


def run_two(
    script: Path, environment: dict[str, str], body: str, timeout: float = 600.0
) -> "subprocess.CompletedProcess[str]":
    script.write_text(RANKS.replace("BODY", textwrap.indent(body, " " * 8).lstrip()).replace("TIMEOUT", str(timeout)))
    return subprocess.run(
        [sys.executable, str(script)],
        env=environment | {"PYTHONPATH": f"{ROOT}{os.pathsep}{environment.get('PYTHONPATH', '')}"},
        capture_output=True,
        text=True,
        timeout=120,
    )


SAY = """
sent = []
plain = torch.distributed.all_reduce
torch.distributed.all_reduce = lambda message, **how: sent.append(len(message)) or plain(message, **how)
said = []
for step, number in enumerate((0, signal.SIGTERM, signal.SIGINT, 0)):
    model.zero_grad()
    loss = prepared(torch.full((1, 2), 1.0 + runtime.rank)).sum()
    mine = 10.0 ** runtime.rank if step < 3 else float("nan")
    told.tell(torch.tensor([mine, 3.0 + runtime.rank]), number if runtime.rank == step % 2 else 0)
    loss.backward()
    heard, correct, number = told.heard()
    said.append([str(heard), correct, int(number), model.weight.grad[0, 0].item()])
sys.stdout.write(json.dumps([sent, said]) + "\\n")
"""


@pytest.mark.slow
def test_gradients_loss_and_signals_of_all_ranks_come_in_one_message(
    tmp_path: Path, clean_environment: dict[str, str]
) -> None:
    ended = run_two(tmp_path / "ranks.py", clean_environment, SAY)
    assert ended.returncode == 0, ended.stderr
    said = [["11.0", 7, 0, 3.0], ["11.0", 7, 15, 3.0], ["11.0", 7, 2, 3.0], ["nan", 7, 0, 3.0]]
    # Two weights, a bias, the loss, the correct answers and two signals.
    assert [json.loads(line) for line in ended.stdout.splitlines()] == [[[7] * 4, said]] * 2


HANG = """
for step in range(4):  # the first two are DDP's own way of starting
    if step == 3:
        if runtime.rank == 1:
            time.sleep(60)  # until the launcher ends it
        asked[0] = ASKED
    loss = prepared(torch.ones(1, 2)).sum()
    told.tell(torch.stack((loss.detach(), loss.detach())), 0)
    loss.backward()
    told.heard()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("asked", "timeout", "said"),
    [
        (0, 2.0, r"error: process 0 lost another of this job, which ended or kept it waiting for longer than .*\n"),
        (signal.SIGTERM, 600.0, r"stopped by SIGTERM; nothing was saved\n"),
    ],
    ids=["until timeout=", "until it is asked to stop"],
)
def test_a_rank_that_hangs_costs_the_others_one_line(
    asked: int, timeout: float, said: str, tmp_path: Path, clean_environment: dict[str, str]
) -> None:
    ended = run_two(tmp_path / "ranks.py", clean_environment, HANG.replace("ASKED", str(int(asked))), timeout)
    assert ended.returncode != 0 and re.fullmatch(said, ended.stderr), ended.stderr
