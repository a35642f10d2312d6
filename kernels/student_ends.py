"""Both ends of a student network: pixel-unshuffled inputs, and the predicted change applied to the sources."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from kernels import launch
from kernels.launch import Launch, Plan, channels_last, tiles_of

PLANES = 4  # a, b, and both bounds of the interval


def inputs_reference(a: Tensor, b: Tensor, interval: Tensor, factor: int, dtype: torch.dtype) -> Tensor:
    """Pixel-unshuffle of a, b and interval, concatenated over channels.

    Args:
        a, b: (N, 1, H, W).
        interval: (N, 2, H, W).
        factor: downscaling of the unshuffle, a divisor of H and W.
        dtype: type of the result; the inputs share one other type, float32 except in tests.

    Returns:
        (N, 4 factor^2, H / factor, W / factor).
    """
    unshuffled = F.pixel_unshuffle(torch.cat([a, b, interval], 1), factor)
    return launch.new_feature_map(unshuffled.shape, unshuffled, dtype).copy_(unshuffled)


def change_reference(change: Tensor, a: Tensor, b: Tensor, interval: Tensor, factor: int) -> Tensor:
    """Pixel-shuffle of `change`, added to the brighter source clamped to the interval; the sum is clamped again.

    Args:
        change: (N, factor^2, H / factor, W / factor).
        a, b, interval, factor: as in `inputs_reference`.

    Returns:
        (N, 1, H, W), of the type of `a`.
    """
    low, high = interval.split(1, 1)
    start = torch.minimum(torch.maximum(torch.maximum(a, b), low), high)
    return torch.minimum(torch.maximum(start + F.pixel_shuffle(change.to(a.dtype), factor), low), high)


@triton.jit
def inputs_kernel(
    a,  # (N, pixels) float32
    b,  # (N, pixels) float32
    interval,  # (N, 2, pixels) float32
    out,  # (N, pixels / FACTOR^2, 4 FACTOR^2)
    height,
    width,
    FACTOR: tl.constexpr,
    PIXELS: tl.constexpr,
    SAMPLES: tl.constexpr,  # FACTOR^2 rounded up to a power of two
):
    """Grid: (tiles of the result's pixels, images)."""
    n = tl.program_id(1).to(tl.int64)
    pixels = height * width
    coarse_pixels = pixels // (FACTOR * FACTOR)
    p = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    sample = tl.arange(0, SAMPLES)
    row = (p // (width // FACTOR))[:, None] * FACTOR + (sample // FACTOR)[None, :]
    column = (p % (width // FACTOR))[:, None] * FACTOR + (sample % FACTOR)[None, :]
    mask = (p < coarse_pixels)[:, None] & (sample < FACTOR * FACTOR)[None, :]
    source = n * pixels + row * width + column
    pointers = out + (n * coarse_pixels + p)[:, None] * (4 * FACTOR * FACTOR) + sample[None, :]
    dtype = out.dtype.element_ty
    tl.store(pointers, tl.load(a + source, mask=mask).to(dtype), mask=mask)
    tl.store(pointers + FACTOR * FACTOR, tl.load(b + source, mask=mask).to(dtype), mask=mask)
    source += n * pixels
    tl.store(pointers + 2 * FACTOR * FACTOR, tl.load(interval + source, mask=mask).to(dtype), mask=mask)
    tl.store(pointers + 3 * FACTOR * FACTOR, tl.load(interval + source + pixels, mask=mask).to(dtype), mask=mask)


@triton.jit
def _larger(x, y):
    """Like torch.maximum, which propagates NaN."""
    return tl.maximum(x, y, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _smaller(x, y):
    return tl.minimum(x, y, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def change_kernel(
    change,  # (N, pixels / FACTOR^2, FACTOR^2)
    a,  # (N, pixels) float32
    b,  # (N, pixels) float32
    interval,  # (N, 2, pixels) float32
    out,  # (N, pixels) float32
    height,
    width,
    FACTOR: tl.constexpr,
    PIXELS: tl.constexpr,
):
    """Grid: (tiles of pixels, images)."""
    n = tl.program_id(1).to(tl.int64)
    pixels = height * width
    p = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    mask = p < pixels
    row, column = p // width, p % width
    coarse_pixel = (row // FACTOR) * (width // FACTOR) + column // FACTOR
    sample = (row % FACTOR) * FACTOR + column % FACTOR
    added = tl.load(change + n * pixels + coarse_pixel * FACTOR * FACTOR + sample, mask=mask).to(tl.float32)
    low = tl.load(interval + 2 * n * pixels + p, mask=mask)
    high = tl.load(interval + (2 * n + 1) * pixels + p, mask=mask)
    brighter = _larger(tl.load(a + n * pixels + p, mask=mask), tl.load(b + n * pixels + p, mask=mask))
    value = _smaller(_larger(brighter, low), high) + added
    tl.store(out + n * pixels + p, _smaller(_larger(value, low), high), mask=mask)


def inputs_plan(a: Tensor, b: Tensor, interval: Tensor, factor: int, dtype: torch.dtype) -> Plan:
    """Plans a single launch."""
    a, b, interval = a.contiguous(), b.contiguous(), interval.contiguous()
    n, _, height, width = a.shape
    out = launch.new_feature_map((n, PLANES * factor**2, height // factor, width // factor), a, dtype)
    tile = tiles_of(a).diffuse
    pixels = max(1, tile.pixels // triton.next_power_of_2(factor**2))
    call = Launch(
        inputs_kernel,
        (triton.cdiv(height * width // factor**2, pixels), n),
        {"a": a, "b": b, "interval": interval, "out": out, "height": height, "width": width},
        {"FACTOR": factor, "PIXELS": pixels, "SAMPLES": triton.next_power_of_2(factor**2)},
        tile.warps,
    )
    return (out,), [call]


def change_plan(change: Tensor, a: Tensor, b: Tensor, interval: Tensor, factor: int) -> Plan:
    """Plans a single launch."""
    change, a, b, interval = channels_last(change), a.contiguous(), b.contiguous(), interval.contiguous()
    n, _, height, width = a.shape
    out = launch.new_table((n, 1, height, width), a)
    tile = tiles_of(a).diffuse
    call = Launch(
        change_kernel,
        (triton.cdiv(height * width, tile.pixels), n),
        {"change": change, "a": a, "b": b, "interval": interval, "out": out, "height": height, "width": width},
        {"FACTOR": factor, "PIXELS": tile.pixels},
        tile.warps,
    )
    return (out,), [call]


def _inputs(*arguments: Any) -> Tensor:
    return launch.run(inputs_plan(*arguments))[0]


def _change(*arguments: Any) -> Tensor:
    return launch.run(change_plan(*arguments))[0]


def _fake_inputs(a: Tensor, _b: Tensor, _interval: Tensor, factor: int, dtype: torch.dtype) -> Tensor:
    n, _, height, width = a.shape
    return launch.new_feature_map((n, PLANES * factor**2, height // factor, width // factor), a, dtype)


student_inputs = launch.register(
    "student_inputs",
    "(Tensor a, Tensor b, Tensor interval, int factor, ScalarType dtype) -> Tensor",
    inputs_reference,
    _inputs,
    _fake_inputs,
)
student_change = launch.register(
    "student_change",
    "(Tensor change, Tensor a, Tensor b, Tensor interval, int factor) -> Tensor",
    change_reference,
    _change,
    lambda _change, a, *_: torch.empty_like(a),
)
