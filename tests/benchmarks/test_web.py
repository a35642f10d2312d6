"""The times of the page for browsers: what the documents show is what was measured."""

from __future__ import annotations

import json
from typing import Any

import pytest

from benchmarks.report import PAGE, RESULTS
from benchmarks.web import BEGIN, END, table
from dmfnet_fast import __version__


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / f"{__version__}-web.json").read_text())
    return found


def test_documents_show_the_results(results: dict[str, Any]) -> None:
    shown = PAGE.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]
    assert shown.strip() == table(results)


def test_table(results: dict[str, Any]) -> None:
    """Ratios are of the fastest runs with as many threads, and a busy machine is told of."""
    row = {"threads": 1, "min_ms": 30.0, "median_ms": 33.0, "iqr_ms": 2.0, "engine": "browser, WASM"}
    rows = [row, row | {"engine": "OpenVINO", "min_ms": 10.0}, row | {"threads": 2}]
    rows.append(row | {"engine": "OpenVINO", "threads": 2, "min_ms": 7.5})
    made = {**results, "rows": rows, "machine": results["machine"] | {"load": 0.1}}
    text = table(made)
    assert "| 1 | browser, WASM | 30 | 33 (2) | 3.0 |" in text
    assert "| 2 | browser, WASM | 30 | 33 (2) | 4.0 |" in text
    assert "Other processes" not in text
    busy = table({**made, "machine": results["machine"] | {"load": 5.5}})
    assert "Other processes ran, too: the load was 5.5." in busy
