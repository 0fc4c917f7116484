"""Every key of a recipe and of a run, changed alone through the real entry, changes what it says and nothing else.

A recipe's keys are held against ``plain.train``, which does what they say without the program's wiring: a key that is
ignored, swapped with another or misread leaves other weights. A key without a row here fails.
"""

import gc
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import plain
import pytest
import torch
from conftest import Ran, RunHere
from recorded_step import RecordedStep
from safetensors.torch import load_file
from torch import Tensor

import recipes
from mnist_accel import cli
from mnist_accel.data.dataset import Dataset
from mnist_accel.errors import Interrupted, UserError
from mnist_accel.machine import job, runtime
from mnist_accel.models import build_model
from mnist_accel.recipe import Recipe, RunOptions, keys_of
from mnist_accel.runs import run, trainer
from mnist_accel.runs.folder import RunFolder
from mnist_accel.runs.watcher import Watcher
from mnist_accel.training.exchange import Patience
from mnist_accel.training.state import StepInfo

# As plain as training can be, so that each key changes one thing.
PLAIN: dict[str, Any] = {
    "epochs": 2,
    "batch_size": 100,
    "optimizer": "sgd",
    "lr": 0.05,
    "weight_decay": 0.0,
    "schedule": "constant",
    "dropout": 0.0,
}
TEN = {"recipe": "onepoch", "label_smoothing": 0.0}
ONE = {"recipe": "is3", "rotation": 0.0, "translation": 0.0, "scale": 0.0, "shear": 0.0, "ema": 0.0}

# key: another value, and what has to be typed beside it
LEARNING: dict[str, tuple[Any, dict[str, Any]]] = {
    "epochs": (3, {}),
    "batch_size": (170, {}),
    "optimizer": ("adam", {"lr": 0.005}),
    "lr": (0.02, {}),
    "momentum": (0.5, {}),
    "nesterov": (True, {}),
    "weight_decay": (0.02, {}),
    "beta1": (0.5, {"optimizer": "adam", "lr": 0.005}),
    "beta2": (0.9, {"optimizer": "adamw", "lr": 0.005}),
    "first_filters": ("whitening", {}),
    "schedule": ("linear", {}),
    "warmup": (0.5, {"schedule": "linear"}),
    "step_epochs": (1, {"schedule": "step"}),
    "step_factor": (0.5, {"schedule": "step", "step_epochs": 1}),
    "label_smoothing": (0.2, {}),
    "clip_norm": (0.1, {}),
    "ema": (0.8, {}),
    "positive_class": (7, ONE),
    "dropout": (0.5, {}),
    "rotation": (30.0, {}),
    "translation": (0.2, {}),
    "scale": (0.3, {}),
    "shear": (30.0, {}),
    "mean": (0.3, {}),
    "std": (0.5, {}),
    "validation": (150, {}),
    "seed": (3, {}),
}
ELSEWHERE = {"sync_batchnorm", "test_shifts"}  # two processes' business: test_world_size.py; below


def test_every_key_of_a_recipe_has_a_row() -> None:
    assert LEARNING.keys() | ELSEWHERE == keys_of(Recipe).keys()


def typed(values: dict[str, Any]) -> list[str]:
    return [f"{name}={cli.spell(value)}" for name, value in values.items()]


def as_recipe(values: dict[str, Any]) -> Recipe:
    settings = dict(values)
    return replace(recipes.load(settings.pop("recipe")), **settings)


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert one.keys() == other.keys()
    learned = [name for name in one if one[name].is_floating_point()]  # not how many steps batch norm has seen
    return sum((one[name].double() - other[name]).square().sum().item() for name in learned) ** 0.5


