"""``launch.py`` that stops at a place of its code until a test lets it go on, or kills it there."""

import json
import os
import sys
import time
from collections.abc import Callable
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

TOLD = json.loads(os.environ["HELD"])  # where to stop, by how many passes, what tells that it does, what lets it go on


def hold() -> None:
    if TOLD["passes"]:
        TOLD["passes"] -= 1
        return
    rank = os.environ.get("RANK", "0")
    Path(f"{TOLD['there']}-{rank}").touch()
    while not os.path.exists(TOLD["go"]):
        time.sleep(0.01)


class HeldImport(MetaPathFinder):
    def find_spec(self, name: str, path: object, target: object = None) -> None:
        if name == "torch":
            hold()


def held(function: Callable[..., Any]) -> Callable[..., Any]:
    def after_holding(*arguments: Any) -> Any:
        hold()
        return function(*arguments)

    return after_holding


def hold_there() -> None:
    """At importing torch, at loading the data, or in syncing a file or folder whose path contains these words."""
    if TOLD["where"] == "import":
        sys.meta_path.insert(0, HeldImport())
        return
    if TOLD["where"] == "data":
        from mnist_accel.runs import run

        run.load_dataset = held(run.load_dataset)
        return
    fsync = os.fsync

    def held_fsync(descriptor: int) -> None:
        if TOLD["where"] in os.readlink(f"/proc/self/fd/{descriptor}"):
            hold()
        fsync(descriptor)

    os.fsync = held_fsync


if __name__ == "__main__":
    import launch
    from mnist_accel import errors

    hold_there()
    launch.__file__ = __file__  # processes=N starts this script again
    errors.exit_with_one_line(launch.main)
