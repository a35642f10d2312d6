"""Two volumes on one grid: by headers, by registration, and what is said of their fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from dmfnet_fast.errors import DMFNetWarning, VolumeError
from dmfnet_fast.volumes import phantom, registration
from dmfnet_fast.volumes.alignment import align
from dmfnet_fast.volumes.drawing import cut, draw_alignment
from dmfnet_fast.volumes.phantom import HeadVolumes
from dmfnet_fast.volumes.planes import PLANES
from dmfnet_fast.volumes.reading import read_volume
from dmfnet_fast.volumes.resampling import resample, resampled_slices
from dmfnet_fast.volumes.volume import Affine, Link, Source, Volume
from tests.volumes.grids import Shape, finely_striped, grid

TILT = np.array([[0.94, 0.342, 0], [-0.342, 0.94, 0], [0, 0, 1]]) / np.sqrt([0.94**2 + 0.342**2] * 2 + [1])


def moved(volume: Volume, matrix: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> Volume:
    return replace(volume, affine=matrix @ volume.affine)


def shift(x: float = 0, y: float = 0, z: float = 0) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    matrix = np.eye(4)
    matrix[:3, 3] = x, y, z
    return matrix


def ramp(affine: np.ndarray[tuple[int, ...], np.dtype[np.float64]], shape: tuple[int, int, int]) -> Volume:
    """Values that are linear in mm, so that linear resampling is exact."""
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    mm = index @ affine[:3, :3].T + affine[:3, 3]
    values = (mm @ np.array([1.0, 10.0, 100.0])).astype(np.float32)
    return Volume(values, affine, "MR", None, None, Source("ramp", "ramp", "", "nifti", 1))


def test_resampling_is_exact_for_linear_values(head: HeadVolumes) -> None:
    """Onto a grid of another direction, spacing and handedness."""
    volume = ramp(np.array([[0, 0, 4.0, -90], [0, 4.0, 0, -100], [5.0, 0, 0, -90], [0, 0, 0, 1]]), (40, 50, 45))
    result, inside = resample(volume, head.mr.affine, head.mr.shape)
    expected = ramp(head.mr.affine, head.mr.shape).values
    assert 0.3 < inside.mean() < 1
    centers = np.linalg.inv(volume.affine) @ head.mr.affine
    corner = (centers @ [0, 0, 0, 1])[:3]
    assert (corner < 0).any(), "part of the grid lies outside"
    index = np.stack(np.meshgrid(*map(np.arange, head.mr.shape), indexing="ij"), axis=-1)
    at = index @ centers[:3, :3].T + centers[:3, 3]
    # Within reach of the border, which is repeated, averages are not linear.
    margin = np.array([8, 2, 2])
    interior = ((at >= margin) & (at <= np.array(volume.shape) - 1 - margin)).all(axis=-1)
    np.testing.assert_allclose(result.values[interior], expected[interior], atol=0.05)
    assert (result.values[~inside] == volume.values.min()).all()


def test_same_grid_changes_nothing(head: HeadVolumes) -> None:
    for volume in (head.mr, head.ct):
        result, inside = resample(volume, volume.affine, volume.shape)
        np.testing.assert_array_equal(result.values, volume.values)
        assert inside.all()


def _stripes(period: float, affine: Affine, shape: Shape, averaged: bool) -> float:
    """Root mean square of what is left of the stripes on another grid, within the ball."""
    striped = finely_striped(period)
    ball = (striped.values > 0).astype(np.float32)
    resampled = [
        resample(volume, affine, shape)[0].values
        if averaged
        else np.stack([image for image, _ in resampled_slices(volume, affine, shape)])
        for volume in (striped, replace(striped, values=ball * 200))
    ]
    inside = resample(replace(striped, values=ball), affine, shape)[0].values > 0.99
    return float(np.sqrt(((resampled[0] - resampled[1])[inside] ** 2).mean()))


@pytest.mark.parametrize("period", [1.7, 2.9])
@pytest.mark.parametrize("axes", [np.eye(3), TILT, TILT[[2, 0, 1]]], ids=["straight", "tilted", "in another order"])
def test_finer_volumes_are_averaged_onto_coarser_grids(period: float, axes: np.ndarray[Any, Any]) -> None:
    """Stripes that voxels of 3 mm cannot show must not become others that they can; coarse ones stay."""
    coarse = grid((3.0, 3.0, 3.0), (9, 9, 9), axes)
    assert _stripes(period, *coarse, averaged=False) > 10, "single points alias"
    assert _stripes(period, *coarse, averaged=True) < 1
    assert _stripes(24, *coarse, averaged=True) > 0.9 * _stripes(24, *coarse, averaged=False)


def test_averaging_is_a_gaussian_along_finer_axes_alone() -> None:
    """As wide as SciPy's, of the difference between both voxels' widths; the axes that are coarser, or equal, stay."""
    ndimage = pytest.importorskip("scipy.ndimage")
    volume = finely_striped()
    affine, shape = grid((2.0, 0.5, 0.3), (15, 60, 90))
    result, _ = resample(volume, affine, shape)
    width = np.sqrt(2.0**2 - 0.5**2) / np.sqrt(8 * np.log(2)) / 0.5
    averaged = replace(volume, values=ndimage.gaussian_filter1d(volume.values, width, axis=0, mode="nearest"))
    expected = np.stack([image for image, _ in resampled_slices(averaged, affine, shape)])
    np.testing.assert_allclose(result.values, expected, atol=1e-3)


def test_thick_tilted_slices_blur_nothing_within_slices() -> None:
    """Slices of 5 mm, tilted by 20 degrees: averaged across slices, and not along rows and columns."""
    axes = np.array([[0.94, -0.342, 0], [0.342, 0.94, 0], [0, 0, 1]])
    volume = finely_striped()
    along_columns = replace(volume, values=volume.values.copy())
    along_columns.values[:] = np.sin(np.arange(60) * 2)
    affine, shape = grid((5.0, 0.5, 0.5), (3, 20, 20), axes / np.linalg.norm(axes, axis=0))
    points = np.stack([image for image, _ in resampled_slices(along_columns, affine, shape)])
    np.testing.assert_allclose(resample(along_columns, affine, shape)[0].values, points, atol=1e-5)


def test_color_stays_color(head: HeadVolumes) -> None:
    color = replace(
        head.pet, values=np.repeat((head.pet.values / 200).astype(np.uint8)[..., None], 3, axis=3), units=None
    )
    result, _ = resample(color, head.mr.affine, head.mr.shape)
    assert result.values.dtype == np.uint8
    assert result.values.shape == (*head.mr.shape, 3)
    assert result.values.max() > 100


def test_air_around_a_ct(head: HeadVolumes) -> None:
    result, inside = resample(head.ct, shift(z=150) @ head.mr.affine, head.mr.shape)
    assert (result.values[~inside] == -1000).all()


@pytest.mark.parametrize("index", [1, 2, 3])
@pytest.mark.parametrize("taken", ["a", "b"])
def test_one_head_on_four_grids(index: int, taken: Literal["a", "b"]) -> None:
    volumes = phantom.make_head(seed=1, size=64)
    other = list(volumes)[index]
    result = align(volumes.mr, other, taken)
    target = volumes.mr if taken == "a" else other
    for volume in (result.a, result.b):
        assert volume.shape == target.shape
        np.testing.assert_array_equal(volume.affine, target.affine)
    np.testing.assert_array_equal((result.a if taken == "a" else result.b).values, target.values)
    assert result.coverage > 0.98
    assert result.overlap > 0.85
    assert result.warnings == ()
    assert not result.registered
    np.testing.assert_array_equal(result.transform, np.eye(4))


def test_lesion_is_where_it_is(head: HeadVolumes) -> None:
    """In the MR and in the PET on the MR's grid: on the left, in front, bright."""
    result = align(head.mr, head.pet)
    to_voxel = np.linalg.inv(result.a.affine)
    for volume in (result.a, result.b):
        lesion, opposite = (
            volume.values[tuple(np.rint(to_voxel @ [side * 34, -34, 22, 1])[:3].astype(int))] for side in (1, -1)
        )
        assert lesion > 1.3 * opposite


