"""Whole fusions on a GPU, one pair at a time: `pytest --benchmark-only benchmarks/test_gpu.py`.

The variants and cases are those of `python -m benchmarks.gpu`, which also measures batches, memory and single
operations, and compares with the floor. Variants whose output differs from the reference by more than their precision
allows are not timed.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks.gpu.fusions import COMPILED, IMMEDIATE, Variant, start
from benchmarks.gpu.machine import find_machine
from benchmarks.gpu.networks import LARGE, SINGLE_PAIRS, Case, Networks, Quality

ROUNDS = 20
ROWS = [
    pytest.param(case, variant, id=f"{case}-{variant.name}-{variant.precision}")
    for case in (*SINGLE_PAIRS, *LARGE)
    for variant in (*IMMEDIATE, COMPILED)
]


@pytest.fixture(scope="module")
def networks() -> Networks:
    machine = find_machine()
    if isinstance(machine, str):
        pytest.skip(machine)
    if machine.interpreted:
        pytest.skip("TRITON_INTERPRET=1: times would not be a GPU's")
    return Networks(machine)


@pytest.mark.parametrize(("case", "variant"), ROWS)
def test_gpu_fusion(benchmark: Any, networks: Networks, case: Case, variant: Variant) -> None:
    reference = networks.reference(case)
    networks.machine.free()
    with variant.settings():
        running = start(variant, case, networks)
        quality = Quality.of(variant.precision, [running.image()], [reference])
        assert quality.within, str(quality)

        def fuse() -> None:
            running.launch()
            torch.cuda.synchronize(networks.machine.device)

        benchmark.group = f"GPU, {case}"
        benchmark.extra_info.update(fusion=variant.name, precision=variant.precision, **quality.to_dict())
        benchmark.pedantic(fuse, rounds=ROUNDS, iterations=1, warmup_rounds=1)
