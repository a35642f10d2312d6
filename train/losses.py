"""The hybrid loss of stage II, on luminances in [-1, 1] (DM-FNet, arXiv 2506.15218)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

WINDOW = 11
WINDOW_SIGMA = 1.5
C2 = 0.03**2


def sobel_magnitude(z: Tensor) -> Tensor:
    """|S_x * z| + |S_y * z| of (N, 1, H, W), the kernels not normalised, zero padding."""
    # Made on the device: a copy from the CPU would wait for all that a GPU has still to do.
    difference = torch.arange(-1, 2, dtype=z.dtype, device=z.device)
    sobel_x = torch.outer(2 - difference.abs(), difference)
    gradients = F.conv2d(z, torch.stack([sobel_x, sobel_x.T])[:, None], padding=1)
    return gradients.abs().sum(dim=1, keepdim=True)


def _local_mean(z: Tensor) -> Tensor:
    """Gaussian window, applied as a row and a column, zero padding."""
    x = torch.arange(WINDOW, dtype=z.dtype, device=z.device) - WINDOW // 2
    weights = torch.exp(-x.square() / (2 * WINDOW_SIGMA**2))
    weights = weights / weights.sum()
    channels = z.shape[1]
    row = weights.view(1, 1, 1, WINDOW).expand(channels, 1, 1, WINDOW)
    column = weights.view(1, 1, WINDOW, 1).expand(channels, 1, WINDOW, 1)
    z = F.conv2d(z, row, padding=(0, WINDOW // 2), groups=channels)
    return F.conv2d(z, column, padding=(WINDOW // 2, 0), groups=channels)


def structure_similarity(fused: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Mean structure term of SSIM between `fused` and, at each pixel, the source that varies more there.

    (2 cov + C2) / (var_1 + var_2 + C2) in an 11x11 Gaussian window of sigma 1.5; ties choose `a`. Variances
    are clamped at 0: rounding can take them below, and the published code's NaNs then chose b.
    """
    moments = _local_mean(torch.cat([fused, a, b, fused**2, a**2, b**2, fused * a, fused * b], dim=1))
    mean_f, mean_a, mean_b, ff, aa, bb, fa, fb = moments.split(1, dim=1)
    var_f = (ff - mean_f**2).clamp(min=0)
    var_a = (aa - mean_a**2).clamp(min=0)
    var_b = (bb - mean_b**2).clamp(min=0)
    similarity_a = (2 * (fa - mean_f * mean_a) + C2) / (var_f + var_a + C2)
    similarity_b = (2 * (fb - mean_f * mean_b) + C2) / (var_f + var_b + C2)
    return torch.where(var_a >= var_b, similarity_a, similarity_b).mean()


def hybrid_loss(fused: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """1.5 L1(f, max(a, b)) + L1(|Sobel f|, max(|Sobel a|, |Sobel b|)) + 0.5 (1 - structure similarity).

    Args:
        fused, a, b: (N, 1, H, W) in [-1, 1], float32 or wider: half precision loses the variances.

    Returns:
        The mean over the batch, a scalar.
    """
    intensity = F.l1_loss(fused, torch.maximum(a, b))
    gradient = F.l1_loss(sobel_magnitude(fused), torch.maximum(sobel_magnitude(a), sobel_magnitude(b)))
    return 1.5 * intensity + gradient + 0.5 * (1 - structure_similarity(fused, a, b))
