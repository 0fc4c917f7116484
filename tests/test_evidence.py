"""What ``verify`` keeps of the seeds it measured, what follows from it, and ``python -m mnist_accel evidence``."""

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass as plain_dataclass
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from jobs import ROOT
from pydantic.dataclasses import dataclass
from test_report import a_result
from torch import nn

import recipes
from mnist_accel import student
from mnist_accel.commands import evidence as evidence_verb
from mnist_accel.errors import UserError
from mnist_accel.machine import neighbours
from mnist_accel.machine.neighbours import Neighbours
from mnist_accel.models import parameters_of
from mnist_accel.recipe import CONFIG, Claim, Measured, Recipe
from mnist_accel.runs import evidence
from mnist_accel.runs.evidence import Circumstances, Epoch, Evidence, Machine, Seed, hash_of, judge, summarise
from mnist_accel.runs.evidence_file import EvidenceFile, as_json, read_evidence
from mnist_accel.runs.evidence_table import network_of
from mnist_accel.training.state import Positive

UNDER = Circumstances(
    machine=Machine(cpu="a cpu", cores=2),
    versions={"torch": "2.13"},
    commit=None,
    command="python -m mnist_accel verify recipe=onepoch",
    device="cpu",
    precision="fp32",
    world_size=1,
    threads=1,
)

ONEPOCH = "`onepoch` | 9,606 parameters, 1 epoch"


def a_seed(number: int, accuracy: float = 98.5, seconds: float | None = 4.0, **more: Any) -> Seed:
    epoch = Epoch(accuracy=accuracy, test_loss=0.05, train_loss=0.1)
    common = {"loss": 0.05, "train_loss": 0.1, "total_seconds": seconds, "weights_sha256": "0" * 64, "positive": None}
    return Seed(**common | {"seed": number, "accuracy": accuracy, "seconds": seconds, "history": [epoch]} | more)


def evidence_of(recipe: Recipe, *seeds: Seed) -> Evidence:
    return Evidence(
        recipe=recipe.name,
        recipe_hash=hash_of(recipe),
        model=recipe.model,
        params=parameters_of(recipe.model, recipe.dropout, recipe.name),
        epochs=recipe.epochs,
        circumstances=[replace(UNDER, command=f"python -m mnist_accel verify recipe={recipe.name}")],
        seeds=list(seeds),
    )


# Student's t


@pytest.mark.parametrize(
    ("freedom", "expected"), [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (9, 2.262), (19, 2.093), (99, 1.984)]
)
def test_quantiles_are_those_of_the_tables(freedom: int, expected: float) -> None:
    assert student.quantile(0.975, freedom) == pytest.approx(expected, abs=5e-4)


def test_a_p_is_the_tail_beyond_the_mean() -> None:
    # Of two values T is Cauchy's, of three its distribution has a closed form as well.
    t = (98.2 - 98.13) / (0.1 * math.sqrt(2)) * math.sqrt(2)
    assert student.chance_of_so_high([98.1, 98.3], 98.13) == pytest.approx(0.5 - math.atan(t) / math.pi)
    t = (2 - 3) / (1 / math.sqrt(3))
    assert student.chance_of_so_high([1, 2, 3], 3) == pytest.approx(0.5 - t / (2 * math.sqrt(t * t + 2)))
    assert student.chance_of_so_high([1, 2, 3], 2) == pytest.approx(0.5)
    assert student.chance_of_so_high([98.2], 98) is student.chance_of_so_high([98.2, 98.2], 98) is None


# From seeds to figures


def test_a_summary_is_of_all_seeds_and_its_time_of_those_that_ran_alone() -> None:
    of_yes = Positive(99.0, 98.0, 98.5)
    seeds = [a_seed(0, 98.0, positive=of_yes), a_seed(1, 99.0, None, positive=of_yes), a_seed(2, 98.5, 6.0)]
    found = summarise(seeds)
    assert (found.seeds, found.mean, found.spread, found.least, found.most) == (3, 98.5, 0.5, 98.0, 99.0)
    assert found.interval == pytest.approx((98.5 - 4.30265 * 0.5 / 3**0.5, 98.5 + 4.30265 * 0.5 / 3**0.5))
    assert (found.seconds, found.timed, found.f1) == (5.0, 2, 98.5)
    alone = summarise([a_seed(0, seconds=None)])
    assert (alone.spread, alone.interval, alone.seconds, alone.f1) == (None, None, None, None)


