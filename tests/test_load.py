"""``mnist_accel.load``: the network as it was evaluated, from its file alone; and what is no such file."""

import os
import pickle
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import plain
import pytest
import torch
from conftest import RunHere
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor

import mnist_accel
import recipes
from mnist_accel import models
from mnist_accel.data.dataset import Dataset
from mnist_accel.errors import UserError
from mnist_accel.models import build_model
from mnist_accel.runs.weights_file import WeightsMeta, pack

META = WeightsMeta(network="is3", dropout=0.2, mean=0.25, std=0.5, recipe="mine", positive_class=7)


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return build_model("is3", 0.2).state_dict()


@pytest.mark.parametrize(
    "words",
    [
        "recipe=onepoch ema=0.5 mean=0.3 std=0.2",
        "recipe=is3 positive_class=7 epochs=3",
        "recipe=onepoch test_shifts=2 ema=0.5",
        "recipe=is3 positive_class=7 epochs=3 test_shifts=1",
    ],
)
def test_a_run_gives_the_network_that_was_evaluated(words: str, run_here: RunHere, tiny: Dataset) -> None:
    ran = run_here(*words.split(), "lr=0.02")
    before = torch.get_rng_state()
    network = mnist_accel.load(ran.folder)
    assert torch.equal(torch.get_rng_state(), before) and not network.training
    logits = network(tiny.test_images)
    binary = network.meta.positive_class is not None
    said = (logits[:, 0] > 0) == (tiny.test_labels == 7) if binary else logits.argmax(1) == tiny.test_labels
    assert logits.shape == (200, 1 if binary else 10) and not logits.requires_grad
    assert 0 < ran.result.correct == int(said.sum()) < 200
    assert torch.equal(logits, load_file(ran.folder / "evaluation.safetensors")["logits"])
    by_file = mnist_accel.load(str(ran.folder / "model.safetensors"))
    assert torch.equal(by_file(tiny.test_images[:, None]), logits)
    assert torch.allclose(network(tiny.test_images[3]), logits[3:4], atol=1e-4)


def test_the_file_says_what_it_is_of_and_equal_weights_are_equal_files(
    state: dict[str, Tensor], tmp_path: Path
) -> None:
    content = pack(state, META)
    assert all(pack(state, META) == content for _ in range(5))  # safetensors shuffles what stands in its header
    (tmp_path / "model.safetensors").write_bytes(content)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        said = {"network": "is3", "dropout": "0.2", "mean": "0.25", "std": "0.5", "recipe": "mine", "format": "pt"}
        assert file.metadata() == said | {"positive_class": "7"}  # scored once, it is the file it was before shifts
        assert set(file.keys()) == set(state) and torch.equal(file.get_tensor("fc2.bias"), state["fc2.bias"])


def test_the_file_says_by_how_much_images_are_shifted(state: dict[str, Tensor], tmp_path: Path, tiny: Dataset) -> None:
    (tmp_path / "model.safetensors").write_bytes(pack(state, replace(META, test_shifts=3)))
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert file.metadata()["test_shifts"] == "3"
    network = mnist_accel.load(tmp_path)
    recipe = replace(recipes.load("is3"), mean=META.mean, std=META.std, test_shifts=3)
    torch.testing.assert_close(
        network(tiny.test_images), plain.scored(recipe, network.network, tiny.test_images), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (torch.zeros(2, 28, 28), "images are torch.float32, not uint8"),
        (torch.zeros(2, 3, 28, 28, dtype=torch.uint8), r"images are \[2, 3, 28, 28\]"),
        (torch.zeros(4, 14, 56, dtype=torch.uint8), r"images are \[4, 14, 56\]"),
    ],
)
def test_images_that_are_none_of_mnist_s_are_refused(
    images: Tensor, said: str, state: dict[str, Tensor], tmp_path: Path
) -> None:
    (tmp_path / "model.safetensors").write_bytes(pack(state, META))
    with pytest.raises((TypeError, ValueError), match=said):
        mnist_accel.load(tmp_path)(images)


