"""DICOM: one RGB Secondary Capture image a slice (PS3.3, A.8.1), a new series in the study of the grid's volume."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmfnet_fast.errors import OutputError, require
from dmfnet_fast.volumes.dicom_file import quiet
from dmfnet_fast.volumes.elements import damage
from dmfnet_fast.volumes.volume import Instance, Volume
from dmfnet_fast.volumes.writing.journal import SliceJournal
from dmfnet_fast.volumes.writing.label import Label
from dmfnet_fast.volumes.writing.provenance import Provenance
from dmfnet_fast.volumes.writing.slice_files import SliceFilesWriter

DISCLAIMER = "research only, not for diagnosis"
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_NAME = "dmfnet-fast"
# Behind the series of a scanner, in lists that sort by number.
_SERIES_NUMBER = 9001
# Elements that a file must have, if only empty (type 2).
_MAY_BE_EMPTY = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID",
    "AccessionNumber", "ReferringPhysicianName",
)  # fmt: skip
# Elements that identify: copied as they are, valid or not.
_IDENTIFYING = (
    "SpecificCharacterSet", "PatientName", "PatientID", "IssuerOfPatientID", "StudyID", "AccessionNumber",
    "ReferringPhysicianName",
)  # fmt: skip
# PixelData of bytes, in explicit VR little endian; its length and the pixels follow. It is a file's last element.
_PIXEL_DATA = b"\xe0\x7f\x10\x00OB\0\0"
_PREAMBLE = b"\0" * 128 + b"DICM"
_UID = re.compile(r"[0-9.]{1,64}")
_SEXES = ("M", "F", "O", "")
_LONGEST_LO, _LONGEST_ST = 64, 1024


def _ascii(text: str, longest: int) -> str:
    """Text that every character set has, without the backslash, which separates values."""
    return text.encode("ascii", "replace").decode().replace("\\", "/")[:longest]


def series_uid(run: str, sources: tuple[Volume, Volume]) -> str:
    """The UID of a fused series, derived from all that decides what it shows, so that making it again changes nothing.

    Args:
        run: the run's identity (`provenance.run_identity`): values, modalities, studies and series of the
            sources, weights, settings, version.
        sources: the volumes that are fused, whose images the result refers to.
    """
    instances = [(one.sop_instance, one.frame) for source in sources if source.link for one in source.link.instances]
    return _derived(run, json.dumps(instances))


def instance_uid(series: str, index: int) -> str:
    """The UID of a slice of the fused series with this UID."""
    return _derived(series, str(index))


def _derived(*sources: str) -> str:
    # pydicom hashes the sources one after the other; a line break keeps them apart.
    return str(require("pydicom", "dicom").uid.generate_uid(entropy_srcs=["\n".join(sources)]))


def instances_near(source: Volume, grid: Volume, index: int) -> list[Instance]:
    """The slices of a source that linear interpolation in one slice of the grid reads; none where it does not reach."""
    assert source.link is not None
    _, rows, columns = grid.shape
    corners = np.array([[index, row, column, 1] for row in (0, rows - 1) for column in (0, columns - 1)], float)
    at = ((np.linalg.inv(source.affine) @ grid.affine) @ corners.T)[0]
    # Whole indices are, in spite of rounding; half a voxel beyond its centers a slice still shows.
    low, high = np.floor(at.min() + 1e-3), np.ceil(at.max() - 1e-3)
    slices = len(source.link.instances)
    if high < -0.5 or low > slices - 0.5:
        return []
    return list(source.link.instances[max(int(low), 0) : min(int(high), slices - 1) + 1])


def check_link(grid: Volume) -> None:
    """Raise an OutputError unless it is known where a DICOM result on this grid belongs."""
    if grid.link is None:
        raise unlinked(grid.source.path)


def unlinked(grid: str) -> OutputError:
    """The error of a DICOM result on the grid of a volume that is not DICOM."""
    return OutputError(
        f"{grid}: is not DICOM, so it names no patient and no study for a DICOM result; choose NIfTI or PNG"
    )


class DicomWriter(SliceFilesWriter):
    """Writes a series into the folder `output`. The grid's volume must have a link."""

    suffix = ".dcm"

    def __init__(
        self,
        output: Path,
        grid: Volume,
        sources: tuple[Volume, Volume],
        journal: SliceJournal,
        provenance: Provenance,
        run: str,
        label: Label | None,
    ) -> None:
        require("pydicom", "dicom")
        check_link(grid)
        assert grid.link is not None
        self._grid, self._link, self._sources = grid, grid.link, sources
        self._provenance = provenance
        self._run = run
        self._series = series_uid(run, sources)
        self._label = label
        super().__init__(output, grid.shape, journal)
        # All made here, before anything is computed: what cannot be written is known now, and pydicom, whose settings
        # and warnings are the process's, is not called from several threads.
        with quiet(), damage(Path(grid.source.path), "its patient or study cannot be written"):
            shared = self._shared()
            self._texts = shared.get("SpecificCharacterSet")
            # Slices have most elements in common, and most sources with their neighbors: each is encoded once.
            self._common = _elements(shared, self._texts)
            self._meta = _elements(_file_meta(instance_uid(self._series, 0)))
            code = _dataset(
                CodeValue="121322",
                CodingSchemeDesignator="DCM",
                CodeMeaning="Source image for image processing operation",
            )
            self._purpose = _sequence("PurposeOfReferenceCodeSequence", [_item(_elements(code))])
            self._items: dict[tuple[str, str, tuple[int, ...]], tuple[bytes, bytes]] = {}
            self._headers = {index: self._header(index) for index in set(range(grid.shape[0])) - self.done()}

    def _encoded(self, index: int, rgb: NDArray[np.uint8]) -> bytes:
        pixels = (rgb if self._label is None else self._label(rgb)).tobytes()
        pixels += b"\0" * (len(pixels) % 2)
        return self._headers[index] + _PIXEL_DATA + len(pixels).to_bytes(4, "little") + pixels

    def _header(self, index: int) -> bytes:
        """The file of a slice up to its pixels."""
        data = _dataset(
            SOPInstanceUID=instance_uid(self._series, index),
            InstanceNumber=index + 1,
            ImagePositionPatient=_decimals(self._grid.affine[:3, 3] + self._grid.affine[:3, 0] * index),
        )
        meta = {**self._meta, **_elements(_dataset(MediaStorageSOPInstanceUID=data.SOPInstanceUID))}
        elements = {**self._common, **_elements(data, self._texts), **self._references(index)}
        return _PREAMBLE + _group_length(_joined(meta)) + _joined(meta) + _joined(elements)

    def _shared(self) -> Any:
        """The elements that are the same in all slices."""
        journal = self._journal
        data = _copied(self._link.patient)
        for keyword in _MAY_BE_EMPTY:
            if keyword not in data:
                setattr(data, keyword, "")
        if not data.get("Laterality"):
            # Absent for a part of which there is one, empty where the part is unknown.
            data.Laterality = ""
            if data.get("BodyPartExamined"):
                del data.Laterality
        day, time = f"{journal.started:%Y%m%d}", f"{journal.started:%H%M%S}"
        data.InstanceCreationDate = data.SeriesDate = data.ContentDate = data.DateOfSecondaryCapture = day
        data.InstanceCreationTime = data.SeriesTime = data.ContentTime = data.TimeOfSecondaryCapture = time
        data.SOPClassUID = _SECONDARY_CAPTURE
        data.StudyInstanceUID, data.SeriesInstanceUID = self._link.study, self._series
        data.SeriesNumber, data.Modality, data.ConversionType = _SERIES_NUMBER, "OT", "WSD"
        data.ImageType = ["DERIVED", "SECONDARY"]
        self._describe(data)
        self._place(data)
        space = self._grid.frame_of_reference or ""
        if _UID.fullmatch(space):
            data.FrameOfReferenceUID, data.PositionReferenceIndicator = space, ""
        links = [source.link for source in self._sources if source.link is not None]
        burned_in = self._label is not None or any(link.burned_in for link in links)
        data.BurnedInAnnotation = "YES" if burned_in else "NO"
        # What was ever compressed with loss stays so (PS3.3, C.7.6.1.1.5).
        data.LossyImageCompression = "01" if any(link.lossy for link in links) else "00"
        data.SamplesPerPixel, data.PhotometricInterpretation, data.PlanarConfiguration = 3, "RGB", 0
        data.Rows, data.Columns = self._grid.shape[1:]
        data.BitsAllocated = data.BitsStored = 8
        data.HighBit, data.PixelRepresentation = 7, 0
        return data

    def _describe(self, data: Any) -> None:
        """Series, derivation and equipment."""
        kinds = [source.modality or "unknown" for source in self._sources]
        made = self._provenance
        data.SeriesDescription = _ascii(f"Fused {'+'.join(kinds)}, {DISCLAIMER}", _LONGEST_LO)
        sentences = [
            f"{DISCLAIMER.capitalize()}.",
            f"{kinds[0]} and {kinds[1]} fused by {_NAME} {made.version} onto the grid of one of them: the luminance "
            f"shows the structure of both, the color is that of {kinds[1]}.",
            f"Engine {made.engine}, weights SHA-256 {made.weights}, run {self._run}.",
        ]
        if _different_patients(self._sources):
            sentences.append("The sources name different patients.")
        data.DerivationDescription = _ascii(" ".join(sentences), _LONGEST_ST)
        data.Manufacturer = data.SecondaryCaptureDeviceManufacturer = _NAME
        data.ManufacturerModelName = data.SecondaryCaptureDeviceManufacturerModelName = _NAME
        # The hash takes all 64 characters, and a last value may be padded by one.
        versions = [_ascii(text, _LONGEST_LO) for text in (made.version, made.weights, made.engine)]
        data.SoftwareVersions = data.SecondaryCaptureDeviceSoftwareVersions = versions

    def _place(self, data: Any) -> None:
        """The Image Plane module but for positions. How thick the grid's slices are is not known, how far apart is."""
        axes = self._grid.affine[:3, :3] / self._grid.spacing
        data.ImageOrientationPatient = _decimals([*axes[:, 2], *axes[:, 1]])
        data.PatientOrientation = [_letters(axes[:, 2]), _letters(axes[:, 1])]
        data.PixelSpacing = _decimals(self._grid.spacing[1:])
        data.SliceThickness = ""
        data.SpacingBetweenSlices = _decimals(self._grid.spacing[:1])[0]

    def _references(self, index: int) -> dict[int, bytes]:
        """Which images of the sources a slice shows: the General Reference and Common Instance Reference modules."""
        images: list[bytes] = []
        studies: dict[str, dict[str, dict[str, bytes]]] = {}
        for source in self._sources:
            if source.link is None:
                continue
            frames: dict[tuple[str, str], list[int]] = {}
            for instance in instances_near(source, self._grid, index):
                numbers = frames.setdefault((instance.sop_class, instance.sop_instance), [])
                numbers += [] if instance.frame is None else [instance.frame]
            series = studies.setdefault(source.link.study, {}).setdefault(source.link.series, {})
            for (sop_class, sop_instance), numbers in frames.items():
                image, series[sop_instance] = self._referred(sop_class, sop_instance, tuple(sorted(numbers)))
                images.append(image)
        found = _sequence("SourceImageSequence", images)
        for study, of_study in studies.items():
            entries = [
                _item({**_elements(_dataset(SeriesInstanceUID=uid)),
                       **_sequence("ReferencedInstanceSequence", items.values())})
                for uid, items in of_study.items() if items
            ]  # fmt: skip
            of_series = _sequence("ReferencedSeriesSequence", entries)
            if study == self._link.study:
                found |= of_series
            elif entries:
                elsewhere = _item({**_elements(_dataset(StudyInstanceUID=study)), **of_series})
                found |= _sequence("StudiesContainingOtherReferencedInstancesSequence", [elsewhere])
        return found

    def _referred(self, sop_class: str, sop_instance: str, frames: tuple[int, ...]) -> tuple[bytes, bytes]:
        """An image of a source as an item of Source Image Sequence and as one of Referenced Instance Sequence."""
        key = sop_class, sop_instance, frames
        if key not in self._items:
            reference = _elements(_dataset(ReferencedSOPClassUID=sop_class, ReferencedSOPInstanceUID=sop_instance))
            numbers = _elements(_dataset(ReferencedFrameNumber=list(frames))) if frames else {}
            self._items[key] = _item({**reference, **numbers, **self._purpose}), _item(reference)
        return self._items[key]


