"""Every refusal: one message that names the file, what is wrong and what to do."""

from __future__ import annotations

import gzip
import shutil
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom", reason="needs the extra dicom")
nibabel = pytest.importorskip("nibabel", reason="needs the extra dicom")

from dmfnet_fast.errors import VolumeError
from dmfnet_fast.volumes.reading import list_volumes, read_volume
from tests.volumes.damaging import edit, move, place

Copier = Callable[[str], Path]


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.dcm"))


def refused(path: Path, pattern: str, *names: Path) -> None:
    with pytest.raises(VolumeError, match=pattern) as error:
        read_volume(path)
    message = str(error.value)
    assert "\n" not in message
    assert "hantom" not in message, "no patient's name"
    assert all(str(name) in message for name in names)


def change_all(folder: Path, change: Callable[[Any], object]) -> None:
    for path in files(folder):
        edit(path, change)


def test_missing_slices(copied: Copier) -> None:
    folder = copied("MR")
    paths = files(folder)
    paths[4].unlink()
    paths[5].unlink()
    refused(folder, r"between .*: 2 slice\(s\) are missing; copy or export", paths[3], paths[6])


def test_missing_last_slice_of_a_pet(copied: Copier) -> None:
    folder = copied("PT")
    files(folder)[-1].unlink()
    refused(folder, "should have 16 slices and 15 are here")


def test_unequal_spacing(copied: Copier) -> None:
    folder = copied("CT")
    path = files(folder)[5]
    edit(path, lambda data: move(data, 0, 0, 3))
    refused(folder, "mm apart and .* mm elsewhere; unequal spacing is not read", path)


def test_drifting_spacing(copied: Copier) -> None:
    """Each gap is within the tolerance and the whole is not."""
    folder = copied("CT")
    step = read_volume(folder).spacing[0]
    for number, path in enumerate(files(folder)):
        z = step * number + 0.02 * number**2
        edit(path, partial(place, position=[0, 0, f"{z:.5f}"]))
    refused(folder, "mm from where even spacing would have it|unequal spacing")


def test_slice_moved_sideways(copied: Copier) -> None:
    folder = copied("CT")
    path = files(folder)[5]
    edit(path, lambda data: move(data, 30, 0, 0))
    refused(folder, "moved sideways", path)


def test_sheared_beyond_reason(copied: Copier) -> None:
    folder = copied("CT")
    for number, path in enumerate(files(folder)):
        edit(path, partial(place, position=[0, 40 * number, 18 * number]))
    refused(folder, "no gantry tilt but damage")


def test_another_image_at_the_same_place(copied: Copier) -> None:
    folder = copied("MR")
    shutil.copy(files(folder)[3], folder / "other.dcm")

    def repaint(data: Any) -> None:
        data.PixelData = bytes(len(data.PixelData))

    edit(folder / "other.dcm", repaint)
    refused(folder, "has the SOP Instance UID of .* and another image", folder / "other.dcm")
    edit(folder / "other.dcm", lambda data: setattr(data, "SOPInstanceUID", "1.2.3"))
    refused(folder, "with another image, and nothing tells their volumes apart", folder / "other.dcm")


@pytest.mark.parametrize(
    ("keyword", "words"),
    [
        ("ImagePositionPatient", r"no Image Position \(Patient\)"),
        ("ImageOrientationPatient", r"no Image Orientation \(Patient\)"),
        ("PixelSpacing", "no Pixel Spacing"),
        ("Rows", "Rows is missing"),
        ("PixelData", "no pixel data"),
        ("SeriesInstanceUID", "SeriesInstanceUID is no identifier"),
        ("SOPClassUID", "SOPClassUID is no identifier"),
    ],
)
def test_absent_elements(keyword: str, words: str, copied: Copier) -> None:
    folder = copied("MR")
    path = files(folder)[2]
    edit(path, lambda data: data.__delattr__(keyword))
    refused(folder, words, path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data: setattr(data, "ImageOrientationPatient", [1, 0, 0, 1, 0, 0]), "no pair of directions"),
        (lambda data: setattr(data, "ImageOrientationPatient", [0] * 6), "no pair of directions"),
        (lambda data: setattr(data, "PixelSpacing", ["0.0005", "0.0005"]), "check its Pixel Spacing"),
        (lambda data: setattr(data, "PixelSpacing", ["500", "500"]), "check its Pixel Spacing"),
        (lambda data: setattr(data, "ImagePositionPatient", [0, 0, 99999]), "more than 10 m"),
        (lambda data: setattr(data, "RescaleSlope", "0"), "Rescale Slope 0"),
        (lambda data: setattr(data, "RescaleSlope", "1e300"), "overflow"),
        (lambda data: setattr(data, "Rows", 60000), "need .* bytes of pixels"),
        (lambda data: setattr(data, "Rows", 47), "holds more pixels"),
        (lambda data: setattr(data, "Columns", 0), "impossible size"),
        (lambda data: setattr(data, "NumberOfFrames", "2000000000"), "damage or too large"),
        (lambda data: setattr(data, "NumberOfFrames", "2"), "bytes of pixels"),
        (lambda data: setattr(data, "SamplesPerPixel", 2), "2 samples a pixel"),
        (lambda data: setattr(data, "SamplesPerPixel", 3), "contradict each other"),
        (lambda data: setattr(data, "BitsAllocated", 12), "bits a sample"),
        (lambda data: setattr(data, "HighBit", 11), "high bit"),
        (lambda data: setattr(data, "PhotometricInterpretation", "CMYK"), "photometric interpretation"),
        (lambda data: setattr(data, "ModalityLUTSequence", [pydicom.Dataset()]), "lookup table"),
        (lambda data: setattr(data, "ImageType", ["ORIGINAL", "PRIMARY", "MOSAIC"]), "mosaic"),
        (lambda data: setattr(data, "Modality", "{not code}"), "Modality is damaged"),
    ],
)  # fmt: skip
def test_wrong_elements(change: Callable[[Any], object], words: str, copied: Copier) -> None:
    folder = copied("MR")
    change_all(folder, change)
    refused(folder, words, folder)


