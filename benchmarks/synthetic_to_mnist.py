"""How much of MNIST the drawn digits teach: trains a recipe on them and scores it on MNIST's test images as well.

python -m benchmarks.synthetic_to_mnist RECIPE SEEDS     (onepoch 3 where they are left out)
"""

import sys
from dataclasses import replace
from statistics import mean
from tempfile import TemporaryDirectory

from safetensors.torch import load_file

import recipes
from mnist_accel import cli, errors
from mnist_accel.data.batches import ImageStore, TestBatches
from mnist_accel.data.dataset import load_dataset
from mnist_accel.machine.runtime import start_runtime
from mnist_accel.runs import run, trainer
from mnist_accel.runs.watcher import Watcher
from mnist_accel.training.loop import evaluate
from mnist_accel.training.objective import build_objective


def main() -> int:
    name, seeds = sys.argv[1:] if len(sys.argv) == 3 else ("onepoch", "3")
    mnist = load_dataset("mnist")
    own, foreign = [], []
    for seed in range(int(seeds)):
        with TemporaryDirectory() as folder:
            words = [f"recipe={name}", f"seed={seed}", "dataset=synthetic", f"out={folder}"]
            request = cli.parse(words, recipes.names(), recipes.load)
            result, _ = run.run(request, Watcher(), started=0.0)
            weights = load_file(f"{folder}/model.safetensors")
        recipe = request.recipe
        assert result.accuracy is not None
        runtime = start_runtime()
        model = trainer.new_model(replace(recipe, seed=seed), runtime)
        model.load_state_dict(weights)
        store = ImageStore(mnist.test_images, mnist.test_labels, runtime.device)
        objective = build_objective(recipe.loss, recipe.label_smoothing, recipe.positive_class)
        batches = TestBatches(store, mean=recipe.mean, std=recipe.std)
        score = evaluate(model, batches, objective, runtime.accelerator, test_shifts=recipe.test_shifts)
        own.append(result.accuracy)
        foreign.append(score.accuracy)
        print(f"seed {seed}: own test set {own[-1]:.2f} %, MNIST {foreign[-1]:.2f} %")
    print(f"mean of {seeds} seeds: own test set {mean(own):.2f} %, MNIST {mean(foreign):.2f} %")
    return 0


if __name__ == "__main__":
    errors.exit_with_one_line(main)
