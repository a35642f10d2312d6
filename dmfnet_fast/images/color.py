"""Conversion between images and the network's luminances, and the colors of the fused image."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dmfnet_fast.errors import ImageError, warn
from dmfnet_fast.images.io import LoadedImage, Pixels
from dmfnet_fast.images.rules import (
    BLUE,
    GREEN,
    RED,
    Interval,
    Rules,
    apply_luminance,
    chroma_of,
    color_interval,
    common,
    neighborhood_interval,
    paler,
    room_of,
    shift_of,
    within,
)

EIGHT_BIT = (0.0, 255.0)
DEFAULT_RULES = Rules()
PIXELS_AT_ONCE = 2**15
LUMINANCE = np.array([RED, GREEN, BLUE]) / 1000
# An image is in color if the spread of its channels exceeds COLOR_SPREAD, a fraction of its largest value, in more than
# the fraction COLOR_PART of its pixels. Less than that is the tint that JPEG leaves on gray images.
COLOR_SPREAD = 0.1
COLOR_PART = 0.005


def luminance(pixels: Pixels) -> NDArray[Any]:
    """BT.601 luminance (H, W) in the image's own units: uint8 as by Pillow's "L" for 8-bit images, else float64."""
    if pixels.dtype == np.uint8:
        return pixels if pixels.ndim == 2 else np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).convert("L"))
    if pixels.ndim == 2:
        return pixels.astype(np.float64)
    return pixels.astype(np.float64) @ LUMINANCE


def is_color(pixels: Pixels) -> bool:
    """Whether the image is in color, rather than gray stored as RGB."""
    if pixels.ndim == 2:
        return False
    spread = pixels.max(axis=2).astype(np.float64) - pixels.min(axis=2)
    return bool((spread > COLOR_SPREAD * max(float(pixels.max()), 1e-12)).mean() > COLOR_PART)


def _median_peak(pixels: Pixels) -> int:
    """The largest value of the image's brightest channel after 3x3 median filtering."""
    gray = pixels if pixels.ndim == 2 else pixels.max(axis=2)
    windows = np.lib.stride_tricks.sliding_window_view(gray, (3, 3))
    return int(np.median(windows, axis=(2, 3)).max())


def check_range(stated: tuple[float, float], name: str) -> tuple[float, float]:
    """The stated values of black and white as floats.

    Raises:
        ImageError: they are not two finite numbers in ascending order.
    """
    low, high = (float(value) for value in stated)
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ImageError(f"{name}: range ({low:g}, {high:g}) must be two finite numbers, the smaller first")
    return low, high


def _range_of_16_bit(pixels: Pixels, name: str) -> tuple[float, float]:
    """Infer the intensity range of 16-bit data, and warn if the data use only part of 0..65535."""
    lowest, highest = (float(value) for value in np.percentile(pixels, (0.1, 99.9)))
    peak = int(pixels.max())
    # A few hot pixels do not turn 12-bit data into 16-bit data. Only what a 3x3 median removes counts as a hot pixel;
    # otherwise a small lesion would count as one.
    bulk = max(int(highest), _median_peak(pixels)) if highest < peak / 8 else peak
    outliers = bulk < peak / 8
    bits = (bulk if outliers else peak).bit_length()
    top = 2 ** max(8, bits) - 1 if 0 < bits < 16 else 65535
    advice = f"0..{top} is assumed as its range; state the range with range=(lo, hi), --range-a or --range-b"
    if outliers:
        warn(f"{name}: nearly all values are at most {bulk}, but a few reach {peak}: {advice}")
    elif top < 65535:
        warn(f"{name}: its largest value is {peak}: {advice}")
    elif peak > 0 and highest - lowest < 65535 / 8:
        warn(f"{name}: nearly all values lie in {lowest:g}..{highest:g}: {advice}")
    return 0.0, float(top)


