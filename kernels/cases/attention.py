"""Cases of attention."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from kernels import attention
from kernels.cases.record import HALF, Case, Draw, Operation, Record, Shape, Work, values


def _eager(qkv: Tensor) -> Tensor:
    tokens = qkv.unflatten(1, (3, 1, -1)).flatten(4).transpose(3, 4)
    attended = F.scaled_dot_product_attention(*tokens.unbind(1))
    return attended.transpose(2, 3).flatten(1, 2).unflatten(2, qkv.shape[2:])


def _work(shapes: list[Shape]) -> Work:
    n, triple, height, width = shapes[0]
    moved = values(shapes[0])
    flop = 4.0 * n * (height * width) ** 2 * (triple // 3)
    return Work("attention", flop, HALF * (moved + moved // 3))


ATTENTION = Operation(
    "attention",
    "softmax(q k^T) v, one head, the softmax computed online",
    "reads q once, k and v once for every 32 queries",
    attention.plan,
    attention.reference,
    attention.attention,
    _eager,
    _work,
    multiplies_matrices=True,
)


def attend(n: int, channels: int, height: int, width: int) -> Case:
    def make(draw: Draw) -> tuple[Any, ...]:
        return (draw.feature(n, 3 * channels, height, width),)

    return Case(ATTENTION, f"{n}x{channels}x{height}x{width}", make)


RECORD = Record(
    operations=(ATTENTION,),
    odd=(
        attend(1, 16, 4, 4),
        attend(7, 64, 5, 3),
        attend(1, 128, 11, 3),
        attend(1, 192, 5, 7),
        attend(1, 256, 8, 9),
    ),
    small=(attend(2, 32, 5, 7),),
    kernels={"attention": r"^attention_kernel"},
)
