"""A whole volume, from files to files, beside what the network alone takes for as many slices.

A median of files to files over that of the network alone is the overhead of reading, aligning, showing and writing.
"""

from __future__ import annotations

import shutil
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


@pytest.mark.parametrize("name", NETWORKS)
def test_network_alone(benchmark: Any, volumes: tuple[Volume, Volume], name: str) -> None:
    alignment = align(*volumes)
    middle = SHAPE[0] // 2
    canvas = Canvas(show(alignment.a).image(middle), show(alignment.b).image(middle))
    inputs, _ = network_inputs(interface_of(PRESETS[name].to_dict()), [canvas])
    with Fuser(name) as fuser:
        fuser.run(**inputs)

        def run() -> None:
            for _ in range(SHAPE[0]):
                fuser.run(**inputs)

        benchmark.group = GROUP
        benchmark.pedantic(run, rounds=2, iterations=1)


@pytest.mark.parametrize("name", NETWORKS)
def test_files_to_files(benchmark: Any, series: Path, tmp_path: Path, name: str) -> None:
    out = tmp_path / "out"

    def run() -> None:
        result = CliRunner().invoke(main, [str(series / "MR"), str(series / "PT"), "-o", str(out), "--engine", name])
        assert result.exit_code == 0, result.output

    def clear() -> None:
        shutil.rmtree(out, ignore_errors=True)

    clear()
    run()  # compiles the network for this size
    benchmark.group = GROUP
    benchmark.pedantic(run, setup=clear, rounds=2, iterations=1)
    assert len(list((out / "fused").glob("*.dcm"))) == SHAPE[0]
