"""Linear resampling from one grid onto another, after averaging where the other grid is coarser."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import permutations, repeat
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from dmfnet_fast.volumes.measures import value_statistics
from dmfnet_fast.volumes.volume import Affine, Volume

# Along an axis: how far the next value is, and the weights of this one and the next; none where all indices are whole.
Step: TypeAlias = tuple[int, tuple[NDArray[np.float32], NDArray[np.float32]] | None]

# Gaussians end this many standard deviations from their center, as SciPy's do.
_TRUNCATE = 4.0
# Threads; more would take more memory for slices in progress than they save time.
_WORKERS = min(4, os.cpu_count() or 1)
# How many values are averaged at once: what fits a processor's cache.
_BLOCK = 2**16


def background(volume: Volume) -> float:
    """What lies around a volume: air."""
    if volume.color:
        return 0.0
    return -1000.0 if volume.units == "HU" else float(min(0.0, volume.values.min()))


def resampled_slices(
    volume: Volume, affine: Affine, shape: tuple[int, int, int], transform: Affine | None = None
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.bool_]]]:
    """A volume's values at the points of another grid, one slice of it after the other; nothing is averaged.

    Args:
        affine: (slice, row, column) of the other grid to mm, LPS.
        shape: slices, rows and columns of the other grid.
        transform: from mm on the other grid to mm in the volume; None where they are the same space.

    Yields:
        (rows, columns[, 3]) float32, and (rows, columns), which is true where the volume reaches: up to half a voxel
        beyond its outermost centers, where the values there are repeated. Elsewhere lies `background`.
    """
    sample = _sampler(volume.values, _onto(volume, affine, transform), shape, background(volume))
    return map(sample, range(shape[0]))


def _onto(volume: Volume, affine: Affine, transform: Affine | None) -> Affine:
    """Takes indices of another grid to those of a volume."""
    onto = np.linalg.inv(volume.affine) @ (np.eye(4) if transform is None else transform) @ affine
    # Indices that should be whole are, in spite of rounding in the affines: same grids stay the same, bit for bit.
    near = np.rint(onto)
    return np.where((np.abs(onto - near) < 1e-9).all(axis=1, keepdims=True), near, onto)


def _sampler(
    values: NDArray[np.generic], onto: Affine, shape: tuple[int, int, int], fill: float
) -> Callable[[int], tuple[NDArray[np.float32], NDArray[np.bool_]]]:
    """Gives one of the slices that `resampled_slices` yields."""
    rows = np.arange(shape[1], dtype=np.float64)[:, None]
    columns = np.arange(shape[2], dtype=np.float64)[None]

    def sample(number: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        at = []
        inside = np.ones((shape[1], shape[2]), bool)
        for size, (step, along_rows, along_columns, start) in zip(values.shape, onto[:3], strict=False):
            index = (start + step * number + along_rows * rows) + along_columns * columns
            corners = index[[0, 0, -1, -1], [0, -1, 0, -1]]  # where the least and the greatest are
            low, high = corners.min(), corners.max()
            if low < -0.5 - 1e-6 or high > size - 0.5 + 1e-6:
                inside &= (index >= -0.5 - 1e-6) & (index <= size - 0.5 + 1e-6)
            if low < 0 or high > size - 1:
                index.clip(0, size - 1, out=index)
            at.append(index)
        image = _interpolated(values, at)
        image[~inside] = fill
        return image, inside

    return sample


def _interpolated(values: NDArray[np.generic], at: list[NDArray[np.float64]]) -> NDArray[np.float32]:
    """`values` at the fractional indices `at` (slice, row, column), which lie within them."""
    color = values.ndim == 4
    flat = values.reshape(-1, 3) if color else values.reshape(-1)
    start = np.zeros(at[0].shape, np.intp)
    steps: list[Step] = []
    for axis, (index, size) in enumerate(zip(at, values.shape[:3], strict=True)):
        floor = np.minimum(index.astype(np.intp), max(size - 2, 0))
        stride = int(np.prod(values.shape[axis + 1 : 3]))
        part = (index - floor).astype(np.float32)
        part = part[..., None] if color else part
        start += floor * stride
        steps.append((stride, (1 - part, part) if part.any() else None))
    return _between(flat, start, steps)


def _between(flat: NDArray[np.generic], start: NDArray[np.intp], steps: list[Step]) -> NDArray[np.float32]:
    """The values at `start`, interpolated along the axes of `steps`."""
    if not steps:
        # Indices are within bounds: "clip" skips the check.
        return flat.take(start, axis=0, mode="clip").astype(np.float32, copy=False)
    (stride, weights), *others = steps
    low = _between(flat, start, others)
    if weights is not None:
        high = _between(flat, start + stride, others)
        # Weighted so that both ends are exact.
        low *= weights[0]
        high *= weights[1]
        low += high
    return low


def _widths(volume: Volume, onto: Affine) -> list[float]:
    """How far to average a volume along each of its axes before it is sampled on another grid.

    A voxel is taken for a Gaussian whose full width at half maximum is the distance to the next voxel, and the volume's
    voxels are widened to those of the other grid (Cardoso et al., "Scale factor point spread function matching", MICCAI
    2015). An axis is compared with the one of the other grid that has the most similar direction: thick slices that are
    tilted a little must not blur what lies within them.

    Args:
        onto: takes indices of the other grid to those of the volume.

    Returns:
        Standard deviations of Gaussians in voxels; 0 along an axis that is not finer than the other grid.
    """
    spacing = np.array(volume.spacing)
    steps = onto[:3, :3] * spacing[:, None]
    lengths = np.linalg.norm(steps, axis=0)
    # Rounded: of directions that are equally similar, the same one is taken whatever the affines' rounding errors.
    similar = np.abs(steps / lengths).round(6)
    order = max(permutations(range(3)), key=lambda order: sum(similar[axis, order[axis]] for axis in range(3)))
    ratios = lengths[list(order)] / spacing
    widths: list[float] = np.sqrt((ratios**2 - 1).clip(min=0) / (8 * np.log(2))).tolist()
    return widths


def _half_gaussian(width: float) -> NDArray[np.float32]:
    """A sampled Gaussian from its center outwards; with its other half, its sum is 1."""
    if width == 0:
        return np.ones(1, np.float32)
    half = np.exp(-0.5 * (np.arange(int(_TRUNCATE * width + 0.5) + 1) / width) ** 2)
    return np.asarray(half / (2 * half.sum() - half[0]), np.float32)


def _averaged(values: NDArray[np.generic], widths: list[float], pool: ThreadPoolExecutor) -> NDArray[np.generic]:
    """Values averaged by a Gaussian along each axis; what lies at the border is repeated beyond it.

    Returns:
        A new array of float32, or `values` themselves if there is nothing to average.
    """
    kernels = [_half_gaussian(width) for width in widths]
    if all(len(kernel) == 1 for kernel in kernels):
        return values
    result = np.array(values, np.float32)
    for axis, kernel in enumerate(kernels):
        if len(kernel) > 1:
            size = result.shape[axis]
            lines = result.reshape(int(np.prod(result.shape[:axis])), size, -1)
            many = max(1, _BLOCK // size)
            across = min(many, lines.shape[2])
            blocks = [
                lines[first : first + many // across, :, start : start + across]
                for first in range(0, lines.shape[0], many // across)
                for start in range(0, lines.shape[2], across)
            ]
            for _ in pool.map(_average_lines, blocks, repeat(kernel)):
                pass
    return result


def _average_lines(lines: NDArray[np.float32], half: NDArray[np.float32]) -> None:
    """Average along the second of three axes, in place."""
    radius, size = len(half) - 1, lines.shape[1]
    padded = np.pad(lines, ((0, 0), (radius, radius), (0, 0)), mode="edge")
    np.multiply(padded[:, radius : radius + size], half[0], out=lines)
    pair = np.empty(lines.shape, np.float32)
    for distance in range(1, radius + 1):
        before, after = radius - distance, radius + distance
        np.add(padded[:, before : before + size], padded[:, after : after + size], out=pair)
        pair *= half[distance]
        lines += pair


def resample(
    volume: Volume, affine: Affine, shape: tuple[int, int, int], transform: Affine | None = None
) -> tuple[Volume, NDArray[np.bool_]]:
    """A volume on another grid, and where it reaches; for the arguments see `resampled_slices`.

    Along each axis on which the volume is finer than the other grid, it is averaged first, by a Gaussian that gives its
    voxels the width of the other grid's: single points of it would show patterns that are not there (aliasing).

    Returns:
        The volume, whose link and statistics still are those of the slices that were read, not those of the grid, and
        (slices, rows, columns) bool.
    """
    values = np.empty((*shape, *volume.values.shape[3:]), volume.values.dtype)
    inside = np.empty(shape, bool)
    onto = _onto(volume, affine, transform)
    fill = background(volume)

    def put(number: int) -> None:
        image, inside[number] = sample(number)
        values[number] = np.rint(image) if volume.color else image

    with ThreadPoolExecutor(_WORKERS) as pool:
        sample = _sampler(_averaged(volume.values, _widths(volume, onto), pool), onto, shape, fill)
        for _ in pool.map(put, range(shape[0])):
            pass
    statistics = None if volume.color else value_statistics(volume)
    return replace(volume, values=values, affine=affine, statistics=statistics), inside
