"""The page of a profile: its figures are the summary's, nothing in it is believed or left unescaped."""

import errno
import gzip
import json
import random
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from browser import Show
from conftest import Ran
from test_profiling import USUAL, an_event, made_up, traced
from test_report_page import EVIL, Read

from mnist_accel.commands import trace
from mnist_accel.errors import UserError
from mnist_accel.models import build_model
from mnist_accel.pages import profile_comparison, roofline_chart
from mnist_accel.pages.page import GENERATOR
from mnist_accel.pages.profile_page import Place, page_of, page_of_run
from mnist_accel.profiling import collect
from mnist_accel.profiling.gradients import measure_gradients
from mnist_accel.profiling.layers import analyse
from mnist_accel.profiling.roofline import Roofline
from mnist_accel.profiling.summary import (
    ConvolutionRow,
    Cost,
    ProfileSummary,
    RankTimes,
    as_json,
    summarise,
    summary_beside,
)
from mnist_accel.profiling.trace_file import read_trace
from mnist_accel.profiling.verdict import Part
from mnist_accel.profiling.wording import three_figures
from mnist_accel.runs.watcher import Watcher

NAME = "rank0.1.pt.trace.json.gz"
HERE = Place("x.json")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As profile=true leaves it: nine convolutions, two processes."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("profiles") / "sub20k-now"
    folder.mkdir()
    network = build_model("sub20k", 0.1).to(memory_format=torch.channels_last)
    path, _ = traced(network, folder)
    (folder / NAME).write_bytes(gzip.compress(path.read_bytes()))
    path.rename(folder / "rank1.1.pt.trace.json")
    analysis = analyse(read_trace(folder / NAME))
    measure_gradients(analysis, network)
    summary = summarise(
        analysis,
        Roofline("fp32", 123.0, 45.0),
        RankTimes(0, 30.0, 20.0),
        recipe="sub20k",
        batch_size=8,
        precision="fp32",
        machine={"cpu": "a <b>machine</b>", "threads": 1},
        trace=NAME,
        folder=str(folder),
        cost=Cost(30.0, 20.0, [20.0], [30.0], [20.0], 0.5),
        ranks=[RankTimes(0, 30.0, 20.0), RankTimes(1, 31.0, 21.0)],
        world_size=2,
    )
    (folder / "summary.json").write_text(as_json(summary))
    (folder / "profile.html").write_text(page_of_run(summary))
    return folder


@pytest.fixture
def summary(folder: Path) -> ProfileSummary:
    found, why_not = summary_beside(folder / NAME)
    assert found, why_not
    return found


def test_its_figures_are_those_of_the_summary(folder: Path) -> None:
    """Of the file as JSON: no code of ours lies between."""
    told = json.loads((folder / "summary.json").read_text())
    page = Read((folder / "profile.html").read_text())
    assert told["verdict"]["sentence"] in page.text and "a step 20 ms with the profiler 30 ms" in page.text
    assert len(told["convolutions"]) == 9
    for row in told["convolutions"]:
        figures = [row[key] for key in ("forward_ms", "backward_ms", "weight_gradient_ms", "input_gradient_ms")]
        shown = list(map(three_figures, figures))
        if not row["gflop_input_gradient"]:
            shown[-1] = "-"
        share = f"{row['forward_share'] + row['backward_share']:.1f}"
        speed = [three_figures(row[key]) for key in ("gflops", "intensity", "roofline_percent")]
        named = f"{row['name']} [{row['module']}]" if row["module"] != row["name"] else row["name"]
        assert [named, *shown, share, *speed, row["shape"]] in page.rows
        gflops = three_figures(1000 * row["gflop_forward"] / row["forward_ms"])
        assert any(line[0] == f"{named} forward" and line[4] == gflops for line in page.rows)
    for phase in told["phases"]:
        assert f"{phase['name']} {three_figures(phase['ms'])} ms, {phase['share']:.1f} %" in page.text
    for layer in told["verdict"]["other_layers"]:
        assert [layer["name"], three_figures(layer["ms"]), str(layer["percent"])] in page.rows
    assert ["rank 0", "20", "30"] in page.rows and ["rank 1", "21", "31"] in page.rows
    assert "a <b>machine</b>" in page.text and "https://ui.perfetto.dev" in str(page.tags)


def marks(page: str, kind: str = "wide") -> list[tuple[str, float, float]]:
    """What each mark of the plot says, and where it begins."""
    drawing = page.partition(f'<div class="{kind}">')[2].partition("</svg></figure>")[0]
    found = re.findall(r'<path d="M([\d.]+) ([\d.]+)[^"]*" class="dot ringed [^>]*><title>([^<]*)', drawing)
    return [(told, float(x), float(y)) for x, y, told in found]


