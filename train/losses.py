"""The losses of stage II by name, on luminances in [-1, 1], and the terms that they are made of.

Whatever a network is trained on, it is judged by `hybrid_loss` (DM-FNet, arXiv 2506.15218).
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
# A dot of height 1 can take 16 from the hybrid loss's sum over pixels, as the weights of both Sobel kernels add up to.
SPECK_WEIGHT = 16.0


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


def hybrid_and_specks(fused: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """`hybrid_loss`, and SPECK_WEIGHT times `invented_specks`."""
    return hybrid_loss(fused, a, b) + SPECK_WEIGHT * invented_specks(fused, a, b)


@dataclass(frozen=True)
class Loss:
    """What stage II can be trained on.

    Attributes:
        of: takes the luminance as it would be saved, after both rules, and those of a and b, (N, 1, H, W) each in
            [-1, 1], float32; returns the mean over the batch, a scalar.
        settings: all numbers in it that may change, by name, in plain types: part of a run's identity and record.
    """

    of: Callable[[Tensor, Tensor, Tensor], Tensor]
    settings: Mapping[str, float] = field(default_factory=dict)


LOSSES = {
    "hybrid": Loss(hybrid_and_specks, {"specks": SPECK_WEIGHT}),
    "hybrid-plain": Loss(hybrid_loss),
}


def loss_named(name: str) -> Loss:
    """The loss of that name.

    Raises:
        DMFNetError: there is none.
    """
    if name not in LOSSES:
        raise DMFNetError(f"unknown loss {name!r}; use one of {', '.join(LOSSES)}")
    return LOSSES[name]


def loss_identity(name: str) -> dict[str, Any]:
    """What the identity of a run says of its loss."""
    # The default has no name there: runs that began before losses had names can go on.
    named = {} if name == DEFAULT_LOSS else {"name": name}
    return {**named, **loss_named(name).settings}


def loss_name(identity: Mapping[str, Any]) -> str:
    """The name of the loss of the run that has this identity."""
    return str(identity["loss"].get("name", DEFAULT_LOSS))
