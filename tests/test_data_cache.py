"""The cache: whole or absent, verified, shared by processes, repaired, and done without where it cannot be."""

import errno
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file, save_file
from torch import Tensor

from mnist_accel.data import mnist
from mnist_accel.data.cache import Loaded, cache_folder, load_or_make
from mnist_accel.data.download import DownloadError
from mnist_accel.data.mnist import IdxFile
from mnist_accel.errors import UserError

FILES = (IdxFile("images", (5, 4, 4), None), IdxFile("labels", (5,), None))


class Maker:
    """A stand-in for a download that counts itself."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> tuple[dict[str, Tensor], str]:
        self.calls += 1
        images = torch.arange(80, dtype=torch.uint8).reshape(5, 4, 4)
        return {"images": images, "labels": torch.tensor([0, 1, 2, 3, 9], dtype=torch.uint8)}, "made"


@pytest.fixture
def make() -> Maker:
    return Maker()


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "mnist_accel"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def same(loaded: Loaded, other: Loaded) -> bool:
    return loaded.digests == other.digests and all(
        torch.equal(loaded.tensors[key], other.tensors[key]) for key in ("images", "labels")
    )


def test_the_second_time_it_is_cached(make: Maker, folder: Path) -> None:
    first = load_or_make("data", FILES, make)
    second = load_or_make("data", FILES, make)
    assert (first.origin, second.origin) == ("made", f"cached in {folder}")
    assert make.calls == 1
    assert same(first, second)
    assert names(folder) == ["data.lock", "data.safetensors"]


def rewrite(path: Path, **changed: Tensor) -> None:
    save_file({**load_file(path), **changed}, path, metadata={"images": "0" * 64, "labels": "0" * 64})


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda path: path.write_bytes(b""), "damaged"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "damaged"),
        (lambda path: path.write_bytes(b"\xff" * 500), "damaged"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\x01"), "SHA-256"),
        (lambda path: rewrite(path), "SHA-256"),
        (lambda path: rewrite(path, labels=torch.zeros(5)), "not bytes"),
        (lambda path: rewrite(path, images=torch.zeros(4, 4, 4, dtype=torch.uint8)), "not bytes [5, 4, 4]"),
        (lambda path: rewrite(path, more=torch.zeros(1)), "holds"),
    ],
)
def test_a_damaged_file_is_replaced_and_that_is_said(make: Maker, folder: Path, damage, said: str) -> None:
    intact = load_or_make("data", FILES, make)
    damage(folder / "data.safetensors")
    repaired = load_or_make("data", FILES, make)
    assert repaired.origin.startswith("made; the cached copy was damaged (")
    assert said in repaired.origin
    assert same(repaired, intact)
    assert load_or_make("data", FILES, make).origin.startswith("cached in")
    assert make.calls == 2


def test_a_cached_file_cannot_pass_for_one_that_is_known_in_advance(make: Maker, folder: Path) -> None:
    load_or_make("data", FILES, make)
    known = tuple(replace(file, sha256="1" * 64) for file in FILES)
    with pytest.raises(DownloadError, match="the cached copy was damaged"):
        load_or_make("data", known, refuse)


def refuse() -> tuple[dict[str, Tensor], str]:
    raise DownloadError("no network")


def test_a_folder_in_the_place_of_the_file_is_lived_with(make: Maker, folder: Path) -> None:
    (folder / "data.safetensors").mkdir(parents=True)
    assert load_or_make("data", FILES, make).origin == "made; not cached: Is a directory"
    assert names(folder) == ["data.lock", "data.safetensors"]


def test_where_nothing_can_be_written_it_goes_on(make: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert load_or_make("data", FILES, make).origin == "made; not cached: Not a directory"
    with pytest.raises(DownloadError, match="no network"):
        load_or_make("data", FILES, refuse)


def test_a_full_disk_leaves_nothing_half_written(make: Maker, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)
    assert load_or_make("data", FILES, make).origin == "made; not cached: No space left on device"
    assert names(folder) == ["data.lock"]


def test_the_folder_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_folder() == tmp_path / "mnist_accel"
    monkeypatch.setenv("HOME", str(tmp_path))
    for unset in ("", "relative/path"):
        monkeypatch.setenv("XDG_CACHE_HOME", unset)
        assert cache_folder() == tmp_path / ".cache" / "mnist_accel"


def test_without_a_home_there_is_no_cache(make: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "gone"))
    assert load_or_make("data", FILES, make).origin == "made; not cached: there is no home folder"
    assert not (tmp_path / "gone").exists()


def test_the_home_folder_is_shown_as_a_tilde(make: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    load_or_make("data", FILES, make)
    assert load_or_make("data", FILES, make).origin == "cached in ~/.cache/mnist_accel"


def test_a_warm_start_needs_no_lock(make: Maker, folder: Path) -> None:
    load_or_make("data", FILES, make)
    with FileLock(folder / "data.lock"):
        assert load_or_make("data", FILES, make, lock_seconds=0).origin.startswith("cached in")


def test_a_lock_that_stays_held_is_named(make: Maker, folder: Path) -> None:
    folder.mkdir()
    with FileLock(folder / "data.lock"), pytest.raises(UserError) as caught:
        load_or_make("data", FILES, make, lock_seconds=0.1)
    assert str(caught.value).startswith(f"{folder}/data.lock: another run has held this lock for 0.1 s. ")
    assert make.calls == 0


def test_a_failure_is_no_verdict_on_the_next_attempt(make: Maker, folder: Path) -> None:
    with pytest.raises(DownloadError, match=r"^no network$"):
        load_or_make("data", FILES, refuse)
    assert names(folder) == ["data.lock"]
    assert load_or_make("data", FILES, make, lock_seconds=0.1).origin == "made"


KILLED_AS_IT_WRITES = """
import os, time, torch
from mnist_accel.data.cache import load_or_make
from mnist_accel.data.mnist import IdxFile

def stop(_):
    print("writing", flush=True)
    time.sleep(60)

os.fsync = stop
file = IdxFile("labels", (5,), None)
load_or_make("data", [file], lambda: ({"labels": torch.zeros(5, dtype=torch.uint8)}, "made"))
"""


def test_a_killed_process_blocks_nobody_and_its_leftovers_go(make: Maker, folder: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED_AS_IT_WRITES],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(mnist.__file__).parents[2],
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert names(folder) == [f".data.safetensors.{process.pid}", "data.lock"]
    assert load_or_make("data", FILES, make, lock_seconds=10).origin == "made"
    assert names(folder) == ["data.lock", "data.safetensors"]
