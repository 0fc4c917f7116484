"""Pages as a browser shows them: no complaint, no connection, nothing that has to be scrolled sideways."""

from collections.abc import Callable
from pathlib import Path

import pytest
from browser import Show
from conftest import Ran
from jobs import Run

from mnist_accel.pages import comparison_page, page, report_page

LOOK = """() => ({
    wide: document.documentElement.scrollWidth - document.documentElement.clientWidth,
    paper: getComputedStyle(document.body).backgroundColor,
    small: [...document.querySelectorAll('svg text')].map(text => text.getBoundingClientRect().height),
    broken: [...document.images].filter(image => !image.naturalWidth).length,
    pictures: document.images.length,
})"""


@pytest.fixture
def pages(trained_run: Run, dry_run: Run, run_here: Callable[..., Ran], tmp_path: Path) -> dict[str, Path]:
    both = tmp_path / "comparison.html"
    both.write_text(comparison_page.page_of([trained_run.folder, dry_run.folder], ["one", "two"]))
    is3 = run_here("recipe=is3", "epochs=2", "batch_size=100", make_report=report_page.page_of)
    reports = {"report": trained_run.folder / "report.html", "is3": is3.folder / "report.html"}
    return reports | {"comparison": both}


def test_pages_load_offline_and_fit_the_screen_in_light_and_dark(pages: dict[str, Path], show: Show) -> None:
    papers = set()
    for name, file in pages.items():
        for width, scheme in ((390, "dark"), (1440, "light")):
            with show(file, width=width, scheme=scheme) as shown:
                seen = shown.ask(LOOK)
                assert (shown.complaints, shown.asked_for) == ([], [file.resolve().as_uri()]), name
                assert (seen["wide"], seen["broken"]) == (0, 0), (name, width)
                assert min(seen["small"]) > 9, (name, width)  # what stands in charts can be read
                assert (seen["pictures"] > 0) == (name != "comparison")
                papers.add((scheme, seen["paper"]))
    assert len(papers) == 2  # light and dark


def test_what_a_page_must_not_do_the_browser_refuses(show: Show, tmp_path: Path) -> None:
    """Scripts that came with it run and find their data; nothing else does, and nothing is fetched."""
    script = """
        window.found = JSON.parse(document.getElementById('words').textContent);
        fetch('https://example.org/').catch(() => { window.refused = true; });
    """
    evil = page.Html("<img src='https://example.org/x.png'><script>window.evil = 1</script><p onclick='evil=1'>x</p>")
    whole = page.document("t", evil, [], [script], {"words": ["</script><script>window.evil = 1</script>", "ä"]})
    (tmp_path / "page.html").write_text(whole)
    with show(tmp_path / "page.html") as shown:
        shown.page.click("p")
        shown.page.wait_for_function("window.refused")
        assert shown.ask("() => window.evil") is None
        assert shown.ask("() => window.found") == ["</script><script>window.evil = 1</script>", "ä"]
        assert shown.ask("() => document.images[0].naturalWidth") == 0
        refusals = " ".join(shown.complaints)
        for directive in ("script-src", "img-src", "connect-src"):
            assert directive in refusals
