"""What a fused image invents, and what it keeps of the colors of b.

The metrics of the literature look at luminance alone, and at all of it at once. These look for two faults that they
miss: brightness that neither source has there, and colors that were bleached or turned.
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

# In gray levels of 255: what the eye hardly sees, and what JPEG adds, is not counted as invented, nor as a source.
INVENTED_ABOVE = 8
SOURCE_ABOVE = 8
COLORED_ABOVE = 40  # chroma of b, of 255, above which a pixel counts as colored
BLEACHED_BELOW = 0.5  # part of b's chroma
# A chroma below one step of 8 bits has no hue but that of its rounding.
HUELESS_BELOW = 1.0

# Linear sRGB to CIE XYZ with white D65, after IEC 61966-2-1, to six digits.
_XYZ = np.array(
    [[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]],
)
_D65 = np.array([0.95047, 1.0, 1.08883])
_LEVELS = np.arange(256) / 255
_LINEAR = np.where(_LEVELS <= 0.04045, _LEVELS / 12.92, ((_LEVELS + 0.055) / 1.055) ** 2.4)


def invented(f: Images, a: Images, b: Images) -> float:
    """Share of pixels of f that are brighter or darker than anything near them in either source, in %, 0 to 100.

    Near is the 3x3 neighborhood, so that an edge may move by a pixel. With M and m the maximum and the minimum over
    both sources' neighborhoods, a pixel is invented where f > M + 8 or f < m - 8, of 255. The share is of the pixels
    with M > 8: the empty background, which is easily kept, does not dilute it. 0 where both sources are black.

    This project's own measure; sharpening and haloes raise it, and so does noise. Args: luminances 0..255, (H, W).
    """
    darkest, brightest = (end.astype(np.float64) for end in neighborhood_interval(a, b))
    counted = brightest > SOURCE_ABOVE
    found = (f > brightest + INVENTED_ABOVE) | (f < darkest - INVENTED_ABOVE)
    return 100 * float(found[counted].mean()) if counted.any() else 0.0


def _standing_out(image: Images) -> tuple[Field, Field]:
    """How far each pixel stands out from all around it, as a peak and as a pit; (H, W) each, from 0.

    The least difference, over four directions, to the mean of both neighbors in that direction: a line is nothing, a
    dot its height, and a tooth of a serrated edge half of it. The border is repeated.
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
    """Mean height by which pixels of f stand out from all around them, beyond what either source does there, from 0.

    In gray levels of 255. "There" is within one pixel, so that an edge may move. The mean is of the pixels that
    `invented` counts. 0 where both sources are black.

    This project's own measure: a loss on gradients is lowered by dotted outlines and serrated edges, as two dots have
    twice the gradient of a line that is as dark; no metric of the literature sees them. It is what training bounds
    (`train.losses.invented_specks`). Noise raises it too. Args: luminances 0..255, (H, W).
    """
    _, brightest = neighborhood_interval(a, b)
    counted = brightest > SOURCE_ABOVE
    if not counted.any():
        return 0.0
    excess = np.zeros(f.shape)
    for own, of_a, of_b in zip(*map(_standing_out, (f, a, b)), strict=True):
        allowed = neighborhood_interval(of_a, of_b).highest
        excess += (own - allowed).clip(min=0)
    return float(excess[counted].mean())


def chroma(rgb: Image) -> Field:
    """(Cb, Cr) by BT.601, (..., 2), about -128..128: Cb = (B - Y) / 1.772 and Cr = (R - Y) / 1.402."""
    wide = rgb.astype(np.float64)
    y = wide @ LUMINANCE
    return np.stack([(wide[..., 2] - y) / 1.772, (wide[..., 0] - y) / 1.402], axis=-1)


def lab_color(rgb: Image) -> Field:
    """a* and b* of CIELAB, (..., 2), of 8-bit sRGB, white D65, 2 degree observer (CIE 15; IEC 61966-2-1)."""
    relative = _LINEAR[rgb] @ _XYZ.T / _D65
    # The cube root, but for the darkest, where it would be too steep: its tangent.
    f = np.where(relative > (6 / 29) ** 3, np.cbrt(relative), relative / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.stack([500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], axis=-1)


def _as_rgb(image: Image) -> Image:
    return np.repeat(image[..., None], 3, axis=2) if image.ndim == 2 else image


def colored(b: Image) -> NDArray[np.bool_]:
    """The pixels whose color is judged, (H, W): those with a chroma above 40 of 255; none of a gray image.

    Args:
        b: (H, W) or (H, W, 3), uint8.
    """
    if not is_color(b):
        return np.zeros(b.shape[:2], np.bool_)
    return np.linalg.norm(chroma(b), axis=-1) > COLORED_ABOVE


def color_difference(fused: Image, b: Image) -> Field:
    """At each colored pixel the Euclidean distance of (a*, b*) in `fused` and in b; elsewhere 0. (H, W).

    Args:
        fused, b: (H, W) or (H, W, 3), uint8, of one size.
    """
    judged = colored(b)
    result = np.zeros(judged.shape)
    result[judged] = np.linalg.norm(lab_color(_as_rgb(fused)[judged]) - lab_color(_as_rgb(b)[judged]), axis=-1)
    return result


@dataclass(frozen=True)
class ColorFidelity:
    """How much of the colors of b is in a fused image, over the pixels whose chroma in b is above 40 of 255.

    Chroma is the length of (Cb, Cr), hue its angle.

    Attributes:
        kept: mean part of b's chroma that is kept, in %, 0 to 100. More than all counts as all: colors that are too
            strong do not make up for others that are lost.
        bleached: share of pixels that keep less than half of b's chroma, in %, 0 to 100.
        hue: mean absolute angle between the (Cb, Cr) of both, in degrees, 0 to 180. Pixels whose chroma is below 1 of
            255 in the fused image have no hue, and are left out; None if no pixel has one.
        ab: mean Euclidean distance of (a*, b*) in CIELAB, from 0: the part of the color difference of CIE 1976
            that is not lightness, which fusion is to change.
    """

    kept: float
    bleached: float
    hue: float | None
    ab: float


def color_fidelity(fused: Image, b: Image) -> ColorFidelity | None:
    """Compare the colors of a fused image with those of b; None if b has none (see `colored`).

    Args:
        fused, b: (H, W) or (H, W, 3), uint8, of one size; a gray `fused` has lost all color.
    """
    judged = colored(b)
    if not judged.any():
        return None
    theirs, ours = chroma(_as_rgb(b)[judged]), chroma(_as_rgb(fused)[judged])
    strength = np.linalg.norm(ours, axis=-1)
    part = strength / np.linalg.norm(theirs, axis=-1)
    hued = strength >= HUELESS_BELOW
    (cb, cr), (own_cb, own_cr) = theirs[hued].T, ours[hued].T
    angle = np.abs(np.degrees(np.arctan2(cb * own_cr - cr * own_cb, cb * own_cb + cr * own_cr)))
    return ColorFidelity(
        kept=100 * float(part.clip(max=1).mean()),
        bleached=100 * float((part < BLEACHED_BELOW).mean()),
        hue=float(angle.mean()) if hued.any() else None,
        ab=float(color_difference(fused, b)[judged].mean()),
    )
