"""``python -m mnist_accel doctor`` in a sound world and in broken ones, one at a time."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import LAUNCHER_VARIABLES
from jobs import ROOT
from safetensors.torch import save_file

from mnist_accel.commands import doctor
from mnist_accel.commands.doctor import Finding
from mnist_accel.data import mnist
from mnist_accel.errors import UserError
from mnist_accel.machine import round_trip

Patch = pytest.MonkeyPatch


@pytest.fixture(autouse=True)
def sound(monkeypatch: Patch, tmp_path: Path) -> Path:
    """A world in which nothing is wrong, as far as this machine's own packages are not."""
    for name in (*LAUNCHER_VARIABLES, "OMP_NUM_THREADS", "MNIST_ACCEL_DATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("accelerate.commands.config.config_args.default_yaml_config_file", str(tmp_path / "config"))
    monkeypatch.setattr("accelerate.commands.config.config_args.default_json_config_file", str(tmp_path / "config"))
    monkeypatch.setattr(round_trip, "round_trip", lambda seconds: "")
    monkeypatch.setitem(sys.modules, "torchvision", ModuleType("torchvision"))
    monkeypatch.setattr("mnist_accel.machine.runtime.usable_cores", lambda: 2)
    space(monkeypatch, 10**12)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def space(patch: Patch, free: int) -> None:
    patch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free))


def another_torchvision(patch: Patch, here: Path) -> None:
    """One that fails as PyPI's beside a CPU build of torch: RuntimeError, and it does work without its operators."""

    def fail(name: str) -> None:
        raise RuntimeError("operator torchvision::nms does not exist")

    patch.setattr(doctor, "import_module", fail)
    patch.setattr("mnist_accel.data.torchvision_import.import_torchvision", lambda: None)


def wrong_cache(patch: Patch, here: Path) -> None:
    (here / "cache" / "mnist_accel").mkdir(parents=True)
    tensors = {file.key: torch.zeros(file.shape, dtype=torch.uint8) for file in mnist.FILES}
    save_file(tensors, here / "cache" / "mnist_accel" / "mnist.safetensors")


def wrong_folder(patch: Patch, here: Path) -> None:
    (here / "digits").mkdir()
    (here / "digits" / "train-images-idx3-ubyte").write_bytes(b"no images")
    patch.setenv("MNIST_ACCEL_DATA", str(here / "digits"))


def no_home(patch: Patch, here: Path) -> None:
    patch.setenv("XDG_CACHE_HOME", "")
    patch.setenv("HOME", str(here / "nowhere"))


# what is wrong: who finds it, how the world breaks, what is found, of which the last is in words and remedy
BROKEN: dict[str, tuple[Callable[[], list[Finding]], Callable[[Patch, Path], Any], str, str]] = {
    "a missing package": (
        doctor.packages,
        lambda patch, here: patch.setattr(doctor, "version_of", lambda name: None if name == "rich" else "2.13"),
        "fault",
        r"rich +is missing Type pip install -e \.",
    ),
    "a version that nobody tested": (
        doctor.packages,
        lambda patch, here: patch.setattr(doctor, "version_of", lambda name: "1.0"),
        "warning",
        r"torch +1\.0 is none that was tested \(.*2\.14",
    ),
    "no torchvision": (
        doctor.torchvision,
        lambda patch, here: patch.setitem(sys.modules, "torchvision", None),
        "fault",
        r"cannot be imported .* Type pip install 'torchvision==0\.\d+\.\*'",
    ),
    "a torchvision for another torch": (
        doctor.torchvision,
        another_torchvision,
        "warning",
        "built for another torch .*nms does not exist",
    ),
    "a torchvision of another number": (
        doctor.torchvision,
        lambda patch, here: (
            patch.setattr(doctor, "version_of", {"torch": "2.12.1", "torchvision": "0.28.0"}.get),
            patch.setattr(doctor, "import_module", lambda name: None),
        ),
        "warning",
        r"goes with another torch than 2\.12\.1 Type pip install 'torchvision==0\.27\.\*'",
    ),
    "a driver, and a torch without": (
        doctor.devices,
        lambda patch, here: (
            patch.setattr(torch.cuda, "is_available", lambda: False),
            patch.setattr(shutil, "which", lambda name: f"/bin/{name}"),
        ),
        "warning",
        "gpu +there is a driver, but torch",
    ),
    "one thread": (
        doctor.threads,
        lambda patch, here: patch.setenv("OMP_NUM_THREADS", "1"),
        "warning",
        "OMP_NUM_THREADS=1 in the environment: .* Unset it",
    ),
    "a forgotten config": (
        doctor.launchers,
        lambda patch, here: (here / "config").touch(),
        "warning",
        r"accelerate launch reads ~/config without .* Give --config_file accelerate_config\.yaml",
    ),
    "half a launcher": (
        doctor.launchers,
        lambda patch, here: patch.setenv("WORLD_SIZE", "2"),
        "fault",
        "WORLD_SIZE=2: set in the environment without the rest",
    ),
    "a damaged file": (doctor.data, wrong_folder, "fault", "digits: .* is (damaged|missing)"),
    "a wrong cache": (
        doctor.cache,
        wrong_cache,
        "fault",
        r"~/cache/mnist_accel/mnist\.safetensors is damaged: the SHA-256 of train_images is not .* Delete it",
    ),
    "no home": (doctor.cache, no_home, "warning", "no home folder to keep data in Set XDG_CACHE_HOME"),
    "a full disk": (doctor.folders, lambda patch, here: space(patch, 10**7), "fault", "9 MB free Make room"),
    "a disk that fills up": (doctor.folders, lambda patch, here: space(patch, 10**9), "warning", "953 MB free Make"),
    "a file in the place of runs": (
        doctor.folders,
        lambda patch, here: (here / "runs").touch(),
        "fault",
        "~/runs cannot be written: Not a directory Name another folder with out=DIR",
    ),
    "processes that do not meet": (
        doctor.processes,
        lambda patch, here: patch.setattr(round_trip, "round_trip", lambda seconds: "no route to host"),
        "fault",
        "over gloo: no route to host Name the network to use with GLOO_SOCKET_IFNAME",
    ),
}


