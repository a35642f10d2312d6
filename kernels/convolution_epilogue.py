"""Epilogue of a convolution: bias, ReLU, residual, and the statistics that the next GroupNorm needs.

The statistics are computed while the result is written, so that the GroupNorm reads it once instead of twice. They are
kept per channel and per part of the pixels: a later GroupNorm can merge them into groups of any width, even across the
boundary of two concatenated tensors, and can apply a per-channel bias by shifting the mean.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from kernels import launch
from kernels.launch import Launch, Plan, channels_last, tiles_of

MOST_PARTS = 512
FEWEST_PIXELS = 32


def pixels_of_part(pixels: int) -> int:
    """Consecutive pixels per part of the statistics: a power of two, at least 32, that gives at most 512 parts."""
    return max(FEWEST_PIXELS, triton.next_power_of_2(triton.cdiv(pixels, MOST_PARTS)))


def statistics_shape(x: Tensor) -> tuple[int, int, int, int]:
    """Shape of the statistics of `x`: (N, parts, 2, C)."""
    n, channels, height, width = x.shape
    return n, triton.cdiv(height * width, pixels_of_part(height * width)), 2, channels


def statistics_reference(x: Tensor) -> Tensor:
    """Mean and sum of squared deviations, per channel and part of the pixels.

    Args:
        x: (N, C, H, W).

    Returns:
        (N, parts, 2, C) float32, or float64 if `x` is.
    """
    values = x.flatten(2)
    values = values if x.dtype == torch.float64 else values.float()
    parts = values.split(pixels_of_part(values.shape[2]), dim=2)
    moments = [(part.mean(2), (part - part.mean(2, keepdim=True)).square().sum(2)) for part in parts]
    return torch.stack([torch.stack(pair, 1) for pair in moments], 1)


def reference(h: Tensor, bias: Tensor | None, residual: Tensor | None, relu: bool) -> Tensor:
    """relu(h + bias) + residual, computed in float32.

    Args:
        h: result of a convolution, (N, C, H, W).
        bias: (C,), or None.
        residual: like `h`, or None.
        relu: whether to apply ReLU.
    """
    wide = torch.promote_types(h.dtype, torch.float32)
    result = h.to(wide, copy=True)
    if bias is not None:
        result = result + bias.to(wide)[:, None, None]
    if relu:
        result = F.relu(result)
    if residual is not None:
        result = result + residual.to(wide)
    return channels_last(result.to(h.dtype))


def reference_with_statistics(
    h: Tensor, bias: Tensor | None, residual: Tensor | None, relu: bool
) -> tuple[Tensor, Tensor]:
    """`reference`, and the `statistics_reference` of its rounded result."""
    result = reference(h, bias, residual, relu)
    return result, statistics_reference(result)


@triton.jit
def epilogue_kernel(
    h,  # (N, pixels, C)
    bias,  # (C,), or None
    residual,  # (N, pixels, C), or None
    out,  # (N, pixels, C), or None for statistics alone
    statistics,  # (N, parts, 2, C) float32, or None
    pixels,
    channels,
    pixels_per_part,
    RELU: tl.constexpr,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    part = tl.program_id(0)
    n = tl.program_id(1).to(tl.int64)
    c = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    row = tl.arange(0, PIXELS)
    channel_mask = c < channels
    tile_offsets = row[:, None] * channels + c[None, :]  # [PIXELS, CHANNELS]
    if bias is not None:
        channel_bias = tl.load(bias + c, mask=channel_mask, other=0.0).to(tl.float32)
    first = part * pixels_per_part
    last = tl.minimum(first + pixels_per_part, pixels)

    # Welford's update, independently for every row of the tile: threads exchange nothing before the end.
    count = tl.zeros((PIXELS,), tl.float32)
    mean = tl.zeros((PIXELS, CHANNELS), tl.float32)
    squares = tl.zeros((PIXELS, CHANNELS), tl.float32)
    for start in range(first, last, PIXELS):
        row_mask = start + row < last
        mask = row_mask[:, None] & channel_mask[None, :]
        offset = (n * pixels + start) * channels
        value = tl.load(h + offset + tile_offsets, mask=mask, other=0.0).to(tl.float32)
        if bias is not None:
            value += channel_bias[None, :]
        if RELU:
            value = tl.where(value < 0, 0.0, value)  # keeps NaN, which a maximum may lose
        if residual is not None:
            value += tl.load(residual + offset + tile_offsets, mask=mask, other=0.0).to(tl.float32)
        if out is not None:
            rounded = value.to(out.dtype.element_ty)
            tl.store(out + offset + tile_offsets, rounded, mask=mask)
            value = rounded.to(tl.float32)
        if statistics is not None:
            count += row_mask.to(tl.float32)
            delta = value - mean
            mean += tl.where(row_mask, 1.0 / tl.maximum(count, 1.0), 0.0)[:, None] * delta
            squares += tl.where(row_mask[:, None], delta * (value - mean), 0.0)
    if statistics is not None:
        # Merged relative to the first row's mean, so that a constant channel keeps its exact mean and has no deviation.
        pivot = tl.sum(tl.where(row[:, None] == 0, mean, 0.0), 0)
        total = tl.sum(count, 0)
        merged_mean = pivot + tl.sum((mean - pivot[None, :]) * count[:, None], 0) / total
        deviation = mean - merged_mean[None, :]
        merged_squares = tl.sum(squares + count[:, None] * deviation * deviation, 0)
        pointers = statistics + (n * tl.num_programs(0) + part) * 2 * channels + c
        tl.store(pointers, merged_mean, mask=channel_mask)
        tl.store(pointers + channels, merged_squares, mask=channel_mask)


def plan(h: Tensor, bias: Tensor | None, residual: Tensor | None, relu: bool, write: bool, statistics: bool) -> Plan:
    """Plans a single launch; the results are the output if `write`, and the statistics if `statistics`."""
    h = channels_last(h)
    residual = None if residual is None else channels_last(residual)
    out = launch.new_feature_map(h.shape, h) if write else None
    shape = statistics_shape(h)
    statistics_out = launch.new_table(shape, h) if statistics else None
    tile = tiles_of(h).epilogue
    channels = min(tile.channels, triton.next_power_of_2(h.shape[1]))
    pixels = h.shape[2] * h.shape[3]
    call = Launch(
        epilogue_kernel,
        (shape[1], h.shape[0], triton.cdiv(h.shape[1], channels)),
        {
            "h": h,
            "bias": bias,
            "residual": residual,
            "out": out,
            "statistics": statistics_out,
            "pixels": pixels,
            "channels": h.shape[1],
            "pixels_per_part": pixels_of_part(pixels),
        },
        {"RELU": relu, "PIXELS": tile.pixels, "CHANNELS": channels},
        tile.warps,
    )
    return tuple(result for result in (out, statistics_out) if result is not None), [call]


def _epilogue(h: Tensor, bias: Tensor | None, residual: Tensor | None, relu: bool) -> Tensor:
    return launch.run(plan(h, bias, residual, relu, write=True, statistics=False))[0]


def _epilogue_with_statistics(
    h: Tensor, bias: Tensor | None, residual: Tensor | None, relu: bool
) -> tuple[Tensor, Tensor]:
    out, statistics = launch.run(plan(h, bias, residual, relu, write=True, statistics=True))
    return out, statistics


def _statistics(x: Tensor) -> Tensor:
    return launch.run(plan(x, None, None, False, write=False, statistics=True))[0]


def _fake(h: Tensor, *_: object) -> Tensor:
    return launch.new_feature_map(h.shape, h)


def _fake_statistics(x: Tensor) -> Tensor:
    return launch.new_table(statistics_shape(x), x)


convolution_epilogue = launch.register(
    "convolution_epilogue",
    "(Tensor h, Tensor? bias, Tensor? residual, bool relu) -> Tensor",
    reference,
    _epilogue,
    _fake,
)
convolution_epilogue_with_statistics = launch.register(
    "convolution_epilogue_with_statistics",
    "(Tensor h, Tensor? bias, Tensor? residual, bool relu) -> (Tensor, Tensor)",
    reference_with_statistics,
    _epilogue_with_statistics,
    lambda h, *_: (_fake(h), _fake_statistics(h)),
)
channel_statistics = launch.register(
    "channel_statistics", "(Tensor x) -> Tensor", statistics_reference, _statistics, _fake_statistics
)
