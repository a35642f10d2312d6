"""Cases of the convolutions from and to a single channel."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from kernels import single_channel
from kernels.cases.record import HALF, SINGLE, Case, Draw, Operation, Record, Shape, Work, values


def _eager_first(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.conv2d(x, weight, bias, padding=1)


def _work_of_first(shapes: list[Shape]) -> Work:
    (n, _, height, width), weight = shapes[:2]
    out = n * height * width * weight[0]
    return Work("first convolution", 2.0 * out * 9, HALF * (values(*shapes) + out))


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


def from_one(n: int, channels: int, height: int, width: int) -> Case:
    def make(draw: Draw) -> tuple[Any, ...]:
        return draw.feature(n, 1, height, width), draw.parameter(channels, 1, 3, 3), draw.parameter(channels)

    return Case(FIRST_CONVOLUTION, f"{n}x1x{height}x{width} to {channels}", make)


def to_one(n: int, channels: int, height: int, width: int, tanh: bool) -> Case:
    def make(draw: Draw) -> tuple[Any, ...]:
        weight = draw.table(1, channels, 3, 3) * (9 * channels) ** -0.5
        return draw.feature(n, channels, height, width), weight, draw.table(1), tanh

    return Case(HEAD, f"{n}x{channels}x{height}x{width}{' tanh' if tanh else ''}", make)


RECORD = Record(
    operations=(FIRST_CONVOLUTION, HEAD),
    odd=(
        from_one(1, 16, 1, 1),
        from_one(2, 33, 9, 33),
        from_one(7, 72, 3, 5),
        to_one(1, 16, 3, 2, tanh=True),
        to_one(3, 65, 9, 17, tanh=True),
        to_one(7, 8, 4, 33, tanh=False),
    ),
    small=(from_one(2, 33, 5, 7), to_one(2, 33, 5, 7, tanh=True)),
    kernels={"first convolution": r"^first_kernel", "head": r"^head_kernel"},
    narrow=frozenset({"first_kernel"}),
)
