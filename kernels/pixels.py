"""What surrounds the network in fusions of 8-bit images, in one launch before it and one after.

The same pixels as `dmfnet_fast.engines.pixels` with PyTorch's operators, bit for bit: all sums are of integers that
float32 holds exactly, and a product that is added to is rounded first, so multiply-adds must not be fused.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import launch
from kernels.launch import Launch, Plan, tiles_of


@triton.jit
def _gray(image, p, mask, COLOR: tl.constexpr):
    """Pillow's luminance of the pixels `p`, as float32: its fixed-point weights add up to 2^16."""
    if COLOR:
        red = tl.load(image + 3 * p, mask=mask, other=0).to(tl.int32)
        green = tl.load(image + 3 * p + 1, mask=mask, other=0).to(tl.int32)
        blue = tl.load(image + 3 * p + 2, mask=mask, other=0).to(tl.int32)
        gray = (19595 * red + 38470 * green + 7471 * blue + 32768) >> 16
    else:
        gray = tl.load(image + p, mask=mask, other=0)
    return gray.to(tl.float32)


@triton.jit
def _color(image, p, mask):
    red = tl.load(image + 3 * p, mask=mask, other=0).to(tl.float32)
    green = tl.load(image + 3 * p + 1, mask=mask, other=0).to(tl.float32)
    blue = tl.load(image + 3 * p + 2, mask=mask, other=0).to(tl.float32)
    luminance = 299.0 * red + 587.0 * green + 114.0 * blue  # in thousandths
    brightest = tl.maximum(tl.maximum(red, green), blue)
    darkest = tl.minimum(tl.minimum(red, green), blue)
    return red, green, blue, luminance, brightest, darkest


@triton.jit
def _rounded(x):
    """To the nearest integer, halves to even, for |x| < 2^22: above 2^23, float32 has no fractions."""
    return (x + 12582912.0) - 12582912.0


