"""Operations and bytes of a convolution, by arithmetic from the shapes that the profiler has noted.

A multiplication and an addition are two operations; biases, a thousandth of them, are left out, as torch's own counter
does. Bytes are what has to be read and written once: inputs, weights and outputs.
"""

import ast
from dataclasses import dataclass
from math import prod
from typing import Any

from mnist_accel.profiling.trace_file import Event

BYTES = {
    "float": 4,
    "double": 8,
    "c10::bfloat16": 2,
    "c10::half": 2,
    "bfloat16": 2,
    "half": 2,
}
MOST_AXES = 5  # images, channels and three of a volume: torch convolves no more
LARGEST_SIZE = 2**40  # of one axis; what a damaged trace says must stay a number that can be computed with


@dataclass(frozen=True)
class Shape:
    """One convolution as it was called. ``output`` is without batch and channels."""

    images: int
    channels_in: int
    channels_out: int
    input: tuple[int, ...]
    output: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    transposed: bool
    item_bytes: int

    @property
    def flop(self) -> int:
        """Of the forward pass. The gradients of weights and of inputs take the same number each."""
        positions = prod(self.input if self.transposed else self.output)
        per_position = self.channels_in * self.channels_out // self.groups * prod(self.kernel)
        return 2 * self.images * positions * per_position

    @property
    def bytes(self) -> int:
        """Of any of the three: two of input, weights and output are read, the third is written."""
        weights = self.channels_in * self.channels_out // self.groups * prod(self.kernel)
        read = self.images * self.channels_in * prod(self.input)
        written = self.images * self.channels_out * prod(self.output)
        return self.item_bytes * (weights + read + written)

    def __str__(self) -> str:
        """``64×1×28² → 5×26², 3²`` with what is not the default behind it."""
        text = f"{self.images}×{self.channels_in}×{square(self.input)} → {self.channels_out}×{square(self.output)}"
        text += f", {square(self.kernel)}"
        extras = {"/": (self.stride, 1), " pad ": (self.padding, 0), " dilated ": (self.dilation, 1)}
        for sign, (values, usual) in extras.items():
            if any(value != usual for value in values):
                text += sign + square(values).removesuffix("²")
        return text + (f" groups {self.groups}" if self.groups > 1 else "")


def square(sizes: tuple[int, ...]) -> str:
    if len(set(sizes)) == 1 and len(sizes) == 2:
        return f"{sizes[0]}²"
    return "×".join(map(str, sizes))


def shape_of(forward: Event | None, backward: Event | None) -> Shape | None:
    """From ``aten::convolution`` and, where that says too little, ``aten::convolution_backward``; None if both do."""
    source = forward or backward
    if source is None:
        return None
    sizes = [sizes_of(item) for item in (source.listed("Input Dims") or source.listed("Input dims"))]
    # Backward is handed the gradient of the output first.
    given = sizes[1:3] if forward is None else sizes[:2]
    if len(given) < 2 or len(given[0]) < 3 or len(given[0]) != len(given[1]):
        return None
    (images, channels, *inner), (first, second, *kernel) = given
    axes = len(inner)
    said = source.listed("Concrete Inputs")
    first_said = 3 if forward is not None else 4  # backward has the bias's size before the stride
    stride, padding, dilation = (numbers(said, first_said + place, axes) for place in range(3))
    transposed = bool(said[first_said + 3 :]) and str(said[first_said + 3]) == "True"
    extra = numbers(said, first_said + 4, axes)
    if transposed:
        groups = whole(said, first_said + 5) or channels // max(first, 1)
        channels_out = second * groups
    else:
        groups = channels // second if second and channels % second == 0 else 0
        channels_out = first
    output: tuple[int, ...] | None = None
    if backward is not None:
        gradient = [sizes_of(item) for item in backward.listed("Input Dims")][:1]
        output = tuple(gradient[0][2:]) if gradient and len(gradient[0]) == axes + 2 else None
    if output is None and stride and padding is not None and dilation and all(stride):
        grid = zip(inner, kernel, stride, padding, dilation, strict=True)
        if transposed:
            ends = [(n - 1) * s - 2 * p + d * (k - 1) + 1 for n, k, s, p, d in grid]
            output = tuple(end + more for end, more in zip(ends, extra or [0] * axes, strict=True))
        else:
            output = tuple((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in grid)
    if output is None or groups < 1 or min((images, channels, channels_out, *inner, *output, *kernel)) < 1:
        return None
    kind = [*source.listed("Input type"), "", ""][forward is None]
    return Shape(
        images,
        channels,
        channels_out,
        tuple(inner),
        output,
        tuple(kernel),
        stride or (1,) * axes,
        padding or (0,) * axes,
        dilation or (1,) * axes,
        groups,
        transposed,
        BYTES.get(str(kind).lower(), 4),
    )


def gradients_asked(backward: Event) -> tuple[bool, bool]:
    """Of the input, and of the weights: the first convolution needs no gradient of the images."""
    said = backward.listed("Concrete Inputs")
    mask = said[-1] if said else None
    if isinstance(mask, str) and mask.startswith("["):
        words = [word.strip() for word in mask.strip("[]").split(",")]
        if len(words) == 3:
            return words[0] == "True", words[1] == "True"
    return True, True


def sizes_of(item: Any) -> list[int]:
    if not isinstance(item, list) or not all(type(size) is int and 0 <= size < LARGEST_SIZE for size in item):
        return []
    return item if len(item) <= MOST_AXES else []


def numbers(said: list[Any], place: int, count: int) -> tuple[int, ...] | None:
    """``"[1, 1]"`` → (1, 1)."""
    text = said[place] if place < len(said) else None
    if not isinstance(text, str) or not text.startswith("[") or len(text) > 100:
        return None
    try:
        values = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    if not isinstance(values, list) or not values or not all(type(value) is int for value in values):
        return None
    if any(abs(value) >= LARGEST_SIZE for value in values):
        return None
    values = values * count if len(values) == 1 else values
    return tuple(values) if len(values) == count else None


def whole(said: list[Any], place: int) -> int | None:
    text = said[place] if place < len(said) else None
    return int(text) if isinstance(text, str) and text.isdecimal() and len(text) < 9 else None
