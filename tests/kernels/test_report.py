"""What the kernels take of a GPU: the committed table, and one architecture compiled anew."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
import triton

from kernels import convolution_epilogue, pixels
from kernels.cases import ODD_CASES, PREPARED_CASES, RECORDS, needs_tma
from kernels.cases.convolution import BY_ROWS, convolve
from kernels.cases.record import Draw
from kernels.compile import REGISTERS, SHARED_MEMORY, Signature, compile_signature, signature_of
from kernels.convolution import SMALLEST
from kernels.report import (
    README,
    RESOURCES,
    TMA,
    rows,
    signatures,
    sources_hash,
    summary,
    with_operators,
    write,
)
from kernels.tiles import ARCHITECTURES, ConvolutionTile, Tiles

# Kernels of which no thread reads feature maps, in which the channels of a pixel are neighbors.
NARROW = frozenset[str]().union(*(record.narrow for record in RECORDS.values()))
DESCRIBED = "described_convolution_kernel"
# Bytes that may spill, by architecture and kernel: for the statistics, of tiles that measured fastest all the same.
SPILLS = {(90, DESCRIBED): 304}
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


def test_the_table_of_the_operators() -> None:
    text = README.read_text()
    assert with_operators(text) == text, "run: python -m kernels.report"
    with pytest.raises(SystemExit, match="has no"):
        with_operators("no markers")


def test_every_architecture_has_everything(report: dict[str, Any]) -> None:
    everything = {
        launch.kernel.__name__
        for case in (*ODD_CASES, *(case for case in PREPARED_CASES if not needs_tma(case)))
        for launch in case.operation.plan(*case.make(Draw(torch.float16, "meta")))[1]
    }
    untuned = set()
    for architecture, tiles in ARCHITECTURES.items():
        own = [row for row in report["rows"] if row["architecture"] == architecture]
        described = {DESCRIBED} if any(rule.tile.described for rule in tiles.convolutions) else set()
        if architecture >= TMA:
            described |= {"described_resampling_kernel"}
        assert {row["kernel"] for row in own} == everything | described
        assert {row["dtype"] for row in own} == {"float32", "float16", "bfloat16"}
        if tiles == Tiles():
            untuned.add(len(own) - sum(row["kernel"] in described for row in own))
    assert len(untuned) == 1


def test_the_copy_engine_is_there() -> None:
    """Only GPUs of compute capability 9.0 and later have it."""
    for architecture, tiles in ARCHITECTURES.items():
        assert architecture >= 90 or not any(rule.tile.described for rule in tiles.convolutions)


def test_limits(report: dict[str, Any]) -> None:
    for row in report["rows"]:
        assert row["spills"] <= SPILLS.get((row["architecture"], row["kernel"]), 0), row
        assert row["shared"] <= SHARED_MEMORY[row["architecture"]], row
        assert row["registers"] * row["warps"] * WARP <= REGISTERS, row
        # Not of a student's result, which has 4 channels.
        if row["kernel"] not in NARROW and row["constants"].get("CHANNELS", SMALLEST) >= SMALLEST:
            assert row["load"] == 16, row
    assert {row["kernel"] for row in report["rows"]} > NARROW, "and none that there is not"
    for place, bound in SPILLS.items():
        spilled = [row["spills"] for row in report["rows"] if (row["architecture"], row["kernel"]) == place]
        assert max(spilled) == bound, "no more is allowed than there is"


def test_one_architecture_anew(report: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Orin's: every binary is listed, and one of each kernel and type is what the compiler makes now."""
    committed = [row for row in report["rows"] if row["architecture"] == 87]
    everything = signatures(87)
    listed = [(row["kernel"], row["of"], f"torch.{row['dtype']}") for row in committed]
    assert listed == [(one.kernel.__name__, str(case), str(dtype)) for one, (case, dtype) in everything.items()]
    some: dict[tuple[str, torch.dtype], Signature] = {}
    for signature, (_, dtype) in everything.items():
        some.setdefault((signature.kernel.__name__, dtype), signature)
    monkeypatch.setattr("kernels.report.signatures", lambda _: {one: everything[one] for one in some.values()})
    compiled = rows(87)
    assert len(compiled) == len(some) > 20
    for row in compiled:
        assert row in committed


def test_odd_cases_compile() -> None:
    """For what the interpreter cannot see: an integer 1 is a constant to the compiler."""
    launches = [
        launch
        for case in (*ODD_CASES, *PREPARED_CASES)
        for launch in case.operation.plan(*case.make(Draw(torch.float16, "meta")))[1]
    ]
    for signature in {signature_of(launch) for launch in launches}:
        assert compile_signature(signature, 90).registers > 0


@pytest.mark.parametrize("described", [False, True])
def test_how_a_convolution_loads(described: bool) -> None:
    """Ahead, into shared memory: 16 bytes by a thread at a time, or whole tiles by the copy engine."""
    case = convolve(1, 64, 64, 16, 64, bias=False)
    arguments = case.make(Draw(torch.float16, "meta"))
    _, (launch,) = case.operation.plan(*arguments, tile=ConvolutionTile(64, 64, 64, 4, 3, described))
    binary = compile_signature(signature_of(launch), 90)
    assert ("cp.async.bulk.tensor" in binary.ptx) == described
    assert binary.load == (0 if described else 16)


def test_a_convolution_by_rows() -> None:
    """Two programs fit into a multiprocessor, and the products of a row are not waited for one by one."""
    case = convolve(2, 32, 32, 256, 256, residual=True, with_statistics=True)
    _, (launch,) = case.operation.plan(*case.make(Draw(torch.float16, "meta")), tile=BY_ROWS[0])
    binary = compile_signature(signature_of(launch), 90)
    assert binary.spills == 0
    assert 2 * binary.registers * launch.warps * WARP <= REGISTERS
    assert 2 * binary.shared <= SHARED_MEMORY[90]
    assert binary.ptx.count("wgmma.wait_group") == 3


def test_images_are_rounded_at_every_step() -> None:
    """A fused multiply-add would give other pixels than the rules on a CPU."""
    a, b = (torch.empty((1, 64, 64, channels), dtype=torch.uint8, device="meta") for channels in (1, 3))
    (*_, limits), before = pixels.inputs_plan(a[..., 0], b, torch.empty(256, device="meta"), 0.75, False)
    _, after = pixels.pixels_plan(torch.empty((1, 1, 64, 64), device="meta"), limits, b)
    for launch in (*before, *after):
        binary = compile_signature(signature_of(launch), 90)
        assert "fma" not in binary.ptx
        assert "mul.rn.f32" in binary.ptx


def test_narrow_loads_are_told() -> None:
    """Of a map whose channels the compiler cannot take 16 bytes at a time."""
    widths = []
    for channels in (64, 65):
        x = Draw(torch.float16, "meta").feature(1, channels, 16, 16)
        _, (launch,) = convolution_epilogue.plan(x, None, None, True, write=True, statistics=False)
        binary = compile_signature(signature_of(launch), 80)
        widths.append((binary.load, binary.store))
    assert widths == [(16, 16), (2, 2)]


def test_the_file_and_the_table(report: dict[str, Any], tmp_path: Any) -> None:
    write(report["rows"], tmp_path / "resources.json")
    assert (tmp_path / "resources.json").read_text() == RESOURCES.read_text()
    table = summary(report["rows"])
    assert "| attention_kernel |" in table
    assert "sm_110" in table
    (line,) = (line for line in table.splitlines() if DESCRIBED in line)
    assert line.count("| ") == len(ARCHITECTURES) + 1
