"""GroupNorm with optional SiLU, of one feature map or the concatenation of two, after an optional bias per channel."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from kernels import launch
from kernels.convolution_epilogue import pixels_of_part
from kernels.convolution_epilogue import plan as plan_epilogue
from kernels.launch import Launch, Plan, channels_last, tiles_of

# Parts times channels of a program's tile, up to which merging them again in every program beats a launch of its own;
# with twice as many, an H200 takes longer.
MOST_TO_FOLD = 2**10


def reference(
    x: Tensor,
    x_statistics: Tensor | None,
    skip: Tensor | None,
    skip_statistics: Tensor | None,
    noise_bias: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    eps: float,
    silu: bool,
) -> Tensor:
    """silu(GroupNorm(concatenation of x and skip + noise_bias)), computed in float32.

    Args:
        x: (N, C1, H, W).
        x_statistics, skip_statistics: results of `channel_statistics` for `x` and `skip`, if already known, which
            spares the kernel a pass. The reference ignores them.
        skip: (N, C2, H, W), or None.
        noise_bias: (R, C) float32 with C = C1 + C2 and R a divisor of N, row r for the r-th of R equal parts of the
            batch; or None.
        weight, bias: scale and shift of the normalization, (C,).
        groups: number of groups of channels.
        eps: added to the variance.
        silu: whether to apply SiLU.
    """
    del x_statistics, skip_statistics
    wide = torch.promote_types(x.dtype, torch.float32)
    joined = x if skip is None else torch.cat([x, skip], 1)
    value = joined.to(wide)
    if noise_bias is not None:
        value = value + noise_bias.repeat_interleave(len(x) // len(noise_bias), 0)[:, :, None, None]
    value = F.group_norm(value, groups, weight.to(wide), bias.to(wide), eps)
    return channels_last((F.silu(value) if silu else value).to(x.dtype, copy=True))


@triton.jit
def moments_kernel(
    x_statistics,  # (N, parts, 2, C1) float32
    skip_statistics,  # (N, parts, 2, C2) float32, or None
    noise_bias,  # (R, C) float32, or None
    weight,  # (C,)
    moments,  # (N, 2, C) float32, out: what to subtract from a value, and what to multiply the difference by
    pixels,
    parts,
    pixels_per_part,
    x_channels,
    skip_channels,
    images_per_row,  # N / R
    eps,
    GROUP: tl.constexpr,  # channels per group
    PARTS: tl.constexpr,
    CHANNELS: tl.constexpr,  # GROUP rounded up to a power of two
):
    """Grid: (images, groups)."""
    n = tl.program_id(0).to(tl.int64)
    channels = x_channels + skip_channels
    inner = tl.arange(0, CHANNELS)
    c = tl.program_id(1) * GROUP + inner
    channel_mask = inner < GROUP
    part = tl.arange(0, PARTS)
    mask = (part < parts)[:, None] & channel_mask[None, :]
    count = tl.minimum(pixels - part * pixels_per_part, pixels_per_part).to(tl.float32)

    x_mask = mask & (c < x_channels)[None, :]
    pointers = x_statistics + (n * parts + part[:, None]) * 2 * x_channels + c[None, :]
    mean = tl.load(pointers, mask=x_mask, other=0.0)
    squares = tl.load(pointers + x_channels, mask=x_mask, other=0.0)
    if skip_statistics is not None:
        skip_mask = mask & (c >= x_channels)[None, :]
        pointers = skip_statistics + (n * parts + part[:, None]) * 2 * skip_channels + (c - x_channels)[None, :]
        mean += tl.load(pointers, mask=skip_mask, other=0.0)
        squares += tl.load(pointers + skip_channels, mask=skip_mask, other=0.0)
    shift = tl.zeros((CHANNELS,), tl.float32)
    if noise_bias is not None:
        shift = tl.load(noise_bias + (n // images_per_row) * channels + c, mask=channel_mask, other=0.0)
    mean += shift[None, :]

    size = pixels * 1.0 * GROUP  # not pixels.to(float32): if it is 1, Triton makes it a constant without `to`
    # Merged relative to one of the means, so that a constant group keeps its exact mean and has no deviation.
    pivot = tl.sum(tl.sum(tl.where((part == 0)[:, None] & (inner == 0)[None, :], mean, 0.0), 1), 0)
    weighted = tl.where(mask, count[:, None] * (mean - pivot), 0.0)
    center = pivot + tl.sum(tl.sum(weighted, 1), 0) / size
    deviation = mean - center
    merged_squares = tl.where(mask, squares + count[:, None] * deviation * deviation, 0.0)
    scale = 1.0 / tl.sqrt(tl.sum(tl.sum(merged_squares, 1), 0) / size + eps)
    pointers = moments + n * 2 * channels + c
    tl.store(pointers, center - shift, mask=channel_mask)
    tl.store(
        pointers + channels, scale * tl.load(weight + c, mask=channel_mask, other=0.0).to(tl.float32), mask=channel_mask
    )


@triton.jit
def _moments_of(
    statistics,  # (N, parts, 2, source_channels) float32
    noise_bias,  # (R, C) float32, or None
    n,
    c,  # [CHANNELS], whole groups, within this map
    channel_mask,
    pixels,
    parts,
    pixels_per_part,
    source_channels,
    first,
    channels,
    images_per_row,
    eps,
    GROUP: tl.constexpr,
    PARTS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """The moments of `moments_kernel`, except for the weight: what to subtract, and what to multiply by."""
    part = tl.arange(0, PARTS)
    mask = (part < parts)[:, None] & channel_mask[None, :]
    count = tl.where(part < parts, tl.minimum(pixels - part * pixels_per_part, pixels_per_part), 0).to(tl.float32)
    pointers = statistics + (n * parts + part[:, None]) * 2 * source_channels + c[None, :]
    mean = tl.load(pointers, mask=mask, other=0.0)
    squares = tl.load(pointers + source_channels, mask=mask, other=0.0)
    shift = tl.zeros((CHANNELS,), tl.float32)
    if noise_bias is not None:
        shift = tl.load(noise_bias + (n // images_per_row) * channels + first + c, mask=channel_mask, other=0.0)
    mean += shift[None, :]

    size = pixels * 1.0  # not pixels.to(float32), as in `moments_kernel`
    pivot = tl.sum(tl.where(part[:, None] == 0, mean, 0.0), 0)
    channel_mean = pivot + tl.sum(count[:, None] * (mean - pivot[None, :]), 0) / size
    deviation = mean - channel_mean[None, :]
    merged_squares = tl.sum(squares + count[:, None] * deviation * deviation, 0)

    grouped = tl.reshape(channel_mean, (CHANNELS // GROUP, GROUP))
    start = tl.sum(tl.where(tl.arange(0, GROUP)[None, :] == 0, grouped, 0.0), 1)
    center = start + tl.sum(grouped - start[:, None], 1) / GROUP
    group_deviation = grouped - center[:, None]
    merged_squares = tl.reshape(merged_squares, (CHANNELS // GROUP, GROUP)) + size * group_deviation * group_deviation
    scale = 1.0 / tl.sqrt(tl.sum(merged_squares, 1) / (size * GROUP) + eps)
    shape: tl.constexpr = (CHANNELS // GROUP, GROUP)
    centers = tl.reshape(tl.broadcast_to(center[:, None], shape), (CHANNELS,))
    return centers - shift, tl.reshape(tl.broadcast_to(scale[:, None], shape), (CHANNELS,))


@triton.jit
def _normalize(
    source,  # (N, pixels, source_channels), the result's channels from `first` on
    statistics,  # (N, parts, 2, source_channels) float32, or None with moments
    moments,  # (N, 2, C) float32, or None
    noise_bias,  # (R, C) float32, or None
    weight,  # (C,)
    bias,  # (C,)
    out,  # (N, pixels, C)
    pixels,
    source_channels,
    first,
    channels,
    block,
    parts,
    pixels_per_part,
    images_per_row,
    eps,
    GROUP: tl.constexpr,
    PARTS: tl.constexpr,
    SILU: tl.constexpr,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    n = tl.program_id(1).to(tl.int64)
    row = tl.arange(0, PIXELS)
    start = tl.program_id(0).to(tl.int64) * PIXELS
    c = block * CHANNELS + tl.arange(0, CHANNELS)
    channel_mask = c < source_channels
    mask = (start + row < pixels)[:, None] & channel_mask[None, :]
    if moments is not None:
        center = tl.load(moments + n * 2 * channels + first + c, mask=channel_mask, other=0.0)
        scale = tl.load(moments + (n * 2 + 1) * channels + first + c, mask=channel_mask, other=0.0)
    else:
        center, scale = _moments_of(
            statistics,
            noise_bias,
            n,
            c,
            channel_mask,
            pixels,
            parts,
            pixels_per_part,
            source_channels,
            first,
            channels,
            images_per_row,
            eps,
            GROUP,
            PARTS,
            CHANNELS,
        )
        scale *= tl.load(weight + first + c, mask=channel_mask, other=0.0).to(tl.float32)
    shift = tl.load(bias + first + c, mask=channel_mask, other=0.0).to(tl.float32)
    value = tl.load(
        source + (n * pixels + start) * source_channels + row[:, None] * source_channels + c[None, :],
        mask=mask,
        other=0.0,
    )
    # The center is subtracted before scaling: folding it into the shift would lose precision where the mean is large.
    value = (value.to(tl.float32) - center[None, :]) * scale[None, :] + shift[None, :]
    if SILU:
        value = value / (1.0 + tl.exp(-value))
    pointers = out + (n * pixels + start) * channels + first + row[:, None] * channels + c[None, :]
    tl.store(pointers, value.to(out.dtype.element_ty), mask=mask)


@triton.jit
def normalize_kernel(
    x,  # (N, pixels, C1)
    skip,  # (N, pixels, C2), or None
    x_statistics,  # (N, parts, 2, C1) float32; None with moments, as is everything that they were computed from
    skip_statistics,  # (N, parts, 2, C2) float32, or None
    moments,  # (N, 2, C) float32, or None
    noise_bias,  # (R, C) float32, or None
    weight,  # (C,), or None
    bias,  # (C,)
    out,  # (N, pixels, C)
    pixels,
    parts,  # or None
    pixels_per_part,  # or None
    x_channels,
    skip_channels,
    images_per_row,  # N / R, or None
    eps,  # or None
    GROUP: tl.constexpr,  # channels per group, or None
    PARTS: tl.constexpr,  # or None
    SILU: tl.constexpr,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Grid: (tiles of pixels, images, blocks of channels)."""
    channels = x_channels + skip_channels
    block = tl.program_id(2)
    x_blocks = tl.cdiv(x_channels, CHANNELS)
    if skip is None or block < x_blocks:
        _normalize(
            x,
            x_statistics,
            moments,
            noise_bias,
            weight,
            bias,
            out,
            pixels,
            x_channels,
            0,
            channels,
            block,
            parts,
            pixels_per_part,
            images_per_row,
            eps,
            GROUP,
            PARTS,
            SILU,
            PIXELS,
            CHANNELS,
        )
    else:
        _normalize(
            skip,
            skip_statistics,
            moments,
            noise_bias,
            weight,
            bias,
            out,
            pixels,
            skip_channels,
            x_channels,
            channels,
            block - x_blocks,
            parts,
            pixels_per_part,
            images_per_row,
            eps,
            GROUP,
            PARTS,
            SILU,
            PIXELS,
            CHANNELS,
        )


