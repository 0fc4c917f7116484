"""``launch.py`` in real processes: every way to start it, what it leaves, and the codes that it ends with."""

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Ran
from jobs import ACCELERATE, ACCELERATE_TWO, ROOT, TORCHRUN, Begin, Launch, Run, a_run, weights

import recipes
from mnist_accel.machine.runtime import usable_cores
from mnist_accel.recipe import Recipe, RunOptions, keys_of
from mnist_accel.runs.folder import OUR_FILES

# README explains the fields; they are only ever added to, and added here.
CONTRACT = (
    {"schema", "status", "recipe", "model", "params", "dataset", "dataset_reason", "train_images", "test_images"}
    | {"epochs", "batch_size", "optimizer_steps", "seed", "device", "world_size", "threads", "precision", "accuracy"}
    | {"correct", "total", "train_loss", "test_loss", "positive", "warmup_seconds", "train_seconds", "eval_seconds"}
    | {"total_seconds", "images_per_second", "claims", "dry_run", "resumed_from", "command", "history", "versions"}
    | {"began", "commit", "profile"}
)
REAL_MNIST = os.environ.get("MNIST_ACCEL_DATA")


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def one_error_line(text: str) -> bool:
    return re.fullmatch(r"error: [^\n]+\n", text) is not None


# What a run leaves


def test_a_dry_run_leaves_every_file_of_a_run(dry_run: Run) -> None:
    assert (dry_run.code, dry_run.err) == (0, "")
    assert names(dry_run.folder) == OUR_FILES - {"checkpoints", "export", "tracking"}
    assert dry_run.out.splitlines()[-1] == f"report    {dry_run.folder / 'report.html'}"
    result = dry_run.result
    assert (result["dry_run"], result["optimizer_steps"], result["status"]) == (True, 1, "finished")
    assert result["total"] <= 1000


@pytest.mark.parametrize("run", ["dry_run", "trained_run", "two_processes"])
def test_the_result_keeps_its_contract(run: str, request: pytest.FixtureRequest) -> None:
    result = request.getfixturevalue(run).result
    assert set(result) == CONTRACT | {"error"}
    assert (result["schema"], result["error"], result["resumed_from"]) == (1, None, None)
    for name in ("params", "train_images", "test_images", "epochs", "batch_size", "optimizer_steps", "seed"):
        assert isinstance(result[name], int), name
    for name in ("world_size", "threads", "correct", "total"):
        assert isinstance(result[name], int), name
    for name in ("train_seconds", "eval_seconds", "total_seconds", "images_per_second"):
        assert math.isfinite(result[name]) and result[name] > 0, name
    assert result["warmup_seconds"] == 0  # a GPU's alone
    assert result["accuracy"] == 100 * result["correct"] / result["total"]
    assert result["total_seconds"] > result["train_seconds"] + result["eval_seconds"]
    assert set(result["versions"]) == {"mnist_accel", "python", "torch", "accelerate"}
    for claim in result["claims"]:
        assert set(claim) == {"name", "documented", "measured", "met"}
        assert claim["met"] is None or claim["name"].startswith("parameters")  # not MNIST
    documented = [claim.documented for claim in recipes.load(result["recipe"]).claims]
    assert [claim["documented"] for claim in result["claims"]] == documented


def test_a_whole_run_says_what_it_did(trained_run: Run) -> None:
    assert (trained_run.code, trained_run.err) == (0, "")
    result = trained_run.result
    assert {name: result[name] for name in ("recipe", "model", "dataset", "device", "precision", "dry_run")} == {
        "recipe": "onepoch",
        "model": "onepoch",
        "dataset": "synthetic",
        "device": "cpu",
        "precision": "fp32",
        "dry_run": False,
    }
    assert (result["epochs"], result["batch_size"], result["optimizer_steps"]) == (2, 1000, 120)
    assert (result["train_images"], result["test_images"], result["total"]) == (60_000, 10_000, 10_000)
    assert (result["world_size"], result["threads"], result["seed"]) == (1, 1, 0)
    assert result["dataset_reason"].startswith("dataset=synthetic")
    assert result["command"] == trained_run.words
    assert result["images_per_second"] == pytest.approx(120_000 / result["train_seconds"])
    assert result["accuracy"] > 80
    assert result["positive"] is None


