"""Luminance in and colour out: between pictures and the network's numbers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dmfnet_fast.errors import PictureError, warn
from dmfnet_fast.pictures import Pixels
from dmfnet_fast.rules import (
    BLUE,
    GREEN,
    RED,
    Interval,
    Rules,
    chroma_of,
    colour_interval,
    common,
    neighbourhood_interval,
    recoloured,
    within,
)

EIGHT_BIT = (0.0, 255.0)
DEFAULT_RULES = Rules()
LUMINANCE = np.array([RED, GREEN, BLUE]) / 1000
# A channel spread above this part of the range, in more than this part of the pixels, is colour; below it is
# the tint that JPEG leaves on grey.
COLOUR_SPREAD = 0.1
COLOUR_PART = 0.005


def luminance(pixels: Pixels) -> NDArray[Any]:
    """BT.601 luminance (H, W) in the picture's own units: of 8-bit pictures Pillow's "L", else float64."""
    if pixels.dtype == np.uint8:
        return pixels if pixels.ndim == 2 else np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).convert("L"))
    if pixels.ndim == 2:
        return pixels.astype(np.float64)
    return pixels.astype(np.float64) @ LUMINANCE


def is_colour(pixels: Pixels) -> bool:
    """Whether the picture shows colours, rather than grey stored as RGB."""
    if pixels.ndim == 2:
        return False
    spread = pixels.max(axis=2).astype(np.float64) - pixels.min(axis=2)
    return bool((spread > COLOUR_SPREAD * max(float(pixels.max()), 1e-12)).mean() > COLOUR_PART)


def _median_peak(pixels: Pixels) -> int:
    """The largest value of the 3x3 median of the picture's brightest channel."""
    grey = pixels if pixels.ndim == 2 else pixels.max(axis=2)
    windows = np.lib.stride_tricks.sliding_window_view(grey, (3, 3))
    return int(np.median(windows, axis=(2, 3)).max())


def check_range(stated: tuple[float, float], name: str) -> tuple[float, float]:
    """The stated black and white as floats.

    Raises:
        PictureError: they are not two finite numbers, the smaller first.
    """
    low, high = (float(value) for value in stated)
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise PictureError(f"{name}: range ({low:g}, {high:g}) must be two finite numbers, the smaller first")
    return low, high


def _range_of_16_bit(pixels: Pixels, name: str) -> tuple[float, float]:
    """What black and white probably are in 16-bit data of which only a part is used; says what it took."""
    lowest, highest = (float(value) for value in np.percentile(pixels, (0.1, 99.9)))
    peak = int(pixels.max())
    # A few hot pixels do not make 12-bit data 16-bit; but only what a 3x3 median removes is a hot pixel, or a
    # small lesion would be one.
    bulk = max(int(highest), _median_peak(pixels)) if highest < peak / 8 else peak
    outliers = bulk < peak / 8
    bits = (bulk if outliers else peak).bit_length()
    top = 2 ** max(8, bits) - 1 if 0 < bits < 16 else 65535
    stating = f"0..{top} is taken as its range; state it: range=(lo, hi), --range-a or --range-b"
    if outliers:
        warn(f"{name}: all but single pixels end at {bulk}, a few reach {peak}: {stating}")
    elif top < 65535:
        warn(f"{name}: its values end at {peak}: {stating}")
    elif peak > 0 and highest - lowest < 65535 / 8:
        warn(f"{name}: nearly all values lie in {lowest:g}..{highest:g}, {stating}")
    return 0.0, float(top)


def value_range(pixels: Pixels, stated: tuple[float, float] | None, name: str) -> tuple[float, float]:
    """The values that mean black and white.

    uint8 always means 0..255. For the others stated values are taken as they are; without them float means
    0..1, and uint16 means 0..65535 unless the picture uses 15 bits or fewer (a few hot pixels aside): then 0 to
    the smallest 2^n - 1 that holds it, with a warning.

    Raises:
        PictureError: the stated range is empty or not finite, or float values lie outside 0..1.
    """
    if pixels.dtype == np.uint8:
        return 0.0, 255.0
    if stated is not None:
        return check_range(stated, name)
    if pixels.dtype == np.uint16:
        return _range_of_16_bit(pixels, name)
    low, high = float(pixels.min()), float(pixels.max())
    if low < 0.0 or high > 1.0:
        raise PictureError(
            f"{name}: float values from {low:.9g} to {high:.9g} are outside 0..1; "
            "state its range: range=(lo, hi), --range-a or --range-b"
        )
    return 0.0, 1.0


