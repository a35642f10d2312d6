"""The pages with GPU measurements, compared with the results files."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from benchmarks.gpu import figure as gpu_figure
from benchmarks.gpu import tables as gpu_tables
from benchmarks.gpu.tables import COUNTED, NETWORKS, TABLES, Runs, filled, gaps, kernel_group, ours, profile, work
from kernels.cases import RECORDS
from kernels.cases.record import Draw, Work

EPILOGUES = "convolution_epilogue"  # which norms take their statistics by
ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def runs() -> Runs:
    return Runs.read()


@pytest.mark.parametrize("page", gpu_figure.PAGES, ids=lambda page: page.name)
def test_tables_match_the_results(page: Path, runs: Runs) -> None:
    text = page.read_text(encoding="utf-8")
    assert filled(text, runs) == text, "run python -m benchmarks.gpu.figure --write"


def test_every_table_is_shown() -> None:
    shown = [name for page in gpu_figure.PAGES for name in gpu_tables.MARKED.findall(page.read_text(encoding="utf-8"))]
    assert sorted(shown) == sorted(TABLES)


def test_what_the_tuning_writes_now(runs: Runs) -> None:
    """Tiles have a number of rows; there are cases without described tiles, batches, other settings, and failures."""
    case = "convolution_with_statistics 2x96x32x32 to 32 3x3 bias"
    tiles: dict[float, Any] = {5.0: "cuDNN", 4.0: [32, 32, 32, 2, 5, False, 0], 3.0: [128, 32, 32, 4, 2, False, 8]}
    tuned = [{"case": case, "field": "convolutions", "tile": tile, "us": us} for us, tile in tiles.items()]
    networks: list[dict[str, Any]] = [
        {"network": "turbo", "batch": batch, "rules": rules, "ms": ms, "iqr_ms": 0.01}
        for batch, rules, ms in ((1, "in force", 0.5), (8, "in force", 4.0), (8, "two streams", 3.0))
    ]
    networks.append({"network": "turbo", "batch": 1, "rules": "own products", "failed": "OutOfResources"})
    now = replace(runs, tuning={"tuning": {"rows": tuned}, "networks": {"rows": networks}})
    *_, row = TABLES["convolutions"](now).splitlines()
    assert row == "| 2x96x32x32 to 32 3x3 bias | 5.00 | 3.00 | 128x32x32, 4 warps, 2 stages, 8 rows |  |  | 0.60 |"
    assert TABLES["rules"](now).splitlines()[2:] == [
        "| turbo | those in force | 0.5000 (0.01) | 1.000 |",
        "| turbo, batch 8 | those in force | 4.0000 (0.01) | 1.000 |",
        "| turbo, batch 8 | two streams | 3.0000 (0.01) | 0.750 |",
    ]
    tuned[:] = [{"case": case, "field": "convolutions", "tile": [*tile, 0], "us": 2.0} for tile in gpu_tables.WIDE]
    assert len(TABLES["stages"](now).splitlines()) == 3


def test_counts() -> None:
    def work_of(operator: str, *shapes: list[int]) -> Work:
        found = work({"operator": operator, "shapes": list(shapes)})
        assert found is not None
        return found

    image, kernel = [2, 32, 8, 4], [64, 32, 3, 3]
    values, result = 2 * 32 * 8 * 4, 2 * 64 * 8 * 4
    plain = work_of("dmfnet::convolution", image, kernel, [64])
    assert plain == Work("3x3 convolution, 8x4", 2 * result * 288, 2 * (values + 64 * 288 + 64 + result))
    more = work_of("dmfnet::convolution_with_statistics", image, kernel, image, [64, 32, 1, 1], [64])
    assert more.flop - plain.flop == 2 * result * 32
    residual = work_of("dmfnet::convolution", image, kernel, [64], [2, 64, 8, 4])
    assert (residual.flop, residual.bytes - plain.bytes) == (plain.flop, 2 * result)
    strided = work_of("aten::cudnn_convolution", image, kernel)
    assert strided.flop == plain.flop / 4
    transposed = work_of("aten::cudnn_convolution_transpose", image, [32, 64, 4, 4])
    assert transposed.flop == 2 * values * 64 * 16
    joint = work_of("dmfnet::group_norm_silu", image, [2, 1, 2, 32], image, [2, 1, 2, 32], [64], [64])
    assert joint.bytes == 2 * 4 * values
    ceilings = {"float16": {"flop_per_second": 1e12}, "copy": {"bytes_per_second": 1e9}}
    assert gpu_tables.floor(joint, ceilings) == pytest.approx(joint.bytes / 1e3)


@pytest.mark.parametrize("network", NETWORKS)
def test_counts_agree_with_the_benchmark(network: str, runs: Runs) -> None:
    """The arithmetic equals what the benchmark counted, except for the small convolutions inside the gates."""
    row = ours(runs.now, network)
    whole = row["ms"] / 1e3 / row["of_floor"] * runs.now["ceilings"]["float16"]["flop_per_second"]
    counted = [(one["calls"], work(one)) for one in profile(runs.now, network)["operators"]]
    assert sum(calls * done.flop for calls, done in counted if done) == pytest.approx(whole, rel=5e-3)
    assert sum(gap.us for gap in gaps(runs.now, network).values()) > 0
    ours_alone = {one["operator"] for one in profile(runs.now, network)["operators"] if "dmfnet" in one["operator"]}
    assert {name.partition("::")[2] for name in ours_alone} <= set(COUNTED)


def test_every_kernel_has_a_row() -> None:
    for name, record in RECORDS.items():
        plans = [case.operation.plan(*case.make(Draw(torch.float16, "meta"))) for case in record.odd]
        kernels = {launch.kernel.__name__ for _, launches in plans for launch in launches}
        others = record.kernels if name != "group_norm_silu" else {**record.kernels, **RECORDS[EPILOGUES].kernels}
        assert {kernel_group(kernel) for kernel in kernels} == set(others), name


def test_kernel_groups() -> None:
    names = {
        "described_convolution_kernel": "our convolution",
        "sm90_xmma_dgrad_implicit_gemm_f16": "transposed convolutions, cuDNN's",
        "void cutlass__5x_cudnn::Kernel<cutlass_tensorop_f16_s16816fprop": "other convolutions, cuDNN's",
        "nvjet_sm90_hsh_64x8": "matrix products, cuBLAS's",
        "Memset (Device)": "PyTorch's own, and memory set",
    }
    assert {name: kernel_group(name) for name in names} == names


def test_drawing(runs: Runs) -> None:
    panels = gpu_figure.draw(runs).axes
    assert [panel.get_title(loc="left") for panel in panels] == list(NETWORKS)
    for panel, network in zip(panels, NETWORKS, strict=True):
        points = gpu_figure.points(runs, network)
        assert len({point.look.marker for point in points}) == len({point.look.color for point in points})
        measured = [point.milliseconds for point in points if point.milliseconds is not None]
        drawn = [np.asarray(line.get_xdata())[0] for line in panel.lines if line.get_marker() != "None"]
        assert drawn == measured
        assert len(panel.texts) == len(points) + 1, "one label per point, and the floor's"


def test_write(runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- table: goals -->\nold\n<!-- /table -->\nafter\n")
    drawing = tmp_path / "drawing.svg"
    monkeypatch.setattr(gpu_figure, "ROOT", tmp_path)
    monkeypatch.setattr(gpu_figure, "PAGES", (page,))
    monkeypatch.setattr(gpu_figure, "DRAWING", drawing)
    done = CliRunner().invoke(gpu_figure.main, ["--write"])
    assert done.exit_code == 0, done.output
    text, first = page.read_text(), drawing.read_bytes()
    assert TABLES["goals"](runs) in text
    assert "old" not in text
    assert re.match(r"before\n<!-- table", text)
    assert text.endswith("<!-- /table -->\nafter\n")
    assert CliRunner().invoke(gpu_figure.main, ["--write"]).exit_code == 0
    assert (page.read_text(), drawing.read_bytes()) == (text, first), "the output is deterministic"
    assert f"goals\n\n{TABLES['goals'](runs)}" in CliRunner().invoke(gpu_figure.main, []).output


def test_files_identify_no_machine() -> None:
    for path in (ROOT / "benchmarks" / "results").glob(f"{gpu_tables.NAME}*.json"):
        assert not re.search(r"/(home|root|opt|tmp|work)/|hostname|\b\d+\.\d+\.\d+\.\d+\b", path.read_text())
