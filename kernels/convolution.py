"""A 3x3 or 1x1 convolution fused with 1x1 shortcuts, bias, ReLU, residual, and the next norm's statistics.

Implemented as an implicit matrix product: for each tap of the kernel and block of input channels, the pixels under the
tap times the weights. The nine taps of a tile read nearly the same pixels; the first brings them into the cache.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F
from triton.tools.tensor_descriptor import TensorDescriptor

from kernels import launch
from kernels.convolution_epilogue import pixels_of_part, statistics_reference, statistics_shape
from kernels.convolution_epilogue import reference as epilogue_reference
from kernels.launch import Launch, Plan, channels_last, tiles_of
from kernels.tiles import ConvolutionTile

SMALLEST = 16  # channels: the smallest side of a matrix product on the GPU's matrix units


def reference(
    x: Tensor,
    weight: Tensor,
    more: Tensor | None,
    more_weight: Tensor | None,
    last: Tensor | None,
    last_weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    relu: bool,
) -> Tensor:
    """relu(conv(x) + conv(more) + conv(last) + bias) + residual, computed in float32.

    Args:
        x: (N, I, H, W), I a multiple of 16.
        weight: (O, I, 3, 3) or (O, I, 1, 1).
        more, last: (N, J, H, W), J a multiple of 16, with weights (O, J, 1, 1), or None.
        bias: (O,), or None.
        residual: like the result, (N, O, H, W), or None.
        relu: whether to apply ReLU.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    total = F.conv2d(x.to(wide), weight.to(wide), padding=weight.shape[2] // 2)
    for other, other_weight in ((more, more_weight), (last, last_weight)):
        if other is not None and other_weight is not None:
            total = total + F.conv2d(other.to(wide), other_weight.to(wide))
    bias, residual = (None if value is None else value.to(wide) for value in (bias, residual))
    return channels_last(epilogue_reference(total, bias, residual, relu).to(x.dtype, copy=True))


def reference_with_statistics(x: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    """`reference`, and the `statistics_reference` of it as it is rounded."""
    result = reference(x, *others)
    return result, statistics_reference(result)


@triton.jit
def _add_products(
    total,  # [PIXELS, CHANNELS] float32
    x,  # (N, pixels, INPUTS)
    weight,  # (outputs, TAPS, INPUTS)
    first,  # index of the image's first pixel
    row,
    column,
    pixel_mask,
    o,  # [CHANNELS], output channels
    height,
    width,
    outputs,
    TAPS: tl.constexpr,
    INPUTS: tl.constexpr,
    INNER: tl.constexpr,
):
    """Adds the convolution of one input map to `total`."""
    BLOCKS: tl.constexpr = INPUTS // INNER
    inner = tl.arange(0, INNER)
    output_mask = o < outputs
    for step in tl.range(0, TAPS * BLOCKS):
        tap = step // BLOCKS
        c = (step % BLOCKS) * INNER + inner
        source_row = row
        source_column = column
        if TAPS > 1:
            source_row += tap // 3 - 1
            source_column += tap % 3 - 1
        load_mask = (
            pixel_mask & (source_row >= 0) & (source_row < height) & (source_column >= 0) & (source_column < width)
        )
        offsets = (first + source_row * width + source_column)[:, None] * INPUTS + c[None, :]
        values = tl.load(x + offsets, mask=load_mask[:, None], other=0.0)
        weight_offsets = (o[None, :] * TAPS + tap) * INPUTS + c[:, None]
        weights = tl.load(weight + weight_offsets, mask=output_mask[None, :], other=0.0)
        total = tl.dot(values, weights, total, input_precision="ieee")
    return total


@triton.jit
def finish(
    total,  # [PIXELS, CHANNELS] float32
    first,  # index of the image's first pixel
    n,  # image
    p,  # [PIXELS], within the image
    pixel_mask,
    o,  # [CHANNELS], output channels
    bias,
    residual,
    out,
    statistics,
    outputs,
    parts,
    tile,  # index of these pixels among the image's blocks of PIXELS
    RELU: tl.constexpr,
    PART: tl.constexpr,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """The epilogue: bias, ReLU and residual, then stores the result and the statistics of its rounded values."""
    output_mask = o < outputs
    mask = pixel_mask[:, None] & output_mask[None, :]
    offsets = (first + p)[:, None] * outputs + o[None, :]
    if bias is not None:
        total += tl.load(bias + o, mask=output_mask, other=0.0).to(tl.float32)[None, :]
    if RELU:
        total = tl.where(total < 0, 0.0, total)  # keeps NaN, which a maximum may lose
    if residual is not None:
        total += tl.load(residual + offsets, mask=mask, other=0.0).to(tl.float32)
    rounded = total.to(out.dtype.element_ty)
    tl.store(out + offsets, rounded, mask=mask)
    if statistics is not None:
        PARTS: tl.constexpr = PIXELS // PART
        # Sums of up to 512 equal half-precision values are exact, and so is the division by their number: a constant
        # channel has a deviation of exactly zero.
        values = tl.reshape(tl.where(pixel_mask[:, None], rounded.to(tl.float32), 0.0), (PARTS, PART, CHANNELS))
        valid = tl.reshape(pixel_mask.to(tl.float32), (PARTS, PART))
        count = tl.maximum(tl.sum(valid, 1), 1.0)[:, None]
        mean = tl.div_rn(tl.sum(values, 1), tl.broadcast_to(count, (PARTS, CHANNELS)))
        deviation = tl.where(valid[:, :, None] > 0, values - mean[:, None, :], 0.0)
        part = tile * PARTS + tl.arange(0, PARTS)
        part_mask = (part < parts)[:, None] & output_mask[None, :]
        part_offsets = (n * parts + part)[:, None] * 2 * outputs + o[None, :]
        tl.store(statistics + part_offsets, mean, mask=part_mask)
        tl.store(statistics + part_offsets + outputs, tl.sum(deviation * deviation, 1), mask=part_mask)


@triton.jit
def convolution_kernel(
    x,  # (N, pixels, INPUTS)
    weight,  # (outputs, TAPS, INPUTS)
    more,  # (N, pixels, MORE), or None
    more_weight,  # (outputs, MORE), or None
    last,  # (N, pixels, LAST), or None
    last_weight,  # (outputs, LAST), or None
    bias,  # (outputs,), or None
    residual,  # (N, pixels, outputs), or None
    out,  # (N, pixels, outputs)
    statistics,  # (N, parts, 2, outputs) float32, or None
    height,
    width,
    outputs,
    parts,
    TAPS: tl.constexpr,
    INPUTS: tl.constexpr,
    MORE: tl.constexpr,
    LAST: tl.constexpr,
    INNER: tl.constexpr,  # input channels per iteration
    INNER_MORE: tl.constexpr,
    INNER_LAST: tl.constexpr,
    RELU: tl.constexpr,
    PART: tl.constexpr,  # pixels per part, or None without statistics
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,  # output channels per program
):
    """Grid: (tiles of consecutive pixels, blocks of output channels, images)."""
    n = tl.program_id(2).to(tl.int64)
    pixels = height * width
    p = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    o = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    row, column, pixel_mask = p // width, p % width, p < pixels
    first = n * pixels

    total = tl.zeros((PIXELS, CHANNELS), tl.float32)
    total = _add_products(
        total, x, weight, first, row, column, pixel_mask, o, height, width, outputs, TAPS, INPUTS, INNER
    )
    if more is not None:
        total = _add_products(
            total, more, more_weight, first, row, column, pixel_mask, o, height, width, outputs, 1, MORE, INNER_MORE
        )
    if last is not None:
        total = _add_products(
            total, last, last_weight, first, row, column, pixel_mask, o, height, width, outputs, 1, LAST, INNER_LAST
        )

    finish(
        total,
        first,
        n,
        p,
        pixel_mask,
        o,
        bias,
        residual,
        out,
        statistics,
        outputs,
        parts,
        tl.program_id(0),
        RELU,
        PART,
        PIXELS,
        CHANNELS,
    )


@triton.jit
def _add_tma_products(
    total,  # [PIXELS, CHANNELS] float32
    x,  # descriptor of (N, H, W, INPUTS), by [1, ROWS, COLUMNS, INNER]
    weight,  # descriptor of (outputs, TAPS INPUTS), by [CHANNELS, INNER]
    n,
    row,
    column,
    o,
    TAPS: tl.constexpr,
    INPUTS: tl.constexpr,
    INNER: tl.constexpr,
    PIXELS: tl.constexpr,
):
    """Like `_add_products`, but loads by TMA, which reads zeros outside the image."""
    BLOCKS: tl.constexpr = INPUTS // INNER
    for step in tl.range(0, TAPS * BLOCKS):
        tap = step // BLOCKS
        c = (step % BLOCKS) * INNER
        source_row = row
        source_column = column
        if TAPS > 1:
            source_row += tap // 3 - 1
            source_column += tap % 3 - 1
        values = tl.reshape(x.load([n, source_row, source_column, c]), (PIXELS, INNER))
        weights = weight.load([o, tap * INPUTS + c])
        total = tl.dot(values, tl.trans(weights), total)
    return total


@triton.jit
def described_convolution_kernel(
    x,  # descriptors, as in `_add_tma_products`
    weight,
    more,  # or None
    more_weight,
    last,  # or None
    last_weight,
    bias,  # (outputs,), or None
    residual,  # (N, pixels, outputs), or None
    out,  # (N, pixels, outputs)
    statistics,  # (N, parts, 2, outputs) float32, or None
    height,
    width,
    outputs,
    parts,
    TAPS: tl.constexpr,
    INPUTS: tl.constexpr,
    MORE: tl.constexpr,
    LAST: tl.constexpr,
    INNER: tl.constexpr,
    INNER_MORE: tl.constexpr,
    INNER_LAST: tl.constexpr,
    RELU: tl.constexpr,
    PART: tl.constexpr,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """`convolution_kernel` for tiles that TMA can load: whole rows, or an even division of one."""
    image = tl.program_id(2)
    n = image.to(tl.int64)
    begin = tl.program_id(0) * PIXELS
    row, column = begin // width, begin % width
    block = tl.program_id(1) * CHANNELS
    total = tl.zeros((PIXELS, CHANNELS), tl.float32)
    total = _add_tma_products(total, x, weight, image, row, column, block, TAPS, INPUTS, INNER, PIXELS)
    if more is not None:
        total = _add_tma_products(total, more, more_weight, image, row, column, block, 1, MORE, INNER_MORE, PIXELS)
    if last is not None:
        total = _add_tma_products(total, last, last_weight, image, row, column, block, 1, LAST, INNER_LAST, PIXELS)
    pixels = height * width
    p = begin + tl.arange(0, PIXELS)
    o = block + tl.arange(0, CHANNELS)
    pixel_mask = p < pixels
    finish(
        total,
        n * pixels,
        n,
        p,
        pixel_mask,
        o,
        bias,
        residual,
        out,
        statistics,
        outputs,
        parts,
        tl.program_id(0),
        RELU,
        PART,
        PIXELS,
        CHANNELS,
    )


@triton.jit
def _add_row(
    total,  # [PIXELS, columns] float32
    x,  # (N, pixels, INPUTS), or a descriptor of (N, H, W, INPUTS) by [1, 1, PIXELS, INNER]
    weights,  # SIDES times INPUTS / INNER blocks of [INNER, columns]
    n,
    row,
    begin,  # column of the first pixel
    height,
    width,
    SIDES: tl.constexpr,
    INPUTS: tl.constexpr,
    INNER: tl.constexpr,
    PIXELS: tl.constexpr,
    DESCRIBED: tl.constexpr,
):
    """Adds the products of a row of the input and, for three SIDES, of its neighbors to the left and right."""
    BLOCKS: tl.constexpr = INPUTS // INNER
    for side in tl.static_range(SIDES):
        start = begin + side - SIDES // 2
        for block in tl.static_range(BLOCKS):
            if DESCRIBED:
                values = tl.reshape(x.load([n, row, start, block * INNER]), (PIXELS, INNER))
            else:
                column = start + tl.arange(0, PIXELS)
                mask = (row >= 0) & (row < height) & (column >= 0) & (column < width)
                offsets = (n.to(tl.int64) * height * width + row * width + column)[:, None] * INPUTS
                channel = block * INNER + tl.arange(0, INNER)
                values = tl.load(x + offsets + channel[None, :], mask=mask[:, None], other=0.0)
            total = tl.dot(values, weights[side * BLOCKS + block], total, input_precision="ieee")
    return total


@triton.jit
def _weights_for_rows(
    weight,  # (outputs, 9, INPUTS)
    outputs,
    INPUTS: tl.constexpr,
    INNER: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Blocks of [INNER, 4 CHANNELS]: side by side the weights for three rows of the result, and zeros.

    A row of the input is above the first of them, which takes the upper taps, level with the second, and below the
    third.
    """
    place = tl.arange(0, 4 * CHANNELS) // CHANNELS
    o = tl.program_id(1) * CHANNELS + tl.arange(0, 4 * CHANNELS) % CHANNELS
    mask = ((o < outputs) & (place < 3))[None, :]
    inner = tl.arange(0, INNER)
    blocks = ()
    for side in tl.static_range(3):
        for block in tl.static_range(INPUTS // INNER):
            offsets = (o * 9 + place * 3 + side)[None, :] * INPUTS + (block * INNER + inner)[:, None]
            blocks += (tl.load(weight + offsets, mask=mask, other=0.0),)  # type: ignore[assignment]
    return blocks


@triton.jit
def _weights_of_shortcut(
    weight,  # (outputs, INPUTS)
    o,  # [CHANNELS]
    outputs,
    INPUTS: tl.constexpr,
    INNER: tl.constexpr,
):
    """Blocks of [INNER, CHANNELS]."""
    mask = (o < outputs)[None, :]
    inner = tl.arange(0, INNER)
    blocks = ()
    for block in tl.static_range(INPUTS // INNER):
        offsets = o[None, :] * INPUTS + (block * INNER + inner)[:, None]
        blocks += (tl.load(weight + offsets, mask=mask, other=0.0),)  # type: ignore[assignment]
    return blocks


@triton.jit
def convolution_by_rows_kernel(
    x,  # (N, pixels, INPUTS), or a descriptor, as in `_add_row`
    weight,  # (outputs, 9, INPUTS)
    more,  # (N, pixels, MORE) or a descriptor, or None
    more_weight,  # (outputs, MORE), or None
    last,  # (N, pixels, LAST) or a descriptor, or None
    last_weight,  # (outputs, LAST), or None
    bias,  # (outputs,), or None
    residual,  # (N, pixels, outputs), or None
    out,  # (N, pixels, outputs)
    statistics,  # (N, parts, 2, outputs) float32, or None
    height,
    width,
    outputs,
    parts,
    INPUTS: tl.constexpr,
    MORE: tl.constexpr,
    LAST: tl.constexpr,
    INNER: tl.constexpr,
    INNER_MORE: tl.constexpr,
    INNER_LAST: tl.constexpr,
    RELU: tl.constexpr,
    PART: tl.constexpr,
    PIXELS: tl.constexpr,  # of a row, which are whole parts
    CHANNELS: tl.constexpr,
    ROWS: tl.constexpr,  # of the result, one after another
    DESCRIBED: tl.constexpr,
):
    """A 3x3 convolution that loads a row of its input once for the three rows of the result that it contributes to.

    They are one matrix product, with the weights of all three side by side. Pixels are loaded three times, for the
    taps beside each other, instead of nine, and weights once for all rows. Grid: (strips of ROWS rows by blocks of
    PIXELS columns, blocks of output channels, images).
    """
    n = tl.program_id(2)
    blocks = width // PIXELS
    block = tl.program_id(0) % blocks
    top = tl.program_id(0) // blocks * ROWS
    column = block * PIXELS + tl.arange(0, PIXELS)
    o = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    weights = _weights_for_rows(weight, outputs, INPUTS, INNER, CHANNELS)
    more_weights = ()
    if more is not None:
        more_weights = _weights_of_shortcut(more_weight, o, outputs, MORE, INNER_MORE)
    last_weights = ()
    if last is not None:
        last_weights = _weights_of_shortcut(last_weight, o, outputs, LAST, INNER_LAST)

    # Of two rows of the result, what the rows of the input so far contribute.
    complete = tl.zeros((PIXELS, CHANNELS), tl.float32)
    here = tl.zeros((PIXELS, CHANNELS), tl.float32)
    for step in tl.range(0, ROWS + 2):
        done = top + step - 2  # the row of the result that this step completes
        three = tl.zeros((PIXELS, 4 * CHANNELS), tl.float32)
        three = _add_row(
            three, x, weights, n, done + 1, block * PIXELS, height, width, 3, INPUTS, INNER, PIXELS, DESCRIBED
        )
        outer, inner = tl.split(tl.permute(tl.reshape(three, (PIXELS, 2, 2, CHANNELS)), (0, 3, 1, 2)))
        to_below, to_complete = tl.split(outer)
        to_here, _ = tl.split(inner)
        complete += to_complete
        if more is not None:
            one = tl.zeros((PIXELS, CHANNELS), tl.float32)
            complete += _add_row(
                one, more, more_weights, n, done, block * PIXELS, height, width, 1, MORE, INNER_MORE, PIXELS, DESCRIBED
            )
        if last is not None:
            one = tl.zeros((PIXELS, CHANNELS), tl.float32)
            complete += _add_row(
                one, last, last_weights, n, done, block * PIXELS, height, width, 1, LAST, INNER_LAST, PIXELS, DESCRIBED
            )
        if (done >= top) & (done < height):
            finish(
                complete,
                n.to(tl.int64) * height * width,
                n.to(tl.int64),
                done * width + column,
                column < width,
                o,
                bias,
                residual,
                out,
                statistics,
                outputs,
                parts,
                done * blocks + block,
                RELU,
                PART,
                PIXELS,
                CHANNELS,
            )
        complete = here + to_here
        here = to_below


def in_whole_rows(height: int, width: int, pixels: int) -> bool:
    """Whether tiles of `pixels` pixels cover the image evenly, each with whole rows or an even division of a row."""
    return (height * width) % pixels == 0 and max(width, pixels) % min(width, pixels) == 0


def _in_rows(weight: Tensor, width: int, tile: ConvolutionTile) -> bool:
    """Whether a tile computes this convolution row by row: a 3x3 one, whose rows its pixels divide evenly."""
    return tile.rows > 0 and weight.shape[2] == 3 and width % tile.pixels == 0


def descriptor(x: Tensor, block: Sequence[int]) -> TensorDescriptor:
    """TMA descriptor of the dense tensor `x`.

    The strides follow from the shape, because PyTorch may report any stride for a dimension of size 1.
    """
    strides = [math.prod(x.shape[n + 1 :]) for n in range(x.dim())]
    return TensorDescriptor(x, list(x.shape), strides, list(block))


def largest_power_of_2_factor(number: int) -> int:
    return number & -number


def tile_for(x: Tensor, weight: Tensor, statistics: bool) -> ConvolutionTile | None:
    """Returns the tile for a convolution that was measured to be faster than cuDNN's, or None to use cuDNN.

    Args:
        x: (N, I, H, W).
        weight: (O, I, 3, 3) or (O, I, 1, 1).
        statistics: whether statistics are needed; a tile must then hold whole parts of them.
    """
    outputs, inputs = weight.shape[:2]
    if x.dtype not in (torch.float16, torch.bfloat16) or inputs % SMALLEST or not launch.on_gpu(x):
        return None
    height, width = x.shape[2:]
    pixels = height * width
    tiles = tiles_of(x).convolution(inputs, outputs, len(x) * pixels)
    part = pixels_of_part(pixels) if statistics else 1
    # Described tiles were measured with TMA; without it, the same tile is slower than cuDNN.
    for tile in tiles:
        if tile.rows:
            fits = _in_rows(weight, width, tile) and part <= tile.pixels
        else:
            fits = not tile.described or in_whole_rows(height, width, tile.pixels)
        if fits:
            return tile if part <= tile.pixels else None
    return None


def plan(
    x: Tensor,
    weight: Tensor,
    more: Tensor | None,
    more_weight: Tensor | None,
    last: Tensor | None,
    last_weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    relu: bool,
    statistics: bool = False,
    tile: ConvolutionTile | None = None,
) -> Plan:
    """Plans a single launch, which also writes the statistics if asked for.

    `tile` overrides the tile chosen for the shape.
    """
    n, inputs, height, width = x.shape
    outputs, _, size, _ = weight.shape
    tile = tile or tile_for(x, weight, statistics) or ConvolutionTile()
    maps = [None if value is None else channels_last(value) for value in (x, more, last, residual)]
    weights = [None if value is None else channels_last(value) for value in (weight, more_weight, last_weight)]
    out = launch.new_feature_map((n, outputs, height, width), x)
    statistics_out = launch.new_table(statistics_shape(out), x) if statistics else None
    part = pixels_of_part(height * width)
    # With statistics, a tile must hold whole parts.
    pixels = max(tile.pixels, part) if statistics else tile.pixels
    channels = max(SMALLEST, min(tile.channels, triton.next_power_of_2(outputs)))
    widths = [0 if value is None else value.shape[1] for value in (x, more, last)]
    inner = [min(tile.inner, largest_power_of_2_factor(value)) for value in widths]
    if 0 < inner[2] < inner[1]:
        # Triton 3.6 miscompiles shortcuts in this order: an H200 saw wrong sums, or reads outside shared memory.
        maps[1], maps[2], weights[1], weights[2] = maps[2], maps[1], weights[2], weights[1]
        widths[1], widths[2], inner[1], inner[2] = widths[2], widths[1], inner[2], inner[1]
    names = ("x", "weight"), ("more", "more_weight"), ("last", "last_weight")
    sources: dict[str, Tensor | TensorDescriptor | None] = {}
    by_rows = _in_rows(weight, width, tile) and pixels == tile.pixels
    described = tile.described and (by_rows or in_whole_rows(height, width, pixels))
    for (map_name, weight_name), values, matrix, block in zip(names, maps, weights, inner, strict=False):
        sources |= {map_name: values, weight_name: matrix}
        if described and values is not None and matrix is not None:
            columns = min(width, pixels)
            sources[map_name] = descriptor(values.permute(0, 2, 3, 1), (1, pixels // columns, columns, block))
            if not by_rows:
                sources[weight_name] = descriptor(matrix.permute(0, 2, 3, 1).flatten(1), (channels, block))
    if by_rows:
        kernel = convolution_by_rows_kernel
        tiles = triton.cdiv(height, tile.rows) * (width // pixels)
        own = {"ROWS": tile.rows, "DESCRIBED": described}
    else:
        kernel = described_convolution_kernel if described else convolution_kernel
        tiles = triton.cdiv(height * width, pixels)
        own = {"TAPS": size * size}
    call = Launch(
        kernel,
        (tiles, triton.cdiv(outputs, channels), n),
        {
            **sources,
            "bias": bias,
            "residual": maps[3],
            "out": out,
            "statistics": statistics_out,
            "height": height,
            "width": width,
            "outputs": outputs,
            "parts": 0 if statistics_out is None else statistics_out.shape[1],
        },
        {
            **own,
            "INPUTS": inputs,
            "MORE": widths[1],
            "LAST": widths[2],
            "INNER": inner[0],
            "INNER_MORE": inner[1],
            "INNER_LAST": inner[2],
            "RELU": relu,
            "PART": part if statistics else None,
            "PIXELS": pixels,
            "CHANNELS": channels,
        },
        tile.warps,
        tile.stages,
    )
    return tuple(result for result in (out, statistics_out) if result is not None), [call]


def _convolution(*arguments: Any) -> Tensor:
    return launch.run(plan(*arguments))[0]


def _convolution_with_statistics(*arguments: Any) -> tuple[Tensor, Tensor]:
    out, statistics = launch.run(partial(plan, statistics=True)(*arguments))
    return out, statistics


def _fake(x: Tensor, weight: Tensor, *_: object) -> Tensor:
    return launch.new_feature_map((x.shape[0], weight.shape[0], *x.shape[2:]), x)


def _fake_with_statistics(x: Tensor, weight: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    out = _fake(x, weight)
    return out, launch.new_table(statistics_shape(out), x)


_ARGUMENTS = (
    "(Tensor x, Tensor weight, Tensor? more, Tensor? more_weight, Tensor? last, Tensor? last_weight, Tensor? bias, "
    "Tensor? residual, bool relu)"
)
convolution = launch.register("convolution", f"{_ARGUMENTS} -> Tensor", reference, _convolution, _fake)
convolution_with_statistics = launch.register(
    "convolution_with_statistics",
    f"{_ARGUMENTS} -> (Tensor, Tensor)",
    reference_with_statistics,
    _convolution_with_statistics,
    _fake_with_statistics,
)
