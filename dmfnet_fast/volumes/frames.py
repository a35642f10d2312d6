"""The images in a DICOM file, each with its place in space and what may set it apart from others in its series."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from dmfnet_fast.errors import VolumeError, require
from dmfnet_fast.volumes.dicom_file import DicomFile, PixelFormat
from dmfnet_fast.volumes.elements import Elements

# Objects with pixels that are not images of a patient.
_NOT_IMAGES = ("SEG", "RTDOSE", "RTIMAGE", "PR", "SR", "KO", "REG", "RWV", "DOC", "FID", "SM")
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
# Pointers of an Enhanced file's dimensions that say where a frame lies: In-Stack Position Number, Image Position
# (Patient) and Slice Location.
_POSITIONS = (0x00209057, 0x00200032, 0x00201041)
_SLICE_VECTOR = 0x00540080
# Names of what may set frames at one position apart, in the order in which they are tried.
DIFFERENCES = (
    "kind", "echo", "b-value", "direction", "temporal position", "stack", "cardiac phase", "frame time", "dimensions",
    "acquisition", "trigger time", "acquisition time", "content time", "series time",
)  # fmt: skip


@dataclass(frozen=True, repr=False)
class Frame:
    """One image. `position` is the center of its first pixel in mm (LPS), `orientation` the direction of its rows
    and of its columns, `spacing` the distance between rows and between columns in mm, `thickness` that between slices
    if the file states it."""

    file: DicomFile
    index: int
    position: NDArray[np.float64]
    orientation: NDArray[np.float64]
    spacing: tuple[float, float]
    thickness: float | None
    slope: float
    intercept: float
    rescale_type: str
    differences: dict[str, Hashable] = field(default_factory=dict)

    @property
    def pixels(self) -> PixelFormat:
        assert self.file.pixels is not None
        return self.file.pixels

    @property
    def name(self) -> str:
        """The file's name, and the frame if there are several."""
        path = str(self.file.path)
        return path if self.pixels.frames == 1 else f"{path}, frame {self.index + 1}"


def why_skipped(file: DicomFile) -> str | None:
    """Why a file is not a slice of a volume, or None."""
    header = file.header
    modality = header.text("Modality").upper()
    if file.pixels is None:
        return _not_an_image(file)
    if modality in _NOT_IMAGES:
        return f"no image of a patient ({modality})"
    kinds = header.text("ImageType").upper().split("\\")
    if "LOCALIZER" in kinds:
        return "a localizer"
    if modality == "NM" and "TOMO" in kinds and not any(kind.startswith("RECON") for kind in kinds):
        return "projections, not a reconstructed volume"
    geometry = ("ImagePositionPatient", "PerFrameFunctionalGroupsSequence", "DetectorInformationSequence")
    captured = header.text("SOPClassUID").startswith(_SECONDARY_CAPTURE)
    if captured and not any(header.get(keyword) is not None for keyword in geometry):
        return "a secondary capture without a position in space"
    return None


def _not_an_image(file: DicomFile) -> str:
    """Says what a file without pixels is.

    Raises:
        VolumeError: its SOP class says that it has pixels, or is itself damaged.
    """
    uid = require("pydicom.uid", "dicom").UID(file.header.text("SOPClassUID"))
    private = uid.is_valid and not uid.startswith("1.2.840.10008.")
    if not private and (uid.name == uid or "Image Storage" in uid.name):
        raise VolumeError(f"{file.path}: has no pixel data: it is truncated or damaged; copy or export it again")
    return "no image (a private object)" if private else f"no image ({uid.name})"


