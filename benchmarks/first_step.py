"""Runs ``launch.py`` as ``python launch.py`` would, and ends right after its first optimizer step.

    python benchmarks/first_step.py recipe=onepoch out=FOLDER key=value…

Nothing of the program is left out: the clock is whoever starts this, and stops when this process is gone.
"""

import os
import runpy
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def end_now(shown: object, info: Any) -> None:
    import torch

    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    os._exit(0)


def main() -> None:
    sys.path[0] = str(ROOT)
    sys.argv[0] = str(ROOT / "launch.py")
    from mnist_accel.console import report

    report.RunReport.on_step = end_now  # type: ignore[method-assign]
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
