"""Cases of what follows a convolution of cuDNN's, and of the statistics of channels."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from kernels import convolution_epilogue
from kernels.cases.record import HALF, Case, Draw, Operation, Record, Shape, Work, values
from kernels.launch import Plan

_KIND = "epilogue of a convolution of cuDNN's"


def _plan(h: Tensor, bias: Tensor | None, residual: Tensor | None, relu: bool) -> Plan:
    return convolution_epilogue.plan(h, bias, residual, relu, write=True, statistics=False)


def _plan_with_statistics(h: Tensor, bias: Tensor | None, residual: Tensor | None, relu: bool) -> Plan:
    return convolution_epilogue.plan(h, bias, residual, relu, write=True, statistics=True)


def _plan_statistics(x: Tensor) -> Plan:
    return convolution_epilogue.plan(x, None, None, False, write=False, statistics=True)


def eager_epilogue(h: Tensor, bias: Tensor | None, residual: Tensor | None, relu: bool) -> Tensor:
    if bias is not None:
        h = h + bias[:, None, None]
    if relu:
        h = F.relu(h)
    return h if residual is None else h + residual


def _work(shapes: list[Shape]) -> Work:
    return Work(_KIND, 0, HALF * values(shapes[0], *(shape for shape in shapes if len(shape) == 4)))


def _work_of_statistics(shapes: list[Shape]) -> Work:
    return Work(_KIND, 0, HALF * values(shapes[0]))


EPILOGUE = Operation(
    "convolution_epilogue",
    "relu(h + bias) + residual, of what cuDNN wrote",
    "reads each once, writes once",
    _plan,
    convolution_epilogue.reference,
    convolution_epilogue.convolution_epilogue,
    eager_epilogue,
    _work,
)
EPILOGUE_WITH_STATISTICS = Operation(
    "convolution_epilogue_with_statistics",
    "the same, and mean and spread of every channel of the result",
    "no more passes",
    _plan_with_statistics,
    convolution_epilogue.reference_with_statistics,
    convolution_epilogue.convolution_epilogue_with_statistics,
    eager_epilogue,
    _work,
    gives_statistics=True,
)
STATISTICS = Operation(
    "channel_statistics",
    "only the statistics, of what cuDNN wrote",
    "reads once",
    _plan_statistics,
    convolution_epilogue.statistics_reference,
    convolution_epilogue.channel_statistics,
    None,
    _work_of_statistics,
    gives_statistics=True,
)


def statistics(n: int, channels: int, height: int, width: int) -> Case:
    def make(draw: Draw) -> tuple[Any, ...]:
        return (draw.feature(n, channels, height, width),)

    return Case(STATISTICS, f"{n}x{channels}x{height}x{width}", make)


def epilogue(
    n: int, channels: int, height: int, width: int, bias: bool, residual: bool, relu: bool, with_statistics: bool
) -> Case:
    def make(draw: Draw) -> tuple[Any, ...]:
        h = draw.feature(n, channels, height, width)
        return (
            h,
            draw.parameter(channels) if bias else None,
            draw.feature(n, channels, height, width) if residual else None,
            relu,
        )

    parts = [label for label, given in (("bias", bias), ("relu", relu), ("residual", residual)) if given]
    name = f"{n}x{channels}x{height}x{width} {' '.join(parts)}".strip()
    return Case(EPILOGUE_WITH_STATISTICS if with_statistics else EPILOGUE, name, make)


RECORD = Record(
    operations=(EPILOGUE, EPILOGUE_WITH_STATISTICS, STATISTICS),
    odd=(
        statistics(1, 32, 1, 1),
        statistics(7, 33, 5, 13),
        statistics(1, 65, 33, 33),
        epilogue(1, 1, 3, 3, bias=True, residual=True, relu=True, with_statistics=False),
        epilogue(2, 65, 1, 33, bias=True, residual=False, relu=True, with_statistics=False),
        epilogue(7, 24, 5, 7, bias=False, residual=True, relu=False, with_statistics=True),
        epilogue(1, 128, 17, 2, bias=True, residual=True, relu=False, with_statistics=True),
        epilogue(1, 16, 96, 97, bias=True, residual=False, relu=False, with_statistics=True),
    ),
    small=(
        statistics(2, 32, 5, 7),
        epilogue(2, 32, 5, 7, bias=True, residual=True, relu=True, with_statistics=False),
        epilogue(2, 32, 5, 7, bias=True, residual=True, relu=True, with_statistics=True),
    ),
    kernels={"epilogues and statistics": r"^epilogue_kernel"},
)
