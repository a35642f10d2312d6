"""A whole volume, from files to files, beside what the network alone takes for as many slices.

The ratio of both is the overhead of reading, aligning, showing and writing.
"""

from __future__ import annotations

import json
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from dmfnet_fast import Fuser
from dmfnet_fast.artifacts.interface import interface_of
from dmfnet_fast.artifacts.network_inputs import network_inputs
from dmfnet_fast.commands.fuse import main
from dmfnet_fast.config import PRESETS
from dmfnet_fast.images.color import Canvas
from dmfnet_fast.volumes import align, show
from dmfnet_fast.volumes.phantom import draw_volume, write_series
from dmfnet_fast.volumes.volume import Volume

SHAPE = (181, 217, 181)
GROUP = f"volume {'x'.join(map(str, SHAPE))}"
NETWORKS = ("nano", "turbo")
ROUNDS = 3


def tilted_pair(shape: tuple[int, int, int]) -> tuple[Volume, Volume]:
    """An MR and a PET of 1 mm; their grids differ in direction, so that every voxel is interpolated."""
    axial = np.array([[0, 0, 1], [0, 1, 0], [1, 0, 0]], float)
    tilt = np.array([[0.03, -0.02, 0], [0.05, 0, 0.02], [0, -0.05, -0.03]])
    tilted, _ = np.linalg.qr(axial + tilt)
    tilted *= np.sign((tilted * axial).sum(axis=0))
    drawn = []
    for modality, axes in (("MR", axial), ("PT", tilted)):
        affine = np.eye(4)
        affine[:3, :3] = axes
        affine[:3, 3] = -axes @ ((np.array(shape) - 1) / 2)
        drawn.append(draw_volume(modality, shape, affine, 0))
    return drawn[0], drawn[1]


@pytest.fixture(scope="module")
def volumes() -> tuple[Volume, Volume]:
    return tilted_pair(SHAPE)


@pytest.fixture(scope="module")
def series(volumes: tuple[Volume, Volume], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("series")
    for volume in volumes:
        write_series(volume, folder / str(volume.modality))
    return folder


@pytest.fixture(scope="module")
def middle(volumes: tuple[Volume, Volume]) -> Canvas:
    alignment = align(*volumes)
    number = SHAPE[0] // 2
    return Canvas(show(alignment.a).image(number), show(alignment.b).image(number))


@pytest.mark.parametrize("name", NETWORKS)
def test_files_to_files(benchmark: Any, series: Path, middle: Canvas, tmp_path: Path, name: str) -> None:
    """Before each round, the network alone on as many slices: side by side, as both vary with what else runs."""
    out = tmp_path / "out"
    inputs, _ = network_inputs(interface_of(PRESETS[name].to_dict()), [middle])
    alone: list[float] = []
    fusing: list[float] = []

    def run() -> None:
        result = CliRunner().invoke(main, [str(series / "MR"), str(series / "PT"), "-o", str(out), "--engine", name])
        assert result.exit_code == 0, result.output
        fusing.append(json.loads((out / "report.json").read_text())["seconds"]["fusing and writing"])

    with Fuser(name) as fuser:

        def clear_and_run_alone() -> None:
            shutil.rmtree(out, ignore_errors=True)
            fuser.run(**inputs)
            started = time.perf_counter()
            for _ in range(SHAPE[0]):
                fuser.run(**inputs)
            alone.append(time.perf_counter() - started)

        benchmark.group = GROUP
        # The first round compiles the network for this size, and does not count.
        benchmark.pedantic(run, setup=clear_and_run_alone, rounds=ROUNDS, warmup_rounds=1, iterations=1)
    assert len(list((out / "fused").glob("*.dcm"))) == SHAPE[0]
    for part, seconds in (("network_alone", alone), ("fusing_and_writing", fusing)):
        benchmark.extra_info[part] = statistics.median(seconds[-ROUNDS:])
