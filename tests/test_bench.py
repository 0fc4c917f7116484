"""The benchmarks: stock networks equal ours, every subject runs, a mistake costs a line. Nothing is timed."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from conftest import LAUNCHER_VARIABLES
from torch import Tensor, nn

import recipes
from benchmarks import batched, compare, convolutions, fresh, published_fast, sides, time_to_99
from benchmarks.children import run_python
from benchmarks.stock_networks import STOCK_NETWORKS
from benchmarks.turns import Comparison, Ratio
from mnist_accel import __main__ as verbs
from mnist_accel import commands
from mnist_accel.commands import bench
from mnist_accel.data.augment import draw_warps
from mnist_accel.data.batches import normalise
from mnist_accel.data.dataset import Dataset
from mnist_accel.errors import UserError
from mnist_accel.machine.runtime import Runtime
from mnist_accel.models import build_model, count_parameters
from mnist_accel.models.onepoch import SECOND_WIDTH
from mnist_accel.recipe import Recipe

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
    ours, stock = build_model(name, 0.0), STOCK_NETWORKS[name]()
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


def test_there_is_a_stock_network_for_every_documented_one() -> None:
    assert set(STOCK_NETWORKS) == set(DOCUMENTED) | {"onepoch"}


@pytest.mark.parametrize("name", STOCK_NETWORKS)
def test_stock_network_has_the_documented_number_of_parameters(name: str) -> None:
    first, second, linear = 5 * 9 + 5 + 10, SECOND_WIDTH * (5 * 9 + 1 + 2), SECOND_WIDTH * 25 * 10 + 10
    documented = DOCUMENTED | {"onepoch": first + second + linear}
    assert count_parameters(STOCK_NETWORKS[name]()) == documented[name]
    assert count_parameters(build_model(name, 0.1)) == documented[name]


@pytest.mark.parametrize("name", STOCK_NETWORKS)
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


@pytest.mark.parametrize("name", recipes.one_a_network())
def test_engine_and_bare_loop_run_every_network(name: str, runtime: Runtime, data: Dataset) -> None:
    said: list[str] = []
    comparison = compare.engine(recipes.load(name), runtime, data, pairs=1, steps=1, say=said.append)
    (ratio,) = comparison.ratios
    assert list(comparison.sides) == ["ours", "bare loop"] and len(ratio.values) == len(said) == 1
    ours, bare = comparison.sides.values()
    assert ratio.values == [a / b for a, b in zip(ours, bare, strict=True)]


def test_loader_compares_with_the_fastest_dataloader_and_with_a_batched_one(runtime: Runtime, data: Dataset) -> None:
    recipe = recipes.load("onepoch")
    plain, warped = compare.loader(recipe, runtime, data, pairs=1, images=128, say=lambda line: None)
    for comparison, target in ((plain, 100), (warped, 20)):
        names = [f"DataLoader, {workers}" for workers in ("0 workers", "1 worker", "2 workers", "4 workers")]
        assert list(comparison.sides) == ["ours", *names, "batched __getitems__"]
        (ours,), *stock, (batch,) = comparison.sides.values()
        against_stock, against_batched = comparison.ratios
        assert against_stock.values == [ours / max(speed for (speed,) in stock)] and against_stock.target == target
        assert against_batched.values == [ours / batch] and against_batched.target is None


def test_the_batched_loader_gives_what_ours_gives(data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels = data.train_images[:10], data.train_labels[:10]
    matrices = draw_warps(10, 0, rotation=10.0, translation=0.1, scale=0.2, shear=5.0)
    monkeypatch.setattr(batched, "random_matrices", lambda count, *ranges: matrices)
    for rotation, warps in ((0.0, None), (10.0, matrices)):
        collate = batched.make_collate(0.1307, 0.3081, rotation, 0.0, 0.0, 0.0)
        theirs, their_labels = collate((images, labels))
        torch.testing.assert_close(theirs, normalise(images, 0.1307, 0.3081, warps), rtol=1e-4, atol=1e-4)
        assert torch.equal(their_labels, labels)


def test_the_batched_loader_draws_a_warp_for_each_image_within_its_ranges() -> None:
    matrices = batched.random_matrices(500, 10.0, 0.1, 0.0, 0.0)
    angles = torch.rad2deg(torch.atan2(matrices[:, 1, 0], matrices[:, 0, 0]))
    assert len(angles.unique()) > 450 and 9 < angles.abs().max() <= 10.001
    assert 0.18 < matrices[:, :, 2].abs().max() <= 0.2  # of an image that is 2 wide


def test_the_batched_loader_fetches_a_batch_at_once(data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    loader = batched.make_loader(data.train_images, data.train_labels, 64, mean=0.0, std=1.0)
    monkeypatch.delattr(batched.ResidentImages, "__getitem__")
    sizes = [len(labels) for _, labels in loader]
    assert sizes == [64] * 4 + [44]


def test_stock_data_is_ours_unpacked_and_normalised_alike(data: Dataset) -> None:
    recipe = recipes.load("onepoch")
    with sides.stock_folder(data) as folder:
        train_set = sides.stock_loader(folder, recipe, workers=0).dataset
        assert len(train_set) == len(data.train_labels)
        image, label = train_set[3]
    assert label == data.train_labels[3]
    torch.testing.assert_close(image, normalise(data.train_images[3:4], recipe.mean, recipe.std)[0])


def test_epoch_gives_the_stock_script_its_faster_number_of_workers(runtime: Runtime, data: Dataset) -> None:
    said: list[str] = []
    recipe = recipes.load("is3")
    comparison = compare.epoch(recipe, runtime, data, pairs=1, steps=0, workers=None, say=said.append)
    assert "on trial" in said[0]
    (ours,), (stock,) = comparison.sides.values()
    assert comparison.ratios[0].values == [stock / ours]
    assert list(comparison.sides)[1] in ("stock script, 0 workers", "stock script, 2 workers")


@pytest.mark.parametrize(("cores", "tried"), [(1, [0, 2]), (2, [0, 2]), (6, [0, 2, 4]), (16, [0, 2, 4, 8, 16])])
def test_the_stock_script_may_have_a_worker_a_core(
    cores: int, tried: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compare, "usable_cores", lambda: cores)
    assert compare.workers_on_trial(compare.EPOCH_WORKERS) == tried


@pytest.mark.parametrize("name", ["is3", "onepoch"])
def test_a_whole_epoch_has_an_accuracy_on_both_sides_and_a_part_of_one_has_none(
    name: str, runtime: Runtime, data: Dataset
) -> None:
    recipe = recipes.load(name)
    common = {"pairs": 2, "workers": 0, "say": lambda line: None}
    whole = compare.epoch(recipe, runtime, data, steps=0, **common)
    assert whole.qualities.keys() == whole.sides.keys()
    assert all(len(values) == 2 and 0 <= min(values) <= max(values) <= 100 for values in whole.qualities.values())
    assert compare.epoch(recipe, runtime, data, steps=2, **common).qualities == {}


def test_the_stock_script_counts_right_answers() -> None:
    stock = sides.import_stock()
    logits = torch.tensor([[2.0, 1.0], [0.0, 1.0], [3.0, 0.0], [0.0, 5.0]])
    batches = [(logits[:3], torch.tensor([0, 1, 1])), (logits[3:], torch.tensor([1]))]
    assert stock.evaluate(nn.Identity(), batches, torch.device("cpu")) == 75
    binary = [(torch.tensor([[1.0], [-1.0], [1.0], [-2.0]]), torch.tensor([3, 3, 5, 5]))]
    assert stock.evaluate(nn.Identity(), binary, torch.device("cpu"), positive_class=3) == 50


@pytest.mark.parametrize("at_most", [True, False])
def test_a_ratio_meets_its_target_by_its_median(at_most: bool) -> None:
    ratio = Ratio("a / b", [1.0, 2.0, 9.0], 2.5, at_most)
    assert ratio.median == 2.0 and ratio.met is at_most
    assert Ratio("a / b", [1.0]).met is None


# The fastest published network


def test_the_published_network_has_its_parameters_and_shapes() -> None:
    model = published_fast.network()
    shapes = [tuple(parameter.shape) for parameter in model.parameters() if parameter.ndim > 1]
    assert shapes == [(24, 1, 5, 5), (32, 24, 3, 3), (256, 800), (10, 256)]
    assert count_parameters(model) == 215_194
    images, layers = torch.randn(2, 1, 28, 28), []
    for layer in model:
        images = layer(images)
        layers.append((type(layer).__name__, *images.shape[1:]))
    assert layers == [
        *(("Conv2d", 24, 24, 24), ("MaxPool2d", 24, 12, 12), ("ReLU", 24, 12, 12)),
        *(("Conv2d", 32, 10, 10), ("MaxPool2d", 32, 5, 5), ("ReLU", 32, 5, 5), ("Flatten", 800)),
        *(("Linear", 256), ("ReLU", 256), ("Linear", 10), ("LogSoftmax", 10)),
    ]


def test_the_published_training_takes_stored_batches_in_order_at_one_cycle_s_rates() -> None:
    class Seen(nn.Linear):
        batches: ClassVar[list[Tensor]] = []

        def forward(self, images: Tensor) -> Tensor:
            self.batches.append(images)
            return super().forward(images).log_softmax(dim=1)

    images, labels = torch.randn(60_000, 1), torch.arange(60_000) % 10
    rates = published_fast.train(Seen(1, 10), images, labels)
    assert [len(batch) for batch in Seen.batches] == [256] * 234 + [96]
    assert torch.equal(torch.cat(Seen.batches), images)
    assert rates[0] == pytest.approx(0.01 / 25) and rates[-1] == pytest.approx(0.01 / 25 / 1e4)
    assert max(rates) == pytest.approx(0.01, rel=1e-3) and rates.index(max(rates)) in (69, 70)  # at 0.3 of the way


def test_the_published_images_are_stored_normalised_and_shuffled_once(data: Dataset, tmp_path: Path) -> None:
    stored = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        published_fast.store(data, tmp_path / name)
        stored.append(published_fast.load(tmp_path / name, torch.device("cpu")))
    one, two = stored
    assert all(torch.equal(one[name], two[name]) for name in one)
    torch.testing.assert_close(one["test_images"], normalise(data.test_images, 0.1307, 0.3081))
    ours = normalise(data.train_images, 0.1307, 0.3081)
    where = (one["train_images"][:, None] - ours[None]).abs().amax(dim=(2, 3, 4)).argmin(dim=1)
    assert sorted(where.tolist()) == list(range(300)) != where.tolist()
    torch.testing.assert_close(one["train_images"], ours[where])
    assert torch.equal(one["train_labels"], data.train_labels[where])


def test_the_published_network_is_scored_on_every_image() -> None:
    logits = torch.eye(10).repeat(250, 1)  # 2,500: a batch of 2,000 and a rest
    labels = torch.arange(2_500) % 10
    assert published_fast.evaluate(nn.Identity(), logits, labels) == 100
    labels[-1] = 0
    assert published_fast.evaluate(nn.Identity(), logits, labels) == pytest.approx(100 - 100 / 2_500)


# Interrupted


@pytest.mark.parametrize(("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_our_side_stops_without_a_word_about_resuming(
    number: signal.Signals, error: type[BaseException], runtime: Runtime, data: Dataset
) -> None:
    with pytest.raises(error) as stopped:
        sides.our_epoch(recipes.load("is3"), runtime, data, on_step=lambda info: signal.raise_signal(number))
    if error is SystemExit:
        assert stopped.value.code == 143


def test_a_ctrl_c_that_python_drops_still_ends_the_measurement(runtime: Runtime) -> None:
    class Workers:
        """Ctrl-C comes while they are cleared away, where an exception goes nowhere."""

        def __iter__(self) -> "Workers":
            return Workers()

        def __next__(self) -> None:
            raise StopIteration

        def __del__(self) -> None:
            raise KeyboardInterrupt

    before = sys.unraisablehook
    batches = Workers()
    with pytest.raises(KeyboardInterrupt):
        sides.loader_speed(runtime, batches, 1)
    assert sys.unraisablehook is before
    batches.__class__.__del__ = lambda self: None


# In processes of their own


CHILD_WORDS = ("dataset=synthetic", "device=cpu", "threads=1")


@pytest.fixture
def as_in_a_clean_environment(clean_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*LAUNCHER_VARIABLES, "MNIST_ACCEL_DATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in clean_environment.items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("as_in_a_clean_environment")
def test_the_first_step_is_launch_py_s_own_and_the_last(tmp_path: Path) -> None:
    printed = run_python("the first step", fresh.FIRST_STEP, "recipe=onepoch", f"out={tmp_path}", *CHILD_WORDS)
    assert "onepoch" in printed  # its banner
    left = {path.name for path in tmp_path.iterdir()}
    assert "recipe.json" in left and not left & {"result.json", "history.jsonl", "model.safetensors"}


@pytest.mark.slow
@pytest.mark.usefixtures("as_in_a_clean_environment")
@pytest.mark.parametrize(("which", "more"), [("stock", ("onepoch", "0")), ("published", ())])
def test_their_script_trains_and_scores_with_its_seed(which: str, more: tuple[str, ...], data: Dataset) -> None:
    with sides.stock_folder(data) as folder:
        published_fast.store(data, folder)
        words = (time_to_99.THEIR_SCRIPT, which, folder)
        said = [json.loads(run_python(which, *words, seed, "cpu", "1", *more)) for seed in ("0", "1")]
    assert all(0 < one["train_seconds"] < 60 and 0 <= one["accuracy"] <= 100 for one in said)


def test_to_99_every_side_has_the_pair_s_number_as_its_seed(
    runtime: Runtime, data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[tuple[str, ...]] = []

    def run(what: str, *words: str) -> str:
        started.append((what, *words))
        figures = {"train_seconds": len(started) + 1, "accuracy": 90 + len(started)}
        out = next((word.removeprefix("out=") for word in words if word.startswith("out=")), None)
        if out:
            Path(out, "result.json").write_text(json.dumps(figures))
        return f"a warning\n{json.dumps(figures)}\n"

    monkeypatch.setattr(time_to_99, "run_python", run)
    recipe, said = recipes.load("efficient25k"), []
    whole, training = time_to_99.time_to_99(
        recipe, runtime, data, words=CHILD_WORDS, workers=0, pairs=2, say=said.append
    )
    ours, stock, published = whole.sides
    assert (ours, stock) == ("ours, efficient25k", "stock script, onepoch, 0 workers")
    assert "dry_run=true" in started[0] and len(started) == 1 + 2 * 3 and len(said) == 2
    for pair in range(2):
        mine, theirs, fast = started[1 + 3 * pair : 4 + 3 * pair]
        assert mine[1:4:2] == (str(PROJECT / "launch.py"), f"seed={pair}") and mine[5:] == CHILD_WORDS
        assert mine[2] == "recipe=efficient25k"
        assert (theirs[2], *theirs[4:]) == ("stock", str(pair), "cpu", "1", "onepoch", "0")
        assert (fast[2], *fast[4:]) == ("published", str(pair), "cpu", "1")
    assert training.sides == {ours: [3, 6], stock: [4, 7], published: [5, 8]}
    assert whole.qualities == training.qualities == {ours: [92, 95], stock: [93, 96], published: [94, 97]}
    assert [(ratio.of, ratio.values) for ratio in training.ratios] == [
        ("stock script / ours", [4 / 3, 7 / 6]),
        ("published net / ours", [5 / 3, 8 / 6]),
    ]
    for comparison in (whole, training):
        for ratio, name in zip(comparison.ratios, (stock, published), strict=True):
            pairs = zip(comparison.sides[name], comparison.sides[ours], strict=True)
            assert ratio.values == [theirs / mine for theirs, mine in pairs] and ratio.target is None


def test_to_99_takes_the_recipe_that_was_made_for_it() -> None:
    assert bench.default_recipe("time_to_99") == "speedrun" and bench.default_recipe("epoch") == "onepoch"


@pytest.mark.slow
@pytest.mark.usefixtures("as_in_a_clean_environment")
def test_start_measures_both_in_processes_of_their_own(runtime: Runtime) -> None:
    said: list[str] = []
    comparison = fresh.start(recipes.load("onepoch"), runtime, words=CHILD_WORDS, pairs=1, say=said.append)
    (ours,), (bare,) = comparison.sides.values()
    (ratio,) = comparison.ratios
    assert ratio.values == [ours / bare] and (ratio.target, ratio.at_most) == (1.3, True)


@pytest.mark.slow
@pytest.mark.usefixtures("as_in_a_clean_environment")
def test_precision_measures_each_with_its_loss(runtime: Runtime, data: Dataset) -> None:
    said: list[str] = []
    recipe = recipes.load("is3")
    comparison = fresh.precision(recipe, runtime, data, words=CHILD_WORDS, pairs=1, steps=2, say=said.append)
    assert comparison.sides.keys() == comparison.qualities.keys() == {"fp32", "bf16"}
    (fp32,), (bf16,) = comparison.qualities.values()
    assert fp32 != bf16 and fp32 == pytest.approx(bf16, rel=0.1)  # the same steps, rounded otherwise
    assert comparison.ratios[0].of == "bf16 / fp32"


def test_all_recipes_are_measured_one_after_the_other(
    runtime: Runtime,
    tmp_path: Path,
    clean_environment: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def engine(recipe: Recipe, *rest: object, steps: int, **common: object) -> Comparison:
        return Comparison("a part", "s", {"ours": [float(recipe.batch_size)]}, [Ratio("ours / bare", [1.0], 1.1, True)])

    monkeypatch.setattr(compare, "engine", engine)
    monkeypatch.setenv("XDG_CACHE_HOME", clean_environment["XDG_CACHE_HOME"])
    figures = tmp_path / "all.json"
    words = "subject=engine recipe=all dataset=synthetic threads=1 device=cpu"
    assert bench.main([*words.split(), f"json={figures}"]) == 0
    found = [(item["recipe"], item["batch_size"]) for item in json.loads(figures.read_text())["comparisons"]]
    assert found == [(name, recipes.load(name).batch_size) for name in recipes.names()]
    shown = capsys.readouterr().out
    assert all(f"{name}, a part" in shown for name in recipes.names())
    assert shown.count("\n\n") == 1  # before the table


def test_bench_prints_and_writes_its_figures(tmp_path: Path, clean_environment: dict[str, str]) -> None:
    figures = tmp_path / "bench.json"
    words = "subject=engine recipe=efficient25k dataset=synthetic steps=2 pairs=1 threads=1"
    done = run_in_project(clean_environment, "bench", *words.split(), f"json={figures}")
    assert done.returncode == 0, done.stderr
    content = json.loads(figures.read_text())
    (comparison,) = content["comparisons"]
    assert content["machine"]["threads"] == 1 and content["dataset"] == "synthetic"
    assert comparison["sides"].keys() == {"ours", "bare loop"}
    assert (comparison["recipe"], comparison["batch_size"]) == ("efficient25k", 128)
    assert len(comparison["ratios"][0]["values"]) == 1
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
        (
            "recipe=onepoch",
            "subject: not given. Type subject= with one of loader, epoch, engine, start, precision, time_to_99",
        ),
        ("subject=epok", "subject=epok: must be 'loader', 'epoch', 'engine', 'start', 'precision' or 'time_to_99'"),
        ("subject=time_to_99 recipe=is3", "recipe=is3: is3 tells one digit from the rest, and the others tell ten"),
        ("subject=time_to_99 recipe=all", "recipe=all: is3 tells one digit from the rest"),
        ("subject=time_to_99 steps=5", "steps=5: has no effect with subject=time_to_99"),
        ("subject=epoch recipe=onepok", "recipe=onepok: no such recipe. Did you mean recipe=onepoch?"),
        ("subject=epoch pairs=0", "pairs=0: must be at least 1. For example pairs=5"),
        ("subject=epoch images=5", "images=5: has no effect with subject=epoch"),
        ("subject=loader steps=5", "steps=5: has no effect with subject=loader"),
        ("subject=start steps=5", "steps=5: has no effect with subject=start"),
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
    assert [row.name for row in rows] == ["conv1", "conv2"]
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
    compared = [convolutions.Agreement("x", share, in_step, 1.0).met for share, in_step in ((4, 9), (6, 1.2), (6, 1.3))]
    assert compared == [None, True, False]