@pytest.mark.parametrize("key", LEARNING)
def test_a_key_of_a_recipe_changes_the_weights_as_it_says(key: str, run_here: RunHere, tiny: Dataset) -> None:
    value, beside = LEARNING[key]
    common = PLAIN | (beside if "recipe" in beside else TEN | beside)
    ran = run_here(*typed(common | {key: value}))
    expected, without = (plain.train(as_recipe(values), tiny) for values in (common | {key: value}, common))
    # Rounding may differ, by far less than the key makes.
    assert distance(ran.weights, expected.weights) < 0.01 * distance(expected.weights, without.weights)
    last = ran.result.history[-1]
    assert [stats.train_loss for stats in ran.result.history] == pytest.approx(expected.train_losses, rel=1e-3)
    counted = [stats.train_accuracy for stats in ran.result.history]
    assert counted == pytest.approx(expected.train_accuracies, abs=0.4)  # two of 600 images, by rounding
    assert last.test_loss == pytest.approx(expected.test_loss, rel=5e-3)
    assert last.correct == pytest.approx(expected.correct, abs=1)
    assert (last.lr, ran.result.optimizer_steps) == (pytest.approx(expected.lrs[-1]), len(expected.lrs))
    assert ran.start.changed == tuple(name for name in keys_of(Recipe) if changed(name, common | {key: value}))


@pytest.mark.parametrize("beside", [TEN, ONE | {"mean": 0.3}], ids=["ten classes", "one class"])
@pytest.mark.parametrize("pixels", [1, 3])
def test_test_shifts_changes_the_score_as_it_says_and_no_weights(
    pixels: int, beside: dict[str, Any], run_here: RunHere, tiny: Dataset
) -> None:
    common = beside | PLAIN
    usual, ran = run_here(*typed(common)), run_here(*typed(common | {"test_shifts": pixels}))
    assert distance(usual.weights, ran.weights) == 0
    assert [stats.train_loss for stats in usual.result.history] == [stats.train_loss for stats in ran.result.history]
    recipe = as_recipe(common | {"test_shifts": pixels})
    model = build_model(recipe.model, recipe.dropout).eval()
    model.load_state_dict(ran.weights)
    with torch.no_grad():
        expected = plain.scored(recipe, model, tiny.test_images)
    kept, once = (load_file(each.folder / "evaluation.safetensors")["logits"] for each in (ran, usual))
    torch.testing.assert_close(kept, expected, rtol=0, atol=1e-5)
    assert (kept - once).abs().max() > 0.01
    last = ran.result.history[-1]
    assert last.correct == plain.count_correct(recipe, expected, tiny.test_labels)
    assert last.test_loss == pytest.approx(plain.loss_of(recipe, 0.0)(expected, tiny.test_labels).item(), rel=1e-5)
    # So was every epoch before it.
    trained = plain.train(recipe, tiny)
    assert ran.result.history[0].test_loss != usual.result.history[0].test_loss
    assert last.test_loss == pytest.approx(trained.test_loss, rel=1e-3)
    assert ran.start.changed == tuple(name for name in keys_of(Recipe) if changed(name, common | {"test_shifts": 1}))


def changed(key: str, values: dict[str, Any]) -> bool:
    return key in values and values[key] != getattr(recipes.load(values["recipe"]), key)


def test_finding_the_first_filters_is_part_of_training(fit: Any, runtime: Any, tiny: Dataset) -> None:
    found, learned = (
        fit(runtime, tiny, epochs=0, first_filters=way).trainer.position for way in ("whitening", "learned")
    )
    assert found.seconds > 0 == learned.seconds


def test_filters_that_cannot_be_found_are_refused_before_anything_is_written(
    run_here: RunHere, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3, padding="same"))
    monkeypatch.setattr(run, "build_model", lambda *asked: network)
    said = r"^first_filters=whitening: network onepoch has a first Conv2d .+\. Type first_filters=learned$"
    with pytest.raises(UserError, match=said):
        run_here("recipe=onepoch", "first_filters=whitening")
    assert not list(tmp_path.rglob("*.json"))


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_weight_decay_is_the_optimizer_s_own(optimizer: str, run_here: RunHere, tiny: Dataset) -> None:
    """Decoupled with adamw, L2 with adam."""
    values = TEN | PLAIN | {"optimizer": optimizer, "lr": 0.005, "weight_decay": 0.1}
    expected, without = (plain.train(as_recipe(each), tiny) for each in (values, values | {"weight_decay": 0.0}))
    ran = run_here(*typed(values))
    assert distance(ran.weights, expected.weights) < 0.01 * distance(expected.weights, without.weights)


