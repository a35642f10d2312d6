"""Luminance in and colour out: between pictures and the network's numbers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dmfnet_fast.errors import PictureError, warn
from dmfnet_fast.pictures import Pixels

# BT.601, as in JPEG; in thousandths it is whole.
_THOUSANDTHS = np.array([299.0, 587.0, 114.0])
LUMINANCE = _THOUSANDTHS / 1000
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


def stated_range(pixels: Pixels, stated: tuple[float, float] | None, name: str) -> tuple[float, float]:
    """`value_range` of a file, which says if a range that a user stated is of no use, since the picture is 8-bit.

    Raises:
        PictureError: as `value_range`.
    """
    if stated is not None and pixels.dtype == np.uint8:
        warn(f"{name}: is 8-bit, which always means 0..255: its range is not used")
    return value_range(pixels, stated, name)


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


def recolour(fused: NDArray[np.float32], b: Pixels, values: tuple[float, float]) -> Pixels:
    """The picture of a fused luminance with the colours of `b`.

    Keeping Cb and Cr while Y changes means adding the change of Y to all three channels: by BT.601
    R = Y + 1.402 Cr and B = Y + 1.772 Cb, and G follows from Y. So nothing is lost to rounded chroma.

    Some colours do not exist so bright or so dark. There Cb and Cr shrink by one factor, as little as must be: the
    fused luminance and the hue stay, the colour is paler. Clipping the channels instead would keep more of the colour,
    and change both.

    Args:
        fused: luminance (H, W) in [-1, 1].
        b: H x W or H x W x 3.
        values: b's range.

    Returns:
        An array like `b`, within `values`.
    """
    low, high = values
    y = ((fused.astype(np.float64) + 1.0) * ((high - low) / 2.0) + low).clip(low, high)
    if b.ndim == 2:
        return (np.rint(y).clip(math.ceil(low), math.floor(high)) if b.dtype.kind == "u" else y).astype(b.dtype)
    colours = b.astype(np.float64).clip(low, high)
    if b.dtype.kind != "u":
        chroma = colours - (colours @ LUMINANCE)[..., None]
        return (y[..., None] + _possible(chroma, y, low, high)).clip(low, high).astype(b.dtype)
    # Of whole numbers, so that sums are exact, and the same on every machine.
    low, high = math.ceil(low), math.floor(high)
    y, colours = np.rint(y).clip(low, high), np.rint(colours).clip(low, high)
    thousandths = colours @ _THOUSANDTHS
    shifted = colours + np.rint((1000 * y - thousandths) / 1000)[..., None]
    outside = ((shifted < low) | (shifted > high)).any(axis=-1)
    paler = _possible(colours[outside] - thousandths[outside, None] / 1000, y[outside], low, high)
    shifted[outside] = np.rint(y[outside, None] + paler)
    return shifted.clip(low, high).astype(b.dtype)


def _possible(chroma: NDArray[np.float64], y: NDArray[np.float64], low: float, high: float) -> NDArray[np.float64]:
    """What the channels differ from the luminance, (..., 3), shrunk where they would leave the range at luminance y."""
    above, below = chroma.max(axis=-1), -chroma.min(axis=-1)
    upwards = np.where(above > 0, (high - y) / np.where(above > 0, above, 1), 1)
    downwards = np.where(below > 0, (y - low) / np.where(below > 0, below, 1), 1)
    return chroma * np.minimum(np.minimum(upwards, downwards), 1)[..., None]
