"""The shell of every page: one self-contained HTML file that can neither fetch nor send anything.

What is put into a page is escaped unless it is ``Html``, and only ``tag`` and ``joined`` make that: nothing from a run,
a trace or a file name can become markup. The content policy allows the style and the scripts that the page came with,
by their SHA-256, pictures that lie in it, and no connection.
"""

import base64
import hashlib
import html
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
VOID = ("meta", "img", "br", "path", "line", "circle", "rect", "polyline", "input")


class Html(str):
    """Markup: what is in it was escaped when it was made."""

    __slots__ = ()


GENERATOR = Html('<meta name="generator" content="mnist_accel">')


def is_ours(path: Path) -> bool:
    """Whether a file is a page that was made here, which may be made again."""
    try:
        with path.open("rb") as file:
            return GENERATOR.encode() in file.read(2000)
    except OSError:
        return False


@dataclass(frozen=True)
class Section:
    title: str
    body: Html
    name: str = ""  # to link to it
    lead: str = ""  # a sentence under the title


def document(
    title: str,
    header: Html,
    sections: Iterable[Section],
    scripts: Sequence[str] = (),
    data: Mapping[str, Any] | None = None,
) -> str:
    """The whole file. ``scripts`` run one after the other at its end; ``data`` is what they find, by the element's id,
    as JSON: ``JSON.parse(document.getElementById(id).textContent)``."""
    style = (HERE / "style.css").read_text(encoding="utf-8")
    head = [
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy([style], scripts)),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("meta", name="referrer", content="no-referrer"),
        GENERATOR,
        tag("title", title),
        tag("style", Html(style)),
    ]
    body = [tag("header", header), tag("main", *(section_of(section) for section in sections))]
    blobs = [tag("script", as_data(value), type="application/json", id=name) for name, value in (data or {}).items()]
    running = [tag("script", Html(script)) for script in scripts]
    return "<!doctype html>\n" + tag("html", tag("head", *head), tag("body", *body, *blobs, *running), lang="en") + "\n"


def policy(styles: Sequence[str], scripts: Sequence[str]) -> str:
    allowed = {
        "style-src": " ".join(map(hashed, styles)) or "'none'",
        "script-src": " ".join(map(hashed, scripts)) or "'none'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    return "; ".join(["default-src 'none'", *(f"{kind} {sources}" for kind, sources in allowed.items())])


def hashed(content: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


def section_of(section: Section) -> Html:
    lead = tag("p", section.lead, class_="lead") if section.lead else ""
    return tag("section", tag("h2", section.title), lead, section.body, id=section.name or None)


def tag(element: str, /, *content: object, **attributes: object) -> Html:
    """``tag("td", "a < b", class_="number")``. Content that is no Html is escaped; attributes that are None are left
    out, ``http_equiv`` becomes ``http-equiv``."""
    words = [element]
    for key, value in attributes.items():
        if value is not None and value is not False:
            written = key.rstrip("_").replace("_", "-")
            words.append(written if value is True else f'{written}="{escaped(value)}"')
    opening = f"<{' '.join(words)}>"
    if element in VOID and not content:
        return Html(opening if element in ("meta", "img", "br", "input") else f"{opening[:-1]}/>")
    return Html(f"{opening}{joined(content)}</{element}>")


def joined(parts: Iterable[object]) -> Html:
    return Html("".join(part if isinstance(part, Html) else escaped(part) for part in parts))


def escaped(value: object) -> str:
    text = home_as_tilde(str(value))
    if not text.isprintable():  # nor what UTF-8 cannot hold
        text = "".join(sign if sign.isprintable() or sign in "\n\t" else "?" for sign in text)
    return html.escape(text)


def home_as_tilde(text: str) -> str:
    """A page may be handed to anybody: what the user is called stays at home."""
    home = os.path.expanduser("~").rstrip("/")  # "~" itself where nobody knows it
    return re.sub(rf"(?<![\w/.-]){re.escape(home)}(?![\w.-])", "~", text) if home else text


def as_data(value: Any) -> Html:
    """JSON that cannot end the element that it stands in."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return Html(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


# What pages are made of


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, label: str, numbers: Sequence[int] = ()) -> Html:
    """The first cell of a row names it; ``numbers`` are columns that are set to the right. It scrolls by itself where
    the screen is narrow."""

    def kind(index: int) -> str | None:
        return "number" if index in numbers else None

    head = [tag("th", column, scope="col", class_=kind(index)) for index, column in enumerate(columns)]
    body = []
    for first, *cells in rows:
        named = tag("th", first, scope="row", class_=kind(0))
        body.append(tag("tr", named, *(tag("td", cell, class_=kind(i)) for i, cell in enumerate(cells, 1))))
    whole = tag("table", tag("thead", tag("tr", *head)) if any(columns) else "", tag("tbody", *body))
    return scrolling(whole, label)


def scrolling(content: Html, label: str) -> Html:
    """Wider than the screen it scrolls inside, by keys as well, and the page stays where it is."""
    return tag("div", content, class_="scroll", role="region", aria_label=label, tabindex="0")


def facts(rows: Iterable[tuple[str, object]], class_: str = "facts") -> Html:
    """Names and values."""
    return tag("dl", *(tag("div", tag("dt", name), tag("dd", value)) for name, value in rows), class_=class_)


def command(line: str) -> Html:
    """A line to copy: one click or tap selects all of it."""
    return tag("pre", tag("code", line), class_="command", tabindex="0")


def pill(text: str, kind: str) -> Html:
    """``kind``: good, bad or plain."""
    return tag("span", text, class_=f"pill {kind}")
