"""Counts the operations and bytes of a Conv1d or Conv2d, from the shapes that the profiler has noted.

A multiplication and an addition are two operations; biases, a thousandth of them, are left out, as torch's own counter
does. Bytes are what has to be read and written once: inputs, weights and outputs.
"""

from collections.abc import Sequence
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
    """One convolution as it was called."""

    text: str  # ``64×1×28² → 5×26², 3²`` with what is not the default behind it
    flop: int  # of the forward pass; the gradients of weights and of inputs take the same number each
    bytes: int  # of any of the three: two of input, weights and output are read, the third is written
    input: tuple[int, ...]
    output: tuple[int, ...]
    item_bytes: int


def shape_of(convolution: Event) -> Shape | None:
    """From what ``aten::convolution`` was called with; None where the trace does not tell, or tells of another kind."""
    dims, said = convolution.details.get("Input Dims", ()), convolution.details.get("Concrete Inputs", ())
    try:
        images, channels, *inner = SIZES.validate_python(dims[0])
        channels_out, per_group, *kernel = SIZES.validate_python(dims[1])
        stride, padding, dilation = (for_each_axis(NUMBERS.validate_json(text), len(inner)) for text in said[3:6])
        grid = list(zip(inner, kernel, stride, padding, dilation, strict=True))
        output = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in grid]
    except (ValueError, IndexError, ZeroDivisionError):
        return None
    is_transposed = said[6:7] != ["False"]
    if is_transposed or channels % per_group or min(output) < 1:
        return None
    text = f"{images}×{channels}×{square(inner)} → {channels_out}×{square(output)}, {square(kernel)}"
    for sign, values, usual in (("/", stride, 1), (" pad ", padding, 0), (" dilated ", dilation, 1)):
        if any(value != usual for value in values):
            text += sign + square(values).removesuffix("²")
    groups = channels // per_group
    weights = channels_out * per_group * prod(kernel)
    numbers = weights + images * (channels * prod(inner) + channels_out * prod(output))
    kind = next(iter(convolution.details.get("Input type", ())), "float")
    item_bytes = ITEM_BYTES.get(str(kind), 4)
    return Shape(
        text + (f" groups {groups}" if groups > 1 else ""),
        flop=2 * images * prod(output) * weights,
        bytes=item_bytes * numbers,
        input=(images, channels, *inner),
        output=(images, channels_out, *output),
        item_bytes=item_bytes,
    )


def square(sizes: Sequence[int]) -> str:
    return f"{sizes[0]}²" if len(sizes) == 2 and sizes[0] == sizes[1] else "×".join(map(str, sizes))


def for_each_axis(numbers: tuple[int, ...], axes: int) -> tuple[int, ...]:
    """The padding of ``padding="valid"`` is one number for all."""
    return numbers * axes if len(numbers) == 1 else numbers


def gradients_asked(backward: Event) -> tuple[bool, bool]:
    """Of the input, and of the weights: the first convolution needs no gradient of the images."""
    try:
        of_input, of_weights, _ = MASK.validate_json(str(backward.details.get("Concrete Inputs", ())[-1]).lower())
    except (ValueError, IndexError):
        return True, True
    return of_input, of_weights