def test_the_history_has_a_line_an_epoch_that_adds_up_to_the_result(trained_run: Run) -> None:
    lines = [json.loads(line) for line in (trained_run.folder / "history.jsonl").read_text().splitlines()]
    result = trained_run.result
    assert lines == result["history"]
    assert [line["epoch"] for line in lines] == [1, 2]
    for name in ("accuracy", "correct", "total", "train_loss", "test_loss"):
        assert result[name] == lines[-1][name]
    assert result["train_seconds"] == pytest.approx(sum(line["train_seconds"] for line in lines))
    assert result["eval_seconds"] == pytest.approx(sum(line["eval_seconds"] for line in lines))
    assert lines[1]["train_loss"] < lines[0]["train_loss"]


def test_the_resolved_recipe_is_written_down(trained_run: Run) -> None:
    written = json.loads((trained_run.folder / "recipe.json").read_text())
    assert set(written["recipe"]) >= set(keys_of(Recipe)) and set(written["options"]) == set(keys_of(RunOptions))
    base = recipes.load("onepoch")
    changed = {name for name in keys_of(Recipe) if written["recipe"][name] != getattr(base, name)}
    assert changed == {"batch_size", "epochs", "ema"}
    assert (written["options"]["dataset"], written["options"]["threads"]) == ("synthetic", 1)


def test_weights_loaded_in_a_fresh_process_give_the_same_accuracy_to_the_digit(
    trained_run: Run, clean_environment: dict[str, str]
) -> None:
    """With nothing but the folder; the weights are the averaged ones, which is what was evaluated."""
    code = (
        "import json, sys, torch\n"
        "from pathlib import Path\n"
        "from safetensors.torch import load_file\n"
        "from mnist_accel.data.batches import ImageStore, TestBatches\n"
        "from mnist_accel.data.dataset import load_dataset\n"
        "from mnist_accel.training.loop import evaluate\n"
        "from mnist_accel.models import build_model\n"
        "from mnist_accel.training.objective import TenClasses\n"
        "from mnist_accel.machine.runtime import start_runtime\n"
        "folder = Path(sys.argv[1])\n"
        "recipe = json.loads((folder / 'recipe.json').read_text())['recipe']\n"
        "runtime = start_runtime('fp32', 'cpu', 1)\n"
        "model = build_model(recipe['model'], recipe['dropout'])\n"
        "model.load_state_dict(load_file(folder / 'model.safetensors'))\n"
        "data = load_dataset('synthetic')\n"
        "store = ImageStore(data.test_images, data.test_labels, runtime.device)\n"
        "batches = TestBatches(store, mean=recipe['mean'], std=recipe['std'])\n"
        "score = evaluate(model, batches, TenClasses(), runtime.accelerator)\n"
        "print(json.dumps([score.correct, score.total, score.loss]))\n"
    )
    fresh = subprocess.run(
        [sys.executable, "-c", code, trained_run.folder], env=clean_environment, capture_output=True, text=True
    )
    assert fresh.returncode == 0, fresh.stderr
    correct, total, loss = json.loads(fresh.stdout)
    result = trained_run.result
    assert (correct, total) == (result["correct"], result["total"])
    assert loss == pytest.approx(result["test_loss"], rel=1e-5)


@pytest.mark.slow
def test_a_dry_run_may_be_repeated_where_it_was(dry_run: Run, run_launch: Launch, tmp_path: Path) -> None:
    folder = shutil.copytree(dry_run.folder, tmp_path / "dry")
    again = a_run(run_launch, folder, "recipe=efficient25k", "dry_run=true", "threads=1", "seed=1")
    assert (again.code, again.err) == (0, "")
    assert again.result["seed"] == 1
    assert len((again.folder / "history.jsonl").read_text().splitlines()) == 1


