"""What follows a convolution: bias, ReLU, residual, and the statistics that the next GroupNorm needs.

The statistics are taken while the result is being written, so that the GroupNorm reads it once, not twice. They are
kept for each channel on its own, in parts: a later GroupNorm can then merge them to groups of any width, across the
seam of two tensors too, and add a bias to a channel by moving its mean.
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
    """Neighboring pixels whose statistics are one part: at least 32, and so many that there are at most 512 parts."""
    return max(FEWEST_PIXELS, triton.next_power_of_2(triton.cdiv(pixels, MOST_PARTS)))


def statistics_shape(x: Tensor) -> tuple[int, int, int, int]:
    """(N, parts, 2, C)."""
    n, channels, height, width = x.shape
    return n, triton.cdiv(height * width, pixels_of_part(height * width)), 2, channels


def statistics_reference(x: Tensor) -> Tensor:
    """Mean and sum of squared deviations of each channel, of each part of the pixels.

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
        relu: whether there is one.
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
    """`reference`, and the `statistics_reference` of it as it is rounded."""
    result = reference(h, bias, residual, relu)
    return result, statistics_reference(result)


@triton.jit
def epilogue_kernel(
    h,  # (N, pixels, C)
    bias,  # (C,), or None
    residual,  # (N, pixels, C), or None
    out,  # (N, pixels, C), or None where only statistics are wanted
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
    inside = c < channels
    within = row[:, None] * channels + c[None, :]  # [PIXELS, CHANNELS]
    if bias is not None:
        added = tl.load(bias + c, mask=inside, other=0.0).to(tl.float32)
    first = part * pixels_per_part
    last = tl.minimum(first + pixels_per_part, pixels)

    # Welford's update, for every row of the tile by itself: nothing crosses threads before the end.
    count = tl.zeros((PIXELS,), tl.float32)
    mean = tl.zeros((PIXELS, CHANNELS), tl.float32)
    squares = tl.zeros((PIXELS, CHANNELS), tl.float32)
    for start in range(first, last, PIXELS):
        there = start + row < last
        mask = there[:, None] & inside[None, :]
        offset = (n * pixels + start) * channels
        value = tl.load(h + offset + within, mask=mask, other=0.0).to(tl.float32)
        if bias is not None:
            value += added[None, :]
        if RELU:
            value = tl.where(value < 0, 0.0, value)  # keeps NaN, which a maximum may lose
        if residual is not None:
            value += tl.load(residual + offset + within, mask=mask, other=0.0).to(tl.float32)
        if out is not None:
            rounded = value.to(out.dtype.element_ty)
            tl.store(out + offset + within, rounded, mask=mask)
            value = rounded.to(tl.float32)
        if statistics is not None:
            count += there.to(tl.float32)
            before = value - mean
            mean += tl.where(there, 1.0 / tl.maximum(count, 1.0), 0.0)[:, None] * before
            squares += tl.where(there[:, None], before * (value - mean), 0.0)
    if statistics is not None:
        # About the first row's mean, so that what is equal everywhere keeps its value and has no deviation.
        pivot = tl.sum(tl.where(row[:, None] == 0, mean, 0.0), 0)
        total = tl.sum(count, 0)
        merged = pivot + tl.sum((mean - pivot[None, :]) * count[:, None], 0) / total
        away = mean - merged[None, :]
        spread = tl.sum(squares + count[:, None] * away * away, 0)
        place = statistics + (n * tl.num_programs(0) + part) * 2 * channels + c
        tl.store(place, merged, mask=inside)
        tl.store(place + channels, spread, mask=inside)


def plan(h: Tensor, bias: Tensor | None, residual: Tensor | None, relu: bool, write: bool, statistics: bool) -> Plan:
    """Results are the output, if `write`, and the statistics, if asked for."""
    h = channels_last(h)
    residual = None if residual is None else channels_last(residual)
    out = launch.new_feature_map(h.shape, h) if write else None
    shape = statistics_shape(h)
    kept = launch.new_table(shape, h) if statistics else None
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
            "statistics": kept,
            "pixels": pixels,
            "channels": h.shape[1],
            "pixels_per_part": pixels_of_part(pixels),
        },
        {"RELU": relu, "PIXELS": tile.pixels, "CHANNELS": channels},
        tile.warps,
    )
    return tuple(result for result in (out, kept) if result is not None), [call]


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
