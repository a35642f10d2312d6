"""Cases of the fusion gate."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from kernels import fusion_gate
from kernels.cases.record import HALF, Case, Draw, Operation, Record, Shape, Work, values
from kernels.tiles import ANY, GateRule, Tile


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


def by_rule(case: Case, rule: GateRule) -> Case:
    """`case`, one of `gate`'s, planned by this rule whatever its size."""
    plan = partial(fusion_gate.plan_by_rule, rule)
    launches = 2 if rule.folded else 3
    tiles = "x".join(str(number) for tile in (rule.pool, rule.gate) for number in vars(tile).values())
    name = f"{case.name} in {launches} launches, {rule.parts} parts, {tiles}"
    return replace(case, operation=replace(case.operation, plan=plan), name=name)


def rule(folded: bool, parts: int, pool: Tile, gate: Tile) -> GateRule:
    """A rule for maps of any size."""
    return GateRule(ANY, ANY, folded, parts, pool, gate)


# Rules to time, none of which was measured: a gate of two launches for small maps, and one of three for large ones.
TWO = rule(True, 32, Tile(16, 128), Tile(16, 32, 2))
THREE = rule(False, 128, Tile(64, 128, 8), Tile(64, 32, 4))
LARGER = replace(TWO, gate=Tile(64, 64))
CANDIDATES = (
    TWO,
    LARGER,
    replace(TWO, gate=Tile(16, 64, 4)),
    replace(TWO, gate=Tile(64, 32, 4)),
    replace(TWO, parts=128, gate=Tile(64, 32, 4)),
    replace(TWO, parts=128, pool=THREE.pool, gate=Tile(64, 32, 4)),
    replace(TWO, parts=128, pool=THREE.pool, gate=Tile(256, 32, 8)),
    THREE,
    replace(THREE, parts=512, pool=Tile(16, 128)),
    replace(THREE, parts=256, pool=Tile(32, 128)),
    replace(THREE, gate=Tile(16, 64, 4)),
)
# Rules to try in whole networks.
RULES = (replace(TWO, pixels=2**12), THREE)

RECORD = Record(
    operations=(FUSION_GATE,),
    odd=(gate(1, 16, 4, 4), gate(7, 32, 5, 9), gate(1, 72, 9, 17), gate(2, 128, 8, 4)),
    small=(gate(2, 32, 5, 7),),
    prepared=(
        by_rule(gate(2, 16, 4, 4), TWO),
        by_rule(gate(1, 72, 9, 5), LARGER),
        by_rule(gate(1, 16, 8, 12), replace(LARGER, parts=2)),
        by_rule(gate(2, 24, 5, 7), THREE),
    ),
    kernels={"fusion gate": r"^(pool|channel|spatial|attentions|gate|folded_gate)_kernel"},
    narrow=frozenset({"channel_kernel", "spatial_kernel", "attentions_kernel"}),
)
