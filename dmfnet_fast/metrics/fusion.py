"""The fusion metrics of the literature, and those of `fidelity`.

f is the fused image, and a and b are its sources: luminances 0..255, (H, W), 8-bit or float. Papers use the same names
for different formulas; the conventions here are those of DM-FNet's published evaluator and of most papers on medical
image fusion. MI, SSIM and VIFF are sums over both sources.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dmfnet_fast.metrics.fidelity import Image, color_fidelity, invented, specks
from dmfnet_fast.metrics.similarity import Images, filtered, hybrid_objective, sobel, ssim

GRAY_LEVELS = 256
SMALLEST = 47  # height and width that leave a single window at VIFF's coarsest scale
# VIFF: number of scales, and noise variance of its model of the human visual system.
SCALES = 4
OBSERVER_NOISE = 2.0
TINY = 1e-10


def entropy(f: Images) -> float:
    """EN: entropy of the 256-bin gray-level histogram, in bits, 0 to 8; float values are rounded down."""
    counts = np.bincount(f.astype(np.uint8).ravel(), minlength=GRAY_LEVELS)
    p = counts[counts > 0] / f.size
    return float((p * np.log2(1 / p)).sum())


def standard_deviation(f: Images) -> float:
    """SD: population standard deviation, in gray levels."""
    return float(f.astype(np.float64).std())


def spatial_frequency(f: Images) -> float:
    """SF: sqrt(RF^2 + CF^2), in gray levels (Eskicioglu and Fisher 1995, doi:10.1109/26.477498).

    RF and CF are the root mean squares of the differences between horizontal and vertical neighbors.
    """
    z = f.astype(np.float64)
    return float(np.sqrt(np.square(np.diff(z, axis=1)).mean() + np.square(np.diff(z, axis=0)).mean()))


def average_gradient(f: Images) -> float:
    """AG: mean of sqrt((gx^2 + gy^2) / 2), in gray levels.

    Gradients are central differences, and one-sided differences at the borders.
    """
    gy, gx = np.gradient(f.astype(np.float64))
    return float(np.sqrt((gx**2 + gy**2) / 2).mean())


def _mutual_information(x: Images, y: Images) -> float:
    joint = np.bincount(x.astype(np.int64).ravel() * GRAY_LEVELS + y.astype(np.int64).ravel(), minlength=GRAY_LEVELS**2)
    p = joint.reshape(GRAY_LEVELS, GRAY_LEVELS) / x.size
    independent = p.sum(1)[:, None] * p.sum(0)[None]
    occurs = p > 0
    return float((p[occurs] * np.log(p[occurs] / independent[occurs])).sum())


def mutual_information(f: Images, a: Images, b: Images) -> float:
    """MI: mutual information of f with a plus that of f with b, in nats, with one bin per gray level.

    Qu, Zhang and Yan 2002, doi:10.1049/el:20020212. Other implementations use bits. Float values are rounded down.
    """
    return _mutual_information(f, a) + _mutual_information(f, b)


def _pearson(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """Pearson correlation; 0 if one of the images is constant."""
    u, v = x - x.mean(), y - y.mean()
    norm = math.sqrt(float(np.vdot(u, u)) * float(np.vdot(v, v)))
    return float(np.vdot(u, v)) / norm if norm else 0.0


def _as_float(*images: Images) -> list[NDArray[np.float64]]:
    return [image.astype(np.float64) for image in images]


def sum_of_correlations_of_differences(f: Images, a: Images, b: Images) -> float:
    """SCD: correlation of a with f - b, plus that of b with f - a, -2 to 2.

    Aslantas and Bendes 2015, doi:10.1016/j.aeue.2015.09.004. Correlation with a constant image is 0.
    """
    f, a, b = _as_float(f, a, b)
    return _pearson(a, f - b) + _pearson(b, f - a)


def correlation(f: Images, a: Images, b: Images) -> float:
    """CC: mean Pearson correlation of f with a and with b, -1 to 1; correlation with a constant image is 0."""
    f, a, b = _as_float(f, a, b)
    return (_pearson(f, a) + _pearson(f, b)) / 2


def peak_signal_to_noise(f: Images, a: Images, b: Images) -> float:
    """PSNR: 10 log10(max(f)^2 / MSE) in dB, where MSE is the mean of the mean squared errors against a and b.

    The peak is the brightest pixel of f, not 255. Infinite if all three images are equal, otherwise minus infinity if
    f is black.
    """
    f, a, b = _as_float(f, a, b)
    mse = float(np.square(f - a).mean() + np.square(f - b).mean()) / 2
    if not mse:
        return math.inf
    peak = float(f.max())
    return 10 * math.log10(peak**2 / mse) if peak else -math.inf


def structural_similarity(f: Images, a: Images, b: Images) -> float:
    """SSIM: SSIM of f and a plus SSIM of f and b, -2 to 2; see `similarity.ssim` for its parameters."""
    return ssim(f, a) + ssim(f, b)


def edge_preservation(f: Images, a: Images, b: Images) -> float:
    """Qabf: preservation of the sources' edges in f, 0 to 1, a mean weighted by the edge strength in the sources.

    Xydeas and Petrovic 2000, doi:10.1049/el:20000267, with Sobel edges, zero padding and the paper's constants. 0 if
    neither source has an edge. Where the edge strengths of f and the source are equal, the paper's ratio is 1; the
    published evaluator uses the strength itself, in gray levels, and so does this function.
    """
    strength, angle = _strength_and_angle(f)
    total = weights = 0.0
    for source in (a, b):
        source_strength, source_angle = _strength_and_angle(source)
        larger = np.maximum(strength, source_strength)
        ratio = np.minimum(strength, source_strength) / np.where(larger == 0, 1, larger)
        ratio = np.where(strength == source_strength, strength, ratio)
        agreement = 1 - np.abs(source_angle - angle) / (math.pi / 2)
        kept = 0.9994 / (1 + np.exp(-15 * (ratio - 0.5))) * 0.9879 / (1 + np.exp(-22 * (agreement - 0.8)))
        total += float(np.vdot(kept, source_strength))
        weights += float(source_strength.sum())
    return total / weights if weights else 0.0


def _strength_and_angle(z: Images) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    x, y = sobel(z)
    vertical = x == 0
    # In the published evaluator y points up. The sign matters, as vertical gradients have a fixed angle.
    angle = np.arctan(-y / np.where(vertical, 1, x))
    angle[vertical] = math.pi / 2
    return np.hypot(x, y), angle


def _information_fidelity(source: Images, f: Images) -> float:
    """Pixel-domain VIF of f with respect to one source; 1 if the source has no information."""
    r, d = _as_float(source, f)
    preserved = total = 0.0
    for scale in range(1, SCALES + 1):
        size = 2 ** (SCALES + 1 - scale) + 1
        offset = np.arange(size) - size // 2
        window = np.exp(-(offset**2) / (2 * (size / 5) ** 2))
        window = window / window.sum()
        if scale > 1:
            r, d = (filtered(z, window, 0)[::2, ::2] for z in (r, d))
        mean_r, mean_d = filtered(r, window, 0), filtered(d, window, 0)
        var_r = (filtered(r * r, window, 0) - mean_r**2).clip(min=0)
        var_d = (filtered(d * d, window, 0) - mean_d**2).clip(min=0)
        covariance = filtered(r * d, window, 0) - mean_r * mean_d
        gain = covariance / (var_r + TINY)
        residual = var_d - gain * covariance
        # Where the source is constant, or its contrast is inverted in f, no information of the source is preserved.
        lost = (var_r < TINY) | (gain < 0)
        gain, residual = np.where(lost, 0, gain), np.where(lost, var_d, residual)
        flat = var_d < TINY
        gain, residual = np.where(flat, 0, gain), np.where(flat, 0, residual).clip(min=TINY)
        var_r = np.where(var_r < TINY, 0, var_r)
        preserved += float(np.log10(1 + gain**2 * var_r / (residual + OBSERVER_NOISE)).sum())
        total += float(np.log10(1 + var_r / OBSERVER_NOISE).sum())
    return preserved / total if total else 1.0


def visual_information_fidelity(f: Images, a: Images, b: Images) -> float:
    """VIFF: pixel-domain visual information fidelity of f with respect to a plus that with respect to b, from 0.

    Images must be 47x47 or larger. Sheikh and Bovik 2006, doi:10.1109/TIP.2005.859378: four scales with Gaussian
    windows of 17, 9, 5 and 3 pixels and a sigma of a fifth of that, without padding; images are smoothed and subsampled
    by two between scales. (Han et al. 2013, who named VIFF, combine both sources window by window; the published
    evaluator adds the values of both.)
    """
    return _information_fidelity(a, f) + _information_fidelity(b, f)


def objective(f: Images, a: Images, b: Images) -> float:
    """The hybrid loss of DM-FNet's second stage; lower is better. See `similarity.hybrid_objective`."""
    f, a, b = (image / 127.5 - 1 for image in _as_float(f, a, b))
    return hybrid_objective(f, a, b)