def test_one_slice_differs(copied: Copier) -> None:
    folder = copied("MR")
    path = files(folder)[-1]
    edit(path, lambda data: setattr(data, "PixelSpacing", ["5.5", "5.5"]))
    refused(folder, "differs from the others of its series", path)


def test_lost_slice_is_no_localizer(copied: Copier) -> None:
    """A slice at the end whose series is damaged must not vanish silently."""
    folder = copied("MR")
    edit(files(folder)[-1], lambda data: setattr(data, "SeriesInstanceUID", "1.2.3"))
    with pytest.raises(VolumeError, match="holds 2 volumes; choose one"):
        read_volume(folder)


def test_modality(copied: Copier) -> None:
    folder = copied("MR")
    with pytest.raises(VolumeError, match="is MR, not CT"):
        read_volume(folder, modality="CT")
    change_all(folder, lambda data: data.__delattr__("Modality"))
    refused(folder, "does not say what it is")
    assert read_volume(folder, modality="MRI").modality == "MR"


def test_enhanced(copied: Copier) -> None:
    path = copied("EMR") / "enhanced.dcm"
    edit(path, lambda data: data.PerFrameFunctionalGroupsSequence.pop())
    refused(path, "describes 9 frames and claims to hold 10", path)
    edit(path, lambda data: data.__delattr__("PerFrameFunctionalGroupsSequence"))
    refused(path, "10 frames have no position", path)


def test_nuclear(copied: Copier) -> None:
    path = copied("NM") / "tomogram.dcm"
    shutil.copy(path, path.parent.parent / "kept.dcm")
    edit(path, lambda data: setattr(data, "FrameIncrementPointer", [0x00540060, 0x00540080]))
    refused(path, "not one volume of slices", path)
    shutil.copy(path.parent.parent / "kept.dcm", path)
    edit(path, lambda data: (data.__delattr__("SpacingBetweenSlices"), data.__delattr__("SliceThickness")))
    refused(path, "no Spacing Between Slices", path)
    shutil.copy(path.parent.parent / "kept.dcm", path)
    edit(path, lambda data: setattr(data, "ImageType", ["ORIGINAL", "PRIMARY", "TOMO", "EMISSION"]))
    refused(path, "projections, not a reconstructed volume", path)
    shutil.copy(path.parent.parent / "kept.dcm", path)
    edit(path, lambda data: data.compress(pydicom.uid.RLELossless))
    edit(path, lambda data: setattr(data, "NumberOfFrames", "60000"))
    refused(path, r"bytes cannot hold its 60000 frame\(s\)", path)
    edit(path, lambda data: setattr(data, "NumberOfFrames", "70000"))
    refused(path, "at most 65536 frames", path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"PK\x03\x04" + b"x" * 500, "is a ZIP archive"),
        (b"0\x80" + bytes.fromhex("06092a864886f70d010703") + b"x" * 500, "is encrypted"),
        (b"\x89PNG\r\n\x1a\n" + b"x" * 500, "is not DICOM"),
        (bytes(128) + b"DICM", "is not DICOM, or damaged"),
    ],
)
def test_other_kinds_of_file(content: bytes, words: str, copied: Copier) -> None:
    folder = copied("MR")
    path = files(folder)[3]
    path.write_bytes(content)
    refused(folder, words, path)
    refused(path, words, path)


def test_truncated(copied: Copier) -> None:
    folder = copied("MR")
    path = files(folder)[3]
    path.write_bytes(path.read_bytes()[:-100])
    refused(folder, "is truncated or damaged", path)
    assert "cannot be read" in str(list_volumes(folder).volumes[0])


