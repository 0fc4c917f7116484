"""Which data set a run gets, and why; and folders of the user's, which are read and never written to."""

import gzip
import hashlib
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mnist_accel.data import mnist, synthetic
from mnist_accel.data.dataset import Dataset, hold_out, load_dataset
from mnist_accel.data.download import DownloadError
from mnist_accel.errors import UserError

real_fetch = mnist.fetch
REAL_MNIST = os.environ.get("MNIST_ACCEL_DATA")
TRAIN, TEST = 40, 10


def small_tensors(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for part, count in (("train", TRAIN), ("test", TEST)):
        tensors[f"{part}_images"] = torch.randint(256, (count, 28, 28), generator=generator, dtype=torch.uint8)
        tensors[f"{part}_labels"] = torch.arange(count) % 10
    return tensors


def unpacked(tensor: Tensor) -> bytes:
    sizes = b"".join(size.to_bytes(4, "big") for size in tensor.shape)
    return bytes([0, 0, 8, tensor.ndim]) + sizes + tensor.to(torch.uint8).numpy().tobytes()


@pytest.fixture(autouse=True)
def small_mnist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """MNIST with 40 and 10 images, a synthetic set of the same size, an empty cache, and no network."""
    tensors = small_tensors(seed=1)
    files = [
        replace(
            file, shape=tuple(tensors[file.key].shape), sha256=hashlib.sha256(unpacked(tensors[file.key])).hexdigest()
        )
        for file in mnist.FILES
    ]
    monkeypatch.setattr(mnist, "FILES", tuple(files))
    monkeypatch.setattr(mnist, "fetch", no_network)
    monkeypatch.setattr(synthetic, "draw_dataset", lambda seed: small_tensors(seed=2))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("MNIST_ACCEL_DATA", raising=False)
    return tensors


def no_network(files: object) -> tuple[dict[str, Tensor], str]:
    raise DownloadError("a.org: Name or service not known; b.org: answers 404")


def network(tensors: dict[str, Tensor]):
    as_bytes = {key: tensor.to(torch.uint8) for key, tensor in tensors.items()}
    return lambda files: (as_bytes, "downloaded from a.org")


@pytest.fixture
def folder(tmp_path: Path, small_mnist: dict[str, Tensor]) -> Path:
    raw = tmp_path / "data" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for file in mnist.FILES:
        (raw / f"{file.name}.gz").write_bytes(gzip.compress(unpacked(small_mnist[file.key])))
    return tmp_path / "data"


def is_small_mnist(data: Dataset, tensors: dict[str, Tensor]) -> bool:
    return data.name == "mnist" and all(torch.equal(getattr(data, key), tensors[key]) for key in tensors)


def listing(folder: Path) -> list[tuple[str, int, int]]:
    return sorted((str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*"))


def unpack(folder: Path) -> None:
    for path in list(folder.rglob("*.gz")):
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()


# Where it comes from


@pytest.mark.parametrize("where", ["", "MNIST", "MNIST/raw"])
@pytest.mark.parametrize("packed", [True, False])
def test_a_folder_is_read_and_not_written_to(
    folder: Path, small_mnist: dict[str, Tensor], packed: bool, where: str
) -> None:
    if not packed:
        unpack(folder)
    before = listing(folder)
    data = load_dataset("auto", str(folder / where))
    assert is_small_mnist(data, small_mnist)
    assert data.reason == f"found in {folder / where} (data_dir)"
    assert data.train_labels.dtype == data.test_labels.dtype == torch.int64
    assert listing(folder) == before


def test_the_variable_names_a_folder_too_and_the_key_comes_first(
    folder: Path, small_mnist: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MNIST_ACCEL_DATA", str(folder))
    assert load_dataset("mnist").reason == f"found in {folder} (MNIST_ACCEL_DATA)"
    assert load_dataset("synthetic").name == "synthetic"
    with pytest.raises(UserError, match=r"^data_dir=/nowhere: "):
        load_dataset("auto", "/nowhere")
    monkeypatch.setenv("MNIST_ACCEL_DATA", "")
    assert load_dataset("auto").name == "synthetic"


def test_the_checksum_is_the_same_however_the_data_came(
    folder: Path, small_mnist: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = load_dataset("mnist", str(folder))
    monkeypatch.setattr(mnist, "fetch", network(small_mnist))
    downloaded = load_dataset("mnist")
    monkeypatch.setattr(mnist, "fetch", no_network)
    cached = load_dataset("mnist")
    assert downloaded.reason == "downloaded from a.org"
    assert cached.reason.startswith("cached in ")
    assert is_small_mnist(downloaded, small_mnist)
    assert is_small_mnist(cached, small_mnist)
    assert found.checksum == downloaded.checksum == cached.checksum != load_dataset("synthetic").checksum


def test_a_warm_start_does_not_import_torchvision(
    small_mnist: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mnist, "fetch", network(small_mnist))
    load_dataset()
    monkeypatch.setattr(mnist, "fetch", real_fetch)
    monkeypatch.setattr(mnist, "import_torchvision", lambda: pytest.fail("imported torchvision"))
    assert load_dataset().reason.startswith("cached in ")


def test_auto_falls_back_and_says_why() -> None:
    first, second = load_dataset(), load_dataset()
    why = "MNIST could not be downloaded: a.org: Name or service not known; b.org: answers 404; "
    assert first.name == second.name == "synthetic"
    assert first.reason == f"{why}drawn by mnist_accel"
    assert second.reason.startswith(f"{why}cached in ")
    assert first.checksum == second.checksum
    assert torch.equal(first.train_images, second.train_images)
    assert first.train_labels.dtype == second.train_labels.dtype == torch.int64


def test_mnist_that_is_not_to_be_had_is_one_line_with_its_remedy() -> None:
    with pytest.raises(UserError) as caught:
        load_dataset("mnist")
    assert str(caught.value) == (
        "dataset=mnist: MNIST could not be downloaded: a.org: Name or service not known; b.org: answers 404. "
        "Set data_dir or MNIST_ACCEL_DATA to a folder that holds MNIST/raw, or give dataset=synthetic"
    )


def test_a_damaged_synthetic_cache_is_drawn_again(tmp_path: Path) -> None:
    intact = load_dataset("synthetic")
    path = tmp_path / "cache" / "mnist_accel" / f"synthetic-v{synthetic.SYNTHETIC_VERSION}-seed0.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    repaired = load_dataset("synthetic")
    assert repaired.reason.startswith("dataset=synthetic; drawn by mnist_accel; the cached copy was damaged (")
    assert repaired.checksum == intact.checksum


# Folders that are named and of no use: an error that names what is wrong, never another data set


@pytest.mark.parametrize("dataset", ["auto", "mnist"])
def test_a_folder_without_the_files_is_an_error(tmp_path: Path, dataset: str) -> None:
    with pytest.raises(UserError) as caught:
        load_dataset(dataset, str(tmp_path))
    assert str(caught.value) == (
        f"data_dir={tmp_path}: no MNIST files there (looked for train-images-idx3-ubyte[.gz] in MNIST/raw, raw and "
        "the folder itself). Give the folder that holds MNIST/raw"
    )


def test_a_folder_that_is_none_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    for given in (tmp_path / "file", tmp_path / "gone", ""):
        with pytest.raises(UserError, match=f"^data_dir={given}: there is no such folder. Give "):
            load_dataset("auto", str(given))
    monkeypatch.setenv("MNIST_ACCEL_DATA", "/nowhere")
    with pytest.raises(UserError, match=r"^MNIST_ACCEL_DATA=/nowhere: "):
        load_dataset()


def test_a_missing_file_is_named(folder: Path) -> None:
    (folder / "MNIST/raw/t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(UserError, match=r"MNIST/raw/t10k-labels-idx1-ubyte\[\.gz\] is missing"):
        load_dataset("auto", str(folder))


def replace_last_bytes(path: Path, end: bytes) -> None:
    path.write_bytes(path.read_bytes()[: -len(end)] + end)


@pytest.mark.parametrize(
    ("name", "damage", "reason"),
    [
        ("train-images-idx3-ubyte", lambda path: os.truncate(path, 5_000), "ends after 5,000 of 31,376 bytes"),
        ("train-images-idx3-ubyte", lambda path: os.truncate(path, 0), "begins with nothing instead of 00000803"),
        ("t10k-images-idx3-ubyte", lambda path: os.truncate(path, 50_000), "has more than 7,856 bytes"),
        ("t10k-labels-idx1-ubyte", lambda path: replace_last_bytes(path, b"\x05"), "its SHA-256 is not that of"),
        ("t10k-labels-idx1-ubyte", lambda path: (path.unlink(), path.mkdir()), "it is not a file"),
        ("t10k-labels-idx1-ubyte", lambda path: (path.unlink(), path.symlink_to("x")), "it is not a file"),
    ],
)
def test_a_damaged_unpacked_file_is_named(folder: Path, name: str, damage, reason: str) -> None:
    unpack(folder)
    path = folder / "MNIST" / "raw" / name
    damage(path)
    with pytest.raises(UserError) as caught:
        load_dataset("auto", str(folder))
    assert str(caught.value).startswith(f"data_dir={folder}: {path} is damaged: {reason}")
    assert str(caught.value).endswith(". Replace it with the original file")


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: os.truncate(path, path.stat().st_size - 9),
        lambda path: os.truncate(path, path.stat().st_size // 2),
        lambda path: os.truncate(path, 0),
        lambda path: path.write_bytes(b"not a gzip file"),
        lambda path: replace_last_bytes(path, b"\x00" * 6),
        lambda path: path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()) + bytes(2**20))),
    ],
)
def test_a_damaged_gz_is_named(folder: Path, damage) -> None:
    path = folder / "MNIST/raw/t10k-images-idx3-ubyte.gz"
    damage(path)
    with pytest.raises(UserError) as caught:
        load_dataset("auto", str(folder))
    assert str(caught.value).startswith(f"data_dir={folder}: {path} is damaged: ")
    assert "\n" not in str(caught.value)


def test_the_unpacked_file_goes_before_the_gz_and_the_remedy_knows_of_both(
    folder: Path, small_mnist: dict[str, Tensor], tmp_path: Path
) -> None:
    packed = tmp_path / "packed"
    shutil.copytree(folder, packed)
    unpack(folder)
    shutil.copytree(packed, folder, dirs_exist_ok=True)
    gz = folder / "MNIST/raw/train-images-idx3-ubyte.gz"
    intact = gz.read_bytes()
    gz.write_bytes(b"damaged, but nobody reads it")
    assert is_small_mnist(load_dataset("mnist", str(folder)), small_mnist)
    gz.write_bytes(intact)
    os.truncate(gz.with_suffix(""), 1_000)
    with pytest.raises(UserError, match=r"Delete it to use train-images-idx3-ubyte\.gz$"):
        load_dataset("mnist", str(folder))


# Held-out images


def test_held_out_images_come_from_the_training_set_and_leave_it(folder: Path) -> None:
    data = load_dataset("mnist", str(folder))
    part = hold_out(data, 12)
    assert (len(part.train_images), len(part.test_images)) == (TRAIN - 12, 12)
    pairs = list(zip([*part.train_images, *part.test_images], [*part.train_labels, *part.test_labels], strict=True))
    everything = {(image.numpy().tobytes(), int(label)) for image, label in pairs}
    assert everything == {
        (image.numpy().tobytes(), int(label)) for image, label in zip(data.train_images, data.train_labels, strict=True)
    }
    assert len(everything) == TRAIN
    assert part.checksum == data.checksum
    assert part.reason == f"{data.reason}; scored on 12 held-out training images"


def test_the_held_out_images_are_the_same_whatever_the_seed() -> None:
    data = load_dataset("synthetic")
    torch.manual_seed(1)
    first = hold_out(data, 5)
    torch.manual_seed(2)
    assert torch.equal(first.test_images, hold_out(data, 5).test_images)


@pytest.mark.parametrize("count", [0, -1, TRAIN, TRAIN + 1])
def test_as_many_as_there_are_cannot_be_held_out(count: int) -> None:
    with pytest.raises(UserError, match=f"^validation={count}: give 1 to {TRAIN - 1} of the {TRAIN} training images"):
        hold_out(load_dataset("synthetic"), count)


# The real thing


@pytest.mark.skipif(not REAL_MNIST, reason="set MNIST_ACCEL_DATA to a folder with the real MNIST")
def test_the_real_mnist_is_recognised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    before = listing(Path(str(REAL_MNIST)))
    data = load_dataset("mnist", REAL_MNIST)
    assert data.train_images.shape == (60_000, 28, 28)
    assert data.test_images.shape == (10_000, 28, 28)
    assert data.train_labels.bincount().tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert data.test_labels.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert listing(Path(str(REAL_MNIST))) == before


def test_the_header_is_that_of_the_original_file() -> None:
    assert mnist.idx_header((60_000, 28, 28)).hex() == "000008030000ea600000001c0000001c"
    assert mnist.idx_header((10_000,)).hex() == "0000080100002710"
