"""What is really in effect: threads, precision, device and ranks; and what cannot be had is refused."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from jobs import ROOT

from mnist_accel.errors import UserError
from mnist_accel.machine import launcher
from mnist_accel.machine import runtime as module
from mnist_accel.machine.launcher import has_to_spawn
from mnist_accel.machine.runtime import Runtime, choose_device, choose_precision, usable_cores

MakeRuntime = Callable[..., Runtime]
no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")


# Threads


@pytest.mark.parametrize("threads", [1, 2])
def test_the_threads_that_were_asked_for_are_in_effect(make_runtime: MakeRuntime, threads: int) -> None:
    assert make_runtime(threads=threads).threads == threads == torch.get_num_threads()


def test_the_launchers_one_thread_does_not_hold_training_to_one(
    make_runtime: MakeRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """accelerate launch exports OMP_NUM_THREADS=1 on a CPU."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(module, "usable_cores", lambda: 3)
    assert make_runtime(threads=0).threads == 3 == torch.get_num_threads()


@pytest.mark.parametrize(("processes", "threads"), [(2, 4), (3, 2), (8, 1), (64, 1)])
def test_processes_of_one_machine_share_its_cores_out(
    make_runtime: MakeRuntime, monkeypatch: pytest.MonkeyPatch, processes: int, threads: int
) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    monkeypatch.setattr(module, "usable_cores", lambda: 8)
    assert make_runtime(threads=0).threads == threads == torch.get_num_threads()


@pytest.mark.parametrize(
    ("quota", "cores"),
    [
        ("max 100000", 8),
        ("300000 100000", 3),
        ("350000 100000", 3),
        ("50000 100000", 1),
        ("3200000 100000", 8),
        ("", 8),
        (None, 8),
    ],
)
def test_a_containers_quota_counts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, quota: str | None, cores: int
) -> None:
    seen: list[str] = []

    def read_here(path: str) -> Path:
        seen.append(path)
        return tmp_path / "cpu.max"

    if quota is not None:
        (tmp_path / "cpu.max").write_text(quota + "\n")
    monkeypatch.setattr(module, "Path", read_here)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    assert usable_cores() == cores
    assert seen == ["/sys/fs/cgroup/cpu.max"]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs Linux")
def test_cores_that_the_process_may_not_use_do_not_count() -> None:
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
    code += "from mnist_accel.machine.runtime import usable_cores; print(usable_cores())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "1\n"


# Precision


@pytest.mark.parametrize(
    ("launcher", "asked", "chosen"),
    [
        (None, "auto", "fp32"),
        ("no", "auto", "fp32"),
        ("bf16", "auto", "bf16"),
        ("BF16", "auto", "bf16"),
        ("bf16", "fp32", "fp32"),
        ("fp8", "fp32", "fp32"),
        ("no", "bf16", "bf16"),
    ],
)
def test_auto_takes_what_the_launcher_says_and_a_key_overrides_it(
    monkeypatch: pytest.MonkeyPatch, launcher: str | None, asked: str, chosen: str
) -> None:
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    if launcher:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launcher)
    assert choose_precision(asked, "cpu") == chosen


def test_fp16_on_a_cpu_is_refused_whoever_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"^precision=fp16: fp16 needs a GPU\. Type precision=bf16 or precision=fp32$"):
        choose_precision("fp16", "cpu")
    with pytest.raises(UserError, match=r"^precision=tf32: tf32 needs a GPU\. Type precision=bf16 or precision=fp32$"):
        choose_precision("tf32", "cpu")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    with pytest.raises(UserError, match=r"^mixed_precision=fp16 \(from the launcher\): fp16 needs a GPU\. Type "):
        choose_precision("auto", "cpu")


def test_a_gpu_that_has_it_not_is_refused_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_tf32_supported", lambda: False)
    with pytest.raises(UserError, match=r"^precision=tf32: this GPU has no tf32\. Type precision=fp16 or "):
        choose_precision("tf32", "cuda")
    monkeypatch.setattr(torch.cuda, "is_tf32_supported", lambda: True)
    assert choose_precision("tf32", "cuda") == "tf32"


