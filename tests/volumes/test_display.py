"""One range for a whole volume, and DICOM's palettes."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from dmfnet_fast.errors import VolumeError
from dmfnet_fast.volumes.display import COLORMAPS, CT_RANGE, colorized, colormap, display_range, legend
from dmfnet_fast.volumes.phantom import HeadVolumes
from dmfnet_fast.volumes.resampling import resample
from dmfnet_fast.volumes.showing import show


def test_ranges(head: HeadVolumes) -> None:
    assert display_range(head.ct) == CT_RANGE
    low, high = display_range(head.mr)
    assert low == 0
    assert 880 < high < 960, "fluid is the brightest"
    low, high = display_range(head.pet)
    assert low == 0
    assert 20_000 < high < 28_000
    low, high = display_range(head.spect)
    assert low == 0
    assert 600 < high < 900


def test_range_does_not_depend_on_the_grid(head: HeadVolumes) -> None:
    """A volume that is resampled, for whatever part of it the other grid covers, is shown as it would be alone."""
    shape = head.pet.shape[0] // 3, 20, 24
    for volume in (head.pet, head.mr, replace(head.mr, modality="NM")):
        resampled, _ = resample(volume, head.pet.affine, shape)
        assert show(resampled).limits == show(volume).limits == display_range(volume)
        assert display_range(replace(resampled, statistics=None)) != display_range(volume)


def test_range_in_suv_is_round(head: HeadVolumes) -> None:
    low, high = display_range(replace(head.pet, values=head.pet.values / np.float32(3600), units="SUV"))
    assert low == 0
    assert high in (6.5, 7.0, 7.5)


def test_range_does_not_depend_on_the_air(head: HeadVolumes) -> None:
    padded = replace(head.mr, values=np.pad(head.mr.values, ((0, 0), (40, 40), (40, 40))))
    assert display_range(padded)[1] == pytest.approx(display_range(head.mr)[1], rel=0.02)


def test_ct_not_in_hounsfield_units_is_ranged_by_its_values(head: HeadVolumes) -> None:
    low, high = display_range(replace(head.ct, values=head.ct.values + 1000, units=None))
    assert low == pytest.approx(0, abs=20)
    assert high > 1500


def test_color_and_constants(head: HeadVolumes) -> None:
    color = replace(head.pet, values=np.zeros((2, 2, 2, 3), np.uint8), units=None)
    assert display_range(color) == (0.0, 255.0)
    with pytest.raises(VolumeError, match="shows nothing"):
        display_range(replace(head.mr, values=np.full((4, 5, 6), 7, np.float32)))


def test_palettes() -> None:
    pytest.importorskip("pydicom", reason="needs the extra dicom")
    ends = {name: (colormap(name)[0].tolist(), colormap(name)[255].tolist()) for name in COLORMAPS}
    # PS3.6, Annex B.
    assert ends["hot-iron"] == ([0, 0, 0], [255, 255, 255])
    assert ends["pet"] == ([0, 0, 0], [255, 255, 255])
    assert ends["hot-metal-blue"] == ([0, 0, 0], [255, 255, 255])
    assert ends["pet-20-step"] == ([0, 0, 0], [255, 255, 255])
    assert len(np.unique(colormap("pet-20-step"), axis=0)) == 20
    assert colormap("hot-iron")[128].tolist() == [255, 0, 0]
    with pytest.raises(VolumeError, match="unknown colormap 'jet'; use one of hot-iron"):
        colormap("jet")
    with pytest.raises(ValueError, match="read-only"):
        colormap("pet")[0, 0] = 1


def test_colorized() -> None:
    pytest.importorskip("pydicom", reason="needs the extra dicom")
    colors = colorized(np.array([[-5, 0, 5], [10, 20, 5]], np.float32), (0.0, 10.0))
    assert colors.shape == (2, 3, 3)
    table = colormap("hot-iron")
    assert colors[0, 0].tolist() == colors[0, 1].tolist() == table[0].tolist()
    assert colors[1, 0].tolist() == colors[1, 1].tolist() == table[255].tolist()
    assert colors[0, 2].tolist() == table[128].tolist()


def test_legend() -> None:
    pytest.importorskip("pydicom", reason="needs the extra dicom")
    page = np.asarray(legend((0.0, 7.5), "SUV", "pet", height=200))
    assert page.shape == (200, 80, 3)
    bar = page[12:188, 10]
    assert bar[0].tolist() == colormap("pet")[255].tolist()
    assert bar[-1].tolist() == colormap("pet")[0].tolist()
    assert page[:, 24:].any(), "limits are written beside it"


def test_import_loads_no_extra() -> None:
    extras = "('pydicom', 'gdcm', 'nibabel', 'SimpleITK')"
    code = f"import sys, dmfnet_fast.volumes; print([name for name in {extras} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
