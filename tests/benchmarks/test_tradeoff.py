"""The plot of the objective over time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from matplotlib.container import ErrorbarContainer

from benchmarks.tradeoff import draw, main


def report() -> dict[str, Any]:
    def row(label: str, milliseconds: float | None, mean: float) -> dict[str, Any]:
        estimates = {"objective": {"mean": mean, "low": mean - 0.01, "high": mean + 0.02}}
        return {"label": label, "milliseconds": milliseconds, "estimates": estimates}

    rows = [row("quick", 30.0, 0.27), row("slow", 400.0, 0.29), row("theirs", None, 0.38)]
    return {"made_by": "dmfnet-eval", "summary": [{"modality": "CT-MRI", "pairs": 23, "rows": rows}] * 2}


def test_points_and_lines() -> None:
    panels = draw(report()).axes
    assert [panel.get_title(loc="left") for panel in panels] == ["CT-MRI, 23 pairs"] * 2
    panel = panels[0]
    containers = [container for container in panel.containers if isinstance(container, ErrorbarContainer)]
    points = [np.asarray(container.lines[0].get_xydata()).tolist() for container in containers]
    assert points == [[[30.0, 0.27]], [[400.0, 0.29]]]
    (line,) = [line for line in panel.lines if line.get_linestyle() == "--"]
    assert np.asarray(line.get_ydata()).tolist() == [0.38, 0.38]
    assert {text.get_text() for text in panel.texts} == {"quick", "slow", "theirs"}


def test_file(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(json.dumps(report()))
    drawing = tmp_path / "drawing.svg"
    arguments = [str(tmp_path / "report.json"), "-o", str(drawing)]
    assert CliRunner().invoke(main, arguments).exit_code == 0
    first = drawing.read_bytes()
    assert CliRunner().invoke(main, arguments).exit_code == 0
    assert drawing.read_bytes() == first, "the output is deterministic"


@pytest.mark.parametrize(("text", "message"), [("{", "cannot be read as JSON"), ("{}", "was not made by dmfnet-eval")])
def test_other_files(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(text)
    result = CliRunner().invoke(main, [str(tmp_path / "report.json"), "-o", str(tmp_path / "x.svg")])
    assert result.exit_code == 2
    assert message in result.stderr
    assert not (tmp_path / "x.svg").exists()
