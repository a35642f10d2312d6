"""Fidelity of a fused image to its sources: invented luminance, and preservation of b's colors.

The metrics of the literature summarize the luminance of the whole image. The metrics here detect two faults that those
miss: luminance that neither source has at that place, and colors that are bleached or change hue.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dmfnet_fast.images.color import LUMINANCE, is_color
from dmfnet_fast.images.rules import neighborhood_interval
from dmfnet_fast.metrics.similarity import Images

Field = NDArray[np.float64]
Image = NDArray[np.uint8]

# Gray levels of 255. Smaller differences, such as JPEG artifacts, are hardly visible: they count neither as invented
# nor, over black, as content of a source.
INVENTED_ABOVE = 8
SOURCE_ABOVE = 8
COLORED_ABOVE = 40  # chroma of b, of 255, above which a pixel counts as colored
BLEACHED_BELOW = 0.5  # fraction of b's chroma
# The hue of a chroma below one 8-bit step is determined by rounding alone.
HUELESS_BELOW = 1.0

# Linear sRGB to CIE XYZ with D65 white, after IEC 61966-2-1, to six digits.
_XYZ = np.array(
    [[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]],
)
_D65 = np.array([0.95047, 1.0, 1.08883])
_LEVELS = np.arange(256) / 255
_LINEAR = np.where(_LEVELS <= 0.04045, _LEVELS / 12.92, ((_LEVELS + 0.055) / 1.055) ** 2.4)


def invented(f: Images, a: Images, b: Images) -> float:
    """Percentage of pixels of f that are brighter or darker than their whole neighborhood in both sources, 0 to 100.

    The neighborhood is 3x3, so that an edge may move by a pixel. With M and m the maximum and the minimum over both
    sources' neighborhoods, a pixel is invented if f > M + 8 or f < m - 8, of 255. Only pixels with M > 8 count, so that
    the empty background, which is easily preserved, does not dilute the result. 0 if both sources are black.

    The measure is specific to this project. Sharpening and haloes raise it, and so does noise.

    Args:
        f, a, b: luminances 0..255, (H, W).
    """
    darkest, brightest = (end.astype(np.float64) for end in neighborhood_interval(a, b))
    counted = brightest > SOURCE_ABOVE
    found = (f > brightest + INVENTED_ABOVE) | (f < darkest - INVENTED_ABOVE)
    return 100 * float(found[counted].mean()) if counted.any() else 0.0


def _peaks_and_pits(image: Images) -> tuple[Field, Field]:
    """The height of each pixel as a peak and its depth as a pit, (H, W) each, at least 0.

    The height is the least difference, over four directions, from the mean of the two neighbors in that direction: 0
    for a line, the full height for a dot, and half of it for a tooth of a serrated edge. The border is replicated.
    """
    padded = np.pad(image.astype(np.float64), 1, mode="edge")
    height, width = image.shape

    def shifted(rows: int, columns: int) -> Field:
        return padded[1 + rows : 1 + rows + height, 1 + columns : 1 + columns + width]

    steps = ((0, 1), (1, 0), (1, 1), (1, -1))
    differences = [shifted(0, 0) - (shifted(y, x) + shifted(-y, -x)) / 2 for y, x in steps]
    peaks, pits = np.minimum.reduce(differences), -np.maximum.reduce(differences)
    return peaks.clip(min=0), pits.clip(min=0)


def specks(f: Images, a: Images, b: Images) -> float:
    """Mean height of isolated peaks and pits of f in excess of those of both sources, in gray levels of 255, from 0.

    Peaks and pits of the sources count within one pixel, so that an edge may move. The mean is over the pixels that
    `invented` counts. 0 if both sources are black.

    The measure is specific to this project. Dotted outlines and serrated edges lower a gradient loss, since two dots
    have twice the gradient of an equally dark line, and no metric of the literature detects them. Training bounds the
    same quantity (`train.losses.invented_specks`). Noise raises it too.

    Args:
        f, a, b: luminances 0..255, (H, W).
    """
    _, brightest = neighborhood_interval(a, b)
    counted = brightest > SOURCE_ABOVE
    if not counted.any():
        return 0.0
    excess = np.zeros(f.shape)
    for own, of_a, of_b in zip(*map(_peaks_and_pits, (f, a, b)), strict=True):
        allowed = neighborhood_interval(of_a, of_b).highest
        excess += (own - allowed).clip(min=0)
    return float(excess[counted].mean())


def chroma(rgb: Image) -> Field:
    """(Cb, Cr) by BT.601, (..., 2), about -128..128: Cb = (B - Y) / 1.772 and Cr = (R - Y) / 1.402."""
    wide = rgb.astype(np.float64)
    y = wide @ LUMINANCE
    return np.stack([(wide[..., 2] - y) / 1.772, (wide[..., 0] - y) / 1.402], axis=-1)


def lab_color(rgb: Image) -> Field:
    """CIELAB (a*, b*), (..., 2), of 8-bit sRGB with D65 white and the 2-degree observer (CIE 15; IEC 61966-2-1)."""
    relative = _LINEAR[rgb] @ _XYZ.T / _D65
    # CIELAB replaces the cube root by a tangent near 0, where its slope would diverge.
    f = np.where(relative > (6 / 29) ** 3, np.cbrt(relative), relative / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.stack([500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], axis=-1)


def _as_rgb(image: Image) -> Image:
    return np.repeat(image[..., None], 3, axis=2) if image.ndim == 2 else image


def colored(b: Image) -> NDArray[np.bool_]:
    """Mask (H, W) of the pixels whose color is compared: those of chroma above 40 of 255; none in a gray image.

    Args:
        b: (H, W) or (H, W, 3), uint8.
    """
    if not is_color(b):
        return np.zeros(b.shape[:2], np.bool_)
    return np.linalg.norm(chroma(b), axis=-1) > COLORED_ABOVE


def color_difference(fused: Image, b: Image) -> Field:
    """Euclidean distance between (a*, b*) of `fused` and of b at the colored pixels, 0 at all others, (H, W).

    Args:
        fused, b: (H, W) or (H, W, 3), uint8, of one size.
    """
    mask = colored(b)
    result = np.zeros(mask.shape)
    result[mask] = np.linalg.norm(lab_color(_as_rgb(fused)[mask]) - lab_color(_as_rgb(b)[mask]), axis=-1)
    return result


@dataclass(frozen=True)
class ColorFidelity:
    """Preservation of b's colors in a fused image, over the pixels whose chroma in b is above 40 of 255.

    Chroma is the length of (Cb, Cr), and hue is its angle.

    Attributes:
        kept: mean percentage of b's chroma that is kept, 0 to 100. Each pixel counts at most 100 %, so that
            oversaturated colors do not compensate for others that are lost.
        bleached: percentage of pixels that keep less than half of b's chroma, 0 to 100.
        hue: mean absolute angle between (Cb, Cr) of both images, in degrees, 0 to 180. Pixels whose chroma in the fused
            image is below 1 of 255 have no hue and are excluded; None if no pixel has a hue.
        ab: mean Euclidean distance of (a*, b*) in CIELAB, from 0: the CIE 1976 color difference without lightness,
            which fusion is meant to change.
    """

    kept: float
    bleached: float
    hue: float | None
    ab: float


def color_fidelity(fused: Image, b: Image) -> ColorFidelity | None:
    """Compare the colors of a fused image with those of b; None if b has no colored pixels (see `colored`).

    Args:
        fused, b: (H, W) or (H, W, 3), uint8, of one size; a gray `fused` counts as having lost all color.
    """
    mask = colored(b)
    if not mask.any():
        return None
    chroma_b, chroma_f = chroma(_as_rgb(b)[mask]), chroma(_as_rgb(fused)[mask])
    strength = np.linalg.norm(chroma_f, axis=-1)
    ratio = strength / np.linalg.norm(chroma_b, axis=-1)
    has_hue = strength >= HUELESS_BELOW
    (cb_b, cr_b), (cb_f, cr_f) = chroma_b[has_hue].T, chroma_f[has_hue].T
    angle = np.abs(np.degrees(np.arctan2(cb_b * cr_f - cr_b * cb_f, cb_b * cb_f + cr_b * cr_f)))
    return ColorFidelity(
        kept=100 * float(ratio.clip(max=1).mean()),
        bleached=100 * float((ratio < BLEACHED_BELOW).mean()),
        hue=float(angle.mean()) if has_hue.any() else None,
        ab=float(color_difference(fused, b)[mask].mean()),
    )
