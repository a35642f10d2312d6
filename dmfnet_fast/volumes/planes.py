"""Anatomical planes as radiologists look at them."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dmfnet_fast.volumes.volume import Affine

Plane = Literal["axial", "coronal", "sagittal"]
PLANES: tuple[Plane, ...] = ("axial", "coronal", "sagittal")
# Directions of an image's columns and rows in LPS (the patient's left on the right), and the letters at its left,
# right and upper edges.
ACROSS: dict[Plane, tuple[float, float, float]] = {"axial": (1, 0, 0), "coronal": (1, 0, 0), "sagittal": (0, 1, 0)}
DOWN: dict[Plane, tuple[float, float, float]] = {"axial": (0, 1, 0), "coronal": (0, 0, -1), "sagittal": (0, 0, -1)}
LETTERS: dict[Plane, tuple[str, str, str]] = {
    "axial": ("R", "L", "A"),
    "coronal": ("R", "L", "S"),
    "sagittal": ("A", "P", "S"),
}


def nearest_plane(affine: Affine) -> Plane:
    """The plane that slices are nearest to."""
    normal = np.abs(np.cross(affine[:3, 2], affine[:3, 1]))
    nearest: tuple[Plane, ...] = ("sagittal", "coronal", "axial")
    return nearest[int(normal.argmax())]


class Upright:
    """Turns slices by multiples of 90 degrees and mirrors them until they are upright; no pixel is interpolated.

    Args:
        affine: as in `Volume`.

    Attributes:
        spacing: mm between rows and between columns of an upright image.
    """

    def __init__(self, affine: Affine) -> None:
        plane = nearest_plane(affine)
        rows, columns = affine[:3, 1], affine[:3, 2]
        lengths = float(np.linalg.norm(rows)), float(np.linalg.norm(columns))
        rows, columns = rows / lengths[0], columns / lengths[1]
        across, down = np.array(ACROSS[plane]), np.array(DOWN[plane])
        self._turned = abs(rows @ down) + abs(columns @ across) < abs(rows @ across) + abs(columns @ down)
        if self._turned:
            rows, columns, lengths = columns, rows, lengths[::-1]
        self.spacing = lengths
        self._step = -1 if rows @ down < 0 else 1, -1 if columns @ across < 0 else 1

    def __call__(self, image: NDArray[Any]) -> NDArray[Any]:
        """An upright slice, of (rows, columns[, 3])."""
        turned = image.swapaxes(0, 1) if self._turned else image
        return np.ascontiguousarray(turned[:: self._step[0], :: self._step[1]])