def test_the_mean_decides_and_p_looks_the_way_of_the_claim() -> None:
    recipe = recipes.load("onepoch")
    two = evidence_of(recipe, a_seed(0, 99.0), a_seed(1, 96.0, 8.0))

    def judged(metric: Any, relation: Any, value: float, of: Evidence = two, **more: Any) -> tuple[Any, ...]:
        one = judge(Claim(metric=metric, relation=relation, value=value, **more), of)
        return one.claim.measured, one.claim.met, None if one.p is None else round(one.p, 3)

    assert judged("accuracy", ">=", 98) == (97.5, False, round(0.5 + math.atan(1 / 3) / math.pi, 3))
    assert judged("accuracy", ">=", 97) == (97.5, True, round(0.5 - math.atan(1 / 3) / math.pi, 3))
    assert judged("accuracy", "<=", 98) == (97.5, True, round(0.5 - math.atan(1 / 3) / math.pi, 3))
    assert judged("accuracy", "=", 97.5) == (97.5, True, None)
    assert judged("accuracy", ">=", 98, evidence_of(recipe, a_seed(0, 99.0))) == (99.0, True, None)
    assert judged("accuracy", ">=", 98, epoch=1)[:2] == (97.5, False)
    assert judged("accuracy", ">=", 98, epoch=2) == (None, None, None)
    assert judged("parameters", "=", 9_606) == (9_606, True, None)
    assert judged("train_seconds", "<=", 7, device="cpu")[:2] == (6.0, True)
    assert judged("train_seconds", "<=", 7, device="cuda") == (6.0, None, None)
    busy = evidence_of(recipe, a_seed(0, seconds=None), a_seed(1, seconds=3.0))
    assert judged("train_seconds", "<=", 7, busy) == (3.0, True, None)
    assert judge(recipe.claims[0], two, comparable=False).claim.met is None


def test_a_loss_that_was_no_number_is_in_no_mean() -> None:
    nan = Epoch(accuracy=9.8, test_loss=None, train_loss=0.1)
    of = evidence_of(recipes.load("onepoch"), a_seed(0), a_seed(1, 9.8, loss=None, history=[nan]))
    of.refuse_contradictions()
    assert judge(Claim(metric="test_loss", relation="<=", value=1), of).claim.measured is None


# A recipe's hash


