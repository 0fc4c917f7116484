"""Somebody else's script, whole: one epoch and its test images, in a process of its own.

    python benchmarks/their_script.py stock FOLDER SEED DEVICE THREADS RECIPE WORKERS
    python benchmarks/their_script.py published FOLDER SEED DEVICE THREADS

FOLDER holds MNIST/raw unpacked for the stock script, and what ``published_fast.store`` wrote for the other. It imports
no more than a script of theirs would; only the stock script's settings, a recipe, are 0.1 s of its whole time. On a GPU
three steps with another network go before the training's clock, as on our side, within the whole time.
Prints one JSON line: train_seconds and accuracy.
"""

import json
import sys
import time

import torch

WARM_UP_STEPS = 3


def main() -> None:
    which, folder, seed, device_name, threads, *more = sys.argv[1:]
    torch.set_num_threads(int(threads))
    measure = {"stock": stock, "published": published}[which]
    train_seconds, accuracy = measure(folder, int(seed), torch.device(device_name), *more)
    print(json.dumps({"train_seconds": train_seconds, "accuracy": accuracy}))


def stock(folder: str, seed: int, device: torch.device, recipe_name: str, workers: str) -> tuple[float, float]:
    from mnist_accel.data.torchvision_import import import_torchvision

    import_torchvision()  # also where it was built for another torch
    import recipes
    from benchmarks import stock as script

    recipe = recipes.load(recipe_name)
    if device.type == "cuda":
        blank = torch.zeros(recipe.batch_size, 1, 28, 28), torch.zeros(recipe.batch_size, dtype=torch.int64)
        loss = script.make_loss(recipe.loss, recipe.positive_class)
        model, optimizer = script.build(recipe, device)
        script.train_epoch(model, [blank] * WARM_UP_STEPS, optimizer, loss, device)
    torch.manual_seed(seed)
    seconds, _, accuracy = script.one_epoch(recipe, folder, int(workers), device)
    return seconds, accuracy


def published(folder: str, seed: int, device: torch.device) -> tuple[float, float]:
    from benchmarks import published_fast as fast

    images = fast.load(folder, device)
    train_images, train_labels = images["train_images"], images["train_labels"]
    if device.type == "cuda":
        few = WARM_UP_STEPS * fast.BATCH_SIZE
        fast.train(fast.network().to(device), train_images[:few], train_labels[:few])
    torch.manual_seed(seed)
    model = fast.network().to(device)
    started = clock(device)
    fast.train(model, train_images, train_labels)
    seconds = clock(device) - started
    return seconds, fast.evaluate(model, images["test_images"], images["test_labels"])


def clock(device: torch.device) -> float:
    """As ``synchronised_clock``, whose module imports Accelerate."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


if __name__ == "__main__":
    main()