def test_mutual_information_falls_when_moved(head: HeadVolumes) -> None:
    values = [align(head.mr, moved(head.pet, shift(x=mm))).mutual_information for mm in (0, 6, 12)]
    assert values[0] > values[1] > values[2] > 0


def test_partial_coverage_warns(head: HeadVolumes) -> None:
    part = replace(head.ct, values=head.ct.values[:5])
    with pytest.warns(DMFNetWarning, match="covers only"):
        result = align(head.mr, part)
    assert 0.2 < result.coverage < 0.6


def test_low_overlap_warns(head: HeadVolumes) -> None:
    with pytest.warns(DMFNetWarning, match="may not belong together"):
        result = align(head.mr, moved(head.pet, shift(x=60)))
    assert any("may not belong together" in warning for warning in result.warnings)


def test_no_overlap_is_refused(head: HeadVolumes) -> None:
    with pytest.raises(VolumeError, match="shows nothing of the head"):
        align(head.mr, moved(head.pet, shift(z=1000)))


def test_frames_of_reference(head: HeadVolumes) -> None:
    mr, pet = replace(head.mr, frame_of_reference="1.2"), replace(head.pet, frame_of_reference="1.3")
    with pytest.warns(DMFNetWarning, match="different frames of reference"):
        align(mr, pet)
    assert align(mr, replace(pet, frame_of_reference="1.2")).warnings == ()
    assert align(mr, replace(pet, frame_of_reference=None)).warnings == ()


def test_patients(head: HeadVolumes) -> None:
    def of(volume: Volume, **identity: str) -> Volume:
        return replace(volume, link=Link("1", "2", (), None, identity, lossy=False, burned_in=False))

    a = of(head.mr, PatientID="123", PatientName="roe jane")
    with pytest.raises(VolumeError, match=r"name different patients \(PatientID differs\).*--force-patient") as error:
        align(a, of(head.pet, PatientID="456"))
    assert "123" not in str(error.value)
    with pytest.warns(DMFNetWarning, match="name different patients"):
        align(a, of(head.pet, PatientID="456"), force_patient=True)
    assert align(a, of(head.pet, PatientBirthDate="19700101")).warnings == ()
    assert align(a, of(head.pet, PatientID="123")).warnings == ()