def test_a_hash_is_of_what_is_learned(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipes.load("onepoch")
    known = hash_of(recipe)
    same = replace(recipe, name="copy", claims=(), measured=None, seed=7, warmup=recipe.warmup)
    assert hash_of(same) == known
    others = [replace(recipe, lr=0.031), replace(recipe, rotation=1.0), replace(recipe, dropout=0.2)]
    assert len({known, *map(hash_of, others)}) == 4

    @dataclass(frozen=True, kw_only=True, config=CONFIG)
    class Later(Recipe):
        sharpness: float = 0.5

    assert hash_of(Later(**vars(recipe))) == known
    assert hash_of(Later(**vars(recipe), sharpness=0.6)) != known

    monkeypatch.setattr(evidence, "build_model", lambda name, dropout: nn.Linear(3, 4))
    narrow = hash_of(recipe)
    monkeypatch.setattr(evidence, "build_model", lambda name, dropout: nn.Linear(3, 5))
    assert len({known, narrow, hash_of(recipe)}) == 3
    monkeypatch.setattr(evidence, "build_model", lambda name, dropout: nn.Conv2d(1, 1, 3, stride=1))
    dense = hash_of(recipe)
    monkeypatch.setattr(evidence, "build_model", lambda name, dropout: nn.Conv2d(1, 1, 3, stride=2))
    assert hash_of(recipe) != dense  # of equal shapes
    # Whatever Python or torch: evidence outlives them.
    monkeypatch.undo()
    settings = Recipe(
        name="x", model="onepoch", epochs=1, batch_size=64, optimizer="sgd", lr=0.1, dropout=0.5, nesterov=True
    )
    assert hash_of(settings) == "61e132e4ea6a4e8c592f0d3d992ad3d61dd2416d486a04093140bbeed3b31b3f"


def test_weights_are_known_by_their_values_and_not_by_their_order() -> None:
    one, two = torch.arange(4.0), torch.tensor(3)
    known = evidence.hash_of_weights({"a": one, "b": two})
    assert evidence.hash_of_weights({"b": two, "a": one}) == known
    others: list[dict[str, torch.Tensor]] = [
        {"a": one, "c": two},
        {"a": one.reshape(2, 2), "b": two},
        {"a": one + 1e-6, "b": two},
        {"a": one, "b": torch.tensor(4)},
    ]
    assert len({known, *map(evidence.hash_of_weights, others)}) == 5


# What ran beside it


def test_time_that_others_took_is_all_but_this_process_s(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = SimpleNamespace(user=10.0, nice=0.0, system=5.0, idle=99.0, iowait=1.0, steal=2.0)
    own = SimpleNamespace(user=3.0, system=1.0, children_user=0.5, children_system=0.5)
    now = [100.0]
    monkeypatch.setattr(neighbours.psutil, "cpu_times", lambda: whole)
    monkeypatch.setattr(neighbours.psutil, "Process", lambda: SimpleNamespace(cpu_times=lambda: own))
    monkeypatch.setattr(neighbours.time, "perf_counter", lambda: now[0])
    with Neighbours() as quiet:
        whole.user, whole.system, whole.idle, now[0] = 13.0, 6.5, 120.0, 110.0
        own.user, own.system, own.children_user, own.children_system = 5.0, 1.5, 1.0, 1.0
    assert quiet.share == pytest.approx((4.5 - 3.5) / 10) and not quiet.were_quiet
    with Neighbours() as quiet:
        whole.user, own.user, whole.idle, now[0] = 18.0, 9.5, 130.0, 120.0
    assert quiet.share == pytest.approx(0.05) and quiet.were_quiet
    with Neighbours() as robbed:
        whole.steal, now[0] = 4.0, 130.0
    assert not robbed.were_quiet


def test_a_busy_neighbour_is_noticed() -> None:
    code = "import os, time\nif os.fork() == 0:\n    until = time.time() + 3\n    while time.time() < until: pass"
    with Neighbours() as meanwhile:
        subprocess.run([sys.executable, "-c", code], start_new_session=True, check=True)
        time.sleep(1.5)
    assert not meanwhile.were_quiet


def test_only_a_whole_run_of_one_process_is_timed(tmp_path: Path) -> None:
    def seconds(alone: bool, **changes: Any) -> float | None:
        return evidence.seed_of(a_result(**changes), tmp_path / "none", alone).seconds

    assert seconds(True) == 6.25
    assert seconds(False) is seconds(True, world_size=2) is seconds(True, profile="p") is None
    assert seconds(True, resumed_from="x") is None


# The file


def test_processes_that_share_the_seeds_lose_none(tmp_path: Path) -> None:
    recipe = recipes.load("onepoch")
    path = tmp_path / "evidence" / "onepoch.json"
    one, other = (EvidenceFile(path, "x", recipe) for _ in range(2))
    one.add(evidence_of(recipe, a_seed(2)))
    elsewhere = replace(evidence_of(recipe, a_seed(0), a_seed(2, 11.0)), circumstances=[replace(UNDER, threads=2)])
    whole = other.add(elsewhere)
    assert whole == one.read() == read_evidence(path, "x")
    assert [(seed.seed, seed.accuracy, whole.circumstances[seed.under].threads) for seed in whole.seeds] == [
        (0, 98.5, 2),
        (2, 98.5, 1),  # what stands there stays
    ]
    assert len(one.add(evidence_of(recipe, a_seed(1))).circumstances) == 2
    assert whole.up_to(1).seeds == [whole.seeds[0]]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda text: text[:-40], "is damaged: "),
        (lambda text: text.replace('"accuracy": 98.5', '"accuracy": 99.5', 1), "seed 0: its figures are not those"),
        (lambda text: text.replace('"seed": 1', '"seed": 0'), "seeds: not in their order"),
        (lambda text: text.replace('"under": 0', '"under": 1', 1), "seed 0: under what circumstances"),
        (lambda text: text.replace('"accuracy": 98.5', '"accuracy": 985'), "accuracy: must be at most 100"),
        (lambda text: text.replace('"schema": 1', '"schema": 2'), "schema: "),
        (lambda text: "[]", "is damaged: "),
    ],
)
def test_a_damaged_file_costs_one_line(damage: Callable[[str], str], said: str, tmp_path: Path) -> None:
    whole = as_json(evidence_of(recipes.load("onepoch"), a_seed(0), a_seed(1)))
    assert damage(whole) != whole
    assert [line[:15] for line in whole.splitlines()[-4:-2]] == ['    {"seed": 0,', '    {"seed": 1,']
    (tmp_path / "x.json").write_text(damage(whole))
    with pytest.raises(UserError, match=said) as mistake:
        read_evidence(tmp_path / "x.json", "evidence/x.json")
    line = str(mistake.value)
    assert line.startswith("evidence/x.json: is damaged") and line.endswith("move it away and measure again")
    assert "\n" not in line


