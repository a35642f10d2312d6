"""Images for the HTML report: whole, enlarged, or as differences, encoded compactly so that a page can hold many."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dmfnet_fast.evaluation.dataset import Gray, Saved
from dmfnet_fast.html_page import image_tag
from dmfnet_fast.metrics.similarity import filtered

ZOOM = 64  # side of the enlarged part, in pixels
SHOWN = 256  # smaller side of every image in CSS pixels, and of whole images at most in pixels
QUALITY = 80  # WebP quality of whole images
FULL_COLOR = 64  # difference that is drawn in full color, in gray levels
STEP = 8  # step of the colors of differences, in gray levels: smaller steps are hardly visible and make large files
DARKER, BRIGHTER = (70, 130, 255), (255, 120, 30)

ABOUT = (
    f"Whole images give an overview: they are lossy (WebP, quality {QUALITY}), and reduced to {SHOWN} pixels if "
    f"larger. Enlarged parts, {ZOOM}x{ZOOM} pixels, are exact. Differences are between luminances at the reduced size: "
    f"orange where an image is brighter than the brighter source, blue where it is darker, in steps of {STEP} gray "
    f"levels, saturated from {FULL_COLOR} of 255."
)

Part = tuple[slice, slice]


def _tag(image: Image.Image, alternative: str, **options: Any) -> str:
    scale = SHOWN / min(image.size)
    return image_tag(image, alternative, (image.width * scale, image.height * scale), **options)


def _reduced(pixels: Saved) -> Image.Image:
    """The image, reduced to `SHOWN` pixels on its smaller side if it is larger."""
    image = Image.fromarray(pixels)
    scale = SHOWN / min(image.size)
    if scale >= 1:
        return image
    return image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BOX)


def whole(image: Saved, alternative: str) -> str:
    """The whole image as an HTML image, lossy. `alternative` is its alternative text."""
    return _tag(_reduced(image), alternative, quality=QUALITY)


def enlarged(image: Saved, part: Part, alternative: str) -> str:
    """A part of the image as an HTML image, lossless."""
    return _tag(Image.fromarray(np.ascontiguousarray(image[part])), alternative, lossless=True, exact=True)


def difference(fused: Gray, brighter: Gray) -> NDArray[np.uint8]:
    """Where an image is darker or brighter than the brighter source, as colors on black, (H, W, 3)."""
    change = fused.astype(np.float64) - brighter
    strength = (np.rint(np.abs(change) / STEP) * STEP / FULL_COLOR).clip(max=1)[..., None]
    return np.rint(np.where(change[..., None] > 0, BRIGHTER, DARKER) * strength).astype(np.uint8)


def difference_shown(fused: Gray, brighter: Gray, alternative: str) -> str:
    """The `difference` as an HTML image, lossless."""
    change = difference(np.asarray(_reduced(fused)), np.asarray(_reduced(brighter)))
    return _tag(Image.fromarray(change), alternative, lossless=True)


def largest_sum(field: NDArray[np.float64]) -> Part:
    """The square in which a field (H, W) has its largest sum; its side is `ZOOM`, or less in a smaller field."""
    side = min(ZOOM, *field.shape)
    sums = filtered(field, np.full(side, 1 / side), 0)
    top, left = (int(index) for index in np.unravel_index(int(sums.argmax()), sums.shape))
    return slice(top, top + side), slice(left, left + side)


def disputed(grays: Sequence[Gray]) -> Part:
    """The square in which images of one scene differ most from their mean, as slices of rows and columns."""
    images = np.stack([image.astype(np.float64) for image in grays])
    return largest_sum(np.abs(images - images.mean(axis=0)).sum(axis=0))
