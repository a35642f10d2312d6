"""Whole series read as they were written."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom", reason="needs the extra dicom")
nibabel = pytest.importorskip("nibabel", reason="needs the extra dicom")
pytest.importorskip("gdcm", reason="needs the extra dicom")

from dmfnet_fast.errors import DMFNetWarning, VolumeError
from dmfnet_fast.volumes.phantom import HeadVolumes, write_nifti, write_series, write_tomogram
from dmfnet_fast.volumes.reading import list_volumes, read_volume
from dmfnet_fast.volumes.volume import Source, Volume
from tests.volumes.damaging import edit, place

Copier = Callable[[str], Path]


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.dcm"))


@pytest.mark.parametrize(("name", "index"), [("MR", 0), ("EMR", 0), ("CT", 1), ("NM", 3)])
def test_as_written(name: str, index: int, written: Path, head: HeadVolumes) -> None:
    expected = list(head)[index]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        volume = read_volume(written / name)
    np.testing.assert_allclose(volume.affine, expected.affine, atol=1e-5)
    np.testing.assert_allclose(volume.values, expected.values, atol=0.51)
    assert volume.values.dtype == np.float32
    assert (volume.modality, volume.units) == (expected.modality, expected.units)
    assert volume.source.notes == ()
    assert volume.source.files == len(files(written / name))


def test_pet_in_suv(written: Path, head: HeadVolumes) -> None:
    volume = read_volume(written / "PT")
    factor = 70_000 / (3.7e8 * 0.5 ** (3600 / 6586.2))
    np.testing.assert_allclose(volume.values, head.pet.values * factor, atol=1e-3)
    assert volume.units == "SUV"
    assert "SUV" in volume.source.notes[0]


def tracer(data: Any) -> Any:
    return data.RadiopharmaceuticalInformationSequence[0]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda data: data.__delattr__("PatientWeight"), "no weight"),
        (lambda data: setattr(data, "CorrectedImage", ["DECY"]), "not corrected"),
        (lambda data: setattr(data, "DecayCorrection", "NONE"), "to which time"),
        (lambda data: setattr(data, "PatientWeight", "70000"), "implausible"),
        (lambda data: setattr(tracer(data), "RadionuclideTotalDose", 370), "implausible"),
        (lambda data: tracer(data).__delattr__("RadionuclideHalfLife"), "half-life"),
        (lambda data: tracer(data).__delattr__("RadiopharmaceuticalStartTime"), "when"),
    ],
)
def test_pet_without_suv(change: Callable[[Any], object], reason: str, copied: Copier, head: HeadVolumes) -> None:
    folder = copied("PT")
    for path in files(folder):
        edit(path, change)
    volume = read_volume(folder)
    assert volume.units == "Bq/ml"
    assert reason in volume.source.notes[0]
    np.testing.assert_allclose(volume.values, head.pet.values, atol=1.0)


def test_pet_past_midnight(copied: Copier) -> None:
    folder = copied("PT")

    def late(data: Any) -> None:
        data.SeriesTime = data.AcquisitionTime = "003000"
        tracer(data).RadiopharmaceuticalStartTime = "233000"

    for path in files(folder):
        edit(path, late)
    assert "after 60 min" in read_volume(folder).source.notes[0]


def test_pet_of_several_bed_positions(copied: Copier) -> None:
    """All are corrected to the start of the first, wherever it is in the series."""

    def later(data: Any) -> None:
        data.SeriesTime, data.AcquisitionTime = "120000", "101500" if data.InstanceNumber < 9 else "100000"

    folder = copied("PT")
    for path in files(folder):
        edit(path, later)
    assert "after 60 min" in read_volume(folder).source.notes[0]


@pytest.mark.parametrize(("shift", "units"), [(0, "HU"), (1024, None)])
def test_nifti_of_a_ct(shift: float, units: str | None, head: HeadVolumes, tmp_path: Path) -> None:
    """In Hounsfield units if there is air; the note says why it is not."""
    write_nifti(replace(head.ct, values=head.ct.values + np.float32(shift)), tmp_path / "ct.nii")
    volume = read_volume(tmp_path / "ct.nii", modality="CT")
    assert volume.units == units
    assert ["not in Hounsfield units" in note for note in volume.source.notes] == ([True] if units is None else [])


@pytest.mark.parametrize(("name", "index"), [("MR.nii.gz", 0), ("PT.nii", 2)])
def test_nifti(name: str, index: int, written: Path, head: HeadVolumes) -> None:
    expected = list(head)[index]
    volume = read_volume(written / name, modality="MRI" if index == 0 else "PET")
    np.testing.assert_allclose(volume.affine, expected.affine, atol=1e-4)
    np.testing.assert_array_equal(volume.values, expected.values)
    assert volume.modality == expected.modality
    assert volume.link is None
    assert read_volume(written / name).modality is None


def test_axes_agree_with_simpleitk(written: Path) -> None:
    """A second reader of geometry: the same point in mm for the same voxel."""
    itk = pytest.importorskip("SimpleITK", reason="needs the extra register")
    for name in ("MR", "CT"):
        volume = read_volume(written / name)
        reader = itk.ImageSeriesReader()
        reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(written / name)))
        image = reader.Execute()
        np.testing.assert_allclose(itk.GetArrayFromImage(image), volume.values, atol=1e-3)
        for index in ((0, 0, 0), (3, 10, 20), (7, 40, 5)):
            expected = image.TransformIndexToPhysicalPoint([int(number) for number in index[::-1]])
            np.testing.assert_allclose((volume.affine @ [*index, 1])[:3], expected, atol=1e-3)
    image = itk.ReadImage(str(written / "MR.nii.gz"))
    volume = read_volume(written / "MR.nii.gz")
    np.testing.assert_allclose(
        image.TransformIndexToPhysicalPoint([5, 6, 7]), (volume.affine @ [7, 6, 5, 1])[:3], atol=1e-3
    )


def test_axes_agree_with_highdicom(written: Path) -> None:
    highdicom = pytest.importorskip("highdicom", reason="a second reader")
    volume = read_volume(written / "MR")
    other = highdicom.get_volume_from_series([pydicom.dcmread(path) for path in files(written / "MR")])
    # It stacks slices the other way.
    np.testing.assert_allclose(other.array[::-1], volume.values, atol=1e-3)
    last = volume.shape[0] - 1
    np.testing.assert_allclose(other.affine @ [last - 2, 3, 4, 1], volume.affine @ [2, 3, 4, 1], atol=1e-3)


def test_tomogram_stacked_backwards(head: HeadVolumes, tmp_path: Path) -> None:
    affine = head.spect.affine.copy()
    affine[:3, 3] += affine[:3, 0] * (head.spect.shape[0] - 1)
    affine[:3, 0] *= -1
    write_tomogram(replace(head.spect, values=head.spect.values[::-1], affine=affine), tmp_path / "backwards.dcm")
    assert pydicom.dcmread(tmp_path / "backwards.dcm").SpacingBetweenSlices < 0
    volume = read_volume(tmp_path / "backwards.dcm")
    np.testing.assert_allclose(volume.affine, head.spect.affine, atol=1e-5)
    np.testing.assert_allclose(volume.values, head.spect.values, atol=0.51)


def test_folder_with_several(written: Path) -> None:
    listing = list_volumes(written)
    assert sorted(volume.modality or "" for volume in listing.volumes) == ["CT", "MR", "MR", "NM", "PT"]
    with pytest.raises(
        VolumeError, match=r"holds 5 volumes; choose one by its UID \(--series-a or --series-b UID\)"
    ) as error:
        read_volume(written)
    for volume in listing.volumes:
        assert volume.uid in str(error.value)
        assert volume.description in str(error.value)
        assert read_volume(written, volume.uid).shape == volume.shape
    with pytest.raises(VolumeError, match=r"holds no series 1\.2\.3"):
        read_volume(written, "1.2.3")


def test_several_in_one_series(written: Path) -> None:
    """An Enhanced and a classic series that share their UID are numbered."""
    uids = {volume.uid for volume in list_volumes(written).volumes if volume.modality == "MR"}
    assert {uid[-2:] for uid in uids} == {"#1", "#2"}


def _dicomdir(folder: Path, names: list[list[str]]) -> Path:
    """A DICOMDIR that names files, in records of images alone."""
    records = []
    for name in names:
        record = pydicom.Dataset()
        record.DirectoryRecordType, record.ReferencedFileID = "IMAGE", name
        records.append(record)
    data = pydicom.Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = pydicom.uid.MediaStorageDirectoryStorage
    data.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    data.DirectoryRecordSequence = pydicom.Sequence(records)
    data.save_as(folder / "DICOMDIR", enforce_file_format=True)
    return folder / "DICOMDIR"


def test_dicomdir(written: Path, tmp_path: Path) -> None:
    """Names in capitals, files on the disk in small letters, as some systems copy them."""
    (tmp_path / "images").mkdir()
    names = []
    for number, path in enumerate(files(written / "MR")):
        shutil.copy(path, tmp_path / "images" / f"im{number}")
        names.append(["IMAGES", f"IM{number}"])
    shutil.copy(files(written / "CT")[0], tmp_path / "images" / "unlisted")
    path = _dicomdir(tmp_path, names)
    np.testing.assert_array_equal(read_volume(path).values, read_volume(written / "MR").values)
    (tmp_path / "images" / "im3").unlink()
    with pytest.raises(VolumeError, match="IM3, which is missing; copy the whole medium again"):
        read_volume(path)


@pytest.mark.parametrize("name", [["..", "secret"], ["IMAGES/../..", "secret"], ["IMAGES", "", "x"]])
def test_dicomdir_stays_in_its_folder(name: list[str], tmp_path: Path) -> None:
    with pytest.raises(VolumeError, match="outside its folder"):
        read_volume(_dicomdir(tmp_path, [name]))


def test_one_file(written: Path, head: HeadVolumes) -> None:
    volume = read_volume(files(written / "CT")[4])
    assert volume.shape == (1, *head.ct.shape[1:])
    np.testing.assert_allclose(volume.spacing, head.ct.spacing, atol=1e-4)


def test_skipped_and_named(copied: Copier, head: HeadVolumes) -> None:
    folder = copied("MR")
    (folder / "notes.txt").write_text("no DICOM")
    localizer, report = folder / "localizer.dcm", folder / "report.dcm"
    shutil.copy(files(folder)[0], localizer)

    def localize(data: Any) -> None:
        data.ImageType, data.SOPInstanceUID = ["ORIGINAL", "PRIMARY", "LOCALIZER"], "1.2.3"

    edit(localizer, localize)
    shutil.copy(files(folder)[0], report)

    def report_instead(data: Any) -> None:
        del data.PixelData, data.Rows
        data.Modality, data.SOPClassUID = "SR", "1.2.840.10008.5.1.4.1.1.88.11"

    edit(report, report_instead)
    volume = read_volume(folder)
    assert volume.shape == head.mr.shape
    notes = "\n".join(volume.source.notes)
    assert "localizer.dcm: left out: a localizer" in notes
    assert "report.dcm: left out: no image" in notes
    assert "notes.txt: left out: not DICOM" in notes


def test_duplicates_are_dropped(copied: Copier, head: HeadVolumes) -> None:
    folder = copied("MR")
    shutil.copy(files(folder)[2], folder / "again.dcm")
    shutil.copy(files(folder)[3], folder / "renamed.dcm")
    edit(folder / "renamed.dcm", lambda data: setattr(data, "SOPInstanceUID", "1.2.3"))
    with pytest.warns(DMFNetWarning, match="is a copy of") as caught:
        volume = read_volume(folder)
    assert len(caught) == 2
    assert volume.shape == head.mr.shape
    assert len(volume.source.notes) == 2


def _phase(name: str, change: Callable[[Any], object], folder: Path, head: HeadVolumes) -> None:
    """A second series of files at the same places, brighter."""
    brighter = replace(head.mr, values=head.mr.values + np.float32(100))
    for path in write_series(brighter, folder / name):
        edit(path, change)
        edit(path, lambda data: setattr(data, "SOPInstanceUID", f"1.2.3.{data.InstanceNumber}"))


@pytest.mark.parametrize(
    "change",
    [
        lambda data: setattr(data, "TemporalPositionIdentifier", 2),
        lambda data: setattr(data, "EchoTime", "20"),
        lambda data: setattr(data, "ImageType", ["ORIGINAL", "PRIMARY", "P"]),
        lambda data: setattr(data, "AcquisitionTime", "110000"),
    ],
)
def test_phases_are_told_apart(change: Callable[[Any], object], copied: Copier, head: HeadVolumes) -> None:
    folder = copied("MR")
    _phase("second", change, folder, head)
    listing = list_volumes(folder)
    assert [volume.shape for volume in listing.volumes] == [head.mr.shape] * 2
    first, second = (read_volume(folder, volume.uid) for volume in listing.volumes)
    np.testing.assert_allclose(second.values - first.values, 100, atol=1)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_monochrome1(photometric: str, copied: Copier) -> None:
    """White is low: an MR is turned over, a CT's Hounsfield units stay what they are."""
    for name, turned in (("MR", photometric == "MONOCHROME1"), ("CT", False)):
        folder = copied(name)
        before = read_volume(folder).values
        for path in files(folder):
            edit(path, lambda data: setattr(data, "PhotometricInterpretation", photometric))
        np.testing.assert_array_equal(read_volume(folder).values, 65535 - before if turned else before)