def test_a_killed_verify_goes_on_with_the_next_seed(tmp_path: Path, clean_environment: dict[str, str]) -> None:
    words = [sys.executable, str(ROOT / "tests" / "verify_few.py"), "recipe=onepoch", "threads=1"]
    path = tmp_path / "evidence" / "onepoch.json"
    begun = subprocess.Popen([*words, "seeds=50"], cwd=tmp_path, env=clean_environment, stdout=subprocess.DEVNULL)
    until = time.monotonic() + 120
    while not path.exists() and time.monotonic() < until and begun.poll() is None:
        time.sleep(0.002)
    os.kill(begun.pid, signal.SIGKILL)
    begun.wait()
    before = read_evidence(path, "x")
    assert before.seeds[0].seed == 0 and len(before.seeds) < 50
    runs = {run.name for run in tmp_path.glob("runs/onepoch/*")}

    wanted = len(before.seeds) + 1
    ended = subprocess.run(
        [*words, f"seeds={wanted}", "data_dir=secret"],
        cwd=tmp_path,
        env=clean_environment,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    after = read_evidence(path, "x")
    assert after.seeds[:-1] == before.seeds and after.seeds[-1].seed == wanted - 1
    added = {run.name for run in tmp_path.glob("runs/onepoch/*")} - runs
    assert len(added) == 1  # one seed was trained
    assert "stand" in ended.stdout.splitlines()[0] and "in evidence/onepoch.json" in ended.stdout.splitlines()[0]
    assert after.circumstances == before.circumstances and after.command.endswith(f"threads=1 seeds={wanted}")
    assert str(tmp_path) not in path.read_text() and "secret" not in path.read_text()


@pytest.mark.slow  # two ranks
def test_ranks_measure_together_and_write_once(tmp_path: Path, clean_environment: dict[str, str]) -> None:
    script = str(ROOT / "tests" / "verify_few.py")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    for seeds in (2, 3):  # the second time going on
        words = [*launcher, script, "recipe=onepoch", "threads=1", f"seeds={seeds}"]
        ended = subprocess.run(words, cwd=tmp_path, env=clean_environment, capture_output=True, text=True, timeout=300)
        assert ended.returncode == 0, ended.stderr
    found = read_evidence(tmp_path / "evidence" / "onepoch.json", "x")
    assert [(seed.seed, seed.under, seed.seconds) for seed in found.seeds] == [(0, 0, None), (1, 0, None), (2, 0, None)]
    assert found.command == "torchrun --nproc-per-node 2 -m mnist_accel verify recipe=onepoch threads=1 seeds=3"


# python -m mnist_accel evidence


@plain_dataclass
class Place:
    """A README, recipes and evidence that agree."""

    folder: Path
    sound: list[tuple[Recipe, int]]

    def change(self, name: str, **fields: Any) -> None:
        self.sound[:] = [
            (replace(recipe, **fields) if recipe.name == name else recipe, params) for recipe, params in self.sound
        ]

    def rewrite(self, name: str, old: str, new: str) -> None:
        file = self.folder / "evidence" / f"{name}.json"
        text = file.read_text()
        assert old in text
        file.write_text(text.replace(old, new))

    @property
    def readme(self) -> Path:
        return self.folder / "README.md"

    def keep(self, recipe: Recipe, *seeds: Seed) -> None:
        (self.folder / "evidence" / f"{recipe.name}.json").write_text(as_json(evidence_of(recipe, *seeds)))


def measured(name: str, seeds: int, accuracy: float, spread: float | None = None) -> Measured:
    command = f"python -m mnist_accel verify recipe={name} seeds={seeds}"
    return Measured(accuracy=accuracy, seeds=seeds, spread=spread, command=command)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    onepoch = replace(recipes.load("onepoch"), measured=measured("onepoch", 2, 98.5, 0.14))
    tuned = replace(onepoch, name="onepoch_tuned", lr=0.02, measured=measured("onepoch_tuned", 1, 98.7))
    mine = replace(onepoch, name="mine", claims=(), measured=None)
    unmeasured = replace(recipes.load("is3"), measured=None)
    sound = [(onepoch, 9_606), (tuned, 9_606), (mine, 9_606), (unmeasured, 144_833)]
    place = Place(tmp_path, sound)
    (tmp_path / "evidence").mkdir()
    place.keep(onepoch, a_seed(0, 98.6), a_seed(1, 98.4, None))
    place.keep(tuned, a_seed(0, 98.7, None))
    for old, new in (("fp32", "bf16"), ('"world_size": 1', '"world_size": 2'), ('"threads": 1', '"threads": 2')):
        place.rewrite("onepoch_tuned", old, new)
    marks = "".join(f"<!-- evidence: {name} -->\n<!-- end of evidence -->\n" for name in ("documented", "tuned"))
    place.readme.write_text(f"# Before\n{marks}After\n")
    monkeypatch.setattr(recipes, "EVIDENCE", tmp_path / "evidence")
    monkeypatch.setattr(evidence_verb, "README", place.readme)
    monkeypatch.setattr(recipes, "survey", lambda: (place.sound, []))
    assert evidence_verb.main(["write=true"]) == 0
    return place


PLACE = "a cpu, 2 cores, torch 2.13, device cpu"


def test_tables_are_made_of_evidence_alone(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert evidence_verb.main([]) == 0
    said = capsys.readouterr()
    assert said.err == "" and "not measured: mine, is3" in said.out
    text = place.readme.read_text()
    assert text.startswith("# Before\n<!-- evidence: documented -->\n| recipe | network | documented | mean")
    assert text.endswith("<!-- end of evidence -->\nAfter\n")
    for row in (
        f"| {ONEPOCH} | ≥ 98.13 | **98.50** ± 0.14 | 97.23 to 99.77 | 98.40 | 2 | 4.0 (1 seed) | 4.0 |",
        "| `is3` | 144,833 parameters, 50 epochs, one class | ≥ 99.9 | not measured |  |  |  |  |  |",
        "| `onepoch_tuned` | 9,606 parameters, 1 epoch | `onepoch` 98.50 | **98.70** |  | 98.70 | 1 | not alone |  |",
        f"Timed on {PLACE}, threads 1; not alone on {PLACE}, threads",
        "2, bf16, 2 processes.",
    ):
        assert text.splitlines().count(row) == said.out.splitlines().count(row) == 1
    shifted = replace(place.sound[3][0], test_shifts=1)
    assert network_of(shifted, 9) == "9 parameters, 50 epochs, one class, scored with shifts of 1 pixel"
    place.keep(place.sound[2][0], a_seed(0))
    assert evidence_verb.main([]) == 1  # now there is a table of one's own to be shown
    assert "README.md: the table own is missing. Write the lines <!-- evidence: own -->" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (
            lambda place: place.rewrite("onepoch", '"params": 9606', '"params": 960'),
            "evidence/onepoch.json: is of onepoch, 960 parameters, 1 epochs. Take it from git",
        ),
        (
            lambda place: place.rewrite("onepoch", '"commit": null', '"commit": "0123456789+"'),
            "evidence/onepoch.json: was measured with files that were changed after 01234567. Commit",
        ),
        (lambda place: place.change("onepoch", lr=0.04), "recipes/onepoch.py: was changed after evidence/onepoch.json"),
        (
            lambda place: place.change("onepoch", measured=measured("onepoch", 2, 98.51, 0.14)),
            "recipes/onepoch.py: measured is another than in evidence/onepoch.json. Write measured=Measured(accuracy="
            '98.5, seeds=2, spread=0.14, command="python -m mnist_accel verify recipe=onepoch seeds=2")',
        ),
        (lambda place: place.change("onepoch", measured=measured("onepoch", 2, 98.5)), "measured is another"),
        (lambda place: place.change("onepoch", measured=None), "recipes/onepoch.py: measured is not given. Write"),
        (
            lambda place: place.change("is3", measured=measured("is3", 1, 99.9)),
            "recipes/is3.py: measured: there is no evidence/is3.json to show it",
        ),
        (
            lambda place: place.readme.write_text(place.readme.read_text().replace("± 0.14", "± 0.13")),
            f'README.md: the table documented says "| {ONEPOCH} | ≥ 98.13 | **98.50** ± 0.13',
        ),
        (
            lambda place: place.readme.write_text(place.readme.read_text().replace("evidence: tuned", "evidence: own")),
            "README.md: the table tuned is missing",
        ),
        (
            lambda place: (place.folder / "evidence" / "onepoch.json").write_text("{"),
            "evidence/onepoch.json: is damaged",
        ),
        (
            lambda place: place.keep(place.sound[0][0], a_seed(0, 98.6), a_seed(2, 98.4)),
            "evidence/onepoch.json: seed 1 missing, so it may be a choice of seeds",
        ),
        (
            lambda place: (place.folder / "evidence" / "onepoch.json").rename(place.folder / "evidence" / "two.json"),
            "evidence/two.json: is of onepoch, no recipe of the file's name",
        ),
    ],
)
def test_whatever_disagrees_costs_a_line_and_ends_with_1(
    fault: Callable[[Place], Any], said: str, place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    fault(place)
    capsys.readouterr()
    assert evidence_verb.main([]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert any(said in line for line in lines), lines


def test_what_damaged_evidence_showed_is_not_taken_from_the_readme(place: Place) -> None:
    before = place.readme.read_text()
    (place.folder / "evidence" / "onepoch.json").write_text("{")
    assert evidence_verb.main(["write=true"]) == 1
    assert place.readme.read_text() == before


def test_the_picture_is_of_evidence_and_sources_and_a_stale_one_costs_a_line(
    place: Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place.folder)
    sources = place.folder / "evidence" / "sources.json"
    sources.write_text((ROOT / "evidence" / "sources.json").read_text())
    committed = place.folder / "docs" / "accuracy.svg"
    committed.parent.mkdir()
    assert evidence_verb.main(["picture=docs/accuracy.svg"]) == 0
    drawn = committed.read_text()
    assert "onepoch 98.50 %" in drawn and "onepoch_tuned 98.70 %" in drawn and "train_mnist_fast 99.04 %" in drawn
    assert evidence_verb.main([]) == 0 and committed.read_text() == drawn

    capsys.readouterr()
    sources.write_text(sources.read_text().replace("99.04", "99.05"))
    assert evidence_verb.main([]) == 1
    remedy = "Type python -m mnist_accel evidence picture=docs/accuracy.svg"
    assert capsys.readouterr().err == f"docs/accuracy.svg: is not what evidence/ draws. {remedy}\n"
    assert evidence_verb.main(["picture=other.svg"]) == 1 and Path("other.svg").exists()
    assert committed.read_text() == drawn
    with pytest.raises(UserError, match=r"^picture=no/such/folder.svg: cannot be written \(.+\)\. Name another file$"):
        evidence_verb.main(["picture=no/such/folder.svg"])
    committed.unlink()
    assert evidence_verb.main([]) == 0
    place.readme.write_text(place.readme.read_text() + "![accuracies](docs/accuracy.svg)\n")
    capsys.readouterr()
    assert evidence_verb.main([]) == 1
    assert capsys.readouterr().err == f"docs/accuracy.svg: README.md shows it, and it is not there. {remedy}\n"
    sources.write_text("{")
    assert evidence_verb.main([]) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("evidence/sources.json: cannot be read")


def test_the_recipes_evidence_lies_beside_them() -> None:
    assert recipes.EVIDENCE == ROOT / "evidence" and evidence_verb.README == ROOT / "README.md"
