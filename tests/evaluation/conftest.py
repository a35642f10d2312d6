"""Phantoms, images fused by other software, and a report on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dmfnet_fast.commands.phantom import write_phantoms
from tests.evaluation.running import MODALITIES, run


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    list(write_phantoms(folder, train=1, test=3, size=64))
    return folder


@pytest.fixture(scope="session")
def theirs(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of other software, which are the MRI as JPEG."""
    folder = tmp_path_factory.mktemp("theirs & co")
    for modality in MODALITIES:
        (folder / modality).mkdir()
        for path in (data / "test" / modality / "MRI").iterdir():
            Image.open(path).convert("RGB").save(folder / modality / f"{path.stem}.jpg", quality=95)
    return folder


@pytest.fixture(scope="session")
def report(data: Path, theirs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report")
    engines = ("--engine", "nano@float32", "--engine", "same=nano@float32")
    result = run("--data", data, *engines, "--fused", f"<b>|={theirs}", "--jpeg", 95, "--pictures", 2, "-o", out)
    assert result.exit_code == 0, result.output
    assert "SPECT-MRI, 3 pairs" in result.stdout
    assert result.stdout.splitlines()[-3:] == [str(out / f"report.{kind}") for kind in ("md", "json", "html")]
    return out


@pytest.fixture(scope="module")
def record(report: Path) -> Any:
    return json.loads((report / "report.json").read_text())
