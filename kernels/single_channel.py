"""Convolutions from one or two channels and to a single one: a network's ends, with the activations around the last.

The first is a matrix product over the taps, and so is that of the interval's two planes; the last is a sum over taps
and channels.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from kernels import launch
from kernels.convolution import SMALLEST, finish
from kernels.convolution_epilogue import pixels_of_part, statistics_reference, statistics_shape
from kernels.launch import Launch, Plan, channels_last, tiles_of

SLOPE = 0.2  # of the leaky ReLU


def first_reference(x: Tensor, weight: Tensor, bias: Tensor, more: Tensor | None) -> tuple[Tensor, Tensor]:
    """conv3x3(x, and more after it) + bias, computed in float32, and the `statistics_reference` of the rounded result.

    Args:
        x: (N, 1, H, W), rounded to the type of `weight` first.
        weight: (C, 1, 3, 3).
        bias: (C,).
        more: further images, like `x`, or None.

    Returns:
        (N, C, H, W), or (2 N, C, H, W), of the type of `weight`, and its statistics.
    """
    result = planes_reference(x if more is None else torch.cat([x, more]), weight, bias)
    return result, statistics_reference(result)


def planes_reference(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """conv3x3(x) + bias, computed in float32.

    Args:
        x: (N, P, H, W), P up to 3, rounded to the type of `weight` first.
        weight: (C, P, 3, 3).
        bias: (C,), or None.

    Returns:
        (N, C, H, W), of the type of `weight`.
    """
    wide = torch.promote_types(weight.dtype, torch.float32)
    x, bias = x.to(weight.dtype).to(wide), None if bias is None else bias.to(wide)
    return channels_last(F.conv2d(x, weight.to(wide), bias, padding=1).to(weight.dtype, copy=True))


def head_reference(x: Tensor, weight: Tensor, bias: Tensor, tanh: bool) -> Tensor:
    """conv3x3(leaky_relu(x, 0.2)) + bias, followed by tanh if `tanh`, computed in the type of `weight`.

    Args:
        x: (N, C, H, W).
        weight: (1, C, 3, 3), float32.
        bias: (1,), float32.

    Returns:
        (N, 1, H, W) float32, or float64 if `weight` is.
    """
    result = F.conv2d(F.leaky_relu(x.to(weight.dtype), SLOPE), weight, bias, padding=1)
    return torch.tanh(result) if tanh else result


@triton.jit
def first_kernel(
    x,  # (N, PLANES, pixels)
    more,  # further images like x, or None
    weight,  # (C, 9, PLANES)
    bias,  # (C,), or None
    out,  # (N, pixels, C), or (2 N, pixels, C) with further images
    statistics,  # (N, parts, 2, C) float32, or None
    images,  # N, or None
    height,
    width,
    channels,
    parts,  # or None
    PLANES: tl.constexpr,
    TAPS: tl.constexpr,  # 9 PLANES rounded up to what a matrix unit takes
    PART: tl.constexpr,  # pixels per part, or None
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Grid: (tiles of consecutive pixels, blocks of channels, images)."""
    n = tl.program_id(2).to(tl.int64)
    pixels = height * width
    p = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    o = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    pixel_mask = p < pixels
    source = x + n * PLANES * pixels
    if more is not None:  # noqa: SIM102 (Triton evaluates both sides of `and`)
        if n >= images:
            source = more + (n - images) * PLANES * pixels
    tap = tl.arange(0, TAPS)
    tap_mask = tap < 9 * PLANES
    weight_mask = tap_mask[:, None] & (o < channels)[None, :]
    weights = tl.load(weight + o[None, :] * (9 * PLANES) + tap[:, None], mask=weight_mask, other=0.0)
    if PLANES > 1:
        source += (tap % PLANES)[None, :] * pixels
        tap = tap // PLANES
    row = (p // width)[:, None] + (tap // 3 - 1)[None, :]
    column = (p % width)[:, None] + (tap % 3 - 1)[None, :]
    mask = pixel_mask[:, None] & tap_mask[None, :] & (row >= 0) & (row < height) & (column >= 0) & (column < width)
    values = tl.load(source + row * width + column, mask=mask, other=0.0).to(weights.dtype)
    total = tl.dot(values, weights, input_precision="ieee")
    finish(
        total,
        n * pixels,
        n,
        p,
        pixel_mask,
        o,
        bias,
        None,
        out,
        statistics,
        channels,
        parts,
        tl.program_id(0),
        False,
        PART,
        PIXELS,
        CHANNELS,
    )


@triton.jit
def head_kernel(
    x,  # (N, pixels, C)
    weight,  # (9, C) float32
    bias,  # (1,) float32
    out,  # (N, pixels) float32
    height,
    width,
    channels,
    slope,
    TANH: tl.constexpr,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Grid: (tiles of consecutive pixels, images)."""
    n = tl.program_id(1).to(tl.int64)
    pixels = height * width
    p = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    row, column, pixel_mask = p // width, p % width, p < pixels
    c = tl.arange(0, CHANNELS)
    channel_mask = c < channels
    total = tl.zeros((PIXELS, CHANNELS), tl.float32)
    for tap in tl.static_range(9):
        source_row, source_column = row + (tap // 3 - 1), column + (tap % 3 - 1)
        tap_mask = (
            pixel_mask & (source_row >= 0) & (source_row < height) & (source_column >= 0) & (source_column < width)
        )
        offsets = (n * pixels + source_row * width + source_column)[:, None] * channels + c[None, :]
        value = tl.load(x + offsets, mask=tap_mask[:, None] & channel_mask[None, :], other=0.0).to(tl.float32)
        value = tl.where(value < 0, slope * value, value)
        total += value * tl.load(weight + tap * channels + c, mask=channel_mask, other=0.0)[None, :]
    result = tl.sum(total, 1) + tl.load(bias)
    if TANH:
        # Computed from the magnitude, so that the exponential cannot overflow.
        decay = tl.exp(-2.0 * tl.abs(result))
        magnitude = (1.0 - decay) / (1.0 + decay)
        result = tl.where(result < 0, -magnitude, magnitude)
    tl.store(out + n * pixels + p, result, mask=pixel_mask)


def first_fits(x: Tensor) -> bool:
    """Whether the tile holds whole parts of the statistics of images (N, 1, H, W); larger tiles spill registers."""
    return pixels_of_part(x.shape[2] * x.shape[3]) <= tiles_of(x).first.pixels


def first_plan(x: Tensor, weight: Tensor, bias: Tensor, more: Tensor | None) -> Plan:
    """Plans a single launch that writes the result and its statistics."""
    return _from_planes(x, weight, bias, more, True)


def planes_plan(x: Tensor, weight: Tensor) -> Plan:
    """Plans a single launch that writes the result alone."""
    return _from_planes(x, weight, None, None, False)


def _from_planes(x: Tensor, weight: Tensor, bias: Tensor | None, more: Tensor | None, with_statistics: bool) -> Plan:
    x, more = x.contiguous(), None if more is None else more.contiguous()
    n, planes, height, width = x.shape
    channels = weight.shape[0]
    images = n if more is None else 2 * n
    out = launch.new_feature_map((images, channels, height, width), weight)
    statistics = launch.new_table(statistics_shape(out), x) if with_statistics else None
    tile = tiles_of(x).first
    block = max(SMALLEST, min(tile.channels, triton.next_power_of_2(channels)))
    part = pixels_of_part(height * width) if with_statistics else 1
    pixels = max(tile.pixels, part)
    call = Launch(
        first_kernel,
        (triton.cdiv(height * width, pixels), triton.cdiv(channels, block), images),
        {
            "x": x,
            "more": more,
            "weight": channels_last(weight),
            "bias": bias,
            "out": out,
            "statistics": statistics,
            "images": None if more is None else n,
            "height": height,
            "width": width,
            "channels": channels,
            "parts": None if statistics is None else statistics.shape[1],
        },
        {
            "PLANES": planes,
            "TAPS": max(SMALLEST, triton.next_power_of_2(9 * planes)),
            "PART": part if with_statistics else None,
            "PIXELS": pixels,
            "CHANNELS": block,
        },
        tile.warps,
    )
    return tuple(result for result in (out, statistics) if result is not None), [call]


def head_plan(x: Tensor, weight: Tensor, bias: Tensor, tanh: bool) -> Plan:
    """Plans a single launch."""
    x = channels_last(x)
    n, channels, height, width = x.shape
    out = launch.new_table((n, 1, height, width), x)
    tile = tiles_of(x).head
    call = Launch(
        head_kernel,
        (triton.cdiv(height * width, tile.pixels), n),
        {
            "x": x,
            "weight": weight.permute(0, 2, 3, 1).contiguous(),
            "bias": bias,
            "out": out,
            "height": height,
            "width": width,
            "channels": channels,
            "slope": SLOPE,
        },
        {"TANH": tanh, "PIXELS": tile.pixels, "CHANNELS": triton.next_power_of_2(channels)},
        tile.warps,
    )
    return (out,), [call]


def _first(x: Tensor, weight: Tensor, bias: Tensor, more: Tensor | None) -> tuple[Tensor, Tensor]:
    out, statistics = launch.run(first_plan(x, weight, bias, more))
    return out, statistics


def _planes(x: Tensor, weight: Tensor) -> Tensor:
    return launch.run(planes_plan(x, weight))[0]


def _head(x: Tensor, weight: Tensor, bias: Tensor, tanh: bool) -> Tensor:
    return launch.run(head_plan(x, weight, bias, tanh))[0]


def _fake_first(x: Tensor, weight: Tensor, _bias: Tensor, more: Tensor | None) -> tuple[Tensor, Tensor]:
    images = x.shape[0] * (1 if more is None else 2)
    out = launch.new_feature_map((images, weight.shape[0], *x.shape[2:]), weight)
    return out, launch.new_table(statistics_shape(out), x)


first_convolution = launch.register(
    "first_convolution",
    "(Tensor x, Tensor weight, Tensor bias, Tensor? more) -> (Tensor, Tensor)",
    first_reference,
    _first,
    _fake_first,
)
interval_convolution = launch.register(
    "interval_convolution",
    "(Tensor x, Tensor weight) -> Tensor",
    planes_reference,
    _planes,
    lambda x, weight: launch.new_feature_map((x.shape[0], weight.shape[0], *x.shape[2:]), weight),
)
head = launch.register(
    "head",
    "(Tensor x, Tensor weight, Tensor bias, bool tanh) -> Tensor",
    head_reference,
    _head,
    lambda x, weight, *_: torch.empty((x.shape[0], 1, *x.shape[2:]), dtype=weight.dtype, device=x.device),
)
