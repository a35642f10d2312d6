"""Cases of the convolutions that change the resolution."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.weak import WeakTensorKeyDictionary

from kernels import resampling
from kernels.cases.convolution import by_tile
from kernels.cases.record import HALF, Case, Draw, Operation, Record, Shape, Work, values
from kernels.tiles import ANY, ConvolutionRule, ConvolutionTile, Tiles


def _eager_down(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.conv2d(x, weight, bias, stride=2, padding=1)


# Weights in PyTorch's order, in which a network holds them: ordering them is no part of what is timed.
_KERNELS = WeakTensorKeyDictionary()


def _kernel_of(weight: Tensor) -> Tensor:
    """The inverse of `resampling.by_phase`: (I, O, 4, 4)."""
    if weight not in _KERNELS:
        outputs, inputs = weight.shape[1], weight.shape[3]
        phases_and_taps = weight.view(2, 2, outputs, 2, 2, inputs)
        kernel = phases_and_taps.permute(5, 2, 3, 0, 4, 1).reshape(inputs, outputs, 4, 4).flip(2, 3)
        _KERNELS[weight] = kernel.contiguous(memory_format=torch.channels_last)
    found: Tensor = _KERNELS[weight]
    return found


def _eager_up(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.conv_transpose2d(x, _kernel_of(weight), bias, stride=2, padding=1)


def _work_down(shapes: list[Shape]) -> Work:
    (n, inputs, height, width), weight = shapes[:2]
    out = n * ((height + 1) // 2) * ((width + 1) // 2) * weight[0]
    return Work("downsampling (strided convolution)", 2.0 * out * 9 * inputs, HALF * (values(*shapes) + out))


def _work_up(shapes: list[Shape]) -> Work:
    (n, inputs, height, width), weight = shapes[:2]
    out = 4 * n * height * width * weight[1]
    return Work("upsampling (transposed convolution)", 2.0 * out * 4 * inputs, HALF * (values(*shapes) + out))


DOWNSAMPLING = Operation(
    "downsampling_convolution",
    "the strided 3x3 convolution, with statistics",
    "reads once except at tile seams, writes once",
    resampling.downsampling_plan,
    resampling.downsampling_reference,
    resampling.downsampling_convolution,
    _eager_down,
    _work_down,
    multiplies_matrices=True,
    gives_statistics=True,
)
UPSAMPLING = Operation(
    "upsampling_convolution",
    "the transposed 4x4 convolution of stride 2, with statistics",
    "reads once for each phase of the result, writes once",
    resampling.upsampling_plan,
    resampling.upsampling_reference,
    resampling.upsampling_convolution,
    _eager_up,
    _work_up,
    multiplies_matrices=True,
    gives_statistics=True,
    statistics=resampling.statistics_by_phase,
)


def resample(n: int, inputs: int, outputs: int, height: int, width: int, up: bool) -> Case:
    """`height`, `width`: of the map that is given."""

    def make(draw: Draw) -> tuple[Any, ...]:
        x, bias = draw.feature(n, inputs, height, width), draw.parameter(outputs)
        if up:
            return x, draw.parameter(4, outputs, 4, inputs, scale=(4 * inputs) ** -0.5), bias
        weight = draw.parameter(outputs, inputs, 3, 3, scale=(9 * inputs) ** -0.5)
        return x, weight.contiguous(memory_format=torch.channels_last), bias

    return Case(UPSAMPLING if up else DOWNSAMPLING, f"{n}x{inputs}x{height}x{width} to {outputs}", make)


def resamplings(channels: int, images: int, height: int, width: int) -> Iterator[Case]:
    """Those of the network of `channels` on `images` maps of height x width, down and up again."""
    widths = [channels] * 4 + [2 * channels]
    for level in range(4):
        yield resample(images, channels, channels, height >> level, width >> level, up=False)
    for level in range(4, 0, -1):
        own = widths[level]
        yield resample(images, own, own, height >> level, width >> level, up=True)


SMALL = ConvolutionTile(32, 32, 32, 4, 3)
DESCRIBED = replace(SMALL, described=True)


def _tiles(*numbers: tuple[int, int, int, int, int, bool]) -> tuple[ConvolutionTile, ...]:
    return tuple(itertools.starmap(ConvolutionTile, numbers))


# Tiles to time, none of which was measured, for 32 channels and for 128.
NARROW = _tiles(
    (128, 32, 32, 4, 3, False),
    (128, 32, 32, 4, 4, False),
    (128, 32, 32, 8, 3, False),
    (64, 32, 32, 4, 4, False),
    (32, 32, 32, 2, 5, False),
    (32, 32, 32, 4, 5, False),
    (32, 64, 64, 4, 4, False),
    (128, 32, 32, 4, 4, True),
    (64, 32, 32, 4, 4, True),
)
WIDE = _tiles(
    (128, 128, 64, 4, 3, True),
    (128, 128, 64, 8, 3, True),
    (128, 128, 64, 8, 4, True),
    (64, 128, 64, 4, 4, True),
    (64, 128, 128, 4, 3, True),
    (64, 64, 128, 4, 4, True),
    (128, 128, 64, 8, 3, False),
    (64, 128, 64, 4, 4, False),
    (64, 64, 128, 4, 3, False),
)
# Rules to try in whole networks.
RULES = (
    ConvolutionRule(64, 64, 2**13, NARROW[5]),
    ConvolutionRule(64, 64, ANY, NARROW[0]),
    ConvolutionRule(ANY, ANY, 2**13, WIDE[5]),
    ConvolutionRule(ANY, ANY, ANY, WIDE[1]),
)


def by_rules(case: Case) -> Case:
    """`case`, one of `resample`'s, planned by the tile that `RULES` have for it on a GPU with TMA."""
    x, weight, _ = case.make(Draw(torch.float16, "meta"))
    up = case.operation is UPSAMPLING
    n, inputs, height, width = x.shape
    pixels = n * height * width // (1 if up else 4)
    tiles = Tiles(downsamplings=RULES, upsamplings=RULES).resampling(up, inputs, weight.shape[1 if up else 0], pixels)
    return by_tile(case, next(tiles))


RECORD = Record(
    operations=(DOWNSAMPLING, UPSAMPLING),
    odd=(
        resample(1, 16, 4, 1, 1, up=False),
        resample(2, 48, 40, 5, 14, up=False),
        resample(1, 16, 33, 8, 8, up=True),
        resample(2, 48, 16, 4, 16, up=True),
    ),
    small=(resample(2, 16, 24, 5, 8, up=False), resample(2, 16, 24, 8, 8, up=True)),
    prepared=(
        by_tile(resample(2, 32, 40, 10, 16, up=False), SMALL),
        by_tile(resample(1, 16, 24, 8, 12, up=True), SMALL),
        by_tile(resample(2, 32, 40, 8, 32, up=False), DESCRIBED),  # two rows a tile
        by_tile(resample(1, 16, 33, 2, 128, up=False), DESCRIBED),  # half a row
        by_tile(resample(2, 32, 40, 4, 16, up=True), DESCRIBED),
        by_tile(resample(1, 16, 33, 2, 64, up=True), DESCRIBED),
    ),
    kernels={"our strided and transposed convolutions": r"^(described_)?resampling_kernel"},
    narrow=frozenset({"described_resampling_kernel"}),
)
