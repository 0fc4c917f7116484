"""Checkpoints: bit for bit or not at all, whatever happens to the file; and going on from one is exact."""

import errno
import io
import json
import os
import pickle
import random
import signal
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Fitted
from pydantic import TypeAdapter
from safetensors.torch import save
from torch import Tensor, nn

from mnist_accel.data.dataset import Dataset
from mnist_accel.errors import Interrupted
from mnist_accel.machine.runtime import Runtime
from mnist_accel.models import build_model
from mnist_accel.runs import checkpoint as module
from mnist_accel.runs.checkpoint import (
    Checkpoint,
    CheckpointMeta,
    DamagedCheckpoint,
    digest,
    newest_intact,
    read_checkpoint,
    restore,
    snapshot,
    write_checkpoint,
)
from mnist_accel.runs.interrupt import watch_for_signals
from mnist_accel.training import loop
from mnist_accel.training.optim import WeightAverage, build_optimizer
from mnist_accel.training.state import EpochStats, Position

Fit = Callable[..., Fitted]
STATS = EpochStats(1, 8, 800, 0.1, 2 / 3, 1 / 3, 50.0, 100, 200, None, 1.0, 0.5)
META = CheckpointMeta(
    recipe={"lr": 0.1, "name": "é", "claims": []},
    dataset="ab" * 32,
    world_size=2,
    position=Position(epoch=1, step=7, loss_sum=0.1 + 0.2, images=700, seconds=1.5, history=[STATS]),
    average_steps=17,
    scaler=torch.amp.GradScaler("cpu").state_dict(),
)
OPTIMIZERS = {
    "plain sgd": {"optimizer": "sgd"},
    "sgd with momentum": {"optimizer": "sgd", "momentum": 0.9, "weight_decay": 1e-3},
    "sgd with nesterov": {"optimizer": "sgd", "momentum": 0.9, "nesterov": True},
    "adam": {"optimizer": "adam", "weight_decay": 1e-3},
    "adamw": {"optimizer": "adamw", "weight_decay": 0.05},
    "fixed first filters": {"optimizer": "adamw", "beta1": 0.7, "beta2": 0.9, "first_filters": "whitening"},
}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def trained(seed: int, steps: int) -> tuple[nn.Module, torch.optim.Optimizer, WeightAverage]:
    torch.manual_seed(seed)
    model = build_model("efficient25k", 0.1).to(memory_format=torch.channels_last)
    optimizer = build_optimizer("adamw", model.parameters(), lr=0.01, momentum=0, nesterov=False, weight_decay=0.1)
    average = WeightAverage(model, 0.9)
    for _ in range(steps):
        model(torch.randn(8, 1, 28, 28)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        average.update()
    return model, optimizer, average


@pytest.fixture(scope="module")
def tensors() -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in snapshot(*trained(0, 3)).items()}


@pytest.fixture
def written(tmp_path: Path, tensors: dict[str, Tensor]) -> Path:
    return write_checkpoint(tmp_path / "checkpoints", "step-1.safetensors", tensors, META)


def same_tensors(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(one[name], other[name])
        and (one[name].dtype, one[name].stride()) == (other[name].dtype, other[name].stride())
        for name in one
    )


def same_content(one: Checkpoint, other: Checkpoint) -> bool:
    return one.meta == other.meta and same_tensors(one.tensors, other.tensors)


# There and back


def test_what_is_written_is_read_back_bit_for_bit_with_its_strides(written: Path, tensors: dict[str, Tensor]) -> None:
    read = read_checkpoint(written)
    assert same_tensors(read.tensors, tensors)
    assert not all(tensor.is_contiguous() for tensor in read.tensors.values())  # channels-last is among them
    assert replace(read.meta, strides={}) == META
    assert names(written.parent) == ["step-1.safetensors"]


def test_a_freshly_built_training_takes_over_every_tensor(written: Path) -> None:
    model, optimizer, average = trained(1, 0)
    held = model.state_dict()  # as the average and DDP hold on to them
    read = read_checkpoint(written)
    restore(read.tensors, model, optimizer, average)
    assert same_tensors(snapshot(model, optimizer, average), read.tensors)
    assert all(held[name].data_ptr() == tensor.data_ptr() for name, tensor in model.state_dict().items())


# Damage


