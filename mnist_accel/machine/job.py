"""Starts the processes of a job, and starts them anew where one was lost; lets them find each other and agree."""

import logging
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TypeVar
from uuid import uuid4

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch.distributed import init_process_group, is_initialized
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from mnist_accel.errors import SPAWNED, PeerLost, TrainingFailed, UserError
from mnist_accel.machine.launcher import launched_world_size

# Set for the processes that restarts=N starts: a file with the folder of their run, once there is one, …
FOLDER_FILE = "MNIST_ACCEL_FOLDER_FILE"
# … and for those of a later attempt, which one it is and why.
RESTART = "MNIST_ACCEL_RESTART"

POLL_SECONDS = 0.01

T = TypeVar("T")

# Starting them


def spawn(processes: int, script: str, argv: Sequence[str], restarts: int = 0) -> int:
    """Runs ``script`` in N processes under torch's elastic launcher; the code of the rank that failed first.

    Up to ``restarts`` times all of them are started anew where one was lost. Not torch's own ``max_restarts``, which
    would repeat a mistake or a diverging loss as well.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # Its own report of a failed rank would bury the one line that the rank has printed.
    for name in ("torch.distributed.elastic", "torch.distributed.elastic.agent.server.api"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    os.environ[SPAWNED] = str(os.getpid())
    # torchrun's way around a warning; start_runtime shares the cores out.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=f"mnist_accel-{os.getpid()}",
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        max_restarts=0,
        monitor_interval=0.2,
    )
    with tempfile.TemporaryDirectory() as notes:
        if restarts:
            os.environ[FOLDER_FILE] = str(Path(notes, "folder"))
        attempt = 0
        while True:
            try:
                elastic_launch(config, sys.executable)("-u", script, *argv)
            except ChildFailedError as error:
                rank, first = error.get_first_failure()
                if attempt == restarts or not was_lost([failure.exitcode for failure in error.failures.values()]):
                    return code_of(first.exitcode)
                attempt += 1
                os.environ[RESTART] = f"{attempt} of {restarts}, process {rank} {how_it_ended(first.exitcode)}"
            except SignalException as error:  # torch has stopped the ranks
                return 128 + error.sigval
            else:
                return 0


def was_lost(codes: Sequence[int]) -> bool:
    """Whether ranks were killed, or lost another one: no mistake of anybody's, nor asked to stop. In the order in which
    they ended: torch's launcher asks those to stop that are left behind the first."""
    asked = (-signal.SIGINT, -signal.SIGTERM, 128 + signal.SIGINT, 128 + signal.SIGTERM)
    by_themselves = [code for code in codes if code not in asked]
    return codes[0] not in asked and all(code < 0 or code == PeerLost.exit_code for code in by_themselves)


def code_of(code: int) -> int:
    if code == PeerLost.exit_code:
        return TrainingFailed.exit_code
    return code if code >= 0 else 128 - code  # of a signal, as a shell says it


def how_it_ended(code: int) -> str:
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else "lost another"


def which_restart() -> str:
    """Of this attempt, in words; nothing for the first. A launcher of torch's counts by itself."""
    if said := os.environ.get(RESTART):
        return said
    count = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return "" if count == "0" else f"{count} of {os.environ.get('TORCHELASTIC_MAX_RESTARTS', '?')}"


def earlier_folder() -> str | None:
    """The folder that an earlier attempt of ``restarts=N`` had opened."""
    try:
        return Path(os.environ[FOLDER_FILE]).read_text() or None
    except (KeyError, OSError):
        return None


def tell_later_attempts_folder(folder: Path) -> None:
    if FOLDER_FILE in os.environ:
        Path(os.environ[FOLDER_FILE]).write_text(str(folder.absolute()))


# How they find each other


def start_process_group(device: str, timeout: timedelta) -> None:
    """Before Accelerate, which takes a group that is there: over a part of the store that is this attempt's alone. The
    seeds of ``verify`` share one."""
    if is_initialized():
        return
    store = launchers_store(timeout)
    if store is not None and store.check(["failed"]):
        raise TrainingFailed(store.get("failed").decode())
    rank, world_size = int(os.environ.get("RANK", "0")), launched_world_size()
    if world_size == 1:
        return
    if store is None:
        store, rank, world_size = next(rendezvous("env://", timeout=timeout))
    backend = "nccl" if device == "cuda" else "gloo"
    store = meet(store, rank, world_size, timeout)
    if backend == "nccl":
        # Its watchdog aborts the process without a word or a result: it is for waits that nobody watches, and comes
        # after ours (``exchange.Patience``) has ended the run.
        timeout += timedelta(seconds=60)
    init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=timeout)


