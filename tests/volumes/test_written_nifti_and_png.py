"""Written NIfTI files and PNG slices, as other programs and radiologists see them."""

from __future__ import annotations

import gzip
import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

nibabel: Any = pytest.importorskip("nibabel", reason="needs the extra dicom")

from dmfnet_fast.volumes.phantom import HeadVolumes
from dmfnet_fast.volumes.planes import ACROSS, DOWN, Upright, nearest_plane
from dmfnet_fast.volumes.reading import read_volume
from dmfnet_fast.volumes.volume import Affine
from tests.volumes.writing_helpers import PROVENANCE, colors, write_all

# In LPS: off the middle to the patient's left, front and top.
LESION = (40.0, -45.0, 35.0)


@pytest.mark.parametrize("name", ["out", "out/x.nii", "out/x.nii.gz"])
@pytest.mark.parametrize("index", range(4))
def test_nifti_read_by_simpleitk(index: int, name: str, head: HeadVolumes, tmp_path: Path) -> None:
    sitk = pytest.importorskip("SimpleITK", reason="needs the extra register")
    volume = list(head)[index]
    values = colors(volume.shape)
    (path,) = write_all("nifti", tmp_path / name, (volume, volume), values)
    assert path == (tmp_path / name if "." in name else tmp_path / name / "fused.nii.gz")
    image = sitk.ReadImage(str(path))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), values)
    for at in ((0, 0, 0), (9, 5, 3)):
        place = volume.affine @ [*at[::-1], 1]
        np.testing.assert_allclose(image.TransformIndexToPhysicalPoint(at), place[:3], atol=1e-3)


def test_nifti_read_again(head: HeadVolumes, tmp_path: Path) -> None:
    values = colors(head.mr.shape)
    (path,) = write_all("nifti", tmp_path, (head.mr, head.pet), values)
    volume = read_volume(path)
    assert volume.color
    np.testing.assert_array_equal(volume.values, values)
    np.testing.assert_allclose(volume.affine, head.mr.affine, atol=1e-4)


def test_nifti_says_what_made_it(head: HeadVolumes, tmp_path: Path) -> None:
    (path,) = write_all("nifti", tmp_path, (head.mr, head.pet))
    image = nibabel.load(path)
    assert image.header.get_xyzt_units()[0] == "mm"
    for place, code in (image.get_sform(coded=True), image.get_qform(coded=True)):
        assert code == 1
        np.testing.assert_allclose(place, head.mr.ras_affine, atol=1e-4)
    assert b"not for diagnosis" in bytes(image.header["descrip"])
    (extension,) = image.header.extensions
    assert extension.get_content().rstrip(b"\0").decode() == PROVENANCE.to_json()
    # Neither a name nor a time in gzip's own header, so that the same result is the same file.
    assert path.read_bytes()[3:8] == b"\0" * 5
    assert gzip.decompress(path.read_bytes())[:4] == b"\x5c\x01\0\0"


def grids() -> list[tuple[str, Affine]]:
    """A cube of 48 voxels of 4 mm, its axes in every order and direction, and a little oblique."""
    found = []
    cosine, sine = np.cos(0.2), np.sin(0.2)
    oblique = np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]])
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((-1, 1), repeat=3):
            affine = np.eye(4)
            affine[:3, :3] = np.eye(3)[:, list(order)] * signs * 4
            affine[:3, :3] = oblique @ affine[:3, :3]
            affine[:3, 3] = -affine[:3, :3] @ [23.5, 23.5, 23.5]
            found.append((f"{order}{signs}", affine))
    return found


@pytest.mark.parametrize(("name", "affine"), grids(), ids=[name for name, _ in grids()])
def test_png_is_upright(name: str, affine: Affine, head: HeadVolumes, tmp_path: Path) -> None:
    """However the voxels are stored, the patient's left is on the right, and front or head is up."""
    volume = replace(head.mr, values=np.zeros((48, 48, 48), np.float32), affine=affine)
    values = np.zeros((48, 48, 48, 3), np.uint8)
    number, row, column = np.rint(np.linalg.inv(affine) @ [*LESION, 1])[:3].astype(int)
    values[number, row, column] = 255
    upright = Upright(affine)
    image = upright(values[number])
    (y,), (x,) = np.nonzero(image.any(axis=2))
    across, down = ACROSS[nearest_plane(affine)], DOWN[nearest_plane(affine)]
    assert (x > 23.5) == (np.dot(LESION, across) > 0), name
    assert (y > 23.5) == (np.dot(LESION, down) > 0), name
    if name.startswith("(0, 1, 2)"):
        paths = write_all("png", tmp_path, (volume, volume), values)
        np.testing.assert_array_equal(np.asarray(Image.open(paths[number])), image)


def test_png_files(head: HeadVolumes, tmp_path: Path) -> None:
    values = colors(head.mr.shape)
    paths = write_all("png", tmp_path, (head.mr, head.pet), values)
    assert [path.name for path in paths] == [f"{number + 1:04d}.png" for number in range(len(values))]
    assert {path.name for path in tmp_path.glob("[!.]*")} == {path.name for path in paths}
    for path, expected in zip(paths, values, strict=True):
        image = Image.open(path)
        assert image.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(image), expected)
    text = dict(Image.open(paths[0]).info)
    assert "not for diagnosis" in text["Comment"]
    assert text["dpi"] == pytest.approx((25.4 / head.mr.spacing[2], 25.4 / head.mr.spacing[1]), rel=0.01)


def test_png_of_voxels_that_are_not_square(head: HeadVolumes, tmp_path: Path) -> None:
    """Their resolution says so, also where the image is turned."""
    affine = head.ct.affine.copy()
    affine[:3, 1:3] = affine[:3, [2, 1]] * [1.0, 3.0]
    volume = replace(head.ct, values=head.ct.values[:2, :, :50], affine=affine)
    (path, _) = write_all("png", tmp_path, (volume, volume))
    image = Image.open(path)
    assert image.size == (volume.shape[1], 50)
    assert image.info["dpi"][0] / image.info["dpi"][1] == pytest.approx(volume.spacing[2] / volume.spacing[1], rel=0.01)
