"""A trace file → small typed events. Traces come from anywhere, so nothing in one is believed, and memory is bounded.

The JSON is read event by event: a file of nested brackets costs an error, not the machine's memory.
"""

import gzip
import json
import math
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mnist_accel.errors import UserError, printable

PHASE, LAYER, MODULE = "phase:", "layer:", "module:"  # how our annotations begin
STEP = "ProfilerStep#"
SUMMARY = "summary.json"  # beside the traces that profile=true leaves
SUFFIXES = (".pt.trace.json.gz", ".pt.trace.json", ".json.gz", ".json")

LARGEST_TRACE = 256 * 2**20  # bytes, unpacked
LARGEST_EVENT = 2**20  # characters
LARGEST_HEADER = 2**24  # characters of any other value
MOST_EVENTS = 2_000_000
USUAL_EVENT = 2**13

KEPT = {"cpu_op", "user_annotation", "kernel", "gpu_memcpy", "gpu_memset", "cuda_runtime", "cuda_driver"}
ON_DEVICE = {"kernel", "gpu_memcpy", "gpu_memset"}
# The details of an event that are kept: of convolutions the shapes too.
LINKS = {"Sequence number", "Fwd thread id", "correlation", "External id", "external id"}
SHAPES = {"Input Dims", "Input dims", "Input type", "Concrete Inputs"}
# torch 1.x spelled some of them otherwise.
OLD_CATEGORIES = {"operator": "cpu_op", "runtime": "cuda_runtime", "memcpy": "gpu_memcpy", "memset": "gpu_memset"}


@dataclass(slots=True)
class Event:
    """Something with a beginning and an end; times in microseconds."""

    name: str
    category: str
    thread: tuple[str, str]
    start: float
    duration: float
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def end(self) -> float:
        return self.start + self.duration

    def integer(self, key: str) -> int | None:
        value = self.details.get(key)
        return value if isinstance(value, int) and not isinstance(value, bool) else None

    def listed(self, key: str) -> list[Any]:
        value = self.details.get(key)
        return value if isinstance(value, list) else []


@dataclass(frozen=True)
class Trace:
    path: Path
    events: list[Event]
    rank: int | None = None
    world_size: int = 1

    @property
    def on_gpu(self) -> bool:
        return any(event.category == "kernel" for event in self.events)


class NotATrace(Exception):
    """Why; the caller knows which file it is."""


def read_trace(path: Path) -> Trace:
    """The events of the file that matter here; a UserError of one line where it is no trace or a damaged one."""
    try:
        content = path.read_bytes() if path.stat().st_size <= LARGEST_TRACE else None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None
    return trace_in(content, path)


def trace_in(content: bytes | None, path: Path) -> Trace:
    try:
        header, events = parse(unpack(content))
    except NotATrace as error:
        raise UserError(f"{path}: {error}") from None
    job = header.get("distributedInfo")
    job = job if isinstance(job, dict) else {}
    rank, world_size = job.get("rank"), job.get("world_size")
    return Trace(
        path,
        events,
        rank if isinstance(rank, int) else None,
        world_size if isinstance(world_size, int) and world_size > 0 else 1,
    )


def unpack(content: bytes | None) -> str:
    if content is None:
        raise NotATrace(f"larger than {LARGEST_TRACE >> 20} MB. Profile fewer steps")
    if content[:2] == b"\x1f\x8b":
        try:
            # What a gzip file unpacks to has no limit of its own.
            unpacker = zlib.decompressobj(wbits=31)
            plain = unpacker.decompress(content, LARGEST_TRACE + 1)
            if len(plain) <= LARGEST_TRACE and not unpacker.eof:
                raise NotATrace("the gzip file is cut off. Copy it again, or profile again")
        except (zlib.error, gzip.BadGzipFile):
            raise NotATrace("the gzip file is damaged. Copy it again, or profile again") from None
        if len(plain) > LARGEST_TRACE:
            raise NotATrace(f"unpacks to more than {LARGEST_TRACE >> 20} MB. Profile fewer steps")
        content = plain
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        raise NotATrace("no text, so no trace of torch.profiler") from None


