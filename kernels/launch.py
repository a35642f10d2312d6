"""What every kernel file shares: a launch as data, memory for results, and the registration of operators.

Feature maps are (N, C, H, W) tensors in channels-last memory, which the kernels see as N x pixels x C.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, ParamSpec, Protocol, TypeAlias, TypeVar, cast

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from kernels.tiles import Tiles, tiles_for

# Whose tiles are planned with for tensors that are not on a GPU: shapes alone, or interpreted.
OLDEST = 80
_assumed: ContextVar[int | None] = ContextVar("architecture", default=None)


@dataclass(frozen=True)
class Launch:
    """One launch of a Triton kernel.

    Attributes:
        kernel: the jitted function.
        grid: programs along each axis.
        arguments: by name; tensors, descriptors of them, None for one that is left out, integers and floats.
        constants: the tl.constexpr parameters, by name.
        warps, stages: warps of a program, and stages of its software pipeline.
    """

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Tensor | TensorDescriptor | int | float | None]
    constants: dict[str, Any] = field(default_factory=dict)
    warps: int = 4
    stages: int = 1

    @property
    def tensors(self) -> list[Tensor]:
        """All that it reads or writes."""
        values = (x.base if isinstance(x, TensorDescriptor) else x for x in self.arguments.values())
        return [x for x in values if isinstance(x, Tensor)]

    def run(self) -> None:
        options = {"num_warps": self.warps, "num_stages": self.stages}
        self.kernel[self.grid](**self.arguments, **self.constants, **options)


# The results of an operation and the launches that fill them.
Plan: TypeAlias = tuple[tuple[Tensor, ...], Sequence[Launch]]


def new_feature_map(shape: Sequence[int], like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Memory for a channels-last result (N, C, H, W), by default of the dtype of `like`."""
    return torch.empty(shape, dtype=dtype or like.dtype, device=like.device, memory_format=torch.channels_last)


def new_table(shape: Sequence[int], like: Tensor) -> Tensor:
    """Memory for a float32 table that one kernel leaves to another."""
    return torch.empty(shape, dtype=torch.float32, device=like.device)


def channels_last(x: Tensor) -> Tensor:
    """`x` with the channels of a pixel beside each other; copied only if they are not."""
    return x.contiguous(memory_format=torch.channels_last)


@lru_cache
def _architecture(device: torch.device) -> int:
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


@torch.compiler.assume_constant_result
def _planned_for(device: torch.device) -> int | None:
    """The architecture of a GPU, or what is assumed, if anything is. torch.compile could trace neither."""
    return _architecture(device) if device.type == "cuda" else _assumed.get()


@contextmanager
def assumed(architecture: int) -> Iterator[None]:
    """Plan for compute capability `architecture` / 10 what is not on a GPU."""
    token = _assumed.set(architecture)
    try:
        yield
    finally:
        _assumed.reset(token)


def tiles_of(x: Tensor) -> Tiles:
    """The launch configurations of the GPU that `x` is on, or of the assumed one."""
    return tiles_for(_planned_for(x.device) or OLDEST)


def on_gpu(x: Tensor) -> bool:
    """Whether `x` is on a GPU, or planned for one; a graph for others to run is neither."""
    return _planned_for(x.device) is not None


def run(plan: Plan) -> tuple[Tensor, ...]:
    """Launch what was planned, and return its results."""
    results, launches = plan
    # Triton launches on the current GPU, which need not be the one that the tensors are on.
    with torch.cuda.device(results[0].device) if results[0].is_cuda else nullcontext():
        for launch in launches:
            launch.run()
    return results


Arguments = ParamSpec("Arguments")
Result = TypeVar("Result", covariant=True)


class Operator(Protocol[Arguments, Result]):
    """A torch operator, called as its reference is."""

    def __call__(self, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result: ...

    def register_kernel(self, device: str, function: Callable[..., Any], /) -> Any:
        """Compute it by `function` on devices of this type from now on."""


def register(
    name: str,
    schema: str,
    reference: Callable[Arguments, Result],
    launcher: Callable[..., Result],
    fake: Callable[..., Result],
) -> Operator[Arguments, Result]:
    """The torch operator dmfnet::`name`: `reference` on a CPU, `launcher` on a GPU, `fake` for tracing.

    Where Triton interprets its kernels (TRITON_INTERPRET=1), `launcher` on a CPU too. There are no gradients: what
    trains uses PyTorch's own operators.
    """
    on_cpu = launcher if triton.knobs.runtime.interpret else reference
    operator = torch.library.custom_op(f"dmfnet::{name}", on_cpu, mutates_args=(), device_types="cpu", schema=schema)
    operator.register_kernel("cuda", launcher)
    operator.register_fake(fake)
    return cast(Operator[Arguments, Result], operator)
