"""Check this machine: packages, devices, data, disk, processes. What to paste into an issue."""

import os
import platform
import shutil
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import import_module, metadata
from pathlib import Path
from typing import TYPE_CHECKING

import mnist_accel
from mnist_accel import cli
from mnist_accel.blame import what_of
from mnist_accel.console import report
from mnist_accel.errors import UserError, printable
from mnist_accel.files import nearest_there, refuse_unwritable

if TYPE_CHECKING:
    from packaging.requirements import Requirement

USAGE = "python -m mnist_accel doctor"
WIDTH = 80  # of an issue's text
INDENT = " " * 22
INSTALL = "Type pip install -e . in the checkout"
MB = 2**20
TIGHT, ROOMY = 200 * MB, 2048 * MB  # a run and the cached data take 60 MB, a trace as much again
GLOO_SECONDS = 120.0  # of which two imports of torch take most, on a busy machine


@dataclass(frozen=True)
class Finding:
    level: str  # "ok", "warning" or "fault"
    about: str
    words: str
    remedy: str = ""


def main(argv: list[str]) -> int:
    console = report.make_console()
    if any(word in cli.HELP_WORDS for word in argv):
        console.print(f"{USAGE}   tells what is wrong with this machine; it has no keys, and downloads nothing")
        return 0
    if argv:
        raise UserError(f"{argv[0]}: doctor has no keys. Type {USAGE}")
    levels = []
    for check in CHECKS:
        for finding in findings_of(check):
            levels.append(finding.level)
            console.print(as_text(finding), markup=False, soft_wrap=True)
    faults, warnings = levels.count("fault"), levels.count("warning")
    console.print(f"\n{counted(faults, 'fault')}, {counted(warnings, 'warning')}")
    return 1 if faults else 0


def counted(number: int, what: str) -> str:
    return f"{number or 'no'} {what}{'s'[: number > 1]}"


def findings_of(check: Callable[[], list[Finding]]) -> list[Finding]:
    """What a check does not expect is a fault like any other."""
    about = check.__name__.replace("_", " ")
    try:
        return check()
    except UserError as error:
        return [Finding("fault", about, str(error))]
    except Exception as error:
        return [Finding("fault", about, what_of(error), INSTALL if isinstance(error, ImportError) else "")]


def as_text(finding: Finding) -> str:
    """One paragraph, the home folder as ~: it is meant to be published."""
    home = os.path.expanduser("~")
    paragraphs = [f"{finding.level:<8}{finding.about:<14}{finding.words}", *filter(None, [INDENT + finding.remedy])]
    lines: list[str] = []
    for paragraph in paragraphs:
        shown = printable(" ".join(paragraph.splitlines()))
        shown = shown.replace(f"{home}/", "~/") if len(home) > 1 else shown
        wrap = textwrap.TextWrapper(WIDTH, subsequent_indent=INDENT, break_long_words=False, break_on_hyphens=False)
        lines += wrap.wrap(shown)
    return "\n".join(lines)


# The checks: a function each


def python() -> list[Finding]:
    place = Path(mnist_accel.__file__).parent
    return [
        Finding("ok", "python", f"{platform.python_version()} ({sys.executable}), {platform.platform()}"),
        Finding("ok", "mnist_accel", f"{mnist_accel.__version__} in {place}"),
    ]


def packages() -> list[Finding]:
    from packaging.requirements import Requirement

    try:
        declared = metadata.requires("mnist_accel") or []
    except metadata.PackageNotFoundError:
        return [Finding("warning", "packages", "mnist_accel is not installed, so no versions are known", INSTALL)]
    return [package(wanted.name, wanted) for wanted in map(Requirement, declared) if wanted.marker is None]