def test_drawing(head: HeadVolumes) -> None:
    result = align(head.mr, head.pet)
    page = np.asarray(draw_alignment(result))
    assert page.shape == (676, 960, 3)
    yellow = (page == (255, 210, 0)).all(axis=2)
    for row in range(2):
        for column in range(3):
            panel = yellow[row * 338 : (row + 1) * 338, column * 320 : (column + 1) * 320]
            assert 100 < panel.sum() < 8000, "a line, not an area"


def test_planes_are_upright(head: HeadVolumes) -> None:
    """The patient's left on the right, the front or the top of the head above; whatever the grid."""
    for volume in (head.mr, head.spect):
        at = np.array([0.0, 0.0, 0.0])
        marked = np.zeros(volume.shape, np.float32)
        index = np.stack(np.meshgrid(*map(np.arange, volume.shape), indexing="ij"), axis=-1)
        mm = index @ volume.affine[:3, :3].T + volume.affine[:3, 3]
        for axis, (plane, expected) in enumerate(
            zip(("axial", "axial", "coronal"), ((0, 1), (-1, 0), (-1, 0)), strict=True)
        ):
            assert plane in PLANES
            target = np.zeros(3)
            target[axis] = (40, -40, 40)[axis]
            marked[:] = np.exp(-(((mm - target) / 15) ** 2).sum(axis=-1))
            image = cut(replace(volume, values=marked.copy()), "axial" if plane == "axial" else "coronal", at, 100.0)
            place = np.array(np.unravel_index(image.argmax(), image.shape)) - 159.5
            assert np.abs(place / 64 - expected).max() < 0.25


@pytest.fixture
def itk() -> None:
    pytest.importorskip("SimpleITK", reason="needs the extra register")


@pytest.mark.usefixtures("itk")
def test_registration() -> None:
    affine = phantom._grid(
        (56, 60, 52), (3.7, 4.0, 4.0), np.array([[0, 0, 1], [0, 1, 0], [1, 0, 0]], float), np.zeros(3)
    )
    mr, pet = (phantom.draw_volume(modality, (56, 60, 52), affine, 2) for modality in ("MR", "PT"))
    turn = np.deg2rad(8)
    motion = shift(12, -9, 6) @ np.array(
        [[np.cos(turn), -np.sin(turn), 0, 0], [np.sin(turn), np.cos(turn), 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    )
    with pytest.warns(DMFNetWarning, match="registered automatically: look at"):
        result = align(mr, moved(pet, motion), register=True)
    head_points = np.array(
        [[60, 0, 0, 1], [-60, 0, 0, 1], [0, 70, 0, 1], [0, -70, 0, 1], [0, 0, 60, 1], [0, 0, -60, 1]]
    )
    error = np.linalg.norm((head_points @ (result.transform - motion).T)[:, :3], axis=1)
    assert error.max() < 1.5
    assert result.mutual_information > result.mutual_information_by_headers
    assert result.inverse_error is not None
    assert result.inverse_error <= registration.LARGEST_INVERSE_ERROR


@pytest.mark.usefixtures("itk")
def test_registration_that_disagrees_is_refused(head: HeadVolumes, monkeypatch: pytest.MonkeyPatch) -> None:
    best = registration._best
    calls: list[Any] = []

    def drift(itk_module: object, fixed: object, moving: object) -> object:
        transform = best(itk_module, fixed, moving) if not calls else calls[0].GetInverse()
        if calls:
            transform.SetTranslation([part + 2.0 for part in transform.GetTranslation()])
        calls.append(transform)
        return transform

    monkeypatch.setattr(registration, "_best", drift)
    with pytest.raises(VolumeError, match=r"reliably: there and back are 3\.\d mm apart, more than 2 mm"):
        registration.register_rigid(head.mr, head.pet)


@pytest.mark.usefixtures("itk")
def test_registration_is_deterministic(head: HeadVolumes) -> None:
    import SimpleITK

    fixed, moving = (registration._image(SimpleITK, volume) for volume in (head.mr, head.ct))
    start = registration._by_headers(SimpleITK, fixed)
    with registration._one_thread(SimpleITK):
        runs = [registration._registered(SimpleITK, fixed, moving, start)[2].GetParameters() for _ in range(2)]
    assert runs[0] == runs[1]


@pytest.mark.usefixtures("itk")
def test_too_thin_to_register(head: HeadVolumes) -> None:
    with pytest.raises(VolumeError, match="too thin to register"):
        registration.register_rigid(head.mr, replace(head.ct, values=head.ct.values[:2]))


def test_real_files_align(written: Path) -> None:
    """What was written and read again, patient and frame of reference included."""
    pytest.importorskip("gdcm", reason="needs the extra dicom")
    result = align(read_volume(written / "MR"), read_volume(written / "PT"))
    assert result.warnings == ()
    assert result.coverage > 0.98
