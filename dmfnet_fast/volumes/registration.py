"""Rigid registration by mutual information, with SimpleITK, and the test whether to believe it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from dmfnet_fast.errors import VolumeError, memory_guard, require
from dmfnet_fast.volumes.measures import foreground, luminance
from dmfnet_fast.volumes.volume import Affine, Volume

# Registrations there and back may disagree by this, in mm, anywhere in the head.
LARGEST_INVERSE_ERROR = 2.0
# Voxels finer than this, in mm, are averaged: they take time and add nothing to a rigid transform.
_WORKING_SPACING = 2.0
# A start whose result leaves less of the first head in the second volume is no result.
_LEAST_COVERAGE = 0.3
_SAMPLES = 50_000


def register_rigid(a: Volume, b: Volume) -> tuple[Affine, float]:
    """The rigid transform that lays `b` on `a`, the best of three starts, the same on every run.

    Returns:
        4x4, from mm in a's space to mm in b's (LPS), and how far, in mm, the registration of `a` onto `b` disagrees
        with its inverse at most in a's head.

    Raises:
        VolumeError: a volume is too thin to register, or both registrations disagree by more than 2 mm.
        MissingExtraError: the extra `register` is not installed.
    """
    itk = require("SimpleITK", "register")
    for volume in (a, b):
        if min(volume.shape) < 4:
            raise VolumeError(f"{volume.source.path}: is too thin to register; align by headers instead")
    box = _head_corners(a)
    try:
        with memory_guard("registration does not fit; align by headers instead"), _one_thread(itk):
            images = _image(itk, a), _image(itk, b)
            there = _best(itk, *images)
            back = _best(itk, *images[::-1])
    except RuntimeError as error:  # what SimpleITK raises
        raise VolumeError(
            f"{b.source.path}: cannot be registered to {a.source.path}: they have too little in common; align them by "
            "headers, or with other software"
        ) from error
    moved = np.array([back.TransformPoint(there.TransformPoint(corner.tolist())) for corner in box])
    error_mm = float(np.linalg.norm(moved - box, axis=1).max())
    if error_mm > LARGEST_INVERSE_ERROR:
        raise VolumeError(
            f"{b.source.path}: cannot be registered to {a.source.path} reliably: there and back are {error_mm:.1f} mm "
            f"apart, more than {LARGEST_INVERSE_ERROR:g} mm; align them by headers, or with other software"
        )
    return _matrix(there), error_mm


@contextmanager
def _one_thread(itk: Any) -> Iterator[None]:
    """Sums over threads depend on how many there are and which is first."""
    threads = itk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    itk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    try:
        yield
    finally:
        itk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)


def _head_corners(volume: Volume) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Corners of the box around the head, (8, 3) in mm."""
    voxels = np.argwhere(foreground(volume))
    if len(voxels) == 0:
        raise VolumeError(f"{volume.source.path}: is empty; there is nothing to register")
    ends = np.percentile(voxels, (1, 99), axis=0)
    corners = np.stack(np.meshgrid(*ends.T, indexing="ij"), axis=-1).reshape(-1, 3)
    return np.asarray(corners @ volume.affine[:3, :3].T + volume.affine[:3, 3])


def _image(itk: Any, volume: Volume) -> Any:
    """The volume in SimpleITK's terms, at a spacing that is worth the time."""
    values = luminance(volume)
    low, high = np.percentile(values, (0.1, 99.9))
    if volume.units == "HU":
        low, high = -200.0, 500.0
    image = itk.GetImageFromArray(values.clip(low, high).astype(np.float32))
    spacing = volume.spacing[::-1]
    image.SetSpacing(spacing)
    image.SetOrigin(volume.affine[:3, 3].tolist())
    image.SetDirection((volume.affine[:3, [2, 1, 0]] / np.array(spacing)).reshape(-1).tolist())
    return itk.BinShrink(image, [max(1, round(_WORKING_SPACING / step)) for step in spacing])


def _best(itk: Any, fixed: Any, moving: Any) -> Any:
    """The registration with the most mutual information of those from three starts: as the headers have it, centers
    of both grids on each other, centers of mass on each other."""
    kinds = itk.CenteredTransformInitializerFilter
    starts = [_by_headers(itk, fixed)] + [
        itk.Euler3DTransform(itk.CenteredTransformInitializer(fixed, moving, itk.Euler3DTransform(), kind))
        for kind in (kinds.GEOMETRY, kinds.MOMENTS)
    ]
    results = []
    for start in starts:
        try:
            results.append(_registered(itk, fixed, moving, start))
        except RuntimeError:  # this start leaves no overlap
            continue
    trusted = [(value, transform) for value, coverage, transform in results if coverage >= _LEAST_COVERAGE]
    if not trusted:
        raise RuntimeError("no start leads to an overlap")
    return min(trusted, key=lambda result: result[0])[1]


def _by_headers(itk: Any, fixed: Any) -> Any:
    start = itk.Euler3DTransform()
    middle = [(size - 1) / 2 for size in fixed.GetSize()]
    start.SetCenter(fixed.TransformContinuousIndexToPhysicalPoint(middle))
    return start


def _method(itk: Any, sampling: float | None) -> Any:
    method = itk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(50)
    method.SetInterpolator(itk.sitkLinear)
    if sampling is not None:
        method.SetMetricSamplingStrategy(method.RANDOM)
        method.SetMetricSamplingPercentage(sampling, 20)
    return method


def _registered(itk: Any, fixed: Any, moving: Any, start: Any) -> tuple[float, float, Any]:
    """Negative mutual information, share of the first grid within the second, and transform."""
    count = fixed.GetNumberOfPixels()
    method = _method(itk, min(1.0, _SAMPLES / count))
    method.SetOptimizerAsRegularStepGradientDescent(
        learningRate=2.0, minStep=1e-3, numberOfIterations=60, relaxationFactor=0.6, gradientMagnitudeTolerance=1e-8
    )
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel([4, 2, 1])
    method.SetSmoothingSigmasPerLevel([4.0, 2.0, 1.0])
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOn()
    transform = itk.Euler3DTransform(start)
    method.SetInitialTransform(transform, inPlace=True)
    method.Execute(fixed, moving)
    judge = _method(itk, None)
    judge.SetInitialTransform(transform)
    value = float(judge.MetricEvaluate(fixed, moving))
    return value, _covered(fixed, moving, transform), transform


def _covered(fixed: Any, moving: Any, transform: Any) -> float:
    """Share of points across the first grid that lie within the second."""
    size = np.array(fixed.GetSize())
    grid = np.stack(np.meshgrid(*(np.linspace(0, count - 1, 9) for count in size), indexing="ij"), axis=-1)
    within = 0
    for index in grid.reshape(-1, 3):
        point = transform.TransformPoint(fixed.TransformContinuousIndexToPhysicalPoint(index.tolist()))
        at = np.array(moving.TransformPhysicalPointToContinuousIndex(point))
        within += bool(((at >= -0.5) & (at <= np.array(moving.GetSize()) - 0.5)).all())
    return within / 9**3


def _matrix(transform: Any) -> Affine:
    """4x4 of an ITK transform: x -> R (x - center) + center + translation."""
    rotation = np.array(transform.GetMatrix()).reshape(3, 3)
    center, translation = np.array(transform.GetCenter()), np.array(transform.GetTranslation())
    matrix = np.eye(4)
    matrix[:3, :3] = rotation
    matrix[:3, 3] = center + translation - rotation @ center
    return matrix
