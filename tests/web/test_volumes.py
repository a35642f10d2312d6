"""Volumes in the page: NIfTI and DICOM, aligned and fused as Python does it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dmfnet_fast import Fuser
from dmfnet_fast.errors import DMFNetWarning
from dmfnet_fast.images.io import write_image
from dmfnet_fast.phantom import make_phantom
from dmfnet_fast.volumes import Volume, align, display_range, read_volume, resample, show
from dmfnet_fast.volumes.phantom import make_head, write_head, write_nifti
from dmfnet_fast.web.building import SOURCES
from tests.volumes.grids import finely_striped, grid
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


@pytest.mark.skipif(shutil.which("node") is None, reason="Node.js is not installed")
def test_resampling(tmp_path: Path) -> None:
    """Onto coarser grids, turned, tilted and in another order of axes; and onto one that is finer along one axis."""
    gray = finely_striped()
    color = replace(gray, values=np.repeat(gray.values[..., None] / 4, 3, axis=3).astype(np.uint8))
    flipped, tilted = np.eye(3)[[2, 0, 1]] * [1, -1, 1], np.array([[0.94, 0.34, 0], [-0.34, 0.94, 0], [0, 0, 1]])
    cases = [
        (gray, grid((3.0, 3.0, 3.0), (12, 12, 12))),
        (replace(gray, modality="PT"), grid((4.0, 0.7, 0.4), (9, 40, 50), tilted)),
        (replace(gray, modality="CT", units="HU"), grid((1.1, 2.0, 5.0), (20, 16, 8), flipped)),
        (color, grid((3.0, 1.0, 1.0), (12, 30, 30), tilted)),
    ]
    described = []
    for n, (volume, (affine, shape)) in enumerate(cases):
        (tmp_path / f"{n}-values").write_bytes(volume.values.tobytes())
        given = {
            "shape": volume.shape, "affine": volume.affine.ravel().tolist(), "channels": 3 if volume.color else 1,
            "type": volume.values.dtype.name, "modality": volume.modality, "units": volume.units,
        }  # fmt: skip
        described.append({"volume": given, "affine": affine.ravel().tolist(), "shape": shape})
    (tmp_path / "cases.json").write_text(json.dumps(described))
    script = Path(__file__).with_name("resampling.mjs")
    command = ["node", str(script), str(tmp_path), str(SOURCES / "src")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    for n, ((volume, (affine, shape)), limits) in enumerate(zip(cases, json.loads(done.stdout), strict=True)):
        wanted, inside = resample(volume, affine, shape)
        found = np.frombuffer((tmp_path / f"{n}-resampled").read_bytes(), wanted.values.dtype)
        # Of colors, what lies near a half may round either way.
        atol = 1 if volume.color else 1e-3
        np.testing.assert_allclose(found.reshape(wanted.values.shape).astype(float), wanted.values, atol=atol)
        reached = np.frombuffer((tmp_path / f"{n}-inside").read_bytes(), np.uint8)
        np.testing.assert_array_equal(reached.reshape(shape) == 1, inside)
        assert 0 < inside.mean() < 1, "part of the grid lies outside"
        np.testing.assert_allclose(limits, display_range(wanted), rtol=1e-6)


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
