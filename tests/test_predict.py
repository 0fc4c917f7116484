"""``python -m mnist_accel predict``: anybody's image files, and what is none."""

import io
import json
import logging
import os
import re
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import RunHere
from numpy.typing import NDArray
from PIL import Image

import mnist_accel
from mnist_accel.commands import predict as verb
from mnist_accel.data.dataset import Dataset
from mnist_accel.errors import UserError
from mnist_accel.inference import prediction
from mnist_accel.inference.images import NoDigit, placed, read_digit
from mnist_accel.models import build_model
from mnist_accel.runs.weights_file import WeightsMeta, pack

Grey = NDArray[np.uint8]


@pytest.fixture(scope="module")
def digits(tiny: Dataset) -> list[Grey]:
    """Placed as MNIST's are, whatever those of the tests are drawn like."""
    return [placed(image.astype(np.float32)) for image in tiny.test_images[:25].numpy()]


def a_file(image: Image.Image, kind: str = "PNG", **how: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **how)
    return file.getvalue()


def large(digit: Grey) -> Image.Image:
    """140 pixels, off the middle of 200 × 300."""
    sheet = Image.new("L", (200, 300))
    sheet.paste(Image.fromarray(digit).resize((140, 140), Image.Resampling.BICUBIC), (50, 10))
    return sheet


def in_colours(mask: Image.Image, paper: str, ink: str) -> Image.Image:
    return Image.composite(Image.new("RGB", mask.size, ink), Image.new("RGB", mask.size, paper), mask)


def on_nothing(mask: Image.Image, ink: str) -> Image.Image:
    sheet = Image.new("RGBA", mask.size, ink)
    sheet.putalpha(mask)
    return sheet


def on_a_card(mask: Image.Image) -> Image.Image:
    """Black on white, round which there is nothing."""
    card = Image.new("RGBA", (mask.width + 60, mask.height + 60))
    card.paste(in_colours(mask, "white", "black"), (30, 30))
    return card


def in_16_bits(digit: Grey) -> Image.Image:
    return Image.fromarray(digit.astype(np.uint16) * 250 + 300)


SAME: dict[str, Callable[[Grey], bytes]] = {
    "as it is": lambda digit: a_file(Image.fromarray(digit)),
    "black on white": lambda digit: a_file(Image.fromarray(255 - digit), "BMP"),
    "16 bits": lambda digit: a_file(in_16_bits(digit)),
    "floats": lambda digit: a_file(Image.fromarray(digit.astype(np.float32) / 255), "TIFF"),
    "black on transparent": lambda digit: a_file(on_nothing(Image.fromarray(digit), "black")),
    "white on transparent": lambda digit: a_file(on_nothing(Image.fromarray(digit), "white"), "WEBP", lossless=True),
    "on a card": lambda digit: a_file(on_a_card(Image.fromarray(digit))),
    "on another place": lambda digit: a_file(Image.fromarray(np.pad(digit, ((9, 2), (1, 14))))),
    "turned by its camera": lambda digit: a_file(Image.fromarray(np.rot90(digit)), "PNG", exif=turned(6)),
}
LIKE: dict[str, Callable[[Grey], bytes]] = {
    "large": lambda digit: a_file(large(digit)),
    "large, black on white, compressed": lambda digit: a_file(Image.eval(large(digit), lambda v: 255 - v), "JPEG"),
    "red on green": lambda digit: a_file(in_colours(large(digit), "#30a040", "#e04030"), "WEBP"),
    "blue on yellow in a palette": lambda digit: a_file(
        in_colours(large(digit), "#fadc5a", "#1428a0").quantize(16), "GIF"
    ),
    "for print": lambda digit: a_file(in_colours(large(digit), "white", "black").convert("CMYK"), "TIFF"),
    "black or white": lambda digit: a_file(large(digit).point(lambda v: 255 * (v > 127)).convert("1")),
    "huge": lambda digit: a_file(large(digit).resize((1400, 2100)), "BMP"),
    "small": lambda digit: a_file(Image.fromarray(digit).resize((14, 14), Image.Resampling.BOX)),
}


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


@pytest.mark.parametrize("style", SAME)
def test_a_digit_like_mnist_s_comes_out_as_it_went_in(style: str, digits: list[Grey]) -> None:
    for digit in digits:
        moved = np.abs(read_digit(SAME[style](digit)).astype(int) - digit)
        # What is all but black around a digit may be cut off.
        assert moved.max() <= 12 and moved.mean() < 0.1


@pytest.mark.parametrize("style", LIKE)
def test_a_digit_of_another_size_and_colour_comes_out_much_the_same(style: str, digits: list[Grey]) -> None:
    """Between two different digits there are 40 grey levels and more."""
    moved = [np.abs(read_digit(LIKE[style](digit)).astype(int) - digit).mean() for digit in digits[:6]]
    assert np.mean(moved) < (14 if style in ("small", "black or white") else 10), moved


