"""Cases of our convolution."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from kernels import convolution
from kernels.cases.convolution_epilogue import eager_epilogue
from kernels.cases.record import HALF, Case, Draw, Operation, Record, Shape, Work, values
from kernels.tiles import ANY, ConvolutionRule, ConvolutionTile


def _eager(
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
    total = F.conv2d(x, weight, bias, padding=weight.shape[2] // 2)
    for other, own in ((more, more_weight), (last, last_weight)):
        if other is not None and own is not None:
            total = total + F.conv2d(other, own)
    return eager_epilogue(total, None, residual, relu)


def _work(shapes: list[Shape]) -> Work:
    """A map and its weights, up to two more of such pairs, then bias and residual where there are any."""
    (n, _, height, width), weight = shapes[:2]
    weights = [shape for shape in shapes[1::2] if len(shape) == 4 and shape[2:] in ([1, 1], [3, 3])]
    inner = sum(math.prod(shape[1:]) for shape in weights)
    out = n * height * width * weight[0]
    kind = f"3x3 convolution, {height}x{width}" if weight[2] == 3 else "1x1 convolution"
    return Work(kind, 2.0 * out * inner, HALF * (values(*shapes) + out))


CONVOLUTION = Operation(
    "convolution",
    "relu(convolution of up to three maps + bias) + residual; 3x3 or 1x1, the other maps' 1x1",
    "reads each once except at tile seams, writes once",
    convolution.plan,
    convolution.reference,
    convolution.convolution,
    _eager,
    _work,
    multiplies_matrices=True,
)
CONVOLUTION_WITH_STATISTICS = Operation(
    "convolution_with_statistics",
    "the same, and mean and spread of every channel of the result",
    "no more passes",
    partial(convolution.plan, statistics=True),
    convolution.reference_with_statistics,
    convolution.convolution_with_statistics,
    _eager,
    _work,
    multiplies_matrices=True,
    gives_statistics=True,
)


def convolve(
    n: int,
    inputs: int,
    outputs: int,
    height: int,
    width: int,
    size: int = 3,
    more: int = 0,
    last: int = 0,
    bias: bool = True,
    residual: bool = False,
    relu: bool = False,
    with_statistics: bool = False,
) -> Case:
    """`size`: of the kernel's side; `more`, `last`: channels of the shortcuts' inputs."""

    def make(draw: Draw) -> tuple[Any, ...]:
        def with_weight(channels: int, side: int) -> tuple[Tensor | None, Tensor | None]:
            if not channels:
                return None, None
            weight = draw.parameter(outputs, channels, side, side, scale=(channels * side * side) ** -0.5)
            weight = weight.contiguous(memory_format=torch.channels_last)
            return draw.feature(n, channels, height, width), weight

        return (
            *with_weight(inputs, size),
            *with_weight(more, 1),
            *with_weight(last, 1),
            draw.parameter(outputs) if bias else None,
            draw.feature(n, outputs, height, width) if residual else None,
            relu,
        )

    flags = {"bias": bias, "relu": relu, "residual": residual, f"+{more}": more, f"+{last} last": last}
    parts = [label for label, given in flags.items() if given]
    name = f"{n}x{inputs}x{height}x{width} to {outputs} {size}x{size} {' '.join(parts)}".strip()
    return Case(CONVOLUTION_WITH_STATISTICS if with_statistics else CONVOLUTION, name, make)


def by_tile(case: Case, tile: ConvolutionTile) -> Case:
    """`case`, a convolution, planned with this tile whatever its size."""
    plan = partial(case.operation.plan, tile=tile)
    numbers = "x".join(map(str, (tile.pixels, tile.channels, tile.inner)))
    how = f"{tile.warps} warps, {tile.stages} stages" + (", described" if tile.described else "")
    how += f", {tile.rows} rows" if tile.rows else ""
    return replace(case, operation=replace(case.operation, plan=plan), name=f"{case.name} by {numbers}, {how}")


# Tiles that compute row by row. No rule has one yet, as they have not run on a GPU; they are checked and timed there.
BY_ROWS = tuple(
    ConvolutionTile(pixels, 32, inner, warps, stages, described, rows)
    for rows in (8, 4, 16)
    for pixels, inner, warps, stages, described in (
        (128, 32, 4, 2, False),
        (128, 32, 4, 2, True),
        (128, 32, 4, 3, True),
        (128, 32, 8, 3, True),
        (128, 64, 8, 2, True),
        (256, 32, 8, 2, True),
    )
)
RULES_BY_ROWS = tuple(ConvolutionRule(64, 32, ANY, tile) for tile in BY_ROWS)


def by_every_rule(cases: Iterable[Case], rules: Sequence[ConvolutionRule], side: int, images: int) -> Iterator[Case]:
    """The convolutions of `cases`, on maps of one size, by every tile that they have at some size or batch.

    A compiler may get one combination of channels and tile wrong that no measured size has.
    """
    known = set()
    for case in cases:
        if case.operation not in (CONVOLUTION, CONVOLUTION_WITH_STATISTICS):
            continue
        _, weight, more, _, last, _, bias, residual, relu = case.make(Draw(torch.float16, "meta"))
        outputs, inputs, size, _ = weight.shape
        more, last = (0 if value is None else value.shape[1] for value in (more, last))
        flags = bias is not None, residual is not None, relu, case.operation is CONVOLUTION_WITH_STATISTICS
        smaller = convolve(images, inputs, outputs, side, side, size, more, last, *flags)
        covered = 0  # largest number of pixels that an earlier rule takes
        for rule in rules:
            if rule.tile.rows and (size == 1 or side % rule.tile.pixels):
                continue
            if inputs <= rule.inputs and outputs <= rule.outputs and rule.pixels > covered:
                covered = covered if rule.tile.described or rule.tile.rows else rule.pixels
                found = by_tile(smaller, rule.tile)
                if str(found) not in known:
                    known.add(str(found))
                    yield found


def is_own(case: Case, dtype: torch.dtype) -> bool:
    """Whether a convolution of features of `dtype` is our own on the architecture that is planned for."""
    x, weight, *_ = case.make(Draw(dtype, "meta"))
    return convolution.tile_for(x, weight, case.operation is CONVOLUTION_WITH_STATISTICS) is not None


RECORD = Record(
    operations=(CONVOLUTION, CONVOLUTION_WITH_STATISTICS),
    odd=(
        convolve(1, 16, 4, 1, 1),
        convolve(2, 32, 32, 7, 9, relu=True, residual=True),
        convolve(3, 48, 72, 5, 13, more=16, last=32, with_statistics=True),
        convolve(1, 16, 33, 9, 33, size=1, bias=False, with_statistics=True),
        convolve(1, 32, 48, 33, 40, size=1, relu=True),
        convolve(7, 64, 16, 2, 3, more=64, with_statistics=True),
    ),
    small=(
        convolve(2, 32, 48, 5, 7, more=16, last=48, relu=True, residual=True),
        convolve(2, 32, 48, 5, 7, with_statistics=True),
    ),
    kernels={"our convolution": r"^(described_)?convolution_(by_rows_)?kernel"},
    # The copy engine reads its maps, not its threads.
    narrow=frozenset({"described_convolution_kernel"}),
)
