"""From frames to a stack: sorted along their normal, evenly spaced, straight - or refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmfnet_fast.errors import VolumeError
from dmfnet_fast.volumes.frames import Frame
from dmfnet_fast.volumes.volume import Affine

# Slices closer than this, in mm, are at one position.
SAME_POSITION = 0.01
# How far a gap may be from the others: files round positions. In mm, and as a share of the spacing.
_SPACING_TOLERANCE, _SPACING_SHARE = 0.05, 0.01
# Shear over the whole stack, in pixels, below which it is taken for rounding.
_SHEAR_TOLERANCE = 0.25


@dataclass(frozen=True, repr=False)
class Stack:
    """Frames in order, and their grid.

    Attributes:
        frames: sorted along the normal of their plane.
        affine: (slice, row, column) to mm, LPS; straight, even where the frames are sheared.
        shift: (slices, 2): how far each frame's rows and columns lie from the straight grid, in pixels, at least 0;
            None where the frames are straight.
        shape: slices, rows and columns of the straight grid.
    """

    frames: tuple[Frame, ...]
    affine: Affine
    shift: NDArray[np.float64] | None
    shape: tuple[int, int, int]


def normal_of(frame: Frame) -> NDArray[np.float64]:
    """The direction in which slices are stacked: the cross product of a row's and a column's."""
    return np.cross(frame.orientation[0], frame.orientation[1])


def heights(frames: Sequence[Frame]) -> NDArray[np.float64]:
    """Where each frame lies along the normal, in mm."""
    normal = normal_of(frames[0])
    return np.array([frame.position @ normal for frame in frames])


def stack(frames: Sequence[Frame]) -> Stack:
    """Sort frames of one orientation and size, each at a position of its own.

    Raises:
        VolumeError: slices are missing, unevenly spaced or out of line.
    """
    at = heights(frames)
    order = np.argsort(at, kind="stable")
    frames, at = [frames[index] for index in order], at[order]
    spacing = _spacing(frames, at)
    first = frames[0]
    positions = np.array([frame.position for frame in frames])
    lengthwise = normal_of(first) * spacing
    # Where each frame lies in its plane, against the first one pushed along the normal: in rows and in columns.
    aside = positions - positions[0] - np.arange(len(frames))[:, None] * lengthwise
    rows = aside @ first.orientation[1] / first.spacing[0]
    columns = aside @ first.orientation[0] / first.spacing[1]
    shift = _shift(frames, np.stack([rows, columns], axis=1))
    height, width = first.pixels.rows, first.pixels.columns
    affine = np.eye(4)
    affine[:3, 0] = lengthwise
    affine[:3, 1] = first.orientation[1] * first.spacing[0]
    affine[:3, 2] = first.orientation[0] * first.spacing[1]
    affine[:3, 3] = positions[0]
    if shift is not None:
        start = shift.min(axis=0)
        affine[:3, 3] += affine[:3, 1:3] @ start
        shift = shift - start
        extra_rows, extra_columns = np.ceil(shift.max(axis=0) - 1e-6).astype(int)
        height, width = height + int(extra_rows), width + int(extra_columns)
    return Stack(tuple(frames), affine, shift, (len(frames), height, width))


def _spacing(frames: Sequence[Frame], at: NDArray[np.float64]) -> float:
    if len(frames) == 1:
        thickness = frames[0].thickness
        if thickness is None:
            raise VolumeError(f"{frames[0].name}: is one slice of unknown thickness; give the folder of its series")
        return abs(thickness)
    gaps = np.diff(at)
    usual = float(np.sort(gaps)[(len(gaps) - 1) // 2])
    tolerance = _SPACING_TOLERANCE + _SPACING_SHARE * usual
    for index in np.flatnonzero(np.abs(gaps - usual) > tolerance).tolist():
        between = f"between {frames[index].name} and {frames[index + 1].name}"
        missing = round(gaps[index] / usual) - 1
        if missing >= 1 and abs(gaps[index] - (missing + 1) * usual) <= (missing + 1) * tolerance:
            raise VolumeError(f"{between}: {missing} slice(s) are missing; copy or export the whole series again")
        raise VolumeError(
            f"{between}: slices are {gaps[index]:.3f} mm apart and {usual:.3f} mm elsewhere; unequal spacing is not "
            "read: export the series with one spacing, or resample it first"
        )
    spacing = float(at[-1] - at[0]) / (len(frames) - 1)
    off = np.abs(at - at[0] - spacing * np.arange(len(frames)))
    if off.max() > 2 * tolerance:
        raise VolumeError(
            f"{frames[int(off.argmax())].name}: lies {off.max():.3f} mm from where even spacing would have it; "
            "export the series with one spacing, or resample it first"
        )
    return spacing


def _shift(frames: Sequence[Frame], aside: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """Shear of the stack, by slice; None where there is none."""
    if len(frames) == 1 or np.abs(aside).max() <= _SHEAR_TOLERANCE:
        return None
    line = np.linspace(0, 1, len(frames))[:, None] * aside[-1]
    off = np.abs(aside - line).max(axis=1)
    if off.max() > _SHEAR_TOLERANCE:
        raise VolumeError(
            f"{frames[int(off.argmax())].name}: is moved sideways against its neighbors by {off.max():.1f} pixel(s); "
            "such a series is not read: resample it onto a straight grid first"
        )
    length = np.linalg.norm(frames[-1].position - frames[0].position)
    along = abs(float(heights([frames[-1]])[0] - heights([frames[0]])[0]))
    if along < 0.7 * length:
        raise VolumeError(
            f"{frames[0].name}: its series is sheared by more than 45 degrees, which is no gantry tilt but damage; "
            "export it again"
        )
    return line


def straightened(
    image: NDArray[Any], shift: NDArray[np.float64], shape: tuple[int, int], fill: float
) -> NDArray[np.float32]:
    """A sheared frame on the straight grid of `shape`, moved down and right by `shift` (rows, columns) in pixels."""
    result = np.asarray(image, np.float32)
    for axis in (0, 1):
        whole = int(np.floor(shift[axis]))
        part = np.float32(shift[axis] - whole)
        target = list(result.shape)
        target[axis] = shape[axis]
        moved = np.full(target, fill, np.float32)
        source = np.moveaxis(result, axis, 0)
        place = np.moveaxis(moved, axis, 0)
        count = len(source)
        if part < 1e-4:
            place[whole : whole + count] = source
        else:
            # Half-covered pixels at the ends would mix with the fill; they are left out.
            place[whole + 1 : whole + count] = source[1:] * (1 - part) + source[:-1] * part
        result = moved
    return result
