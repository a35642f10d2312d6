"""Convolutions that halve or double the resolution, with bias and the next norm's statistics.

Both are implicit matrix products like `convolution`, over the pixels of the smaller map: the strided 3x3 convolution
reads the larger map at every other pixel. The 4x4 transposed convolution of stride 2 is four 2x2 convolutions of the
smaller map, one for each phase, that is for each combination of even or odd rows and even or odd columns of the result;
no zero between its pixels is ever multiplied.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F
from triton.tools.tensor_descriptor import TensorDescriptor

from kernels import launch
from kernels.convolution import SMALLEST, descriptor, finish, in_whole_rows, largest_power_of_2_factor
from kernels.convolution_epilogue import pixels_of_part, statistics_reference, statistics_shape
from kernels.launch import Launch, Plan, channels_last, tiles_of
from kernels.tiles import ConvolutionTile

PHASES = 4  # of the result's pixels: even rows and even columns, even and odd, odd and even, odd and odd


def by_phase(weight: Tensor) -> Tensor:
    """Orders the weights (I, O, 4, 4) of a transposed convolution of stride 2 and padding 1 by the result's phases.

    Returns:
        (4, O, 4, I), contiguous: the phases, and the 2x2 taps of each, in row-major order.
    """
    # The result's row 2 r + phase is the sum of rows r + phase - 1 + tap of the map times the kernel's rows
    # 3 - phase - 2 tap; the same holds for columns.
    taps = torch.tensor([[3, 1], [2, 0]], device=weight.device)  # by phase and tap
    ordered = weight[:, :, taps[:, None, :, None], taps[None, :, None, :]]  # (I, O, phases, phases, taps, taps)
    return ordered.permute(2, 3, 1, 4, 5, 0).flatten(0, 1).flatten(2, 3).contiguous()


def downsampling_reference(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """conv3x3(x) + bias of stride 2, computed in float32, and the `statistics_reference` of the rounded result.

    Args:
        x: (N, I, H, W), I a multiple of 16.
        weight: (O, I, 3, 3).
        bias: (O,).

    Returns:
        (N, O, H / 2, W / 2), both rounded up, and its statistics.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    total = F.conv2d(x.to(wide), weight.to(wide), bias.to(wide), stride=2, padding=1)
    result = channels_last(total.to(x.dtype, copy=True))
    return result, statistics_reference(result)