def value_range(pixels: Pixels, stated: tuple[float, float] | None, name: str) -> tuple[float, float]:
    """The values of black and white in an image.

    uint8 images always span 0..255. For others a stated range is used as it is. Without one, float images span 0..1,
    and uint16 images span 0..65535 unless they use 15 bits or fewer (apart from a few hot pixels): then the range is 0
    to the smallest 2^n - 1 that holds the values, n at least 8, and a warning is issued.

    Raises:
        ImageError: the stated range is empty or not finite; or no range is stated, and float values lie outside 0..1 or
            are not finite.
    """
    if pixels.dtype == np.uint8:
        return 0.0, 255.0
    if stated is not None:
        return check_range(stated, name)
    if pixels.dtype == np.uint16:
        return _range_of_16_bit(pixels, name)
    low, high = float(pixels.min()), float(pixels.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ImageError(f"{name}: holds NaN or infinity; replace them before fusing")
    if low < 0.0 or high > 1.0:
        raise ImageError(
            f"{name}: float values from {low:.9g} to {high:.9g} are outside 0..1; "
            "state its range with range=(lo, hi), --range-a or --range-b"
        )
    return 0.0, 1.0


def range_of(image: LoadedImage, stated: tuple[float, float] | None) -> tuple[float, float]:
    """The `value_range` of a file: as the user states it, else as the file does, else inferred.

    Warns if a range is stated for an 8-bit image, which has no use for it.

    Raises:
        ImageError: as `value_range`.
    """
    if stated is not None and image.pixels.dtype == np.uint8:
        warn(f"{image.name}: is 8-bit, which always spans 0..255: its range is not used")
    return value_range(image.pixels, stated or image.values, image.name)


def to_network(pixels: Pixels, values: tuple[float, float]) -> NDArray[np.float32]:
    """Luminance (H, W) in [-1, 1]; values outside the range `values` are clipped."""
    low, high = values
    y = luminance(pixels)
    # For 8 bits, a table of 256 values takes a tenth of the time of computing every pixel.
    levels = np.arange(256.0) if y.dtype == np.uint8 else y
    scaled = ((levels.clip(low, high) - low) * (2.0 / (high - low)) - 1.0).astype(np.float32)
    # mode="clip" skips numpy's bounds check, which takes longer than the lookup itself.
    return scaled.take(y, mode="clip") if y.dtype == np.uint8 else scaled


def to_luminance8(pixels: Pixels, name: str) -> NDArray[np.uint8]:
    """Luminance (H, W) as uint8, scaled from the image's own range to 0..255."""
    return np.rint((to_network(pixels, value_range(pixels, None, name)) + 1.0) * 127.5).astype(np.uint8)


class Canvas:
    """Converts a pair of images to the network's inputs, and the network's output to the fused image.

    Args:
        a: the anatomical image, H x W or H x W x 3.
        b: the image of the other modality, likewise; the result has its colors.
        values_a, values_b: the values of black and white in a and b.
        rules: the constraints on every fused pixel.

    Attributes:
        a, b: luminances (H, W) in [-1, 1], float32.
    """

    def __init__(
        self,
        a: Pixels,
        b: Pixels,
        values_a: tuple[float, float] = EIGHT_BIT,
        values_b: tuple[float, float] = EIGHT_BIT,
        rules: Rules = DEFAULT_RULES,
    ) -> None:
        gray_a, gray_b = luminance(a), luminance(b)
        self.a, self.b = to_network(gray_a, values_a), to_network(gray_b, values_b)
        self._kind, self._values = b.dtype, values_b
        low, high = values_b
        self._whole = b.dtype.kind == "u"
        self._black, self._white = (float(math.ceil(low)), float(math.floor(high))) if self._whole else (low, high)
        # float32 holds thousandths of 8-bit channels exactly, float64 those of 16-bit channels.
        self._type = np.dtype(np.float32 if b.dtype == np.uint8 else np.float64)
        self._b = b
        if rules.invention:
            near = Interval(*(np.full(b.shape[:2], end, self._type) for end in (self._black, self._white)))
        elif gray_a.dtype == gray_b.dtype == np.uint8:
            near = neighborhood_interval(gray_a, gray_b)
        else:
            near = neighborhood_interval(*(self._in_units_of_b(image) for image in (self.a, self.b)))
        # Integers in b's range are stored in b's own type: allocating memory costs more than the computation here.
        stored_type = self._kind if self._whole else self._type
        lowest, highest, self._brightest, self._darkest = np.empty((4, *b.shape[:2]), stored_type)
        self._limits = Interval(lowest, highest)
        self._luminance = np.empty(b.shape[:2], self._type)
        for rows in self._strips():
            limits = Interval(*(end[rows].astype(self._type) for end in near))
            if b.ndim == 3:
                chroma = chroma_of(*self._channels(b[rows]))
                self._luminance[rows] = chroma.luminance
                self._brightest[rows], self._darkest[rows] = chroma.brightest, chroma.darkest
                color = color_interval(chroma, rules.kept_chroma, self._black, self._white, self._whole)
                limits = common(color, limits)
            self._limits.lowest[rows], self._limits.highest[rows] = limits

    @property
    def interval(self) -> NDArray[np.float32]:
        """The least and the greatest luminance allowed for each pixel, (2, H, W) in [-1, 1]."""
        low, high = self._values
        result = np.empty((2, *self.a.shape), np.float32)
        for end, target in zip(self._limits, result, strict=True):
            for rows in self._strips():
                target[rows] = (end[rows].astype(self._type) - low) * (2.0 / (high - low)) - 1.0
        return result

    def _strips(self) -> Iterator[slice]:
        """Slices of rows, small enough that the intermediate results of one fit in the cache."""
        height, width = self._b.shape[:2]
        step = max(1, PIXELS_AT_ONCE // width)
        yield from (slice(start, start + step) for start in range(0, height, step))

    def _in_units_of_b(self, image: NDArray[np.float32]) -> NDArray[Any]:
        low, high = self._values
        y = (image.astype(self._type) + 1) * ((high - low) / 2) + low
        return np.rint(y).clip(self._black, self._white) if self._whole else y

    def _channels(self, colors: NDArray[Any]) -> list[NDArray[Any]]:
        """The channels of colors (..., 3) as floats, within b's range."""
        channels = [colors[..., n].astype(self._type) for n in range(3)]
        if self._kind == np.uint8:
            return channels
        clipped = [channel.clip(*self._values) for channel in channels]
        return [np.rint(channel).clip(self._black, self._white) for channel in clipped] if self._whole else clipped

    def finish(self, fused: NDArray[np.float32]) -> Pixels:
        """Make the fused image from the network's output and b's colors.

        Args:
            fused: fused luminance (H, W), float32 in [-1, 1]; it is clamped to the interval.

        Returns:
            An array of b's shape and type, within its range.
        """
        result = np.empty(self._b.shape, self._kind)
        for rows in self._strips():
            limits = Interval(*(end[rows].astype(self._type) for end in self._limits))
            y = within(self._in_units_of_b(fused[rows]), limits)
            if self._b.ndim == 2:
                result[rows] = y
            elif self._whole:
                self._apply_luminance(y, rows, result[rows])
            else:
                channels = self._channels(self._b[rows])
                for n, channel in enumerate(apply_luminance(y, chroma_of(*channels), self._black, self._white, False)):
                    result[rows, :, n] = channel
        return result

    def _apply_luminance(self, y: NDArray[Any], rows: slice, result: NDArray[Any]) -> None:
        """`rules.apply_luminance` for integer images; the costly desaturation runs only on the pixels that need it."""
        shift = shift_of(y, self._luminance[rows])
        extremes = (self._brightest[rows].astype(self._type), self._darkest[rows].astype(self._type))
        room = room_of(shift, *extremes, self._black, self._white)
        for n, channel in enumerate(self._channels(self._b[rows])):
            np.add(channel, shift, out=channel)
            result[..., n] = channel
        outside = np.nonzero(room < 0)
        if len(outside[0]):
            chroma = chroma_of(*self._channels(self._b[rows][outside]))
            result[outside] = np.stack(paler(y[outside], chroma, self._black, self._white, True), axis=-1)
