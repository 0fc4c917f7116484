"""One precision's part of an epoch, in a process of its own: Accelerate's precision is fixed once for a process.

python benchmarks/one_precision.py STEPS recipe=NAME precision=bf16 key=value…     (keys of launch.py; 0 steps: all)
"""

import json
import sys

import recipes
from benchmarks.sides import beginning, our_epoch, our_seconds
from mnist_accel import cli, errors
from mnist_accel.data.dataset import load_dataset
from mnist_accel.machine.runtime import start_runtime

WARM_UP_STEPS = 10


def main() -> int:
    steps, *words = sys.argv[1:]
    request = cli.parse(words, recipes.names(), recipes.load)
    recipe, options = request.recipe, request.options
    runtime = start_runtime(options.precision, options.device, options.threads)
    data = load_dataset(options.dataset, options.data_dir)
    our_seconds(recipe, runtime, beginning(recipe, data, WARM_UP_STEPS))
    stats = our_epoch(recipe, runtime, beginning(recipe, data, int(steps)))
    speed = stats.images / stats.train_seconds
    said = {"precision": runtime.precision, "images_per_second": speed, "loss": stats.train_loss}
    print(json.dumps(said))
    return 0


if __name__ == "__main__":
    errors.exit_with_one_line(main)
