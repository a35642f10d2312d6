"""Written DICOM series, as other programs and the standard see them."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom", reason="needs the extra dicom")
pytest.importorskip("gdcm", reason="needs the extra dicom")

from dmfnet_fast.errors import OutputError
from dmfnet_fast.volumes.alignment import align
from dmfnet_fast.volumes.phantom import write_series
from dmfnet_fast.volumes.reading import read_volume
from dmfnet_fast.volumes.volume import LPS_TO_RAS, Volume
from dmfnet_fast.volumes.writing import open_writer
from tests.volumes.damaging import edit
from tests.volumes.writing_helpers import PROVENANCE, colors, write, write_all

Copier = Callable[[str], Path]


def tool(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed")
    return path


def read(written: Path, *names: str) -> tuple[Volume, Volume]:
    one, other = (read_volume(written / name) for name in names)
    return one, other


def datasets(paths: list[Path]) -> list[Any]:
    return [pydicom.dcmread(path) for path in paths]


def errors_of(path: Path) -> list[str]:
    """What dciodvfy finds wrong; it exits with 0 all the same."""
    run = subprocess.run([tool("dciodvfy"), "-new", str(path)], capture_output=True, check=False)
    lines = (run.stdout + run.stderr).decode("utf-8", "replace").splitlines()
    assert "SCImage" in lines
    return [line for line in lines if line.startswith("Error")]


@pytest.mark.parametrize("names", [("MR", "PT"), ("CT", "MR"), ("PT", "MR"), ("NM", "MR"), ("EMR", "NM")])
def test_standard(names: tuple[str, str], written: Path, tmp_path: Path) -> None:
    for path in write_all("dicom", tmp_path, read(written, *names), label="T")[:2]:
        assert errors_of(path) == []


@pytest.mark.parametrize("names", [("MR", "PT"), ("EMR", "NM")])
def test_files_are_those_that_pydicom_writes(names: tuple[str, str], written: Path, tmp_path: Path) -> None:
    """Headers are put together from elements and sequences that were encoded once."""
    a, b = read(written, *names)
    assert b.link is not None
    for place, study in (("same", b.link.study), ("other", "1.2.3")):
        other = replace(b, link=replace(b.link, study=study))
        for path in write_all("dicom", tmp_path / place, (a, other))[:3]:
            data = pydicom.dcmread(path)
            assert len(list(data.iterall())) > 60, "all are decoded, to be encoded anew"
            data.save_as(tmp_path / "again.dcm", enforce_file_format=True)
            assert (tmp_path / "again.dcm").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("part", ["HEAD", ""])
def test_standard_with_damaged_sources(part: str, copied: Copier, tmp_path: Path) -> None:
    """What a source says of its patient against the standard is left out, unless it identifies."""

    def change(data: Any) -> None:
        with pydicom.config.disable_value_validation():
            data.PatientSex, data.PatientAge, data.StudyDate, data.PatientSize = "0000", "65", "2024-01-02", "1.7"
            data.BodyPartExamined, data.StudyID = part, "S1"
            del data.Laterality

    copied("PT")
    for path in copied("MR").iterdir():
        edit(path, change)
    (first, *_) = datasets(write_all("dicom", tmp_path / "out", read(tmp_path, "MR", "PT")))
    assert errors_of(tmp_path / "out" / "0001.dcm") == []
    assert (first.PatientSex, first.StudyDate, first.PatientSize, first.StudyID) == ("", "", 1.7, "S1")
    assert "PatientAge" not in first
    assert first.get("BodyPartExamined", "") == part


@pytest.mark.parametrize("names", [("MR", "PT"), ("NM", "MR")])
def test_read_again(names: tuple[str, str], written: Path, tmp_path: Path) -> None:
    sources = read(written, *names)
    values = colors(sources[0].shape)
    write_all("dicom", tmp_path, sources, values)
    volume = read_volume(tmp_path)
    np.testing.assert_array_equal(volume.values, values)
    np.testing.assert_allclose(volume.affine, sources[0].affine, atol=1e-6)
    assert volume.frame_of_reference == sources[0].frame_of_reference
    assert volume.modality == "OT"
    assert volume.source.notes == ()


def test_pixels_that_are_not_square(written: Path, tmp_path: Path) -> None:
    mr = read_volume(written / "MR")
    volume = replace(mr, values=mr.values[:, :30], affine=mr.affine @ np.diag([1, 2.5, 1, 1]))
    (first, *_) = datasets(write_all("dicom", tmp_path, (volume, volume)))
    assert list(first.PixelSpacing) == pytest.approx([12.5, 5])
    np.testing.assert_allclose(read_volume(tmp_path).affine, volume.affine, atol=1e-6)


@pytest.mark.parametrize(("name", "main"), [("MR", ["L", "P"]), ("CT", ["L", "P"]), ("NM", ["L", "F"])])
def test_patient_orientation(name: str, main: list[str], written: Path, tmp_path: Path) -> None:
    volume = read_volume(written / name)
    (first, *_) = datasets(write_all("dicom", tmp_path, (volume, volume)))
    assert [letters[0] for letters in first.PatientOrientation] == main
    # The MR is oblique: its rows also run upward by 8 degrees.
    assert list(first.PatientOrientation) == (["L", "PH"] if name == "MR" else main)


def test_read_by_simpleitk(written: Path, tmp_path: Path) -> None:
    sitk = pytest.importorskip("SimpleITK", reason="needs the extra register")
    sources = read(written, "MR", "PT")
    values = colors(sources[0].shape)
    write_all("dicom", tmp_path, sources, values)
    names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(tmp_path))
    image = sitk.ReadImage(names)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), values)
    for index in ((0, 0, 0), (9, 5, 3), (47, 0, 9)):
        place = sources[0].affine @ [*index[::-1], 1]
        np.testing.assert_allclose(image.TransformIndexToPhysicalPoint(index), place[:3], atol=1e-4)


def test_read_by_highdicom(written: Path, tmp_path: Path) -> None:
    highdicom = pytest.importorskip("highdicom", reason="highdicom is not installed")
    sources = read(written, "MR", "PT")
    values = colors(sources[0].shape)
    volume = highdicom.get_volume_from_series(datasets(write_all("dicom", tmp_path, sources, values)))
    # It may store slices in the other direction: compare where a voxel lies and what it shows.
    at = np.linalg.inv(volume.affine) @ sources[0].affine @ [2, 30, 11, 1]
    np.testing.assert_allclose(at, np.rint(at), atol=1e-4)
    np.testing.assert_array_equal(volume.array[tuple(np.rint(at[:3]).astype(int))], values[2, 30, 11])


def test_read_by_dcm2niix(written: Path, tmp_path: Path) -> None:
    nibabel = pytest.importorskip("nibabel", reason="needs the extra dicom")
    sources = read(written, "MR", "PT")
    values = colors(sources[0].shape)
    write_all("dicom", tmp_path / "out", sources, values)
    command = [tool("dcm2niix"), "-z", "n", "-b", "n", "-f", "x", "-o", str(tmp_path), str(tmp_path / "out")]
    subprocess.run(command, check=True, capture_output=True)
    image = nibabel.load(tmp_path / "x.nii")
    at = np.linalg.inv(LPS_TO_RAS @ image.affine) @ sources[0].affine @ [2, 30, 11, 1]
    np.testing.assert_allclose(at, np.rint(at), atol=1e-4)
    assert image.dataobj[tuple(np.rint(at[:3]).astype(int))].tolist() == tuple(values[2, 30, 11])


def test_read_by_dcmtk(written: Path, tmp_path: Path) -> None:
    paths = write_all("dicom", tmp_path, read(written, "MR", "PT"))
    run = subprocess.run([tool("dcmdump"), "+Ep", str(paths[0])], capture_output=True, check=True)
    assert b"SecondaryCaptureImageStorage" in run.stdout
    assert run.stderr == b""


def test_what_it_says(written: Path, tmp_path: Path) -> None:
    mr, pet = read(written, "MR", "PT")
    source = pydicom.dcmread(written / "MR" / "0001.dcm")
    files = datasets(write_all("dicom", tmp_path, (mr, pet)))
    for number, data in enumerate(files):
        for keyword in (
            "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "PatientWeight", "StudyInstanceUID",
            "StudyDate", "StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName", "FrameOfReferenceUID",
            "SpecificCharacterSet",
        ):  # fmt: skip
            assert data[keyword] == source[keyword], keyword
        assert data.SOPClassUID == "1.2.840.10008.5.1.4.1.1.7"
        assert data.ImageType == ["DERIVED", "SECONDARY"]
        assert data.InstanceNumber == number + 1
        # The slices' distance is known, how thick they are is not.
        assert data.SliceThickness is None
        assert float(data.SpacingBetweenSlices) == pytest.approx(mr.spacing[0])
        assert data.PhotometricInterpretation == "RGB"
        assert (data.BurnedInAnnotation, data.LossyImageCompression) == ("NO", "00")
        assert data.SeriesDescription == "Fused MR+PT, research only, not for diagnosis"
        assert data.DerivationDescription.startswith("Research only, not for diagnosis.")
        assert PROVENANCE.weights in data.DerivationDescription
        assert data.SoftwareVersions == [PROVENANCE.version, PROVENANCE.weights, PROVENANCE.engine]
    assert len({data.SeriesInstanceUID for data in files}) == 1
    assert files[0].SeriesInstanceUID not in {source.SeriesInstanceUID, pet.link.series if pet.link else ""}
    assert len({data.SOPInstanceUID for data in files}) == len(files)


def test_uids_of_runs(written: Path, tmp_path: Path) -> None:
    """They stay when a run goes on or is repeated; what else decides the result changes them."""
    sources = read(written, "MR", "PT")
    values = colors(sources[0].shape)
    write(open_writer("dicom", tmp_path / "out", sources[0], sources, PROVENANCE), values, [0, 4])
    before = pydicom.dcmread(tmp_path / "out" / "0001.dcm")
    writer = open_writer("dicom", tmp_path / "out", sources[0], sources, PROVENANCE)
    write(writer, values, sorted(set(range(len(values))) - writer.done()))
    files = datasets(writer.finish())
    assert {(data.SeriesInstanceUID, data.SeriesTime, data.ContentTime) for data in files} == {
        (before.SeriesInstanceUID, before.SeriesTime, before.ContentTime)
    }

    def uids(read_from: list[Any]) -> list[str]:
        return [data.SeriesInstanceUID for data in read_from[:1]] + [data.SOPInstanceUID for data in read_from]

    assert uids(datasets(write_all("dicom", tmp_path / "elsewhere", sources, values))) == uids(files)
    assert uids(datasets(write_all("dicom", tmp_path / "out", sources, values, overwrite=True))) == uids(files)
    (mr, pet), link = sources, sources[0].link
    assert link is not None
    other_images = tuple(replace(one, sop_instance=f"{one.sop_instance}.1") for one in link.instances)
    others = [
        write_all("dicom", tmp_path / "label", sources, values, label="X"),
        write_all("dicom", tmp_path / "values", (mr, replace(pet, values=pet.values + 1)), values),
        write_all("dicom", tmp_path / "modality", (mr, replace(pet, modality="NM")), values),
        write_all("dicom", tmp_path / "study", (replace(mr, link=replace(link, study="1.2.3")), pet), values),
        write_all("dicom", tmp_path / "images", (replace(mr, link=replace(link, instances=other_images)), pet), values),
    ]
    every = [uid for paths in others for uid in uids(datasets(paths))] + uids(files)
    assert len(set(every)) == len(every) == 6 * (len(values) + 1)
    assert all(len(uid) <= 64 and re.fullmatch(r"(0|[1-9][0-9]*)(\.(0|[1-9][0-9]*))*", uid) for uid in every)


def referenced(data: Any) -> dict[str, list[int] | None]:
    """UIDs of the source images, with their frames."""
    found = {}
    for item in data.get("SourceImageSequence", []):
        assert item.PurposeOfReferenceCodeSequence[0].CodeValue == "121322"
        frames = item.get("ReferencedFrameNumber")
        found[str(item.ReferencedSOPInstanceUID)] = None if frames is None else list(map(int, np.atleast_1d(frames)))
    return found


def by_series(data: Any) -> dict[str, set[str]]:
    series = data.get("ReferencedSeriesSequence", [])
    return {
        str(item.SeriesInstanceUID): {str(one.ReferencedSOPInstanceUID) for one in item.ReferencedInstanceSequence}
        for item in series
    }


def test_references(written: Path, tmp_path: Path) -> None:
    """A slice names the images that it shows: its own of the grid, and those of the other that lie around it."""
    mr, pet = read(written, "MR", "PT")
    assert mr.link is not None
    assert pet.link is not None
    for number, data in enumerate(datasets(write_all("dicom", tmp_path, (mr, pet)))):
        images = by_series(data)
        assert images[mr.link.series] == {mr.link.instances[number].sop_instance}
        # Where in the PET the corners of the slice lie.
        corners = np.array([[number, row, column, 1] for row in (0, 47) for column in (0, 47)])
        at = (np.linalg.inv(pet.affine) @ mr.affine @ corners.T)[0]
        expected = {
            instance.sop_instance
            for place, instance in enumerate(pet.link.instances)
            if at.min() - 1 < place < at.max() + 1
        }
        assert images.get(pet.link.series, set()) == expected
        assert set(referenced(data)) == set().union(*images.values())


def test_references_to_frames(written: Path, tmp_path: Path) -> None:
    tomogram, enhanced = read(written, "NM", "EMR")
    assert tomogram.link is not None
    data = datasets(write_all("dicom", tmp_path, (tomogram, enhanced)))[11]
    frames = referenced(data)
    assert frames[tomogram.link.instances[11].sop_instance] == [tomogram.link.instances[11].frame]
    assert enhanced.link is not None
    assert frames[enhanced.link.instances[0].sop_instance] == list(range(1, enhanced.shape[0] + 1))


def test_references_beyond_the_other_volume(head: Any, written: Path, tmp_path: Path) -> None:
    """A slice that the other volume does not reach names the grid's alone."""
    mr = read_volume(written / "MR")
    short = replace(head.ct, values=head.ct.values[:4])
    write_series(short, tmp_path / "short")
    last = datasets(write_all("dicom", tmp_path / "out", (mr, read_volume(tmp_path / "short"))))[-1]
    assert mr.link is not None
    assert set(referenced(last)) == {mr.link.instances[-1].sop_instance}


