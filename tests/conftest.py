"""What the tests share: a tiny data set, Accelerate with its memory wiped, and ``launch.py`` in real processes.

``launch.py`` takes seconds to import torch, so the runs that several files look at are made once a session, for all of
pytest-xdist's workers: a test that changes one takes a copy.
"""

import fcntl
import os
import pickle
import pty
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, fields
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from browser import browser, show
from filelock import FileLock
from jobs import ROOT, TWO, WORDS, Begin, Launch, Run, a_run, as_if_killed, beginning, file_limit
from mirror import Server
from safetensors.torch import load_file
from torch import Tensor, nn

import recipes
from mnist_accel import cli
from mnist_accel.data.dataset import Dataset, load_dataset
from mnist_accel.data.synthetic import draw_dataset
from mnist_accel.machine.runtime import Runtime, start_runtime
from mnist_accel.recipe import Recipe, RunOptions
from mnist_accel.runs import run
from mnist_accel.runs.checkpoint import Checkpoint, newest_first, write_checkpoint
from mnist_accel.runs.result import RunResult
from mnist_accel.runs.trainer import Trainer, TrainerCallbacks
from mnist_accel.runs.watcher import Start, Watcher
from mnist_accel.training.state import BuildStepper, EpochStats, Position, StepInfo, Stepper

__all__ = ["browser", "show"]  # fixtures of pages' tests

KEPT_VARIABLES = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "PYTHONPATH")
LAUNCHER_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "ACCELERATE_MIXED_PRECISION")


def pytest_make_parametrize_id(val: object) -> str | None:
    """Bytes as text would be unreadable, and a gzip file holds the time of day: xdist's workers would disagree."""
    return f"{len(val)} bytes" if isinstance(val, bytes) else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A slow test may take longer than pyproject.toml lets the others."""
    for item in items:
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(1200))


@pytest.fixture(scope="session", autouse=True)
def one_torch_thread() -> None:
    """Two threads on two cores that others use as well are many times slower than one."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def signals_as_before() -> Iterator[None]:
    """A run that was interrupted in this process ignores signals from then on, and a child would inherit that."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def tiny() -> Dataset:
    """600 images to train on, 200 to test: 6 steps an epoch at the batch size of ``fit``."""
    return Dataset(name="synthetic", reason="a test", checksum="0" * 64, **draw_dataset(0, 600, 200))


# Training inside the test's own process


@pytest.fixture
def make_runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Runtime]]:
    """``start_runtime`` as in a process of its own: nothing left of another test's, nothing left for the next."""
    environment, threads = dict(os.environ), torch.get_num_threads()
    for name in LAUNCHER_VARIABLES:
        monkeypatch.delenv(name, raising=False)

    def make(precision: str = "fp32", device: str = "cpu", threads: int = 1) -> Runtime:
        forget_accelerate()
        return start_runtime(precision, device, threads)

    yield make
    forget_accelerate()
    torch.set_num_threads(threads)
    for name in set(os.environ) - set(environment):
        del os.environ[name]
    os.environ.update(environment)


def forget_accelerate() -> None:
    """Its state is one for the process, and refuses a second precision."""
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    PartialState._reset_state()


@pytest.fixture
def runtime(make_runtime: Callable[..., Runtime]) -> Runtime:
    return make_runtime()


@dataclass(frozen=True)
class Ran:
    """What a run through ``run.run`` said, and left in its folder."""

    result: RunResult
    start: Start
    folder: Path
    asked: tuple[str, str | None]  # of load_dataset

    @property
    def weights(self) -> dict[str, Tensor]:
        return load_file(self.folder / "model.safetensors")

    @property
    def checkpoints(self) -> list[int]:
        """The steps behind those that are left."""
        return sorted(int(path.stem.partition("-")[2]) for path in newest_first(self.folder / "checkpoints"))


RunHere = Callable[..., Ran]


