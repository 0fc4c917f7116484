"""Counts the operations and bytes of a Conv1d or Conv2d, from the shapes that the profiler has noted.

A multiplication and an addition are two operations; biases, a thousandth of them, are left out, as torch's own counter
does. Bytes are what has to be read and written once: inputs, weights and outputs.
"""

from dataclasses import dataclass
from math import prod
from typing import Annotated

from pydantic import Field, TypeAdapter

from mnist_accel.profiling.trace_file import Event

ITEM_BYTES = {"float": 4, "double": 8, "c10::BFloat16": 2, "c10::Half": 2}
# Of images or weights: two channels or the like, and one or two axes.
SIZES = TypeAdapter(Annotated[tuple[Annotated[int, Field(gt=0, lt=2**40)], ...], Field(min_length=3, max_length=4)])
NUMBERS = TypeAdapter(tuple[Annotated[int, Field(ge=0, lt=2**40)], ...])
MASK = TypeAdapter(tuple[bool, bool, bool])


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
    item_bytes: int

    @property
    def weights(self) -> int:
        return self.channels_in * self.channels_out // self.groups * prod(self.kernel)

    @property
    def flop(self) -> int:
        """Of the forward pass. The gradients of weights and of inputs take the same number each."""
        return 2 * self.images * prod(self.output) * self.weights

    @property
    def bytes(self) -> int:
        """Of any of the three: two of input, weights and output are read, the third is written."""
        read = self.images * self.channels_in * prod(self.input)
        written = self.images * self.channels_out * prod(self.output)
        return self.item_bytes * (self.weights + read + written)

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


def shape_of(convolution: Event) -> Shape | None:
    """From what ``aten::convolution`` was called with; None where the trace does not tell, or tells of another kind."""
    dims, said = convolution.listed("Input Dims"), convolution.listed("Concrete Inputs")
    try:
        images, channels, *inner = SIZES.validate_python(dims[0])
        channels_out, per_group, *kernel = SIZES.validate_python(dims[1])
        stride, padding, dilation = (for_each_axis(NUMBERS.validate_json(text), len(inner)) for text in said[3:6])
        grid = list(zip(inner, kernel, stride, padding, dilation, strict=True))
        output = tuple((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in grid)
    except (ValueError, IndexError, ZeroDivisionError):
        return None
    kind = next(iter(convolution.listed("Input type")), "float")
    is_transposed = said[6:7] != ["False"]
    if is_transposed or channels % per_group or min(output) < 1:
        return None
    return Shape(
        images,
        channels,
        channels_out,
        tuple(inner),
        output,
        tuple(kernel),
        stride,
        padding,
        dilation,
        channels // per_group,
        ITEM_BYTES.get(str(kind), 4),
    )


def for_each_axis(numbers: tuple[int, ...], axes: int) -> tuple[int, ...]:
    """The padding of ``padding="valid"`` is one number for all."""
    return numbers * axes if len(numbers) == 1 else numbers


def gradients_asked(backward: Event) -> tuple[bool, bool]:
    """Of the input, and of the weights: the first convolution needs no gradient of the images."""
    try:
        of_input, of_weights, _ = MASK.validate_json(str(backward.listed("Concrete Inputs")[-1]).lower())
    except (ValueError, IndexError):
        return True, True
    return of_input, of_weights