@pytest.mark.parametrize("size", [(10, 40), (300, 60), (7, 7), (900, 1200), (1, 500)])
def test_it_fills_a_box_of_20_around_its_centre_of_mass(size: tuple[int, int]) -> None:
    sheet = np.full((1300, 1000), 250, np.uint8)
    sheet[40 : 40 + size[1], 60 : 60 + size[0]] = 20
    read = read_digit(a_file(Image.fromarray(sheet))).astype(float)
    rows, columns = np.flatnonzero((read > 127).any(axis=1)), np.flatnonzero((read > 127).any(axis=0))
    scale = 20 / max(size)
    assert abs(len(rows) - size[1] * scale) <= 1 and abs(len(columns) - max(1, size[0] * scale)) <= 1
    for axis in (0, 1):
        centre = (read.sum(axis=1 - axis) * np.arange(28)).sum() / read.sum()
        assert abs(centre - 14) <= 0.51  # as MNIST's, all 10,000 test images


def test_a_photograph_s_noise_and_shade_are_no_ink(digits: list[Grey]) -> None:
    chance = np.random.default_rng(0)
    paper = 225 - np.asarray(large(digits[0]), dtype=float) * 0.6
    shade = np.linspace(1, 0.9, paper.shape[1])
    photograph = np.clip(paper * shade + chance.normal(0, 3, paper.shape), 0, 255).astype(np.uint8)
    read = read_digit(a_file(Image.fromarray(photograph), "JPEG"))
    assert np.abs(read.astype(int) - digits[0]).mean() < 12


# What is no image, or none with a digit


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def a_bomb(side: int) -> bytes:
    """Says that it is so many pixels wide and high, and holds none."""
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


NONE: dict[str, tuple[Callable[[], bytes], str]] = {
    "text": (lambda: b"seven", "no image of a kind known here (PNG, JPEG, BMP, GIF, TIFF, WEBP)"),
    "nothing": (lambda: b"", "no image of a kind known here"),
    "PostScript, for which another program would start": (
        lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        "no image of a kind",
    ),
    "cut off": (lambda: a_file(Image.linear_gradient("L"))[:-100], "a damaged image ("),
    "white": (lambda: a_file(Image.new("L", (50, 50), 255)), "blank: nothing in it differs from its background"),
    "nearly white": (lambda: a_file(Image.fromarray(np.eye(50, dtype=np.uint8) * 9 + 240)), "blank: nothing"),
    "one pixel": (lambda: a_file(Image.new("L", (1, 1), 9)), "blank: nothing"),
    "transparent": (lambda: a_file(Image.new("RGBA", (50, 50))), "blank: all of it is transparent"),
    "evenly half transparent": (lambda: a_file(Image.new("RGBA", (50, 50), (9, 9, 9, 128))), "blank: nothing"),
    "a hundred megapixels": (lambda: a_file(Image.new("1", (10_000, 10_000))), "10,000 × 10,000 pixels are more than"),
    "a bomb": (lambda: a_bomb(60_000), "more than 64,000,000 pixels"),
}


@pytest.mark.parametrize("kind", NONE)
def test_what_shows_no_digit_says_why(kind: str) -> None:
    content, said = NONE[kind]
    with pytest.raises(NoDigit, match=f"^{re.escape(said)}") as refused:
        read_digit(content())
    assert "\n" not in str(refused.value)


def test_pillow_s_own_words_about_an_odd_file_are_not_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # pytest's, without which Python shows warnings on stderr
    tags = {256: 9, 257: 9, 258: 8, 259: 1, 262: 1, 277: 99}  # 99 channels
    entries = b"".join(struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in tags.items())
    with pytest.raises(NoDigit):
        read_digit(struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + entries + bytes(4))
    assert capsys.readouterr().err == ""


# The verb


@pytest.fixture
def run(run_here: RunHere) -> str:
    return str(run_here("recipe=onepoch", "lr=0.02", "epochs=2").folder)


