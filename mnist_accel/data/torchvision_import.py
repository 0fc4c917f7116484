"""Imports torchvision beside a torch that it was not built for.

PyPI's torchvision next to a CPU build of torch fails at import with ``operator torchvision::nms does not exist``:
its compiled operators do not load, and it then describes operators that are not there. Its data sets and transforms
need none of them, so a second attempt imports it without.
"""

import importlib
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch


def import_torchvision() -> ModuleType:
    """torchvision, with working ``datasets`` and ``transforms``; its compiled operators may be missing.

    Later ``import torchvision…`` statements of the same process find the same module. Raises ImportError where
    torchvision is not installed, and whatever it raises where it cannot be imported at all.
    """
    try:
        return importlib.import_module("torchvision")
    except (RuntimeError, AttributeError, AssertionError):  # a missing operator, another CUDA, its version
        forget_half_imported()
    with without_compiled_operators():
        return importlib.import_module("torchvision")


def forget_half_imported() -> None:
    """Drops the submodules that a failed import leaves behind: a new parent would not get them as attributes."""
    for name in [name for name in sys.modules if name == "torchvision" or name.startswith("torchvision.")]:
        del sys.modules[name]


@contextmanager
def without_compiled_operators() -> Iterator[None]:
    """While torchvision is imported, loads no compiled library and skips descriptions of its operators.

    Skipping needs no list of operators: 0.24 describes ``nms`` unconditionally, 0.28 ``nms`` and ``qnms``. The library
    is not loaded because one built for another CUDA does load, and then stops the import by a check of versions.
    """
    load_library, register_fake = torch.ops.load_library, torch.library.register_fake

    def refuse_library(path: Any) -> None:
        raise OSError(f"{path}: built for another torch")

    def register_other_fake(op: Any, *args: Any, **options: Any) -> Any:
        if not str(op).startswith("torchvision::"):
            return register_fake(op, *args, **options)
        return lambda function: function

    torch.ops.load_library = refuse_library  # type: ignore[method-assign]
    torch.library.register_fake = register_other_fake
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the image and video libraries that are not loaded
            yield
    finally:
        torch.ops.load_library = load_library  # type: ignore[method-assign]
        torch.library.register_fake = register_fake