def to_network(pixels: Pixels, values: tuple[float, float]) -> NDArray[np.float32]:
    """Luminance (H, W) in [-1, 1]; what lies outside the range `values` is clipped."""
    low, high = values
    y = luminance(pixels)
    # Looking up the 256 values of 8 bits takes a tenth of the time of computing each pixel's.
    levels = np.arange(256.0) if y.dtype == np.uint8 else y
    scaled = ((levels.clip(low, high) - low) * (2.0 / (high - low)) - 1.0).astype(np.float32)
    return scaled[y] if y.dtype == np.uint8 else scaled


def to_luminance8(pixels: Pixels, name: str) -> NDArray[np.uint8]:
    """Luminance (H, W) as uint8 over the picture's own range."""
    return np.rint((to_network(pixels, value_range(pixels, None, name)) + 1.0) * 127.5).astype(np.uint8)


class Canvas:
    """A pair on its way through a network: what that takes in, and the image that its result becomes.

    Args:
        a: the anatomical image, H x W or H x W x 3.
        b: the other, likewise; its colours are the result's.
        values_a, values_b: their ranges.
        rules: what holds for every pixel.

    Attributes:
        a, b: luminances (H, W) in [-1, 1], float32.
        interval: the least and the greatest luminance that each pixel may have, (2, H, W) in [-1, 1], float32.
    """

    def __init__(
        self,
        a: Pixels,
        b: Pixels,
        values_a: tuple[float, float] = EIGHT_BIT,
        values_b: tuple[float, float] = EIGHT_BIT,
        rules: Rules = DEFAULT_RULES,
    ) -> None:
        self.a, self.b = to_network(a, values_a), to_network(b, values_b)
        self._kind, self._values = b.dtype, values_b
        low, high = values_b
        self._whole = b.dtype.kind == "u"
        self._black, self._white = (float(math.ceil(low)), float(math.floor(high))) if self._whole else (low, high)
        # float32 holds the thousandths of 8-bit channels exactly, float64 those of 16.
        self._type = np.dtype(np.float32 if b.dtype == np.uint8 else np.float64)
        limits = Interval(*(np.full(b.shape[:2], end, self._type) for end in (self._black, self._white)))
        if not rules.invention:
            limits = within_neighbourhood = self._neighbourhood(a, b)
        self._chroma = None
        if b.ndim == 3:
            self._chroma = chroma_of(*self._channels(b))
            colour = colour_interval(self._chroma, rules.kept_chroma, self._black, self._white, self._whole)
            limits = colour if rules.invention else common(colour, within_neighbourhood)
        self._limits = limits
        scale = 2.0 / (high - low)
        self.interval = np.stack([(end - low) * scale - 1 for end in limits]).astype(np.float32)

    def _neighbourhood(self, a: Pixels, b: Pixels) -> Interval:
        """In b's units."""
        if a.dtype == b.dtype == np.uint8:
            return Interval(*(end.astype(self._type) for end in neighbourhood_interval(luminance(a), luminance(b))))
        low, high = self._values
        units = [(image.astype(np.float64) + 1) * ((high - low) / 2) + low for image in (self.a, self.b)]
        if self._whole:
            units = [np.rint(image).clip(self._black, self._white) for image in units]
        return neighbourhood_interval(*units)

    def _channels(self, b: Pixels) -> list[NDArray[Any]]:
        if b.dtype == np.uint8:
            return [np.asarray(band).astype(self._type) for band in Image.fromarray(np.ascontiguousarray(b)).split()]
        channels = [b[..., n].astype(self._type).clip(*self._values) for n in range(3)]
        if self._whole:
            channels = [np.rint(channel).clip(self._black, self._white) for channel in channels]
        return channels

    def finish(self, fused: NDArray[np.float32]) -> Pixels:
        """The image of a fused luminance (H, W), float32 in [-1, 1] and moved into the interval, in b's colours.

        Returns:
            An array like b, within its range.
        """
        low, high = self._values
        y = (fused.astype(self._type) + 1) * self._type.type((high - low) / 2) + self._type.type(low)
        if self._whole:
            np.rint(y, out=y)
        y = within(y, self._limits)
        if self._chroma is None:
            return y.astype(self._kind)
        channels = recoloured(y, self._chroma, self._black, self._white, self._whole)
        if self._kind == np.uint8:
            bands = [Image.fromarray(channel.astype(np.uint8)) for channel in channels]
            return np.asarray(Image.merge("RGB", bands))
        return np.stack(channels, axis=-1).astype(self._kind)
