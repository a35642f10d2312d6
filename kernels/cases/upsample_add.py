"""Cases of the bilinear upsampling."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from kernels import upsample_add
from kernels.cases.record import HALF, Case, Draw, Operation, Record, Shape, Work, values


def _eager(x: Tensor, addend: Tensor | None, relu: bool) -> Tensor:
    result = F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=True)
    if relu:
        result = F.relu(result)
    return result if addend is None else result + addend


def _work(shapes: list[Shape]) -> Work:
    return Work("bilinear upsampling", 0, HALF * (values(*shapes) + 4 * values(shapes[0])))


UPSAMPLE_ADD = Operation(
    "upsample_add",
    "bilinear x2, with a ReLU, or added to a map",
    "reads each once, writes once",
    upsample_add.plan,
    upsample_add.reference,
    upsample_add.upsample_add,
    _eager,
    _work,
)


def upsample(n: int, channels: int, height: int, width: int, addend: bool, relu: bool) -> Case:
    def make(draw: Draw) -> tuple[Any, ...]:
        x = draw.feature(n, channels, height, width)
        return x, draw.feature(n, channels, 2 * height, 2 * width) if addend else None, relu

    flags = [label for label, on in (("relu", relu), ("addend", addend)) if on]
    return Case(UPSAMPLE_ADD, f"{n}x{channels}x{height}x{width} {' '.join(flags)}".strip(), make)


RECORD = Record(
    operations=(UPSAMPLE_ADD,),
    odd=(
        upsample(1, 32, 1, 1, addend=True, relu=False),
        upsample(1, 65, 1, 5, addend=False, relu=True),
        upsample(7, 17, 3, 2, addend=True, relu=True),
    ),
    small=(upsample(2, 32, 5, 7, addend=True, relu=True),),
    kernels={"bilinear upsampling": r"^upsample_kernel"},
)