def package(name: str, wanted: "Requirement") -> Finding:
    version = version_of(name)
    if version is None:
        return Finding("fault", name, "is missing", INSTALL)
    if not wanted.specifier.contains(version, prereleases=True):
        return Finding("warning", name, f"{version} is none that was tested ({wanted.specifier})", INSTALL)
    return Finding("ok", name, f"{version} ({wanted.specifier})")


def version_of(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def torchvision() -> list[Finding]:
    """Only its list of mirrors is used, so that a broken one may still do."""
    from mnist_accel.data.torchvision_import import import_torchvision

    minor = int((version_of("torch") or "2.0").split(".")[1])
    fitting = f"0.{minor + 15}"  # 0.28 goes with torch 2.13, and so on
    remedy = f"Type pip install 'torchvision=={fitting}.*', from the index that torch came from"
    try:
        import_module("torchvision")
    except ImportError as error:
        return [Finding("fault", "torchvision", f"cannot be imported ({what_of(error)})", remedy)]
    except Exception as error:
        import_torchvision()  # where that fails too, it is a fault
        words = f"was built for another torch ({what_of(error)}); it can still tell where MNIST lies"
        return [Finding("warning", "torchvision", words, remedy)]
    if not (version_of("torchvision") or fitting).startswith(f"{fitting}."):
        return [Finding("warning", "torchvision", f"goes with another torch than {version_of('torch')}", remedy)]
    return [Finding("ok", "torchvision", "fits this torch")]


def devices() -> list[Finding]:
    import torch

    from mnist_accel.machine.runtime import cpu_name, usable_cores

    product = torch.ones(8, 8, dtype=torch.bfloat16) @ torch.ones(8, 8, dtype=torch.bfloat16)
    assert product.sum().item() == 512, "bf16 does not add up"
    found = [Finding("ok", "cpu", f"{cpu_name()}, {usable_cores()} cores, fp32 and bf16")]
    if torch.cuda.is_available():
        return found + [gpu(index) for index in range(torch.cuda.device_count())]
    if shutil.which("nvidia-smi") is None:
        return [*found, Finding("ok", "gpu", "none")]
    why = "is built for CPUs" if torch.version.cuda is None else f"for CUDA {torch.version.cuda} sees no GPU"
    remedy = "Type nvidia-smi to see the driver, and install the torch that pytorch.org names for it"
    return [*found, Finding("warning", "gpu", f"there is a driver, but torch {torch.__version__} {why}", remedy)]


def gpu(index: int) -> Finding:
    import torch

    with torch.cuda.device(index):
        assert torch.ones(8, device="cuda").sum().item() == 8, "a GPU does not add up"
        free, total = torch.cuda.mem_get_info()
        supported = {"tf32": torch.cuda.is_tf32_supported(), "bf16": torch.cuda.is_bf16_supported(), "fp16": True}
        precisions = ", ".join(["fp32", *(name for name, here in supported.items() if here)])
        words = f"{torch.cuda.get_device_name()}, {free // MB:,} of {total // MB:,} MB free, {precisions}"
    return Finding("ok", f"gpu {index}", words)


def threads() -> list[Finding]:
    from mnist_accel.machine.runtime import usable_cores

    cores, said = usable_cores(), os.environ.get("OMP_NUM_THREADS")
    if said is not None and said != str(cores):
        remedy = "Unset it, for the sake of other programs; for fewer threads here type threads=N"
        words = f"OMP_NUM_THREADS={said} in the environment: a run shares out all {cores} cores whatever it says"
        return [Finding("warning", "threads", words, remedy)]
    return [Finding("ok", "threads", f"{cores}, shared out over the processes of a machine")]


def launchers() -> list[Finding]:
    from mnist_accel.machine.launcher import check_launcher, default_configs

    check_launcher()
    remedy = "Give --config_file accelerate_config.yaml to it, or move that file away"
    found = [
        Finding("warning", "launchers", f"accelerate launch reads {file} without being told to", remedy)
        for file in default_configs()
    ]
    return found or [Finding("ok", "launchers", "no default config that accelerate launch would read")]


def data() -> list[Finding]:
    from mnist_accel.data import mnist
    from mnist_accel.data.dataset import DATA_DIR_VARIABLE

    folder = os.environ.get(DATA_DIR_VARIABLE)
    if not folder:
        return [Finding("ok", "data", f"{DATA_DIR_VARIABLE} is not set: MNIST is taken from the cache, or downloaded")]
    mnist.read_folder(folder, f"{DATA_DIR_VARIABLE}={folder}", mnist.FILES)
    return [Finding("ok", "data", f"MNIST in {folder} ({DATA_DIR_VARIABLE}), every byte as published")]


def cache() -> list[Finding]:
    from mnist_accel.data.cache import cache_folder, read_cached
    from mnist_accel.data.mnist import FILES

    folder = cache_folder()
    if folder is None:
        remedy = "Set XDG_CACHE_HOME to a folder, or each run downloads or draws anew"
        return [Finding("warning", "cache", "there is no home folder to keep data in", remedy)]
    found = []
    for path in sorted(folder.glob("*.safetensors")):
        # Of drawn digits the file itself says what they must be.
        files = FILES if path.stem == "mnist" else [replace(file, sha256=None) for file in FILES]
        _, damage = read_cached(path, files)
        if damage:
            remedy = "Delete it; the next run downloads or draws it again"
            found.append(Finding("fault", "cache", f"{path} is damaged: {damage}", remedy))
        else:
            found.append(Finding("ok", "cache", f"{path}, every byte as it should be"))
    return found or [Finding("ok", "cache", f"nothing in {folder} yet")]


def folders() -> list[Finding]:
    from mnist_accel.data.cache import cache_folder

    found = [folder("runs", Path("runs"), "Name another folder with out=DIR")]
    if cached := cache_folder():
        found.append(folder("cache folder", cached, "Set XDG_CACHE_HOME to another folder"))
    return found


def folder(about: str, path: Path, remedy: str) -> Finding:
    try:
        refuse_unwritable(path)
    except OSError as error:
        return Finding("fault", about, f"{path.absolute()} cannot be written: {error.strerror}", remedy)
    free = shutil.disk_usage(nearest_there(path)).free
    words = f"{path.absolute()} can be written, {free // MB:,} MB free"
    if free < ROOMY:
        return Finding("fault" if free < TIGHT else "warning", about, words, f"Make room. {remedy}")
    return Finding("ok", about, words)


def processes() -> list[Finding]:
    from mnist_accel.machine.round_trip import round_trip

    if wrong := round_trip(GLOO_SECONDS):
        remedy = "Name the network to use with GLOO_SOCKET_IFNAME (lo on one machine); one process works without"
        return [Finding("fault", "processes", f"two of them cannot reach each other over gloo: {wrong}", remedy)]
    return [Finding("ok", "processes", "two of them add up over gloo")]


def extras() -> list[Finding]:
    """What is not needed to train."""
    from packaging.requirements import Requirement

    try:
        declared = [Requirement(text) for text in metadata.requires("mnist_accel") or []]
    except metadata.PackageNotFoundError:
        return []  # told above
    names = sorted(set(metadata.metadata("mnist_accel").get_all("Provides-Extra") or []) - {"dev"})
    return [
        extra(name, [each.name for each in declared if each.marker and each.marker.evaluate({"extra": name})])
        for name in names
    ]


def extra(name: str, wanted: list[str]) -> Finding:
    if missing := [package for package in wanted if version_of(package) is None]:
        return Finding("ok", name, f"without {', '.join(missing)}; pip install -e '.[{name}]' brings it")
    return Finding("ok", name, ", ".join(f"{package} {version_of(package)}" for package in wanted))


CHECKS = (
    python,
    packages,
    torchvision,
    devices,
    threads,
    launchers,
    data,
    cache,
    folders,
    processes,
    extras,
)
