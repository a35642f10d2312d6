"""Similarity measures of images, in numpy. Images are (H, W) or (N, H, W); measures are means over all N images."""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Images: TypeAlias = NDArray[Any]

SSIM_WINDOW = 7
# Structure term of the hybrid objective: an 11x11 Gaussian window of sigma 1.5, and C2 for luminances in [-1, 1].
STRUCTURE_WINDOW = 11
STRUCTURE_SIGMA = 1.5
STRUCTURE_C2 = 0.03**2


def psnr(x: Images, y: Images, data_range: float = 255.0) -> float:
    """10 log10(data_range^2 / mean squared error), in dB; infinite if the images are equal."""
    mse = float(np.square(x.astype(np.float64) - y).mean())
    return 10 * math.log10(data_range**2 / mse) if mse else math.inf


def filtered(image: Images, window: NDArray[np.float64], padding: int) -> NDArray[np.float64]:
    """Filter with a separable symmetric window along both axes, after zero padding by `padding` on each side."""
    around = [(0, 0)] * (image.ndim - 2) + [(padding, padding)] * 2
    padded = np.pad(image.astype(np.float64), around)
    # One tap of the window at a time on views of the image, so that only the sums are written to memory.
    for axis in (-1, -2):
        size = padded.shape[axis] - len(window) + 1
        total = np.zeros(())
        for k, weight in enumerate(window):
            part = padded[..., k : k + size] if axis == -1 else padded[..., k : k + size, :]
            total = weight * part if k == 0 else np.add(total, weight * part, out=total)
        padded = total
    return padded


def ssim(x: Images, y: Images, data_range: float = 255.0) -> float:
    """Structural similarity (Wang et al. 2004, doi:10.1109/TIP.2003.819861), the mean over all windows in the image.

    A uniform 7x7 window, sample covariances, K1 = 0.01 and K2 = 0.03, which are the defaults of scikit-image.
    """
    window = np.full(SSIM_WINDOW, 1 / SSIM_WINDOW)
    mean_x, mean_y, xx, yy, xy = (filtered(m, window, 0) for m in (x, y, *_products(x, y)))
    count = SSIM_WINDOW**2
    sample = count / (count - 1)
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    numerator = (2 * mean_x * mean_y + c1) * (2 * sample * (xy - mean_x * mean_y) + c2)
    denominator = (mean_x**2 + mean_y**2 + c1) * (sample * (xx - mean_x**2 + yy - mean_y**2) + c2)
    return float((numerator / denominator).mean())


def _products(x: Images, y: Images) -> tuple[NDArray[np.float64], ...]:
    x, y = x.astype(np.float64), y.astype(np.float64)
    return x**2, y**2, x * y


def sobel(z: Images) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Derivatives along x and y by unnormalized Sobel kernels, with zero padding."""
    padded = np.pad(z.astype(np.float64), [(0, 0)] * (z.ndim - 2) + [(1, 1)] * 2)
    rows = padded[..., :-2, :] + 2 * padded[..., 1:-1, :] + padded[..., 2:, :]
    columns = padded[..., :-2] + 2 * padded[..., 1:-1] + padded[..., 2:]
    return rows[..., 2:] - rows[..., :-2], columns[..., 2:, :] - columns[..., :-2, :]


def _sobel_magnitude(z: Images) -> NDArray[np.float64]:
    x, y = sobel(z)
    return np.abs(x) + np.abs(y)


def _structure_similarity(fused: Images, a: Images, b: Images) -> float:
    """Mean structure term of SSIM between `fused` and the source of larger local variance, chosen at each pixel."""
    offset = np.arange(STRUCTURE_WINDOW) - STRUCTURE_WINDOW // 2
    window = np.exp(-(offset**2) / (2 * STRUCTURE_SIGMA**2))
    window = window / window.sum()

    def mean(image: Images) -> NDArray[np.float64]:
        return filtered(image, window, STRUCTURE_WINDOW // 2)

    f, sources = fused.astype(np.float64), [a.astype(np.float64), b.astype(np.float64)]
    mean_f = mean(f)
    var_f = (mean(f * f) - mean_f**2).clip(min=0)
    variances, similarities = [], []
    for source in sources:
        mean_s = mean(source)
        variance = (mean(source * source) - mean_s**2).clip(min=0)
        covariance = mean(f * source) - mean_f * mean_s
        variances.append(variance)
        similarities.append((2 * covariance + STRUCTURE_C2) / (var_f + variance + STRUCTURE_C2))
    return float(np.where(variances[0] >= variances[1], *similarities).mean())


def hybrid_objective(fused: Images, a: Images, b: Images) -> float:
    """The loss that DM-FNet's fusion is trained on (arXiv 2506.15218), for luminances in [-1, 1]; lower is better.

    1.5 L1(f, max(a, b)) + L1(|Sobel f|, max(|Sobel a|, |Sobel b|)) + 0.5 (1 - structure similarity).
    """
    intensity = np.abs(fused.astype(np.float64) - np.maximum(a, b)).mean()
    strongest = np.maximum(_sobel_magnitude(a), _sobel_magnitude(b))
    gradient = np.abs(_sobel_magnitude(fused) - strongest).mean()
    return float(1.5 * intensity + gradient + 0.5 * (1 - _structure_similarity(fused, a, b)))
