"""Checks every fused operation against its float64 reference, then times it and its equivalent in eager PyTorch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.machine import Machine
from dmfnet_fast.config import DMFNET_PRESETS, PRESETS, StudentConfig
from dmfnet_fast.engines.arithmetic import arithmetic
from kernels import launch
from kernels.cases import (
    ODD_CASES,
    OPERATIONS,
    PREPARED_CASES,
    needs_tma,
    network_cases,
    own_cases,
    prepared_cases,
    student_cases,
)
from kernels.cases.attention import ATTENTION
from kernels.cases.convolution import RULES_BY_ROWS, by_every_rule
from kernels.cases.record import Case, Draw
from kernels.checks import worst
from kernels.launch import assumed
from kernels.tiles import tiles_for

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
    """The smallest odd case of each operation: an interpreted program takes up to seconds."""

    def size(case: Case) -> int:
        return _bytes(case.make(Draw(torch.float16, "meta")))

    return [min((case for case in ODD_CASES if case.operation is operation), key=size) for operation in OPERATIONS]


def _prepared() -> list[Case]:
    """Calls of the networks in ways that were not measured."""
    found: list[Case] = []
    for config in (DMFNET_PRESETS[name] for name in ("base", "turbo")):
        found += prepared_cases(config.channels, 2 * len(config.timesteps), SIZE, SIZE)
    return found


def checked_cases(machine: Machine) -> list[tuple[Case, tuple[torch.dtype, ...]]]:
    """Every case to check, with its types.

    The odd cases in every type; in float16 the networks' calls at 256x256, and their convolutions by every tile; and
    the same in ways that were not measured, as far as the GPU can do them.
    """
    if machine.interpreted:
        return [(case, DTYPES) for case in _few()]
    own = _own(machine, "base", "turbo", "nano")
    rules = tiles_for(machine.architecture).convolutions
    # What depends on the number of rows is the same for any of them.
    by_rows = [rule for rule in RULES_BY_ROWS if rules and rule.tile.rows == RULES_BY_ROWS[0].tile.rows]
    tiled = [*by_every_rule(own, rules, 32, 2), *by_every_rule(own, by_rows, SIZE, 1)]
    of_networks = _unique([*own, *_of_network("base"), *_of_network("tiny"), *tiled])
    found = [*((case, DTYPES) for case in ODD_CASES), *((case, (torch.float16,)) for case in of_networks)]
    found += [*((case, DTYPES) for case in PREPARED_CASES), *((case, (torch.float16,)) for case in _prepared())]
    return [(case, types) for case, types in found if machine.architecture >= 90 or not needs_tma(case)]


def timed_cases(machine: Machine) -> list[Case]:
    """Calls of the network base at 256x256, and those that others make in addition."""
    if machine.interpreted:
        return [case for case in _few() if case.operation.eager is not None]
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
            if machine.interpreted and case.operation.multiplies_matrices and dtype == torch.bfloat16:
                errors[name_of(dtype)] = "left out: the interpreter multiplies bfloat16 matrices wrongly"
            else:
                errors[name_of(dtype)] = _error(case, case.make(Draw(dtype, machine.device.type)))
    within = all(isinstance(error, str) or error <= 1 for error in errors.values())
    return {"operation": case.operation.name, "case": case.name, "errors": errors, "within": within}


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

    assert case.operation.eager is not None, "nothing to time it beside"
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
        eager = machine.time_over(case.operation.eager, inputs)
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
