"""Recipe, RunOptions and Claim: frozen, bounded, explained, and the one source of what the command line knows."""

from dataclasses import FrozenInstanceError, fields, replace
from typing import Any

import pytest
from pydantic import ValidationError

from mnist_accel.recipe import NOT_OVERRIDABLE, Claim, Recipe, RunOptions, keys_of

MINIMAL: dict[str, Any] = {
    "name": "minimal",
    "model": "onepoch",
    "epochs": 1,
    "batch_size": 64,
    "optimizer": "sgd",
    "lr": 0.1,
    "dropout": 0.0,
}


def test_a_recipe_and_its_options_cannot_be_changed_in_place() -> None:
    with pytest.raises(FrozenInstanceError):
        Recipe(**MINIMAL).lr = 1.0  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        RunOptions().threads = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", "../x"),
        ("name", "Two Words"),
        ("epochs", 0),
        ("epochs", 1.5),
        ("batch_size", 0),
        ("optimizer", "rmsprop"),
        ("lr", 0),
        ("lr", -0.1),
        ("lr", float("nan")),
        ("lr", float("inf")),
        ("momentum", 1),
        ("weight_decay", -1e-4),
        ("schedule", "cosine"),
        ("warmup", 1),
        ("step_epochs", 0),
        ("step_factor", 0),
        ("label_smoothing", 1),
        ("clip_norm", -1),
        ("ema", 1),
        ("positive_class", 10),
        ("dropout", 1),
        ("rotation", 181),
        ("translation", 1.1),
        ("scale", 1),
        ("shear", 90),
        ("std", 0),
        ("validation", 60_000),
        ("test_shifts", -1),
        ("test_shifts", 9),
        ("test_shifts", 0.5),
        ("seed", -1),
        ("seed", 2**32),
        ("learning_rate", 0.1),
    ],
)
def test_a_value_out_of_bounds_is_refused_where_the_recipe_is_written(field: str, value: object) -> None:
    with pytest.raises(ValidationError, match=field):
        Recipe(**{**MINIMAL, field: value})
    if field != "learning_rate":
        with pytest.raises(ValidationError, match=field):
            replace(Recipe(**MINIMAL), **{field: value})


def test_what_every_recipe_must_say_has_no_default() -> None:
    for field in MINIMAL:
        with pytest.raises(ValidationError, match=field):
            Recipe(**{name: value for name, value in MINIMAL.items() if name != field})


@pytest.mark.parametrize("owner", [Recipe, RunOptions])
def test_every_field_but_the_published_facts_is_a_key_with_type_and_help(owner: type) -> None:
    keys = keys_of(owner)
    assert list(keys) == [field.name for field in fields(owner) if field.name not in NOT_OVERRIDABLE]
    for name, key in keys.items():
        assert key.name == name
        assert key.kind and len(key.description) > 3, name


def test_no_key_means_two_things() -> None:
    assert not keys_of(Recipe).keys() & keys_of(RunOptions).keys()


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("epochs", "int"),
        ("lr", "float"),
        ("nesterov", "true|false"),
        ("optimizer", "sgd|adam|adamw"),
        ("out", "text"),
        ("resident_mb", "int"),
    ],
)
def test_the_kind_of_a_key_is_what_a_user_would_call_it(name: str, kind: str) -> None:
    assert (keys_of(Recipe) | keys_of(RunOptions))[name].kind == kind


def test_every_key_that_needs_another_names_one_that_exists_and_can_have_that_value() -> None:
    recipe = {field.name for field in fields(Recipe)}
    options = {field.name for field in fields(RunOptions)}
    dependent = {name: key.needs for name, key in (keys_of(Recipe) | keys_of(RunOptions)).items() if key.needs}
    assert set(dependent) >= {"momentum", "nesterov", "warmup", "step_epochs", "step_factor", "positive_class"}
    for needs in dependent.values():
        for value in needs.values:
            if needs.key in recipe:
                assert getattr(Recipe(**{**MINIMAL, needs.key: value}), needs.key) == value
            else:
                assert needs.key in options
                assert getattr(RunOptions(**{needs.key: value}), needs.key) == value


def test_a_claim_reads_as_a_person_would_write_it() -> None:
    late = Claim(metric="accuracy", relation=">=", value=99.44, epoch=8)
    assert (late.label, late.documented) == ("accuracy % at epoch 8", "≥ 99.44")
    count = Claim(metric="parameters", relation="=", value=8762)
    assert (count.label, count.documented) == ("parameters", "8,762")
    budget = Claim(metric="train_seconds", relation="<", value=20, device="cpu", note="budget")
    assert (budget.label, budget.documented) == ("training seconds on a CPU (budget)", "< 20")
    loss = Claim(metric="test_loss", relation="<=", value=3.96e-5)
    assert (loss.label, loss.documented) == ("test loss", "≤ 3.96e-05")


@pytest.mark.parametrize(
    "wrong", [{"metric": "speed"}, {"relation": "=="}, {"value": float("nan")}, {"device": "tpu"}, {"sources": ""}]
)
def test_a_claim_that_could_not_be_judged_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Claim(**{"metric": "accuracy", "relation": ">=", "value": 99.0, **wrong})