def shown(findings: list[Finding], level: str) -> str:
    return "\n".join(" ".join(doctor.as_text(each).split()) for each in findings if each.level == level)


@pytest.mark.parametrize("wrong", BROKEN)
def test_what_is_wrong_is_found_with_what_mends_it(wrong: str, monkeypatch: Patch, sound: Path) -> None:
    check, breaks, level, words = BROKEN[wrong]
    pattern = words.replace(" +", " ")
    assert not re.search(pattern, shown(doctor.findings_of(check), level))
    breaks(monkeypatch, sound)
    assert re.search(pattern, shown(doctor.findings_of(check), level)), doctor.findings_of(check)


def test_every_check_is_broken_once() -> None:
    without = {doctor.python, doctor.extras}  # which only tell
    assert {check for check, *_ in BROKEN.values()} | without == set(doctor.CHECKS)


def test_a_sound_machine_is_told_so_in_narrow_lines(sound: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main([]) == 0
    out = capsys.readouterr().out
    assert "\nno fault, " in out and str(sound) not in out and "~/runs can be written" in out
    *findings, _, _ = out.splitlines()
    assert all(re.match(r"(ok|warning) +[a-z]|  ", line) for line in findings)
    assert all(len(line) <= doctor.WIDTH or " " not in line.strip() for line in findings)


def test_a_check_that_raises_is_a_fault_and_not_the_end(monkeypatch: Patch, capsys: pytest.CaptureFixture[str]) -> None:
    def stumbles() -> list[Finding]:
        raise OSError("no\x1b[2J such device")

    monkeypatch.setattr(doctor, "CHECKS", (stumbles, doctor.python))
    assert doctor.main([]) == 1
    first, *_, last = capsys.readouterr().out.splitlines()
    assert first == "fault   stumbles      OSError: no?[2J such device" and last == "1 fault, no warning"


def test_it_has_no_keys() -> None:
    with pytest.raises(UserError, match=r"^json=true: doctor has no keys. Type python -m mnist_accel doctor$"):
        doctor.main(["json=true"])


def test_what_extras_lack_is_no_fault(monkeypatch: Patch) -> None:
    monkeypatch.setattr(doctor, "version_of", lambda name: None if name == "matplotlib" else "1.0")
    found = {finding.about: finding for finding in doctor.extras()}
    assert {finding.level for finding in found.values()} == {"ok"} and "dev" not in found
    assert found["plot"].words == "without matplotlib; pip install -e '.[plot]' brings it"
    assert found["profile"].words.startswith("tensorboard 1.0, ")


# Real processes


@pytest.fixture
def real(monkeypatch: Patch) -> None:
    monkeypatch.undo()
    for name in LAUNCHER_VARIABLES:
        monkeypatch.delenv(name, raising=False)


def test_processes_that_take_too_long_are_ended(real: None, tmp_path: Path, monkeypatch: Patch) -> None:
    hangs = tmp_path / "python"
    hangs.write_text("#!/bin/sh\nexec sleep 1000\n")
    hangs.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(hangs))
    assert round_trip.round_trip(0.01) == "no answer within 0.01 s"


@pytest.mark.slow
def test_a_network_that_is_not_there_is_told(real: None, monkeypatch: Patch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "none0")
    assert "none0" in round_trip.round_trip(120)


@pytest.mark.slow
def test_the_verb_itself(clean_environment: dict[str, str], real: None) -> None:
    command = [sys.executable, "-m", "mnist_accel", "doctor"]
    own = clean_environment | {"HOME": os.path.expanduser("~")}
    ended = subprocess.run(command, cwd=ROOT, env=own, capture_output=True, text=True, timeout=240)
    assert (ended.returncode, ended.stderr) == (0, ""), ended.stdout
    assert "two of them add up over gloo" in ended.stdout and "synthetic-v1-seed0.safetensors" in ended.stdout
