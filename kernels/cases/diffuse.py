"""Cases of the diffusion."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kernels import diffuse
from kernels.cases.record import HALF, SINGLE, Case, Draw, Operation, Record, Shape, Work, values


def _eager(a: Tensor, b: Tensor, noise: Tensor, levels: Tensor, sigmas: Tensor, dtype: torch.dtype) -> Tensor:
    steps = zip(levels, sigmas, noise, strict=True)
    return torch.cat([level * x + sigma * n[i] for level, sigma, n in steps for i, x in enumerate((a, b))]).to(dtype)


def _work(shapes: list[Shape]) -> Work:
    a, b, noise = shapes[:3]
    return Work("diffusion", 0, SINGLE * values(a, b, noise) + HALF * noise[0] * values(a, b))


DIFFUSE = Operation(
    "diffuse",
    "the noisy images of all six passes, rounded",
    "reads each once, writes once",
    diffuse.plan,
    diffuse.reference,
    diffuse.diffuse,
    _eager,
    _work,
    takes_type=True,
)


def noisy(n: int, height: int, width: int, steps: int = 3) -> Case:
    def make(draw: Draw) -> tuple[Any, ...]:
        a, b = draw.table(n, 1, height, width), draw.table(n, 1, height, width)
        return a, b, draw.table(steps, 2, height, width), draw.table(steps), draw.table(steps), draw.dtype

    return Case(DIFFUSE, f"{n}x1x{height}x{width}", make)


RECORD = Record(
    operations=(DIFFUSE,),
    odd=(noisy(1, 3, 5), noisy(7, 33, 32, steps=2)),
    small=(noisy(2, 5, 7),),
    kernels={"diffusion": r"^diffuse_kernel"},
)
