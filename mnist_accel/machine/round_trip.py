"""Two processes that add a number each over gloo, as the processes of a job do with gradients: does that work here?"""

import os
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

LAUNCHERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def round_trip(seconds: float) -> str:
    """Nothing where it works within ``seconds``, else what went wrong."""
    own = {name: value for name, value in os.environ.items() if name not in LAUNCHERS}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "mnist_accel.machine.round_trip", str(Path(folder, "store")), str(seconds)]
        processes = [
            subprocess.Popen([*command, str(rank)], env=own, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
            for rank in range(2)
        ]
        deadline = time.monotonic() + seconds
        try:
            said = [process.communicate(timeout=max(0.0, deadline - time.monotonic()))[1] for process in processes]
        except subprocess.TimeoutExpired:
            return f"no answer within {seconds:g} s"
        finally:
            for process in processes:
                with suppress(OSError):
                    process.kill()
                process.communicate()
    for process, words in zip(processes, said, strict=True):
        if process.returncode:
            return (words.decode(errors="replace").strip().splitlines() or [f"ended with {process.returncode}"])[-1]
    return ""


def take_part(store: str, seconds: float, rank: int) -> None:
    import torch
    from torch import distributed

    timeout = timedelta(seconds=seconds)
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2, timeout=timeout)
    number = torch.tensor([rank + 1.0])
    distributed.all_reduce(number)
    assert number.item() == 3, f"1 + 2 came to {number.item()}"
    distributed.barrier()
    os._exit(0)  # gloo's threads may abort a process that ends in any other way


if __name__ == "__main__":
    take_part(sys.argv[1], float(sys.argv[2]), int(sys.argv[3]))
