"""Checks every fused operation against its float64 reference, then times it and its equivalent in eager PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.gpu.machine import Machine
from dmfnet_fast.config import DMFNET_PRESETS, PRESETS, StudentConfig
from dmfnet_fast.engines.arithmetic import arithmetic
from dmfnet_fast.model.student import from_brighter
from kernels import launch
from kernels.cases import (
    ATTENTION,
    CONVOLUTION,
    CONVOLUTION_WITH_STATISTICS,
    DIFFUSE,
    EPILOGUE,
    EPILOGUE_WITH_STATISTICS,
    FIRST_CONVOLUTION,
    FUSION_GATE,
    GROUP_NORM_SILU,
    HEAD,
    ODD_CASES,
    OF_MATRICES,
    OPERATIONS,
    STUDENT_CHANGE,
    STUDENT_INPUTS,
    UPSAMPLE_ADD,
    Case,
    Draw,
    Operation,
    network_cases,
    own_cases,
    student_cases,
)
from kernels.checks import worst
from kernels.launch import assumed
from kernels.single_channel import head_reference

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
SIZE = 256
MOST_SETS = 256  # of inputs, each of which takes time to draw


def _unique(cases: Iterable[Case]) -> list[Case]:
    return list({str(case): case for case in cases}.values())


def _of_network(name: str) -> list[Case]:
    """Calls of the DM-FNet `name` where cuDNN computes all convolutions."""
    config = DMFNET_PRESETS[name]
    return _unique(network_cases(config.channels, config.norm_groups, SIZE, SIZE))


def _own(machine: Machine, *names: str) -> list[Case]:
    """Further calls of the networks on `machine`, with our own convolutions."""
    found: list[Case] = []
    with assumed(machine.architecture):
        for config in (PRESETS[name] for name in names):
            if isinstance(config, StudentConfig):
                found += student_cases(config.channels, SIZE, SIZE, torch.float16, factor=config.factor)
            else:
                sizes = config.channels, config.norm_groups, SIZE, SIZE
                steps = len(config.timesteps)
                found += own_cases(*sizes, torch.float16, steps=steps, tanh=not config.interval)
    return _unique(found)


def _few() -> list[Case]:
    """The first odd case of each operation."""
    return [next(case for case in ODD_CASES if case.operation is operation) for operation in OPERATIONS]


def checked_cases(machine: Machine) -> list[tuple[Case, tuple[torch.dtype, ...]]]:
    """The odd cases in every type, and the networks' calls at 256x256 in float16."""
    if machine.interpreted:
        return [(case, DTYPES) for case in _few()]
    of_networks = _unique([*_own(machine, "base", "turbo", "nano"), *_of_network("base"), *_of_network("tiny")])
    return [*((case, DTYPES) for case in ODD_CASES), *((case, (torch.float16,)) for case in of_networks)]


def timed_cases(machine: Machine) -> list[Case]:
    """Calls of the network base at 256x256, and those that others make in addition."""
    if machine.interpreted:
        return [case for case in _few() if case.operation in EAGER]
    return _unique([*_own(machine, "nano", "base", "turbo"), *_of_network("base")])


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _error(case: Case, arguments: Sequence[Any]) -> float:
    """Largest error of the case's results, as a multiple of its tolerance.

    Disables cuDNN, which may lack some of the reference's convolutions in float64.
    """
    before, torch.backends.cudnn.enabled = torch.backends.cudnn.enabled, False
    try:
        return worst(case.operation, arguments)
    finally:
        torch.backends.cudnn.enabled = before


def check(case: Case, dtypes: Sequence[torch.dtype], machine: Machine) -> dict[str, Any]:
    """One row: the case's largest error for each of `dtypes`, as a multiple of its tolerance (see kernels.checks).

    Results are filled with NaN first, and must have infinities and NaN exactly where the reference has.
    """
    errors: dict[str, float | str] = {}
    with arithmetic():
        for dtype in dtypes:
            if machine.interpreted and case.operation in OF_MATRICES and dtype == torch.bfloat16:
                errors[name_of(dtype)] = "left out: the interpreter multiplies bfloat16 matrices wrongly"
            else:
                errors[name_of(dtype)] = _error(case, case.make(Draw(dtype, machine.device.type)))
    within = all(isinstance(error, str) or error <= 1 for error in errors.values())
    return {"operation": case.operation.name, "case": case.name, "errors": errors, "within": within}


def _epilogue(h: Tensor, bias: Tensor | None, residual: Tensor | None, relu: bool) -> Tensor:
    if bias is not None:
        h = h + bias[:, None, None]
    if relu:
        h = F.relu(h)
    return h if residual is None else h + residual