def test_another_study(copied: Copier, tmp_path: Path) -> None:
    def change(data: Any) -> None:
        data.StudyInstanceUID = "1.2.3.4"
        data.PatientID = "OTHER"

    folder = copied("PT")
    for path in folder.iterdir():
        edit(path, change)
    copied("MR")
    mr, pet = read(tmp_path, "MR", "PT")
    assert pet.link is not None
    data = datasets(write_all("dicom", tmp_path / "out", (mr, pet)))[3]
    assert list(by_series(data)) == [mr.link.series if mr.link else ""]
    (study,) = data.StudiesContainingOtherReferencedInstancesSequence
    assert study.StudyInstanceUID == "1.2.3.4"
    assert study.ReferencedSeriesSequence[0].SeriesInstanceUID == pet.link.series
    assert "different patients" in data.DerivationDescription
    assert (data.PatientID, data.StudyInstanceUID) == ("PHANTOM", mr.link.study if mr.link else "")
    assert errors_of(tmp_path / "out" / "0004.dcm") == []


def test_with_nifti(written: Path, tmp_path: Path) -> None:
    """The grid's volume must be DICOM, the other need not."""
    mr, pet = read_volume(written / "MR"), read_volume(written / "PT.nii", modality="PT")
    data = datasets(write_all("dicom", tmp_path / "out", (mr, pet)))[3]
    assert set(referenced(data)) == {mr.link.instances[3].sop_instance if mr.link else ""}
    assert errors_of(tmp_path / "out" / "0004.dcm") == []
    with pytest.raises(OutputError, match="is not DICOM, so it names no patient") as caught:
        open_writer("dicom", tmp_path / "refused", pet, (mr, pet), PROVENANCE)
    assert "PT.nii" in str(caught.value)
    assert not (tmp_path / "refused").exists()


