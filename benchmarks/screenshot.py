"""Pictures of pages in a browser: ``python -m benchmarks.screenshot PAGE PICTURE.png [WIDTH [HEIGHT]] [dark]``.

PAGE is a file, or the folder of a run, whose report.html is meant. Needs playwright (the extra dev) and a chromium.
"""

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ARGUMENTS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run")
TALLEST = 1500  # pixels: a README shows the top of a page


def find_chromium() -> str | None:
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@contextmanager
def browser(**how: Any) -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=find_chromium(), args=list(ARGUMENTS), **how)
        yield opened
        opened.close()


def main(page: Path, picture: Path, width: int, scheme: str, tallest: int | None = TALLEST) -> None:
    if page.is_dir():
        page = page / "report.html"
    with browser() as chromium:
        shown = chromium.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True)
        shown.goto(page.resolve().as_uri())
        height = shown.evaluate("document.documentElement.scrollHeight")
        clip = {"x": 0, "y": 0, "width": width, "height": min(height, tallest or height)}
        shown.screenshot(path=picture, full_page=True, clip=clip)


if __name__ == "__main__":
    words = sys.argv[1:]
    typed = [int(word) for word in words[2:] if word.isdecimal()]
    width, height = typed + [1180, TALLEST][len(typed) :]
    scheme = "dark" if "dark" in words else "light"
    main(Path(words[0]), Path(words[1]), width, scheme, None if "all" in words else height)
