"""The stock training script: torchvision's data set, per-image transforms, a DataLoader and a plain loop.

    python benchmarks/stock.py onepoch DATA_FOLDER [WORKERS]

trains one epoch of a recipe's network with its optimizer, batch size and augmentation, at a constant learning
rate, and prints the seconds. DATA_FOLDER holds MNIST/raw with the files unpacked. Where torchvision was built
for another torch this script fails; ``python -m mnist_accel bench`` times the same functions and does not.
"""

import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

if TYPE_CHECKING:
    from mnist_accel.recipe import Recipe

Loss = Callable[[Tensor, Tensor], Tensor]


def make_loader(
    folder: str | Path,
    batch_size: int,
    num_workers: int = 0,
    *,
    train: bool = True,
    mean: float = 0.1307,
    std: float = 0.3081,
    rotation: float = 0.0,
    translation: float = 0.0,
    scale: float = 0.0,
    shear: float = 0.0,
) -> DataLoader[tuple[Tensor, Tensor]]:
    steps: list[object] = []
    if rotation:
        steps.append(transforms.RandomRotation(rotation))
    if translation or scale or shear:
        steps.append(
            transforms.RandomAffine(
                0,
                translate=(translation, translation) if translation else None,
                scale=(1 - scale, 1 + scale) if scale else None,
                shear=shear or None,
            )
        )
    steps += [transforms.ToTensor(), transforms.Normalize((mean,), (std,))]
    data_set = datasets.MNIST(folder, train=train, transform=transforms.Compose(steps))
    return DataLoader(data_set, batch_size=batch_size, shuffle=train, num_workers=num_workers)


def make_loss(loss: str, positive_class: int) -> Loss:
    if loss == "binary":
        return lambda output, target: F.binary_cross_entropy_with_logits(
            output.squeeze(1), (target == positive_class).float()
        )
    return nn.CrossEntropyLoss()


def make_optimizer(
    name: str,
    parameters: Iterable[nn.Parameter],
    *,
    lr: float,
    momentum: float,
    nesterov: bool,
    weight_decay: float,
    betas: tuple[float, float],
) -> torch.optim.Optimizer:
    if name == "sgd":
        return torch.optim.SGD(
            parameters,
            lr=lr,
            momentum=momentum,
            nesterov=nesterov,
            weight_decay=weight_decay,
        )
    optimizers = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    return optimizers[name](parameters, lr=lr, betas=betas, weight_decay=weight_decay)


def train_epoch(
    model: nn.Module,
    loader: Iterable[tuple[Tensor, Tensor]],
    optimizer: torch.optim.Optimizer,
    loss_function: Loss,
    device: torch.device,
) -> float:
    """One pass over the loader; the mean loss of its batches."""
    model.train()
    running_loss = 0.0
    num_batches = 0
    for data, target in loader:
        data, target = data.to(device), target.to(device)
        optimizer.zero_grad()
        output = model(data)
        loss = loss_function(output, target)
        loss.backward()
        optimizer.step()
        running_loss += loss.item()
        num_batches += 1
    return running_loss / num_batches


@torch.no_grad()
def evaluate(
    model: nn.Module,
    loader: Iterable[tuple[Tensor, Tensor]],
    device: torch.device,
    positive_class: int | None = None,
) -> float:
    """Percent of the loader's images that are told rightly, by their class or as the positive one against the rest."""
    model.eval()
    correct = 0
    total = 0
    for data, target in loader:
        data, target = data.to(device), target.to(device)
        output = model(data)
        if positive_class is None:
            correct += (output.argmax(1) == target).sum().item()
        else:
            correct += ((output.squeeze(1) > 0) == (target == positive_class)).sum().item()
        total += len(target)
    return 100 * correct / total


def one_epoch(recipe: "Recipe", folder: str | Path, workers: int, device: torch.device) -> tuple[float, float, float]:
    """Training seconds, mean loss and accuracy after it, of a recipe's network as the script would train it."""
    loader = make_loader(
        folder,
        recipe.batch_size,
        workers,
        mean=recipe.mean,
        std=recipe.std,
        rotation=recipe.rotation,
        translation=recipe.translation,
        scale=recipe.scale,
        shear=recipe.shear,
    )
    model, optimizer = build(recipe, device)
    started = time.perf_counter()
    loss = train_epoch(model, loader, optimizer, make_loss(recipe.loss, recipe.positive_class), device)
    seconds = time.perf_counter() - started
    test_loader = make_loader(folder, 1000, train=False, mean=recipe.mean, std=recipe.std)
    accuracy = evaluate(model, test_loader, device, recipe.positive_class if recipe.loss == "binary" else None)
    return seconds, loss, accuracy


def build(recipe: "Recipe", device: torch.device) -> tuple[nn.Module, torch.optim.Optimizer]:
    from benchmarks.stock_networks import stock_network

    model = stock_network(recipe.model, recipe.dropout).to(device)
    optimizer = make_optimizer(
        recipe.optimizer,
        model.parameters(),
        lr=recipe.lr,
        momentum=recipe.momentum,
        nesterov=recipe.nesterov,
        weight_decay=recipe.weight_decay,
        betas=(recipe.beta1, recipe.beta2),
    )
    return model, optimizer


def main() -> None:
    import recipes

    if len(sys.argv) not in (3, 4) or sys.argv[1] not in recipes.names():
        sys.exit(f"usage: python benchmarks/stock.py {'|'.join(recipes.names())} DATA_FOLDER [WORKERS]")
    workers = int(sys.argv[3]) if len(sys.argv) == 4 else 0
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    seconds, loss, accuracy = one_epoch(recipes.load(sys.argv[1]), sys.argv[2], workers, device)
    print(f"{seconds:.2f} s, mean loss {loss:.4f}, accuracy {accuracy:.2f} %")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # where recipes and benchmarks are
    main()
