"""The page, built once and served, and a browser to open it with."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dmfnet_fast.engines import shipped
from dmfnet_fast.web import building, site
from dmfnet_fast.web.server import Server

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
Browse = Callable[..., dict[str, Any]]


def network(name: str = "nano") -> site.Network:
    path = shipped()[name].with_suffix(".onnx")
    return site.Network.of(path.read_bytes(), name, path.name)


def _shared(factory: pytest.TempPathFactory) -> Path:
    """A folder for what all processes of a run share."""
    if "PYTEST_XDIST_TESTRUNUID" in os.environ:
        return factory.getbasetemp().parent / "page"
    return factory.mktemp("page") / "page"


def _build(folder: Path) -> None:
    """Build the page with its tools, unless another process does; then wait for it."""
    failure, done = folder / "failure", folder / "done"
    try:
        folder.mkdir()
    except FileExistsError:
        until = time.monotonic() + 300
        while not (done.exists() or failure.exists()) and time.monotonic() < until:
            time.sleep(0.5)
    else:
        try:
            building.install(folder)
            building.run_build(folder)
            done.touch()
        except building.BuildError as error:
            failure.write_text(str(error))
    if not done.exists():
        pytest.skip(f"the page cannot be built: {failure.read_text() if failure.exists() else 'it took too long'}")


@pytest.fixture(scope="session")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the sources of the page, the packages of its lock file, and the page built from them in `built`."""
    if building.npm() is None:
        pytest.skip("npm is not installed: apt-get install nodejs npm")
    folder = _shared(tmp_path_factory)
    _build(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(site, "SHIPPED", folder / "built")
        yield folder


@pytest.fixture(scope="session")
def browse(tools: Path) -> Browse:
    """Run a scenario of drive.mjs; returns what it printed."""
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed: apt-get install chromium")
    script = str(Path(__file__).with_name("drive.mjs"))

    def run(scenario: str, url: str, **given: Any) -> dict[str, Any]:
        text = json.dumps({"url": url, "chromium": CHROMIUM, **given}, default=str)
        command = ["node", script, scenario, str(tools)]
        done = subprocess.run(command, input=text, capture_output=True, text=True, check=False, timeout=240)
        assert done.returncode == 0, f"{done.stderr}\n{done.stdout}"
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    return run


@pytest.fixture(scope="session")
def page(tools: Path) -> Iterator[str]:
    """The address of the page with nano, served as dmfnet-view does."""
    del tools  # builds it
    with Server(dict(site.page_files(network()))).in_background() as url:
        yield url