@pytest.fixture
def run_here(
    make_runtime: Callable[..., Runtime], tiny: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> RunHere:
    """``run_here("recipe=onepoch", …)``: what launch.py does with these words, in this process and on tiny data."""
    numbers = count(1)

    def run_here(
        *words: str,
        data: Dataset = tiny,
        watcher: Watcher | None = None,
        make_report: Callable[[Path], str] | None = None,
    ) -> Ran:
        told: dict[str, Any] = {}
        watcher = watcher or Watcher()
        watcher.on_start = lambda start: told.update(start=start)

        def load(dataset: str, data_dir: str | None) -> Dataset:
            told["asked"] = dataset, data_dir
            return data

        monkeypatch.setattr(run, "load_dataset", load)
        typed = [word.partition("=")[0] for word in words]
        others = {"threads": "1", "out": str(tmp_path / f"run{next(numbers)}")}
        if "resume" in typed:
            del others["out"]
        words += tuple(f"{name}={value}" for name, value in others.items() if name not in typed)
        forget_accelerate()
        request = cli.parse(words, recipes.names(), recipes.load)
        result, folder = run.run(request, watcher, time.perf_counter(), make_report)
        return Ran(result, told["start"], folder.path, told["asked"])

    return run_here


@dataclass
class Fitted:
    """What training left, and what it said on the way."""

    trainer: Trainer
    stepper: Any = None  # where the test asked for one of its own
    steps: list[StepInfo] = field(default_factory=list)
    states: list[dict[str, Tensor]] = field(default_factory=list)  # after each step
    error: Exception | None = None
    warmup_seconds: float = 0.0

    @property
    def model(self) -> nn.Module:
        return self.trainer.model

    @property
    def position(self) -> Position:
        return self.trainer.position

    @property
    def history(self) -> list[EpochStats]:
        return self.position.history

    @property
    def losses(self) -> list[float]:
        return [info.loss for info in self.steps]

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Everything that training goes on from."""
        return self.trainer.checkpoint()[0]


class AsOnAGpu(Runtime):
    """Has the trainer warm up before the clock, which it asks the device for."""

    device = torch.device("cuda")


TINY = Recipe(
    name="tiny", model="efficient25k", epochs=1, batch_size=100, optimizer="adamw", lr=0.01, momentum=0.0, dropout=0.0
)


@pytest.fixture(scope="session")
def fit() -> Callable[..., Fitted]:
    return fit_


def fit_(
    runtime: Runtime,
    data: Dataset,
    *,
    epochs: int = 1,
    lr_at: Callable[[int], float] | None = None,
    ahead: bool = False,
    warm_up: bool = False,
    keep_states: bool = False,
    catch: type[Exception] | tuple[()] = (),
    save_in: Path | None = None,
    stop_after_steps: int = 0,
    stop: Callable[[], int] | None = None,
    resumed: Checkpoint | None = None,
    build_stepper: BuildStepper | None = None,
    **keys: Any,
) -> Fitted:
    """Trains ``TINY``, with these keys of a recipe or a run; exceptions of the type ``catch`` are handed back.

    ``epochs=0`` builds everything and trains nothing. ``lr_at`` is for rates that no schedule gives. As on a GPU,
    ``ahead`` puts an epoch's images in order at once, and ``warm_up`` comes before the first step. With ``save_in``
    every save is a checkpoint there; a SIGTERM comes during step ``stop_after_steps``.
    """
    keys = {"graph": "off", "epochs": epochs or 1} | keys
    assert keys.keys() <= {known.name for owner in (Recipe, RunOptions) for known in fields(owner)}, keys
    trainer = Trainer.build(cli.apply(TINY, keys, Recipe), cli.apply(RunOptions(), keys, RunOptions), runtime, data)
    trainer.test_batches.batch_size = 50
    fitted = Fitted(trainer)
    if ahead:
        batches = trainer.train_batches
        batches.orders_ahead, batches.normalises_ahead = True, not any(vars(batches.augmentation).values())
    if warm_up:
        trainer.runtime = AsOnAGpu(**vars(runtime))
    if lr_at:
        trainer.lr_at = lr_at
    if resumed:
        trainer.go_on_from(resumed)
    if not epochs:
        trainer.position.epoch = 1

    def build(*parts: Any) -> Stepper:
        fitted.stepper = build_stepper(*parts)
        return fitted.stepper

    def on_step(info: StepInfo) -> None:
        fitted.steps.append(info)
        if keep_states:
            fitted.states.append({name: value.clone() for name, value in trainer.model.state_dict().items()})

    def on_save(position: Position) -> None:
        if save_in:
            write_checkpoint(save_in, f"{position.epoch}-{position.step}.safetensors", *trainer.checkpoint())

    def stop_signal() -> int:
        return signal.SIGTERM if len(fitted.steps) + 1 == stop_after_steps else 0

    trainer.build_stepper = build if build_stepper else None
    try:
        trainer.run(
            TrainerCallbacks(
                on_warm_up=lambda seconds: setattr(fitted, "warmup_seconds", seconds),
                on_step=on_step,
                on_save=on_save,
                stop_signal=stop or stop_signal,
            )
        )
    except catch as error:
        fitted.error = error
    return fitted


# launch.py in processes of its own


@pytest.fixture(scope="session")
def common_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all of pytest-xdist's workers."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session")
def made_once(common_folder: Path) -> Callable[..., Any]:
    """``made_once(name, make)``: what ``make(folder)`` gives, made by the worker that is first to ask for it."""

    def made_once(name: str, make: Callable[[Path], Any]) -> Any:
        kept = common_folder / f"{name}.pickle"
        with FileLock(common_folder / f"{name}.lock"):
            if not kept.exists():
                kept.write_bytes(pickle.dumps(make(common_folder / name)))
        return pickle.loads(kept.read_bytes())

    return made_once


@pytest.fixture(scope="session")
def clean_environment(common_folder: Path) -> dict[str, str]:
    """No GPU, no MNIST, no launcher, no settings of the user's; the synthetic digits are drawn already."""
    home = common_folder / "cache"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(home))
        load_dataset("synthetic")  # by the first worker, which the others wait for
    kept = {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ}
    return kept | {
        "XDG_CACHE_HOME": str(home),
        "HF_HOME": str(home / "huggingface"),  # a forgotten default_config.yaml there would steer accelerate launch
        "CUDA_VISIBLE_DEVICES": "",
        # On a full disk Python leaves half a .pyc, which no later import survives.
        "PYTHONDONTWRITEBYTECODE": "1",
    }


