"""One DICOM file: its header, and where its pixels lie. Sizes it claims are checked before anything is allocated."""

from __future__ import annotations

import io
import logging
import mmap
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal, cast

from dmfnet_fast.errors import VolumeError, require
from dmfnet_fast.volumes.elements import Elements, damage, tags
from dmfnet_fast.volumes.volume import LARGEST_FRAME, LARGEST_VOXELS, MOST_FRAMES

_DEFLATED, _EXPLICIT = b"1.2.840.10008.1.2.1.99", b"1.2.840.10008.1.2.1"
# Preamble, "DICM" and the length of the file meta information, which begins there and is shorter than this.
_META_START, _META_SEARCHED = 144, 2**14
_UNDEFINED = 0xFFFFFFFF
# What a deflated file may inflate to; deflate itself stops at about 1032:1.
_LARGEST_INFLATED = 2**30
_CMS_ENCRYPTED = bytes.fromhex("06092a864886f70d0107")  # CMS, as in DICOM's secure media
_ARCHIVES = {b"PK\x03\x04": "a ZIP", b"Rar!": "a RAR", b"7z\xbc\xaf": "a 7-Zip", b"\x1f\x8b": "a gzip"}
PLAIN_SYNTAXES = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2")
# JPEG baseline and extended, JPEG-LS near-lossless, JPEG 2000 and HTJ2K where they may lose.
LOSSY_SYNTAXES = tuple(f"1.2.840.10008.1.2.4.{number}" for number in (50, 51, 81, 91, 93, 203))
_SUFFIXES = (".dcm", ".ima", ".dicom")

PATIENT = ("PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex")
STUDY = (
    "StudyInstanceUID", "StudyDate", "StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName",
    "StudyDescription", "PatientAge", "PatientSize", "PatientWeight",
)  # fmt: skip
# What else a result shares with its source.
SHARED = ("PatientIdentityRemoved", "DeidentificationMethod", "BodyPartExamined", "Laterality")
_KEYWORDS = (
    *PATIENT, *STUDY, *SHARED, "SpecificCharacterSet",
    "SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "Modality", "SeriesDescription",
    "SeriesNumber", "InstanceNumber", "ImageType", "PatientPosition", "DirectoryRecordSequence",
    "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness", "SpacingBetweenSlices",
    "NumberOfSlices", "NumberOfTimeSlices", "SliceVector", "FrameIncrementPointer", "DetectorInformationSequence",
    "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated",
    "BitsStored", "HighBit", "PixelRepresentation", "PlanarConfiguration",
    "RedPaletteColorLookupTableDescriptor", "RedPaletteColorLookupTableData",
    "GreenPaletteColorLookupTableDescriptor", "GreenPaletteColorLookupTableData",
    "BluePaletteColorLookupTableDescriptor", "BluePaletteColorLookupTableData",
    "SegmentedRedPaletteColorLookupTableData", "SegmentedGreenPaletteColorLookupTableData",
    "SegmentedBluePaletteColorLookupTableData",
    "ExtendedOffsetTable", "ExtendedOffsetTableLengths",
    "RescaleSlope", "RescaleIntercept", "RescaleType", "ModalityLUTSequence",
    "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence", "DimensionIndexSequence",
    "EchoTime", "EchoNumbers", "TemporalPositionIdentifier", "TriggerTime", "NominalPercentageOfCardiacPhase",
    "DiffusionBValue", "DiffusionGradientOrientation", "AcquisitionNumber", "FrameReferenceTime",
    "AcquisitionDate", "AcquisitionTime", "AcquisitionDateTime", "ContentTime", "SeriesDate", "SeriesTime",
    "BurnedInAnnotation", "LossyImageCompression",
    "Units", "SUVType", "DecayCorrection", "CorrectedImage", "RadiopharmaceuticalInformationSequence",
)  # fmt: skip
# Files of old exports begin with the data set itself: a group 2 or 8 in little-endian order.
_BARE = (b"\x08\x00", b"\x02\x00")


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the libraries' warnings from the user, to whom they mean nothing: what matters is checked here."""
    logger = logging.getLogger("pydicom")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


@dataclass(frozen=True, repr=False)
class PixelFormat:
    """How a file stores its pixels, and where: `offset` and `length`, which is None for compressed pixels."""

    rows: int
    columns: int
    frames: int
    samples: int
    photometric: str
    bits_allocated: int
    bits_stored: int
    signed: bool
    planar: int
    syntax: str
    offset: int
    length: int | None
    vr: str

    @property
    def color(self) -> bool:
        return self.samples == 3 or self.photometric == "PALETTE COLOR"


@dataclass(frozen=True, repr=False)
class DicomFile:
    """A DICOM file without its pixels. `pixels` is None where it holds none, or none that can be read: `problem`."""

    path: Path
    header: Elements
    pixels: PixelFormat | None
    problem: VolumeError | None = None


def looks_like_dicom(path: Path) -> bool:
    """Whether a file must be DICOM by its name or its first bytes, so that failing to read it is worth an error."""
    start = _start(path)
    return start[128:132] == b"DICM" or path.suffix.lower() in _SUFFIXES or _CMS_ENCRYPTED in start[:64]


