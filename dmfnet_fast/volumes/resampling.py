"""Linear resampling from one grid onto another, slice by slice."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from dmfnet_fast.volumes.volume import Affine, Volume


def background(volume: Volume) -> float:
    """What lies around a volume: air."""
    if volume.color:
        return 0.0
    return -1000.0 if volume.units == "HU" else float(min(0.0, volume.values.min()))


def resampled_slices(
    volume: Volume, affine: Affine, shape: tuple[int, int, int], transform: Affine | None = None
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.bool_]]]:
    """A volume's values on another grid, one slice of it after the other.

    Args:
        affine: (slice, row, column) of the other grid to mm, LPS.
        shape: slices, rows and columns of the other grid.
        transform: from mm on the other grid to mm in the volume; None where they are the same space.

    Yields:
        (rows, columns[, 3]) float32, and (rows, columns), which is true where the volume reaches: up to half a voxel
        beyond its outermost centers, where the values there are repeated. Elsewhere lies `background`.
    """
    onto = np.linalg.inv(volume.affine) @ (np.eye(4) if transform is None else transform) @ affine
    fill = np.float32(background(volume))
    rows = np.arange(shape[1], dtype=np.float64)[:, None]
    columns = np.arange(shape[2], dtype=np.float64)[None]
    for number in range(shape[0]):
        at = [
            onto[axis, 1] * rows + onto[axis, 2] * columns + onto[axis, 0] * number + onto[axis, 3] for axis in range(3)
        ]
        inside = np.ones((shape[1], shape[2]), bool)
        for axis, size in enumerate(volume.shape):
            inside &= (at[axis] >= -0.5 - 1e-6) & (at[axis] <= size - 0.5 + 1e-6)
        values = _interpolated(volume.values, at)
        values[~inside] = fill
        yield values, inside


def _interpolated(values: NDArray[np.generic], at: list[NDArray[np.float64]]) -> NDArray[np.float32]:
    """`values` at the fractional indices `at` (slice, row, column), clamped to the border."""
    color = values.ndim == 4
    flat = values.reshape(-1, 3) if color else values.reshape(-1)
    base = np.zeros(at[0].shape, np.intp)
    steps, parts = [], []
    for axis, (index, size) in enumerate(zip(at, values.shape[:3], strict=True)):
        index = np.clip(index, 0, size - 1)
        # Indices that should be whole are, in spite of rounding in the affines: same grids stay the same, bit for bit.
        near = np.rint(index)
        index = np.where(np.abs(index - near) < 1e-6, near, index)
        floor = np.minimum(index.astype(np.intp), max(size - 2, 0))
        stride = int(np.prod(values.shape[axis + 1 : 3]))
        base += floor * stride
        steps.append(stride if size > 1 else 0)
        part = (index - floor).astype(np.float32)
        parts.append(part[..., None] if color else part)

    def between(start: NDArray[np.intp], axis: int) -> NDArray[np.float32]:
        """The values at `start`, interpolated along this axis and those after it."""
        if axis == 3:
            # Indices are within bounds: "clip" skips the check.
            return flat.take(start, axis=0, mode="clip").astype(np.float32, copy=False)
        low = between(start, axis + 1)
        if not parts[axis].any():
            return low
        high = between(start + steps[axis], axis + 1)
        # Weighted so that both ends are exact.
        high *= parts[axis]
        low *= 1 - parts[axis]
        low += high
        return low

    return between(base, 0)


def resample(
    volume: Volume, affine: Affine, shape: tuple[int, int, int], transform: Affine | None = None
) -> tuple[Volume, NDArray[np.bool_]]:
    """A volume on another grid, and where it reaches; for the arguments see `resampled_slices`.

    Returns:
        The volume, whose link still names the slices that were read, not those of the grid, and (slices, rows,
        columns) bool.
    """
    values = np.empty((*shape, *volume.values.shape[3:]), volume.values.dtype)
    inside = np.empty(shape, bool)
    for number, (image, reached) in enumerate(resampled_slices(volume, affine, shape, transform)):
        values[number] = np.rint(image) if volume.color else image
        inside[number] = reached
    return Volume(
        values, affine, volume.modality, volume.units, volume.frame_of_reference, volume.source, volume.link
    ), inside
