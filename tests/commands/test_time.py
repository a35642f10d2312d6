"""`dmfnet-time`: what it reports, and what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from dmfnet_fast import fuser as fuser_module
from dmfnet_fast.artifacts.interface import Interface
from dmfnet_fast.commands import time as command
from dmfnet_fast.commands.time import WatchedFuser, main, measure
from dmfnet_fast.engines.base import Engine
from dmfnet_fast.images.rules import Rules

PAUSE = 0.02


class Slow(Engine):
    """Takes PAUSE for each call, and ten times that for the first."""

    def __init__(self, takes_pixels: bool) -> None:
        self.largest_batch, self.interface, self.takes_pixels = 2, Interface(0, False), takes_pixels
        self.shapes: list[tuple[int, ...]] = []

    def run(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        return self._called(inputs["b"])

    def fuse_pixels(self, a: np.ndarray, b: np.ndarray, rules: Rules, seed: int) -> np.ndarray:
        del a, rules, seed
        return self._called(b)

    def _called(self, b: np.ndarray) -> np.ndarray:
        time.sleep(PAUSE if self.shapes else 10 * PAUSE)
        self.shapes.append(b.shape)
        return b.copy()

    def close(self) -> None: ...

    @property
    def info(self) -> dict[str, str]:
        return {"engine": "slow 1", "device": "cpu"}


@pytest.mark.parametrize("pixels", [True, False])
def test_times(pixels: bool, tiny_weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Slow(pixels)
    monkeypatch.setattr(fuser_module, "open_engine", lambda *_: engine)
    fuser = WatchedFuser(str(tiny_weights), None, "auto", None)
    found = measure(fuser, 64, 96, 3, pixels, calls=4)
    assert engine.shapes[0] == ((2, 64, 96, 3) if pixels else (2, 1, 64, 96))
    assert len(engine.shapes) == 2 * (1 + command.FEWEST + 4), "each call is a batch of two and one of one"
    assert found.engine_does == ("pixels" if pixels else "network")
    assert found.calls == 4
    assert found.first_ms >= 11e3 * PAUSE
    assert 2e3 * PAUSE <= found.engine_ms <= found.p50_ms <= found.p95_ms <= found.p99_ms
    assert found.p50_ms < found.first_ms
    assert 3 / (found.p99_ms / 1e3) <= found.images_per_second <= 3 / (2 * PAUSE)


def test_calls_by_time(tiny_weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuser_module, "open_engine", lambda *_: Slow(True))
    fuser = WatchedFuser(str(tiny_weights), None, "auto", None)
    monkeypatch.setattr(command, "SECONDS", 0.3)
    monkeypatch.setattr(command, "WARM_UP", 0.0)
    assert command.FEWEST < measure(fuser, 64, 64, 1, True, calls=None).calls <= 0.3 / PAUSE + 1
    monkeypatch.setattr(command, "SECONDS", 0.0)
    assert measure(fuser, 64, 64, 1, True, calls=None).calls == command.FEWEST


def test_table(cli: CliRunner) -> None:
    sizes = ("--size", "64x64", "--size", "65x80")
    result = cli.invoke(main, ["nano", *sizes, "--calls", "2", "--precision", "float32", "--threads", "1"])
    assert result.exit_code == 0, result.stderr
    heads, *rows, _, engine = result.stdout.partition("dmfnet-fast")[0].splitlines()
    assert [row.split()[:3] for row in rows] == [["64x64", "1", "2"], ["65x80", "1", "2"]]
    assert heads.split()[:3] == ["size", "batch", "calls"]
    assert engine == "engine: the network alone"
    assert "float32" in result.stdout
    assert "most memory" in result.stdout
    assert "65x80, first call" in result.stderr


def test_without_torch() -> None:
    """An engine of another library is timed where PyTorch is not installed."""
    code = "import sys; sys.modules['torch'] = None; from dmfnet_fast.commands.time import main; main()"
    asked = ("nano", "--size", "64x64", "--calls", "1", "--gray", "--batch", "2", "--json")
    done = subprocess.run([sys.executable, "-c", code, *asked], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    assert report["engine"]["engine"].startswith("openvino")
    (found,) = report["timings"]
    assert (found["height"], found["width"], found["batch"], found["color"], found["calls"]) == (64, 64, 2, False, 1)
    assert 0 < found["engine_ms"] < found["p50_ms"]
    assert report["peak_gpu_bytes"] is None
    if sys.platform != "win32":
        assert 10e6 < report["peak_resident_bytes"] < 10e9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.engine"], "missing.engine: no such engine file, and no shipped network (nano, turbo)"),
        (["pyproject.toml"], "pyproject.toml: unknown kind of engine '.toml'"),
        (["nano", "--size", "256"], "--size 256: give height and width in pixels, such as 256x256"),
        (["nano", "--size", "64x63"], "--size 64x63: height and width must be from 64 to 4096"),
        (["nano", "--device", "gpu"], "device 'gpu'"),
    ],
)
def test_errors(cli: CliRunner, arguments: list[str], message: str) -> None:
    result = cli.invoke(main, arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: {message}"), result.stderr
    assert result.stderr.count("\n") == 1
    assert not result.stdout
