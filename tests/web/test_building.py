"""Building the page: what it fails by, and that it is done once."""

from __future__ import annotations

import json
import re
import shutil
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


def test_built_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The page is kept by the hash of its sources, and built anew when these change, which is told."""
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
    assert re.fullmatch(r"building the page, once \.\.\. \d+\.\d s\n", capsys.readouterr().err)
    (sources / "node_modules").mkdir()
    (sources / "node_modules" / "made.js").write_text("no source")
    assert site.built() == first
    assert capsys.readouterr() == ("", "")
    (sources / "main.js").write_text("two")
    assert site.built() != first
    assert len(builds) == 2
    monkeypatch.setattr(site, "cache_folder", lambda: None)
    with pytest.raises(OutputError, match="the cache folder cannot be written; set DMFNET_CACHE"):
        site.built()


def test_notices(tools: Path, tmp_path: Path) -> None:
    """The page holds the notices of what its packages contain, of the releases that are in it."""
    notices = (tools / "built" / site.NOTICES).read_text(encoding="utf-8")
    release = json.loads((building.SOURCES / "package.json").read_text())["dependencies"]["onnxruntime-web"]
    runtime = notices.index(f"onnxruntime-web {release} (MIT)")
    theirs = notices.index("THIRD PARTY SOFTWARE NOTICES AND INFORMATION")
    assert runtime < theirs < notices.index("Eigen") < notices.index("utif2")
    assert "blob/main" not in notices
    # Those of another release are not taken for this one's.
    shutil.copytree(tools, tmp_path / "page", ignore=shutil.ignore_patterns("node_modules", "built"))
    (tmp_path / "page" / "node_modules").symlink_to(tools / "node_modules")
    licenses = tmp_path / "page" / "licenses"
    (licenses / f"onnxruntime-web-{release}-third-party.txt").rename(licenses / "onnxruntime-web-0.1-third-party.txt")
    with pytest.raises(
        building.BuildError,
        match=r"built: onnxruntime-web-0\.1-third-party\.txt is of another release than the package; "
        rf"put onnxruntime-web-{re.escape(release)}-third-party\.txt in its place",
    ):
        building.run_build(tmp_path / "page")
