"""A real browser for pages: Debian's Chromium without a window, driven by Playwright.

Where one of them is missing, the tests that ask for ``browser`` skip, saying what to install.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ConsoleMessage, Page, Request

ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--no-first-run",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture(scope="session")
def browser() -> Iterator["Browser"]:
    api = pytest.importorskip("playwright.sync_api", reason="no Playwright here: pip install playwright")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    with api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=chromium, args=list(ARGUMENTS))
        yield running
        running.close()


@contextmanager
def opened(browser: "Browser", path: Path, width: int = 1440, **settings: Any) -> Iterator["Page"]:
    """The page of a file, offline. Anything on its console, and anything that it asks the network for, fails."""
    context = browser.new_context(viewport={"width": width, "height": 900}, offline=True, **settings)
    page = context.new_page()
    complaints: list[str] = []

    def on_console(message: "ConsoleMessage") -> None:
        complaints.append(f"{message.type}: {message.text}")

    def on_request(request: "Request") -> None:
        if request.url != path.as_uri() and not request.url.startswith("data:"):
            complaints.append(f"asks for {request.url}")

    page.on("console", on_console)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", on_request)
    try:
        page.goto(path.as_uri())
        yield page
        assert not complaints, complaints
    finally:
        context.close()
