"""Processes and jobs that start at once with an empty cache: the data is fetched or drawn once, and nothing is left."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from jobs import ROOT, Begin, result_of
from mirror import Server
from test_data_download import SHAPES, small_archive

WORDS = ("recipe=onepoch", "batch_size=6", "threads=1", "dry_run=true")
FIRST_FILE = "train-images-idx3-ubyte.gz"


def counted(server: Server, behaviour: str, tmp_path: Path, jobs: int) -> dict[str, Any]:
    """How to begin jobs that wait for each other, with an empty cache and a mirror that behaves like this."""
    files, server.files = small_archive()
    told = {
        "files": [(file.key, file.shape, file.sha256) for file in files],
        "md5s": {name: hashlib.md5(content).hexdigest() for name, content in server.files.items()},
        "mirror": server.mirror(behaviour),
        "images": [SHAPES["train_images"][0], SHAPES["test_images"][0]],
        "folder": str(tmp_path),
        "jobs": jobs,
    }
    environment = {"COUNTED": json.dumps(told), "XDG_CACHE_HOME": str(tmp_path / "cache"), "no_proxy": "127.0.0.1"}
    return {"script": ROOT / "tests" / "counted_launch.py", "env": environment}


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


@pytest.mark.slow
@pytest.mark.parametrize("dataset", ["mnist", "synthetic"])
def test_four_processes_and_another_job_make_the_data_once(
    begin: Begin, server: Server, tmp_path: Path, dataset: str
) -> None:
    """Two jobs, of four processes and of one, that look for it within a moment; the mirror takes its time."""
    how = counted(server, "slow", tmp_path, jobs=2)
    jobs = [
        begin(*WORDS, "processes=4", folder=tmp_path / "four", dataset=dataset, **how),
        begin(*WORDS, folder=tmp_path / "one", dataset=dataset, **how),
    ]
    assert [(code, err) for code, _, err in (job.end() for job in jobs)] == [(0, ""), (0, "")]
    assert [result_of(job.folder)["world_size"] for job in jobs] == [4, 1]
    assert [result_of(job.folder)["dataset"] for job in jobs] == [dataset, dataset]
    assert sorted(server.requests) == sorted(f"slow/{name}" for name in server.files if dataset == "mnist")
    assert len(lines(tmp_path / "drawn")) == (dataset == "synthetic")
    assert {path.suffix for path in (tmp_path / "cache" / "mnist_accel").iterdir()} == {".lock", ".safetensors"}


@pytest.mark.slow
@pytest.mark.parametrize(("dataset", "code"), [("auto", 0), ("mnist", 2)])
def test_four_processes_try_a_mirror_that_fails_once(
    begin: Begin, server: Server, tmp_path: Path, dataset: str, code: int
) -> None:
    job = begin(
        *WORDS, "processes=4", folder=tmp_path / "run", dataset=dataset, **counted(server, "missing", tmp_path, jobs=1)
    )
    ended, _, err = job.end()
    assert ended == code
    assert server.requests == [f"missing/{FIRST_FILE}"]
    why = f"MNIST could not be downloaded: {FIRST_FILE}: 127.0.0.1:{server.server_port}: answers 404"
    if dataset == "mnist":
        assert err.count("\n") == 1 and err.startswith(f"error: dataset=mnist: {why}. Set data_dir or ")
        assert not job.folder.exists()
    else:
        assert lines(tmp_path / "reasons") == [f"{why}; drawn by mnist_accel"] * 4 and err == ""
        assert len(lines(tmp_path / "drawn")) == 1
