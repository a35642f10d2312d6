"""Adaptive attention fusion of two feature maps: channel, spatial and pixel attention on their sum, and the blend.

A first pass over x and y pools their sum for the channel and the spatial attention; two small kernels turn the pooled
values into one number per channel and one per pixel; a second pass over x and y does the rest. By a `GateRule`, one
launch does the work of both small kernels, or the second pass does it for itself.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from kernels import launch
from kernels.convolution_epilogue import FEWEST_PIXELS, pixels_of_part
from kernels.launch import Launch, Plan, channels_last, tiles_of
from kernels.tiles import GateRule, Tile

LOADED_AT_A_TIME = 2**14  # partial sums that `channel_kernel` loads per iteration
FEW_AT_A_TIME = 2**12  # and the programs of fewer warps that merge them beside others
SMALLEST = 4  # height and width that reflection at the border of the 7x7 convolution needs


def reference(
    x: Tensor,
    y: Tensor,
    reduce_weight: Tensor,
    reduce_bias: Tensor,
    expand_weight: Tensor,
    expand_bias: Tensor,
    spatial_weight: Tensor,
    spatial_bias: Tensor,
    pixel_weight: Tensor,
    pixel_bias: Tensor,
) -> Tensor:
    """w x + (1 - w) y + s with s = x + y and w = s g, computed in float32.

    g = sigmoid(grouped 3x3 convolution of s and q), where q = expand(relu(reduce(mean of s over pixels))) + 7x7
    convolution of the mean and the maximum of s over channels. Both convolutions reflect at the borders.

    Args:
        x, y: (N, C, H, W); H and W at least 4.
        reduce_weight, reduce_bias: (R, C) and (R,).
        expand_weight, expand_bias: (C, R) and (C,).
        spatial_weight, spatial_bias: (1, 2, 7, 7), on the mean and the maximum, and (1,).
        pixel_weight, pixel_bias: (2, 9, C), the taps of every channel for s and for q, and (C,).
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    x_wide, y_wide = x.to(wide), y.to(wide)
    s = x_wide + y_wide
    hidden = F.relu(F.linear(s.mean((2, 3)), reduce_weight.to(wide), reduce_bias.to(wide)))
    by_channel = F.linear(hidden, expand_weight.to(wide), expand_bias.to(wide))[:, :, None, None]
    seen = F.pad(torch.stack([s.mean(1), s.amax(1)], 1), (3, 3, 3, 3), mode="reflect")
    q = by_channel + F.conv2d(seen, spatial_weight.to(wide), spatial_bias.to(wide))
    both = F.pad(torch.stack([s, q], 2).flatten(1, 2), (1, 1, 1, 1), mode="reflect")
    kernel = pixel_weight.to(wide).permute(2, 0, 1).unflatten(2, (3, 3))
    gate = torch.sigmoid(F.conv2d(both, kernel, pixel_bias.to(wide), groups=s.shape[1]))
    w = s * gate
    return channels_last((w * x_wide + (1 - w) * y_wide + s).to(x.dtype))


@triton.jit
def pool_kernel(
    x,  # (N, pixels, C)
    y,  # (N, pixels, C)
    seen,  # (N, 2, pixels) float32, out: mean and maximum over channels
    sums,  # (N, parts, C) float32, out: sums over the pixels of a part
    pixels,
    channels,
    pixels_per_part,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,  # C rounded up to a power of two
):
    part = tl.program_id(0)
    n = tl.program_id(1).to(tl.int64)
    c = tl.arange(0, CHANNELS)
    row = tl.arange(0, PIXELS)
    channel_mask = (c < channels)[None, :]
    tile_offsets = row[:, None] * channels + c[None, :]
    first = part * pixels_per_part
    last = tl.minimum(first + pixels_per_part, pixels)
    total = tl.zeros((PIXELS, CHANNELS), tl.float32)
    for start in range(first, last, PIXELS):
        pixel_mask = start + row < last
        mask = pixel_mask[:, None] & channel_mask
        offset = (n * pixels + start) * channels
        s = tl.load(x + offset + tile_offsets, mask=mask, other=0.0).to(tl.float32)
        s += tl.load(y + offset + tile_offsets, mask=mask, other=0.0).to(tl.float32)
        total += s
        pointers = seen + 2 * n * pixels + start + row
        tl.store(pointers, tl.sum(s, 1) / channels, mask=pixel_mask)
        tl.store(pointers + pixels, tl.max(tl.where(channel_mask, s, float("-inf")), 1), mask=pixel_mask)
    tl.store(sums + (n * tl.num_programs(0) + part) * channels + c, tl.sum(total, 0), mask=c < channels)