@pytest.mark.parametrize(
    ("charset", "name"),
    [
        ("ISO_IR 100", "Müller^Jürgen"),
        ("ISO_IR 192", "Łukasz^Żak"),
        ("GB18030", "王^小东"),
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎=やまだ^たろう"),
        ("ISO_IR 144", "Люкceмбypг"),
    ],
)
def test_character_sets(charset: Any, name: str, copied: Copier, tmp_path: Path) -> None:
    def change(data: Any) -> None:
        data.SpecificCharacterSet, data.PatientName = charset, name

    folder = copied("MR")
    for path in folder.iterdir():
        edit(path, change)
    copied("PT")
    source = pydicom.dcmread(next(folder.iterdir()))
    paths = write_all("dicom", tmp_path / "out", read(tmp_path, "MR", "PT"))
    data = pydicom.dcmread(paths[0])
    assert str(data.PatientName) == name
    assert data.SpecificCharacterSet == source.SpecificCharacterSet
    assert errors_of(paths[0]) == []


@pytest.mark.parametrize("text", [None, "NOT FOR DIAGNOSIS"])
def test_label(text: str | None, written: Path, tmp_path: Path) -> None:
    large = replace(read_volume(written / "MR"), values=np.zeros((10, 128, 160), np.float32))
    values = np.full((10, 128, 160, 3), 90, np.uint8)
    files = datasets(write_all("dicom", tmp_path, (large, large), values, label=text))
    for data in files:
        assert data.BurnedInAnnotation == ("NO" if text is None else "YES")
        changed = (data.pixel_array != 90).any(axis=2)
        assert changed.any() == (text is not None)
        # In the lower left corner.
        assert not changed[:100].any()
        assert not changed[:, :3].any()


