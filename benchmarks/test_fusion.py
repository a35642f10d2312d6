"""Whole fusions: variants compared with the published network, or with a student as trained.

Run: `pytest --benchmark-only`; `make bench` keeps the results.

A variant whose output exceeds the deviation allowed for exported networks is not timed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from benchmarks.memory import peak, reset_peak, resident
from benchmarks.variants import (
    ALL,
    CONVERTED,
    OF_STUDENT,
    OPENVINO,
    OURS,
    PUBLISHED,
    RefusedError,
    Variant,
    exported,
    file_of,
    inputs_of,
    network,
)
from dmfnet_fast.artifacts.parity import compare
from dmfnet_fast.model import Network

ROUNDS = {
    ("nano", 256): 20,
    ("nano", 512): 10,
    ("turbo", 256): 5,
    ("turbo", 512): 3,
    ("turbo-small", 256): 3,
    ("base", 256): 2,
}
ROWS = [
    pytest.param(name, size, variant, id=f"{name}-{size}-{variant.engine}-{variant.precision}-{variant.name}")
    for name, size, variants in (
        ("nano", 256, OF_STUDENT),
        ("nano", 512, OF_STUDENT),
        ("turbo", 256, ALL),
        ("turbo", 512, OURS),
        ("turbo-small", 256, OURS),
        ("base", 256, [*OURS, *CONVERTED]),
    )
    for variant in variants
]


@dataclass
class Case:
    """One network at one size: inputs of its rows, and the reference that they are compared with."""

    model: Network
    inputs: dict[str, NDArray[np.float32]]
    reference: NDArray[np.float32] | None = None


@dataclass
class Cases:
    """Keeps only the current case, because base needs a lot of memory."""

    current: dict[tuple[str, int], Case] = field(default_factory=dict)

    def get(self, name: str, size: int) -> Case:
        if (name, size) not in self.current:
            self.current.clear()
            model = network(name)
            self.current[name, size] = Case(model, inputs_of(model, size))
        return self.current[name, size]


@pytest.fixture(scope="module")
def cases() -> Iterator[Cases]:
    yield Cases()
    torch.compiler.reset()


# OpenVINO's converter uses deprecated torch functions, and warns that the converted model has one fixed size, which is
# intended.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize(("name", "size", "variant"), ROWS)
def test_fusion(benchmark: Any, cases: Cases, name: str, size: int, variant: Variant) -> None:
    if variant.missing:
        pytest.skip(variant.missing)
    # Imported before memory is counted, because all rows of a library share it.
    import_module(variant.needs)
    if variant in OPENVINO:
        try:
            exported(name, file_of(variant.precision))
        except RefusedError as refused:
            pytest.skip(str(refused))
    case = cases.get(name, size)
    if case.reference is None:
        case.reference = PUBLISHED.build(case.model, size)(case.inputs)
    before = resident()
    run: Callable[..., NDArray[np.float32]] = variant.build(case.model, size)
    if variant.engine != "torch eager":
        run(case.inputs)  # compiles at the first call
    reset_peak()
    sources = case.inputs["a"], case.inputs["b"]
    parity = compare(variant.engine, variant.precision, [run(case.inputs)], [case.reference], [sources])
    megabytes = (peak() - before) / 2**20
    assert parity.within, str(parity)
    benchmark.group = f"{name} {size}x{size}"
    benchmark.extra_info.update(
        network=name,
        size=size,
        way=variant.name,
        threads=torch.get_num_threads(),
        peak_mb=round(megabytes),
        **parity.to_dict(),
    )
    benchmark.pedantic(run, (case.inputs,), rounds=ROUNDS[name, size], iterations=1)
