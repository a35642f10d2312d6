"""What can be said of two volumes on one grid: foregrounds, their overlap, mutual information."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from dmfnet_fast.images.color import LUMINANCE
from dmfnet_fast.volumes.volume import ValueStatistics, Volume

_BINS = 64
_SAMPLES = 2_000_000
# Above air and below skin, in HU.
_CT_FOREGROUND = -300.0
# Percentiles of all values, of those of the head, and of those that are not 0.
_LOW, _HIGH, _DARK = 1, 99.8, 5


def luma(colors: NDArray[Any]) -> NDArray[np.float32]:
    """Luma (Rec. 601) of colors (..., 3), on their scale: (...) float32."""
    return np.asarray(colors @ LUMINANCE.astype(np.float32), np.float32)


def luminance(volume: Volume) -> NDArray[np.float32]:
    """(slices, rows, columns) float32; of color, its luma."""
    if not volume.color:
        return np.asarray(volume.values, np.float32)
    return luma(volume.values)


Kind = TypeVar("Kind", bound=np.generic)


def sampled(values: NDArray[Kind], count: int = _SAMPLES) -> NDArray[Kind]:
    """At most about `count` values, evenly taken: the same voxels of volumes of one shape."""
    flat = values.reshape(-1)
    return flat[:: max(1, len(flat) // count)]


Measure = TypeVar("Measure")


def _once(measure: Callable[[Volume], Measure]) -> Callable[[Volume], Measure]:
    """Take a measure of a volume once, and remember it as long as there is the volume, which is not to be changed."""
    known: WeakKeyDictionary[Volume, Measure] = WeakKeyDictionary()

    @wraps(measure)
    def of(volume: Volume) -> Measure:
        if volume not in known:
            known[volume] = measure(volume)
        return known[volume]

    return of


@_once
def foreground_threshold(volume: Volume) -> float:
    """The value that separates the head from the air: -300 HU for CT, else Otsu's, of which half is taken where the
    foreground varies much, as it does in MRI and PET."""
    if volume.units == "HU":
        return _CT_FOREGROUND
    values = sampled(luminance(volume))
    low, high = np.percentile(values, (0, 99.5))
    if high <= low:
        high = float(values.max())
    counts, edges = np.histogram(values.clip(low, high), bins=256, range=(float(low), float(max(high, low + 1e-6))))
    centers = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)
    above = below[-1] - below
    sums = np.cumsum(counts * centers)
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (sums / below - (sums[-1] - sums) / above) ** 2
    otsu = float(centers[int(np.nan_to_num(between).argmax())])
    return float(low + (otsu - low) / 2)


@_once
def value_statistics(volume: Volume) -> ValueStatistics:
    """What decides how a gray volume is shown; of one that was resampled, as it was before."""
    if volume.statistics is not None:
        return volume.statistics
    values = sampled(luminance(volume))
    head, marked = values[values > foreground_threshold(volume)], values[values != 0]
    return ValueStatistics(
        low=float(np.percentile(values, _LOW)),
        high=float(np.percentile(head, _HIGH)) if len(head) else float(values.max()),
        dark=float(np.percentile(marked, _DARK)) if len(marked) else 0.0,
    )


def foreground(volume: Volume) -> NDArray[np.bool_]:
    """Where the head, or the tracer, is: (slices, rows, columns)."""
    return luminance(volume) > foreground_threshold(volume)


def extent(mask: NDArray[np.bool_], shares: Sequence[float]) -> NDArray[np.intp]:
    """Along each of three axes, the indices up to which these shares of a region lie: (3, shares), 0 if it is empty."""
    ends = []
    for axis in range(3):
        amount = np.cumsum(np.count_nonzero(mask, axis=tuple(other for other in range(3) if other != axis)))
        ends.append(np.searchsorted(amount, np.array(shares) * amount[-1]).clip(max=mask.shape[axis] - 1))
    return np.array(ends)


def mutual_information(
    a: NDArray[np.float32], b: NDArray[np.float32], where: NDArray[np.bool_]
) -> float:  # fmt: skip
    """Mutual information in bits of two volumes' values at the voxels `where`, from a histogram of 64 by 64 bins."""
    # Sampled before they are selected: copies of whole volumes would take more memory than all else.
    chosen = sampled(where)
    one, other = sampled(a)[chosen], sampled(b)[chosen]
    if len(one) == 0:
        return 0.0
    pairs = _binned(one) * _BINS + _binned(other)
    joint = np.bincount(pairs, minlength=_BINS**2).reshape(_BINS, _BINS) / len(pairs)
    independent = joint.sum(axis=1, keepdims=True) * joint.sum(axis=0, keepdims=True)
    present = joint > 0
    return float((joint[present] * np.log2(joint[present] / independent[present])).sum())


def _binned(values: NDArray[np.float32]) -> NDArray[np.intp]:
    """In which of 64 bins between the 0.1th and the 99.9th percentile each value lies; outliers are in the outer ones.

    Several times as fast as numpy's histograms, which search for each value among the bins' edges.
    """
    low, high = np.percentile(values, (0.1, 99.9))
    scaled = (values - np.float32(low)) * np.float32(_BINS / max(high - low, 1e-12))
    return scaled.clip(0, _BINS - 1).astype(np.intp)