def upsampling_reference(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """The transposed convolution of x by a 4x4 kernel, with stride 2 and padding 1, plus bias, computed in float32.

    Args:
        x: (N, I, H, W), I a multiple of 16.
        weight: (4, O, 4, I), of `by_phase`.
        bias: (O,).

    Returns:
        (N, O, 2 H, 2 W), and the `statistics_by_phase` of the rounded result.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    phases = []
    for phase, kernel in enumerate(weight.to(wide).unflatten(2, (2, 2)).permute(0, 1, 4, 2, 3)):
        lower, right = divmod(phase, 2)
        padded = F.pad(x.to(wide), (1 - right, right, 1 - lower, lower))
        phases.append(F.conv2d(padded, kernel, bias.to(wide)))
    n, channels, height, width = phases[0].shape
    whole = torch.stack(phases, 2).view(n, channels, 2, 2, height, width).permute(0, 1, 4, 2, 5, 3)
    result = channels_last(whole.reshape(n, channels, 2 * height, 2 * width).to(x.dtype, copy=True))
    return result, statistics_by_phase(result)


def statistics_by_phase(x: Tensor) -> Tensor:
    """The `statistics_reference` of x, (N, C, H, W), whose parts are of consecutive pixels of one phase each."""
    n, channels, height, width = x.shape
    phases = x.view(n, channels, height // 2, 2, width // 2, 2).permute(0, 1, 3, 5, 2, 4)
    return statistics_reference(phases.reshape(n, channels, height, width))


@triton.jit
def resampling_kernel(
    x,  # (N, source_height x source_width, INPUTS)
    weight,  # (outputs, 9, INPUTS), or (4, outputs, 4, INPUTS) by phase
    bias,  # (outputs,)
    out,  # (N, pixels, outputs)
    statistics,  # (N, parts, 2, outputs) float32
    height,  # of the smaller map
    width,
    source_height,
    source_width,
    outputs,
    parts,
    UP: tl.constexpr,
    INPUTS: tl.constexpr,
    INNER: tl.constexpr,  # input channels per iteration
    PART: tl.constexpr,  # pixels per part
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,  # output channels per program
):
    """Grid: (tiles of consecutive pixels of the smaller map, for each phase, blocks of output channels, images)."""
    TAPS: tl.constexpr = 4 if UP else 9
    BLOCKS: tl.constexpr = INPUTS // INNER
    n = tl.program_id(2).to(tl.int64)
    pixels = height * width
    tiles = tl.cdiv(pixels, PIXELS)
    phase = tl.program_id(0) // tiles  # 0 unless UP
    p = (tl.program_id(0) % tiles) * PIXELS + tl.arange(0, PIXELS)
    o = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    row, column, pixel_mask = p // width, p % width, p < pixels
    first = n * source_height * source_width
    inner = tl.arange(0, INNER)
    output_mask = o < outputs

    total = tl.zeros((PIXELS, CHANNELS), tl.float32)
    for step in tl.range(0, TAPS * BLOCKS):
        tap = step // BLOCKS
        c = (step % BLOCKS) * INNER + inner
        if UP:
            source_row = row + (phase // 2 - 1 + tap // 2)
            source_column = column + (phase % 2 - 1 + tap % 2)
        else:
            source_row = 2 * row + (tap // 3 - 1)
            source_column = 2 * column + (tap % 3 - 1)
        inside = (
            (source_row >= 0) & (source_row < source_height) & (source_column >= 0) & (source_column < source_width)
        )
        offsets = (first + source_row * source_width + source_column)[:, None] * INPUTS + c[None, :]
        values = tl.load(x + offsets, mask=(pixel_mask & inside)[:, None], other=0.0)
        weight_offsets = ((phase * outputs + o[None, :]) * TAPS + tap) * INPUTS + c[:, None]
        weights = tl.load(weight + weight_offsets, mask=output_mask[None, :], other=0.0)
        total = tl.dot(values, weights, total, input_precision="ieee")

    _finish(
        total,
        n,
        phase,
        row,
        column,
        pixel_mask,
        o,
        bias,
        out,
        statistics,
        height,
        width,
        outputs,
        parts,
        UP,
        PART,
        PIXELS,
        CHANNELS,
    )


@triton.jit
def _finish(
    total,
    n,
    phase,
    row,
    column,
    pixel_mask,
    o,
    bias,
    out,
    statistics,
    height,
    width,
    outputs,
    parts,
    UP: tl.constexpr,
    PART: tl.constexpr,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """`finish` for pixels of the smaller map: where each of them is in the result."""
    if UP:
        first = 4 * n * height * width
        p = (2 * row + phase // 2) * (2 * width) + 2 * column + phase % 2
    else:
        first = n * height * width
        p = row * width + column
    finish(
        total,
        first,
        n,
        p,
        pixel_mask,
        o,
        bias,
        None,
        out,
        statistics,
        outputs,
        parts,
        tl.program_id(0),
        False,
        PART,
        PIXELS,
        CHANNELS,
    )


@triton.jit
def described_resampling_kernel(
    x,  # descriptor of (N, H, W, INPUTS) by [1, ROWS, COLUMNS, INNER]; of (N, H / 2, 2, W / 2, 2 INPUTS) unless UP
    weight,  # descriptor of (outputs, 9 INPUTS), or (4 outputs, 4 INPUTS), by [CHANNELS, INNER]
    bias,  # (outputs,)
    out,  # (N, pixels, outputs)
    statistics,  # (N, parts, 2, outputs) float32
    height,  # of the smaller map
    width,
    outputs,
    parts,
    UP: tl.constexpr,
    INPUTS: tl.constexpr,
    INNER: tl.constexpr,
    PART: tl.constexpr,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """`resampling_kernel` for tiles that TMA can load: whole rows of the smaller map, or an even division of one.

    For TMA the larger map is a grid of 2x2 squares, whose two columns are beside each other in the channels.
    """
    TAPS: tl.constexpr = 4 if UP else 9
    BLOCKS: tl.constexpr = INPUTS // INNER
    image = tl.program_id(2)
    pixels = height * width
    tiles = pixels // PIXELS
    phase = tl.program_id(0) // tiles
    begin = (tl.program_id(0) % tiles) * PIXELS
    row, column = begin // width, begin % width
    block = tl.program_id(1) * CHANNELS

    total = tl.zeros((PIXELS, CHANNELS), tl.float32)
    for step in tl.range(0, TAPS * BLOCKS):
        tap = step // BLOCKS
        c = (step % BLOCKS) * INNER
        if UP:
            values = x.load([image, row + (phase // 2 - 1 + tap // 2), column + (phase % 2 - 1 + tap % 2), c])
        else:
            # The kernel's first row is the lower one of the square above, the others are those of the pixel's own.
            below, right = tap // 3, tap % 3
            square_row, square_column = row - (below == 0).to(tl.int32), column - (right == 0).to(tl.int32)
            values = x.load([image, square_row, (below + 1) % 2, square_column, ((right + 1) % 2) * INPUTS + c])
        weights = weight.load([phase * outputs + block, tap * INPUTS + c])
        total = tl.dot(tl.reshape(values, (PIXELS, INNER)), tl.trans(weights), total, input_precision="ieee")

    p = begin + tl.arange(0, PIXELS)
    o = block + tl.arange(0, CHANNELS)
    _finish(
        total,
        image.to(tl.int64),
        phase,
        p // width,
        p % width,
        p < pixels,
        o,
        bias,
        out,
        statistics,
        height,
        width,
        outputs,
        parts,
        UP,
        PART,
        PIXELS,
        CHANNELS,
    )


def tile_for(x: Tensor, outputs: int, up: bool) -> ConvolutionTile | None:
    """Returns the tile for a convolution of `x`, (N, I, H, W), by the rules for the GPU, or None to use cuDNN."""
    n, inputs, height, width = x.shape
    if x.dtype not in (torch.float16, torch.bfloat16) or inputs % SMALLEST or not launch.on_gpu(x):
        return None
    if not up:
        height, width = (height + 1) // 2, (width + 1) // 2
    tiles = tiles_of(x).resampling(up, inputs, outputs, n * height * width)
    return next((tile for tile in tiles if fits(x, up, tile)), None)


def fits(x: Tensor, up: bool, tile: ConvolutionTile) -> bool:
    """Whether the tile holds whole parts of the statistics and, if it is described, whether TMA can load it."""
    height, width = x.shape[2:]
    if up:
        # All parts are of one phase, and none is smaller than the others.
        return (
            pixels_of_part(4 * height * width) <= tile.pixels
            and (height * width) % tile.pixels == 0
            and (not tile.described or in_whole_rows(height, width, tile.pixels))
        )
    even = height % 2 == 0 and width % 2 == 0
    height, width = (height + 1) // 2, (width + 1) // 2
    described = even and in_whole_rows(height, width, tile.pixels)
    return pixels_of_part(height * width) <= tile.pixels and (described or not tile.described)


def plan(x: Tensor, weight: Tensor, bias: Tensor, up: bool, tile: ConvolutionTile | None = None) -> Plan:
    """Plans a single launch for the arguments of `downsampling_reference`, or of `upsampling_reference` if `up`.

    `tile` overrides the tile chosen for the shape.

    Raises:
        ValueError: the tile does not fit the maps.
    """
    x = channels_last(x)
    n, inputs, height, width = x.shape
    outputs = weight.shape[1 if up else 0]
    small = (height, width) if up else ((height + 1) // 2, (width + 1) // 2)
    large = (2 * height, 2 * width) if up else (height, width)
    tile = tile or tile_for(x, outputs, up) or ConvolutionTile()
    if not fits(x, up, tile):
        raise ValueError(f"resampling of {height}x{width} pixels: tiles of {tile.pixels} pixels do not fit")
    matrix = weight.contiguous() if up else channels_last(weight).permute(0, 2, 3, 1)
    out = launch.new_feature_map((n, outputs, *(large if up else small)), x)
    statistics = launch.new_table(statistics_shape(out), x)
    channels = max(SMALLEST, min(tile.channels, triton.next_power_of_2(outputs)))
    inner = min(tile.inner, largest_power_of_2_factor(inputs))
    source: dict[str, Tensor | TensorDescriptor | int] = {"x": x, "weight": matrix}
    source |= {"source_height": height, "source_width": width}
    if tile.described:
        columns = min(small[1], tile.pixels)
        rows = tile.pixels // columns
        pixels_last = x.permute(0, 2, 3, 1)
        if up:
            described = descriptor(pixels_last, (1, rows, columns, inner))
        else:
            squares = pixels_last.reshape(n, small[0], 2, small[1], 2 * inputs)
            described = descriptor(squares, (1, rows, 1, columns, inner))
        by_tap = matrix.reshape(-1, (4 if up else 9) * inputs)
        source = {"x": described, "weight": descriptor(by_tap, (channels, inner))}
    call = Launch(
        described_resampling_kernel if tile.described else resampling_kernel,
        (
            (PHASES if up else 1) * triton.cdiv(small[0] * small[1], tile.pixels),
            triton.cdiv(outputs, channels),
            n,
        ),
        {
            **source,
            "bias": bias,
            "out": out,
            "statistics": statistics,
            "height": small[0],
            "width": small[1],
            "outputs": outputs,
            "parts": statistics.shape[1],
        },
        {
            "UP": up,
            "INPUTS": inputs,
            "INNER": inner,
            "PART": pixels_of_part(out.shape[2] * out.shape[3]),
            "PIXELS": tile.pixels,
            "CHANNELS": channels,
        },
        tile.warps,
        tile.stages,
    )
    return (out, statistics), [call]


def _launched(up: bool) -> Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]:
    def run(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        out, statistics = launch.run(plan(x, weight, bias, up))
        return out, statistics

    return run


def _fake_down(x: Tensor, weight: Tensor, _bias: Tensor) -> tuple[Tensor, Tensor]:
    n, _, height, width = x.shape
    out = launch.new_feature_map((n, weight.shape[0], (height + 1) // 2, (width + 1) // 2), x)
    return out, launch.new_table(statistics_shape(out), x)


def _fake_up(x: Tensor, weight: Tensor, _bias: Tensor) -> tuple[Tensor, Tensor]:
    n, _, height, width = x.shape
    out = launch.new_feature_map((n, weight.shape[1], 2 * height, 2 * width), x)
    return out, launch.new_table(statistics_shape(out), x)


_SCHEMA = "(Tensor x, Tensor weight, Tensor bias) -> (Tensor, Tensor)"
downsampling_plan, upsampling_plan = partial(plan, up=False), partial(plan, up=True)
downsampling_convolution = launch.register(
    "downsampling_convolution", _SCHEMA, downsampling_reference, _launched(False), _fake_down
)
upsampling_convolution = launch.register(
    "upsampling_convolution", _SCHEMA, upsampling_reference, _launched(True), _fake_up
)
