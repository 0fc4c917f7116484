"""A real browser for tests of pages: one a session, without a network."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from benchmarks.screenshot import browser as opened_browser
from benchmarks.screenshot import find_chromium


@dataclass
class Shown:
    """A page in the browser, and what it complained about."""

    page: Any
    complaints: list[str] = field(default_factory=list)
    asked_for: list[str] = field(default_factory=list)  # addresses of files or hosts, its own first

    def ask(self, code: str, *arguments: Any) -> Any:
        return self.page.evaluate(code, *arguments)


Show = Callable[..., Any]


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    pytest.importorskip("playwright", reason="needs playwright: pip install playwright")
    if find_chromium() is None:
        pytest.skip("needs a chromium: apt-get install chromium")
    with opened_browser() as chromium:
        yield chromium


@pytest.fixture
def show(browser: Any) -> Show:
    """``with show(file, width=390, scheme="dark") as shown``: from file://, offline."""

    @contextmanager
    def show(file: Path, *, width: int = 1440, scheme: str = "light", **how: Any) -> Iterator[Shown]:
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True, **how
        )
        shown = Shown(context.new_page())
        shown.page.on("console", lambda message: shown.complaints.append(message.text))
        shown.page.on("pageerror", lambda error: shown.complaints.append(str(error)))
        shown.page.on("request", lambda request: shown.asked_for.append(request.url))
        shown.page.goto(file.resolve().as_uri())
        yield shown
        context.close()

    return show