@pytest.mark.parametrize(
    "optimizer", ["adamw", *(pytest.param(name, marks=pytest.mark.slow) for name in ("sgd", "adam"))]
)
def test_a_start_waits_for_nothing_that_it_does_not_use(
    run_launch: Launch, dry_run: Run, tmp_path: Path, optimizer: str
) -> None:
    """torch's compiler, its sharding and torchvision take longer to import than everything else together."""
    words = ("recipe=onepoch", f"optimizer={optimizer}", "dry_run=true", "threads=1")
    run = a_run(run_launch, tmp_path / "run", *words, launcher=(sys.executable, "-X", "importtime"))
    assert run.code == 0
    imported = {line.rpartition("|")[2].strip() for line in run.err.splitlines()}
    assert {"torch", "accelerate"} <= imported
    assert not imported & {"torch._dynamo", "torch.distributed.tensor", "sympy", "torchvision"}


# Ways to start it


@pytest.mark.slow
def test_the_config_file_is_facts_of_the_machine_and_flags_go_on_top(
    run_launch: Launch, tmp_path: Path, root: Path
) -> None:
    config = str(root / "accelerate_config.yaml")
    launcher = (*ACCELERATE, "--config_file", config, "--mixed_precision", "bf16")
    run = a_run(run_launch, tmp_path / "run", "recipe=onepoch", "dry_run=true", "threads=1", launcher=launcher)
    assert run.code == 0, run.err
    assert (run.result["precision"], run.result["world_size"], run.result["device"]) == ("bf16", 1, "cpu")


