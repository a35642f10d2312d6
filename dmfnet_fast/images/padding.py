"""Sizes that the network takes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

STRIDE = 16  # four halvings: the network needs sizes that are multiples of it


def pad(image: NDArray[np.float32]) -> tuple[NDArray[np.float32], tuple[slice, slice]]:
    """Reflect (H, W) up to multiples of STRIDE, split over both sides; and where the image then lies."""
    margins = [(-size) % STRIDE for size in image.shape]
    if not any(margins):
        return image, (slice(None), slice(None))
    before = [margin // 2 for margin in margins]
    widths = [(first, margin - first) for first, margin in zip(before, margins, strict=True)]
    inside = tuple(slice(first, first + size) for first, size in zip(before, image.shape, strict=True))
    return np.pad(image, widths, mode="reflect"), (inside[0], inside[1])