def may_be_dicom(path: Path) -> bool:
    """Whether a file can be DICOM by its name or its first bytes."""
    return looks_like_dicom(path) or _start(path)[:2] in _BARE


def _start(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(132)
    except OSError as error:
        raise VolumeError(f"{path}: cannot be read: {error.strerror or error}") from error


def _check_kind(path: Path) -> None:
    start = _start(path)
    if not start:
        raise VolumeError(f"{path}: is empty (0 bytes); copy or export it again")
    if start[128:132] == b"DICM":
        return
    if _CMS_ENCRYPTED in start[:64]:
        raise VolumeError(f"{path}: is encrypted; decrypt it with the software that wrote it")
    for magic, name in _ARCHIVES.items():
        if start.startswith(magic):
            raise VolumeError(f"{path}: is {name} archive, not DICOM; unpack it first")
    if start[:2] not in _BARE:
        raise VolumeError(f"{path}: is not DICOM; take it out, or copy it again")


def _inflated(path: Path, stream: mmap.mmap) -> BinaryIO:
    """A deflated file as if it were stored plainly, or the stream itself.

    pydicom would inflate without a limit.
    """
    start = stream[:_META_START]
    if _DEFLATED not in stream[:_META_SEARCHED]:
        return cast(BinaryIO, stream)
    body = _META_START + int.from_bytes(start[-4:], "little")
    meta = stream[:body]
    if start[132:140] != b"\x02\x00\x00\x00UL\x04\x00" or _DEFLATED not in meta:
        raise VolumeError(f"{path}: its file meta information is damaged; copy or export it again")
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    data = inflater.decompress(stream[body:], _LARGEST_INFLATED)
    if not inflater.eof:
        raise VolumeError(f"{path}: its deflated data set is cut off or too large; copy or export it again")
    return io.BytesIO(meta.replace(_DEFLATED, _EXPLICIT.ljust(len(_DEFLATED), b"\0")) + data)


@contextmanager
def open_stream(path: Path) -> Iterator[BinaryIO]:
    """The file's bytes, inflated where they are deflated.

    Mapped, not buffered: a reader that is asked for the 4 GiB that a damaged header claims gets what is there,
    without allocating them first.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as stream:
            with damage(path, "is truncated or damaged"):
                data = _inflated(path, stream)
            yield data
    except OSError as error:
        raise VolumeError(f"{path}: cannot be read: {error.strerror or error}") from error


def read_file(path: Path) -> DicomFile:
    """Read a file's header.

    Raises:
        VolumeError: it is no DICOM, encrypted, or damaged so that it is unknown what it belongs to.
    """
    pydicom = require("pydicom", "dicom")
    _check_kind(path)
    with open_stream(path) as stream:
        with damage(path, "is truncated or damaged"):
            dataset = pydicom.dcmread(stream, stop_before_pixels=True, force=True, specific_tags=tags(_KEYWORDS))
            at = stream.tell()
        header = Elements(path, dataset)
        if header.get("DirectoryRecordSequence") is None:
            for keyword in ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID"):
                header.uid(keyword)
            _check_modality(header)
        try:
            return DicomFile(path, header, _pixel_format(header, stream, at))
        except VolumeError as error:
            return DicomFile(path, header, None, error)


def _check_modality(header: Elements) -> None:
    """Raise a VolumeError where the modality is no code, so that it can be quoted."""
    modality = header.text("Modality")
    if len(modality) > 16 or not all(letter.isalnum() or letter in "_ " for letter in modality):
        raise VolumeError(f"{header.path}: its Modality is damaged; export it again")


def _syntax(header: Elements) -> str:
    """The transfer syntax; of a file without a file meta header, the one that pydicom found it to be in."""
    with damage(header.path, "its file meta information cannot be understood"):
        named = str(header.dataset.file_meta.get("TransferSyntaxUID", "") or "")
        implicit, little = header.dataset.original_encoding
    if named:
        return named
    return "1.2.840.10008.1.2" if implicit else "1.2.840.10008.1.2.1" if little else "1.2.840.10008.1.2.2"


def _element_length(header: Elements, stream: BinaryIO, at: int) -> tuple[str, str, int, int]:
    """Keyword, VR, offset of the value and length of the element at `at`."""
    _, little = header.dataset.original_encoding
    order: Literal["little", "big"] = "little" if little else "big"
    stream.seek(at)
    start = stream.read(12)
    tag = int.from_bytes(start[0:2], order), int.from_bytes(start[2:4], order)
    keyword = {
        (0x7FE0, 0x0008): "FloatPixelData", (0x7FE0, 0x0009): "DoubleFloatPixelData", (0x7FE0, 0x0010): "PixelData",
    }.get(tag, "")  # fmt: skip
    # What the element itself shows goes before what the transfer syntax says: lengths are even, these letters are not.
    vr = start[4:6].decode("latin-1")
    explicit = vr in ("OB", "OW", "OF", "OD", "UN")
    length = start[8:12] if explicit else start[4:8]
    return keyword, vr if vr == "OB" else "OW", at + (12 if explicit else 8), int.from_bytes(length, order)


def _pixel_format(header: Elements, stream: BinaryIO, at: int) -> PixelFormat | None:
    """Where and how pixels are stored, all sizes checked against the file; None where there are none."""
    path = header.path
    keyword, vr, offset, length = _element_length(header, stream, at)
    if not keyword:
        if header.get("Rows") is not None and header.get("DirectoryRecordSequence") is None:
            raise VolumeError(f"{path}: has no pixel data: it is truncated or damaged; copy or export it again")
        return None
    if keyword != "PixelData":
        raise VolumeError(f"{path}: stores its pixels as {keyword}, which is not read; export it as integers")
    pixels = PixelFormat(
        rows=header.integer("Rows"),
        columns=header.integer("Columns"),
        frames=header.integer("NumberOfFrames", 1),
        samples=header.integer("SamplesPerPixel", 1),
        photometric=header.text("PhotometricInterpretation").upper(),
        bits_allocated=header.integer("BitsAllocated"),
        bits_stored=header.integer("BitsStored", header.integer("BitsAllocated")),
        signed=header.integer("PixelRepresentation", 0) == 1,
        planar=header.integer("PlanarConfiguration", 0),
        syntax=_syntax(header),
        offset=offset,
        length=None if length == _UNDEFINED else length,
        vr=vr,
    )
    _check_format(header, pixels)
    stream.seek(0, io.SEEK_END)
    _check_length(path, pixels, stream.tell())
    return pixels


def _check_format(header: Elements, pixels: PixelFormat) -> None:
    path = header.path
    if not (0 < pixels.rows < 2**16 and 0 < pixels.columns < 2**16 and pixels.frames > 0):
        raise VolumeError(
            f"{path}: has the impossible size {pixels.columns}x{pixels.rows}, {pixels.frames} frame(s); export it again"
        )
    area = pixels.rows * pixels.columns
    if area > LARGEST_FRAME or area * pixels.frames > LARGEST_VOXELS or pixels.frames > MOST_FRAMES:
        raise VolumeError(
            f"{path}: claims {pixels.frames} frame(s) of {pixels.columns}x{pixels.rows}, which is damage or too large; "
            f"at most {MOST_FRAMES} frames, {LARGEST_FRAME} pixels in each and {LARGEST_VOXELS} voxels are read"
        )
    if pixels.samples not in (1, 3) or pixels.planar not in (0, 1):
        raise VolumeError(f"{path}: has {pixels.samples} samples a pixel, which is not read; use gray or RGB")
    if pixels.bits_allocated not in (1, 8, 16, 32) or not 0 < pixels.bits_stored <= pixels.bits_allocated:
        raise VolumeError(
            f"{path}: has {pixels.bits_stored} of {pixels.bits_allocated} bits a sample, which is not read; use 8 or 16"
        )
    if header.integer("HighBit", pixels.bits_stored - 1) != pixels.bits_stored - 1:
        raise VolumeError(f"{path}: its high bit and its bits stored contradict each other; export it again")
    color = pixels.photometric.startswith(("RGB", "YBR"))
    if not color and pixels.photometric not in ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR"):
        raise VolumeError(f"{path}: has a photometric interpretation that is not read; use MONOCHROME2 or RGB")
    if color != (pixels.samples == 3):
        raise VolumeError(f"{path}: its samples a pixel and photometric interpretation contradict each other")


def _check_length(path: Path, pixels: PixelFormat, end: int) -> None:
    compressed = pixels.syntax not in PLAIN_SYNTAXES
    if compressed or pixels.length is None:
        if not compressed or pixels.length is not None:
            raise VolumeError(f"{path}: its pixels are not stored as its transfer syntax says; export it again")
        # An item of two bytes is the least that a frame takes (PS3.5, A.4).
        if (end - pixels.offset) // 10 < pixels.frames:
            raise VolumeError(
                f"{path}: is truncated or damaged: {end - pixels.offset} bytes cannot hold its {pixels.frames} "
                "frame(s); copy or export it again"
            )
        return
    samples = pixels.samples
    if pixels.photometric == "YBR_FULL_422":
        samples = 2
    expected = (pixels.rows * pixels.columns * pixels.frames * samples * pixels.bits_allocated + 7) // 8
    available = min(pixels.length, end - pixels.offset)
    if available < expected:
        raise VolumeError(
            f"{path}: is truncated or damaged: {pixels.frames} frame(s) of {pixels.columns}x{pixels.rows} need "
            f"{expected} bytes of pixels and it holds {max(available, 0)}; copy or export it again"
        )
    # Some writers pad; what would fill a row or a column says that the size is wrong.
    if pixels.length - expected >= max(2, min(pixels.rows, pixels.columns) * samples * pixels.bits_allocated // 8):
        raise VolumeError(
            f"{path}: holds more pixels than its {pixels.frames} frame(s) of {pixels.columns}x{pixels.rows}: its size "
            "is damaged; export it again"
        )
