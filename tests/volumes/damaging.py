"""Ways to damage a DICOM file, drawn from a seeded generator: what a hospital's IT sees."""

from __future__ import annotations

import math
import random
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pydicom
from pydicom.dataelem import RawDataElement

Damage = Callable[[Path, random.Random], None]

GEOMETRY = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")
PIXELS = ("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "SamplesPerPixel", "PixelRepresentation")
ESSENTIAL = (
    *GEOMETRY, *PIXELS, "PhotometricInterpretation", "SOPClassUID", "SeriesInstanceUID", "StudyInstanceUID",
    "Modality", "PatientID", "PixelData",
)  # fmt: skip


def edit(path: Path, change: Callable[[Any], object]) -> None:
    """Change a file's elements, without the checks that writing has."""
    data = pydicom.dcmread(path)
    change(data)
    data.save_as(path, enforce_file_format=False)


def place(data: Any, position: Sequence[float | str]) -> None:
    """Put a slice at `position`, for `edit`."""
    data.ImagePositionPatient = list(position)


def move(data: Any, *offset: float) -> None:
    """Move a slice by `offset`, in mm, for `edit`."""
    data.ImagePositionPatient = [p + o for p, o in zip(map(float, data.ImagePositionPatient), offset, strict=True)]


def _raw(data: Any, keyword: str, value: bytes, vr: str | None = None) -> None:
    element = data[keyword]
    data._dict[element.tag] = RawDataElement(element.tag, vr or element.VR, len(value), value, 0, False, True)


def truncate(path: Path, draw: random.Random) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: draw.randrange(len(content) - 40)])


def remove(path: Path, draw: random.Random) -> None:
    edit(path, lambda data: data.__delattr__(draw.choice([name for name in ESSENTIAL if name in data])))


def empty(path: Path, draw: random.Random) -> None:
    edit(path, lambda data: _raw(data, draw.choice([name for name in ESSENTIAL if name in data]), b""))


def wrong_size(path: Path, draw: random.Random) -> None:
    number = draw.choice([0, 1, 3, 65535, 40000, 47, 49])
    edit(path, lambda data: setattr(data, draw.choice(["Rows", "Columns"]), number))


def many_frames(path: Path, draw: random.Random) -> None:
    frames = draw.choice(["0", "-5", "99999999", "2147483647", "2"])
    edit(path, lambda data: setattr(data, "NumberOfFrames", frames))


def wrong_bits(path: Path, draw: random.Random) -> None:
    number = draw.choice([0, 1, 7, 8, 12, 32, 64, 65535])
    edit(path, lambda data: setattr(data, draw.choice(["BitsAllocated", "BitsStored", "HighBit"]), number))


def swapped_tags(path: Path, draw: random.Random) -> None:
    """Two elements change their values."""

    def swap(data: Any) -> None:
        names = [name for name in (*GEOMETRY, "SeriesInstanceUID", "Modality", "ImageType") if name in data]
        one, other = draw.sample(names, 2)
        first, second = "\\".join(map(str, data[one])) if data[one].VM > 1 else str(data[one].value), data[other].value
        second = "\\".join(map(str, second)) if data[other].VM > 1 else str(second)
        _raw(data, one, second.encode())
        _raw(data, other, first.encode())

    edit(path, swap)


def wrong_vr(path: Path, draw: random.Random) -> None:
    """An element's two letters of VR are replaced where they stand in the file."""
    content = bytearray(path.read_bytes())
    data = pydicom.dcmread(path, stop_before_pixels=True)
    element = data[draw.choice([name for name in (*GEOMETRY, *PIXELS) if name in data])]
    tag = element.tag.group.to_bytes(2, "little") + element.tag.element.to_bytes(2, "little")
    at = content.index(tag + element.VR.encode()) + 4
    content[at : at + 2] = draw.choice([b"OB", b"SQ", b"UN", b"FD", b"LO", b"ZZ", b"\0\0", b"PN", b"DS", b"AT"])
    path.write_bytes(bytes(content))


def wrong_text(path: Path, draw: random.Random) -> None:
    value = draw.choice(
        [b"nan\\nan\\nan", b"1e400\\0\\0", b"a\\b\\c ", b"\xff\xfe\xfd\xfc", b"0\\0\\0\\0\\0\\0 ", b"1e9\\1e9\\1e9 "]
    )
    edit(path, lambda data: _raw(data, draw.choice([name for name in GEOMETRY if name in data] or ["Rows"]), value))


