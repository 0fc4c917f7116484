"""Reads a trace file into small typed events. Traces come from anywhere, so nothing in one is believed."""

import gzip
import io
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic_core import from_json

from mnist_accel.errors import UserError, printable

PHASE, LAYER, MODULE = "phase:", "layer:", "module:"  # how our annotations begin
STEP = "ProfilerStep#"
SUMMARY = "summary.json"  # beside the traces that profile=true leaves
PAGE = "profile.html"
SUFFIXES = (".pt.trace.json.gz", ".pt.trace.json", ".json.gz", ".json")

LARGEST_TRACE = 32 * 2**20  # bytes, unpacked: parsed they take up to 26 times as much

KEPT = {"cpu_op", "user_annotation", "kernel", "gpu_memcpy", "gpu_memset", "cuda_runtime", "cuda_driver"}
ON_DEVICE = {"kernel", "gpu_memcpy", "gpu_memset"}
# The details of an event that are kept: integers, and of convolutions the lists of shapes.
LINKS = {"Sequence number", "Fwd thread id", "correlation", "External id"}
SHAPES = {"Input Dims", "Input type", "Concrete Inputs"}


@dataclass(slots=True)
class Event:
    """Something with a beginning and an end; times in microseconds."""

    name: str
    category: str
    thread: tuple[str, str]
    start: float
    duration: float
    details: dict[str, Any] = field(default_factory=dict)  # LINKS and SHAPES

    @property
    def end(self) -> float:
        return self.start + self.duration


@dataclass(frozen=True)
class Trace:
    path: Path
    events: list[Event]
    rank: int | None = None
    world_size: int = 1

    @property
    def on_gpu(self) -> bool:
        return any(event.category == "kernel" for event in self.events)


def read_trace(path: Path) -> Trace:
    """The events of the file that matter here; a UserError of one line where it is no trace or a damaged one."""
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_TRACE + 1)
        if content.startswith(b"\x1f\x8b"):
            # What a gzip file unpacks to has no limit of its own.
            content = gzip.GzipFile(fileobj=io.BytesIO(content)).read(LARGEST_TRACE + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise UserError(f"{path}: the gzip file is cut off or damaged. Copy it again, or profile again") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None
    return trace_in(content, path)


def trace_in(content: bytes, path: Path) -> Trace:
    """The trace that ``content``, not compressed any more, is; ``path`` is where it came from."""
    if len(content) > LARGEST_TRACE:
        fewer = "Profile fewer steps (profile=true: a larger validation= leaves fewer in an epoch)"
        raise UserError(f"{path}: larger than {LARGEST_TRACE >> 20} MB unpacked. {fewer}")
    try:
        found = from_json(content, allow_inf_nan=False)
    except ValueError as error:
        raise UserError(f"{path}: cut off, or no JSON ({error}). Copy it again, or profile again") from None
    if not isinstance(found, dict) or not isinstance(found.get("traceEvents"), list):
        raise UserError(f"{path}: no trace of torch.profiler: it has no list of traceEvents. Name another file")
    try:
        events = [event for item in found["traceEvents"] for event in events_in(item)]
    except ValueError as error:
        raise UserError(f"{path}: damaged: {error}. Copy it again, or profile again") from None
    job = found.get("distributedInfo")
    rank, world_size = (job.get("rank"), job.get("world_size")) if isinstance(job, dict) else (None, None)
    return Trace(
        path,
        events,
        rank if isinstance(rank, int) else None,
        world_size if isinstance(world_size, int) and world_size > 0 else 1,
    )


def events_in(item: Any) -> Iterator[Event]:
    """The event, if it is one that matters here; ValueError where its times are none."""
    if not isinstance(item, dict) or item.get("ph") != "X":
        return
    category, name, details = item.get("cat"), item.get("name"), item.get("args")
    if not isinstance(category, str) or category not in KEPT or not isinstance(name, str):
        return
    name = printable(name)
    for key in ("ts", "dur"):
        value = item.get(key)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not -1e18 < value < 1e18:
            raise ValueError(f"an event named {name[:60]} has {key}={str(value)[:40]!r}, no number")
    if item["dur"] < 0:
        raise ValueError(f"an event named {name[:60]} ends before it begins")
    thread = (str(item.get("pid")), str(item.get("tid")))
    event = Event(name, category, thread, float(item["ts"]), float(item["dur"]))
    for key, value in details.items() if isinstance(details, dict) else ():
        if (key in LINKS and type(value) is int) or (key in SHAPES and type(value) is list and "conv" in name.lower()):
            event.details[key] = value
    yield event


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
    return (int(digits) if digits.isdecimal() else 0, file.name)
