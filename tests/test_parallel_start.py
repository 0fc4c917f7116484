"""Processes and jobs that start at once with an empty cache: the data is fetched or drawn once, and nothing is left."""

import hashlib
import json
from pathlib import Path

import pytest
from jobs import ROOT, Begin, result_of
from mirror import Server
from test_data_download import SHAPES, small_archive


@pytest.mark.parametrize("dataset", ["mnist", pytest.param("synthetic", marks=pytest.mark.slow)])
def test_four_processes_and_another_job_make_the_data_once(
    begin: Begin, server: Server, tmp_path: Path, dataset: str
) -> None:
    """Two jobs, of four processes and of one, that all look for it within a moment; the mirror takes its time."""
    ready = tmp_path / "ready"
    ready.mkdir()
    files, server.files = small_archive()
    drawn = tmp_path / "drawn"
    told = {
        "files": [(file.key, file.name, file.shape, file.sha256) for file in files],
        "md5s": {name: hashlib.md5(content).hexdigest() for name, content in server.files.items()},
        "mirror": server.mirror("slow"),
        "images": [SHAPES["train_images"][0], SHAPES["test_images"][0]],
        "drawn": str(drawn),
        "ready": str(ready),
        "processes": 5,
    }
    how = {
        "script": ROOT / "tests" / "counted_launch.py",
        "env": {"COUNTED": json.dumps(told), "XDG_CACHE_HOME": str(tmp_path / "cache"), "no_proxy": "127.0.0.1"},
        "dataset": dataset,
    }
    words = ("recipe=onepoch", "batch_size=6", "threads=1", "dry_run=true")
    jobs = [
        begin(*words, "processes=4", folder=tmp_path / "four", **how),
        begin(*words, folder=tmp_path / "one", **how),
    ]
    assert [(code, err) for code, _, err in (job.end() for job in jobs)] == [(0, ""), (0, "")]
    assert [result_of(job.folder)["world_size"] for job in jobs] == [4, 1]
    assert [result_of(job.folder)["dataset"] for job in jobs] == [dataset, dataset]
    if dataset == "mnist":
        assert sorted(server.requests) == sorted(f"slow/{name}" for name in server.files)
    else:
        assert len(drawn.read_text().splitlines()) == 1
    assert {path.suffix for path in (tmp_path / "cache" / "mnist_accel").iterdir()} == {".lock", ".safetensors"}