@triton.jit
def pixels_to_inputs_kernel(
    a,  # (N, pixels) or (N, pixels, 3) uint8
    b,  # (N, pixels) or (N, pixels, 3) uint8
    levels,  # (256,) float32, the network's value of each gray level
    a_out,  # (N, pixels) float32
    b_out,  # (N, pixels) float32
    interval,  # (N, 2, pixels) float32, in the network's units
    limits,  # (N, 2, pixels) float32, in gray levels
    height,
    width,
    thousandth,  # of the fraction of chroma to keep
    COLOR_A: tl.constexpr,
    COLOR_B: tl.constexpr,
    INVENTION: tl.constexpr,
    PIXELS: tl.constexpr,
):
    """Grid: (blocks of pixels, images)."""
    n = tl.program_id(1).to(tl.int64)
    pixels = height * width
    p = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    mask = p < pixels
    row, column = p // width, p % width
    first = n * pixels
    gray_a, gray_b = _gray(a, first + p, mask, COLOR_A), _gray(b, first + p, mask, COLOR_B)
    tl.store(a_out + first + p, tl.load(levels + gray_a.to(tl.int32)), mask=mask)
    tl.store(b_out + first + p, tl.load(levels + gray_b.to(tl.int32)), mask=mask)

    lowest, highest = tl.minimum(gray_a, gray_b), tl.maximum(gray_a, gray_b)
    if INVENTION:
        lowest, highest = tl.zeros((PIXELS,), tl.float32), tl.full((PIXELS,), 255.0, tl.float32)
    else:
        for neighbor in tl.static_range(9):
            # At the border, a pixel of the neighborhood stands in for one that is not there.
            y = tl.minimum(tl.maximum(row + neighbor // 3 - 1, 0), height - 1)
            x = tl.minimum(tl.maximum(column + neighbor % 3 - 1, 0), width - 1)
            near = first + y * width + x
            near_a, near_b = _gray(a, near, mask, COLOR_A), _gray(b, near, mask, COLOR_B)
            lowest = tl.minimum(lowest, tl.minimum(near_a, near_b))
            highest = tl.maximum(highest, tl.maximum(near_a, near_b))
    if COLOR_B:
        _, _, _, luminance, brightest, darkest = _color(b, first + p, mask)
        least = tl.ceil((luminance - 1000.0 * darkest) * thousandth)
        most = tl.maximum(least, tl.floor(255.0 - (1000.0 * brightest - luminance) * thousandth))
        lowest = tl.minimum(tl.maximum(lowest, least), most)
        highest = tl.minimum(tl.maximum(highest, least), most)
    low, high = 2 * n * pixels + p, (2 * n + 1) * pixels + p
    tl.store(limits + low, lowest, mask=mask)
    tl.store(limits + high, highest, mask=mask)
    scale: tl.constexpr = 2.0 / 255.0
    tl.store(interval + low, lowest * scale - 1.0, mask=mask)
    tl.store(interval + high, highest * scale - 1.0, mask=mask)


@triton.jit
def _channel(channel, y, shift, fits, factor, luminance):
    """A color channel of the luminance y: shifted where all three fit into the range, else y and a paler color."""
    pale = y + _rounded((1000.0 * channel - luminance) * factor)
    return (pale + fits * (channel + shift - pale)).to(tl.int32).to(tl.uint8)


@triton.jit
def network_to_pixels_kernel(
    fused,  # (N, pixels) float32 in [-1, 1]
    limits,  # (N, 2, pixels) float32, in gray levels
    b,  # (N, pixels) or (N, pixels, 3) uint8
    out,  # like b
    pixels,
    COLOR: tl.constexpr,
    PIXELS: tl.constexpr,
):
    """Grid: (blocks of pixels, images)."""
    n = tl.program_id(1).to(tl.int64)
    p = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    mask = p < pixels
    y = _rounded((tl.load(fused + n * pixels + p, mask=mask, other=0.0) + 1.0) * 127.5)
    y = tl.minimum(tl.maximum(y, 0.0), 255.0)
    y = tl.maximum(y, tl.load(limits + 2 * n * pixels + p, mask=mask, other=0.0))
    y = tl.minimum(y, tl.load(limits + (2 * n + 1) * pixels + p, mask=mask, other=0.0))
    p += n * pixels
    if COLOR:
        red, green, blue, luminance, brightest, darkest = _color(b, p, mask)
        above = tl.maximum(1000.0 * brightest - luminance, 1.0)
        below = tl.maximum(luminance - 1000.0 * darkest, 1.0)
        factor = tl.minimum(tl.div_rn(1000.0 * (255.0 - y), above), tl.div_rn(1000.0 * y, below))
        factor = tl.minimum(factor, 1.0) * 0.001
        shift = _rounded((1000.0 * y - luminance) * 0.001)
        room = tl.minimum(255.0 - brightest - shift, shift + darkest)
        fits = tl.minimum(tl.maximum(room + 1.0, 0.0), 1.0)
        tl.store(out + 3 * p, _channel(red, y, shift, fits, factor, luminance), mask=mask)
        tl.store(out + 3 * p + 1, _channel(green, y, shift, fits, factor, luminance), mask=mask)
        tl.store(out + 3 * p + 2, _channel(blue, y, shift, fits, factor, luminance), mask=mask)
    else:
        tl.store(out + p, y.to(tl.int32).to(tl.uint8), mask=mask)


def inputs_plan(a: Tensor, b: Tensor, levels: Tensor, kept_chroma: float, invention: bool) -> Plan:
    """Plans the launch before the network.

    Args:
        a, b: uint8 (N, H, W) or (N, H, W, 3).
        levels: (256,) float32, the network's value of each gray level.
        kept_chroma, invention: as in `dmfnet_fast.images.rules.Rules`.

    Returns:
        The network's inputs a and b, (N, 1, H, W) float32, its interval, (N, 2, H, W) float32, and the same interval in
        gray levels.
    """
    a, b = a.contiguous(), b.contiguous()
    n, height, width = a.shape[:3]
    a_out, b_out = (launch.new_table((n, 1, height, width), levels) for _ in range(2))
    interval, limits = (launch.new_table((n, 2, height, width), levels) for _ in range(2))
    tile = tiles_of(levels).pixels
    call = Launch(
        pixels_to_inputs_kernel,
        (triton.cdiv(height * width, tile.pixels), n),
        {
            "a": a,
            "b": b,
            "levels": levels,
            "a_out": a_out,
            "b_out": b_out,
            "interval": interval,
            "limits": limits,
            "height": height,
            "width": width,
            "thousandth": kept_chroma / 1000,
        },
        {"COLOR_A": a.dim() == 4, "COLOR_B": b.dim() == 4, "INVENTION": invention, "PIXELS": tile.pixels},
        tile.warps,
        fused_multiply_add=False,
    )
    return (a_out, b_out, interval, limits), [call]


def pixels_plan(fused: Tensor, limits: Tensor, b: Tensor) -> Plan:
    """Plans the launch after the network.

    Args:
        fused: the network's output, (N, 1, H, W) float32 in [-1, 1].
        limits: as `inputs_plan` gives them.
        b: uint8 (N, H, W) or (N, H, W, 3).

    Returns:
        The fused image, like b.
    """
    b, fused = b.contiguous(), fused.contiguous()
    out = torch.empty_like(b)
    tile = tiles_of(fused).pixels
    pixels = fused.shape[2] * fused.shape[3]
    call = Launch(
        network_to_pixels_kernel,
        (triton.cdiv(pixels, tile.pixels), len(fused)),
        {"fused": fused, "limits": limits, "b": b, "out": out, "pixels": pixels},
        {"COLOR": b.dim() == 4, "PIXELS": tile.pixels},
        tile.warps,
        fused_multiply_add=False,
    )
    return (out,), [call]


def network_inputs(
    a: Tensor, b: Tensor, levels: Tensor, kept_chroma: float, invention: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The results of `inputs_plan`."""
    a, b, interval, limits = launch.run(inputs_plan(a, b, levels, kept_chroma, invention))
    return a, b, interval, limits


def fused_pixels(fused: Tensor, limits: Tensor, b: Tensor) -> Tensor:
    """The result of `pixels_plan`."""
    return launch.run(pixels_plan(fused, limits, b))[0]
