"""Bilinear upsampling by two with aligned corners, with optional ReLU and addition of another feature map."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from kernels import launch
from kernels.launch import Launch, Plan, channels_last, tiles_of


def reference(x: Tensor, addend: Tensor | None, relu: bool) -> Tensor:
    """relu(upsample(x)) + addend, computed in float32.

    Args:
        x: (N, C, H, W).
        addend: (N, C, 2H, 2W), or None.
        relu: whether to apply ReLU.

    Returns:
        (N, C, 2H, 2W) of the dtype of `x`.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    result = F.interpolate(x.to(wide), scale_factor=2.0, mode="bilinear", align_corners=True)
    if relu:
        result = F.relu(result)
    if addend is not None:
        result = result + addend.to(wide)
    return channels_last(result.to(x.dtype))


@triton.jit
def upsample_kernel(
    x,  # (N, H x W, C)
    addend,  # (N, 2H x 2W, C), or None
    out,  # (N, 2H x 2W, C)
    height,
    width,
    channels,
    RELU: tl.constexpr,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    n = tl.program_id(1).to(tl.int64)
    pixels = 4 * height * width
    p = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    c = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    mask = (p < pixels)[:, None] & (c < channels)[None, :]

    # Output row i lies at i (H - 1) / (2H - 1). In integers, quotient and remainder are exact.
    at_row, at_column = (p // (2 * width)) * (height - 1), (p % (2 * width)) * (width - 1)
    top, left = at_row // (2 * height - 1), at_column // (2 * width - 1)
    down = (at_row - top * (2 * height - 1)).to(tl.float32) / (2 * height - 1)
    right = (at_column - left * (2 * width - 1)).to(tl.float32) / (2 * width - 1)
    below, beside = tl.minimum(top + 1, height - 1), tl.minimum(left + 1, width - 1)

    x += n * height * width * channels
    # Interpolates between two rows in both columns, then between the columns.
    here = tl.load(x + (top * width + left).to(tl.int64)[:, None] * channels + c[None, :], mask=mask, other=0.0)
    under = tl.load(x + (below * width + left).to(tl.int64)[:, None] * channels + c[None, :], mask=mask, other=0.0)
    value = here.to(tl.float32) * (1.0 - down)[:, None] + under.to(tl.float32) * down[:, None]
    here = tl.load(x + (top * width + beside).to(tl.int64)[:, None] * channels + c[None, :], mask=mask, other=0.0)
    under = tl.load(x + (below * width + beside).to(tl.int64)[:, None] * channels + c[None, :], mask=mask, other=0.0)
    other = here.to(tl.float32) * (1.0 - down)[:, None] + under.to(tl.float32) * down[:, None]
    value = value * (1.0 - right)[:, None] + other * right[:, None]
    if RELU:
        value = tl.where(value < 0, 0.0, value)  # keeps NaN, which a maximum may lose
    offsets = n * pixels * channels + p.to(tl.int64)[:, None] * channels + c[None, :]
    if addend is not None:
        value += tl.load(addend + offsets, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + offsets, value.to(out.dtype.element_ty), mask=mask)


def plan(x: Tensor, addend: Tensor | None, relu: bool) -> Plan:
    """Plans a single launch."""
    x = channels_last(x)
    addend = None if addend is None else channels_last(addend)
    n, channels, height, width = x.shape
    out = launch.new_feature_map((n, channels, 2 * height, 2 * width), x)
    tile = tiles_of(x).upsample
    block = min(tile.channels, triton.next_power_of_2(channels))
    call = Launch(
        upsample_kernel,
        (triton.cdiv(4 * height * width, tile.pixels), n, triton.cdiv(channels, block)),
        {"x": x, "addend": addend, "out": out, "height": height, "width": width, "channels": channels},
        {"RELU": relu, "PIXELS": tile.pixels, "CHANNELS": block},
        tile.warps,
    )
    return (out,), [call]


def _upsample_add(x: Tensor, addend: Tensor | None, relu: bool) -> Tensor:
    return launch.run(plan(x, addend, relu))[0]


def _fake(x: Tensor, *_: object) -> Tensor:
    n, channels, height, width = x.shape
    return launch.new_feature_map((n, channels, 2 * height, 2 * width), x)


upsample_add = launch.register(
    "upsample_add", "(Tensor x, Tensor? addend, bool relu) -> Tensor", reference, _upsample_add, _fake
)