@triton.jit
def _hidden(
    sums,  # (N, parts, C) float32
    reduce_weight,  # (R, C)
    reduce_bias,  # (R,)
    n,
    pixels,
    parts,
    channels,
    reduced,
    PARTS: tl.constexpr,
    CHANNELS: tl.constexpr,
    REDUCED: tl.constexpr,
):
    """The hidden layer of the channel attention, [REDUCED]."""
    c, r, part = tl.arange(0, CHANNELS), tl.arange(0, REDUCED), tl.arange(0, PARTS)
    channel_mask, reduced_mask = c < channels, r < reduced
    total = tl.zeros((CHANNELS,), tl.float32)
    for start in range(0, parts, PARTS):
        mask = (start + part < parts)[:, None] & channel_mask[None, :]
        total += tl.sum(tl.load(sums + (n * parts + start + part[:, None]) * channels + c[None, :], mask, other=0.0), 0)
    mean = total / pixels
    mask = reduced_mask[:, None] & channel_mask[None, :]
    weight = tl.load(reduce_weight + r[:, None] * channels + c[None, :], mask, other=0.0).to(tl.float32)
    hidden = tl.sum(weight * mean[None, :], 1) + tl.load(reduce_bias + r, reduced_mask, other=0.0).to(tl.float32)
    return tl.where(hidden < 0, 0.0, hidden)


@triton.jit
def _expanded(hidden, expand_weight, expand_bias, c, channels, reduced, REDUCED: tl.constexpr):
    """The channel attention of the channels `c`, from the hidden layer."""
    r = tl.arange(0, REDUCED)
    mask = (r < reduced)[:, None] & (c < channels)[None, :]
    weight = tl.load(expand_weight + c[None, :] * reduced + r[:, None], mask, other=0.0).to(tl.float32)
    return tl.sum(weight * hidden[:, None], 0) + tl.load(expand_bias + c, c < channels, other=0.0).to(tl.float32)


@triton.jit
def channel_kernel(
    sums,  # (N, parts, C) float32
    reduce_weight,  # (R, C)
    reduce_bias,  # (R,)
    expand_weight,  # (C, R)
    expand_bias,  # (C,)
    by_channel,  # (N, C) float32, out
    pixels,
    parts,
    channels,
    reduced,
    PARTS: tl.constexpr,
    CHANNELS: tl.constexpr,
    REDUCED: tl.constexpr,
):
    """Grid: (images,). Computes the channel attention."""
    n = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, CHANNELS)
    hidden = _hidden(sums, reduce_weight, reduce_bias, n, pixels, parts, channels, reduced, PARTS, CHANNELS, REDUCED)
    result = _expanded(hidden, expand_weight, expand_bias, c, channels, reduced, REDUCED)
    tl.store(by_channel + n * channels + c, result, mask=c < channels)


@triton.jit
def _reflected(at, size):
    """Reflects `at` from [-size + 1, 2 size - 2] into [0, size - 1] without repeating the border."""
    at = tl.abs(at)
    return size - 1 - tl.abs(size - 1 - at)