def test_fp32_is_fp32_and_tf32_has_to_be_asked_for(
    make_runtime: MakeRuntime, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    """In convolutions, which cuDNN makes in TF32 by itself, and in matrix products; each start sets both ways."""
    monkeypatch.setattr(module, "choose_precision", lambda asked, device: asked)

    def in_effect() -> tuple[bool, bool]:
        """As torch.export reads it, and the kernels do."""
        kernels = (torch.backends.cudnn.conv, torch.backends.cuda.matmul)
        allowed = (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32)
        assert [kernel.fp32_precision == "tf32" for kernel in kernels] == list(allowed)
        return allowed

    for precision, expected in (("tf32", True), ("fp32", False), ("tf32", True), ("bf16", False)):
        torch.backends.cudnn.benchmark = True
        runtime = make_runtime(precision)
        assert runtime.precision == precision and in_effect() == (expected, expected)
        assert runtime.accelerator.mixed_precision == ("bf16" if precision == "bf16" else "no")
        assert not torch.backends.cudnn.benchmark  # timed kernels may be others after a resume
    assert not recwarn


def test_a_precision_of_the_launchers_that_is_not_supported_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp8")
    with pytest.raises(UserError, match=r"^mixed_precision=fp8 \(from the launcher\): not supported here\. Type "):
        choose_precision("auto", "cpu")


@pytest.mark.parametrize(("precision", "theirs"), [("fp32", "no"), ("bf16", "bf16")])
def test_the_precision_in_effect_is_accelerates_too(
    make_runtime: MakeRuntime, monkeypatch: pytest.MonkeyPatch, precision: str, theirs: str
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")  # must not leak into fp32
    runtime = make_runtime(precision)
    assert (runtime.precision, runtime.accelerator.mixed_precision) == (precision, theirs)


# Device and ranks


@no_gpu
def test_a_gpu_that_is_not_there_is_refused_and_auto_does_without() -> None:
    with pytest.raises(UserError, match=r"^device=cuda: there is no GPU here that torch can use\. Type device=cpu"):
        choose_device("cuda")
    assert choose_device("auto") == choose_device("cpu") == "cpu"


@pytest.mark.parametrize("said", ["true", "1", "YES"])
def test_a_launcher_that_says_cpu_is_obeyed_where_there_is_a_gpu(monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    assert [choose_device(asked) for asked in ("auto", "cuda", "cpu")] == ["cuda", "cuda", "cpu"]
    monkeypatch.setenv("ACCELERATE_USE_CPU", said)
    assert choose_device("auto") == choose_device("cpu") == "cpu"
    with pytest.raises(UserError, match=r"^device=cuda: the launcher says CPU\. Leave --cpu \(use_cpu\) out of it"):
        choose_device("cuda")


def test_one_process_is_rank_0_of_1_on_the_cpu_it_was_asked_for(runtime: Runtime) -> None:
    assert (runtime.rank, runtime.world_size) == (0, 1)
    assert (runtime.device, runtime.device_name) == (torch.device("cpu"), "cpu")


@pytest.mark.parametrize(
    "environment",
    [
        {"WORLD_SIZE": "abc"},
        {"WORLD_SIZE": "2", "RANK": "0"},
        {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "-1", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"},
    ],
)
def test_a_launchers_environment_that_does_not_hold_together_is_refused(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=r"^(WORLD_SIZE|LOCAL_RANK)=\S+: set in the environment"):
        launcher.check_launcher()


def test_processes_are_started_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", "ACCELERATE_MIXED_PRECISION", launcher.SPAWNED):
        monkeypatch.delenv(name, raising=False)
    assert not has_to_spawn(None) and not has_to_spawn(1)
    assert has_to_spawn(2)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")  # accelerate launch with one process
    assert not has_to_spawn(1)
    with pytest.raises(UserError, match=r"^processes=2: a launcher already started this job with 1\. Leave processes"):
        has_to_spawn(2)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert not has_to_spawn(None)
    with pytest.raises(UserError, match=r"^processes=1: a launcher already started this job with 2"):
        has_to_spawn(1)
    with pytest.raises(UserError, match=r"^processes=2: a launcher already started this job with 2\. Leave processes"):
        has_to_spawn(2)
    monkeypatch.setenv(launcher.SPAWNED, "1")
    assert not has_to_spawn(2)


def test_two_rank_zeros_are_refused_in_one_line(clean_environment: dict[str, str], tmp_path: Path) -> None:
    """What Accelerate makes of two processes of a GPU launcher where there is no GPU: each believes to be alone.

    We tell it to take the CPU; here it is not told, as if a GPU had gone away between our look and its own.
    """
    script = tmp_path / "rank.py"
    script.write_text(
        "import sys\n"
        "sys.path.insert(0, sys.argv.pop(1))\n"
        "import launch\n"
        "from mnist_accel import errors\n"
        "from mnist_accel.machine import runtime\n"
        "runtime.choose_device = lambda asked: 'cuda'\n"
        "runtime.refuse_too_few_gpus = lambda device, processes: None\n"
        "runtime.start_process_group = lambda device, timeout: None\n"
        "errors.exit_with_one_line(launch.main)\n"
    )
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    job = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ranks = [
        subprocess.Popen(
            [sys.executable, script, ROOT, "recipe=onepoch", "dataset=synthetic", f"out={tmp_path / 'run'}"],
            env=clean_environment | job | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = [rank.communicate(timeout=120) for rank in ranks]
    refusal = (
        "error: the launcher says 2 processes, but this one finds itself in a job of 1: all would write the same "
        "files. Type python launch.py processes=N\n"
    )
    assert said == [("", refusal), ("", "")]
    assert [rank.returncode for rank in ranks] == [2, 2]
    assert not (tmp_path / "run").exists()


def test_memory_that_steps_use_again_is_not_given_back(clean_environment: dict[str, str]) -> None:
    """Or each large activation would be taken anew from the system, zeroed page by page, in every step."""
    script = (
        "import resource, torch; from mnist_accel.machine.runtime import start_runtime; start_runtime(threads=1)\n"
        "def faults(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "def step(): return [torch.ones(2_000_000) for _ in range(4)]\n"
        "[step() for _ in range(5)]; before = faults(); [step() for _ in range(5)]; print(faults() - before)"
    )
    ended = subprocess.run([sys.executable, "-c", script], env=clean_environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert int(ended.stdout) < 4000  # of 39,000
