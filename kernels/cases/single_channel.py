"""Cases of the convolutions from one or two channels, and to a single one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from kernels import single_channel
from kernels.cases.record import HALF, SINGLE, Case, Draw, Operation, Record, Shape, Work, values


def _eager_first(x: Tensor, weight: Tensor, bias: Tensor, more: Tensor | None) -> Tensor:
    x = x if more is None else torch.cat([x, more])
    return F.conv2d(x.to(weight.dtype), weight, bias, padding=1)


def _eager_interval(x: Tensor, weight: Tensor) -> Tensor:
    return F.conv2d(x.to(weight.dtype, memory_format=torch.channels_last), weight, padding=1)


def _work_of_first(shapes: list[Shape]) -> Work:
    """With further images they are float32, as the network gets them."""
    x, weight, bias, *more = shapes
    out = values(x, *more) * weight[0]
    size = SINGLE if more else HALF
    return Work("first convolution", 2.0 * out * 9, size * values(x, *more) + HALF * (values(weight, bias) + out))


def _work_of_interval(shapes: list[Shape]) -> Work:
    (n, planes, height, width), weight = shapes
    out = n * height * width * weight[0]
    moved = SINGLE * values(shapes[0]) + HALF * (values(weight) + out)
    return Work("convolution of the interval", 2.0 * out * 9 * planes, moved)


def _work_of_head(shapes: list[Shape]) -> Work:
    x = shapes[0]
    return Work("head", 2.0 * 9 * values(x), HALF * values(x) + SINGLE * values(x) / x[1])


FIRST_CONVOLUTION = Operation(
    "first_convolution",
    "the convolution from a single channel, with statistics",
    "reads once, writes once",
    single_channel.first_plan,
    single_channel.first_reference,
    single_channel.first_convolution,
    _eager_first,
    _work_of_first,
    multiplies_matrices=True,
    gives_statistics=True,
)
INTERVAL_CONVOLUTION = Operation(
    "interval_convolution",
    "the convolution from the interval's two planes",
    "reads once, writes once",
    single_channel.planes_plan,
    single_channel.planes_reference,
    single_channel.interval_convolution,
    _eager_interval,
    _work_of_interval,
    multiplies_matrices=True,
)
HEAD = Operation(
    "head",
    "the convolution to a single channel, with activations",
    "reads once, writes once",
    single_channel.head_plan,
    single_channel.head_reference,
    single_channel.head,
    single_channel.head_reference,  # PyTorch's operators, in float32 as the network has them
    _work_of_head,
)


def from_one(n: int, channels: int, height: int, width: int, both: bool = False) -> Case:
    """`both`: n images of each kind, as the network gets them, and not all of them in the type of the weights."""

    def make(draw: Draw) -> tuple[Any, ...]:
        weight, bias = draw.parameter(channels, 1, 3, 3), draw.parameter(channels)
        if both:
            return draw.table(n, 1, height, width), weight, bias, draw.table(n, 1, height, width)
        return draw.feature(n, 1, height, width), weight, bias, None

    return Case(FIRST_CONVOLUTION, f"{'2x' if both else ''}{n}x1x{height}x{width} to {channels}", make)


def from_interval(n: int, channels: int, height: int, width: int) -> Case:
    def make(draw: Draw) -> tuple[Any, ...]:
        weight = draw.parameter(channels, 2, 3, 3).contiguous(memory_format=torch.channels_last)
        return draw.table(n, 2, height, width), weight

    return Case(INTERVAL_CONVOLUTION, f"{n}x2x{height}x{width} to {channels}", make)


def to_one(n: int, channels: int, height: int, width: int, tanh: bool) -> Case:
    def make(draw: Draw) -> tuple[Any, ...]:
        weight = draw.table(1, channels, 3, 3) * (9 * channels) ** -0.5
        return draw.feature(n, channels, height, width), weight, draw.table(1), tanh

    return Case(HEAD, f"{n}x{channels}x{height}x{width}{' tanh' if tanh else ''}", make)


RECORD = Record(
    operations=(FIRST_CONVOLUTION, INTERVAL_CONVOLUTION, HEAD),
    odd=(
        from_one(1, 16, 1, 1),
        from_one(2, 33, 9, 33),
        from_one(7, 72, 3, 5),
        from_interval(3, 33, 9, 17),
        to_one(1, 16, 3, 2, tanh=True),
        to_one(3, 65, 9, 17, tanh=True),
        to_one(7, 8, 4, 33, tanh=False),
    ),
    small=(from_one(2, 33, 5, 7), from_interval(2, 16, 5, 7), to_one(2, 33, 5, 7, tanh=True)),
    prepared=(from_one(2, 33, 9, 13, both=True),),
    kernels={"first convolution": r"^first_kernel", "head": r"^head_kernel"},
    narrow=frozenset({"first_kernel"}),
)
