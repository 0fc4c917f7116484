"""Downloading, over real HTTP: a server on the loopback misbehaves in every way that mirrors do."""

import gzip
import hashlib
from pathlib import Path
from typing import Any

import pytest
from mirror import CONTENT, Server

from mnist_accel.data import mnist
from mnist_accel.data.download import DownloadError, download, one_line

MD5 = hashlib.md5(CONTENT).hexdigest()


def test_the_first_good_mirror_serves_and_the_ones_before_it_are_asked_in_order(server: Server) -> None:
    order = ["missing", "silent", "dripping", "truncated", "wrong", "endless", "good", "moved"]
    mirrors = [server.mirror(behaviour) for behaviour in order]
    content, mirror = download(mirrors, "file.gz", MD5, timeout=0.7, deadline=1, max_bytes=1_000_000)
    assert content == CONTENT
    assert mirror == server.mirror("good")
    assert server.requests == [f"{behaviour}/file.gz" for behaviour in order[:-1]]


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        ("missing", "answers 404"),
        ("truncated", "broke off after 100 of 1,024 bytes"),
        ("wrong", "wrong bytes, the MD5 is not the published one"),
        ("endless", "sends more than 5,000 bytes"),
        ("redirected", "answers 302"),
        ("rude", "?[31mwhat?"),
    ],
)
def test_the_error_says_what_the_mirror_did(server: Server, behaviour: str, reason: str) -> None:
    with pytest.raises(DownloadError) as caught:
        download([server.mirror(behaviour)], "file.gz", MD5, max_bytes=5_000)
    assert str(caught.value) == f"file.gz: 127.0.0.1:{server.server_port}: {reason}"