def launchers_store(timeout: timedelta) -> Store | None:
    """The one that torch's launcher keeps for all attempts at a job."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    refuse_dead_launcher(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
    store, *_ = next(rendezvous("env://", timeout=timeout))
    return PrefixStore("mnist_accel", store)


def refuse_dead_launcher(host: str, port: int) -> None:
    """It has opened the store before it started us: where nobody listens it is gone, and torch would try for
    ``timeout=`` seconds to reach it."""
    try:
        socket.create_connection((host, port), 10).close()
    except ConnectionRefusedError:
        raise PeerLost("the launcher of this job is gone", here_only=True) from None
    except OSError:
        pass  # torch says what is wrong


def meet(store: Store, rank: int, world_size: int, timeout: timedelta) -> Store:
    """The part of ``store`` that only the ranks of this attempt know.

    torch's launcher hands every attempt the same store, in which gloo finds the addresses of dead ranks, and its count
    of restarts is one machine's own. So rank 0 draws a key and gives it to whoever shows a ticket. Both are new in each
    process: nothing that a dead one has left there is taken for an answer, and nobody goes on before all hold the key.
    """
    deadline = time.monotonic() + timeout.total_seconds()
    mine = uuid4().hex  # rank 0's key, the others' tickets
    if rank:
        store.set(f"ticket/{rank}", mine)
    missing = set(range(1, world_size))
    while True:
        if rank == 0:
            missing = {other for other in missing if not gave_key(store, mine, other)}
            if not missing:
                store.set(f"{mine}/complete", "")
                return PrefixStore(mine, store)
        elif store.check([f"key for {mine}"]):
            key = store.get(f"key for {mine}").decode()
            store.set(f"{key}/{rank}", "")
            if store.check([f"{key}/complete"]):
                return PrefixStore(key, store)
        if time.monotonic() > deadline:
            raise PeerLost(
                f"process {rank} waited for others of this job to start for longer than timeout= allows",
                here_only=True,
            )
        time.sleep(POLL_SECONDS)


def gave_key(store: Store, key: str, other: int) -> bool:
    """Whether rank ``other`` is known to hold ``key``; gives it to the ticket that lies there, maybe a dead one's."""
    if store.check([f"ticket/{other}"]):
        store.set(f"key for {store.get(f'ticket/{other}').decode()}", key)
    return store.check([f"{key}/{other}"])


# What outlasts them


def tell_later_attempts_failed(message: str) -> None:
    """Later attempts would fail again: they end at once, with the same line."""
    store = launchers_store(timedelta(seconds=10))
    if store is not None:
        store.set("failed", message)


# What they agree on


def load_on_all_ranks(accelerator: Accelerator, load: Callable[[], T]) -> T:
    """``load()`` on every rank; if it is refused on any, all of them end, and the first of those says why."""
    refusal: UserError | None = None
    try:
        loaded = load()
    except UserError as error:
        refusal = error
    refused = gather_object([refusal is not None])
    if not any(refused):
        return loaded
    first = accelerator.process_index == refused.index(True)
    raise UserError(str(refusal) if first else "", here_only=first)  # without words, a rank ends silently


def refuse_mismatch(checksum: str, message: str) -> None:
    """Ranks that train on different data, or from different checkpoints, would disagree silently."""
    if len(set(gather_object([checksum]))) > 1:
        raise UserError(message)


def wait_for_ranks() -> None:
    """Ranks end together: a launcher takes one that is gone for a failure while another still writes."""
    if torch.distributed.is_initialized():
        # Without its number NCCL warns that it guesses the GPU by the rank, which is wrong on a second machine.
        nccl = torch.distributed.get_backend() == "nccl"
        torch.distributed.barrier(device_ids=[torch.cuda.current_device()] if nccl else None)