def test_a_network_of_the_user_s_own_is_found_by_its_file(
    run_here: RunHere, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n\ndef mine(dropout):\n    return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))\n"
    )
    monkeypatch.setattr(models, "__path__", [*models.__path__, str(tmp_path)])
    monkeypatch.setattr(models, "FOLDER", tmp_path)
    state = {"1.weight": torch.zeros(10, 784), "1.bias": torch.arange(10.0)}
    meta = WeightsMeta(network="mine", dropout=0.0, mean=0.0, std=1.0, recipe="mine")
    (tmp_path / "model.safetensors").write_bytes(pack(state, meta))
    assert mnist_accel.load(tmp_path)(torch.zeros(28, 28, dtype=torch.uint8)).argmax() == 9
    (tmp_path / "mine.py").write_text("def mine(dropout) return")
    monkeypatch.delitem(sys.modules, "mnist_accel.models.mine")
    assert "mine.py" in refusal(tmp_path) and "SyntaxError" in refusal(tmp_path)


class Bomb:
    def __reduce__(self) -> Any:
        return os.mkdir, ("exploded",)


def with_meta(state: dict[str, Tensor], **changes: str) -> bytes:
    texts = {"network": "is3", "dropout": "0.2", "mean": "0.1", "std": "0.3", "recipe": "is3", "format": "pt"}
    return save(state, metadata=texts | changes)


WRONG: dict[str, tuple[Callable[[dict[str, Tensor]], bytes], str]] = {
    "an earlier version's": (save, "does not say which network it is of"),
    "empty": (lambda state: b"", "no sound safetensors file"),
    "a pickle": (lambda state: pickle.dumps(Bomb()), "no sound safetensors file"),
    "cut off": (lambda state: pack(state, META)[:-1], "no sound safetensors file"),
    "its header cut off": (lambda state: pack(state, META)[:100], "its header is cut off"),
    "a header without end": (lambda state: b"\xff" * 8 + b"{}", "its header is cut off"),
    "a header that is a list": (lambda state: (2).to_bytes(8, "little") + b"[]", "its header is no table"),
    "nested without end": (
        lambda state: (99_999).to_bytes(8, "little") + b"[" * 99_999,
        "no sound safetensors file",
    ),
    "of code elsewhere": (lambda state: with_meta(state, network="layers"), "'layers' is not in mnist_accel/models/"),
    "of a path": (lambda state: with_meta(state, network="../../tmp/x"), "is not in mnist_accel/models/"),
    "no number": (lambda state: with_meta(state, mean="nan"), "mean in its header"),
    "divided by nothing": (lambda state: with_meta(state, std="0"), "std in its header"),
    "shifted out of sight": (lambda state: with_meta(state, test_shifts="9"), "test_shifts in its header"),
    "shifted by no number": (lambda state: with_meta(state, test_shifts="all"), "test_shifts in its header"),
    "markup for a name": (lambda state: with_meta(state, recipe="<b>"), "recipe in its header"),
    "of another network": (lambda state: with_meta(state, network="onepoch"), "does not fit the network onepoch"),
    "another type": (
        lambda state: with_meta({name: tensor.double() for name, tensor in state.items()}),
        "does not fit the network is3",
    ),
    "one too few": (lambda state: with_meta(dict(list(state.items())[1:])), "does not fit the network is3"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_file_that_is_none_of_ours_costs_one_line(
    kind: str, state: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    content, said = WRONG[kind]
    (tmp_path / "model.safetensors").write_bytes(content(state))
    assert said in refusal(tmp_path)
    assert not Path("exploded").exists()


def refusal(run: Path) -> str:
    with pytest.raises(UserError) as refused:
        mnist_accel.load(run)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_a_place_without_weights_is_named_with_what_to_do(tmp_path: Path) -> None:
    assert refusal(tmp_path / "nowhere").endswith(
        "No such file or directory. Name a run's folder, or its model.safetensors"
    )
    assert refusal(tmp_path).endswith("no model.safetensors there. Name a finished run")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "step-000000001.safetensors").touch()
    assert refusal(tmp_path).endswith("the run is not over. Type resume=auto to end it")
    os.mkfifo(tmp_path / "model.safetensors")  # which would be waited for without end
    assert "is no plain file" in refusal(tmp_path)