def _elements(data: Any, texts: Any = None) -> dict[int, bytes]:
    """The elements of a data set as a file holds them (explicit VR, little endian), by their tags.

    Args:
        texts: the character sets of texts, as in Specific Character Set; None for the default one.
    """
    writer = require("pydicom.filewriter", "dicom")
    found = {}
    for element in data:
        buffer = require("pydicom.filebase", "dicom").DicomBytesIO()
        buffer.is_little_endian, buffer.is_implicit_VR = True, False
        writer.write_data_element(buffer, element, texts)
        found[int(element.tag)] = buffer.getvalue()
    return found


def _joined(elements: Mapping[int, bytes]) -> bytes:
    """Elements in a file's order."""
    return b"".join(elements[tag] for tag in sorted(elements))


def _file_meta(sop_instance: str) -> Any:
    """The file meta information of an instance, without its length."""
    pydicom = require("pydicom", "dicom")
    meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = _SECONDARY_CAPTURE
    meta.MediaStorageSOPInstanceUID = sop_instance
    # Adds what every file has: the version, and the implementation.
    pydicom.dataset.validate_file_meta(meta)
    return meta


def _group_length(meta: bytes) -> bytes:
    """File Meta Information Group Length, which comes before what it is the length of."""
    return struct.pack("<HH2sHL", 2, 0, b"UL", 4, len(meta))