def test_every_flipped_bit_and_every_lost_byte_is_noticed(written: Path) -> None:
    """Either the file is refused or what is read is the same: a flipped bit in the header's padding changes nothing."""
    whole = read_checkpoint(written)
    content = written.read_bytes()
    header_end = 8 + int.from_bytes(content[:8], "little")
    chance = random.Random(0)
    places = [
        *range(8),
        *(chance.randrange(8, header_end) for _ in range(100)),
        *(chance.randrange(header_end, len(content)) for _ in range(70)),
        *range(header_end - 2, header_end + 3),
        *range(len(content) - 20, len(content)),
    ]
    same = []
    for place in places:
        damaged = bytearray(content)
        damaged[place] ^= 1 << chance.randrange(8)
        written.write_bytes(damaged)
        try:
            read = read_checkpoint(written)
        except DamagedCheckpoint:
            continue
        assert same_content(read, whole), place
        same.append(place)
    # Spelling only (a flipped bit may turn the case of an escape): none of the values.
    assert len(same) < 5 and all(8 <= place < header_end for place in same)

    for length in (0, 1, 7, 8, 9, header_end // 2, header_end, header_end + 1, len(content) - 1):
        written.write_bytes(content[:length])
        with pytest.raises(DamagedCheckpoint):
            read_checkpoint(written)
    for tail in (b"\0", b"x" * 100):
        written.write_bytes(content + tail)
        with pytest.raises(DamagedCheckpoint):
            read_checkpoint(written)


def test_the_checksum_covers_names_types_and_shapes_and_not_the_values_alone() -> None:
    """All of these have the same bytes: a header may be damaged, or rewritten, where a value is not."""
    values = torch.arange(6, dtype=torch.int32)
    good = digest("meta", {"a": values, "b": values})
    others = [
        digest("met", {"a": values, "b": values}),
        digest("meta", {"a": values, "c": values}),
        digest("meta", {"a": values, "b": values.view(torch.float32)}),
        digest("meta", {"a": values, "b": values.view(2, 3)}),
        digest("meta", {"a": values.repeat(2)}),
    ]
    assert len({good, *others}) == 6
    assert digest("meta", {"b": values, "a": values}) == good


def test_a_block_of_zeros_where_data_should_be_is_noticed(written: Path) -> None:
    """What a file system may leave of a file that was not synced."""
    content = written.read_bytes()
    written.write_bytes(content[:-4096] + bytes(4096))
    with pytest.raises(DamagedCheckpoint, match="SHA-256"):
        read_checkpoint(written)
    written.write_bytes(bytes(len(content)))
    with pytest.raises(DamagedCheckpoint):
        read_checkpoint(written)


# Hostile files


class WritesMarker:
    """Unpickling it would make a folder."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


def signed(tensors: dict[str, Tensor], text: str) -> bytes:
    """A file whose SHA-256 is right: it guards against accidents, not against malice."""
    return save(tensors, metadata={"meta": text, "sha256": digest(text, tensors)})


def with_meta(rows: int = 2, **changed: Any) -> bytes:
    tensors = {"model.a": torch.arange(3.0 * rows).reshape(rows, 3)}
    return signed(tensors, json.dumps(asdict(META) | {"strides": {"model.a": [3, 1]}} | changed))


def with_position(**changed: Any) -> bytes:
    return with_meta(position=asdict(META.position) | changed)


def with_header(text: bytes, length: int | None = None) -> bytes:
    return (len(text) if length is None else length).to_bytes(8, "little") + text


def torch_save(thing: object) -> bytes:
    file = io.BytesIO()
    torch.save(thing, file)
    return file.getvalue()


HOSTILE: dict[str, Callable[[Path], bytes]] = {
    "a pickle": lambda marker: pickle.dumps(WritesMarker(marker)),
    "a torch.save file": lambda marker: torch_save(WritesMarker(marker)),
    "a header longer than any memory": lambda marker: with_header(b"{}", 2**63 - 1),
    "a header longer than the file": lambda marker: with_header(b"{}", 3),
    "no JSON": lambda marker: with_header(b"import os"),
    "no UTF-8": lambda marker: with_header(b"\xff\xfe{}"),
    "JSON, but a list": lambda marker: with_header(b"[1, 2]"),
    "JSON without metadata": lambda marker: with_header(b"{}"),
    "metadata that is no mapping": lambda marker: with_header(b'{"__metadata__": 3}'),
    "JSON nested without end": lambda marker: with_header(b"[" * 100_000),
    "no meta": lambda marker: save({"a": torch.zeros(1)}, metadata={"sha256": "0" * 64}),
    "meta that is no JSON": lambda marker: signed({}, "{"),
    "meta that is a list": lambda marker: signed({}, "[]"),
    "fewer than no processes": lambda marker: with_meta(world_size=-1),
    "a step of text": lambda marker: with_position(step="three"),
    "a key too many": lambda marker: with_meta(code="import os"),
    "a key too few": lambda marker: signed({}, "{}"),
    "strides beyond the block": lambda marker: with_meta(strides={"model.a": [300_000_000, 1]}),
    "strides that overlap": lambda marker: with_meta(strides={"model.a": [1, 1]}),
    "strides of zero": lambda marker: with_meta(strides={"model.a": [0, 0]}),
    "negative strides": lambda marker: with_meta(strides={"model.a": [-3, 1]}),
    "a negative stride of one row": lambda marker: with_meta(rows=1, strides={"model.a": [-3, 1]}),
    "strides beyond 64 bits": lambda marker: with_meta(strides={"model.a": [2**70, 1]}),
    "too few strides": lambda marker: with_meta(strides={"model.a": [1]}),
    "no strides": lambda marker: with_meta(strides={}),
    "strides of text": lambda marker: with_meta(strides={"model.a": "31"}),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_file_is_refused_and_runs_nothing(kind: str, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    path = tmp_path / "step-1.safetensors"
    path.write_bytes(HOSTILE[kind](marker))
    with pytest.raises(DamagedCheckpoint) as refused:
        read_checkpoint(path)
    assert 0 < len(str(refused.value)) <= 200 and "\n" not in str(refused.value)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"history": [asdict(STATS) | {"lr": "fast"}]}, "position.history.0.lr "),
        ({"history": [asdict(STATS) | {"epoch": 2}]}, "its history is not that of 1 finished epochs"),
        ({"history": []}, "its history is not that of 1 finished epochs"),
        ({"history": [], "epoch": -1}, "its history is not that of -1 finished epochs"),
        ({"epoch": 10**15}, f"its history is not that of {10**15} finished epochs"),
        ({"images": 0}, "7 steps cannot have seen 0 images"),
        ({"step": 0}, "0 steps cannot have seen 700 images"),
        ({"step": -1}, "-1 steps cannot have seen"),
        ({"correct": 701}, "701 correct answers for 700 images"),
        ({"loss_sum": float("nan")}, "a finite number"),
        ({"loss_sum": float("inf")}, "a finite number"),
        ({"seconds": -1.0}, "in -1.0 seconds"),
        ({"seconds": float("nan")}, "a finite number"),
    ],
)
def test_a_position_that_no_training_reaches_is_damage(changed: dict[str, Any], said: str, tmp_path: Path) -> None:
    path = tmp_path / "step-1.safetensors"
    path.write_bytes(with_position(**changed))
    with pytest.raises(DamagedCheckpoint) as refused:
        read_checkpoint(path)
    assert said in str(refused.value) and "\n" not in str(refused.value)


def test_the_hostile_files_differ_from_a_good_one_in_one_thing_only(tmp_path: Path) -> None:
    path = tmp_path / "step-1.safetensors"
    path.write_bytes(with_meta())
    assert read_checkpoint(path).tensors["model.a"].tolist() == [[0, 1, 2], [3, 4, 5]]
    path.write_bytes(with_meta(strides={"model.a": [1, 2]}))
    read = read_checkpoint(path).tensors["model.a"]
    assert read.tolist() == [[0, 1, 2], [3, 4, 5]] and read.stride() == (1, 2)


def test_a_file_too_large_to_be_ours_is_not_even_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "step-1.safetensors"
    with path.open("wb") as file:
        file.truncate(2 * module.MAX_BYTES)  # sparse
    monkeypatch.setattr(module, "safe_open", lambda *_, **how: pytest.fail("was read"))
    with pytest.raises(DamagedCheckpoint, match="more than 1,073,741,824 bytes"):
        read_checkpoint(path)


def test_what_is_no_file_is_damaged_as_well(tmp_path: Path) -> None:
    (tmp_path / "step-1.safetensors").mkdir()
    for name in ("step-1.safetensors", "step-2.safetensors"):
        with pytest.raises(DamagedCheckpoint):
            read_checkpoint(tmp_path / name)


# Several


def test_the_newest_intact_one_is_found_and_the_damaged_newer_one_is_named(tmp_path: Path) -> None:
    few = {"model.a": torch.zeros(3)}
    paths = [write_checkpoint(tmp_path, f"step-00{step}.safetensors", few, META) for step in (8, 9)]
    assert newest_intact(tmp_path)[0].path == paths[1]
    paths[1].write_bytes(paths[1].read_bytes()[:-1])
    found, complaints = newest_intact(tmp_path)
    assert found is not None and found.path == paths[0]
    (complaint,) = complaints
    assert complaint.startswith(f"{paths[1]}: ")
    paths[0].write_bytes(b"")
    found, complaints = newest_intact(tmp_path)
    assert found is None and len(complaints) == 2
    assert newest_intact(tmp_path / "nowhere") == (None, [])


def test_older_ones_go_only_after_the_new_one_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = {"model.a": torch.zeros(3)}
    synced: list[list[str]] = []
    fsync = os.fsync

    def spy(descriptor: int) -> None:
        fsync(descriptor)
        synced.append(names(tmp_path))

    for step in (1, 2):
        write_checkpoint(tmp_path, f"step-{step}.safetensors", few, META)
    monkeypatch.setattr(os, "fsync", spy)
    write_checkpoint(tmp_path, "step-3.safetensors", few, META)
    file, folder = synced
    assert {"step-1.safetensors", "step-2.safetensors"} < set(file) and "step-3.safetensors" not in file
    assert folder == ["step-1.safetensors", "step-2.safetensors", "step-3.safetensors"]
    assert names(tmp_path) == ["step-2.safetensors", "step-3.safetensors"]


def test_a_new_one_keeps_its_place_below_newer_ones_that_a_resume_passed_over(tmp_path: Path) -> None:
    for step in (7, 8, 9):
        (tmp_path / f"step-{step}.safetensors").write_bytes(b"damaged")
    write_checkpoint(tmp_path, "step-6.safetensors", {}, META)
    found, complaints = newest_intact(tmp_path)
    assert found is not None and found.path.name == "step-6.safetensors" and len(complaints) == 3


def test_what_a_kill_left_half_written_is_no_checkpoint_and_goes_with_the_next(tmp_path: Path) -> None:
    (tmp_path / ".step-5.safetensors.4711").write_bytes(b"half")
    assert newest_intact(tmp_path) == (None, [])
    write_checkpoint(tmp_path, "step-6.safetensors", {}, META)
    assert names(tmp_path) == ["step-6.safetensors"]


@pytest.mark.parametrize("failing", ["fsync", "replace", "write"])
def test_a_full_disk_leaves_the_previous_checkpoint_and_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    few = {"model.a": torch.zeros(3)}
    for step in (1, 2):
        write_checkpoint(tmp_path, f"step-{step}.safetensors", few, META)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(*arguments: object, **more: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    owner, name = {"fsync": (os, "fsync"), "replace": (Path, "replace"), "write": (Path, "open")}[failing]
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, full)
        with pytest.raises(OSError, match="No space left"):
            write_checkpoint(tmp_path, "step-3.safetensors", few, META)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


# Going on


def without_seconds(fitted: Fitted) -> list[dict[str, Any]]:
    return [
        {name: value for name, value in asdict(stats).items() if not name.endswith("seconds")}
        for stats in fitted.history
    ]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_run_interrupted_in_the_middle_of_an_epoch_goes_on_bit_for_bit(
    fit: Fit, make_runtime: Callable[..., Runtime], tiny: Dataset, tmp_path: Path, name: str
) -> None:
    """Stopped twice: within the first epoch and within the second; through the file; with everything switched on."""
    regime = OPTIMIZERS[name] | {
        "epochs": 2,
        "batch_size": 130,  # 5 steps an epoch, the last one smaller
        "lr_at": lambda step: 0.02 / (1 + step),
        "dropout": 0.3,
        "label_smoothing": 0.1,
        "clip_norm": 1.0,
        "ema": 0.7,
        "rotation": 10,
        "translation": 0.1,
        "scale": 0.1,
        "shear": 5,
    }
    whole = fit(make_runtime(), tiny, **regime)
    stopped, losses = None, []
    for steps, place in ((3, (0, 3)), (4, (1, 2))):
        part = fit(
            make_runtime(), tiny, **regime, save_in=tmp_path, stop_after_steps=steps, resumed=stopped, catch=Interrupted
        )
        assert isinstance(part.error, Interrupted) and part.error.exit_code == 143
        losses += part.losses
        stopped, complaints = newest_intact(tmp_path)
        assert stopped is not None and complaints == []
        assert (stopped.meta.position.epoch, stopped.meta.position.step) == place
        torch.manual_seed(99)  # no random state is relied on
    rest = fit(make_runtime(), tiny, **regime, resumed=stopped)
    assert losses + rest.losses == whole.losses
    state = rest.model.state_dict()
    for key, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, state[key]), key
    assert without_seconds(rest) == without_seconds(whole)


def test_a_checkpoint_of_before_correct_answers_were_counted_goes_on_and_the_next_epoch_is_counted(
    fit: Fit, make_runtime: Callable[..., Runtime], tiny: Dataset, tmp_path: Path
) -> None:
    regime: dict[str, Any] = {"epochs": 2, "save_in": tmp_path}
    fit(make_runtime(), tiny, **regime, stop_after_steps=3, catch=Interrupted)
    saved, _ = newest_intact(tmp_path)
    assert saved is not None and saved.meta.position.correct is not None
    older = asdict(saved.meta)
    del older["position"]["correct"]
    meta = TypeAdapter(CheckpointMeta).validate_python(older)
    first, second = fit(make_runtime(), tiny, **regime, resumed=replace(saved, meta=meta)).history
    whole = fit(make_runtime(), tiny, epochs=2).history
    assert first.train_accuracy is None and second.train_accuracy == whole[1].train_accuracy


def test_a_signal_during_an_evaluation_stops_at_the_next_step(
    fit: Fit, runtime: Runtime, tiny: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate = loop.evaluate

    def interrupted(*arguments: Any, **more: Any) -> loop.Score:
        os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(*arguments, **more)

    monkeypatch.setattr(loop, "evaluate", interrupted)
    with watch_for_signals() as stop:
        fitted = fit(runtime, tiny, epochs=3, save_in=tmp_path, stop=lambda: stop.signal_number, catch=Interrupted)
    assert isinstance(fitted.error, Interrupted) and fitted.error.exit_code == 143
    assert (len(fitted.history), len(fitted.steps)) == (1, 7)
    saved, _ = newest_intact(tmp_path)
    assert saved is not None and (saved.meta.position.epoch, saved.meta.position.step) == (1, 1)


@pytest.mark.parametrize("checkpoint_every", [0, 2])
def test_checkpoints_come_every_so_many_steps_and_at_each_epochs_end(
    fit: Fit, runtime: Runtime, tiny: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checkpoint_every: int
) -> None:
    monkeypatch.setattr(module, "KEEP", 99)
    fit(runtime, tiny, epochs=2, batch_size=200, checkpoint_every=checkpoint_every, save_in=tmp_path)
    expected = ["0-3", "1-3"] if checkpoint_every == 0 else ["0-2", "0-3", "1-1", "1-3"]
    assert names(tmp_path) == [f"{place}.safetensors" for place in expected]


def test_saving_changes_nothing_of_the_training(fit: Fit, runtime: Runtime, tiny: Dataset, tmp_path: Path) -> None:
    plain = fit(runtime, tiny, epochs=2, ema=0.5)
    saved = fit(runtime, tiny, epochs=2, ema=0.5, checkpoint_every=1, save_in=tmp_path)
    assert saved.losses == plain.losses and without_seconds(saved) == without_seconds(plain)


def test_a_run_killed_before_the_score_of_its_last_epoch_is_scored_from_the_checkpoint(
    fit: Fit, make_runtime: Callable[..., Runtime], tiny: Dataset, tmp_path: Path
) -> None:
    whole = fit(make_runtime(), tiny, ema=0.7, save_in=tmp_path)
    saved, _ = newest_intact(tmp_path)
    assert saved is not None and (saved.meta.position.epoch, saved.meta.position.step) == (0, 6)
    again = fit(make_runtime(), tiny, ema=0.7, resumed=saved)
    assert again.losses == [] and without_seconds(again) == without_seconds(whole)


def test_fp16_scaling_goes_on_from_a_checkpoint(tmp_path: Path) -> None:
    """It counts in integers, and refuses others."""
    written = write_checkpoint(tmp_path, "x.safetensors", {}, replace(META, strides={}))
    scaler = torch.amp.GradScaler("cpu")
    scaler.load_state_dict(read_checkpoint(written).meta.scaler)
    weight = torch.ones(2, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=0.1)
    scaler.scale(weight.sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    assert scaler.state_dict() == META.scaler | {"_growth_tracker": 1}
