"""Anybody's picture of a digit becomes an image as MNIST has them: 28 × 28 grey levels, light on black.

As those were made: the digit scaled to fit a box of 20 × 20, keeping its proportions, and placed by its centre of mass.
The background is what the frame of the picture shows, and ink is whatever differs from it, lighter, darker or of
another colour. A digit of MNIST's comes out as it went in.
"""

import logging
import warnings
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

Values = NDArray[np.float32]

# By name: Pillow knows others as well, and for some of them it starts another program.
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP")
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")
MAX_BYTES = 1 << 28
MAX_PIXELS = 64_000_000
WORKING_SIDE = 1000  # larger pictures are reduced to 1000 to 1999 pixels: a digit ends up with 20

SIDE, BOX, CENTRE = 28, 20, 14
WHITE = 255.0
FAINTEST = 24.0  # grey levels between background and ink; below, a picture is blank
EDGE = WHITE / 8  # what counts when the digit is measured: compression and blur leave less around it

SILENT = logging.NullHandler()


class NoDigit(ValueError):
    """Why there is no digit to be had from a picture."""


def read_digit(content: bytes) -> NDArray[np.uint8]:
    """The digit in an image file; NoDigit, saying why, where the file holds none."""
    return placed(ink_of(decode(content)))


def decode(content: bytes) -> Values:
    """[height, width, channels], 0 to 255, upright, without transparency."""
    logging.getLogger("PIL").addHandler(SILENT)  # it would tell of oddities on stderr
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image = Image.open(BytesIO(content), formats=FORMATS)
            if image.width * image.height > MAX_PIXELS:
                raise NoDigit(f"{image.width:,} × {image.height:,} pixels are more than {MAX_PIXELS:,}")
            return opaque(as_bytes(ImageOps.exif_transpose(image)))
        except NoDigit:
            raise
        except UnidentifiedImageError:
            raise NoDigit(f"no image of a kind known here ({', '.join(FORMATS)})") from None
        except Image.DecompressionBombError:
            raise NoDigit(f"more than {MAX_PIXELS:,} pixels") from None
        except Exception as error:  # decoders raise anything at a damaged file
            why = " ".join(str(error).split())[:100] or type(error).__name__
            raise NoDigit(f"a damaged image ({why})") from None


def as_bytes(image: Image.Image) -> Image.Image:
    """With eight bits a channel, and not larger than is of use."""
    if image.mode.startswith(("I", "F")):  # 16 or 32 bits, which a conversion would cut off
        levels = np.nan_to_num(np.asarray(image, dtype=np.float32))
        levels -= levels.min()
        image = Image.fromarray((levels * (WHITE / (levels.max() or 1))).astype(np.uint8))
    image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    return image.reduce(max(1, max(image.size) // WORKING_SIDE))


def opaque(image: Image.Image) -> Values:
    values = np.asarray(image, dtype=np.float32)
    if image.mode != "RGBA":
        return values
    colour, opacity = values[..., :3], values[..., 3:]
    if not opacity.max():
        raise NoDigit("blank: all of it is transparent")
    opacity = opacity / opacity.max()
    solid = colour[opacity[..., 0] > 0.5]
    low, high = np.percentile(solid, (5, 95), axis=0)
    if (high - low).max() < 2 * FAINTEST:  # in one colour: it is drawn by what is transparent and what is not
        return opacity * WHITE
    return colour * opacity + np.median(solid, axis=0) * (1 - opacity)  # a card, say, with round corners


def ink_of(values: Values) -> Values:
    """[height, width], 0 for the background to 255."""
    frame = np.concatenate([values[0], values[-1], values[:, 0], values[:, -1]])
    background = np.median(frame, axis=0)
    ink = distance(values, background)
    noise = float(np.median(distance(frame, background)))  # of a photograph; 0 where the background is even
    ink = np.maximum(ink - 3 * noise, 0)
    if ink.max() < FAINTEST:
        raise NoDigit("blank: nothing in it differs from its background")
    return ink * (WHITE / ink.max())


def distance(values: Values, colour: Values) -> Values:
    return np.sqrt(np.square(values - colour).mean(axis=-1))


def placed(ink: Values) -> NDArray[np.uint8]:
    """Scaled and centred as MNIST was."""
    rows, columns = (np.flatnonzero((ink > EDGE).any(axis=axis)) for axis in (1, 0))
    height, width = rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1
    scale = BOX / max(height, width)
    # With what fades out around it.
    margin = max(height, width) // 5
    top, left = max(rows[0] - margin, 0), max(columns[0] - margin, 0)
    cut = ink[top : rows[-1] + margin + 1, left : columns[-1] + margin + 1]
    small = resized(cut, scale) if scale != 1 else cut
    return centred(np.clip(small * (WHITE / small.max()), 0, WHITE))


def resized(ink: Values, scale: float) -> Values:
    height, width = (max(1, round(side * scale)) for side in ink.shape)
    return np.asarray(Image.fromarray(ink).resize((width, height), Image.Resampling.BILINEAR))


def centred(ink: Values) -> NDArray[np.uint8]:
    """On a black square, its centre of mass in the middle, as near as whole pixels allow."""
    mass = ink.sum()
    down = round(CENTRE - float((ink.sum(axis=1) * np.arange(ink.shape[0])).sum() / mass))
    right = round(CENTRE - float((ink.sum(axis=0) * np.arange(ink.shape[1])).sum() / mass))
    around = max(ink.shape) + SIDE
    field = np.pad(ink, around)[around - down :, around - right :]
    return np.rint(field[:SIDE, :SIDE]).astype(np.uint8)
