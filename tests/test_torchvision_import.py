"""torchvision beside a torch that it was not built for."""

import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from mnist_accel.data import mnist
from mnist_accel.data.download import DownloadError
from mnist_accel.data.torchvision_import import import_torchvision

# What torchvision does at import, cut down: submodules first, then descriptions of operators that may be missing.
MISSING_OPERATORS = """
import torch, torchvision.extension
@torch.library.register_fake("torchvision::absent")
def describe(boxes):
    raise NotImplementedError
@torch.library.register_fake("torchvision::absent_too")
def describe_too(boxes):
    raise NotImplementedError
assert torchvision.extension.loaded is False
"""
LOADS_LIBRARY = """
import torch
try:
    torch.ops.load_library("operators.so")
    loaded = True
except OSError:
    loaded = False
if loaded:
    raise RuntimeError("compiled with different CUDA major versions")
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An importable torchvision in the place of the one that may be installed."""
    ours = {name for name in sys.modules if name.split(".")[0] == "torchvision"}
    for name in ours:
        monkeypatch.delitem(sys.modules, name)
    folder = tmp_path / "torchvision"
    folder.mkdir()
    (folder / "__init__.py").write_text("from . import extension, operators\nfrom . import datasets\n")
    (folder / "datasets.py").write_text("class MNIST:\n    mirrors = ['http://m/']\n    resources = [('a', 'b')]\n")
    (folder / "extension.py").write_text("loaded = False\n")
    (folder / "operators.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    yield folder
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]


def test_operators_that_do_not_exist_stop_nobody(package: Path) -> None:
    (package / "operators.py").write_text(MISSING_OPERATORS)
    with pytest.raises(RuntimeError, match="operator torchvision::absent does not exist"):
        importlib.import_module("torchvision")
    register_fake, load_library = torch.library.register_fake, torch.ops.load_library
    torchvision = import_torchvision()
    assert mnist.published_lists() == (["http://m/"], {"a": "b"})
    assert torchvision.extension.loaded is False
    assert import_torchvision() is torchvision
    assert (torch.library.register_fake, torch.ops.load_library) == (register_fake, load_library)


def test_a_library_for_another_cuda_stops_nobody(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (package / "extension.py").write_text(LOADS_LIBRARY)
    monkeypatch.setattr(torch.ops, "load_library", lambda path: None)
    assert import_torchvision().extension.loaded is False


def test_a_torchvision_that_fits_is_imported_as_it_is(package: Path) -> None:
    (package / "extension.py").write_text("import torch\nbefore = torch.library.register_fake\n")
    assert import_torchvision().extension.before is torch.library.register_fake


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("raise ImportError('no module named PIL')", "no module named PIL"),
        ("raise RuntimeError('broken\\nin two lines')", "broken in two lines"),
        ("import nothing_of_this_name", "nothing_of_this_name"),
    ],
)
def test_one_that_cannot_be_imported_is_a_reason_to_have_no_mnist(package: Path, code: str, reason: str) -> None:
    (package / "operators.py").write_text(code)
    with pytest.raises(DownloadError, match=f"torchvision, which knows the mirrors, cannot be imported .*{reason}"):
        mnist.published_lists()


USE_IT = """
from mnist_accel.data.torchvision_import import import_torchvision
torchvision = import_torchvision()
from PIL import Image
from torchvision import datasets, transforms
from torchvision.transforms import v2
image = Image.new("L", (28, 28))
pipeline = [transforms.RandomAffine(10, (0.1, 0.1)), transforms.ToTensor(), transforms.Normalize((0.1,), (0.3,))]
assert transforms.Compose(pipeline)(image).shape == (1, 28, 28)
assert v2.RandomRotation(10)(transforms.ToTensor()(image)).shape == (1, 28, 28)
assert [name for name, md5 in datasets.MNIST.resources if len(md5) == 32] == [
    "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz",
]
assert all(mirror.startswith("http") for mirror in datasets.MNIST.mirrors)
"""


@pytest.mark.skipif(importlib.util.find_spec("torchvision") is None, reason="torchvision is not installed")
def test_the_installed_torchvision_works_whatever_it_was_built_for() -> None:
    root = Path(mnist.__file__).parents[2]
    run = subprocess.run([sys.executable, "-c", USE_IT], cwd=root, capture_output=True, text=True, timeout=60)
    assert run.stderr == ""
    assert run.returncode == 0