def test_color(copied: Copier, head: HeadVolumes) -> None:
    """RGB and palette color: uint8 in color."""
    folder = copied("PT")
    ramp = np.arange(256, dtype=np.uint16)
    gray = (head.pet.values / head.pet.values.max() * 255).astype(np.uint8)

    def palette(data: Any) -> None:
        data.PhotometricInterpretation, data.BitsAllocated, data.BitsStored, data.HighBit = "PALETTE COLOR", 8, 8, 7
        data.PixelRepresentation = 0
        data.PixelData = gray[data.InstanceNumber - 1].tobytes()
        for color, table in (("Red", ramp), ("Green", 255 - ramp), ("Blue", ramp // 2)):
            tag = pydicom.tag.Tag(f"{color}PaletteColorLookupTableDescriptor")
            data.add_new(tag, "US", [256, 0, 16])
            data.add_new(tag + 0x100, "OW", (table << 8).astype("<u2").tobytes())

    def rgb(data: Any) -> None:
        palette(data)
        index = gray[data.InstanceNumber - 1]
        data.PhotometricInterpretation, data.SamplesPerPixel, data.PlanarConfiguration = "RGB", 3, 0
        data.PixelData = np.stack([index, 255 - index, index // 2], axis=-1).tobytes()

    expected = np.stack([gray, 255 - gray, gray // 2], axis=-1)
    for change in (palette, rgb):
        for path in files(folder):
            edit(path, change)
        volume = read_volume(folder)
        assert volume.color
        assert volume.units is None
        np.testing.assert_array_equal(volume.values, expected)


@pytest.mark.parametrize("syntax", ["implicit", "deflated", "no preamble", "rle"])
def test_encodings(syntax: str, copied: Copier, written: Path) -> None:
    folder = copied("CT")
    for path in files(folder):
        data = pydicom.dcmread(path)
        if syntax == "implicit":
            data.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian
            data.save_as(path)
        elif syntax == "deflated":
            data.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
            data.save_as(path)
        elif syntax == "no preamble":
            path.write_bytes(path.read_bytes()[132:])
        else:
            data.compress(pydicom.uid.RLELossless)
            data.save_as(path)
    np.testing.assert_array_equal(read_volume(folder).values, read_volume(written / "CT").values)


def test_deflated_bomb(copied: Copier, monkeypatch: pytest.MonkeyPatch) -> None:
    path = files(copied("CT"))[0]
    data = pydicom.dcmread(path)
    data.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    data.save_as(path)
    monkeypatch.setattr("dmfnet_fast.volumes.dicom_file._LARGEST_INFLATED", 1000)
    with pytest.raises(VolumeError, match="cut off or too large"):
        read_volume(path)


def test_tilted_gantry_is_straightened(copied: Copier) -> None:
    """Positions shear as in a CT with a tilted gantry; a block stays where it is in the patient."""
    folder = copied("CT")
    before = read_volume(folder)
    step = np.array([0.0, 0.3 * before.spacing[0], 0.0])
    for number, path in enumerate(files(folder)):
        corner = before.affine[:3, 3] + (before.affine[:3, 0] + step) * number
        text = [f"{mm:.6f}" for mm in corner]
        edit(path, partial(place, position=text))
    volume = read_volume(folder)
    assert "tilted" in volume.source.notes[0]
    assert volume.shape[1] > before.shape[1]
    np.testing.assert_allclose(volume.affine[:3, 0], before.affine[:3, 0], atol=1e-5)
    for number in (2, 5, 9):
        # The middle of a slice's head, in mm, has moved by the step.
        weights = [np.clip(one.values[number] + 1000, 0, None).astype(float) for one in (before, volume)]
        rows = [float((weight.sum(axis=1) @ np.arange(weight.shape[0])) / weight.sum()) for weight in weights]
        mm = [(one.affine @ [number, row, 0, 1])[1] for one, row in zip((before, volume), rows, strict=True)]
        assert mm[1] - mm[0] == pytest.approx(step[1] * number, abs=0.3)


def test_what_is_known_of_the_patient_is_kept_apart(written: Path) -> None:
    volume = read_volume(written / "MR")
    assert volume.link is not None
    assert volume.link.patient.PatientName == "Phantom^Head"
    assert len(volume.link.instances) == volume.shape[0]
    assert len({instance.sop_instance for instance in volume.link.instances}) == volume.shape[0]
    for text in (repr(volume), repr(volume.link), repr(volume.source), str(list_volumes(written / "MR").volumes)):
        assert "Phantom" not in text
        assert "PHANTOM" not in text


def test_volume_checks_itself() -> None:
    source = Source("here", "1", "", "nifti", 1)
    for values in (np.zeros((2, 2, 2)), np.zeros((2, 2), np.float32), np.zeros((2, 2, 2, 3), np.float32)):
        with pytest.raises(VolumeError, match="here: a volume is"):
            Volume(values, np.eye(4), None, None, None, source)
    sheared = np.eye(4)
    sheared[0, 1] = 0.2
    with pytest.raises(VolumeError, match="not perpendicular"):
        Volume(np.zeros((2, 2, 2), np.float32), sheared, None, None, None, source)


@pytest.mark.parametrize("slope", ["0.5", "2", "10"])
@pytest.mark.parametrize("name", ["CT", "PT"])
def test_doubtful_slope(name: str, slope: str, copied: Copier) -> None:
    """One slice is brighter or darker than both of its neighbors: it is read, with a warning that names it."""
    folder = copied(name)
    path = files(folder)[6]
    edit(path, lambda data: setattr(data, "RescaleSlope", f"{float(data.RescaleSlope) * float(slope):.8g}"))
    with pytest.warns(DMFNetWarning) as caught:
        volume = read_volume(folder)
    messages = [str(warning.message) for warning in caught]
    assert all(str(path) in message for message in messages)
    assert set(messages) <= set(volume.source.notes)
    assert any("times as bright as its neighbors" in message for message in messages)
    # The slices of a CT have one slope.
    assert any("Rescale Slope" in message and "others of its series 1" in message for message in messages) == (
        name == "CT"
    )


def test_nifti_with_two_places(written: Path, tmp_path: Path) -> None:
    """Where sform and qform differ, the sform is taken, and the user is told."""
    path = tmp_path / "moved.nii"
    image = nibabel.load(written / "PT.nii")
    moved = image.affine.copy()
    moved[:3, 3] += (0, 12, 5)
    image.set_qform(moved, "scanner")
    nibabel.save(image, path)
    with pytest.warns(DMFNetWarning, match=r"says in two ways where it lies, 13 mm apart .* the sform was used"):
        volume = read_volume(path)
    np.testing.assert_allclose(volume.affine, read_volume(written / "PT.nii").affine, atol=1e-4)
    assert "two ways" in volume.source.notes[0]
    image.set_qform(None, 0)
    nibabel.save(image, path)
    assert read_volume(path).source.notes == ()


def test_doubtful_order(copied: Copier) -> None:
    """Two slices have changed places."""
    folder = copied("CT")
    one, other = files(folder)[3], files(folder)[8]
    places = [pydicom.dcmread(path, stop_before_pixels=True).ImagePositionPatient for path in (one, other)]
    edit(one, partial(place, position=places[1]))
    edit(other, partial(place, position=places[0]))
    with pytest.warns(DMFNetWarning) as caught:
        volume = read_volume(folder)
    (message,) = (str(warning.message) for warning in caught if "Instance Number" in str(warning.message))
    assert str(one) in message or str(other) in message
    assert message in volume.source.notes


def numbered(data: Any, number: int) -> None:
    data.InstanceNumber = number


@pytest.mark.parametrize("order", [lambda n: 100 - n, lambda n: (n * 5) % 12, lambda n: n // 2 + 6 * (n % 2)])
def test_other_orders(order: Callable[[int], int], copied: Copier) -> None:
    """Backwards and interleaved."""
    folder = copied("CT")
    for number, path in enumerate(files(folder)):
        edit(path, partial(numbered, number=order(number) + 1))
    read_volume(folder)
