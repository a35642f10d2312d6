"""Building the page: what it fails by, and that it is done once."""

from __future__ import annotations

from pathlib import Path

import pytest

from dmfnet_fast.errors import OutputError
from dmfnet_fast.web import building, site


def _program(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_failures(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """npm's own reason is told, and nothing is left behind."""
    npm = _program(tmp_path / "npm", "echo 'npm error code EAI_AGAIN' >&2; exit 1")
    old, new = _program(tmp_path / "old", "echo v18.20.4"), _program(tmp_path / "new", "echo v22.1.0")
    monkeypatch.setattr(building, "npm", lambda: npm)
    target = tmp_path / "built"
    for node, message in (
        (old, r"^Node\.js v18\.20\.4 is too old: the page needs Node\.js 20 or newer"),
        (new, r"^building the page failed at ci --ignore-scripts: npm error code EAI_AGAIN; it needs Node\.js 20"),
        (str(tmp_path / "none"), r"^Node\.js is not installed, or is too old"),
    ):
        monkeypatch.setattr(building, "node", lambda node=node: node)
        with pytest.raises(building.BuildError, match=message):
            building.build(target)
    monkeypatch.setattr(building, "npm", lambda: None)
    with pytest.raises(building.BuildError, match=r"^npm is not installed, which builds the page"):
        building.build(target)
    assert {path.name for path in tmp_path.iterdir()} == {"npm", "old", "new"}


def test_built_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The page is kept by the hash of its sources, and built anew when these change."""
    sources, builds = tmp_path / "sources", []
    sources.mkdir()
    (sources / "main.js").write_text("one")

    def build(folder: Path) -> None:
        folder.mkdir()
        builds.append(folder)

    monkeypatch.setattr(building, "SOURCES", sources)
    monkeypatch.setattr(building, "build", build)
    monkeypatch.setattr(site, "SHIPPED", tmp_path / "none")
    monkeypatch.setenv("DMFNET_CACHE", str(tmp_path / "cache"))
    first = site.built()
    (sources / "node_modules").mkdir()
    (sources / "node_modules" / "made.js").write_text("no source")
    assert site.built() == first
    (sources / "main.js").write_text("two")
    assert site.built() != first
    assert len(builds) == 2
    monkeypatch.setattr(site, "cache_folder", lambda: None)
    with pytest.raises(OutputError, match="the cache folder cannot be written; set DMFNET_CACHE"):
        site.built()