@dataclass(frozen=True)
class Measure:
    """Name, unit and direction of a score.

    Attributes:
        name: the abbreviation used in the literature, if there is one.
        unit: "" for dimensionless measures.
        better: whether higher ("more") or lower ("less") values are considered better.
    """

    name: str
    unit: str
    better: Literal["more", "less"]


@dataclass(frozen=True)
class Metric(Measure):
    """A measure that is computed from luminances.

    Attributes:
        of: computes the measure from f, a and b.
    """

    of: Callable[[Images, Images, Images], float]


def _of_fused(function: Callable[[Images], float]) -> Callable[[Images, Images, Images], float]:
    return lambda f, _a, _b: function(f)


METRICS = (
    Metric("EN", "bit", "more", _of_fused(entropy)),
    Metric("SD", "gray levels", "more", _of_fused(standard_deviation)),
    Metric("SF", "gray levels", "more", _of_fused(spatial_frequency)),
    Metric("AG", "gray levels", "more", _of_fused(average_gradient)),
    Metric("MI", "nat", "more", mutual_information),
    Metric("SCD", "", "more", sum_of_correlations_of_differences),
    Metric("VIFF", "", "more", visual_information_fidelity),
    Metric("Qabf", "", "more", edge_preservation),
    Metric("SSIM", "", "more", structural_similarity),
    Metric("PSNR", "dB", "more", peak_signal_to_noise),
    Metric("CC", "", "more", correlation),
    Metric("objective", "", "less", objective),
    Metric("invented", "%", "less", invented),
    Metric("specks", "gray levels", "less", specks),
)
# Measures of color images; see `fidelity.ColorFidelity`.
COLOR_MEASURES = (
    Measure("chroma kept", "%", "more"),
    Measure("bleached", "%", "less"),
    Measure("hue error", "degrees", "less"),
    Measure("ab error", "", "less"),
)
MEASURES: tuple[Measure, ...] = (*METRICS, *COLOR_MEASURES)


