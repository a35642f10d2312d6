"""The image to check an alignment by: contours of each volume over the other in three planes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from dmfnet_fast.volumes.alignment import Alignment
from dmfnet_fast.volumes.display import display_range
from dmfnet_fast.volumes.measures import extent, foreground, foreground_threshold, luma, luminance, sampled
from dmfnet_fast.volumes.planes import ACROSS, DOWN, LETTERS, PLANES, Plane
from dmfnet_fast.volumes.resampling import resampled_slices
from dmfnet_fast.volumes.volume import Affine, Volume

_PANEL = 320
_CAPTION = 18
# Outer outline and inner structure.
_COLORS = ((255, 210, 0), (0, 225, 255))


def _middle(volume: Volume) -> tuple[NDArray[np.float64], float]:
    """Center of the head in mm, and half the edge of a cube that holds it."""
    head = foreground(volume)
    ends = extent(head, (0.01, 0.99)) if head.any() else np.stack([np.zeros(3), volume.shape], axis=-1)
    corners = np.stack(np.meshgrid(*ends, indexing="ij"), axis=-1).reshape(-1, 3)
    points = corners @ volume.affine[:3, :3].T + volume.affine[:3, 3]
    lowest, highest = points.min(axis=0), points.max(axis=0)
    return (lowest + highest) / 2, float((highest - lowest).max() / 2 * 1.08 + 2)


def _plane(plane: Plane, center: NDArray[np.float64], half: float) -> Affine:
    """The grid of one panel, as the affine of a volume of one slice."""
    across, down = np.array(ACROSS[plane]), np.array(DOWN[plane])
    step = 2 * half / _PANEL
    affine = np.eye(4)
    affine[:3, 0] = np.cross(across, down)
    affine[:3, 1], affine[:3, 2] = down * step, across * step
    affine[:3, 3] = center - (affine[:3, 1] + affine[:3, 2]) * (_PANEL - 1) / 2
    return affine


def cut(volume: Volume, plane: Plane, center: NDArray[np.float64], half: float) -> NDArray[np.float32]:
    """A section through `center` (mm, LPS), 2 * `half` mm wide, upright: (320, 320) float32, color as luminance."""
    image, _ = next(resampled_slices(volume, _plane(plane, center, half), (1, _PANEL, _PANEL)))
    return luma(image) if image.ndim == 3 else image


def _levels(volume: Volume) -> tuple[float, float]:
    """Where contours are drawn: at the head's edge, and at its brightest tenth (CT) or quarter."""
    edge = foreground_threshold(volume)
    values = sampled(luminance(volume))
    inner = values[values > edge]
    return edge, float(np.percentile(inner, 90 if volume.units == "HU" else 75)) if len(inner) else edge


def _edges(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pixels of a region that have a neighbor outside it."""
    padded = np.pad(mask, 1, mode="edge")
    eroded = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~eroded


@dataclass(frozen=True, eq=False)
class _Drawn:
    """What is drawn of a volume: its sections, its range of values and the levels of its contours."""

    sections: dict[Plane, NDArray[np.float32]]
    limits: tuple[float, float]
    levels: tuple[float, float]


def _drawn(volume: Volume, center: NDArray[np.float64], half: float) -> _Drawn:
    sections = {plane: cut(volume, plane, center, half) for plane in PLANES}
    return _Drawn(sections, display_range(volume), _levels(volume))


def _panel(gray: _Drawn, contours: _Drawn, plane: Plane) -> Image.Image:
    low, high = gray.limits
    shown = np.rint(((gray.sections[plane] - low) / (high - low)).clip(0, 1) * 255).astype(np.uint8)
    colors = np.repeat(shown[..., None], 3, axis=2)
    for level, color in zip(contours.levels[::-1], _COLORS[::-1], strict=True):
        colors[_edges(contours.sections[plane] > level)] = color
    image = Image.fromarray(colors)
    draw = ImageDraw.Draw(image)
    left, right, top = LETTERS[plane]
    for place, letter in (((4, _PANEL // 2), left), ((_PANEL - 12, _PANEL // 2), right), ((_PANEL // 2, 4), top)):
        draw.text(place, letter, fill=(255, 255, 255))
    return image


def draw_alignment(alignment: Alignment) -> Image.Image:
    """Three planes through the middle of a's head, upright: above, a with the contours of b; below, the reverse.

    Yellow is the outline, light blue the contour of what is bright inside. Letters are the patient's right, left,
    anterior, posterior and superior.

    Returns:
        An RGB image, 960 pixels wide.
    """
    center, half = _middle(alignment.a)
    a, b = _drawn(alignment.a, center, half), _drawn(alignment.b, center, half)
    rows = ((a, b, "a, contours of b"), (b, a, "b, contours of a"))
    page = Image.new("RGB", (3 * _PANEL, 2 * (_PANEL + _CAPTION)))
    draw = ImageDraw.Draw(page)
    for row, (gray, contours, caption) in enumerate(rows):
        top = row * (_PANEL + _CAPTION)
        for column, plane in enumerate(PLANES):
            draw.text((column * _PANEL + 4, top + 3), f"{plane}: {caption}", fill=(255, 255, 255))
            page.paste(_panel(gray, contours, plane), (column * _PANEL, top + _CAPTION))
    return page