def _group_norm_silu(
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


def _fusion_gate(
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


def _upsample_add(x: Tensor, addend: Tensor | None, relu: bool) -> Tensor:
    result = F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=True)
    if relu:
        result = F.relu(result)
    return result if addend is None else result + addend


def _attention(qkv: Tensor) -> Tensor:
    tokens = qkv.unflatten(1, (3, 1, -1)).flatten(4).transpose(3, 4)
    attended = F.scaled_dot_product_attention(*tokens.unbind(1))
    return attended.transpose(2, 3).flatten(1, 2).unflatten(2, qkv.shape[2:])


def _diffuse(a: Tensor, b: Tensor, noise: Tensor, levels: Tensor, sigmas: Tensor, dtype: torch.dtype) -> Tensor:
    steps = zip(levels, sigmas, noise, strict=True)
    return torch.cat([level * x + sigma * n[i] for level, sigma, n in steps for i, x in enumerate((a, b))]).to(dtype)


def _convolution(
    x: Tensor,
    weight: Tensor,
    more: Tensor | None,
    more_weight: Tensor | None,
    last: Tensor | None,
    last_weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    relu: bool,
) -> Tensor:
    total = F.conv2d(x, weight, bias, padding=weight.shape[2] // 2)
    for other, own in ((more, more_weight), (last, last_weight)):
        if other is not None and own is not None:
            total = total + F.conv2d(other, own)
    return _epilogue(total, None, residual, relu)


def _inputs(a: Tensor, b: Tensor, interval: Tensor, factor: int, dtype: torch.dtype) -> Tensor:
    return F.pixel_unshuffle(torch.cat([a, b, interval], 1).to(dtype), factor)


def _change(change: Tensor, a: Tensor, b: Tensor, interval: Tensor, factor: int) -> Tensor:
    return from_brighter(F.pixel_shuffle(change, factor).to(a.dtype), a, b, interval)


# The equivalents in PyTorch's own operators, in the dtype of the features, which are channels-last. They do not compute
# an epilogue's statistics, because PyTorch's GroupNorm computes its own.
EAGER: dict[Operation, Callable[..., Tensor]] = {
    EPILOGUE: _epilogue,
    EPILOGUE_WITH_STATISTICS: _epilogue,
    GROUP_NORM_SILU: _group_norm_silu,
    FUSION_GATE: _fusion_gate,
    UPSAMPLE_ADD: _upsample_add,
    ATTENTION: _attention,
    DIFFUSE: _diffuse,
    CONVOLUTION: _convolution,
    CONVOLUTION_WITH_STATISTICS: _convolution,
    FIRST_CONVOLUTION: lambda x, weight, bias: F.conv2d(x, weight, bias, padding=1),
    HEAD: head_reference,  # PyTorch's operators, in float32 as in the network
    STUDENT_INPUTS: _inputs,
    STUDENT_CHANGE: _change,
}


def _bytes(values: Sequence[Any]) -> int:
    return sum(value.nbytes for value in values if isinstance(value, Tensor))


def measure(case: Case, machine: Machine) -> dict[str, Any]:
    """One row: the case's time in float16 and that of eager PyTorch, or why it was refused.

    The launches of both are replayed from a CUDA graph. Bytes count each input read once and each result written once,
    even if a kernel reads more. Enough sets of inputs take turns to exceed twice the L2 cache, up to MOST_SETS; the row
    says whether they did.
    """

    def call(*arguments: Any) -> tuple[Tensor, ...]:
        return launch.run(case.operation.plan(*arguments))

    row: dict[str, Any] = {"operation": case.operation.name, "case": case.name, "dtype": "float16"}
    with arithmetic():
        first = case.make(Draw(torch.float16, machine.device.type))
        error = _error(case, first)
        if not error <= 1:
            return row | {"refused": f"wrong: its error is {error:.3g} times the tolerance"}
        moved = _bytes(first) + _bytes(call(*first))
        number = min(2 * machine.l2 // moved + 1, MOST_SETS)
        seeds = range(1, number)
        inputs = [first, *(case.make(Draw(torch.float16, machine.device.type, seed)) for seed in seeds)]
        ours = machine.time_over(call, inputs)
        eager = machine.time_over(EAGER[case.operation], inputs)
    rate = moved / ours.median * 1e3
    row |= {
        **ours.to_dict(),
        "bytes": moved,
        "bytes_per_second": rate,
        "of_copy_rate": rate / machine.copy_rate,
        "input_sets": number,
        "beyond_l2": number * moved > 2 * machine.l2,
        "eager": eager.to_dict(),
        "ratio": ours.median / eager.median,
    }
    if case.operation is ATTENTION:
        n, triple, height, width = first[0].shape
        row["flop_per_second"] = 4 * n * (height * width) ** 2 * (triple // 3) / ours.median * 1e3
    return row