def test_a_python_whose_md5_is_not_for_security_downloads_too(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine in FIPS mode."""
    md5 = hashlib.md5

    def restricted(content: bytes, *, usedforsecurity: bool = True) -> Any:
        if usedforsecurity:
            raise ValueError("disabled for FIPS")
        return md5(content)

    monkeypatch.setattr(hashlib, "md5", restricted)
    assert download([server.mirror("good")], "file.gz", MD5)[0] == CONTENT


@pytest.mark.parametrize(
    ("behaviour", "timeout", "deadline", "reason"),
    [
        ("silent", 0.3, 60, r"timed out|no answer within 0\.6 s"),  # whoever of the two threads sees it first
        ("dripping", 60, 1, "not finished after 1 s"),
        ("dripping_headers", 0.5, 60, "no answer within 1 s"),
    ],
)
def test_a_slow_mirror_is_given_up(
    server: Server, behaviour: str, timeout: float, deadline: float, reason: str
) -> None:
    with pytest.raises(DownloadError, match=f"^file.gz: 127.0.0.1:{server.server_port}: ({reason})$"):
        download([server.mirror(behaviour)], "file.gz", MD5, timeout=timeout, deadline=deadline)


def test_every_mirror_has_its_reason(server: Server) -> None:
    with pytest.raises(DownloadError, match=r"answers 404; .*wrong bytes"):
        download([server.mirror("missing"), server.mirror("wrong")], "file.gz", MD5)
    with pytest.raises(DownloadError, match="there is no mirror"):
        download([], "file.gz", MD5)


def test_a_redirect_is_followed(server: Server) -> None:
    assert download([server.mirror("moved")], "file.gz", MD5)[0] == CONTENT


def test_only_http_is_spoken(tmp_path: Path) -> None:
    (tmp_path / "file.gz").write_bytes(CONTENT)
    for mirror in (tmp_path.as_uri(), "ftp://127.0.0.1/", "data:,x", str(tmp_path), "http://x:y/"):
        with pytest.raises(DownloadError):
            download([mirror], "file.gz", MD5, timeout=1)


def test_a_server_that_is_not_there_is_a_reason_and_a_password_none() -> None:
    with pytest.raises(DownloadError) as caught:
        download(["http://me:secret@127.0.0.1:9/"], "file.gz", MD5, timeout=1)
    assert "secret" not in str(caught.value)
    assert "127.0.0.1:9: " in str(caught.value)


def test_what_a_server_says_stays_one_printable_line() -> None:
    assert one_line(ValueError("a\x1b[31m\r\nb\n" + "c" * 500)).startswith("a?[31m b c")
    assert len(one_line(ValueError("c" * 500))) == 120


# The four files, small. Their digests are computed without the code under test.

SHAPES = {"train_images": (6, 28, 28), "train_labels": (6,), "test_images": (3, 28, 28), "test_labels": (3,)}


def small_archive() -> tuple[tuple[mnist.IdxFile, ...], dict[str, bytes]]:
    """Files like MNIST's, and what a mirror serves for them."""
    files, served = [], {}
    for file in mnist.FILES:
        shape = SHAPES[file.key]
        size = shape[0] * (784 if len(shape) == 3 else 1)
        header = bytes([0, 0, 8, len(shape)]) + b"".join(length.to_bytes(4, "big") for length in shape)
        unpacked = header + (bytes(index % 256 for index in range(size)) if size > 6 else bytes([7] * size))
        files.append(mnist.IdxFile(file.key, shape, hashlib.sha256(unpacked).hexdigest()))
        served[f"{file.name}.gz"] = gzip.compress(unpacked)
    return tuple(files), served


def publish(monkeypatch: pytest.MonkeyPatch, served: dict[str, bytes], *mirrors: str) -> None:
    md5s = {name: hashlib.md5(content).hexdigest() for name, content in served.items()}
    monkeypatch.setattr(mnist, "published_lists", lambda: (list(mirrors), md5s))


def test_fetch_reads_all_four_files_and_keeps_to_the_mirror_that_served(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, server.files = small_archive()
    publish(monkeypatch, server.files, server.mirror("missing"), server.mirror("good"))
    tensors, origin = mnist.fetch(files)
    assert {key: tuple(tensor.shape) for key, tensor in tensors.items()} == SHAPES
    assert tensors["test_labels"].tolist() == [7, 7, 7]
    assert origin == f"downloaded from 127.0.0.1:{server.server_port}"
    assert len(server.requests) == 5  # the bad mirror once, the good one four times


def test_fetch_stops_at_the_first_file_that_is_not_to_be_had(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    files, served = small_archive()
    publish(monkeypatch, served, *[server.mirror("missing")] * 2)
    with pytest.raises(DownloadError, match=r"^train-images-idx3-ubyte\.gz: .*answers 404; .*answers 404$"):
        mnist.fetch(files)
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda unpacked: unpacked[:-1], "ends after 4,719 of 4,720 bytes"),
        (lambda unpacked: unpacked + bytes(200 * 2**20), "has more than 4,720 bytes"),  # a bomb: 200 KB packed
        (lambda unpacked: b"MZ" + unpacked[2:], "begins with 4d5a"),
        (lambda unpacked: unpacked[:-1] + b"\xff", "SHA-256 is not that of the original"),
    ],
)
def test_what_is_unpacked_is_verified_although_the_md5_was_right(
    server: Server, monkeypatch: pytest.MonkeyPatch, damage, reason: str
) -> None:
    files, server.files = small_archive()
    name = "train-images-idx3-ubyte.gz"
    server.files[name] = gzip.compress(damage(gzip.decompress(server.files[name])), compresslevel=1)
    publish(monkeypatch, server.files, server.mirror("good"))
    with pytest.raises(DownloadError, match=reason):
        mnist.fetch(files)


def test_a_download_that_is_no_gzip_is_an_error(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    files, server.files = small_archive()
    server.files["train-images-idx3-ubyte.gz"] = b"<html>log in to this hotel's network</html>"
    publish(monkeypatch, server.files, server.mirror("good"))
    with pytest.raises(DownloadError, match="Not a gzipped file"):
        mnist.fetch(files)
