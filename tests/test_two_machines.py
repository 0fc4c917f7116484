"""Two machines: two network namespaces joined by a veth pair, one process in each."""

import json
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ADDRESSES = ("10.77.0.1", "10.77.0.2")


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@pytest.fixture
def machines() -> Iterator[list[tuple[str, str]]]:
    """(namespace, its network interface) of two hosts that can reach each other and nobody else."""
    if shutil.which("ip") is None:
        pytest.skip("needs the command ip (Debian: iproute2)")
    tag = uuid.uuid4().hex[:6]
    hosts = [(f"mnist-{tag}-{index}", f"veth{tag}{index}") for index in range(2)]
    try:
        for namespace, _ in hosts:
            ip("netns", "add", namespace)
        ip("link", "add", hosts[0][1], "netns", hosts[0][0], "type", "veth", "peer", hosts[1][1], "netns", hosts[1][0])
        for (namespace, link), address in zip(hosts, ADDRESSES, strict=True):
            ip("-n", namespace, "addr", "add", f"{address}/24", "dev", link)
            ip("-n", namespace, "link", "set", link, "up")
            ip("-n", namespace, "link", "set", "lo", "up")
    except subprocess.CalledProcessError as error:
        remove(hosts)
        pytest.skip(f"may not make network namespaces here: {error.stderr.strip()}")
    yield hosts
    remove(hosts)


def remove(hosts: list[tuple[str, str]]) -> None:
    for namespace, _ in hosts:
        subprocess.run(["ip", "netns", "del", namespace], capture_output=True, check=False)


@pytest.mark.slow
def test_two_machines_train_one_job(
    machines: list[tuple[str, str]], clean_environment: dict[str, str], tmp_path: Path
) -> None:
    accelerate = Path(sys.executable).with_name("accelerate")
    outputs = [tmp_path / f"{rank}.txt" for rank in range(2)]
    processes = []
    for rank, (namespace, link) in enumerate(machines):
        words = ["ip", "netns", "exec", namespace, str(accelerate), "launch", "--multi_gpu", "--num_machines", "2"]
        words += ["--num_processes", "2", "--machine_rank", str(rank), "--main_process_ip", ADDRESSES[0]]
        words += ["--main_process_port", "29511", str(ROOT / "launch.py"), "recipe=onepoch", "dataset=synthetic"]
        words += ["batch_size=5000", "threads=1", f"out={tmp_path / 'run'}"]
        with outputs[rank].open("w") as output:
            environment = clean_environment | {"GLOO_SOCKET_IFNAME": link}
            processes.append(
                subprocess.Popen(words, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT)
            )
    codes = [process.wait(timeout=180) for process in processes]
    assert codes == [0, 0], [output.read_text()[-3000:] for output in outputs]
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["world_size"], result["status"], result["total"]) == (2, "finished", 10_000)
    assert "2 processes" in outputs[0].read_text() and "epoch" not in outputs[1].read_text()
