"""What the kernels take of a GPU: the committed table, and one architecture compiled anew."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
import triton

from kernels.cases import ODD_CASES, Draw
from kernels.compile import REGISTERS, SHARED_MEMORY, compile_signature, signature_of
from kernels.report import RESOURCES, rows, sources_hash, summary, write
from kernels.tiles import ARCHITECTURES

# Kernels that read feature maps, in which the channels of a pixel are neighbours.
WIDE = {
    "epilogue_kernel",
    "normalise_kernel",
    "pool_kernel",
    "gate_kernel",
    "upsample_kernel",
    "attention_kernel",
    "diffuse_kernel",
}
WARP = 32


# Another compiler gives other numbers.
pytestmark = pytest.mark.skipif(
    json.loads(RESOURCES.read_text())["triton"] != triton.__version__, reason="made by another release of Triton"
)


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    return json.loads(RESOURCES.read_text())


def test_it_belongs_to_the_sources(report: dict[str, Any]) -> None:
    assert report["sources"] == sources_hash(), "run: python -m kernels.report"


def test_every_architecture_has_everything(report: dict[str, Any]) -> None:
    by_architecture = dict.fromkeys(ARCHITECTURES, 0)
    for row in report["rows"]:
        by_architecture[row["architecture"]] += 1
    assert len(set(by_architecture.values())) == 1
    assert {row["dtype"] for row in report["rows"]} == {"float32", "float16", "bfloat16"}


def test_limits(report: dict[str, Any]) -> None:
    for row in report["rows"]:
        assert row["spills"] == 0, row
        assert row["shared"] <= SHARED_MEMORY[row["architecture"]], row
        assert row["registers"] * row["warps"] * WARP <= REGISTERS, row
        if row["kernel"] in WIDE:
            assert row["load"] == 16, row
    assert {row["kernel"] for row in report["rows"]} >= WIDE


def test_one_architecture_anew(report: dict[str, Any]) -> None:
    """Orin's: every binary, to machine code."""
    assert rows(87) == [row for row in report["rows"] if row["architecture"] == 87]


def test_odd_cases_compile() -> None:
    """For what the interpreter cannot see: an integer 1 is a constant to the compiler."""
    launches = [
        launch for case in ODD_CASES for launch in case.operation.plan(*case.make(Draw(torch.float16, "meta")))[1]
    ]
    for signature in {signature_of(launch) for launch in launches}:
        assert compile_signature(signature, 90).registers > 0


def test_the_file_and_the_table(report: dict[str, Any], tmp_path: Any) -> None:
    write(report["rows"], tmp_path / "resources.json")
    assert (tmp_path / "resources.json").read_text() == RESOURCES.read_text()
    table = summary(report["rows"])
    assert "| attention_kernel |" in table
    assert "sm_110" in table
