"""``python -m mnist_accel export``: an ONNX file that gives the same outputs, and a card of this run's own figures."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from importlib import util
from pathlib import Path
from typing import Any

import plain
import pytest
import torch
import yaml
from conftest import RunHere
from jobs import Run
from test_report import a_result

import mnist_accel
import recipes
from mnist_accel.commands import export as verb
from mnist_accel.data.dataset import Dataset
from mnist_accel.errors import UserError
from mnist_accel.inference import export as exporting
from mnist_accel.inference.card import model_card
from mnist_accel.inference.export import NEEDED, running
from mnist_accel.models import build_model
from mnist_accel.recipe import Claim
from mnist_accel.runs.result import RunResult, compared
from mnist_accel.runs.weights_file import WeightsMeta, pack

MISSING = [package for package in NEEDED if util.find_spec(package) is None]
needs_onnx = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")


@pytest.fixture
def copied(trained_run: Run, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained_run.folder, tmp_path / "run"))


@needs_onnx
def test_an_exported_network_gives_the_original_s_outputs_and_its_card_s_lines_run(
    copied: Path, tiny: Dataset, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verb.main([str(copied)]) == 0
    folder = copied / "export"
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "model.onnx", "model.safetensors"]
    assert not list(copied.glob(".export*")) and str(folder / "model.onnx") in capsys.readouterr().out
    network, onnx = mnist_accel.load(copied), (folder / "model.onnx").read_bytes()
    outputs = running(onnx)
    for size in (1, 3, 200):
        assert torch.allclose(outputs(tiny.test_images[:size]), network(tiny.test_images[:size]), atol=1e-4)
    card = (folder / "README.md").read_text()
    for here in (str(root), str(copied.parent), str(Path.home())):  # whose machine it was is nobody's business
        assert here.encode() not in onnx and here not in card
    monkeypatch.chdir(folder)
    blocks = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    for block in blocks:
        exec(block, {})
    assert len(blocks) == 2 and len(set(capsys.readouterr().out.replace(")", "").split())) > 0

    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(UserError, match=r"export: is there already\. Move it away to export again$"):
        verb.main([str(copied)])
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@needs_onnx
@pytest.mark.slow
@pytest.mark.parametrize("name", recipes.one_a_network())
def test_every_network_can_be_exported(name: str, tmp_path: Path, tiny: Dataset) -> None:
    recipe = recipes.load(name)
    path = tmp_path / "model.safetensors"
    path.write_bytes(pack(build_model(recipe.model, recipe.dropout).state_dict(), WeightsMeta.of(recipe)))
    network = mnist_accel.load(path)
    assert exporting.largest_difference(network, running(exporting.as_onnx(network))) < 1e-4


@needs_onnx
@pytest.mark.parametrize("name", ["onepoch", pytest.param("is3", marks=pytest.mark.slow)])
def test_an_exported_network_shifts_images_itself(name: str, run_here: RunHere, tiny: Dataset) -> None:
    ran = run_here(f"recipe={name}", "lr=0.02", "epochs=2", "test_shifts=2")
    assert verb.main([str(ran.folder)]) == 0
    network = mnist_accel.load(ran.folder).network
    outputs = running((ran.folder / "export" / "model.onnx").read_bytes())(tiny.test_images)
    torch.testing.assert_close(outputs, plain.scored(ran.start.recipe, network, tiny.test_images), rtol=0, atol=1e-5)
    card = (ran.folder / "export" / "README.md").read_text()
    assert f"({ran.result.correct} of 200 test images, scored with shifts of 2 pixels) |" in card
    assert "the image as it is, and shifted by 2 pixels up, down, left and right. Both files do that" in card


def test_other_outputs_leave_nothing_behind(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where only a few images, or only some sizes of a batch, come out otherwise."""
    monkeypatch.setattr(exporting, "NEEDED", ())
    monkeypatch.setattr(exporting, "as_onnx", lambda network: b"")
    network = mnist_accel.load(copied)
    left = sorted(copied.iterdir())

    def other(change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        monkeypatch.setattr(exporting, "running", lambda onnx: lambda images: change(network(images)))
        with pytest.raises(UserError, match="gives other outputs"):
            exporting.export(str(copied))
        assert sorted(copied.iterdir()) == left

    other(lambda logits: logits + 0.01)
    other(lambda logits: logits + (torch.arange(len(logits)) == 400)[:, None])
    other(lambda logits: logits + float(len(logits) == 7))
    other(lambda logits: logits[:1])
    other(lambda logits: logits * float("nan"))
    monkeypatch.setattr(exporting, "running", lambda onnx: network)
    monkeypatch.setattr(exporting, "model_card", lambda *facts: "a card")
    assert exporting.export(str(copied)) == (copied / "export", 0.0)


def test_a_package_that_is_missing_costs_one_line_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporting, "is_installed", lambda name: name != "onnxscript")
    monkeypatch.setattr(exporting, "NEEDED", ("torch", "onnxscript"))
    with pytest.raises(UserError, match=r"^export: onnxscript is not installed\. Type pip install -e '\.\[export\]'$"):
        verb.main(["run"])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda run: (run / "result.json").unlink(), "no result.json there. Name the folder of a run that has ended"),
        (lambda run: (run / "recipe.json").write_text("[]"), "recipe.json is not a run's: "),
        (lambda run: (run / "model.safetensors").unlink(), "no model.safetensors there"),
        (lambda run: (run / "export").symlink_to("nowhere"), "export: is there already"),
        (
            lambda run: (run / "recipe.json").write_text((run / "recipe.json").read_text().replace("onepoch", "is3")),
            "its files are of different runs",
        ),
    ],
)
def test_a_folder_that_is_no_whole_run_costs_one_line(
    change: Callable[[Path], Any], said: str, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "NEEDED", ())
    change(copied)
    with pytest.raises(UserError) as refused:
        verb.main([str(copied)])
    assert said in str(refused.value) and "\n" not in str(refused.value)