def parse(text: str) -> tuple[dict[str, Any], list[Event]]:
    """The values beside ``traceEvents``, and the events."""
    place = after_blanks(text, 0)
    if text[place : place + 1] != "{":
        raise NotATrace("no trace of torch.profiler: not a JSON object")
    header: dict[str, Any] = {}
    events: list[Event] | None = None
    place = after_blanks(text, place + 1)
    while text[place : place + 1] != "}":
        key, place = value_at(text, place, LARGEST_EVENT)
        place = after_blanks(text, place)
        if not isinstance(key, str) or text[place : place + 1] != ":":
            raise NotATrace("no trace of torch.profiler: not valid JSON")
        place = after_blanks(text, place + 1)
        if key == "traceEvents" and text[place : place + 1] == "[":
            events, place = events_at(text, place)
        else:
            header[key], place = value_at(text, place, LARGEST_HEADER)
        place = after_comma(text, place, "}")
    if events is None:
        raise NotATrace("no trace of torch.profiler: it has no list of traceEvents")
    return header, events


def events_at(text: str, place: int) -> tuple[list[Event], int]:
    events: list[Event] = []
    place = after_blanks(text, place + 1)
    while text[place : place + 1] != "]":
        item, place = value_at(text, place, LARGEST_EVENT)
        events.extend(events_in(item))
        if len(events) > MOST_EVENTS:
            raise NotATrace(f"more than {MOST_EVENTS:,} events. Profile fewer steps")
        place = after_comma(text, place, "]")
    return events, place + 1


def events_in(item: Any) -> Iterator[Event]:
    """The event, if it is one that matters here."""
    if not isinstance(item, dict) or item.get("ph") != "X":
        return
    category = str(item.get("cat", "")).lower()
    category = OLD_CATEGORIES.get(category, category)
    name = item.get("name")
    if category not in KEPT or not isinstance(name, str):
        return
    name = printable(name)
    times = []
    for key in ("ts", "dur"):
        value = item.get(key)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not -1e18 < value < 1e18:
            raise NotATrace(f"damaged: an event named {name[:60]} has {key}={str(value)[:40]!r}, no number")
        times.append(float(value))
    if times[1] < 0 or not math.isfinite(sum(times)):
        raise NotATrace(f"damaged: an event named {name[:60]} ends before it begins")
    details = item.get("args")
    thread = (str(item.get("pid", ""))[:80], str(item.get("tid", ""))[:80])
    wanted = SHAPES | LINKS if "conv" in name.lower() else LINKS
    details = {key: value for key, value in details.items() if key in wanted} if isinstance(details, dict) else {}
    yield Event(name, category, thread, times[0], times[1], details)


def no_such_number(word: str) -> float:
    raise ValueError(word)


BLANKS = re.compile(r"[ \t\r\n]*")
DECODER = json.JSONDecoder(parse_constant=no_such_number)


def value_at(text: str, place: int, limit: int) -> tuple[Any, int]:
    """The JSON value at ``place`` and where it ends. Only as much text is looked at as the value may be long."""
    size = min(USUAL_EVENT, limit)
    while True:
        piece = text[place : place + size]
        try:
            value, length = DECODER.raw_decode(piece)
            # A number may go on behind the piece.
            if length < len(piece) or place + length == len(text):
                return value, place + length
        except RecursionError:
            raise NotATrace("no trace of torch.profiler: nested too deeply") from None
        except ValueError:
            pass  # perhaps only cut off
        if place + size >= len(text):
            raise NotATrace("cut off, or not valid JSON. Copy it again, or profile again")
        if size >= limit:
            raise NotATrace("no trace of torch.profiler: not valid JSON, or a single value larger than any trace has")
        size = min(size * 16, limit)


def after_blanks(text: str, place: int) -> int:
    blanks = BLANKS.match(text, place)
    return blanks.end() if blanks else place


def after_comma(text: str, place: int, closing: str) -> int:
    place = after_blanks(text, place)
    if text[place : place + 1] == ",":
        return after_blanks(text, place + 1)
    if text[place : place + 1] != closing:
        raise NotATrace("cut off, or not valid JSON. Copy it again, or profile again")
    return place


def find_traces(path: Path) -> list[Path]:
    """The file itself, or the traces of the folder: rank 0's first."""
    try:
        if path.is_file():
            return [path]
        if not path.is_dir():
            raise UserError(f"{path}: there is no such file or folder. Name a trace, or a folder of profiles/")
        files = [file for file in path.iterdir() if file.name != SUMMARY and not file.name.startswith(".")]
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    for suffix in SUFFIXES:
        if found := [file for file in files if file.name.endswith(suffix)]:
            return sorted(found, key=in_order_of_ranks)
    raise UserError(f"{path}: holds no trace (*.pt.trace.json.gz). Name a folder that profile=true has made")


def in_order_of_ranks(file: Path) -> tuple[int, str]:
    digits = file.name.partition(".")[0].removeprefix("rank")
    return (int(digits) if digits.isdecimal() and len(digits) < 9 else 0, file.name)
