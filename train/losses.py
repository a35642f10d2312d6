"""The hybrid loss of stage II, on luminances in [-1, 1] (DM-FNet, arXiv 2506.15218)."""

from __future__ import annotations

from functools import lru_cache, reduce
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

WINDOW = 11
WINDOW_SIGMA = 1.5
C2 = 0.03**2


def sobel_magnitude(z: Tensor) -> Tensor:
    """|S_x * z| + |S_y * z| of (N, 1, H, W), the kernels not normalized, zero padding."""
    # Sums of slices: a CPU takes five times as long for convolutions of one channel.
    padded = F.pad(z, (1, 1, 1, 1))
    columns = padded[..., :-2, :] + 2 * padded[..., 1:-1, :] + padded[..., 2:, :]
    rows = padded[..., :-2] + 2 * padded[..., 1:-1] + padded[..., 2:]
    return (columns[..., 2:] - columns[..., :-2]).abs() + (rows[..., 2:, :] - rows[..., :-2, :]).abs()


@lru_cache(maxsize=16)
def _gaussian_band(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The matrix (size, size) that applies the Gaussian window along an axis, with zeros beyond its ends."""
    with torch.inference_mode(False):  # or no training could use what a validation has made
        x = torch.arange(size, dtype=torch.float64, device=device)
        distance = (x[:, None] - x).abs()
        weights = torch.exp(-distance.square() / (2 * WINDOW_SIGMA**2))
        inside = torch.arange(-(WINDOW // 2), WINDOW // 2 + 1, dtype=torch.float64, device=device)
        total = torch.exp(-inside.square() / (2 * WINDOW_SIGMA**2)).sum()
        return torch.where(distance <= WINDOW // 2, weights / total, 0).to(dtype)


def _local_means(*images: Tensor) -> tuple[Tensor, ...]:
    """Gaussian window, zero padding, of images (N, 1, H, W).

    As two products with band matrices: of crops as in training, a CPU takes a tenth of the time of convolutions.
    """
    z = torch.cat(images, dim=1)
    rows, columns = (_gaussian_band(size, z.dtype, z.device) for size in z.shape[2:])
    return (rows @ (z @ columns)).split(1, dim=1)


class Sources(NamedTuple):
    """What the loss compares a fused image with, (N, 1, H, W) each; no gradients pass.

    Attributes:
        brighter: max(a, b).
        gradient: the larger Sobel magnitude.
        is_a: where a varies more than b, or as much.
        mean, variance: local ones of the source that varies more.
    """

    a: Tensor
    b: Tensor
    brighter: Tensor
    gradient: Tensor
    is_a: Tensor
    mean: Tensor
    variance: Tensor


@torch.no_grad()
def sources_of(a: Tensor, b: Tensor) -> Sources:
    """Prepare `a` and `b`, (N, 1, H, W) in [-1, 1]."""
    mean_a, mean_b, aa, bb = _local_means(a, b, a**2, b**2)
    var_a, var_b = (aa - mean_a**2).clamp(min=0), (bb - mean_b**2).clamp(min=0)
    is_a = var_a >= var_b
    return Sources(
        a,
        b,
        torch.maximum(a, b),
        torch.maximum(sobel_magnitude(a), sobel_magnitude(b)),
        is_a,
        torch.where(is_a, mean_a, mean_b),
        torch.where(is_a, var_a, var_b),
    )


def structure_similarity(fused: Tensor, sources: Sources) -> Tensor:
    """Mean structure term of SSIM between `fused` and, at each pixel, the source that varies more there.

    (2 cov + C2) / (var_1 + var_2 + C2) in an 11x11 Gaussian window of sigma 1.5; ties choose `a`. Variances
    are clamped at 0: rounding can take them below, and the published code's NaNs then chose b.
    """
    mean_f, ff, fa, fb = _local_means(fused, fused**2, fused * sources.a, fused * sources.b)
    var_f = (ff - mean_f**2).clamp(min=0)
    covariance = torch.where(sources.is_a, fa, fb) - mean_f * sources.mean
    return ((2 * covariance + C2) / (var_f + sources.variance + C2)).mean()


def hybrid_loss(fused: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """1.5 L1(f, max(a, b)) + L1(|Sobel f|, max(|Sobel a|, |Sobel b|)) + 0.5 (1 - structure similarity).

    Args:
        fused, a, b: (N, 1, H, W) in [-1, 1], float32 or wider: half precision loses the variances.

    Returns:
        The mean over the batch, a scalar.
    """
    sources = sources_of(a, b)
    intensity = F.l1_loss(fused, sources.brighter)
    gradient = F.l1_loss(sobel_magnitude(fused), sources.gradient)
    return 1.5 * intensity + gradient + 0.5 * (1 - structure_similarity(fused, sources))


def specks(z: Tensor) -> Tensor:
    """How far each pixel stands out from all around it: (N, 2, H, W), peaks and pits, of (N, 1, H, W).

    That is the least difference, over four directions, to the mean of both neighbors in that direction: a line is
    nothing, a dot its height, and a tooth of a serrated edge half of it.
    """
    height, width = z.shape[2:]
    padded = F.pad(z, (1, 1, 1, 1), mode="replicate")

    def shifted(rows: int, columns: int) -> Tensor:
        return padded[..., 1 + rows : 1 + rows + height, 1 + columns : 1 + columns + width]

    differences = [z - (shifted(*step) + shifted(-step[0], -step[1])) / 2 for step in ((0, 1), (1, 0), (1, 1), (1, -1))]
    least = reduce(torch.minimum, differences)
    greatest = reduce(torch.maximum, differences)
    return torch.cat([least, -greatest], dim=1).clamp(min=0)


def invented_specks(fused: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """The mean height by which specks of `fused` exceed all that either source has within one pixel.

    The gradient term of the hybrid loss alone would draw dotted lines where a source's edge lies in what the other
    saturates: dots have twice the gradient of a line that is as dark.

    Args:
        fused, a, b: (N, 1, H, W) in [-1, 1].

    Returns:
        A scalar.
    """
    with torch.no_grad():
        own = F.max_pool2d(torch.maximum(specks(a), specks(b)), 3, stride=1, padding=1)
    return (specks(fused) - own).clamp(min=0).sum(dim=1).mean()
