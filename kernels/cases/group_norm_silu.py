"""Cases of GroupNorm and SiLU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from kernels import convolution_epilogue, group_norm_silu
from kernels.cases.record import HALF, Case, Draw, Operation, Record, Shape, Work


def _eager(
    x: Tensor,
    _x_statistics: Tensor | None,
    skip: Tensor | None,
    _skip_statistics: Tensor | None,
    noise_bias: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    eps: float,
    silu: bool,
) -> Tensor:
    if skip is not None:
        x = torch.cat([x, skip], 1)
    if noise_bias is not None:
        x = x + noise_bias.to(x.dtype).repeat_interleave(len(x) // len(noise_bias), 0)[:, :, None, None]
    x = F.group_norm(x, groups, weight, bias, eps)
    return F.silu(x) if silu else x


def _work(shapes: list[Shape]) -> Work:
    n, _, height, width = shapes[0]
    return Work(f"GroupNorm and SiLU, {height}x{width}", 0, HALF * 2 * n * height * width * shapes[-1][0])


GROUP_NORM_SILU = Operation(
    "group_norm_silu",
    "SiLU(GroupNorm(x beside skip, plus a bias for each timestep))",
    "reads once, writes once, given the statistics",
    group_norm_silu.plan,
    group_norm_silu.reference,
    group_norm_silu.group_norm_silu,
    _eager,
    _work,
)


def norm(
    n: int,
    channels: int,
    skip: int,
    height: int,
    width: int,
    groups: int,
    rows: int = 0,
    known: bool = False,
    silu: bool = True,
) -> Case:
    """`known`: the statistics are given; `rows`: of the noise bias."""

    def make(draw: Draw) -> tuple[Any, ...]:
        def given(x: Tensor | None) -> Tensor | None:
            if x is None or not known:
                return None
            if draw.device == "meta":
                return draw.table(*convolution_epilogue.statistics_shape(x))
            return convolution_epilogue.statistics_reference(x).float()

        x = draw.feature(n, channels, height, width)
        other = draw.feature(n, skip, height, width) if skip else None
        total = channels + skip
        noise_bias = draw.table(rows, total) if rows else None
        weight, bias = draw.parameter(total, scale=0.1, shift=1.0), draw.parameter(total, scale=0.1)
        return x, given(x), other, given(other), noise_bias, weight, bias, groups, 1e-5, silu

    flags = [label for label, on in (("bias", rows), ("known", known), ("silu", silu)) if on]
    width_name = f"{channels}+{skip}" if skip else f"{channels}"
    return Case(GROUP_NORM_SILU, f"{n}x{width_name}x{height}x{width} {' '.join(flags)}".strip(), make)


RECORD = Record(
    operations=(GROUP_NORM_SILU,),
    # Among them groups that straddle the seam.
    odd=(
        norm(1, 1, 0, 1, 33, 1),
        norm(1, 32, 0, 1, 1, 8),
        norm(7, 32, 0, 4, 4, 8, known=True),
        norm(6, 48, 0, 5, 7, 3, rows=3),
        norm(2, 64, 32, 3, 11, 8, known=True),
        norm(2, 64, 32, 11, 3, 6, rows=1, silu=False),
        norm(1, 128, 65, 7, 5, 1),
        norm(1, 96, 48, 5, 3, 144),
        norm(2, 32, 0, 24, 41, 8, rows=2, known=True),
        norm(2, 24, 8, 5, 7, 2, known=True),
        norm(1, 128, 0, 5, 7, 1),
    ),
    small=(norm(3, 32, 16, 5, 7, 3, rows=3), norm(2, 32, 0, 5, 7, 8)),
    kernels={"GroupNorm and SiLU": r"^normalize_kernel", "moments of norms with many parts": r"^moments_kernel"},
    narrow=frozenset({"moments_kernel"}),
)
