"""Shared by all kernel files: launches as data, allocation of results, and registration of operators.

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

# Architecture whose tiles are used for tensors that are not on a GPU: shapes without data, or the interpreter's.
OLDEST = 80
_assumed: ContextVar[int | None] = ContextVar("architecture", default=None)


@dataclass(frozen=True)
class Launch:
    """One launch of a Triton kernel.

    Attributes:
        kernel: the jitted function.
        grid: programs along each axis.
        arguments: by name: tensors, tensor descriptors, None for an omitted tensor, integers and floats.
        constants: the tl.constexpr parameters, by name.
        warps, stages: warps per program, and stages of its software pipeline.
        fused_multiply_add: whether the compiler may skip the rounding of a product that is added to.
    """

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Tensor | TensorDescriptor | int | float | None]
    constants: dict[str, Any] = field(default_factory=dict)
    warps: int = 4
    stages: int = 1
    fused_multiply_add: bool = True

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors that the launch reads or writes."""
        values = (x.base if isinstance(x, TensorDescriptor) else x for x in self.arguments.values())
        return [x for x in values if isinstance(x, Tensor)]

    def run(self) -> None:
        options = {"num_warps": self.warps, "num_stages": self.stages, "enable_fp_fusion": self.fused_multiply_add}
        self.kernel[self.grid](**self.arguments, **self.constants, **options)


# The results of an operation and the launches that fill them.
Plan: TypeAlias = tuple[tuple[Tensor, ...], Sequence[Launch]]


def new_feature_map(shape: Sequence[int], like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Allocates a channels-last result (N, C, H, W), by default of the dtype of `like`."""
    return torch.empty(shape, dtype=dtype or like.dtype, device=like.device, memory_format=torch.channels_last)


def new_table(shape: Sequence[int], like: Tensor) -> Tensor:
    """Allocates a contiguous float32 table, such as one kernel passes to another."""
    return torch.empty(shape, dtype=torch.float32, device=like.device)


def channels_last(x: Tensor) -> Tensor:
    """Returns `x` in channels-last memory, copied only if necessary."""
    return x.contiguous(memory_format=torch.channels_last)


@lru_cache
def _architecture(device: torch.device) -> int:
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


@torch.compiler.assume_constant_result
def _planned_for(device: torch.device) -> int | None:
    """The GPU's architecture, or else the assumed one, if any. A constant to torch.compile, which can trace neither."""
    return _architecture(device) if device.type == "cuda" else _assumed.get()


@contextmanager
def assumed(architecture: int) -> Iterator[None]:
    """Within this context, tensors that are not on a GPU are planned for compute capability `architecture` / 10."""
    token = _assumed.set(architecture)
    try:
        yield
    finally:
        _assumed.reset(token)


def tiles_of(x: Tensor) -> Tiles:
    """Launch configurations for the GPU that `x` is on; elsewhere for the assumed architecture, or the oldest."""
    return tiles_for(_planned_for(x.device) or OLDEST)


def on_gpu(x: Tensor) -> bool:
    """Whether `x` is on a GPU or planned for an assumed one, which is not the case in graphs for other runtimes."""
    return _planned_for(x.device) is not None


def run(plan: Plan) -> tuple[Tensor, ...]:
    """Runs the planned launches and returns the results."""
    results, launches = plan
    # Triton launches on the current GPU, which need not be the tensors' GPU.
    with torch.cuda.device(results[0].device) if results[0].is_cuda else nullcontext():
        for launch in launches:
            launch.run()
    return results


Arguments = ParamSpec("Arguments")
Result = TypeVar("Result", covariant=True)


class Operator(Protocol[Arguments, Result]):
    """A torch operator with the call signature of its reference."""

    def __call__(self, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result: ...

    def register_kernel(self, device: str, function: Callable[..., Any], /) -> Any:
        """Makes `function` the implementation on devices of this type."""


def register(
    name: str,
    schema: str,
    reference: Callable[Arguments, Result],
    launcher: Callable[..., Result],
    fake: Callable[..., Result],
) -> Operator[Arguments, Result]:
    """Registers the torch operator dmfnet::`name`: `reference` on CPUs, `launcher` on GPUs, `fake` for tracing.

    In Triton's interpreter (TRITON_INTERPRET=1), `launcher` also runs on CPUs. The operators have no gradients:
    training uses PyTorch's own.
    """
    on_cpu = launcher if triton.knobs.runtime.interpret else reference
    operator = torch.library.custom_op(f"dmfnet::{name}", on_cpu, mutates_args=(), device_types="cpu", schema=schema)
    operator.register_kernel("cuda", launcher)
    operator.register_fake(fake)
    return cast(Operator[Arguments, Result], operator)