def test_torchrun_starts_ranks_of_one_job(run_launch: Launch, tmp_path: Path) -> None:
    words = ("recipe=onepoch", "dry_run=true", "batch_size=65")
    run = a_run(run_launch, tmp_path / "run", *words, launcher=TORCHRUN)
    assert run.code == 0, run.err
    assert run.result["world_size"] == 2 and run.out.count("epoch 1/1") == 1
    assert run.result["threads"] == max(1, usable_cores() // 2)
    assert run.result["history"][0]["images"] == 65  # the global batch, also where it does not divide


def test_accelerate_launch_starts_ranks_of_one_job_without_a_gpu(run_launch: Launch, tmp_path: Path) -> None:
    """Left to itself Accelerate makes two rank zeros of it, which overwrite each other's files."""
    run = a_run(run_launch, tmp_path / "run", "recipe=onepoch", "dry_run=true", "threads=1", launcher=ACCELERATE_TWO)
    assert run.code == 0, run.err
    result = run.result
    assert (result["world_size"], result["device"], result["status"]) == (2, "cpu", "finished")
    assert "2 processes over gloo" in run.out
    # One writer, and one share of the batch for each.
    assert run.out.count("epoch 1/1") == 1 and names(tmp_path) == {"run"}
    assert len((run.folder / "history.jsonl").read_text().splitlines()) == 1
    assert (result["history"][0]["images"], result["total"]) == (result["batch_size"], 1000)


def test_processes_start_ranks_of_one_job(two_processes: Run) -> None:
    assert (two_processes.code, two_processes.err) == (0, "")
    result = two_processes.result
    assert (result["world_size"], result["threads"], result["recipe"]) == (2, 1, "is3")
    assert result["history"][0]["images"] == result["batch_size"]
    assert result["total"] == 1000  # an evaluation batch of each rank
    assert set(result["positive"]) == {"precision", "recall", "f1"}


# How it ends


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_loss_that_is_no_number_ends_with_3_and_is_written_down(
    run_launch: Launch, tmp_path: Path, processes: int
) -> None:
    words = ("recipe=onepoch", "lr=1e30", "threads=1", f"processes={processes}")
    if processes > 1:
        words += ("restarts=2",)  # which it is no reason for
    run = a_run(run_launch, tmp_path / "run", *words)
    assert run.code == 3
    assert one_error_line(run.err)
    assert re.match(r"error: loss is (nan|inf) at epoch 1, step \d+; the weights were left as they were", run.err)
    assert len(re.findall(r"^recipe +onepoch", run.out, re.MULTILINE)) == 1
    result = run.result
    assert (result["status"], result["world_size"], result["accuracy"]) == ("failed", processes, None)
    assert f"error: {result['error']}\n" == run.err
    assert set(result) == CONTRACT | {"error"}
    assert all(claim["met"] is None for claim in result["claims"] if not claim["name"].startswith("parameters"))
    assert "model.safetensors" not in names(run.folder)


def test_a_cpu_without_memory_ends_with_3_and_one_line_that_says_what_to_type(
    run_launch: Launch, tmp_path: Path
) -> None:
    """200 MB more than what the process has when training begins, where a step takes gigabytes."""
    script = tmp_path / "short_of_memory.py"
    script.write_text(
        f"import resource, sys\nsys.path.insert(0, {str(ROOT)!r})\nimport launch\nfrom mnist_accel import errors\n"
        "from mnist_accel.runs.trainer import Trainer\n"
        "run = Trainer.run\n"
        "def run_in_little(*arguments):\n"
        "    pages = int(open('/proc/self/statm').read().split()[0])\n"
        "    most = pages * resource.getpagesize() + 200 * 2**20\n"
        "    resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))\n"
        "    return run(*arguments)\n"
        "Trainer.run = run_in_little\n"
        "errors.exit_with_one_line(launch.main)\n"
    )
    run = a_run(run_launch, tmp_path / "run", "recipe=sub20k", "batch_size=20000", "threads=1", script=script)
    said = "error: batch_size=20000: the machine ran out of memory. Type batch_size=10000\n"
    assert (run.code, run.err) == (3, said)
    assert run.result["status"] == "interrupted" and f"error: {run.result['error']}\n" == said


def test_a_mistake_that_only_the_ranks_can_find_ends_with_2_and_one_line(run_launch: Launch, tmp_path: Path) -> None:
    ended = run_launch(
        "recipe=onepoch", "data_dir=/nowhere", "processes=2", "threads=1", f"out={tmp_path / 'run'}", cwd=tmp_path
    )
    assert ended.returncode == 2
    assert one_error_line(ended.stderr) and ended.stderr.startswith("error: data_dir=/nowhere: ")
    assert ended.stdout == "" and names(tmp_path) == set()


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_ctrl_c_ends_with_130_and_no_traceback(begin: Begin, processes: int) -> None:
    job = begin("recipe=compact13k", "threads=1", f"processes={processes}")
    job.wait_for_banner()
    os.killpg(job.process.pid, signal.SIGINT)
    code, out, err = job.end()
    assert code == 130, err
    assert "Traceback" not in out + err
    assert "model.safetensors" not in names(job.folder)


@pytest.mark.parametrize(
    ("held", "processes", "code", "said"),
    [
        ("import", 1, -signal.SIGINT, ""),  # which a shell calls 130 as well
        ("data", 1, 130, "interrupted\n"),
        pytest.param("import", 2, -signal.SIGINT, "", marks=pytest.mark.slow),
        pytest.param("data", 2, 130, "interrupted\n", marks=pytest.mark.slow),
    ],
)
def test_ctrl_c_while_it_starts_leaves_no_traceback_and_no_process(
    begin: Begin, held: str, processes: int, code: int, said: str
) -> None:
    job = begin("recipe=onepoch", "threads=1", f"processes={processes}", held=held)
    job.wait_until_held()
    os.killpg(job.process.pid, signal.SIGINT)
    assert job.end() == (code, "", said)
    assert job.is_gone_within(5) and not job.folder.exists()


def test_a_pipe_that_is_closed_early_is_no_traceback(
    clean_environment: dict[str, str], root: Path, tmp_path: Path
) -> None:
    """``python launch.py … | head -1``."""
    command = [sys.executable, "launch.py"]
    process = subprocess.Popen(
        command, cwd=root, env=clean_environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert "Traceback" not in process.stderr.read()
    process.stderr.close()
    process.wait(timeout=60)


# On real MNIST


@pytest.mark.skipif(not REAL_MNIST, reason="set MNIST_ACCEL_DATA to a folder with the real MNIST")
def test_one_epoch_on_mnist_is_worth_its_time(run_launch: Callable[..., Any], tmp_path: Path) -> None:
    """One seed at one thread: far below the documented mean is a bug, a tenth below it is chance."""
    out = tmp_path / "run"
    ended = run_launch(
        "recipe=onepoch", "dataset=mnist", "threads=1", f"out={out}", env={"MNIST_ACCEL_DATA": str(REAL_MNIST)}
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    result = json.loads((out / "result.json").read_text())
    assert (result["dataset"], result["total"]) == ("mnist", 10_000)
    assert result["accuracy"] > 97.5
    assert all(claim["met"] is not None for claim in result["claims"])
    assert "ot compared" not in ended.stdout


def test_training_survives_a_reader_who_leaves(run_launch: Launch, tmp_path: Path) -> None:
    """``python launch.py … | head -1``."""
    typed = f"{sys.executable} launch.py recipe=onepoch dataset=synthetic dry_run=true threads=1 out={tmp_path / 'run'}"
    ended = run_launch(launcher=("bash", "-c", f"{typed} | true; exit ${{PIPESTATUS[0]}}"))
    assert ended.returncode == 0 and ended.stderr == ""
    assert {"result.json", "model.safetensors"} <= names(tmp_path / "run")


def test_accelerates_own_settings_change_no_gradient(
    run_here: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A forgotten default config may ask for gradient accumulation: Accelerate would divide every gradient by it."""
    words = ("recipe=is3", "batch_size=200", "epochs=1")
    plain = run_here(*words)
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    assert weights(run_here(*words).folder) == weights(plain.folder)


def test_a_launchers_environment_that_does_not_hold_together_costs_one_line(run_launch: Launch, tmp_path: Path) -> None:
    ended = run_launch("recipe=onepoch", f"out={tmp_path / 'run'}", env={"WORLD_SIZE": "2", "RANK": "0"})
    assert ended.returncode == 2 and one_error_line(ended.stderr) and "WORLD_SIZE=" in ended.stderr
    assert names(tmp_path) == set()


@pytest.mark.slow
def test_a_launcher_that_starts_too_few_processes_is_refused(run_launch: Launch, tmp_path: Path) -> None:
    """``--cpu --num_processes 2`` starts one, which would train alone; each process of a job must find itself in it."""
    launcher = (*ACCELERATE, "--cpu", "--num_processes", "2")
    ended = run_launch("recipe=onepoch", f"out={tmp_path / 'run'}", launcher=launcher)
    assert ended.returncode != 0 and names(tmp_path) == set()
    assert "error: accelerate launch --cpu --num_processes N: starts one process only. Type python" in ended.stderr


@pytest.mark.slow
def test_accelerate_launch_trains_on_all_cores_and_a_config_that_nobody_named_is_named(
    run_launch: Launch, tmp_path: Path
) -> None:
    """The launcher exports OMP_NUM_THREADS=1, which nobody asked for, and reads its default config unasked."""
    config = tmp_path / "accelerate" / "default_config.yaml"
    config.parent.mkdir()
    config.write_text((ROOT / "accelerate_config.yaml").read_text())
    launcher, env = ACCELERATE, {"HF_HOME": str(tmp_path)}
    run = a_run(run_launch, tmp_path / "run", "recipe=onepoch", "dry_run=true", launcher=launcher, env=env)
    assert run.code == 0, run.err
    assert (run.result["threads"], run.result["world_size"]) == (usable_cores(), 1)
    assert "Traceback" not in run.err and "epoch 1/1" in run.out
    assert f"settings from {config}, which nobody named" in run.out


def test_each_machine_tells_of_a_mistake_that_only_it_has_made(run_launch: Launch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    launcher = {"RANK": "1", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1"}
    launcher |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    run = a_run(run_launch, tmp_path / "file", "recipe=onepoch", env=launcher)
    assert (run.code, run.out) == (2, "") and one_error_line(run.err) and "is no folder" in run.err
