"""Comparison of kernels with their float64 references, in NaN-filled memory surrounded by guard regions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
import triton
from torch import Tensor

from kernels import launch
from kernels.cases.record import Operation

# Relative root mean square errors. In half precision, results are rounded once, which costs up to 2^-11.8 (float16) and
# 2^-8.8 (bfloat16) on average; attention also rounds its weights.
TOLERANCES = {torch.float32: 1e-6, torch.float16: 4e-4, torch.bfloat16: 3.5e-3}
# Triton's interpreter rounds bfloat16 towards zero, which costs twice as much.
INTERPRETED_BFLOAT16 = 6e-3
GUARD = 256  # elements before and after a tensor


def expected(operation: Operation, arguments: Sequence[Any]) -> tuple[Tensor, ...]:
    """Computes the reference results in float64."""
    wide = [value.double() if isinstance(value, Tensor) else value for value in arguments]
    if operation.takes_type:
        wide[-1] = torch.float64
    results = operation.reference(*wide)
    return results if isinstance(results, tuple) else (results,)


def tolerance(dtype: torch.dtype) -> float:
    """Returns the largest acceptable relative root mean square error of a result of type `dtype`."""
    if dtype == torch.bfloat16 and triton.knobs.runtime.interpret:
        return INTERPRETED_BFLOAT16
    return TOLERANCES[dtype]


def error(got: Tensor, wanted: Tensor) -> float:
    """Relative root mean square error of the finite values; infinite if the non-finite values differ.

    Args:
        got: the kernel's result.
        wanted: the reference in float64; values that overflow the type of `got` are expected to be infinite.
    """
    rounded = wanted.to(got.dtype)
    finite = torch.isfinite(rounded)
    if not torch.equal(finite, torch.isfinite(got)):
        return float("inf")
    if not torch.equal(rounded[~finite].nan_to_num(nan=1.0), got[~finite].nan_to_num(nan=1.0)):
        return float("inf")
    difference = torch.where(finite, got.double() - wanted, 0.0).norm()
    size = torch.where(finite, wanted, 0.0).norm()
    return float(difference / size) if size > 0 else float(difference)


class Guarded:
    """Tensors surrounded by guard regions, which are NaN and must not be written to."""

    def __init__(self) -> None:
        self._kept: list[tuple[Tensor, Tensor]] = []  # memory that must not change, with a copy

    def copy(self, x: Any) -> Any:
        """Copies a tensor, with its strides, into guarded memory; returns any other value unchanged."""
        if not isinstance(x, Tensor):
            return x
        result = self._memory(x.shape, x.stride(), x.dtype, x.device).copy_(x)
        self._kept.append((result, x))
        return result

    def _memory(self, shape: Sequence[int], strides: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        size = 1 + sum((length - 1) * stride for length, stride in zip(shape, strides, strict=True))
        memory = torch.full((size + 2 * GUARD,), float("nan"), dtype=dtype, device=device)
        for guard in (memory[:GUARD], memory[GUARD + size :]):
            self._kept.append((guard, guard.clone()))
        return memory[GUARD : GUARD + size].as_strided(shape, strides)

    def new_feature_map(self, shape: Sequence[int], like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        _, channels, height, width = shape
        strides = (channels * height * width, 1, channels * width, channels)
        return self._memory(shape, strides, dtype or like.dtype, like.device)

    def new_table(self, shape: Sequence[int], like: Tensor) -> Tensor:
        return self._memory(shape, torch.empty(shape, device="meta").stride(), torch.float32, like.device)

    @contextmanager
    def allocations(self) -> Iterator[None]:
        """Within this context, memory that kernels allocate is guarded, and NaN until it is written."""
        with (
            mock.patch.object(launch, "new_feature_map", self.new_feature_map),
            mock.patch.object(launch, "new_table", self.new_table),
        ):
            yield

    def untouched(self) -> bool:
        """Whether all guards and inputs are unchanged."""
        return all(torch.allclose(kept, copy, rtol=0, atol=0, equal_nan=True) for kept, copy in self._kept)


def worst(operation: Operation, arguments: Sequence[Any]) -> float:
    """Returns the largest ratio of `error` to tolerance over a call's results; infinite if it wrote out of bounds."""
    guarded = Guarded()
    with guarded.allocations():
        results = launch.run(operation.plan(*[guarded.copy(value) for value in arguments]))
    if not guarded.untouched():
        return float("inf")
    wanted = list(expected(operation, arguments))
    if operation.gives_statistics and len(results) > 1:
        # They are of the result as it was rounded, not as it would have been.
        wanted[1] = operation.statistics(results[0].double())
    pairs = list(zip(results, wanted, strict=True))
    if operation.gives_statistics:  # means and squares are of different sizes
        got, value = pairs.pop()
        pairs += zip(got.unbind(2), value.unbind(2), strict=True)
    return max(error(got, value) / tolerance(got.dtype) for got, value in pairs)
