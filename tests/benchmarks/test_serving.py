"""The tables of the benchmarks of the server, of Ray and of an hour are those of the committed results."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import archive, hourly, serving

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("page", "result", "table"),
    [("export.md", "0.1.0-serving.json", serving.table), ("archives.md", "0.1.0-archive.json", archive.table)],
)
def test_tables(page: str, result: str, table: Callable[[dict[str, Any]], str]) -> None:
    run = json.loads((ROOT / "benchmarks" / "results" / result).read_text())
    assert table(run) in (ROOT / "docs" / page).read_text()


def test_hourly() -> None:
    assert hourly.table() in hourly.PAGE.read_text(), "run: python -m benchmarks.hourly --write"
    assert hourly.cpu_ms("nano") < hourly.cpu_ms("turbo") < hourly.cpu_ms("base")
    assert hourly.floor_ms("base", 1) < hourly.floor_ms("base", 2)


def test_measure() -> None:
    """Counts the calls of all clients, whose time is not that of one."""
    import time

    measured = serving.measure(lambda: lambda: time.sleep(0.01), 4, 0.3)
    assert 10 <= measured["p50"] <= measured["p95"] <= measured["p99"]
    assert 50 < measured["per_second"] <= 400
