"""Writes ``RUN/export/``: the network as ONNX, its weights, and a model card. Whole, checked, or not at all."""

import logging
import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mnist_accel.data.synthetic import draw_dataset
from mnist_accel.errors import UserError
from mnist_accel.files import is_installed, read_regular, refuse_unwritable, write_whole
from mnist_accel.inference.card import model_card
from mnist_accel.inference.weights import SIDE, WEIGHTS, ReadyNetwork, find_weights, load
from mnist_accel.runs.folder import EXPORT
from mnist_accel.runs.record import read_recipe, read_result
from mnist_accel.runs.weights_file import MAX_BYTES

NEEDED = ("onnx", "onnxscript", "onnxruntime")
BATCHES = (1, 2, 7, 500)  # sizes that the written network is checked with
MOST = 1e-4  # that an output may differ, of the largest one

Run = Callable[[Tensor], Tensor]


def export(run: str) -> tuple[Path, float]:
    """The new folder, and by how much an output of the ONNX network differed at most."""
    for package in NEEDED:
        if not is_installed(package):
            raise UserError(f"export: {package} is not installed. Type pip install -e '.[export]'")
    folder = find_weights(run).parent
    target = folder / EXPORT
    if os.path.lexists(target):
        raise UserError(f"{target}: is there already. Move it away to export again")
    network = load(run)
    result, recipe = read_result(folder, run), read_recipe(folder, run)
    if (result.model, recipe.model, result.recipe) != (network.meta.network, network.meta.network, recipe.name):
        raise UserError(f"{run}: its files are of different runs. Train that run again")
    try:
        refuse_unwritable(target)
        onnx = as_onnx(network)
        difference = largest_difference(network, running(onnx))
        card = model_card(result, recipe, network.meta, MOST)
        weights = read_regular(find_weights(run), MAX_BYTES)
        write_folder(target, {"model.onnx": onnx, WEIGHTS: weights, "README.md": card.encode()})
    except OSError as error:
        raise UserError(f"{target}: cannot be written ({error.strerror}). Copy the run elsewhere") from None
    return target, difference


def as_onnx(network: ReadyNetwork) -> bytes:
    """``images`` uint8 [n, 28, 28] → ``logits``, for any n."""
    example = torch.zeros(2, SIDE, SIDE, dtype=torch.uint8)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                network,
                (example,),
                dynamo=True,
                dynamic_shapes={"images": {0: torch.export.Dim("n")}},
                input_names=["images"],
                output_names=["logits"],
                verbose=False,
            )
        assert program is not None
        return without_traces(program.model_proto).SerializeToString()
    except Exception as error:  # a network of the user's may hold anything
        why = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"export: the network {network.meta.network} cannot be written as ONNX: {why}") from None


def without_traces(model: Any) -> Any:
    """Each operation notes the lines of code that it is from, with the paths of this machine: not for others' eyes."""
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""
    return model


def running(onnx: bytes) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


def largest_difference(network: ReadyNetwork, other: Run) -> float:
    """Over digits, and a black and a white square; UserError where it is more than rounding explains."""
    drawn = draw_dataset(seed=1, train_count=1, test_count=max(BATCHES) - 2)["test_images"]
    black_and_white = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1).expand(2, SIDE, SIDE)
    images = torch.cat([black_and_white, drawn])
    most = 0.0
    for size in BATCHES:
        expected, found = network(images[:size]), other(images[:size])
        difference = float((found - expected).abs().max()) if found.shape == expected.shape else float("inf")
        if not difference <= MOST * max(1.0, float(expected.abs().max())):
            raise UserError(
                f"export: as ONNX the network {network.meta.network} gives other outputs (by {difference:.2g} in a "
                f"batch of {size}); nothing was written. Its layers need another form in mnist_accel/models/"
            )
        most = max(most, difference)
    return most


def write_folder(target: Path, files: dict[str, bytes]) -> None:
    aside = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        aside.mkdir()
        for name, content in files.items():
            write_whole(aside / name, content)
        aside.rename(target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
