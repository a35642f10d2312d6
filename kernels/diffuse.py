"""Noisy images for all denoiser passes at once: level image + sigma noise, rounded to the network's precision."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import launch
from kernels.launch import Launch, Plan, tiles_of


def reference(a: Tensor, b: Tensor, noise: Tensor, levels: Tensor, sigmas: Tensor, dtype: torch.dtype) -> Tensor:
    """levels[t] image + sigmas[t] noise[t, image], for every timestep t, image (a or b) and pair, in this order.

    Args:
        a, b: (N, 1, H, W).
        noise: (T, 2, H, W), the same for every pair.
        levels, sigmas: (T,).
        dtype: type of the result; the inputs share one other type, float32 except in tests.

    Returns:
        (T x 2 x N, 1, H, W).
    """
    images = torch.stack([a, b])[None]  # (1, 2, N, 1, H, W)
    level, sigma = (values[:, None, None, None, None, None] for values in (levels, sigmas))
    noisy = (level * images + sigma * noise[:, :, None, None]).flatten(0, 2)
    return launch.new_feature_map(noisy.shape, noisy, dtype).copy_(noisy)


@triton.jit
def diffuse_kernel(
    a,  # (N, pixels) float32
    b,  # (N, pixels) float32
    noise,  # (T, 2, pixels) float32
    levels,  # (T,) float32
    sigmas,  # (T,) float32
    out,  # (T, 2, N, pixels)
    images,  # N
    pixels,
    PIXELS: tl.constexpr,
):
    """Grid: (blocks of pixels, timesteps, pairs)."""
    p = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    step = tl.program_id(1).to(tl.int64)
    n = tl.program_id(2).to(tl.int64)
    mask = p < pixels
    level, sigma = tl.load(levels + step), tl.load(sigmas + step)
    value = level * tl.load(a + n * pixels + p, mask=mask) + sigma * tl.load(noise + 2 * step * pixels + p, mask=mask)
    tl.store(out + (2 * step * images + n) * pixels + p, value.to(out.dtype.element_ty), mask=mask)
    value = level * tl.load(b + n * pixels + p, mask=mask)
    value += sigma * tl.load(noise + (2 * step + 1) * pixels + p, mask=mask)
    tl.store(out + ((2 * step + 1) * images + n) * pixels + p, value.to(out.dtype.element_ty), mask=mask)


def plan(a: Tensor, b: Tensor, noise: Tensor, levels: Tensor, sigmas: Tensor, dtype: torch.dtype) -> Plan:
    """Plans a single launch."""
    a, b, noise = a.contiguous(), b.contiguous(), noise.contiguous()
    n, _, height, width = a.shape
    steps, pixels = len(levels), height * width
    out = launch.new_feature_map((steps * 2 * n, 1, height, width), a, dtype)
    tile = tiles_of(a).diffuse
    call = Launch(
        diffuse_kernel,
        (triton.cdiv(pixels, tile.pixels), steps, n),
        {
            "a": a,
            "b": b,
            "noise": noise,
            "levels": levels,
            "sigmas": sigmas,
            "out": out,
            "images": n,
            "pixels": pixels,
        },
        {"PIXELS": tile.pixels},
        tile.warps,
    )
    return (out,), [call]


def _diffuse(a: Tensor, b: Tensor, noise: Tensor, levels: Tensor, sigmas: Tensor, dtype: torch.dtype) -> Tensor:
    return launch.run(plan(a, b, noise, levels, sigmas, dtype))[0]


def _fake(a: Tensor, _b: Tensor, _noise: Tensor, levels: Tensor, _sigmas: Tensor, dtype: torch.dtype) -> Tensor:
    n, _, height, width = a.shape
    return launch.new_feature_map((levels.shape[0] * 2 * n, 1, height, width), a, dtype)


diffuse = launch.register(
    "diffuse",
    "(Tensor a, Tensor b, Tensor noise, Tensor levels, Tensor sigmas, ScalarType dtype) -> Tensor",
    reference,
    _diffuse,
    _fake,
)
