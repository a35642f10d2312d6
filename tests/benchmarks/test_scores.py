"""The scores in docs/weights.md are those of the committed evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from benchmarks import scores
from benchmarks.tradeoff import read_report


def row(label: str, objective: float, milliseconds: float | None, bleached: float | None = None) -> dict[str, Any]:
    means = {"objective": objective, "invented": 0.0, "MI": 2.0, "VIFF": 0.5, "Qabf": 0.25, "bleached": bleached}
    estimates = {name: None if mean is None else {"mean": mean} for name, mean in means.items()}
    return {"label": label, "estimates": estimates, "milliseconds": milliseconds}


def test_table() -> None:
    parts = [
        {"modality": "CT-MRI", "pairs": 2, "rows": [row("new", 0.1234, 10.0), row("maximum", 0.5, None)]},
        {"modality": "PET-MRI", "pairs": 3, "rows": [row("new", 0.2, 30.0, 1.0), row("someone", 0.5, None, 2.0)]},
    ]
    text = scores.table({"summary": parts})
    assert text.startswith("Means of CT (2 pairs), PET (3 pairs), in this order:\n\n| ")
    assert "| `new` | 0.123 / 0.200 | 0.0 / 0.0 | 1.0 | 2.00 / 2.00 | 0.500 / 0.500 | 0.250 / 0.250 | 20 |" in text
    assert f"| {scores.OTHERS['maximum']} | 0.500 |" in text
    assert "someone" not in text


def test_page_shows_the_committed_evaluation() -> None:
    text = scores.PAGE.read_text(encoding="utf-8")
    shown = text.partition(scores.BEGIN)[2].partition(scores.END)[0].strip()
    assert shown == scores.table(read_report(scores.REPORT)), "run python -m benchmarks.scores"


def test_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "weights.md"
    page.write_text(f"before\n{scores.BEGIN}\nold\n{scores.END}\nafter\n")
    monkeypatch.setattr(scores, "ROOT", tmp_path)
    monkeypatch.setattr(scores, "PAGE", page)
    done = CliRunner().invoke(scores.main, [])
    assert done.exit_code == 0, done.output
    text = page.read_text()
    assert scores.table(read_report(scores.REPORT)) in text
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text

    page.write_text("no markers")
    done = CliRunner().invoke(scores.main, [])
    assert done.exit_code == 2
    assert "has no line" in done.output
    assert page.read_text() == "no markers"