def test_unreadable_files_cost_a_line_each_and_the_others_go_on(
    run: str, digits: list[Grey], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    here = tmp_path / "images"
    (here / "folder.png" / "deeper").mkdir(parents=True)
    (here / "b.PNG").write_bytes(a_file(large(digits[1])))
    (here / "a=1.jpeg").write_bytes(a_file(large(digits[0]), "JPEG"))
    (here / "not_an_image.txt").touch()
    (here / "folder.png" / "deeper" / "c.png").write_bytes(a_file(large(digits[2])))
    for kind, (content, _) in NONE.items():
        (here / f"{kind}.png").write_bytes(content())
    monkeypatch.setattr(
        prediction.os, "listdir", lambda folder: sorted((entry.name for entry in os.scandir(folder)), reverse=True)
    )
    os.mkfifo(here / "pipe.png")
    (here / "dangling.png").symlink_to("nowhere")
    (here / "endless.png").symlink_to("/dev/zero")
    (here / "new\nline\x1b[31m.png").touch()
    (Path(os.fsdecode(os.fsencode(here) + b"/\xff.png"))).write_bytes(a_file(large(digits[3])))

    assert verb.main([run, str(here), "json=true"]) == 0
    out, err = capsys.readouterr()
    seen = json.loads(out)
    assert [Path(row["file"]).name for row in seen] == ["a=1.jpeg", "b.PNG", "\N{REPLACEMENT CHARACTER}.png"]
    others = ["dangling", "endless", "folder", "new?line?[31m", "pipe", *NONE]
    assert sorted(line.partition(".png: ")[0] for line in err.splitlines()) == sorted(
        f"{here}/{name}" for name in others
    )
    assert verb.main([run, str(here / "pipe.png"), str(tmp_path / "nowhere")]) == 2
    out, err = capsys.readouterr()
    assert (out, len(err.splitlines())) == ("", 2)
    assert verb.main([run, str(here / "folder.png"), "json=true"]) == 2
    out, err = capsys.readouterr()
    assert json.loads(out) == [] and "no images in that folder" in err


def test_digit_probability_and_runner_up_are_the_network_s(
    run: str, digits: list[Grey], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(prediction, "AT_ONCE", 2)
    files = []
    for number, digit in enumerate(digits[:5]):
        files.append(str(tmp_path / f"{9 - number}.png"))
        Image.fromarray(digit).save(files[-1])
    logits = mnist_accel.load(run)(torch.from_numpy(np.stack(digits[:5])))
    expected = logits.softmax(1).sort(descending=True)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(Path(files[2]).read_bytes())))
    assert verb.main([run, *files[:2], "-", *files[3:], "json=true"]) == 0
    seen = json.loads(capsys.readouterr().out)
    assert [row["file"] for row in seen] == [*files[:2], "-", *files[3:]]
    for column, (digit, probability) in enumerate([("digit", "probability"), ("runner_up", "runner_up_probability")]):
        assert [row[digit] for row in seen] == expected.indices[:, column].tolist()
        assert [row[probability] for row in seen] == pytest.approx(expected.values[:, column].tolist(), abs=1e-4)
    assert verb.main([run, *files]) == 0
    rows = [re.split(r" {2,}", line.strip()) for line in capsys.readouterr().out.splitlines()]
    one = seen[0]
    shares = [f"{100 * one[name]:.2f} %" for name in ("probability", "runner_up_probability")]
    assert [files[0], str(one["digit"]), shares[0], f"{one['runner_up']} ({shares[1]})"] in rows


def test_a_network_that_knows_one_digit_answers_yes_or_no(
    digits: list[Grey], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "model.safetensors"
    state = build_model("is3", 0.2).state_dict()
    meta = WeightsMeta(network="is3", dropout=0.2, mean=0.1, std=0.3, recipe="is3", positive_class=7)
    run.write_bytes(pack(state, meta))
    state["fc2.bias"] -= mnist_accel.load(run)(torch.from_numpy(np.stack(digits))).median()  # so that it says both
    run.write_bytes(pack(state, meta))
    files = []
    for number, digit in enumerate(digits):
        files.append(str(tmp_path / f"{number}.png"))
        Image.fromarray(digit).save(files[-1])
    assert verb.main([str(run), *files, "json=true"]) == 0
    seen = json.loads(capsys.readouterr().out)
    yes = mnist_accel.load(run)(torch.from_numpy(np.stack(digits)))[:, 0].sigmoid().tolist()
    assert {row["answer"] for row in seen} == {"yes", "no"} and {row["positive_class"] for row in seen} == {7}
    for row, share in zip(seen, yes, strict=True):
        assert row["probability"] == pytest.approx(share if row["answer"] == "yes" else 1 - share, abs=1e-4)
        assert row["probability"] >= 0.5
    assert verb.main([str(run), *files]) == 0
    assert "a 7?" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["json=true"], "predict: no run given. Type python -m mnist_accel predict RUN image.png…"),
        (["run"], "predict: no image given"),
        (["run", "x.png", "json=maybe"], "json=maybe: must be true or false"),
        (["run", "x.png", "jsn=true"], "jsn=true: no such key. Did you mean json=true?"),
        (["run", "x.png", "--json"], "--json: keys have no dashes"),
        (["nowhere", "x.png"], "nowhere: No such file or directory"),
    ],
)
def test_a_mistake_costs_one_line(words: list[str], said: str) -> None:
    with pytest.raises(UserError) as refused:
        verb.main(words)
    assert str(refused.value).startswith(said)
