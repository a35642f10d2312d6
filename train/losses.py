"""The losses of stage II, by name, and their terms, all on luminances in [-1, 1].

Validation always uses `hybrid_loss` (DM-FNet, arXiv 2506.15218), whatever loss a network is trained on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache, reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from dmfnet_fast.errors import DMFNetError
from train.recipe import DEFAULT_LOSS

WINDOW = 11
WINDOW_SIGMA = 1.5
C2 = 0.03**2
# A dot of height 1 can lower the hybrid loss, summed over pixels, by 16: the absolute weights of both Sobel kernels
# add up to that.
SPECK_WEIGHT = 16.0


def sobel_magnitude(z: Tensor) -> Tensor:
    """|S_x * z| + |S_y * z| for z of shape (N, 1, H, W), with unnormalized kernels and zero padding."""
    # Sums of slices, because single-channel convolutions take a CPU five times as long.
    padded = F.pad(z, (1, 1, 1, 1))
    columns = padded[..., :-2, :] + 2 * padded[..., 1:-1, :] + padded[..., 2:, :]
    rows = padded[..., :-2] + 2 * padded[..., 1:-1] + padded[..., 2:]
    return (columns[..., 2:] - columns[..., :-2]).abs() + (rows[..., 2:, :] - rows[..., :-2, :]).abs()


@lru_cache(maxsize=16)
def _gaussian_band(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Matrix (size, size) that applies the Gaussian window along one axis, with zero padding."""
    with torch.inference_mode(False):  # autograd rejects inference tensors, and validation may fill the cache first
        x = torch.arange(size, dtype=torch.float64, device=device)
        distance = (x[:, None] - x).abs()
        weights = torch.exp(-distance.square() / (2 * WINDOW_SIGMA**2))
        inside = torch.arange(-(WINDOW // 2), WINDOW // 2 + 1, dtype=torch.float64, device=device)
        total = torch.exp(-inside.square() / (2 * WINDOW_SIGMA**2)).sum()
        return torch.where(distance <= WINDOW // 2, weights / total, 0).to(dtype)


def _local_means(*images: Tensor) -> tuple[Tensor, ...]:
    """Means of images (N, 1, H, W) under the Gaussian window, with zero padding.

    Computed as two products with band matrices: for training crops, a CPU takes a tenth of the time of convolutions.
    """
    z = torch.cat(images, dim=1)
    rows, columns = (_gaussian_band(size, z.dtype, z.device) for size in z.shape[2:])
    return (rows @ (z @ columns)).split(1, dim=1)


class Sources(NamedTuple):
    """What the loss compares a fused image with, (N, 1, H, W) each, without gradients.

    Attributes:
        brighter: max(a, b).
        gradient: the larger of both Sobel magnitudes.
        is_a: where the local variance of a is at least that of b.
        mean, variance: local mean and variance of the source with the larger local variance.
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
    """Precomputes the terms of the loss that depend only on `a` and `b`, (N, 1, H, W) in [-1, 1]."""
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
    """Mean structure term of SSIM between `fused` and, at each pixel, the source with the larger local variance.

    (2 cov + C2) / (var_1 + var_2 + C2) in an 11x11 Gaussian window of sigma 1.5; ties choose `a`. Variances
    are clamped at 0, because rounding can make them negative. The published code gets NaN there, and so chooses `b`.
    """
    mean_f, ff, fa, fb = _local_means(fused, fused**2, fused * sources.a, fused * sources.b)
    var_f = (ff - mean_f**2).clamp(min=0)
    covariance = torch.where(sources.is_a, fa, fb) - mean_f * sources.mean
    return ((2 * covariance + C2) / (var_f + sources.variance + C2)).mean()


def hybrid_loss(fused: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """1.5 L1(f, max(a, b)) + L1(|Sobel f|, max(|Sobel a|, |Sobel b|)) + 0.5 (1 - structure similarity).

    Args:
        fused, a, b: (N, 1, H, W) in [-1, 1], float32 or wider: variances cancel in half precision.

    Returns:
        The mean over the batch, a scalar.
    """
    sources = sources_of(a, b)
    intensity = F.l1_loss(fused, sources.brighter)
    gradient = F.l1_loss(sobel_magnitude(fused), sources.gradient)
    return 1.5 * intensity + gradient + 0.5 * (1 - structure_similarity(fused, sources))


def specks(z: Tensor) -> Tensor:
    """How far each pixel of (N, 1, H, W) stands out from its neighborhood: (N, 2, H, W), peaks and pits.

    The height is the smallest difference, over four directions, to the mean of the two neighbors in that direction. A
    line counts as nothing, a dot as its height, and a tooth of a serrated edge as half of its height.
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
    """Mean height by which specks of `fused` exceed all specks of either source within one pixel.

    The hybrid loss alone draws dotted lines where one source has an edge and the other is saturated, because dots have
    twice the Sobel magnitude of an equally dark line.

    Args:
        fused, a, b: (N, 1, H, W) in [-1, 1].

    Returns:
        A scalar.
    """
    with torch.no_grad():
        own = F.max_pool2d(torch.maximum(specks(a), specks(b)), 3, stride=1, padding=1)
    return (specks(fused) - own).clamp(min=0).sum(dim=1).mean()


def hybrid_and_specks(fused: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """`hybrid_loss` plus SPECK_WEIGHT times `invented_specks`."""
    return hybrid_loss(fused, a, b) + SPECK_WEIGHT * invented_specks(fused, a, b)


@dataclass(frozen=True)
class Loss:
    """A loss that stage II can be trained on.

    Attributes:
        of: function of the luminance as it would be saved, after both rules, and the luminances of a and b, each
            (N, 1, H, W) in [-1, 1], float32; returns the mean over the batch, a scalar.
        settings: every number in the loss that may change, by name, in plain types; part of a run's identity and
            record.
    """

    of: Callable[[Tensor, Tensor, Tensor], Tensor]
    settings: Mapping[str, float] = field(default_factory=dict)


LOSSES = {
    "hybrid": Loss(hybrid_and_specks, {"specks": SPECK_WEIGHT}),
    "hybrid-plain": Loss(hybrid_loss),
}


def loss_named(name: str) -> Loss:
    """The loss with this name.

    Raises:
        DMFNetError: no loss has this name.
    """
    if name not in LOSSES:
        raise DMFNetError(f"unknown loss {name!r}; use one of {', '.join(LOSSES)}")
    return LOSSES[name]


def loss_identity(name: str) -> dict[str, Any]:
    """The part of a run's identity that describes its loss."""
    # The default loss is stored without a name, so that runs from before losses had names can be continued.
    named = {} if name == DEFAULT_LOSS else {"name": name}
    return {**named, **loss_named(name).settings}


def loss_name(identity: Mapping[str, Any]) -> str:
    """The name of the loss in a run's identity."""
    return str(identity["loss"].get("name", DEFAULT_LOSS))