def wrong_units(path: Path, draw: random.Random) -> None:
    """Millimeters taken for meters, or the reverse."""
    factor = draw.choice([0.001, 1000.0])

    def scale(data: Any) -> None:
        for keyword in ("ImagePositionPatient", "PixelSpacing"):
            if keyword in data:
                data[keyword].value = [f"{float(part) * factor:.9g}" for part in data[keyword].value]

    edit(path, scale)


def huge_element(path: Path, draw: random.Random) -> None:
    """An element's length, or the pixels', claims gigabytes."""
    content = bytearray(path.read_bytes())
    at = content.index(b"\xe0\x7f\x10\x00O") + 8
    content[at : at + 4] = draw.choice([b"\xf0\xff\xff\xff", b"\xff\xff\xff\x7f", b"\xff\xff\xff\xff", b"\x10\0\0\0"])
    path.write_bytes(bytes(content))


def flipped_bytes(path: Path, draw: random.Random) -> None:
    """A few bytes of the header at random."""
    content = bytearray(path.read_bytes())
    end = content.index(b"\xe0\x7f\x10\x00O")
    for _ in range(draw.choice([1, 3, 20])):
        content[draw.randrange(128, end)] = draw.randrange(256)
    path.write_bytes(bytes(content))


def lost_block(path: Path, draw: random.Random) -> None:
    """A run of bytes of the header is missing or zero."""
    content = path.read_bytes()
    start, length = draw.randrange(content.index(b"\xe0\x7f\x10\x00O")), draw.choice([2, 64, 512])
    filling = b"" if draw.random() < 0.5 else b"\0" * len(content[start : start + length])
    path.write_bytes(content[:start] + filling + content[start + length :])


def wrong_syntax(path: Path, draw: random.Random) -> None:
    uid = draw.choice(["1.2.840.10008.1.2", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.4.90",
                       "1.2.840.10008.1.2.5", "1.2.840.10008.1.2.4.70", "1.2.3"])  # fmt: skip
    content = path.read_bytes()
    at = content.index(b"\x02\x00\x10\x00UI")
    length = int.from_bytes(content[at + 6 : at + 8], "little")
    new = uid.encode().ljust(length, b"\0")[:length]
    path.write_bytes(content[: at + 8] + new + content[at + 8 + length :])


def other_kind(path: Path, draw: random.Random) -> None:
    path.write_bytes(
        draw.choice(
            [b"", b"PK\x03\x04" + b"x" * 500, b"\x89PNG\r\n\x1a\n" + b"x" * 300, b"DICM", b"\0" * 132 + b"DICM"]
        )
    )


def wrong_scale(path: Path, draw: random.Random) -> None:
    value = draw.choice([b"nan ", b"1e400 ", b"0 ", b"abc ", b"1e38", b"-inf", b"1\\2 "])

    def change(data: Any) -> None:
        name = draw.choice(["RescaleSlope", "RescaleIntercept"])
        setattr(data, name, "1")
        _raw(data, name, value)

    edit(path, change)


def wrong_patient(path: Path, draw: random.Random) -> None:
    """What the whole series says of patient and study is against the standard, as anonymizers leave it."""
    name = draw.choice(
        ["PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID",
         "StudyDescription", "AccessionNumber", "ReferringPhysicianName", "PatientAge", "FrameOfReferenceUID",
         "SpecificCharacterSet", "BodyPartExamined", "Laterality"]
    )  # fmt: skip
    value = draw.choice(
        [b"x" * 9000, b"a\\b\\c\\ ", b"\x1b$B\xff\xfe\x01", b"\r\n\0\0", b"12/31/2020", b"-1", b"^^^=^^="]
    )

    def change(data: Any) -> None:
        if name not in data:
            setattr(data, name, None)
        _raw(data, name, value)

    for file in sorted(path.parent.iterdir()):
        edit(file, change)


def other_patient(path: Path, draw: random.Random) -> None:
    edit(path, lambda data: setattr(data, draw.choice(["PatientID", "PatientName"]), "Other"))


