"""Fetches one file from the first of several mirrors that serves it whole, in bounded time and memory."""

import hashlib
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import Future, wait
from http.client import HTTPException
from urllib.parse import urlsplit

from mnist_accel.errors import printable

TIMEOUT_SECONDS = 10.0
DEADLINE_SECONDS = 120.0
MAX_BYTES = 64 * 2**20


class DownloadError(Exception):
    """Why a data set could not be downloaded: one line, with a reason for each mirror."""


def download(
    mirrors: Sequence[str],
    name: str,
    md5: str,
    *,
    timeout: float = TIMEOUT_SECONDS,
    deadline: float = DEADLINE_SECONDS,
    max_bytes: int = MAX_BYTES,
) -> tuple[bytes, str]:
    """The content of ``name`` and the mirror it came from: the first whose bytes have this MD5.

    ``timeout`` bounds each wait for the network, ``deadline`` a whole attempt at one mirror: a server that drips a byte
    a second never runs into the first. A mirror must answer within twice ``timeout``, however many dead addresses its
    name has: two of them may be IPv6 and IPv4 of a network that only has the latter.
    """
    reasons = []
    for mirror in mirrors:
        try:
            content = fetch_url(f"{mirror.rstrip('/')}/{name}", timeout, deadline, max_bytes)
        except (OSError, HTTPException, ValueError) as error:
            if isinstance(error, urllib.error.HTTPError):
                error.close()  # it holds the connection
            reasons.append(f"{host(mirror)}: {one_line(error)}")
            continue
        if hashlib.md5(content, usedforsecurity=False).hexdigest() == md5:
            return content, mirror
        reasons.append(f"{host(mirror)}: wrong bytes, the MD5 is not the published one")
    raise DownloadError(f"{name}: {'; '.join(reasons) or 'there is no mirror'}")


def host(mirror: str) -> str:
    """The part of a mirror's address that a message shows: host and port, never a password."""
    return urlsplit(mirror).netloc.rpartition("@")[2] or mirror


def fetch_url(url: str, timeout: float, deadline: float, max_bytes: int) -> bytes:
    """Runs the transfer in a thread that can be left behind.

    Name look-up, connecting and reading headers obey no deadline of ours, so only a second thread can keep it. An
    abandoned transfer ends by itself at its next check of the clock, and a daemon thread holds up no exit.
    """
    answered = threading.Event()
    outcome: Future[bytes] = Future()
    start = time.monotonic()

    def work() -> None:
        try:
            outcome.set_result(transfer(url, timeout, deadline, max_bytes, answered))
        except Exception as error:
            outcome.set_exception(error)
        answered.set()

    threading.Thread(target=work, name=f"download {url}", daemon=True).start()
    if not answered.wait(min(2 * timeout, deadline)):
        raise TimeoutError(f"no answer within {min(2 * timeout, deadline):g} s")
    wait([outcome], max(0.0, start + deadline - time.monotonic()))
    if not outcome.done():
        raise TimeoutError(f"not finished after {deadline:g} s")
    return outcome.result()


def transfer(url: str, timeout: float, deadline: float, max_bytes: int, answered: threading.Event) -> bytes:
    if not url.startswith(("http://", "https://")):
        raise ValueError("no http address")
    end = time.monotonic() + deadline
    request = urllib.request.Request(url, headers={"User-Agent": "mnist_accel"})
    content = bytearray()
    with urllib.request.urlopen(request, timeout=timeout) as response:
        answered.set()
        promised = response.headers.get("Content-Length")
        # read1 returns after one receive; read would wait for the whole chunk, past every deadline.
        while chunk := response.read1(1 << 16):
            content += chunk
            if len(content) > max_bytes:
                raise ValueError(f"sends more than {max_bytes:,} bytes")
            if time.monotonic() > end:
                raise TimeoutError(f"not finished after {deadline:g} s")
    if promised is not None and len(content) != int(promised):
        raise ValueError(f"broke off after {len(content):,} of {int(promised):,} bytes")
    return bytes(content)


def one_line(error: BaseException) -> str:
    """An error in one short printable line; a server has a say in some of these texts."""
    if isinstance(error, urllib.error.HTTPError):
        return f"answers {error.code}"
    if isinstance(error, urllib.error.URLError) and isinstance(error.reason, Exception):
        return one_line(error.reason)
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return printable(" ".join(text.split()))[:120]