def frames_of(file: DicomFile) -> list[Frame]:
    """The frames of a file.

    Raises:
        VolumeError: a frame has no usable geometry, or its description is damaged.
    """
    header = file.header
    if "MOSAIC" in header.text("ImageType").upper():
        raise VolumeError(f"{file.path}: is a mosaic of slices; convert it with dcm2niix and give the NIfTI file")
    if header.get("ModalityLUTSequence") is not None:
        raise VolumeError(
            f"{file.path}: has a modality lookup table, which is not read; "
            "export the series with Rescale Slope and Intercept instead"
        )
    if header.items("PerFrameFunctionalGroupsSequence"):
        return _enhanced(file)
    if header.items("DetectorInformationSequence"):
        return _nuclear(file)
    if file.pixels is not None and file.pixels.frames > 1:
        raise VolumeError(f"{file.path}: its {file.pixels.frames} frames have no position in space; export single ones")
    return [_classic(file)]


def _direction(file: DicomFile, values: tuple[float, ...] | None) -> NDArray[np.float64]:
    """Both directions of an image, made exactly perpendicular, (2, 3)."""
    if values is None:
        raise VolumeError(f"{file.path}: has no Image Orientation (Patient), so its place is unknown; export it again")
    rows, columns = np.array(values).reshape(2, 3)
    lengths = np.linalg.norm(rows), np.linalg.norm(columns)
    if abs(lengths[0] - 1) > 0.01 or abs(lengths[1] - 1) > 0.01 or abs(rows @ columns) > 0.01:
        raise VolumeError(f"{file.path}: its Image Orientation (Patient) is no pair of directions; export it again")
    rows = rows / lengths[0]
    columns = columns - rows * (rows @ columns)
    return np.stack([rows, columns / np.linalg.norm(columns)])


def _frame(
    file: DicomFile, index: int, plane: Elements, direction: Elements, measures: Elements, rescale: Elements,
    differences: dict[str, Hashable],
) -> Frame:  # fmt: skip
    position = plane.numbers("ImagePositionPatient", 3)
    orientation = _direction(file, direction.numbers("ImageOrientationPatient", 6))
    if position is None:
        raise VolumeError(f"{file.path}: has no Image Position (Patient), so its place is unknown; export it again")
    if max(map(abs, position)) > 1e4:
        raise VolumeError(f"{file.path}: lies more than 10 m from the origin; its position is damaged")
    spacing = measures.numbers("PixelSpacing", 2)
    if spacing is None:
        raise VolumeError(f"{file.path}: has no Pixel Spacing, so its size is unknown; export it again")
    if not all(0.01 < step < 30 for step in spacing):
        raise VolumeError(f"{file.path}: has pixels of {spacing[0]:g} x {spacing[1]:g} mm; check its Pixel Spacing")
    slope = rescale.number("RescaleSlope", 1.0) or 0.0
    if slope == 0:
        raise VolumeError(f"{file.path}: has Rescale Slope 0, which leaves no image; export it again")
    return Frame(
        file=file,
        index=index,
        position=np.array(position),
        orientation=orientation,
        spacing=(spacing[0], spacing[1]),
        thickness=measures.number("SpacingBetweenSlices") or measures.number("SliceThickness"),
        slope=slope,
        intercept=rescale.number("RescaleIntercept", 0.0) or 0.0,
        rescale_type=rescale.text("RescaleType").upper(),
        differences=differences,
    )


def _classic(file: DicomFile) -> Frame:
    header = file.header
    phase = header.text("NominalPercentageOfCardiacPhase")
    differences: dict[str, Hashable] = {
        "kind": header.text("ImageType"),
        "echo": (header.text("EchoNumbers"), header.text("EchoTime")),
        "b-value": header.text("DiffusionBValue"),
        "direction": header.text("DiffusionGradientOrientation"),
        "temporal position": header.text("TemporalPositionIdentifier"),
        "cardiac phase": phase,
        "frame time": header.text("FrameReferenceTime"),
        "acquisition": header.text("AcquisitionNumber"),
        "trigger time": header.text("TriggerTime"),
        "acquisition time": (header.text("AcquisitionDateTime"), header.text("AcquisitionTime")),
        "content time": header.text("ContentTime"),
        "series time": header.text("SeriesTime"),
    }
    return _frame(file, 0, header, header, header, header, differences)