# How it runs

# key: another value, what is looked at, what that is with the key and without
RUNNING: dict[str, tuple[Any, Callable[[Ran], Any], Any, Any]] = {
    "dataset": ("mnist", lambda ran: ran.asked[0], "mnist", "auto"),
    "data_dir": ("digits", lambda ran: ran.asked[1], "digits", None),
    "out": (
        "elsewhere",
        lambda ran: (Path("elsewhere", "result.json").is_file(), ran.folder.name),
        (True, "elsewhere"),
        (False, "run1"),
    ),
    "precision": ("bf16", lambda ran: ran.result.precision, "bf16", "fp32"),
    "threads": (2, lambda ran: (ran.result.threads, torch.get_num_threads()), (2, 2), (1, 1)),
    "resident_mb": (0, lambda ran: ran.start.resident, False, True),
    "checkpoint_every": (4, lambda ran: ran.checkpoints, [8, 12], [6, 12]),
    "tracker": ("tensorboard", lambda ran: (ran.folder / "tracking").is_dir(), True, False),
    "dry_run": (True, lambda ran: (ran.result.optimizer_steps, ran.checkpoints), (1, []), (12, [6, 12])),
}
IN_TESTS_OF_THEIR_OWN = {"device", "processes", "restarts", "timeout", "graph", "resume", "profile"}  # below


def test_every_key_of_a_run_has_a_row() -> None:
    assert RUNNING.keys() | IN_TESTS_OF_THEIR_OWN == keys_of(RunOptions).keys()


