"""Padding of images to sizes that the network accepts."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

SMALLEST = 64  # the smallest height and width
STRIDE = 16  # the network halves the resolution four times, so height and width must be multiples of 16


def pad(image: NDArray[Any]) -> tuple[NDArray[Any], tuple[slice, slice]]:
    """Pad an image (H, W) or (H, W, 3) by reflection to multiples of STRIDE, at least SMALLEST, half on each side.

    Returns:
        The padded image, and the slices of rows and columns at which the original lies in it.
    """
    margins = [max(SMALLEST - size, (-size) % STRIDE) for size in image.shape[:2]]
    if not any(margins):
        return image, (slice(None), slice(None))
    before = [margin // 2 for margin in margins]
    widths = [(first, margin - first) for first, margin in zip(before, margins, strict=True)]
    inside = tuple(slice(first, first + size) for first, size in zip(before, image.shape[:2], strict=True))
    return np.pad(image, widths + [(0, 0)] * (image.ndim - 2), mode="reflect"), (inside[0], inside[1])