def _item(elements: Mapping[int, bytes]) -> bytes:
    """An item of a sequence."""
    content = _joined(elements)
    return b"\xfe\xff\x00\xe0" + len(content).to_bytes(4, "little") + content


def _sequence(keyword: str, items: Iterable[bytes]) -> dict[int, bytes]:
    """A sequence, as `_elements` has it."""
    tag = int(require("pydicom.datadict", "dicom").tag_for_keyword(keyword))
    content = b"".join(items)
    return {tag: struct.pack("<HH4sL", tag >> 16, tag & 0xFFFF, b"SQ", len(content)) + content}


def _copied(patient: Any) -> Any:
    """A source's elements, without those whose values are not valid for their kind."""
    pydicom = require("pydicom", "dicom")
    data = pydicom.Dataset()
    for element in patient:
        if element.keyword not in _IDENTIFYING:
            try:
                for value in element.value if element.VM > 1 else [element.value]:
                    pydicom.valuerep.validate_value(element.VR, str(value or ""), pydicom.config.RAISE)
            except ValueError:
                continue
        data.add(element)
    if data.get("PatientSex", "") not in _SEXES:
        del data.PatientSex
    return data


def _different_patients(sources: tuple[Volume, Volume]) -> bool:
    one, other = (source.link.identity if source.link is not None else {} for source in sources)
    return any(keyword in other and other[keyword] != value for keyword, value in one.items())


def _decimals(numbers: Iterable[float]) -> list[Any]:
    """DICOM's decimal strings: as many digits as 16 characters hold."""
    representation = require("pydicom.valuerep", "dicom")
    return [representation.DSfloat(float(number) + 0.0, auto_format=True) for number in numbers]


def _letters(direction: NDArray[np.float64]) -> str:
    """A direction as in Patient Orientation (PS3.3, C.7.6.1.1.1): the main axis first."""
    order = np.argsort(-np.abs(direction), kind="stable")
    return "".join(("LR", "PA", "HF")[axis][int(direction[axis] < 0)] for axis in order if abs(direction[axis]) > 0.1)


def _dataset(**elements: Any) -> Any:
    """A data set of these elements."""
    data = require("pydicom", "dicom").Dataset()
    for keyword, value in elements.items():
        setattr(data, keyword, value)
    return data
