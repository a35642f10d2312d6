"""What is known of operations beside their kernels: a record for each kernel file, for tests, reports, benchmarks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from kernels.convolution_epilogue import statistics_reference
from kernels.launch import Operator, Plan

Shape: TypeAlias = list[int]
HALF, SINGLE = 2, 4  # bytes


class Draw:
    """Random inputs: features of dtype `dtype` in channels-last memory, and parameters.

    Args:
        dtype: of the features.
        device: "meta" gives shapes alone.
        seed: of the draws.
        scale, shift: of the features.
    """

    def __init__(self, dtype: torch.dtype, device: str, seed: int = 0, scale: float = 1.0, shift: float = 0.0) -> None:
        self.dtype, self.device, self.scale, self.shift = dtype, device, scale, shift
        self._generator = None if device == "meta" else torch.Generator(device).manual_seed(seed)

    def table(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        if self._generator is None:
            return torch.empty(shape, dtype=dtype, device=self.device)
        return torch.randn(shape, generator=self._generator, device=self.device).to(dtype)

    def parameter(self, *shape: int, scale: float = 1.0, shift: float = 0.0) -> Tensor:
        return (shift + scale * self.table(*shape)).to(self.dtype)

    def feature(self, n: int, channels: int, height: int, width: int) -> Tensor:
        values = (self.shift + self.scale * self.table(n, channels, height, width)).to(self.dtype)
        return values.contiguous(memory_format=torch.channels_last)


@dataclass(frozen=True)
class Work:
    """What one call computes and moves: the row of docs/gpu.md that it belongs to, operations, and bytes.

    Multiply-adds count as two operations; bytes are read and written once.
    """

    kind: str
    flop: float
    bytes: float


def values(*shapes: Shape) -> int:
    return sum(math.prod(shape) for shape in shapes)


@dataclass(frozen=True)
class Operation:
    """One fused operation.

    Attributes:
        name: of the torch operator.
        does, passes: what it computes, and its passes over feature maps; a row of README.md.
        plan, reference: as in its file; they take the same arguments.
        operator: the torch operator.
        eager: what a user of PyTorch runs for the same: its own operators in the dtype of the features, which are
            channels-last. Statistics are no part of it, as PyTorch's GroupNorm takes its own; None where nothing is
            left without them.
        work: of a call in half precision, from the shapes of its tensors in their order.
        multiplies_matrices: on matrix units, of which Triton's interpreter gets bfloat16 wrong.
        takes_type: the last argument is the type of the result, whatever that of the inputs is.
        gives_statistics: the last result is the statistics of channels, of the first result if there is another.
        statistics: computes them from that result; they differ in what a part is.
    """

    name: str
    does: str
    passes: str
    plan: Callable[..., Plan]
    reference: Callable[..., Any]
    operator: Operator[..., Any]
    eager: Callable[..., Tensor] | None
    work: Callable[[list[Shape]], Work]
    multiplies_matrices: bool = False
    takes_type: bool = False
    gives_statistics: bool = False
    statistics: Callable[[Tensor], Tensor] = statistics_reference


@dataclass(frozen=True)
class Case:
    """One call: `make` draws its arguments."""

    operation: Operation
    name: str
    make: Callable[[Draw], tuple[Any, ...]]

    def __str__(self) -> str:
        return f"{self.operation.name} {self.name}"


@dataclass(frozen=True)
class Record:
    """Of one kernel file.

    Attributes:
        operations: those that it has.
        odd: cases one pixel and one channel beyond the tiles, single pixels, batches of 1 and 7 and the like; every
            operation has some.
        small: cases that are repeated in every memory layout and with extreme values.
        prepared: cases planned in ways that no architecture uses, because they have not been measured. Odd ones, which
            are also repeated like the small ones.
        kernels: rows of docs/gpu.md's table of kernels; a pattern of the kernels' names for each.
        narrow: kernels that need not load 16 bytes at a time: threads of theirs read no feature maps.
    """

    operations: tuple[Operation, ...]
    odd: tuple[Case, ...]
    small: tuple[Case, ...]
    kernels: Mapping[str, str]
    narrow: frozenset[str] = frozenset()
    prepared: tuple[Case, ...] = ()