@pytest.mark.parametrize("name", ["MR", "PT"])
def test_what_a_source_says_of_its_pixels(name: str, copied: Copier, tmp_path: Path) -> None:
    """One image of one source that lost something, or shows text, is enough."""

    def change(data: Any) -> None:
        data.LossyImageCompression, data.BurnedInAnnotation = "01", "YES"

    copied("MR")
    copied("PT")
    edit(tmp_path / name / "0003.dcm", change)
    data = datasets(write_all("dicom", tmp_path / "out", read(tmp_path, "MR", "PT")))[0]
    assert (data.LossyImageCompression, data.BurnedInAnnotation) == ("01", "YES")
    assert errors_of(tmp_path / "out" / "0001.dcm") == []


def test_registered(written: Path, tmp_path: Path) -> None:
    """Registration moves a source: references follow where it is shown."""
    mr, pet = read(written, "MR", "PT")
    assert pet.link is not None
    up = np.eye(4)
    up[2, 3] = 3 * pet.spacing[0]
    moved = replace(pet, affine=up @ pet.affine)
    there = datasets(write_all("dicom", tmp_path / "moved", (mr, moved)))[5]
    here = datasets(write_all("dicom", tmp_path / "plain", (mr, pet)))[5]
    order = [instance.sop_instance for instance in pet.link.instances]
    places = [sorted(map(order.index, by_series(data)[pet.link.series])) for data in (there, here)]
    assert [place + 3 for place in places[0]] == places[1]


def test_alignment_keeps_what_a_writer_needs(written: Path, tmp_path: Path) -> None:
    mr, pet = read(written, "MR", "PT")
    aligned = align(mr, pet)
    assert aligned.a.link is mr.link
    write_all("dicom", tmp_path, (aligned.a, pet))


def test_sources_of_one_series(written: Path, tmp_path: Path) -> None:
    """Two volumes of one object, as magnitude and phase: it is named once."""
    enhanced = read_volume(written / "EMR")
    other = replace(enhanced, values=enhanced.values + 1)
    data = datasets(write_all("dicom", tmp_path, (enhanced, other)))[2]
    (series,) = data.ReferencedSeriesSequence
    assert len(series.ReferencedInstanceSequence) == 1
    assert errors_of(tmp_path / "0003.dcm") == []
