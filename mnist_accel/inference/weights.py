"""A run's network, ready to use."""

import os
from pathlib import Path

import torch
from torch import Tensor, nn

from mnist_accel import models
from mnist_accel.cli import expand_path
from mnist_accel.data.batches import background_of, normalise
from mnist_accel.errors import UserError
from mnist_accel.models import build_model, parameters_of
from mnist_accel.models.layers import logits_over_shifts
from mnist_accel.runs.folder import unfinished_run
from mnist_accel.runs.weights_file import WeightsMeta, read_weights

WEIGHTS = "model.safetensors"
SIDE = 28


class ReadyNetwork(nn.Module):
    """Raw images in, logits out: ``uint8`` ``[n, 28, 28]``, ``[n, 1, 28, 28]`` or one ``[28, 28]`` → ``[n, 10]``,
    or ``[n, 1]`` where the network knows one digit only (``meta.positive_class``).

    ``network`` is the plain one, which scores a normalised image once; here it is scored as its run scored it."""

    def __init__(self, network: nn.Module, meta: WeightsMeta):
        super().__init__()
        self.network = network
        self.meta = meta

    def forward(self, images: Tensor) -> Tensor:
        if images.dtype != torch.uint8:
            raise TypeError(f"images are {images.dtype}, not uint8 as MNIST has them, 0 to 255")
        if images.shape[-2:] != (SIDE, SIDE) or images.dim() > 4 or (images.dim() == 4 and images.shape[1] != 1):
            raise ValueError(f"images are {list(images.shape)}, not [n, {SIDE}, {SIDE}]")
        mean, std = self.meta.mean, self.meta.std
        images = normalise(images.reshape(-1, SIDE, SIDE), mean, std)
        return logits_over_shifts(self.network, images, self.meta.test_shifts, background_of(mean, std))


def load(run: str | os.PathLike[str]) -> ReadyNetwork:
    """The network of a run's folder, or of its ``model.safetensors``, as it was evaluated.

    UserError, one line, where there is none, or none that fits a network in ``mnist_accel/models/``.
    """
    path = find_weights(os.fspath(run))
    meta, tensors = read_weights(path)
    network = build(meta, path)
    expected = {name: (tensor.shape, tensor.dtype) for name, tensor in network.state_dict().items()}
    if {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()} != expected:
        raise UserError(f"{path}: does not fit the network {meta.network} as it is now. Train that run again")
    network.load_state_dict(tensors)
    # As it was trained and evaluated: in another order of memory sums come out a little different.
    network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return ReadyNetwork(network, meta).eval().requires_grad_(False)


def find_weights(run: str) -> Path:
    path = expand_path(run, run)
    if not path.is_dir():
        return path
    if not (path / WEIGHTS).exists():
        over = "; the run is not over. Type resume=auto to end it" if unfinished_run(path) else ". Name a finished run"
        raise UserError(f"{run}: no {WEIGHTS} there{over}")
    return path / WEIGHTS


def build(meta: WeightsMeta, path: Path) -> nn.Module:
    # Only names from the listing reach the import, so that a file cannot name code elsewhere.
    if meta.network not in models.names():
        raise UserError(
            f"{path}: its network {meta.network!r} is not in mnist_accel/models/. Put that file back, or train again"
        )
    parameters_of(meta.network, meta.dropout, meta.recipe)  # a file that fails costs one line
    with torch.random.fork_rng(devices=[]):  # the weights that are drawn here are replaced
        return build_model(meta.network, meta.dropout)
