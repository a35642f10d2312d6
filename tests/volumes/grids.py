"""Grids, and a volume whose pattern is too fine for coarse ones."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dmfnet_fast.volumes.volume import Affine, Source, Volume

Shape = tuple[int, int, int]


def grid(
    spacing: tuple[float, float, float], shape: Shape, axes: NDArray[np.float64] | None = None
) -> tuple[Affine, Shape]:
    """A grid around the origin; `axes` are the directions of slices, rows and columns, as columns of a matrix."""
    affine = np.eye(4)
    affine[:3, :3] = (np.eye(3) if axes is None else axes) * spacing
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return affine, shape


def finely_striped(period: float = 1.7, size: int = 60) -> Volume:
    """A ball of 200 in air of 0, of voxels of 0.5 mm, with stripes of 100 more and less along all axes.

    Args:
        period: of the stripes, in mm.
        size: of the volume, in voxels along each axis.
    """
    affine, _ = grid((0.5, 0.5, 0.5), (size, size, size))
    at = (np.arange(size) - (size - 1) / 2) * 0.5
    stripes = np.sin(2 * np.pi * at / period)
    ball = np.sqrt(at[:, None, None] ** 2 + at[:, None] ** 2 + at**2) < 0.42 * size * 0.5
    pattern = (stripes[:, None, None] + stripes[:, None] + stripes) / 3
    values = (ball * (200 + 100 * pattern)).astype(np.float32)
    return Volume(values, affine, "MR", None, None, Source("stripes", "stripes", "", "nifti", 1))
