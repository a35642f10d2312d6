"""Cases of what precedes a student's first convolution and what follows its last."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from kernels import student_ends
from kernels.cases.record import HALF, SINGLE, Case, Draw, Operation, Record, Shape, Work, values

_KIND = "a student's ends"


def _eager_inputs(a: Tensor, b: Tensor, interval: Tensor, factor: int, dtype: torch.dtype) -> Tensor:
    return F.pixel_unshuffle(torch.cat([a, b, interval], 1).to(dtype), factor)


def _eager_change(change: Tensor, a: Tensor, b: Tensor, interval: Tensor, factor: int) -> Tensor:
    low, high = interval.split(1, 1)
    start = torch.minimum(torch.maximum(torch.maximum(a, b), low), high)
    return torch.minimum(torch.maximum(start + F.pixel_shuffle(change, factor).to(a.dtype), low), high)


def _work_of_inputs(shapes: list[Shape]) -> Work:
    return Work(_KIND, 0, (SINGLE + HALF) * values(*shapes))


def _work_of_change(shapes: list[Shape]) -> Work:
    change, *planes = shapes
    size = SINGLE if change[1] == 1 else HALF
    return Work(_KIND, 0, size * values(change) + SINGLE * (values(*planes) + values(planes[0])))


STUDENT_INPUTS = Operation(
    "student_inputs",
    "what precedes a student's first convolution",
    "reads each once, writes once",
    student_ends.inputs_plan,
    student_ends.inputs_reference,
    student_ends.student_inputs,
    _eager_inputs,
    _work_of_inputs,
    takes_type=True,
)
STUDENT_CHANGE = Operation(
    "student_change",
    "what follows its last one, and the head of a DM-FNet that takes an interval",
    "reads each once, writes once",
    student_ends.change_plan,
    student_ends.change_reference,
    student_ends.student_change,
    _eager_change,
    _work_of_change,
)


def unshuffled(n: int, height: int, width: int, factor: int = 2) -> Case:
    def make(draw: Draw) -> tuple[Any, ...]:
        a, b, interval = (draw.table(n, planes, height, width) for planes in (1, 1, 2))
        return a, b, interval, factor, draw.dtype

    return Case(STUDENT_INPUTS, f"{n}x4x{height}x{width} by {factor}", make)


def changed(n: int, height: int, width: int, factor: int = 2) -> Case:
    """With a `factor` of 1, as a DM-FNet has it, whose change is float32."""

    def make(draw: Draw) -> tuple[Any, ...]:
        a, b, interval = (draw.table(n, planes, height, width) for planes in (1, 1, 2))
        new = draw.table if factor == 1 else draw.feature
        return new(n, factor**2, height // factor, width // factor), a, b, interval.sort(1).values, factor

    return Case(STUDENT_CHANGE, f"{n}x4x{height}x{width} by {factor}", make)


RECORD = Record(
    operations=(STUDENT_INPUTS, STUDENT_CHANGE),
    odd=(
        unshuffled(1, 2, 2),
        unshuffled(7, 34, 66),
        unshuffled(2, 9, 6, factor=3),
        changed(1, 2, 2),
        changed(7, 34, 66),
        changed(2, 9, 6, factor=3),
        changed(3, 5, 33, factor=1),
    ),
    small=(unshuffled(2, 6, 10), changed(2, 6, 10)),
    kernels={_KIND: r"^(inputs|change)_kernel"},
    narrow=frozenset({"inputs_kernel", "change_kernel"}),
)