def plan(
    x: Tensor,
    x_statistics: Tensor | None,
    skip: Tensor | None,
    skip_statistics: Tensor | None,
    noise_bias: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    eps: float,
    silu: bool,
    fold: bool = True,
) -> Plan:
    """Plans a launch for each map without statistics, one that merges them, and one that normalizes.

    With `fold`, statistics of few parts are merged by the last launch.
    """
    x = channels_last(x)
    launches: list[Launch] = []
    if x_statistics is None:
        (x_statistics,), calls = plan_epilogue(x, None, None, False, write=False, statistics=True)
        launches += calls
    if skip is not None:
        skip = channels_last(skip)
        if skip_statistics is None:
            (skip_statistics,), calls = plan_epilogue(skip, None, None, False, write=False, statistics=True)
            launches += calls
    n, x_channels, height, width = x.shape
    skip_channels = 0 if skip is None else skip.shape[1]
    channels, pixels, parts = x_channels + skip_channels, height * width, x_statistics.shape[1]
    out = launch.new_feature_map((n, channels, height, width), x)
    tile = tiles_of(x).normalize
    block = min(tile.channels, triton.next_power_of_2(x_channels))
    blocks = triton.cdiv(x_channels, block) + triton.cdiv(skip_channels, block)
    group = channels // groups
    sizes = {"pixels": pixels, "x_channels": x_channels, "skip_channels": skip_channels}
    moment_arguments = {
        "x_statistics": x_statistics,
        "skip_statistics": skip_statistics,
        "noise_bias": noise_bias,
        "weight": weight,
        "parts": parts,
        "pixels_per_part": pixels_of_part(pixels),
        "images_per_row": 1 if noise_bias is None else n // len(noise_bias),
        "eps": eps,
    }
    constants: dict[str, int | None] = {"GROUP": group, "PARTS": triton.next_power_of_2(parts)}
    moments = None
    # If programs have whole groups, each merges few parts itself: a separate launch would take longer.
    if not fold or parts * block > MOST_TO_FOLD or block % group or x_channels % group or group & (group - 1):
        moments = launch.new_table((n, 2, channels), x)
        widths = {"CHANNELS": triton.next_power_of_2(group)}
        arguments = {**sizes, **moment_arguments, "moments": moments}
        launches.append(Launch(moments_kernel, (n, groups), arguments, {**constants, **widths}))
        # Without arguments that it does not read, one binary serves all group sizes and numbers of parts.
        moment_arguments, constants = dict.fromkeys(moment_arguments), dict.fromkeys(constants)
    launches.append(
        Launch(
            normalize_kernel,
            (triton.cdiv(pixels, tile.pixels), n, blocks),
            {"x": x, "skip": skip, **sizes, **moment_arguments, "moments": moments, "bias": bias, "out": out},
            {**constants, "SILU": silu, "PIXELS": tile.pixels, "CHANNELS": block},
            tile.warps,
        )
    )
    return (out,), launches


def _group_norm_silu(x: Tensor, *others: Any) -> Tensor:
    return launch.run(plan(x, *others))[0]


def _fake(x: Tensor, _x_statistics: Tensor | None, skip: Tensor | None, *_: object) -> Tensor:
    n, channels, height, width = x.shape
    return launch.new_feature_map((n, channels + (0 if skip is None else skip.shape[1]), height, width), x)


group_norm_silu = launch.register(
    "group_norm_silu",
    "(Tensor x, Tensor? x_statistics, Tensor? skip, Tensor? skip_statistics, Tensor? noise_bias, Tensor weight, "
    "Tensor bias, int groups, float eps, bool silu) -> Tensor",
    reference,
    _group_norm_silu,
    _fake,
)
