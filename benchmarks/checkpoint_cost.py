"""What the checkpoint at each epoch's end costs: an epoch's wall time less its training and its evaluation.

python -m benchmarks.checkpoint_cost RECIPE EPOCHS     (efficient25k 4 where they are left out)
"""

import sys
import time
from statistics import median
from tempfile import TemporaryDirectory

import recipes
from mnist_accel import cli, errors
from mnist_accel.runs import run
from mnist_accel.runs.watcher import Watcher
from mnist_accel.training.state import EpochStats


def main() -> int:
    name, epochs = sys.argv[1:] if len(sys.argv) == 3 else ("efficient25k", "4")
    ends: list[float] = []
    shares: list[float] = []

    def on_epoch(stats: EpochStats) -> None:
        ends.append(time.perf_counter())
        if len(ends) > 1:  # the first began with a start
            rest = ends[-1] - ends[-2] - stats.train_seconds - stats.eval_seconds
            shares.append(rest / stats.train_seconds)
            print(f"epoch of {stats.train_seconds:.2f} s, checkpoint and log {1000 * rest:.1f} ms")

    with TemporaryDirectory() as folder:
        words = [f"recipe={name}", f"epochs={epochs}", f"out={folder}/run", "threads=1"]
        run.run(cli.parse(words, recipes.names(), recipes.load), Watcher(on_epoch=on_epoch), time.perf_counter())
    print(f"median {100 * median(shares):.2f} % of an epoch")
    return 0


if __name__ == "__main__":
    errors.exit_with_one_line(main)