@triton.jit
def spatial_kernel(
    seen,  # (N, 2, pixels) float32
    spatial_weight,  # (2, 7, 7)
    spatial_bias,  # (1,)
    by_pixel,  # (N, pixels) float32, out
    height,
    width,
    PIXELS: tl.constexpr,
):
    n = tl.program_id(1).to(tl.int64)
    pixels = height * width
    p = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    mask = p < pixels
    h, w = p // width, p % width
    result = tl.zeros((PIXELS,), tl.float32) + tl.load(spatial_bias).to(tl.float32)
    seen += 2 * n * pixels
    for tap in range(49):  # not unrolled, which would take 10% longer on an H200
        at = _reflected(h + tap // 7 - 3, height) * width + _reflected(w + tap % 7 - 3, width)
        result += tl.load(seen + at, mask, other=0.0) * tl.load(spatial_weight + tap).to(tl.float32)
        result += tl.load(seen + pixels + at, mask, other=0.0) * tl.load(spatial_weight + 49 + tap).to(tl.float32)
    tl.store(by_pixel + n * pixels + p, result, mask=mask)


@triton.jit
def _spatial(seen, spatial_weight, spatial_bias, row, column, mask, height, width, PIXELS: tl.constexpr):
    """The spatial attention of pixels of one image, [PIXELS], from `seen`, (2, pixels).

    Unlike `spatial_kernel`, it loads a row of taps at a time, so that it waits seven times and not 49 times.
    """
    tap = tl.arange(0, 8)
    tap_mask = tap < 7
    mask = mask[:, None] & tap_mask[None, :]
    at_column = _reflected(column[:, None] + tap[None, :] - 3, width)
    total = tl.zeros((PIXELS, 8), tl.float32)
    for tap_row in tl.static_range(7):
        at = _reflected(row + tap_row - 3, height)[:, None] * width + at_column
        weight = tl.load(spatial_weight + 7 * tap_row + tap, tap_mask, other=0.0).to(tl.float32)
        total += tl.load(seen + at, mask, other=0.0) * weight[None, :]
        weight = tl.load(spatial_weight + 49 + 7 * tap_row + tap, tap_mask, other=0.0).to(tl.float32)
        total += tl.load(seen + height * width + at, mask, other=0.0) * weight[None, :]
    return tl.sum(total, 1) + tl.load(spatial_bias).to(tl.float32)


@triton.jit
def attentions_kernel(
    seen,  # (N, 2, pixels) float32
    sums,  # (N, parts, C) float32
    reduce_weight,  # (R, C)
    reduce_bias,  # (R,)
    expand_weight,  # (C, R)
    expand_bias,  # (C,)
    spatial_weight,  # (2, 7, 7)
    spatial_bias,  # (1,)
    by_channel,  # (N, C) float32, out
    by_pixel,  # (N, pixels) float32, out
    height,
    width,
    parts,
    channels,
    reduced,
    PIXELS: tl.constexpr,
    PARTS: tl.constexpr,
    CHANNELS: tl.constexpr,
    REDUCED: tl.constexpr,
):
    """Grid: (1 + tiles of pixels, images). The first program computes the channel attention, the others the spatial."""
    n = tl.program_id(1).to(tl.int64)
    pixels = height * width
    if tl.program_id(0) == 0:
        c = tl.arange(0, CHANNELS)
        hidden = _hidden(
            sums, reduce_weight, reduce_bias, n, pixels, parts, channels, reduced, PARTS, CHANNELS, REDUCED
        )
        for_channels = _expanded(hidden, expand_weight, expand_bias, c, channels, reduced, REDUCED)
        tl.store(by_channel + n * channels + c, for_channels, mask=c < channels)
    else:
        p = (tl.program_id(0) - 1) * PIXELS + tl.arange(0, PIXELS)
        mask = p < pixels
        seen += 2 * n * pixels
        for_pixels = _spatial(seen, spatial_weight, spatial_bias, p // width, p % width, mask, height, width, PIXELS)
        tl.store(by_pixel + n * pixels + p, for_pixels, mask=mask)


@triton.jit
def _blend(x, y, out, total, p, c, mask, channels):
    """Stores the result for the pixels `p` and the channels `c` of one image, where `total` is what the gate sees."""
    offsets = p.to(tl.int64)[:, None] * channels + c[None, :]
    x_here = tl.load(x + offsets, mask, other=0.0).to(tl.float32)
    y_here = tl.load(y + offsets, mask, other=0.0).to(tl.float32)
    s = x_here + y_here
    weight = s / (1.0 + tl.exp(-total))
    result = weight * x_here + (1.0 - weight) * y_here + s
    tl.store(out + offsets, result.to(out.dtype.element_ty), mask=mask)


@triton.jit
def gate_kernel(
    x,  # (N, H x W, C)
    y,  # (N, H x W, C)
    by_channel,  # (N, C) float32
    by_pixel,  # (N, H x W) float32
    pixel_weight,  # (2, 9, C): for s, then for q
    pixel_bias,  # (C,)
    out,  # (N, H x W, C)
    height,
    width,
    channels,
    SIDE: tl.constexpr,  # of a square tile of pixels
    CHANNELS: tl.constexpr,
):
    n = tl.program_id(1).to(tl.int64)
    tiles_per_row = tl.cdiv(width, SIDE)
    p = tl.arange(0, SIDE * SIDE)
    h = (tl.program_id(0) // tiles_per_row) * SIDE + p // SIDE
    w = (tl.program_id(0) % tiles_per_row) * SIDE + p % SIDE
    pixel_mask = (h < height) & (w < width)
    c = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    channel_mask = c < channels
    mask = pixel_mask[:, None] & channel_mask[None, :]
    first = n * height * width
    x += first * channels
    y += first * channels
    channel = tl.load(by_channel + n * channels + c, channel_mask, other=0.0)
    total = tl.zeros((SIDE * SIDE, CHANNELS), tl.float32)
    total += tl.load(pixel_bias + c, channel_mask, other=0.0).to(tl.float32)[None, :]
    for tap in tl.static_range(9):
        at = _reflected(h + tap // 3 - 1, height) * width + _reflected(w + tap % 3 - 1, width)
        offsets = at.to(tl.int64)[:, None] * channels + c[None, :]
        s = tl.load(x + offsets, mask, other=0.0).to(tl.float32) + tl.load(y + offsets, mask, other=0.0).to(tl.float32)
        q = tl.load(by_pixel + first + at, pixel_mask, other=0.0)[:, None] + channel[None, :]
        s_weight = tl.load(pixel_weight + tap * channels + c, channel_mask, other=0.0).to(tl.float32)
        q_weight = tl.load(pixel_weight + (9 + tap) * channels + c, channel_mask, other=0.0).to(tl.float32)
        total += s * s_weight[None, :] + q * q_weight[None, :]
    _blend(x, y, out + first * channels, total, h * width + w, c, mask, channels)


@triton.jit
def folded_gate_kernel(
    x,  # (N, H x W, C)
    y,  # (N, H x W, C)
    seen,  # (N, 2, H x W) float32
    sums,  # (N, parts, C) float32
    reduce_weight,  # (R, C)
    reduce_bias,  # (R,)
    expand_weight,  # (C, R)
    expand_bias,  # (C,)
    spatial_weight,  # (2, 7, 7)
    spatial_bias,  # (1,)
    pixel_weight,  # (2, 9, C): for s, then for q
    pixel_bias,  # (C,)
    out,  # (N, H x W, C)
    height,
    width,
    parts,
    channels,
    reduced,
    SIDE: tl.constexpr,  # of a square tile of pixels
    AROUND: tl.constexpr,  # pixels of the tile with its neighbors, (SIDE + 2)^2, rounded up to a power of two
    CHANNELS: tl.constexpr,
    PARTS: tl.constexpr,
    ALL: tl.constexpr,  # C rounded up to a power of two
    REDUCED: tl.constexpr,
):
    """`gate_kernel` that computes the channel attention, and the spatial one of its tile and the pixels around it."""
    n = tl.program_id(1).to(tl.int64)
    tiles_per_row = tl.cdiv(width, SIDE)
    top, left = (tl.program_id(0) // tiles_per_row) * SIDE, (tl.program_id(0) % tiles_per_row) * SIDE
    pixels = height * width
    # Around the border of the map are the reflected neighbors; what is farther outside has no pixel in this tile.
    around = tl.arange(0, AROUND)
    row, column = top - 1 + around // (SIDE + 2), left - 1 + around % (SIDE + 2)
    mask = (row <= height) & (column <= width) & (around < (SIDE + 2) * (SIDE + 2))
    row, column = _reflected(row, height), _reflected(column, width)
    by_pixel = _spatial(seen + 2 * n * pixels, spatial_weight, spatial_bias, row, column, mask, height, width, AROUND)
    hidden = _hidden(sums, reduce_weight, reduce_bias, n, pixels, parts, channels, reduced, PARTS, ALL, REDUCED)

    p = tl.arange(0, SIDE * SIDE)
    h, w = top + p // SIDE, left + p % SIDE
    pixel_mask = (h < height) & (w < width)
    c = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    channel_mask = c < channels
    mask = pixel_mask[:, None] & channel_mask[None, :]
    channel = _expanded(hidden, expand_weight, expand_bias, c, channels, reduced, REDUCED)
    x += n * pixels * channels
    y += n * pixels * channels
    total = tl.zeros((SIDE * SIDE, CHANNELS), tl.float32)
    total += tl.load(pixel_bias + c, channel_mask, other=0.0).to(tl.float32)[None, :]
    for tap in tl.static_range(9):
        at = _reflected(h + tap // 3 - 1, height) * width + _reflected(w + tap % 3 - 1, width)
        offsets = at.to(tl.int64)[:, None] * channels + c[None, :]
        s = tl.load(x + offsets, mask, other=0.0).to(tl.float32) + tl.load(y + offsets, mask, other=0.0).to(tl.float32)
        neighbor = (p // SIDE + tap // 3) * (SIDE + 2) + p % SIDE + tap % 3
        q = tl.gather(by_pixel, neighbor, 0)[:, None] + channel[None, :]
        s_weight = tl.load(pixel_weight + tap * channels + c, channel_mask, other=0.0).to(tl.float32)
        q_weight = tl.load(pixel_weight + (9 + tap) * channels + c, channel_mask, other=0.0).to(tl.float32)
        total += s * s_weight[None, :] + q * q_weight[None, :]
    _blend(x, y, out + n * pixels * channels, total, h * width + w, c, mask, channels)


def _pool(x: Tensor, y: Tensor, seen: Tensor, sums: Tensor, pixels_per_part: int, tile: Tile) -> Launch:
    """The first pass."""
    n, channels, height, width = x.shape
    padded_channels = triton.next_power_of_2(channels)
    return Launch(
        pool_kernel,
        (sums.shape[1], n),
        {
            "x": x,
            "y": y,
            "seen": seen,
            "sums": sums,
            "pixels": height * width,
            "channels": channels,
            "pixels_per_part": pixels_per_part,
        },
        {"PIXELS": max(1, tile.pixels * tile.channels // padded_channels), "CHANNELS": padded_channels},
        tile.warps,
    )


def _check_size(x: Tensor) -> None:
    height, width = x.shape[2:]
    if min(height, width) < SMALLEST:
        raise ValueError(f"fusion_gate of {height}x{width} pixels: the reflected borders need at least {SMALLEST}")


def _last_grid(x: Tensor, tile: Tile, block: int) -> tuple[int, int, int]:
    """Grid of the last pass: tiles of pixels, images, blocks of channels."""
    n, channels, height, width = x.shape
    side = _side(tile)
    return triton.cdiv(height, side) * triton.cdiv(width, side), n, triton.cdiv(channels, block)


def _side(tile: Tile) -> int:
    return int(tile.pixels**0.5)


def plan_in_four(
    x: Tensor,
    y: Tensor,
    reduce_weight: Tensor,
    reduce_bias: Tensor,
    expand_weight: Tensor,
    expand_bias: Tensor,
    spatial_weight: Tensor,
    spatial_bias: Tensor,
    pixel_weight: Tensor,
    pixel_bias: Tensor,
) -> Plan:
    """Plans four launches.

    Raises:
        ValueError: the maps are smaller than 4x4.
    """
    x, y = channels_last(x), channels_last(y)
    n, channels, height, width = x.shape
    _check_size(x)
    pixels, tiles = height * width, tiles_of(x)
    per_part = pixels_of_part(pixels)
    parts = triton.cdiv(pixels, per_part)
    padded_channels = triton.next_power_of_2(channels)
    seen, sums = launch.new_table((n, 2, pixels), x), launch.new_table((n, parts, channels), x)
    by_channel, by_pixel = launch.new_table((n, channels), x), launch.new_table((n, pixels), x)
    out = launch.new_feature_map(x.shape, x)
    block = min(tiles.gate.channels, padded_channels)
    pool = _pool(x, y, seen, sums, per_part, tiles.pool)
    channel = Launch(
        channel_kernel,
        (n,),
        {
            "sums": sums,
            "reduce_weight": reduce_weight.contiguous(),
            "reduce_bias": reduce_bias,
            "expand_weight": expand_weight.contiguous(),
            "expand_bias": expand_bias,
            "by_channel": by_channel,
            "pixels": pixels,
            "parts": parts,
            "channels": channels,
            "reduced": len(reduce_bias),
        },
        # A single program per image hides latency only with many loads in flight.
        {
            "PARTS": max(1, LOADED_AT_A_TIME // padded_channels),
            "CHANNELS": padded_channels,
            "REDUCED": triton.next_power_of_2(len(reduce_bias)),
        },
        16,
    )
    spatial = Launch(
        spatial_kernel,
        (triton.cdiv(pixels, tiles.spatial.pixels), n),
        {
            "seen": seen,
            "spatial_weight": spatial_weight.contiguous(),
            "spatial_bias": spatial_bias,
            "by_pixel": by_pixel,
            "height": height,
            "width": width,
        },
        {"PIXELS": tiles.spatial.pixels},
        tiles.spatial.warps,
    )
    gate = Launch(
        gate_kernel,
        _last_grid(x, tiles.gate, block),
        {
            "x": x,
            "y": y,
            "by_channel": by_channel,
            "by_pixel": by_pixel,
            "pixel_weight": pixel_weight.contiguous(),
            "pixel_bias": pixel_bias,
            "out": out,
            "height": height,
            "width": width,
            "channels": channels,
        },
        {"SIDE": _side(tiles.gate), "CHANNELS": block},
        tiles.gate.warps,
    )
    return (out,), [pool, channel, spatial, gate]


def plan_by_rule(rule: GateRule, x: Tensor, y: Tensor, *parameters: Tensor) -> Plan:
    """Plans two or three launches, as `rule` has it, for the arguments of `reference`.

    Raises:
        ValueError: the maps are smaller than 4x4.
    """
    x, y = channels_last(x), channels_last(y)
    _check_size(x)
    n, channels, height, width = x.shape
    pixels = height * width
    per_part = max(FEWEST_PIXELS, triton.cdiv(pixels, rule.parts))
    parts = triton.cdiv(pixels, per_part)
    seen, sums = launch.new_table((n, 2, pixels), x), launch.new_table((n, parts, channels), x)
    out = launch.new_feature_map(x.shape, x)
    names = "reduce_weight", "reduce_bias", "expand_weight", "expand_bias", "spatial_weight", "spatial_bias"
    given = {name: value.contiguous() for name, value in zip(names, parameters, strict=False)}
    pixel = {"pixel_weight": parameters[6].contiguous(), "pixel_bias": parameters[7], "out": out}
    sizes = {"height": height, "width": width, "channels": channels}
    merged = {"seen": seen, "sums": sums, **given, **sizes, "parts": parts, "reduced": len(given["reduce_bias"])}
    padded_channels = triton.next_power_of_2(channels)
    reduced = triton.next_power_of_2(len(given["reduce_bias"]))
    at_a_time = min(triton.next_power_of_2(parts), max(1, FEW_AT_A_TIME // padded_channels))
    block = min(rule.gate.channels, padded_channels)
    grid, side = _last_grid(x, rule.gate, block), _side(rule.gate)
    pool = _pool(x, y, seen, sums, per_part, rule.pool)
    if rule.folded:
        constants = {
            "SIDE": side,
            "AROUND": triton.next_power_of_2((side + 2) ** 2),
            "CHANNELS": block,
            "PARTS": at_a_time,
            "ALL": padded_channels,
            "REDUCED": reduced,
        }
        return (out,), [
            pool,
            Launch(folded_gate_kernel, grid, {"x": x, "y": y, **merged, **pixel}, constants, rule.gate.warps),
        ]
    by_channel, by_pixel = launch.new_table((n, channels), x), launch.new_table((n, pixels), x)
    tile = tiles_of(x).spatial
    attention = Launch(
        attentions_kernel,
        (1 + triton.cdiv(pixels, tile.pixels), n),
        {**merged, "by_channel": by_channel, "by_pixel": by_pixel},
        {"PIXELS": tile.pixels, "PARTS": at_a_time, "CHANNELS": padded_channels, "REDUCED": reduced},
        tile.warps,
    )
    last = Launch(
        gate_kernel,
        grid,
        {"x": x, "y": y, "by_channel": by_channel, "by_pixel": by_pixel, **pixel, **sizes},
        {"SIDE": side, "CHANNELS": block},
        rule.gate.warps,
    )
    return (out,), [pool, attention, last]


def plan(x: Tensor, *others: Tensor) -> Plan:
    """Plans two to four launches, as the rules for the GPU have it, for the arguments of `reference`.

    Raises:
        ValueError: the maps are smaller than 4x4.
    """
    rule = tiles_of(x).gate_rule(x.shape[1], x.shape[2] * x.shape[3])
    return plan_in_four(x, *others) if rule is None else plan_by_rule(rule, x, *others)


def _fusion_gate(x: Tensor, *others: Tensor) -> Tensor:
    return launch.run(plan(x, *others))[0]


def _fake(x: Tensor, *_: Tensor) -> Tensor:
    return launch.new_feature_map(x.shape, x)


fusion_gate = launch.register(
    "fusion_gate",
    "(Tensor x, Tensor y, Tensor reduce_weight, Tensor reduce_bias, Tensor expand_weight, Tensor expand_bias, "
    "Tensor spatial_weight, Tensor spatial_bias, Tensor pixel_weight, Tensor pixel_bias) -> Tensor",
    reference,
    _fusion_gate,
    _fake,
)
