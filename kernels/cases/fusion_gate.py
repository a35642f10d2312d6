"""Cases of the fusion gate."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from kernels import fusion_gate
from kernels.cases.record import HALF, Case, Draw, Operation, Record, Shape, Work, values


def _eager(
    x: Tensor,
    y: Tensor,
    reduce_weight: Tensor,
    reduce_bias: Tensor,
    expand_weight: Tensor,
    expand_bias: Tensor,
    spatial_weight: Tensor,
    spatial_bias: Tensor,
    pixel_weight: Tensor,
    pixel_bias: Tensor,
) -> Tensor:
    s = x + y
    hidden = F.relu(F.linear(s.mean((2, 3)), reduce_weight, reduce_bias))
    by_channel = F.linear(hidden, expand_weight, expand_bias)[:, :, None, None]
    seen = F.pad(torch.cat([s.mean(1, keepdim=True), s.amax(1, keepdim=True)], 1), (3, 3, 3, 3), mode="reflect")
    q = by_channel + F.conv2d(seen, spatial_weight, spatial_bias)
    both = F.pad(torch.stack([s, q], 2).flatten(1, 2), (1, 1, 1, 1), mode="reflect")
    kernel = pixel_weight.permute(2, 0, 1).unflatten(2, (3, 3))
    w = s * torch.sigmoid(F.conv2d(both, kernel, pixel_bias, groups=s.shape[1]))
    return w * x + (1 - w) * y + s


def _work(shapes: list[Shape]) -> Work:
    return Work("fusion gate", 0, HALF * 3 * values(shapes[0]))


FUSION_GATE = Operation(
    "fusion_gate",
    "the whole adaptive attention fusion of x and y",
    "reads both twice, writes once",
    fusion_gate.plan,
    fusion_gate.reference,
    fusion_gate.fusion_gate,
    _eager,
    _work,
)


def gate(n: int, channels: int, height: int, width: int) -> Case:
    def make(draw: Draw) -> tuple[Any, ...]:
        reduced = max(1, channels // 8)
        return (
            draw.feature(n, channels, height, width),
            draw.feature(n, channels, height, width),
            draw.parameter(reduced, channels, scale=channels**-0.5),
            draw.parameter(reduced, scale=0.1),
            draw.parameter(channels, reduced, scale=reduced**-0.5),
            draw.parameter(channels, scale=0.1),
            draw.parameter(1, 2, 7, 7, scale=0.1),
            draw.parameter(1, scale=0.1),
            draw.parameter(2, 9, channels, scale=0.3),
            draw.parameter(channels, scale=0.1),
        )

    return Case(FUSION_GATE, f"{n}x{channels}x{height}x{width}", make)


RECORD = Record(
    operations=(FUSION_GATE,),
    odd=(gate(1, 16, 4, 4), gate(7, 32, 5, 9), gate(1, 72, 9, 17), gate(2, 128, 8, 4)),
    small=(gate(2, 32, 5, 7),),
    kernels={"fusion gate": r"^(pool|channel|spatial|gate)_kernel"},
    narrow=frozenset({"channel_kernel", "spatial_kernel"}),
)