def test_compressed_and_broken(copied: Copier) -> None:
    folder = copied("MR")
    path = files(folder)[3]
    data = pydicom.dcmread(path)
    data.compress(pydicom.uid.RLELossless)
    data.PixelData = pydicom.encaps.encapsulate([b"\x01\0\0\0" * 20])
    data["PixelData"].is_undefined_length = True
    data.save_as(path)
    refused(folder, "cannot be decompressed", path)
    huge = struct.pack(">IIII", 60000, 60000, 0, 0)
    for uid, frame, words in (
        (pydicom.uid.JPEG2000Lossless, b"\xff\x4f\xff\x51\0\x29\0\0" + huge, "60000x60000"),
        (pydicom.uid.JPEGLSLossless, b"\xff\xd8\xff\xf7\0\x0b\x10\xea\x60\xea\x60\x01\x01\x11\0", "60000x60000"),
        (pydicom.uid.JPEGLSLossless, b"\xff\xd8" + b"x" * 60, "cannot be decompressed"),
        (pydicom.uid.UID("1.2.840.10008.1.2.4.100"), b"xx", "is not read; decompress it first"),
    ):  # fmt: skip
        data.file_meta.TransferSyntaxUID = uid
        data.PixelData = pydicom.encaps.encapsulate([frame])
        data.save_as(path)
        refused(folder, words, path)


def test_nothing_there(tmp_path: Path, written: Path) -> None:
    refused(tmp_path / "none", "no such file or folder")
    refused(tmp_path, "holds no DICOM files")
    (tmp_path / "notes.txt").write_text("no DICOM")
    refused(tmp_path, "holds no volume: .*notes.txt is not DICOM")
    shutil.copy(written / "MR.nii.gz", tmp_path)
    refused(tmp_path, "folder with NIfTI files; give one of them")
    refused(Path("a\0b"), "no such file or folder")


def _nifti(path: Path, values: Any, **header: Any) -> Path:
    image = nibabel.Nifti1Image(values, np.eye(4))
    image.set_sform(header.pop("sform", np.eye(4)), header.pop("code", 1))
    image.set_qform(np.eye(4), 0)
    for keyword, value in header.items():
        image.header[keyword] = value
    nibabel.save(image, path)
    return path


def test_nifti_geometry_and_types(tmp_path: Path) -> None:
    cube = np.ones((4, 5, 6), np.float32)
    path = tmp_path / "a.nii"
    refused(_nifti(path, cube, code=0), "neither qform nor sform", path)
    sheared = np.eye(4)
    sheared[0, 1] = 0.5
    refused(_nifti(path, cube, sform=sheared), "not perpendicular", path)
    refused(_nifti(path, cube, sform=np.diag([1, 1, 0.001, 1.0])), "check its units", path)
    refused(_nifti(path, np.ones((4, 5, 6, 3), np.float32)), r"holds 3 volumes \(4-D\); write the one to fuse", path)
    refused(_nifti(path, cube.astype(np.complex64)), "are not read; convert them to float32", path)
    cube[1, 2, 3] = np.inf
    refused(_nifti(path, cube), "infinite values in slice 3", path)
    cube[1, 2, 3] = np.nan
    volume = read_volume(_nifti(path, cube))
    assert volume.values[3, 2, 1] == 0
    assert "1 voxels that are no numbers" in volume.source.notes[0]


def test_nifti_damage(tmp_path: Path, written: Path) -> None:
    path = tmp_path / "a.nii.gz"
    content = (written / "MR.nii.gz").read_bytes()
    plain = gzip.decompress(content)

    def resized(*size: int) -> bytes:
        return gzip.compress(plain[:40] + struct.pack("<8h", 3, *size, 1, 1, 1, 1) + plain[56:])

    for damaged, words in (
        (content[: len(content) // 2], "cannot be decompressed"),
        (b"", "not NIfTI|cannot be decompressed"),
        (plain, "cannot be decompressed"),
        (gzip.compress(plain[:-5000]), r"ends after \d+ of 10 slices"),
        (gzip.compress(b"x" * 400), "is not NIfTI"),
        (resized(32000, 32000, 32000), "too large"),
        (resized(10000, 10000, 1), "too large"),
        (resized(1000, 1000, 1000), "header claims"),
        (resized(-4, 5, 6), "damage"),
    ):
        path.write_bytes(damaged)
        refused(path, words, path)


def test_nifti_units_and_color(tmp_path: Path) -> None:
    """Meters are converted; RGB24 is color."""
    path = tmp_path / "a.nii"
    meters = np.diag([0.002, 0.002, 0.003, 1])
    volume = read_volume(_nifti(path, np.ones((4, 5, 6), np.float32), sform=meters, xyzt_units=1))
    np.testing.assert_allclose(volume.spacing, (3, 2, 2), rtol=1e-5)
    colors = np.zeros((4, 5, 6), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    colors["G"][1, 2, 3] = 7
    volume = read_volume(_nifti(path, colors))
    assert volume.color
    assert volume.values[3, 2, 1].tolist() == [0, 7, 0]
