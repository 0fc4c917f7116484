"""Reads what the launcher around this process says, and ends the process with it, from the first line on.

Imported before everything else, so it imports next to nothing.
"""

import ctypes
import os
import shlex
import shutil
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from mnist_accel.errors import SPAWNED, UserError

PR_SET_PDEATHSIG = 1  # linux/prctl.h
SCRIPT = "launch.py"


def is_launched() -> bool:
    """Whether accelerate launch, torchrun or processes=N started this process."""
    return "WORLD_SIZE" in os.environ or "ACCELERATE_MIXED_PRECISION" in os.environ


def launched_world_size() -> int:
    """How many processes the launcher around us says there are."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def end_with_launcher() -> None:
    """Has a SIGTERM come when the launcher is gone, killed or not: accelerate launch, for one, dies without passing it
    on. Until training begins it ends this process on the spot, also amid torch's rendezvous, which would wait for
    ``timeout=``; from then on the run saves first.

    Without a launcher the parent is a shell, which may go away while training is meant to stay.
    """
    if not is_launched():
        return
    parent = os.getppid()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    else:
        threading.Thread(target=watch, args=(parent,), daemon=True).start()
    if os.getppid() != parent or is_orphaned():  # in the meantime, or before the first line
        os.kill(os.getpid(), signal.SIGTERM)


def watch(parent: int) -> None:
    """Where the kernel does not tell of a parent's death it is asked for."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGTERM)


def is_orphaned() -> bool:
    """Whether whoever takes orphans in is our parent already, as far as that can be seen: accelerate launch starts one
    process in its own session, which a child never leaves. Torch's launchers are asked for their store instead
    (job.py), and of a scheduler's daemon nothing is known."""
    if spawner := os.environ.get(SPAWNED):
        return os.getppid() != int(spawner)
    if "WORLD_SIZE" in os.environ:
        return False
    session = os.getsid(0)
    return session != os.getpid() and os.getsid(os.getppid()) != session


def has_to_spawn(processes: int | None) -> bool:
    """Whether ``processes=N`` still has to be acted on; not inside the job that it started."""
    if processes is None or os.environ.get(SPAWNED):
        return False
    if "WORLD_SIZE" in os.environ or (is_launched() and processes > 1):
        raise UserError(
            f"processes={processes}: a launcher already started this job with {launched_world_size()}. "
            "Leave processes out, and give the number to the launcher"
        )
    return processes > 1


def check_launcher() -> None:
    """A launcher's environment that does not hold together ends here, not in somebody else's traceback."""
    variables = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    given = {name: os.environ[name] for name in variables if name in os.environ}
    for name, value in given.items():
        if not value.isdecimal():
            raise UserError(f"{name}={value}: set in the environment, but no number. Unset it, or use a launcher")
    if launched_world_size() > 1 and not {"RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"} <= set(os.environ):
        raise UserError(
            f"WORLD_SIZE={given['WORLD_SIZE']}: set in the environment without the rest of a launcher's variables. "
            "Unset it, or start with torchrun or accelerate launch"
        )

    if "MASTER_ADDR" in os.environ and "WORLD_SIZE" not in os.environ and "ACCELERATE_MIXED_PRECISION" in os.environ:
        # What accelerate launch --cpu --num_processes N leaves: one process, which would train alone.
        raise UserError(
            "accelerate launch --cpu --num_processes N: starts one process only. Type python launch.py processes=N, or "
            "accelerate launch --multi_gpu --num_processes N (which takes CPU processes where there is no GPU)"
        )


def inherited_config() -> str:
    """The default config file that accelerate launch has read without being told to, or nothing."""
    if "ACCELERATE_MIXED_PRECISION" not in os.environ:
        return ""
    try:
        told = b"--config_file" in Path(f"/proc/{os.getppid()}/cmdline").read_bytes()
    except OSError:  # not Linux
        told = False
    files = default_configs()
    return files[0] if files and not told else ""


def default_configs() -> list[str]:
    """Those that accelerate launch would read, the first of them."""
    from accelerate.commands.config.config_args import default_json_config_file, default_yaml_config_file

    return [file for file in (default_yaml_config_file, default_json_config_file) if Path(file).is_file()]


def ignored_settings() -> str:
    backend = os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no").lower()
    return "" if backend == "no" else f"dynamo_backend={backend}"


def line_to_go_on(words: Sequence[str], resumed: Path | None = None) -> str:
    """``words`` are launch.py's as typed, ``resumed`` is the folder that resume=PATH named.

    Asked for at the start: a launcher may be gone once the run is stopped.
    """
    kept = [word for word in words if not word.startswith("resume=")]
    script = os.path.relpath(sys.argv[0]) if Path(sys.argv[0]).name == SCRIPT else SCRIPT
    return shlex.join([*command_before_script(), script, *kept, f"resume={resumed or 'auto'}"])


def command_before_script() -> list[str]:
    """What stood before ``launch.py``: in the command of the launcher around us, if it can be known, else in ours."""
    ours = as_typed([sys.orig_argv[0]])
    if not is_launched():
        return ours
    try:
        command = Path(f"/proc/{os.getppid()}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:  # not Linux, or gone already
        return ours
    ends = [index for index, word in enumerate(command) if Path(word).name == SCRIPT]
    return as_typed(command[: ends[0]]) if ends else ours


def as_typed(command: Sequence[str]) -> list[str]:
    """``/x/python /x/accelerate launch`` → ``accelerate launch``: the kernel names a script's interpreter before it."""
    if len(command) > 1 and not command[1].startswith("-"):
        command = command[1:]
    return [short(command[0]), *command[1:]]


def short(program: str) -> str:
    """Its name alone, where the shell would find the same program by it."""
    name = Path(program).name
    return name if shutil.which(name) == program else program