# The card

RECIPE = replace(
    recipes.load("onepoch"), claims=(Claim(metric="accuracy", relation=">=", value=97.77, note="documented"),)
)
DOCUMENTED = ("97.77", str(recipes.load("onepoch").measured.accuracy), "ocumented")


def a_card(comparable: bool = False, **changes: Any) -> tuple[str, Any]:
    """The text below the front matter, and what that says."""
    facts: dict[str, Any] = {"recipe": "onepoch", "model": "onepoch", "command": ["recipe=onepoch"]}
    result: RunResult = a_result(**(facts | changes))
    card = model_card(compared(result, RECIPE, comparable, "cpu"), RECIPE, WeightsMeta.of(RECIPE), 1e-4)
    _, front, text = card.split("---\n", 2)
    return text, yaml.safe_load(front)


def test_the_documented_run_s_card_says_what_is_documented() -> None:
    text, front = a_card(comparable=True)
    assert "| accuracy % (documented) | ≥ 97.77 | 98.13 | met |" in text
    assert "98.13 % (9,813 of 10,000 test images)" in text
    assert front["datasets"] == ["ylecun/mnist"] and front["license"] == "mit"
    (model,) = front["model-index"]
    (scored,) = model["results"]
    assert (model["name"], scored["dataset"]["name"], scored["dataset"]["split"]) == ("onepoch", "MNIST", "test")
    assert scored["metrics"] == [{"type": "accuracy", "value": 0.9813}]
    assert "shift" not in text


@pytest.mark.parametrize(
    "changes",
    [
        {"command": ["recipe=onepoch", "lr=0.03"]},
        {"dry_run": True},
        {"dataset": "synthetic"},
    ],
    ids=["changed", "dry", "synthetic"],
)
def test_any_other_run_s_card_says_its_own_figures_alone(changes: dict[str, Any]) -> None:
    text, front = a_card(**changes)
    assert not any(figure in text or figure in str(front) for figure in DOCUMENTED)
    assert "98.13 % (9,813 of 10,000 test images)" in text
    assert ("model-index" in front) == (not changes.get("dry_run"))
    assert ("MNIST" in str(front) or "mnist" in str(front["tags"])) == (changes.get("dataset") != "synthetic")
    assert ("command | `python launch.py recipe=onepoch lr=0.03`" in text) == ("command" in changes)
    for key, word in (("dry_run", " dry_run=true"), ("dataset", " dataset=synthetic")):
        assert (f"recipe=onepoch{word}`" in text) == (key in changes)  # the command that repeats it
    assert ("mean nothing" in text, "says nothing about MNIST" in text) == (
        "dry_run" in changes,
        "dataset" in changes,
    )


def test_a_card_tells_of_nobody_s_folders_and_takes_nobody_s_markup() -> None:
    hostile = "x`|\n---\nlicense: gpl\n<script>alert(1)</script>"
    text, front = a_card(
        device=hostile,
        precision=hostile,
        commit=hostile,
        versions={"torch": hostile},
        dataset_reason="found in /home/somebody",
        command=["recipe=onepoch", "data_dir=/home/somebody", "out=/home/somebody/x", "lr=0.03"],
    )
    assert "/home/somebody" not in text and "<script" not in text and "\nlicense: gpl" not in text
    assert front["license"] == "mit"
    rows = [line for line in text.splitlines() if "script" in line]
    assert len(rows) == 5 and all(row.count("|") == 3 and row.count("`") == 2 for row in rows)


def test_a_run_whose_recipe_was_changed_exports_a_card_without_claims(
    run_here: RunHere, tiny: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "NEEDED", ())
    monkeypatch.setattr(exporting, "as_onnx", lambda network: b"")
    monkeypatch.setattr(exporting, "running", lambda onnx: lambda images: network(images))
    cards = []
    for words in ([], ["lr=0.02"], ["validation=100"]):
        ran = run_here("recipe=onepoch", *words, data=replace(tiny, name="mnist"))
        network = mnist_accel.load(ran.folder)
        assert verb.main([str(ran.folder)]) == 0
        cards.append((ran.folder / "export" / "README.md").read_text())
        stored = json.loads((ran.folder / "result.json").read_text())
        assert f"{stored['accuracy']:.2f} % ({stored['correct']}" in cards[-1]
    assert ["98.13" in card for card in cards] == [True, False, False]
    assert "100 held-out training images" in cards[2] and "split: train" in cards[2]
