"""Scores a run on MNIST's test digits as other people's image files show them, beside the raw ones.

    python -m benchmarks.foreign_images RUN [COUNT]

Each style writes the same COUNT digits (1000) as real files, which are read as ``python -m mnist_accel predict`` does.
"""

import sys
from collections.abc import Callable
from io import BytesIO

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFilter

import mnist_accel
from mnist_accel.data.dataset import load_dataset
from mnist_accel.inference.images import read_digit

Digit = NDArray[np.uint8]
DRAW = np.random.default_rng(0)


def blended(mask: Image.Image, paper: tuple[int, ...], ink: tuple[int, ...]) -> Image.Image:
    return Image.composite(Image.new("RGB", mask.size, ink), Image.new("RGB", mask.size, paper), mask)


def enlarged(digit: Digit) -> Image.Image:
    """100 to 180 pixels high, anywhere on 200 × 300."""
    side = int(DRAW.integers(100, 181))
    sheet = Image.new("L", (200, 300))
    large = Image.fromarray(digit).resize((side, side), Image.Resampling.BICUBIC)
    sheet.paste(large, (int(DRAW.integers(0, 201 - side)), int(DRAW.integers(0, 301 - side))))
    return sheet


def transparent(digit: Digit) -> Image.Image:
    sheet = Image.new("RGBA", (200, 300), (0, 0, 0, 0))
    sheet.putalpha(enlarged(digit))
    return sheet


def photographed(digit: Digit) -> Image.Image:
    """Dark on paper whose light falls off by a fifth from one side to the other, a little blurred, with noise."""
    sheet = np.asarray(blended(enlarged(digit).filter(ImageFilter.GaussianBlur(1)), (225, 220, 205), (50, 50, 80)))
    light = np.linspace(1, 0.8, sheet.shape[1])[None, :, None]
    noisy = sheet * light + DRAW.normal(0, 4, sheet.shape)
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))


STYLES: dict[str, tuple[str, Callable[[Digit], Image.Image]]] = {
    "as they are, white on black, 28 × 28": ("PNG", Image.fromarray),
    "black on white, 28 × 28": ("PNG", lambda digit: Image.fromarray(255 - digit)),
    "white on black, 200 × 300": ("PNG", enlarged),
    "black on white, 200 × 300, JPEG": ("JPEG", lambda digit: Image.fromarray(255 - np.asarray(enlarged(digit)))),
    "red on green, 200 × 300": ("PNG", lambda digit: blended(enlarged(digit), (40, 160, 60), (220, 60, 40))),
    "blue on yellow, 16 colours, GIF": (
        "GIF",
        lambda digit: blended(enlarged(digit), (250, 220, 90), (20, 40, 160)).quantize(16),
    ),
    "black on transparent, 200 × 300": ("PNG", transparent),
    "as a photograph of paper, JPEG": ("JPEG", photographed),
}


def written(style: str, digit: Digit) -> bytes:
    kind, draw = STYLES[style]
    file = BytesIO()
    draw(digit).save(file, kind)
    return file.getvalue()


def main(run: str, count: int = 1000) -> None:
    network, data = mnist_accel.load(run), load_dataset()
    digits, labels = data.test_images[:count], data.test_labels[:count]

    def score(images: torch.Tensor) -> float:
        return 100 * float((network(images).argmax(dim=1) == labels).double().mean())

    print(f"{data.name}, the first {count:,} test digits, {run}")
    print(f"{'raw':40} {score(digits):6.2f} %")
    for style in STYLES:
        read = torch.stack([torch.from_numpy(read_digit(written(style, digit.numpy()))) for digit in digits])
        moved = (read.int() - digits.int()).abs().double().mean()
        print(f"{style:40} {score(read):6.2f} %   {moved:.2f} grey levels from raw")


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
