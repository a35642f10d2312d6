"""Volumes in the page: NIfTI and DICOM, aligned and fused as Python does it."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dmfnet_fast import Fuser
from dmfnet_fast.errors import DMFNetWarning
from dmfnet_fast.images.io import write_image
from dmfnet_fast.phantom import make_phantom
from dmfnet_fast.volumes import Volume, align, read_volume, show
from dmfnet_fast.volumes.phantom import make_head, write_head, write_nifti
from tests.web.conftest import Browse

pytest.importorskip("pydicom", reason="needs the extra dicom")


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders MR, CT, PT and NM of DICOM files, and NIfTI files of the same volumes."""
    folder = tmp_path_factory.mktemp("head")
    volumes = make_head(seed=2, size=64)
    write_head(volumes, folder)
    for name, volume in (("mr", volumes.mr), ("ct", volumes.ct), ("pet", volumes.pet)):
        write_nifti(volume, folder / f"{name}.nii.gz")
    return folder


def _by_python(a: Volume, b: Volume) -> Volume:
    with Fuser(precision="float32") as fuser, warnings.catch_warnings():
        warnings.simplefilter("ignore", DMFNetWarning)
        return fuser.fuse_volume(a, b)


def _same(found: Path, wanted: Volume) -> None:
    """One volume has the other's voxels in space, within one gray level; slices may be stored in another order."""
    result = read_volume(found)
    assert result.color
    assert result.shape == wanted.shape
    np.testing.assert_allclose(result.affine, wanted.affine, atol=1e-3)
    difference = np.abs(result.values.astype(int) - wanted.values)
    # The one value that palettes are looked up by may round to the next color.
    assert difference.max() <= 1 or (difference.max(axis=-1) > 1).mean() < 2e-4


@pytest.mark.parametrize(("b", "modality", "kind"), [("pet", "PT", "PET"), ("ct", "CT", "CT")])
def test_nifti(b: str, modality: str, kind: str, page: str, browse: Browse, head: Path, tmp_path: Path) -> None:
    saved = tmp_path / "saved.nii.gz"
    given: dict[str, Any] = {"a": head / "mr.nii.gz", "b": head / f"{b}.nii.gz", "modality": modality}
    found = browse("volumes", page, **given, cancel=True, save=saved)
    assert found["name"] == f"{b}-fused.nii.gz"
    assert found["advised"] == [True, False], "as long as nobody said what it is"
    canceled = found["afterCancel"]
    assert not canceled["canSave"]
    count = read_volume(head / "mr.nii.gz").shape[0]
    assert 1 <= canceled["fused"] < count // 2
    assert canceled["refusal"] == f"slice {canceled['fused'] + 1} of {count} is not fused; fuse all slices first"
    assert not found["savedAfterChange"]
    mr, other = read_volume(given["a"], modality="MR"), read_volume(given["b"], modality=kind)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DMFNetWarning)
        shown = show(align(mr, other).b)
    np.testing.assert_allclose([float(value) for value in found["values"]], shown.limits, rtol=1e-4)
    assert (found["slice"], found["next"]) == (f"{count // 2 + 1} of {count}", f"{count // 2 + 2} of {count}")
    assert re.match(rf"Fused {count} slices in ", found["status"])
    assert re.search(r"left -?[\d.]+, back -?[\d.]+, up -?[\d.]+ mm", found["readout"])
    _same(saved, _by_python(mr, other))
    assert not found["complaints"]


@pytest.mark.parametrize("b", ["CT", "PT"])
def test_dicom(b: str, page: str, browse: Browse, head: Path, tmp_path: Path) -> None:
    saved = tmp_path / "saved.nii.gz"
    sides = {side: sorted(map(str, (head / name).iterdir())) for side, name in (("a", "MR"), ("b", b))}
    found = browse("volumes", page, **sides, save=saved)
    mr, other = read_volume(head / "MR"), read_volume(head / b)
    shown = show(align(mr, other).b)
    np.testing.assert_allclose([float(value) for value in found["values"]], shown.limits, rtol=1e-4)
    assert (" SUV" if b == "PT" else " HU") in found["readout"]
    assert found["advised"] == [False]
    _same(saved, _by_python(mr, other))
    assert not found["complaints"]


def test_refusals(page: str, browse: Browse, head: Path, tmp_path: Path) -> None:
    """Series with a gap, a tilt or an unknown geometry, another patient, and what does not go together."""
    import pydicom

    series = {name: sorted(map(str, (head / name).iterdir())) for name in ("MR", "CT", "NM")}
    image = tmp_path / "image.png"
    write_image(image, make_phantom(1, 64).pet)
    other, tilted = [], []
    for number, path in enumerate(series["CT"]):
        dataset = pydicom.dcmread(path)
        x, y, z = dataset.ImagePositionPatient
        dataset.ImagePositionPatient = [x, f"{float(y) + 2.0 * number:.4f}", z]
        tilted.append(str(tmp_path / f"tilted-{number}.dcm"))
        dataset.save_as(tilted[-1])
        dataset.ImagePositionPatient = [x, y, z]
        dataset.PatientID = "SOMEBODY"
        other.append(str(tmp_path / f"other-{number}.dcm"))
        dataset.save_as(other[-1])
    expected = {
        "gap": ([*series["MR"][:5], *series["MR"][6:]], "slices are missing or unevenly spaced"),
        "geometry": (series["NM"], "does not tell the page where its slices lie; use dmfnet-fuse"),
        "tilt": (tilted, "its gantry was tilted, which this page does not set right; use dmfnet-fuse"),
        "patient": (other, "name different patients (PatientID differ)"),
        "image": ([str(image)], "one is a single image and the other a volume"),
        "several": ([str(image), str(image)], "none is DICOM; give one image or one NIfTI file"),
    }
    found = browse("refusals", page, a=series["MR"], b=[files for files, _ in expected.values()])
    for said, (_, wanted) in zip(found["said"], expected.values(), strict=True):
        assert wanted in said
        assert "SOMEBODY" not in said
    assert not found["complaints"]