@pytest.fixture(scope="session")
def run_launch(clean_environment: dict[str, str]) -> Launch:
    """``run_launch("recipe=onepoch", …)``: exit code, stdout and stderr of ``launch.py`` in a process of its own."""

    def run_launch(
        *words: str,
        launcher: Sequence[str] = (sys.executable,),
        env: Mapping[str, str] | None = None,
        cwd: Path = ROOT,
        timeout: float = 180,
        file_bytes: int | None = None,
        stdout_to: Path | None = None,
        script: Path = ROOT / "launch.py",
    ) -> "subprocess.CompletedProcess[str]":
        with stdout_to.open("w") if stdout_to else nullcontext(subprocess.PIPE) as stdout:
            return subprocess.run(
                [*launcher, str(script), *words],
                cwd=cwd,
                env=clean_environment | dict(env or {}),
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=subprocess.PIPE,
                text=True,
                timeout=timeout,
                preexec_fn=file_limit(file_bytes),
            )

    return run_launch


@pytest.fixture(scope="session")
def run_in_terminal(clean_environment: dict[str, str]) -> Callable[..., tuple[int, str]]:
    """Exit code and everything that a terminal of ``columns`` columns was sent."""

    def run_in_terminal(*words: str, columns: int, env: Mapping[str, str] | None = None) -> tuple[int, str]:
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "launch.py"), *words],
            cwd=ROOT,
            env=clean_environment | {"TERM": "xterm-256color"} | dict(env or {}),
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        )
        os.close(theirs)
        sent = b""
        try:
            while chunk := os.read(ours, 65536):
                sent += chunk
        except OSError:  # Linux: EIO once the last process has closed the other end
            pass
        os.close(ours)
        return process.wait(timeout=60), sent.decode().replace("\r\n", "\n")

    return run_in_terminal


@pytest.fixture(scope="session")
def dry_run(run_launch: Launch, made_once: Callable[..., Run]) -> Run:
    """One step of the recipe with the most claims."""
    words = ("recipe=efficient25k", "dry_run=true", "threads=1")
    return made_once("dry", lambda folder: a_run(run_launch, folder, *words))


@pytest.fixture(scope="session")
def trained_run(run_launch: Launch, made_once: Callable[..., Run]) -> Run:
    """A whole run, and a short one: 60 steps an epoch. Of its checkpoints those after step 100 and 120 are left."""
    return made_once("trained", lambda folder: a_run(run_launch, folder, *WORDS, "checkpoint_every=100"))


@pytest.fixture
def late(trained_run: Run, tmp_path: Path) -> Path:
    """That run as a kill would have left it, twenty steps before its end."""
    return as_if_killed(trained_run, tmp_path / "late")


@pytest.fixture(scope="session")
def trained_by_two(run_launch: Launch, made_once: Callable[..., Run]) -> Run:
    """A whole run on two processes. Of its checkpoints those after step 40 and 60 are left."""
    return made_once("trained-by-two", lambda folder: a_run(run_launch, folder, *TWO, "checkpoint_every=40"))


@pytest.fixture
def late_two(trained_by_two: Run, tmp_path: Path) -> Path:
    return as_if_killed(trained_by_two, tmp_path / "late-two")


@pytest.fixture(scope="session")
def two_processes(run_launch: Launch, made_once: Callable[..., Run]) -> Run:
    words = ("recipe=is3", "processes=2", "dry_run=true", "threads=1")
    return made_once("two", lambda folder: a_run(run_launch, folder, *words))


@pytest.fixture
def begin(clean_environment: dict[str, str], tmp_path: Path) -> Iterator[Begin]:
    with beginning(clean_environment, tmp_path / "run") as begin:
        yield begin


# The network


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.stopping.set()
        server.shutdown()
        thread.join()
