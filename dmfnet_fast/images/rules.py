"""The two rules for fused images: colors, which show the tracer, are preserved, and nothing is invented.

First, every pixel keeps at least a given fraction of b's chroma, which bounds its luminance: no yellow is as bright as
white. Second, the fused luminance of a pixel lies within the range of both sources in its 3x3 neighborhood. Each rule
is an interval of luminance, and both intervals contain b's own luminance, so they always intersect.

One definition serves numpy, PyTorch (training and GPUs) and, exported from PyTorch, ONNX: every function takes arrays
of either library. Integer images give the same values in all three, bit for bit: sums are of integers that the
floating-point type represents exactly, so that no order of summation changes them, and products are rounded once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from dmfnet_fast.errors import require

Array: TypeAlias = Any  # numpy.ndarray or torch.Tensor

# BT.601 weights in thousandths, which are integers.
RED, GREEN, BLUE = 299.0, 587.0, 114.0


@dataclass(frozen=True)
class Rules:
    """Constraints on every pixel of a fused image.

    Attributes:
        kept_chroma: the least fraction of b's chroma that a pixel keeps, 0 to 1. At 0 the network alone determines the
            luminance, and saturated colors turn pale where it is bright; at 1 all chroma is kept, and detail in
            saturated colors is faint.
        invention: whether a pixel may be darker or brighter than everything in its 3x3 neighborhood in both sources.

    Raises:
        ValueError: `kept_chroma` is out of range.
    """

    kept_chroma: float = 0.75
    invention: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.kept_chroma <= 1:
            raise ValueError(f"kept chroma {self.kept_chroma}: must lie between 0 and 1")


class Interval(NamedTuple):
    """The least and the greatest luminance allowed for each pixel, two arrays of one shape."""

    lowest: Array
    highest: Array


class Chroma(NamedTuple):
    """The colors of b, decomposed; all arrays have one shape.

    Attributes:
        channels: red, green and blue, in b's own units.
        brightest, darkest: the largest and the smallest channel of each pixel, in b's own units.
        luminance: BT.601 luminance, in thousandths of b's units.
        above: distance of the brightest channel above the luminance, in thousandths of b's units.
        below: distance of the darkest channel below the luminance, in thousandths of b's units.
    """

    channels: tuple[Array, Array, Array]
    brightest: Array
    darkest: Array
    luminance: Array
    above: Array
    below: Array


def _library(array: Array) -> Any:
    return np if isinstance(array, np.ndarray) else require("torch", extra="torch")


def _extreme_of_3(x: Array, choose: Any, axis: int) -> Array:
    """`choose` (minimum or maximum) over each element and its two neighbors along `axis`, -1 or -2."""
    first, last = (x[..., :1], x[..., -1:]) if axis == -1 else (x[..., :1, :], x[..., -1:, :])
    left, right = (x[..., :-1], x[..., 1:]) if axis == -1 else (x[..., :-1, :], x[..., 1:, :])
    pairs = choose(left, right)
    concatenate = _library(x).concatenate
    # Element n is the extreme of pairs n - 1 and n; the first and the last element belong to only one pair.
    return choose(concatenate((first, pairs), axis=axis), concatenate((pairs, last), axis=axis))


def neighborhood_interval(a: Array, b: Array) -> Interval:
    """The minimum and the maximum of both sources over each pixel's 3x3 neighborhood.

    Args:
        a, b: luminances (..., H, W) in the same unit, of any type; H and W at least 2. Neighborhoods are cropped at
            the border.
    """
    xp = _library(a)
    darkest, brightest = xp.minimum(a, b), xp.maximum(a, b)
    for axis in (-1, -2):
        darkest = _extreme_of_3(darkest, xp.minimum, axis)
        brightest = _extreme_of_3(brightest, xp.maximum, axis)
    return Interval(darkest, brightest)


def chroma_of(red: Array, green: Array, blue: Array) -> Chroma:
    """Decompose colors, given as channels of one shape and one floating-point type.

    For integer images the type must represent a thousand times the largest value exactly: float32 does for 8 bits,
    float64 for 16 bits.
    """
    xp = _library(red)
    luminance = RED * red + GREEN * green + BLUE * blue
    brightest = xp.maximum(xp.maximum(red, green), blue)
    darkest = xp.minimum(xp.minimum(red, green), blue)
    above, below = 1000 * brightest - luminance, luminance - 1000 * darkest
    return Chroma((red, green, blue), brightest, darkest, luminance, above, below)


def color_interval(chroma: Chroma, kept: float | Array, black: float, white: float, whole: bool) -> Interval:
    """The luminances at which the fraction `kept` of each pixel's chroma can be represented.

    With luminance y and k times the chroma, a channel c of a color of luminance Y becomes y + k (c - Y), which must lie
    between black and white.

    Args:
        chroma: the colors of b.
        kept: fraction of the chroma to keep, 0 to 1; an array where pixels differ.
        black, white: b's range.
        whole: whether luminances are integers, so that the ends of the interval must be integers as well.
    """
    return color_interval_of(chroma, kept / 1000, black, white, whole)


def color_interval_of(chroma: Chroma, thousandth: float | Array, black: float, white: float, whole: bool) -> Interval:
    """`color_interval`, given a thousandth of the fraction to keep: exported graphs take this as their input.

    Dividing it as a float32 there would round differently.
    """
    xp = _library(chroma.luminance)
    lowest = chroma.below * thousandth + black
    highest = white - chroma.above * thousandth
    if whole:
        lowest, highest = xp.ceil(lowest), xp.floor(highest)
    return Interval(lowest, xp.maximum(lowest, highest))


def within(y: Array, interval: Interval) -> Array:
    """Clamp `y` to the interval."""
    xp = _library(y)
    return xp.minimum(xp.maximum(y, interval.lowest), interval.highest)


def common(color: Interval, neighborhood: Interval) -> Interval:
    """The intersection of two intervals; where rounding leaves it empty, the end of `color` nearest `neighborhood`."""
    return Interval(within(neighborhood.lowest, color), within(neighborhood.highest, color))


def shift_of(y: Array, luminance: Array) -> Array:
    """The integer that, added to all three channels, gives them the luminance `y`.

    A common integer shift preserves the differences between channels, and hence Cb and Cr, exactly.

    Args:
        y: the fused luminance, integers.
        luminance: b's luminance, in thousandths.
    """
    return _library(y).round((1000 * y - luminance) * 0.001)


def room_of(shift: Array, brightest: Array, darkest: Array, black: float, white: float) -> Array:
    """The least distance of the shifted channels from the ends of the range; negative where one lies outside."""
    return _library(shift).minimum(white - brightest - shift, shift + darkest - black)


def paler(y: Array, chroma: Chroma, black: float, white: float, whole: bool) -> tuple[Array, Array, Array]:
    """Red, green and blue of the luminance `y` and b's hue, desaturated by no more than the range requires.

    Args:
        y: the fused luminance, within black and white.
        chroma: the colors of b.
        black, white: b's range.
        whole: whether the channels must be integers.
    """
    xp = _library(y)
    least = 1.0 if whole else 1e-30  # avoids division by zero for gray pixels, whose chroma is 0 at any factor
    above, below = (part.clip(min=least) for part in (chroma.above, chroma.below))
    factor = xp.minimum(1000 * (white - y) / above, 1000 * (y - black) / below).clip(max=1.0) * 0.001
    changes = [(1000 * channel - chroma.luminance) * factor for channel in chroma.channels]
    if whole:
        red, green, blue = (y + xp.round(change) for change in changes)
    else:
        red, green, blue = ((y + change).clip(black, white) for change in changes)
    return red, green, blue


def apply_luminance(y: Array, chroma: Chroma, black: float, white: float, whole: bool) -> tuple[Array, Array, Array]:
    """Red, green and blue of the luminance `y` and b's hue.

    To keep Cb and Cr while Y changes, the change of Y is added to all three channels: by BT.601, R = Y + 1.402 Cr and
    B = Y + 1.772 Cb, and G follows from Y. Where the result would leave the range, Cb and Cr are scaled down by a
    common factor, which preserves luminance and hue and makes the color paler.

    Args:
        y: the fused luminance, within black and white; integers if `whole`.
        chroma: the colors of b.
        black, white: b's range.
        whole: whether the channels must be integers.
    """
    pale = paler(y, chroma, black, white, whole)
    if not whole:
        return pale
    shift = shift_of(y, chroma.luminance)
    # 1 where no shifted channel leaves the range, else 0. All are integers, so the sums below are exact.
    fits = (room_of(shift, chroma.brightest, chroma.darkest, black, white) + 1).clip(min=0.0, max=1.0)
    red, green, blue = (p + fits * (channel + shift - p) for p, channel in zip(pale, chroma.channels, strict=True))
    return red, green, blue
