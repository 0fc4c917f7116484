"""The report of a run: its figures are the run's, nothing is believed or left unescaped, and old runs have one."""

import json
import random
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Ran, RunHere
from jobs import Run
from safetensors.torch import load_file, save_file

import recipes
from mnist_accel.commands import report
from mnist_accel.data.dataset import load_dataset
from mnist_accel.errors import TrainingFailed, UserError
from mnist_accel.models import build_model
from mnist_accel.pages import charts, report_page
from mnist_accel.pages.page import GENERATOR, document, tag
from mnist_accel.runs.watcher import Watcher
from mnist_accel.training.state import EpochStats

EVIL = "</script><img src=x onerror=alert(1)>\"'&\x1b[31m"


class Read(HTMLParser):
    """The words of a page, and its elements; unbalanced ones fail."""

    def __init__(self, page: str):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.rows: list[list[str]] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("th", "td"):
            self.rows[-1].append("")
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & set(self.open):
            self.words.append(data)
            if {"th", "td"} & set(self.open):
                self.rows[-1][-1] += data

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def again(*words: object) -> str:
    assert report.main([str(word) for word in words]) == 0
    return (Path(str(words[0])) / "report.html").read_text()


@pytest.fixture
def ran(run_here: RunHere) -> Ran:
    return run_here("recipe=onepoch", "epochs=2", "batch_size=100", "lr=0.01", make_report=report_page.page_of)