def a_row(name: str, **changes: Any) -> ConvolutionRow:
    """Two GFLOP a pass: forward at the roof of 100 GFLOP/s and 10 GB/s, the gradients at a half and a tenth of it."""
    usual: dict[str, Any] = dict.fromkeys(("gflop_forward", "gflop_weight_gradient", "gflop_input_gradient"), 2.0)
    usual |= {"name": name, "module": name, "shape": "", "forward_share": 1.0, "backward_share": 2.0}
    usual |= {"forward_ms": 20.0, "backward_ms": 240.0, "weight_gradient_ms": 40.0, "input_gradient_ms": 200.0}
    usual |= {"gflops": 1.0, "intensity": 100.0, "roofline_percent": 2.0}
    return ConvolutionRow(**usual | changes)


ROOF = Roofline("fp32", 100.0, 10.0)


def test_every_pass_has_a_mark_where_its_speed_and_intensity_are(summary: ProfileSummary) -> None:
    chart = roofline_chart.roofline_chart([a_row("one"), a_row("two", intensity=1.0)], ROOF)
    forward, weights, inputs, *rest = marks(chart)
    assert forward[0] == "one, forward: 20 ms, 100 GFLOP/s, 100 % of the roof"
    assert weights[0] == "one, weight gradient: 40 ms, 50 GFLOP/s, 50 % of the roof"
    assert inputs[0] == "one, input gradient: 200 ms, 10 GFLOP/s, 10 % of the roof"
    assert rest[0][0].endswith("100 GFLOP/s, 1,000 % of the roof"), "memory allows 10"
    corners = [
        tuple(map(float, place.split())) for place in re.findall(r'd="M([^"]*)" class="roof"', chart)[0].split("L")
    ]
    assert forward[2] == pytest.approx(corners[1][1], abs=0.2) == corners[2][1], "on the flat part"
    assert corners[0][1] > corners[1][1] and rest[0][1] < corners[1][0] < forward[1]
    assert forward[2] < weights[2] < inputs[2] and len(marks(chart, "narrow")) == len(marks(chart)) == 6
    whole = page_of_run(summary)
    assert len(marks(whole)) == 3 * 9 - 1, "the images need no gradient"


def test_where_nobody_knows_how_backward_divides_it_is_one_mark(summary: ProfileSummary) -> None:
    row = a_row("one", weight_gradient_ms=None, input_gradient_ms=None)
    assert [told for told, *_ in marks(roofline_chart.roofline_chart([row], ROOF))] == [
        "one, forward: 20 ms, 100 GFLOP/s, 100 % of the roof",
        "one, backward: 240 ms, 16.7 GFLOP/s, 16.7 % of the roof",
    ]
    assert "it is one mark" in page_of(replace(summary, convolutions=[row]), HERE)


def test_trace_takes_from_the_run_how_backward_divides(folder: Path, summary: ProfileSummary) -> None:
    for name in (NAME, "rank1.1.pt.trace.json"):
        again, _, is_whole_run = trace.summary_of(folder / name)
        assert is_whole_run == (name == NAME)
        shares = [row.weight_share for row in again.convolutions]
        assert shares == pytest.approx([row.weight_share for row in summary.convolutions])


# Traces from anywhere


def evil_trace(path: Path) -> Path:
    """A layer, another one and an operation that are called what no page may run."""
    linked = {"Sequence number": 1}
    events = [
        an_event(cat="user_annotation", name="ProfilerStep#0", ts=0.0, dur=50.0, args={}),
        an_event(cat="user_annotation", name=f"layer:{EVIL}", ts=1.0, dur=9.0, args={}),
        an_event(name="aten::conv2d", ts=2.0, dur=7.0, args=linked),
        an_event(cat="user_annotation", name=f"module:{EVIL}", ts=12.0, dur=9.0, args={}),
        an_event(name=f"aten::{EVIL}", ts=13.0, dur=7.0, args={"Sequence number": 2}),
    ]
    path.write_text(json.dumps({"traceEvents": events}))
    return path


def test_names_cannot_become_markup(tmp_path: Path) -> None:
    path = evil_trace(tmp_path / "<img src=x onerror=alert(1)>.json")
    assert trace.main([str(path)]) == 0 and trace.main([str(path), f"against={path}"]) == 0
    pages = [page.read_text() for page in tmp_path.glob("*.html")]
    assert len(pages) == 2
    for page in pages:
        read = Read(page)
        assert not {"img", "script"} & {kind for kind, _ in read.tags} and "\x1b" not in page
        assert not any(name.startswith("on") for _, attributes in read.tags for name in attributes)
        assert "</script><img src=x onerror=alert(1)>" in read.text and "<img src=x onerror=alert(1)>.json" in read.text


