"""The condensed results of an invented benchmark run."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks import report


def entry(engine: str, precision: str, variant: str, median: float) -> dict[str, Any]:
    info = {"network": "tiny", "size": 256, "way": variant, "threads": 2, "peak_mb": 300}
    parity = {"engine": engine, "precision": precision, "max_abs": 0.01, "psnr": None}
    stats = {"min": median, "median": median, "iqr": 0.01, "rounds": 3}
    return {"name": "test_fusion[x]", "group": "tiny 256x256", "stats": stats, "extra_info": info | parity}


def matmul(precision: str, seconds: float) -> dict[str, Any]:
    stats = {"min": seconds, "median": seconds, "iqr": 0.0, "rounds": 3}
    return {"name": f"test_matmul[{precision}]", "group": "rate", "stats": stats, "extra_info": {}}


def volume(seconds: float, **others: float) -> dict[str, Any]:
    stats = {"min": seconds, "median": seconds, "iqr": 0.0, "rounds": 2}
    return {"name": "test_files_to_files[tiny]", "group": "volume 9x8x7", "stats": stats, "extra_info": others}


@pytest.fixture
def run() -> dict[str, Any]:
    rows = [
        entry("torch eager", "float32", "as published", 2.0),
        entry("torch eager", "float32", "+ channels last", 1.0),
        entry("OpenVINO", "bfloat16", "optimized", 0.5),
    ]
    machine = {"node": "somebodys-machine"}
    rates = [matmul("float32", 0.1), matmul("bfloat16", 0.05)]
    return {"datetime": "2026-01-02T03:04:05", "machine_info": machine, "benchmarks": [*rows, *rates]}


def test_condense(run: dict[str, Any]) -> None:
    results = report.condense(run)
    assert [row["ratio"] for row in results["fusions"]] == [1.0, 0.5, 0.25]
    assert results["date"] == "2026-01-02"
    assert "somebodys" not in json.dumps(results)


def test_page(run: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "run.json"
    source.write_text(json.dumps(run))
    page = tmp_path / "benchmarks.md"
    page.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    monkeypatch.setattr(report, "PAGE", page)
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    monkeypatch.setattr("sys.argv", ["report", str(source)])
    report.main()
    text = page.read_text()
    assert text.startswith(f"before\n{report.BEGIN}\n")
    assert text.endswith(f"{report.END}\nafter\n")
    assert "old" not in text
    assert "| optimized | OpenVINO bfloat16 | 500 (10) | 3 | 0.25 | 300 | 1.0e-02 | equal |" in text
    assert "| rate | matmul float32 | 100 (0) |" in text
    assert "In float32, at 172 GFLOP/s: tiny 256x256" in text
    (plot,) = tmp_path.glob("*.svg")
    assert plot.name in text
    assert "<svg" in plot.read_text()

    page.write_text("no markers")
    with pytest.raises(SystemExit, match="has no line"):
        report.main()
    assert page.read_text() == "no markers"


def test_volumes(run: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They have a table of their own, with or without a run of all else."""
    page = tmp_path / "benchmarks.md"
    monkeypatch.setattr(report, "PAGE", page)
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    monkeypatch.setattr("sys.argv", ["report", str(tmp_path / "run.json")])
    rows = [volume(5.0, network_alone=2.0, fusing_and_writing=3.0)]
    none: list[dict[str, Any]] = []
    for others in (none, run["benchmarks"]):
        page.write_text(f"{report.BEGIN}\nold\n{report.END}\n{report.VOLUME_BEGIN}\nold\n{report.VOLUME_END}\n")
        (tmp_path / "run.json").write_text(json.dumps({**run, "benchmarks": [*others, *rows]}))
        report.main()
        text = page.read_text()
        assert "| tiny, 9x8x7 | 2.0 s | 3.0 s | 5.0 s | 2.50 |" in text
        assert "files_to_files" not in text
        assert text.count("old") == (0 if others else 1)
    assert "somebodys" not in "".join(path.read_text() for path in tmp_path.glob("*-volume.json"))


def test_page_shows_committed_results() -> None:
    text = report.PAGE.read_text(encoding="utf-8")
    (stem,) = re.findall(r"\(\.\./benchmarks/results/(\S+)\.svg\)\n\nVersion ", text)
    results = json.loads((report.RESULTS / f"{stem}.json").read_text())
    assert f"{report.table(results)}\n\n{report.floors(results)}\n\n{report.END}" in text
    (path,) = report.RESULTS.glob("*-volume.json")
    table = report.volume_table(json.loads(path.read_text()))
    assert f"{report.VOLUME_BEGIN}\n\n{table}\n\n{report.VOLUME_END}" in text
