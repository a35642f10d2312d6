"""SiLU of GroupNorm of a feature map, or of two beside each other, after a bias for each channel."""

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

MOST_TO_FOLD = 2**10  # parts times channels of a program's tile; with twice as many an H200 takes longer


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
        x_statistics, skip_statistics: what `channel_statistics` gives for `x` and `skip`, if it is known already; it
            spares the kernel a pass. The reference takes no notice of them.
        skip: (N, C2, H, W), or None.
        noise_bias: (R, C) float32, C = C1 + C2, R a divisor of N: row r for the r-th part of the batch. Or None.
        weight, bias: of the normalization, (C,).
        groups: into which the C channels are divided.
        eps: added to the variance.
        silu: False leaves the SiLU out.
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
    moments,  # (N, 2, C) float32, out: what to subtract from a value, what to multiply the difference by
    pixels,
    parts,
    pixels_per_part,
    x_channels,
    skip_channels,
    images_per_row,  # N / R
    eps,
    GROUP: tl.constexpr,  # channels of a group
    PARTS: tl.constexpr,
    CHANNELS: tl.constexpr,  # GROUP rounded up
):
    """One program for each group of each image."""
    n = tl.program_id(0).to(tl.int64)
    channels = x_channels + skip_channels
    inner = tl.arange(0, CHANNELS)
    c = tl.program_id(1) * GROUP + inner
    inside = inner < GROUP
    part = tl.arange(0, PARTS)
    mask = (part < parts)[:, None] & inside[None, :]
    count = tl.minimum(pixels - part * pixels_per_part, pixels_per_part).to(tl.float32)

    of_x = mask & (c < x_channels)[None, :]
    place = x_statistics + (n * parts + part[:, None]) * 2 * x_channels + c[None, :]
    mean = tl.load(place, mask=of_x, other=0.0)
    squares = tl.load(place + x_channels, mask=of_x, other=0.0)
    if skip_statistics is not None:
        of_skip = mask & (c >= x_channels)[None, :]
        place = skip_statistics + (n * parts + part[:, None]) * 2 * skip_channels + (c - x_channels)[None, :]
        mean += tl.load(place, mask=of_skip, other=0.0)
        squares += tl.load(place + skip_channels, mask=of_skip, other=0.0)
    added = tl.zeros((CHANNELS,), tl.float32)
    if noise_bias is not None:
        added = tl.load(noise_bias + (n // images_per_row) * channels + c, mask=inside, other=0.0)
    mean += added[None, :]

    size = pixels * 1.0 * GROUP  # a single pixel is a constant, and has no `to`
    # About one of the means, so that what is equal everywhere keeps its value and has no deviation.
    pivot = tl.sum(tl.sum(tl.where((part == 0)[:, None] & (inner == 0)[None, :], mean, 0.0), 1), 0)
    weighted = tl.where(mask, count[:, None] * (mean - pivot), 0.0)
    centre = pivot + tl.sum(tl.sum(weighted, 1), 0) / size
    away = mean - centre
    spread = tl.where(mask, squares + count[:, None] * away * away, 0.0)
    scale = 1.0 / tl.sqrt(tl.sum(tl.sum(spread, 1), 0) / size + eps)
    place = moments + n * 2 * channels + c
    tl.store(place, centre - added, mask=inside)
    tl.store(place + channels, scale * tl.load(weight + c, mask=inside, other=0.0).to(tl.float32), mask=inside)


@triton.jit
def _moments_of(
    statistics,  # (N, parts, 2, own) float32
    noise_bias,  # (R, C) float32, or None
    n,
    c,  # [CHANNELS], whole groups
    inside,
    pixels,
    parts,
    pixels_per_part,
    own,
    first,
    channels,
    images_per_row,
    eps,
    GROUP: tl.constexpr,
    PARTS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """What `moments_kernel` gives but for the weight: what to subtract, and what to multiply by."""
    part = tl.arange(0, PARTS)
    there = (part < parts)[:, None] & inside[None, :]
    count = tl.where(part < parts, tl.minimum(pixels - part * pixels_per_part, pixels_per_part), 0).to(tl.float32)
    place = statistics + (n * parts + part[:, None]) * 2 * own + c[None, :]
    mean = tl.load(place, mask=there, other=0.0)
    squares = tl.load(place + own, mask=there, other=0.0)
    added = tl.zeros((CHANNELS,), tl.float32)
    if noise_bias is not None:
        added = tl.load(noise_bias + (n // images_per_row) * channels + first + c, mask=inside, other=0.0)
    mean += added[None, :]

    size = pixels * 1.0  # a single pixel is a constant, and has no `to`
    pivot = tl.sum(tl.where(part[:, None] == 0, mean, 0.0), 0)
    of_channel = pivot + tl.sum(count[:, None] * (mean - pivot[None, :]), 0) / size
    away = mean - of_channel[None, :]
    spread = tl.sum(squares + count[:, None] * away * away, 0)

    grouped = tl.reshape(of_channel, (CHANNELS // GROUP, GROUP))
    start = tl.sum(tl.where(tl.arange(0, GROUP)[None, :] == 0, grouped, 0.0), 1)
    centre = start + tl.sum(grouped - start[:, None], 1) / GROUP
    apart = grouped - centre[:, None]
    spread = tl.reshape(spread, (CHANNELS // GROUP, GROUP)) + size * apart * apart
    scale = 1.0 / tl.sqrt(tl.sum(spread, 1) / (size * GROUP) + eps)
    shape: tl.constexpr = (CHANNELS // GROUP, GROUP)
    centres = tl.reshape(tl.broadcast_to(centre[:, None], shape), (CHANNELS,))
    return centres - added, tl.reshape(tl.broadcast_to(scale[:, None], shape), (CHANNELS,))


@triton.jit
def _normalize(
    source,  # (N, pixels, own): the channels from `first` on
    statistics,  # (N, parts, 2, own) float32, or None where there are moments
    moments,  # (N, 2, C) float32, or None
    noise_bias,  # (R, C) float32, or None
    weight,  # (C,)
    bias,  # (C,)
    out,  # (N, pixels, C)
    pixels,
    own,
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
    inside = c < own
    mask = (start + row < pixels)[:, None] & inside[None, :]
    if moments is not None:
        centre = tl.load(moments + n * 2 * channels + first + c, mask=inside, other=0.0)
        scale = tl.load(moments + (n * 2 + 1) * channels + first + c, mask=inside, other=0.0)
    else:
        centre, scale = _moments_of(
            statistics,
            noise_bias,
            n,
            c,
            inside,
            pixels,
            parts,
            pixels_per_part,
            own,
            first,
            channels,
            images_per_row,
            eps,
            GROUP,
            PARTS,
            CHANNELS,
        )
        scale *= tl.load(weight + first + c, mask=inside, other=0.0).to(tl.float32)
    added = tl.load(bias + first + c, mask=inside, other=0.0).to(tl.float32)
    value = tl.load(source + (n * pixels + start) * own + row[:, None] * own + c[None, :], mask=mask, other=0.0)
    # The centre is subtracted first: folded into the shift, a large mean would cancel badly.
    value = (value.to(tl.float32) - centre[None, :]) * scale[None, :] + added[None, :]
    if SILU:
        value = value / (1.0 + tl.exp(-value))
    place = out + (n * pixels + start) * channels + first + row[:, None] * channels + c[None, :]
    tl.store(place, value.to(out.dtype.element_ty), mask=mask)


@triton.jit
def normalize_kernel(
    x,  # (N, pixels, C1)
    skip,  # (N, pixels, C2), or None
    x_statistics,  # (N, parts, 2, C1) float32; None where there are moments, as all that they were made of
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
    GROUP: tl.constexpr,  # channels of a group, or None
    PARTS: tl.constexpr,  # or None
    SILU: tl.constexpr,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Program (tile of pixels, image, block of channels)."""
    channels = x_channels + skip_channels
    block = tl.program_id(2)
    of_x = tl.cdiv(x_channels, CHANNELS)
    if skip is None or block < of_x:
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
            block - of_x,
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
    """The result: a launch for each statistics that are not given, one to merge them, and one.

    `fold`: few parts are merged in the last launch.
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
    of_moments = {
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
    # Few parts are merged by every program anew, if it has whole groups: a launch of its own would take longer.
    if not fold or parts * block > MOST_TO_FOLD or block % group or x_channels % group or group & (group - 1):
        moments = launch.new_table((n, 2, channels), x)
        widths = {"CHANNELS": triton.next_power_of_2(group)}
        arguments = {**sizes, **of_moments, "moments": moments}
        launches.append(Launch(moments_kernel, (n, groups), arguments, {**constants, **widths}))
        # Not given what it does not read, so that one binary is for all groups and numbers of parts.
        of_moments, constants = dict.fromkeys(of_moments), dict.fromkeys(constants)
    launches.append(
        Launch(
            normalize_kernel,
            (triton.cdiv(pixels, tile.pixels), n, blocks),
            {"x": x, "skip": skip, **sizes, **of_moments, "moments": moments, "bias": bias, "out": out},
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