def test_a_trace_without_a_roof_says_why(tmp_path: Path) -> None:
    path, _ = traced(build_model("onepoch", 0.1), tmp_path, annotated=False)
    assert trace.main([str(path)]) == 0
    page = (tmp_path / "here.1.html").read_text()
    read = Read(page)
    assert "No plot, and no percent of the roof: there is no summary.json beside the trace" in read.text
    assert "here.1.pt.trace.json profile" in read.text and not marks(page) and "Processes" not in read.text
    assert any(row[0] == "conv2" and row[3:5] == ["-", "-"] and row[8] == "-" for row in read.rows)


def test_a_gpu_s_run_without_kernels_shows_no_figures(summary: ProfileSummary) -> None:
    read = Read(page_of(replace(summary, without_kernels=True, phases=[], convolutions=[]), HERE))
    assert not any(title in read.text for title in ("The step by phase", "Against the roof", "a step 20 ms"))
    assert summary.verdict.sentence in read.text


def test_thousands_of_rows_and_endless_names_make_a_small_page(summary: ProfileSummary) -> None:
    row, long = summary.convolutions[1], EVIL * 20
    rows = [replace(row, name=f"{number}{long}", forward_ms=row.forward_ms + number) for number in range(20_000)]
    endless = EVIL * 100_000
    many = replace(
        summary,
        convolutions=rows,
        recipe=endless,
        precision=endless,
        roofline=replace(ROOF, precision=endless),
        machine={f"{number}{long}": endless for number in range(1_000)},
        verdict=replace(summary.verdict, sentence=endless, other_layers=[Part(long, 1.0, 1)] * 20_000),
        ranks=[RankTimes(number, 1.0, 1.0) for number in range(20_000)],
    )
    page = page_of(many, HERE, endless)
    assert len(page.encode()) < 3_000_000 and Read(page).open == []
    assert page.count("The 200 largest of 20,000.") == 3 and "Drawn are the 24 that take longest." in page
    shown = {row[0][:5] for row in Read(page).rows}
    assert "19999" in shown and "19800" in shown and "19799" not in shown
    both = profile_comparison.page_of(many, HERE, many, HERE)
    assert len(both.encode()) < 3_000_000 and "The 200 largest of 40,0" in both


@pytest.mark.parametrize("extreme", [1e-60, 1e14])
def test_no_figure_is_too_large_or_too_small_for_the_plot(summary: ProfileSummary, extreme: float) -> None:
    rows = [a_row("one", intensity=extreme, forward_ms=extreme), a_row("two", gflop_forward=extreme)]
    page = page_of(replace(summary, convolutions=rows, roofline=Roofline("fp32", extreme, 1.0)), HERE)
    assert not re.search(r"\b(nan|inf)\b", page)


# Two beside each other