def _enhanced(file: DicomFile) -> list[Frame]:
    header, pixels = file.header, file.pixels
    assert pixels is not None
    groups = header.items("PerFrameFunctionalGroupsSequence")
    if len(groups) != pixels.frames:
        raise VolumeError(
            f"{file.path}: describes {len(groups)} frames and claims to hold {pixels.frames}; export it again"
        )
    shared = header.item("SharedFunctionalGroupsSequence")
    pointers = [_pointer(item) for item in header.items("DimensionIndexSequence")]
    return [_enhanced_frame(file, index, group, shared, pointers) for index, group in enumerate(groups)]


def _pointer(item: Elements) -> int:
    value = item.get("DimensionIndexPointer")
    return int(value) if isinstance(value, int) else 0


def _enhanced_frame(
    file: DicomFile, index: int, group: Elements, shared: Elements | None, pointers: list[int]
) -> Frame:
    absent = Elements(file.path, {})

    def find(*keywords: str) -> Elements:
        for keyword in keywords:
            for holder in (group, shared):
                item = holder.item(keyword) if holder is not None else None
                if item is not None:
                    return item
        return absent

    content = find("FrameContentSequence")
    kind = find("MRImageFrameTypeSequence", "CTImageFrameTypeSequence", "PETFrameTypeSequence")
    diffusion = find("MRDiffusionSequence")
    indices = content.text("DimensionIndexValues").split("\\")
    differences: dict[str, Hashable] = {
        "kind": (kind.text("FrameType"), kind.text("ComplexImageComponent")),
        "echo": find("MREchoSequence").text("EffectiveEchoTime"),
        "b-value": (diffusion.text("DiffusionBValue"), diffusion.text("DiffusionDirectionality")),
        "temporal position": content.text("TemporalPositionIndex"),
        "stack": content.text("StackID"),
        "cardiac phase": find("CardiacSynchronizationSequence").text("NominalPercentageOfCardiacPhase"),
        "dimensions": tuple(
            value for value, pointer in zip(indices, pointers, strict=False) if pointer not in _POSITIONS
        ),
        "acquisition": content.text("FrameAcquisitionNumber"),
        "acquisition time": content.text("FrameReferenceDateTime"),
    }
    return _frame(
        file, index, find("PlanePositionSequence"), find("PlaneOrientationSequence"), find("PixelMeasuresSequence"),
        find("PixelValueTransformationSequence"), differences,
    )  # fmt: skip


def _nuclear(file: DicomFile) -> list[Frame]:
    """Frames of a reconstructed NM file, which says where the first one lies and how the others follow.

    PS3.3, C.8.4.15: slices are stacked along the normal of the first, against it where the spacing is negative.
    """
    header, pixels = file.header, file.pixels
    assert pixels is not None
    detector = header.item("DetectorInformationSequence")
    assert detector is not None
    pointer = header.get("FrameIncrementPointer")
    pointers = list(pointer) if hasattr(pointer, "__iter__") else [pointer]
    if pixels.frames > 1 and pointers not in ([_SLICE_VECTOR], [None]):
        raise VolumeError(f"{file.path}: is not one volume of slices (gated, or whole body); export one volume of it")
    order = header.numbers("SliceVector", pixels.frames) if header.get("SliceVector") is not None else None
    first = _frame(file, 0, detector, detector, header, header, {})
    step = header.number("SpacingBetweenSlices") or header.number("SliceThickness")
    if step is None and pixels.frames > 1:
        raise VolumeError(f"{file.path}: has no Spacing Between Slices; export it again")
    normal = np.cross(*first.orientation) * (step or 0.0)
    slices = [int(number) - 1 for number in order] if order is not None else list(range(pixels.frames))
    return [
        Frame(
            file, index, first.position + normal * place, first.orientation, first.spacing, abs(step or 0.0) or None,
            first.slope, first.intercept, first.rescale_type,
        )
        for index, place in enumerate(slices)
    ]  # fmt: skip