def other_series(path: Path, draw: random.Random) -> None:
    edit(path, lambda data: setattr(data, draw.choice(["SeriesInstanceUID", "StudyInstanceUID"]), "1.2.3"))


def lost_file(path: Path, draw: random.Random) -> None:
    """A file is missing, and not the first or last, without which a series is a shorter one."""
    files = sorted(path.parent.iterdir())
    draw.choice(files[1:-1] or files).unlink()


def moved_slice(path: Path, draw: random.Random) -> None:
    """A slice lies where another one should, or nearly."""
    offset = draw.choice([0.5, 3.0, 15.0, -20.0, 400.0])

    def change(data: Any) -> None:
        if "ImagePositionPatient" in data:
            move(data, 0, 0, offset)

    edit(path, change)


def nested(path: Path, draw: random.Random) -> None:
    """Sequences in sequences, more than any reader follows."""
    content = path.read_bytes()
    at = content.index(b"\xe0\x7f\x10\x00O")
    start = b"\x29\x00\x01\x10SQ\0\0\xff\xff\xff\xff" + b"\xfe\xff\x00\xe0\xff\xff\xff\xff"
    path.write_bytes(content[:at] + start * draw.choice([50, 5000]) + content[at:])


DAMAGES: tuple[Damage, ...] = (
    truncate, remove, empty, wrong_size, many_frames, wrong_bits, swapped_tags, wrong_vr, wrong_text, wrong_units,
    huge_element, flipped_bytes, lost_block, wrong_syntax, other_kind, wrong_scale, wrong_patient, other_patient,
    other_series, lost_file, moved_slice, nested,
)  # fmt: skip


def nifti_truncated(content: bytearray, draw: random.Random) -> None:
    del content[draw.randrange(len(content) - 1) :]


def nifti_size(content: bytearray, draw: random.Random) -> None:
    """One of the numbers of voxels, or of dimensions."""
    struct.pack_into("<h", content, 40 + 2 * draw.randrange(5), draw.choice([-1, 0, 1, 3, 49, 32767]))


def nifti_type(content: bytearray, draw: random.Random) -> None:
    struct.pack_into("<hh", content, 70, draw.choice([0, 1, 32, 64, 128, 1536, 2304, -7]), draw.choice([8, 16, 64]))


def nifti_place(content: bytearray, draw: random.Random) -> None:
    """A number of the matrices, or that they hold, or their unit."""
    choice = draw.randrange(3)
    if choice == 0:
        struct.pack_into("<f", content, 280 + 4 * draw.randrange(12), draw.choice([math.nan, math.inf, 1e30, 77.0]))
    elif choice == 1:
        struct.pack_into("<hh", content, 252, 0, 0)
    else:
        content[123] = draw.choice([1, 3, 0xFF])


def nifti_offset(content: bytearray, draw: random.Random) -> None:
    struct.pack_into("<f", content, 108, draw.choice([-1.0, 0.0, 1e9, 1e30, math.nan, 90000.0]))


def nifti_values(content: bytearray, draw: random.Random) -> None:
    """Values that are no numbers, or a scale that leaves none."""
    if draw.random() < 0.5:
        struct.pack_into("<f", content, 352 + 4 * draw.randrange(1000), math.inf)
    else:
        struct.pack_into("<ff", content, 112, draw.choice([1e38, math.inf]), draw.choice([0.0, 1e38]))


def nifti_bytes(content: bytearray, draw: random.Random) -> None:
    for _ in range(draw.choice([1, 5])):
        content[draw.randrange(348)] = draw.randrange(256)


def nifti_kind(content: bytearray, draw: random.Random) -> None:
    content[:] = draw.choice([b"", b"x" * 400, b"\x1f\x8b" + b"x" * 500, b"PK\x03\x04" + b"x" * 500])


# Of a NIfTI file's content before it is compressed.
NIFTI_DAMAGES: tuple[Callable[[bytearray, random.Random], None], ...] = (
    nifti_truncated, nifti_size, nifti_type, nifti_place, nifti_offset, nifti_values, nifti_bytes, nifti_kind,
)  # fmt: skip


def flipped_bit(path: Path, draw: random.Random) -> None:
    """One bit of a compressed file."""
    content = bytearray(path.read_bytes())
    content[draw.randrange(30, len(content) - 9)] ^= 1 << draw.randrange(8)
    path.write_bytes(bytes(content))