def fusion_metrics(f: Images, a: Images, b: Images) -> dict[str, float]:
    """All luminance metrics of one fused image, by name. Takes about 0.1 s for 256x256 pixels on one core.

    Args:
        f, a, b: luminances 0..255, (H, W), of one size, at least 47x47 (`SMALLEST`).

    Raises:
        ValueError: an image has another shape or value range, or the sizes differ.
    """
    for name, image in (("fused", f), ("a", a), ("b", b)):
        if image.ndim != 2 or min(image.shape) < SMALLEST:
            raise ValueError(f"{name} {image.shape}: must be (H, W), at least {SMALLEST}x{SMALLEST}")
        if not (image.min() >= 0 and image.max() < GRAY_LEVELS):
            raise ValueError(f"{name}: must have values in 0..255")
    if not f.shape == a.shape == b.shape:
        raise ValueError(f"fused {f.shape}, a {a.shape} and b {b.shape}: they must be of one size")
    return {metric.name: metric.of(f, a, b) for metric in METRICS}


def color_measures(fused: Image, b: Image) -> dict[str, float | None]:
    """All color measures of one fused image, by name; None where a measure is undefined, as for a gray b.

    Args:
        fused, b: (H, W) or (H, W, 3), uint8, of one size.

    Raises:
        ValueError: an image has another shape or type, or the sizes differ.
    """
    for name, image in (("fused", fused), ("b", b)):
        if image.dtype != np.uint8 or image.ndim < 2 or image.shape[2:] not in ((), (3,)):
            raise ValueError(f"{name} {image.shape}, {image.dtype}: must be (H, W) or (H, W, 3), uint8")
    if fused.shape[:2] != b.shape[:2]:
        raise ValueError(f"fused {fused.shape} and b {b.shape}: they must be of one size")
    found = color_fidelity(fused, b)
    values = (found.kept, found.bleached, found.hue, found.ab) if found else (None,) * len(COLOR_MEASURES)
    return {measure.name: value for measure, value in zip(COLOR_MEASURES, values, strict=True)}