@pytest.mark.parametrize("name", recipes.one_a_network())
def test_the_figures_are_those_of_the_result(name: str, run_here: RunHere, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = run_here(f"recipe={name}", "epochs=2", "batch_size=100", make_report=report_page.page_of)
    page = (ran.folder / "report.html").read_text()
    result, read = ran.result, Read(page)
    assert (
        f"{result.accuracy:.2f} %" in read.text and f"{result.correct:,} of {result.total:,} test images" in read.text
    )
    assert f"{result.params:,} parameters" in read.text and f"training {result.train_seconds:.2f} s" in read.text
    for stats in result.history:
        row = [f"{stats.epoch}", f"{stats.train_loss:.4f}", f"{stats.test_loss:.4f}", f"{stats.train_accuracy:.2f}"]
        assert [*row, f"{stats.accuracy:.2f}", f"{stats.lr:.3g}", f"{stats.train_seconds:.2f}"] in read.rows
    for claim in result.claims:
        assert [claim.name, claim.documented, claim.shown] in [row[:3] for row in read.rows]
    wrong = result.total - result.correct
    shown = [attributes for kind, attributes in read.tags if kind == "img"]
    assert len(shown) == min(24, wrong) and all(image["src"].startswith("data:image/png;base64,") for image in shown)
    if result.positive:
        for value in (result.positive.precision, result.positive.recall, result.positive.f1):
            assert f"{value:.2f}" in read.text
    assert (
        sum(int(row[2]) for row in read.rows if len(row) > 3 and row[0].isdigit() and row[3].endswith("00") is None)
        == 0
    )
    matrix = confusion(read)
    hits = sum(row[index] for index, row in enumerate(matrix))
    assert (hits, sum(map(sum, matrix))) == (result.correct, result.total)
    labels = load_file(ran.folder / "evaluation.safetensors")["labels"]
    if result.positive:
        threes = int((labels == 3).sum())
        assert [sum(row) for row in matrix] == [threes, len(labels) - threes]  # rows are the truth
        assert 100 * matrix[0][0] / threes == pytest.approx(result.positive.recall)
    else:
        assert [sum(row) for row in matrix] == labels.bincount(minlength=10).tolist()
        for digit, (row, there) in enumerate(zip(matrix, map(sum, matrix), strict=True)):
            said, right = sum(line[digit] for line in matrix), row[digit]
            shares = [f"{100 * right / whole:.2f}" if whole else "–" for whole in (there, said)]
            assert [f"{digit}", f"{there}", f"{there - right}", *shares] in read.rows
    # Again, without the images or any training.
    monkeypatch.setattr("mnist_accel.data.dataset.load_dataset", None)
    assert again(ran.folder) == page and len(page) < 200_000 + 8 * ran.result.params


def confusion(read: Read) -> list[list[int]]:
    head = next(index for index, row in enumerate(read.rows) if row[0] == "" and row[1:] and row[1] in ("0", "a 3"))
    size = len(read.rows[head]) - 1
    rows = read.rows[head + 1 : head + 1 + size]
    return [[0 if cell == "·" else int(cell.replace(",", "")) for cell in row[1:]] for row in rows]


def test_logits_are_kept_in_the_order_of_the_test_images(
    two_processes: Run, trained_run: Run, common_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also by two processes, whose dry run scores the first 500 of each one's half."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(common_folder / "cache"))
    data = load_dataset("synthetic")
    halves = torch.cat([torch.arange(500), torch.arange(5000, 5500)])
    for run, scored in ((trained_run, torch.arange(10_000)), (two_processes, halves)):
        kept, name = load_file(run.folder / "evaluation.safetensors"), run.result["model"]
        labels, images = data.test_labels[scored], data.test_images[scored]
        assert torch.equal(kept["labels"].long(), labels)
        model, recipe = build_model(name, 0.0), recipes.load(name)
        model.load_state_dict(load_file(run.folder / "model.safetensors"))
        with torch.no_grad():
            logits = model.eval()((images[:, None] / 255 - recipe.mean) / recipe.std)
        torch.testing.assert_close(kept["logits"], logits, rtol=1e-3, atol=1e-3)
        wrong, logits = kept["wrong_index"], kept["logits"].double()
        assert torch.equal(kept["wrong_images"], images[wrong]) and len(wrong) == 24
        # Two logits of one answer and of the other, so that one rule serves both kinds of network.
        logits = logits if name == "onepoch" else torch.cat([0 * logits, logits], 1)
        truth = labels if name == "onepoch" else (labels == 3).long()
        surest = logits.softmax(1).max(1).values[logits.argmax(1) != truth].sort(descending=True).values[:24]
        torch.testing.assert_close(logits.softmax(1)[wrong].max(1).values, surest)


def test_what_was_typed_is_marked_and_can_be_typed_again(ran: Ran) -> None:
    read = Read((ran.folder / "report.html").read_text())
    page = (ran.folder / "report.html").read_text()
    marked = re.findall(r'class="typed"><dt>(\w+)', page)
    assert marked == ["epochs", "batch_size", "lr", "out", "threads"]
    assert "momentum" not in read.text and "weight_decay" in read.text  # it is adamw's run
    (line,) = [word for word in read.words if word.startswith("python launch.py")]
    assert line == "python launch.py recipe=onepoch epochs=2 batch_size=100 lr=0.01 threads=1"


def test_a_page_tells_of_shifts(ran: Ran, run_here: RunHere) -> None:
    assert "shifts of" not in Read((ran.folder / "report.html").read_text()).text
    shifted = run_here("recipe=onepoch", "lr=0.01", "test_shifts=2", make_report=report_page.page_of)
    read = Read((shifted.folder / "report.html").read_text())
    assert "test images after the last epoch, scored with shifts of 2 pixels." in read.text
    assert "200 to score, scored with shifts of 2 pixels" in read.text and "test_shifts 2" in read.text
    stored = json.loads((shifted.folder / "recipe.json").read_text())
    for absurd in (99, -1, "2", None):
        stored["recipe"]["test_shifts"] = absurd
        (shifted.folder / "recipe.json").write_text(json.dumps(stored))
        assert "shifts of" not in Read(again(shifted.folder)).text


def test_everything_is_escaped_and_the_home_folder_stays_private(
    ran: Ran, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    folder = tmp_path / "<b>x"
    shutil.copytree(ran.folder, folder)
    result, recipe = (json.loads((folder / name).read_text()) for name in ("result.json", "recipe.json"))
    for name in ("recipe", "model", "dataset", "dataset_reason", "status", "device", "precision", "error"):
        result[name] = EVIL
    result["claims"] = [{"name": EVIL, "documented": EVIL, "measured": 1.0, "met": True}]
    result["command"] = ["data_dir=/home/somebody/secret", EVIL]
    result["versions"] = {EVIL: EVIL}
    recipe["recipe"]["schedule"] = recipe["options"]["data_dir"] = EVIL + " /home/somebody/secret"
    (folder / "result.json").write_text(json.dumps(result))
    (folder / "recipe.json").write_text(json.dumps(recipe))
    before = Read((ran.folder / "report.html").read_text())
    for words in ([folder], [folder, ran.folder, f"out={folder}/report.html"]):
        page = again(*words)
        read = Read(page)
        assert {kind for kind, _ in read.tags} <= {kind for kind, _ in before.tags} | {"li", "ul"}
        assert not any(name.startswith("on") for _, attributes in read.tags for name in attributes)
        scripts = sum(kind == "script" for kind, _ in read.tags)  # ours, the pad's
        assert page.count("</script>") == scripts and "onerror=alert(1)>" in read.text and "<b>x" in read.text
        assert "somebody" not in page and "\x1b" not in page
    assert "data_dir=~/secret" in again(folder)


def test_older_runs_have_a_page_of_what_there_is(ran: Ran) -> None:
    result = json.loads((ran.folder / "result.json").read_text())
    for stats in result["history"]:
        del stats["train_accuracy"]
    for name in ("warmup_seconds", "resumed_from", "error"):
        del result[name]
    (ran.folder / "result.json").write_text(json.dumps(result))
    for name in ("recipe.json", "evaluation.safetensors"):
        (ran.folder / name).unlink()
    read = Read(again(ran.folder))
    assert f"{ran.result.accuracy:.2f} %" in read.text and "Learning rate" in read.text
    assert "Most confidently wrong" not in read.text and not any(kind == "img" for kind, _ in read.tags)


def test_an_evaluation_of_another_run_is_not_shown_as_this_one_s(ran: Ran) -> None:
    kept = load_file(ran.folder / "evaluation.safetensors")
    kept["labels"] = (kept["labels"] + 1) % 10
    save_file(kept, ran.folder / "evaluation.safetensors")
    read = Read(again(ran.folder))
    assert "evaluation.safetensors is not of this run" in read.text and "Confusion" not in read.text


HOSTILE = [None, True, -1, 0, 10**400, 1e300, -1e-300, 5e-324, "", "x" * 100_000, [], [[]], {}, {"a": 1}, "nan"]


def test_a_file_that_lies_costs_one_line_and_never_a_traceback(ran: Ran, tmp_path: Path) -> None:
    """Every value of both files by everything that it is not, one after the other."""
    (
        ran.folder / "model.safetensors"
    ).unlink()  # whose pad, made anew each time, takes longer than the rest of the page
    tried = 0
    for name in ("result.json", "recipe.json"):
        whole = (ran.folder / name).read_text()
        for path in sorted(places(json.loads(whole)), key=str):
            value = random.Random(str(path)).choice(HOSTILE)
            changed = json.loads(whole)
            put(changed, path, value)
            (ran.folder / name).write_text(json.dumps(changed))
            makes_a_page_or_one_line(ran.folder)
            tried += 1
        for text in ("", "[" * 100_000, "{", "[]", "null", '{"schema": 1}', "NaN", "\x00", "9" * 5000):
            (ran.folder / name).write_text(text)
            makes_a_page_or_one_line(ran.folder)
        (ran.folder / name).write_text(whole)
    assert tried > 80


@pytest.mark.parametrize("number", [10**400, -1e16, float("inf"), float("nan")])
def test_numbers_that_cannot_be_computed_with_are_refused(ran: Ran, number: float) -> None:
    whole = json.loads((ran.folder / "result.json").read_text())
    for name in ("epochs", "train_images", "train_seconds", "accuracy"):
        (ran.folder / "result.json").write_text(json.dumps(whole | {name: number}))
        with pytest.raises(UserError, match="it holds a number that cannot be"):
            report_page.page_of(ran.folder)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return ([path] if path else []) + [place for key, item in inside for place in places(item, (*path, key))]


def put(value: Any, path: tuple[Any, ...], new: Any) -> None:
    for key in path[:-1]:
        value = value[key]
    value[path[-1]] = new


def makes_a_page_or_one_line(folder: Path) -> None:
    said = ""
    try:
        Read(report_page.page_of(folder))
    except UserError as error:
        said = str(error)
    assert said == "" or ("\n" not in said and said.isprintable() and str(folder) in said)


@pytest.mark.parametrize(
    "damage",
    [
        lambda kept: kept.pop("labels"),
        lambda kept: kept.update(logits=kept["logits"][:, :3].contiguous()),
        lambda kept: kept.update(logits=kept["logits"].double()),
        lambda kept: kept.update(logits=kept["logits"] * torch.nan),
        lambda kept: kept.update(labels=kept["labels"] + 10),
        lambda kept: kept.update(labels=torch.tensor(3, dtype=torch.uint8)),
        lambda kept: kept.update(wrong_index=kept["wrong_index"] - 10_000),
        lambda kept: kept.update(wrong_images=kept["wrong_images"][:, :5].contiguous()),
    ],
)
def test_logits_that_cannot_be_are_left_out_with_a_reason(ran: Ran, damage: Callable[[Any], Any]) -> None:
    kept = load_file(ran.folder / "evaluation.safetensors")
    damage(kept)
    save_file(kept, ran.folder / "evaluation.safetensors")
    assert "Not kept: evaluation.safetensors: " in Read(again(ran.folder)).text


def test_runs_lie_side_by_side(
    ran: Ran, run_here: RunHere, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    other = run_here("recipe=efficient25k", "epochs=3", "batch_size=150", "seed=5")
    assert report.main([str(ran.folder), str(other.folder)]) == 0
    assert capsys.readouterr().out == "report    comparison.html\n"
    read = Read(Path("comparison.html").read_text())
    for one in (ran, other):
        (row,) = [row for row in read.rows if row[0] == "/".join(one.folder.parts[-2:])]
        result = one.result
        assert row[1:3] == [f"{result.accuracy:.2f} %", f"{result.test_loss:.4f}"]
        assert row[3:6] == [
            f"{result.history[-1].train_accuracy:.2f} %",
            f"{result.train_loss:.4f}",
            f"{result.epochs} of {result.epochs}",
        ]
    assert ["seed", "0", "5"] in read.rows and ["epochs", "2", "3"] in read.rows
    assert ["recipe", "onepoch", "efficient25k"] in read.rows and not any(
        row[0] == "dropout" for row in read.rows if row[1:2] == row[2:3]
    )
    # What lies there is made again, and passed over where a pattern of the shell's names it.
    assert report.main(["comparison.html", str(ran.folder), str(other.folder)]) == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["out=x.html"], "report: no run given. Type "),
        (["nowhere"], "nowhere: no result.json there. Name the folder of a run"),
        (["RUN", "RUN"], "report: the same run twice"),
        (["RUN", "out=mine.txt"], "out=mine.txt: is a file that this program did not make. Name another"),
        (["RUN", "out=."], "out=.: is a folder. Name a file in it"),
        (["RUN", "out=gone/x.html"], "out=gone/x.html: cannot be written (No such file or directory)"),
        (["RUN", "pages=3"], "pages=3: no such key"),
    ],
)
def test_a_mistake_costs_one_line(
    words: list[str], said: str, ran: Ran, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.txt").write_text("mine")
    with pytest.raises(UserError) as refused:
        report.main([str(ran.folder) if word == "RUN" else word for word in words])
    assert str(refused.value).startswith(said) and "\n" not in str(refused.value)
    assert Path("mine.txt").read_text() == "mine"


def test_a_run_of_very_many_epochs_has_a_page_that_still_opens(ran: Ran) -> None:
    result = json.loads((ran.folder / "result.json").read_text())
    first, last = result["history"]
    result["history"] = [first | {"epoch": epoch} for epoch in range(1, 30_000)] + [last | {"epoch": 30_000}]
    (ran.folder / "result.json").write_text(json.dumps(result | {"epochs": 30_000}))
    page = again(ran.folder)
    assert len(page) < 1_000_000 and "1,001 of 30,000 epochs" in Read(page).text
    assert any(row[0] == "30000" for row in Read(page).rows)


# When a run writes it


def test_a_run_that_failed_has_a_report_too_also_before_its_first_epoch(run_here: RunHere, tmp_path: Path) -> None:
    def fail(stats: EpochStats) -> None:
        raise TrainingFailed("loss is <nan>")

    out = tmp_path / "failed"
    words = ("recipe=onepoch", "epochs=2", f"out={out}")
    with pytest.raises(TrainingFailed):
        run_here(*words, watcher=Watcher(on_epoch=fail), make_report=report_page.page_of)
    read = Read((out / "report.html").read_text())
    assert "failed" in read.text and "loss is <nan>" in read.text and "1 of 2" in read.text
    assert not (out / "evaluation.safetensors").exists()
    early = tmp_path / "early"
    with pytest.raises(TrainingFailed):
        run_here("recipe=onepoch", "lr=1e38", f"out={early}", make_report=report_page.page_of)
    assert "No epoch was finished" in Read((early / "report.html").read_text()).text


def test_a_report_that_cannot_be_written_costs_a_note_and_not_the_run(run_here: RunHere, tmp_path: Path) -> None:
    said: list[str] = []

    def no_page(folder: Path) -> str:
        raise RuntimeError("no home folder")

    def in_the_way(folder: Path) -> str:
        (folder / "report.html").mkdir()
        return "page"

    for make_report in (no_page, in_the_way):
        told: list[Path] = []
        watcher = Watcher(on_problem=said.append, on_report=told.append)
        assert run_here("recipe=onepoch", watcher=watcher, make_report=make_report).result.status == "finished"
        assert told == []
    assert [re.sub(r"^\S+/", "", line) for line in said] == [
        "report.html could not be made: RuntimeError: no home folder",
        "report.html could not be written: Is a directory",
    ]


# The shell and its charts


def test_only_tag_makes_markup() -> None:
    assert tag("p", "<b>", tag("i", "x"), title='"') == '<p title="&quot;">&lt;b&gt;<i>x</i></p>'
    page = document("a < b", tag("h1", "x"), [], ["run()"], {"data": {"a": "</script>"}})
    assert "default-src &#x27;none&#x27;" in page and GENERATOR in page
    assert '{"a":"\\u003c/script\\u003e"}' in page and "<title>a &lt; b</title>" in page


def test_a_chart_puts_values_where_they_belong_and_leaves_gaps() -> None:
    drawn = charts.line_chart("t", [charts.Series("s", [1, 2, 3, 4], [10.0, 20.0, None, 0.0])], width=100, height=100)
    (line,) = re.findall(r'<path d="M([^"]+)" class="line', drawn)
    (x1, y1), (x2, y2) = (map(float, pair.split()) for pair in line.split("L"))
    assert x1 == charts.LEFT and x1 < x2 < 100 - charts.RIGHT and y2 < y1
    assert charts.line_chart("t", [charts.Series("s", [1], [None])]) == ""
    assert charts.even_ticks(0, 1, 4) == [0, 0.5, 1.0] and charts.log_ticks(0.5, 200) == [1, 10, 100]