@pytest.mark.parametrize("key", RUNNING)
def test_a_key_of_a_run_does_what_it_says(
    key: str, run_here: RunHere, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    value, seen, with_it, without = RUNNING[key]
    monkeypatch.chdir(tmp_path)
    assert seen(run_here(*typed(TEN | PLAIN))) == without
    assert seen(run_here(*typed(TEN | PLAIN | {key: value}))) == with_it


def test_how_a_run_happens_changes_no_weights(run_here: RunHere) -> None:
    usual = run_here(*typed(TEN | PLAIN))
    again = run_here(*typed(TEN | PLAIN), "resident_mb=0", "checkpoint_every=5", "timeout=9", "graph=off", "device=cpu")
    assert distance(usual.weights, again.weights) == 0


def test_bf16_computes_in_bf16(run_here: RunHere, tiny: Dataset) -> None:
    expected, without = (plain.train(as_recipe(TEN | PLAIN), tiny, half) for half in (True, False))
    weights = run_here(*typed(TEN | PLAIN), "precision=bf16").weights
    assert distance(weights, expected.weights) < 0.5 * distance(weights, without.weights)


def test_device_cuda_needs_a_gpu(run_here: RunHere, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="device=cuda: there is no GPU here"):
        run_here(*typed(TEN | PLAIN), "device=cuda")
    assert run_here(*typed(TEN | PLAIN), "device=cpu", "dry_run=true").result.device == "cpu"


def test_more_processes_than_gpus_are_refused_before_one_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    request = cli.parse(["recipe=is3", "processes=4", "precision=fp32"], recipes.names(), recipes.load)
    with pytest.raises(UserError, match="processes=4: more than the 2 GPUs of this machine"):
        run.check(request)


@pytest.mark.parametrize(
    ("typed_here", "starts"),
    [(["processes=1"], []), (["processes=3"], [(3, 0)]), (["processes=2", "restarts=4"], [(2, 4)])],
)
def test_processes_starts_as_many_with_the_same_words(
    typed_here: list[str], starts: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    import launch  # which takes signals as a process's first file may

    words = ["recipe=is3", *typed_here, "seed=5"]
    spawned: list[Any] = []
    alone: list[Any] = []
    monkeypatch.setattr(sys, "argv", ["launch.py", *words])
    monkeypatch.setattr(job, "spawn", lambda count, script, argv, again: spawned.append((count, argv, again)) or 0)
    monkeypatch.setattr(job, "wait_for_ranks", lambda: None)
    monkeypatch.setattr(run, "run", lambda request, *told: alone.append(request) or (None, RunFolder(Path())))
    assert launch.main() == 0
    assert spawned == [(count, words, restarts) for count, restarts in starts] and len(alone) == (not starts)


@pytest.mark.parametrize(("typed_here", "seconds"), [(["timeout=7.5"], 7.5), ([], 600.0)])
def test_timeout_is_how_long_processes_wait_for_each_other(
    typed_here: list[str], seconds: float, run_here: RunHere, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(runtime, "start_process_group", lambda device, timeout: waits.append(timeout.total_seconds()))
    monkeypatch.setattr(trainer, "Patience", lambda seconds, *more: waits.append(seconds) or Patience(seconds, *more))
    run_here(*typed(TEN | PLAIN), "dry_run=true", *typed_here)
    assert waits == [seconds, seconds]


@pytest.mark.parametrize("graph", ["auto", "off"])
def test_a_step_is_captured_unless_graph_is_off(graph: str, run_here: RunHere, monkeypatch: pytest.MonkeyPatch) -> None:
    built = []
    monkeypatch.setattr(trainer, "can_capture", lambda *facts: True)  # as on a GPU
    monkeypatch.setattr(
        trainer, "GraphStep", lambda *facts, **how: built.append(RecordedStep(*facts, **how)) or built[-1]
    )
    run_here(*typed(TEN | PLAIN), f"graph={graph}")
    assert [step.replays > 0 for step in built] == ([True] if graph == "auto" else [])


def test_resume_goes_on_and_ends_as_if_never_stopped(run_here: RunHere, tmp_path: Path) -> None:
    def stop(info: StepInfo) -> None:
        if (info.epoch, info.step) == (2, 3):
            signal.raise_signal(signal.SIGTERM)

    words = typed(TEN | PLAIN | {"ema": 0.8})
    whole = run_here(*words)
    with pytest.raises(Interrupted):
        run_here(*words, f"out={tmp_path / 'stopped'}", watcher=Watcher(on_step=stop))
    gc.collect()  # the stopped run's frames hold its folder's lock
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    rest = run_here(*words, f"resume={tmp_path / 'stopped'}")
    assert Path(rest.result.resumed_from or "").parent.parent.name == "stopped"
    assert distance(rest.weights, whole.weights) == 0
    assert (rest.result.optimizer_steps, rest.result.train_loss) == (12, whole.result.train_loss)
    assert [stats.train_loss for stats in rest.result.history] == [stats.train_loss for stats in whole.result.history]


def test_profile_tells_where_the_time_went(run_here: RunHere, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    summaries: list[Any] = []
    words = typed(TEN | PLAIN | {"batch_size": 30})
    usual = run_here(*words, watcher=Watcher(on_profile=summaries.append))
    assert not summaries and not (tmp_path / "profiles").exists()
    profiled = run_here(*words, "profile=true", watcher=Watcher(on_profile=summaries.append))
    assert [(summary.recipe, summary.batch_size) for summary in summaries] == [("onepoch", 30)]
    assert profiled.result.profile and Path(profiled.result.profile).parent == Path("profiles")
    assert usual.result.profile is None and Path(profiled.result.profile, "summary.json").is_file()
    assert distance(usual.weights, profiled.weights) == 0