def test_two_traces_are_laid_side_by_side_and_only_what_changed_is_marked(tmp_path: Path) -> None:
    slow = USUAL | {"backward": 40.0}
    for name, step in (("usual", USUAL), ("slow", slow)):
        made_up(tmp_path / f"{name}.json", [step] * 5)
    assert trace.main([str(tmp_path / "usual.json"), f"against={tmp_path / 'slow.json'}"]) == 0
    page = (tmp_path / "usual-against-slow.html").read_text()
    rows = {row[0]: row[1:5] for row in Read(page).rows if len(row) == 6}
    assert rows["the step faster"] == ["0.04", "0.06", "0.667", "0"]
    assert rows["conv1 backward faster"][:3] == ["0.02", "0.04", "0.5"]
    assert rows["forward "][:3] == rows["conv1 forward "][:3] == ["0.01", "0.01", "1"]
    widths = [float(width) for width in re.findall(r'width="([\d.]+)" height="22"', page)]
    assert sum(widths[: len(widths) // 2]) == pytest.approx(1000 * 40 / 60, abs=0.1), "both bars have one scale"
    assert sum(widths[len(widths) // 2 :]) == pytest.approx(1000, abs=0.1)


def test_what_differs_beside_the_code_and_what_only_one_has_is_told(summary: ProfileSummary) -> None:
    other = replace(summary, batch_size=9, convolutions=[*summary.convolutions[:-1], a_row("new", shape="8×1")])
    read = Read(profile_comparison.page_of(summary, HERE, other, HERE))
    assert ["batch_size", "8", "9"] in read.rows and ["new 8×1", "only in the other"] in read.rows
    assert any(row[1:] == ["only here"] for row in read.rows)


# Where it is written


def test_a_run_writes_it_beside_its_summary(
    run_here: Callable[..., Ran], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    told: list[str] = []
    full: list[str] = []

    def write(path: Path, content: bytes) -> None:
        if path.name in full:
            raise OSError(errno.ENOSPC, "No space left on device")
        path.write_bytes(content)

    monkeypatch.setattr(collect, "write_whole", write)
    words = ("recipe=onepoch", "epochs=1", "batch_size=30", "profile=true")
    for _ in range(2):
        summaries: list[ProfileSummary] = []
        watcher = Watcher(on_problem=told.append, on_profile=summaries.append, make_profile_page=page_of_run)
        assert run_here(*words, watcher=watcher).result.status == "finished"
        folder = Path(summaries[0].folder)
        if full:
            assert told == [f"{folder / full[0]} could not be written: No space left on device"]
            assert (folder / "summary.json").is_file() and not (folder / "profile.html").exists()
        else:
            assert told == [] and (folder / "profile.html").read_text() == page_of_run(summaries[0])
            weights = [row.weight_gradient_ms for row in summaries[0].convolutions]
            assert len(weights) == 2 and all(weights)
        full.append("profile.html")


def test_trace_writes_it_beside_the_trace_or_where_it_is_asked_to(
    summary: ProfileSummary, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, asked = tmp_path / "profile-now", tmp_path / "asked.html"
    folder.mkdir()
    for name in ("rank0.json", "rank1.json"):
        made_up(folder / name, [USUAL])
    (folder / "summary.json").write_text(as_json(replace(summary, trace="rank0.json")))

    def said(*words: object) -> str:
        assert trace.main(list(map(str, words))) == 0
        return capsys.readouterr().out.rstrip().splitlines()[-1]

    monkeypatch.setenv("COLUMNS", "300")
    assert said(folder) == f"page      {folder / 'profile.html'}"
    assert said(folder / "rank1.json").endswith("/rank1.html")
    assert said(folder, f"against={folder}").endswith("/profile-against-profile-now.html")
    for _ in range(2):  # its own page is made again
        assert said(folder, f"out={asked}") == f"page      {asked}"
    assert GENERATOR in asked.read_text()
    (folder / "profile.html").write_text("a letter")
    assert "profile.html is a file that this program did not make; out=FILE names another" in said(folder)
    assert (folder / "profile.html").read_text() == "a letter"
    (folder / "profile.html").unlink()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(trace, "write_whole", full)
    assert "none: " in said(folder) and not (folder / "profile.html").exists()
    with pytest.raises(UserError, match=r"^out=\S+: cannot be written \(No space left on device\). Name another"):
        trace.main([str(folder), f"out={asked}"])
    (tmp_path / "letter.html").write_text("a letter")
    for out, says in (
        ("letter.html", "is a file that this program did not make"),
        ("", "is a folder"),
        ("nowhere/x.html", "cannot be written"),
    ):
        with pytest.raises(UserError) as error:
            trace.main([str(folder), f"out={tmp_path / out}"])
        assert str(error.value) == f"out={tmp_path / out}: {says}. Name another file"


# As a browser shows it

OVERLAPS = """() => {
    const seen = [...document.querySelectorAll('svg text')].map(text => text.getBoundingClientRect())
        .filter(box => box.width);
    const meet = (a, b) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1
        && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 1;
    return seen.filter((a, i) => seen.some((b, j) => j > i && meet(a, b))).length;
}"""
NAMES = "() => [...document.querySelectorAll('text.name')].filter(text => text.getBoundingClientRect().width).length"
WIDER = "() => document.documentElement.scrollWidth - document.documentElement.clientWidth"


def test_it_loads_offline_fits_the_screen_and_no_label_lies_on_another(
    summary: ProfileSummary,
    tmp_path: Path,
    show: Show,
) -> None:
    chance = random.Random(0)
    times = ("forward_ms", "weight_gradient_ms", "input_gradient_ms")
    crowd = [
        a_row(f"conv{n}", intensity=20 * 1.5 ** chance.gauss(0, 1), **{key: 20 * 2 ** chance.random() for key in times})
        for n in range(24)
    ]
    (tmp_path / "one.html").write_text(page_of_run(replace(summary, convolutions=crowd)))
    (tmp_path / "two.html").write_text(profile_comparison.page_of(summary, HERE, summary, HERE))
    for name in ("one", "two"):
        for width, scheme in ((390, "dark"), (1440, "light")):
            with show(tmp_path / f"{name}.html", width=width, scheme=scheme) as shown:
                assert (shown.complaints, len(shown.asked_for), shown.ask(WIDER)) == ([], 1, 0)
                assert (shown.ask(OVERLAPS), shown.ask(NAMES)) == (0, 24 if name == "one" else 0)
