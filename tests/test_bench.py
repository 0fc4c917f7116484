"""The benchmarks: stock networks equal ours, every subject runs, a mistake costs a line. Nothing is timed."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import recipes
from benchmarks import compare, convolutions, sides
from benchmarks.stock_networks import STOCK_NETWORKS
from mnist_accel import __main__ as verbs
from mnist_accel import commands
from mnist_accel.commands import bench
from mnist_accel.data.dataset import Dataset
from mnist_accel.errors import UserError
from mnist_accel.models import MODELS, count_parameters
from mnist_accel.models.onepoch import SECOND_WIDTH
from mnist_accel.runtime import Runtime

PROJECT = Path(__file__).resolve().parents[1]
DOCUMENTED = {"efficient25k": 8_762, "sub20k": 19_712, "compact13k": 13_808, "is3": 144_833}


@pytest.fixture(scope="module")
def data() -> Dataset:
    generator = torch.Generator().manual_seed(0)

    def split(count: int) -> tuple[Tensor, Tensor]:
        images = torch.randint(0, 256, (count, 28, 28), generator=generator, dtype=torch.uint8)
        return images, torch.arange(count) % 10

    return Dataset("random", "for a test", "00", *split(300), *split(50))


def with_equal_weights(name: str) -> tuple[nn.Module, nn.Module]:
    """Ours and the documented order, with the same weights, and statistics that batch norm has to use.

    In double precision: in single, rounding turns a few ReLUs and maxima the other way.
    """
    torch.manual_seed(0)
    ours, stock = MODELS[name](0.0), STOCK_NETWORKS[name]()
    for module in stock.modules():
        if isinstance(module, nn.Dropout | nn.Dropout2d):
            module.p = 0.0
    with torch.no_grad():
        for buffer in ours.buffers():
            if buffer.is_floating_point():
                buffer.uniform_(0.5, 1.5)
        for mine, theirs in zip(tensors_of(ours), tensors_of(stock), strict=True):
            assert mine.shape == theirs.shape
            theirs.copy_(mine)
    return ours.double(), stock.double()


def tensors_of(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]


def test_there_is_a_stock_network_for_every_model() -> None:
    assert STOCK_NETWORKS.keys() == MODELS.keys()


@pytest.mark.parametrize("name", MODELS)
def test_stock_network_has_the_documented_number_of_parameters(name: str) -> None:
    first, second, linear = 5 * 9 + 5 + 10, SECOND_WIDTH * (5 * 9 + 1 + 2), SECOND_WIDTH * 25 * 10 + 10
    documented = DOCUMENTED | {"onepoch": first + second + linear}
    assert count_parameters(STOCK_NETWORKS[name]()) == documented[name]
    assert count_parameters(MODELS[name](0.1)) == documented[name]


@pytest.mark.parametrize("name", MODELS)
def test_our_order_of_layers_gives_the_documented_outputs_and_gradients(name: str) -> None:
    ours, stock = with_equal_weights(name)
    images = torch.randn(4, 1, 28, 28, dtype=torch.float64)
    torch.testing.assert_close(ours.eval()(images), stock.eval()(images))

    mine, theirs = ours.train()(images), stock.train()(images)
    torch.testing.assert_close(mine, theirs)
    pull = torch.randn_like(theirs)
    (mine * pull).sum().backward()
    (theirs * pull).sum().backward()
    for mine, theirs in zip(ours.parameters(), stock.parameters(), strict=True):
        # A bias before batch norm has no gradient but rounding.
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-7, atol=1e-10)
    for mine, theirs in zip(ours.buffers(), stock.buffers(), strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("name", recipes.names())
def test_engine_and_bare_loop_run_every_recipe(name: str, runtime: Runtime, data: Dataset) -> None:
    said: list[str] = []
    (comparison,) = compare.engine(recipes.load(name), runtime, data, pairs=1, steps=1, say=said.append)
    assert list(comparison.sides) == ["ours", "bare loop"] and len(comparison.ratios) == len(said) == 1
    ours, bare = comparison.sides.values()
    assert comparison.ratios == [a / b for a, b in zip(ours, bare, strict=True)]


def test_loader_compares_with_the_faster_dataloader(runtime: Runtime, data: Dataset) -> None:
    recipe = recipes.load("onepoch")
    plain, warped = compare.loader(recipe, runtime, data, pairs=1, images=128, say=lambda line: None)
    assert plain.target == 100 and warped.target == 20
    for comparison in (plain, warped):
        (ours,), (alone,), (helped,) = comparison.sides.values()
        assert comparison.ratios == [ours / max(alone, helped)]


def test_stock_data_is_ours_unpacked_and_normalised_alike(data: Dataset) -> None:
    from mnist_accel.data.batches import prepare

    recipe = recipes.load("onepoch")
    with sides.stock_folder(data) as folder:
        train_set = sides.stock_loader(folder, recipe, workers=0).dataset
        assert len(train_set) == len(data.train_labels)
        image, label = train_set[3]
    assert label == data.train_labels[3]
    torch.testing.assert_close(image, prepare(data.train_images[3:4], recipe.mean, recipe.std)[0])


def test_epoch_gives_the_stock_script_its_faster_number_of_workers(runtime: Runtime, data: Dataset) -> None:
    said: list[str] = []
    recipe = recipes.load("is3")
    (comparison,) = compare.epoch(recipe, runtime, data, pairs=1, steps=0, workers=None, say=said.append)
    assert "on trial" in said[0]
    (ours,), (stock,) = comparison.sides.values()
    assert comparison.ratios == [stock / ours]
    assert list(comparison.sides)[1] in ("stock script, 0 workers", "stock script, 2 workers")


def test_bench_prints_and_writes_its_figures(tmp_path: Path, clean_environment: dict[str, str]) -> None:
    figures = tmp_path / "bench.json"
    words = "subject=engine recipe=efficient25k dataset=synthetic steps=2 pairs=1 threads=1"
    done = run_in_project(clean_environment, "bench", *words.split(), f"json={figures}")
    assert done.returncode == 0, done.stderr
    content = json.loads(figures.read_text())
    (comparison,) = content["comparisons"]
    assert content["machine"]["threads"] == 1 and content["dataset"] == "synthetic"
    assert comparison["sides"].keys() == {"ours", "bare loop"}
    assert len(comparison["ratios"]) == 1
    for expected in ("first 2 of an epoch's 469 steps", "ours / bare loop", f"torch {torch.__version__}"):
        assert expected in done.stdout


def test_a_mistake_costs_one_line(clean_environment: dict[str, str]) -> None:
    done = run_in_project(clean_environment, "bench", "subject=loader", "imges=5")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: imges=5: no such key. Did you mean images=5?\n"


def run_in_project(environment: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mnist_accel", *words],
        cwd=PROJECT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("recipe=onepoch", "subject: not given. Type subject= with one of loader, epoch, engine"),
        ("subject=epok", "subject=epok: must be 'loader', 'epoch' or 'engine'"),
        ("subject=epoch recipe=onepok", "recipe=onepok: no such recipe. Did you mean recipe=onepoch?"),
        ("subject=epoch pairs=0", "pairs=0: must be at least 1. For example pairs=5"),
        ("subject=epoch images=5", "images=5: has no effect with subject=epoch"),
        ("subject=loader steps=5", "steps=5: has no effect with subject=loader"),
        ("subject=engine workers=2", "workers=2: has no effect with subject=engine"),
        ("subject=engine json=/no/such/folder/x.json", "json=/no/such/folder/x.json: cannot be written"),
    ],
)
def test_mistakes_are_told_before_anything_is_measured(words: str, said: str) -> None:
    with pytest.raises(UserError) as mistake:
        bench.main(words.split())
    assert str(mistake.value).startswith(said)


def test_verbs_are_found_by_listing_the_folder(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "bench" in commands.names()
    monkeypatch.setattr(sys, "argv", ["mnist_accel"])
    assert verbs.main() == 0
    shown = capsys.readouterr().out
    for name in commands.names():
        assert commands.summary(name) and f"{name} " in shown

    monkeypatch.setattr(sys, "argv", ["mnist_accel", "bnch"])
    with pytest.raises(UserError, match="bnch: no such verb"):
        verbs.main()


def test_outside_the_project_one_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def main(argv: list[str]) -> int:
        raise ModuleNotFoundError("No module named 'recipes'", name="recipes")

    monkeypatch.setattr(commands, "load", lambda name: main)
    monkeypatch.setattr(sys, "argv", ["mnist_accel", "bench"])
    with pytest.raises(UserError, match="Run it from the project's folder"):
        verbs.main()


# A convolution alone beside its row of the profile


def test_every_convolution_is_timed_alone_and_in_the_step(
    make_runtime: Callable[..., Runtime], data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = replace(recipes.load("onepoch"), batch_size=8)
    rows = convolutions.measure(recipe, make_runtime(), data, rounds=1, repeats=1)
    assert [row.name for row in rows] == ["0", "6"]
    assert all(row.in_step > 0 and row.alone > 0 and 0 < row.share < 100 for row in rows)
    assert list((tmp_path / "profiles").iterdir()) == []


def test_alone_a_convolution_is_given_what_it_has_in_a_step(runtime: Runtime, data: Dataset) -> None:
    calls = convolutions.calls_of(recipes.load("efficient25k"), runtime, data)
    first, second, _ = calls.values()
    assert not first.images.requires_grad and second.images.requires_grad
    assert second.images.is_contiguous(memory_format=torch.channels_last)
    assert second.gradient.shape == second.forward().shape == (128, 16, 14, 14)
    expected = torch.autograd.grad(second.forward(), [second.images, second.module.weight], second.gradient)
    torch.testing.assert_close(tuple(second.backward()[:2]), expected)
    assert first.backward()[0] is None
    assert "_forward_hooks" in vars(first.module) and not first.module._forward_hooks


def test_only_layers_that_matter_are_judged() -> None:
    judged = [convolutions.Agreement("x", share, in_step, 1.0).met for share, in_step in ((4, 9), (6, 1.2), (6, 1.3))]
    assert judged == [None, True, False]
