"""The two rules of a fused image: color is the tracer, and nothing is invented.

A pixel of b keeps at least a stated part of its chroma, which bounds the luminance that it can be given: yellow does
not exist as bright as white. And the fused luminance of a pixel lies within what the sources show in its 3x3
neighborhood. Both are intervals of luminance, and both contain the luminance that b has itself, so they always have
a common part.

One definition serves numpy, PyTorch (training, GPUs) and, exported from that, ONNX: every function takes arrays of
either library. Whole-numbered images give the same values in all three, bit for bit: sums are of whole numbers that
the type holds exactly, so no compiler can round them otherwise, and products are rounded once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from dmfnet_fast.errors import require

Array: TypeAlias = Any  # numpy.ndarray or torch.Tensor

# BT.601 in thousandths, which are whole numbers.
RED, GREEN, BLUE = 299.0, 587.0, 114.0


@dataclass(frozen=True)
class Rules:
    """What holds for every pixel of a fused image.

    Attributes:
        kept_chroma: the least part of b's chroma that a pixel keeps, 0 to 1. At 0 the luminance is the network's own,
            and saturated colors go pale where it is bright; at 1 no color changes, and detail in them is faint.
        invention: whether luminances are allowed that neither source has in the 3x3 neighborhood.

    Raises:
        ValueError: `kept_chroma` is out of range.
    """

    kept_chroma: float = 0.75
    invention: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.kept_chroma <= 1:
            raise ValueError(f"kept chroma {self.kept_chroma}: must lie between 0 and 1")


class Interval(NamedTuple):
    """The least and the greatest luminance that each pixel may have, of one shape."""

    lowest: Array
    highest: Array


class Chroma(NamedTuple):
    """The colors of b, taken apart.

    Attributes:
        channels: red, green and blue, of one shape, in b's own units.
        brightest, darkest: the extreme channel of each pixel.
        luminance: BT.601, in thousandths of b's units.
        above: how far the brightest channel lies above the luminance, in thousandths.
        below: how far the darkest lies below it, likewise.
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
    fore, aft = (x[..., :-1], x[..., 1:]) if axis == -1 else (x[..., :-1, :], x[..., 1:, :])
    pairs = choose(fore, aft)
    join = _library(x).concatenate
    # Element n is the extreme of pairs n - 1 and n; at the ends there is only one.
    return choose(join((first, pairs), axis=axis), join((pairs, last), axis=axis))


def neighborhood_interval(a: Array, b: Array) -> Interval:
    """The luminances between the darkest and the brightest that either source has in each pixel's 3x3 neighborhood.

    Args:
        a, b: luminances (..., H, W) in one unit, of any type; H and W at least 2. Beyond the border there is nothing.
    """
    xp = _library(a)
    darkest, brightest = xp.minimum(a, b), xp.maximum(a, b)
    for axis in (-1, -2):
        darkest = _extreme_of_3(darkest, xp.minimum, axis)
        brightest = _extreme_of_3(brightest, xp.maximum, axis)
    return Interval(darkest, brightest)


def chroma_of(red: Array, green: Array, blue: Array) -> Chroma:
    """Take colors apart; channels of one shape and of one floating-point type.

    For whole numbers that type must hold a thousand times the largest: float32 does for 8 bits, float64 for 16.
    """
    xp = _library(red)
    luminance = RED * red + GREEN * green + BLUE * blue
    brightest = xp.maximum(xp.maximum(red, green), blue)
    darkest = xp.minimum(xp.minimum(red, green), blue)
    above, below = 1000 * brightest - luminance, luminance - 1000 * darkest
    return Chroma((red, green, blue), brightest, darkest, luminance, above, below)


def color_interval(chroma: Chroma, kept: float | Array, black: float, white: float, whole: bool) -> Interval:
    """The luminances at which `kept` of each pixel's chroma exists.

    With luminance y and k times the chroma, a channel c becomes y + k (c - Y), which must lie between black and white.

    Args:
        chroma: of b.
        kept: part of the chroma that must remain, 0 to 1; an array where pixels differ.
        black, white: b's range.
        whole: whether luminances are whole numbers, so that the ends are to be.
    """
    xp = _library(chroma.luminance)
    lowest = chroma.below * (kept / 1000) + black
    highest = white - chroma.above * (kept / 1000)
    if whole:
        lowest, highest = xp.ceil(lowest), xp.floor(highest)
    return Interval(lowest, xp.maximum(lowest, highest))


def within(y: Array, interval: Interval) -> Array:
    """`y` moved into the interval, as little as must be."""
    xp = _library(y)
    return xp.minimum(xp.maximum(y, interval.lowest), interval.highest)


def common(color: Interval, neighborhood: Interval) -> Interval:
    """The part that two intervals have in common; `color` has the last word where rounding leaves none."""
    return Interval(within(neighborhood.lowest, color), within(neighborhood.highest, color))


def shift_of(y: Array, luminance: Array) -> Array:
    """The whole number that, added to all three channels, gives them the luminance `y`.

    Rounded once for all of them, it keeps their differences, and so Cb and Cr, exactly.

    Args:
        y: the fused luminance, whole numbers.
        luminance: of b, in thousandths.
    """
    return _library(y).round((1000 * y - luminance) * 0.001)


def room_of(shift: Array, brightest: Array, darkest: Array, black: float, white: float) -> Array:
    """How much further all channels could be shifted without leaving the range; less than 0 where they have left it."""
    return _library(shift).minimum(white - brightest - shift, shift + darkest - black)


def paler(y: Array, chroma: Chroma, black: float, white: float, whole: bool) -> tuple[Array, Array, Array]:
    """Red, green and blue with the luminance `y` and the hue of b, but less of its chroma, as little less as must be.

    Args:
        y: the fused luminance, within black and white.
        chroma: of b.
        black, white: b's range.
        whole: whether the channels are to be whole numbers.
    """
    xp = _library(y)
    least = 1.0 if whole else 1e-30  # for gray pixels, whose chroma is 0 whatever it is multiplied by
    above, below = (part.clip(min=least) for part in (chroma.above, chroma.below))
    factor = xp.minimum(1000 * (white - y) / above, 1000 * (y - black) / below).clip(max=1.0) * 0.001
    changes = [(1000 * channel - chroma.luminance) * factor for channel in chroma.channels]
    if whole:
        red, green, blue = (y + xp.round(change) for change in changes)
    else:
        red, green, blue = ((y + change).clip(black, white) for change in changes)
    return red, green, blue


def apply_luminance(y: Array, chroma: Chroma, black: float, white: float, whole: bool) -> tuple[Array, Array, Array]:
    """Red, green and blue with the luminance `y` and the hue of b.

    Keeping Cb and Cr while Y changes means adding the change of Y to all three channels: by BT.601 R = Y + 1.402 Cr and
    B = Y + 1.772 Cb, and G follows from Y. Where the result would leave the range, Cb and Cr shrink by one factor:
    luminance and hue stay, the color is paler.

    Args:
        y: the fused luminance, within black and white; of whole numbers if `whole`.
        chroma: of b.
        black, white: b's range.
        whole: whether the channels are to be whole numbers.
    """
    pale = paler(y, chroma, black, white, whole)
    if not whole:
        return pale
    shift = shift_of(y, chroma.luminance)
    # 1 where no shifted channel leaves the range, else 0. All are whole numbers, so the sums below are exact.
    exists = (room_of(shift, chroma.brightest, chroma.darkest, black, white) + 1).clip(min=0.0, max=1.0)
    red, green, blue = (p + exists * (channel + shift - p) for p, channel in zip(pale, chroma.channels, strict=True))
    return red, green, blue
