"""A head phantom in three dimensions: MR, CT, PET and SPECT of one made-up head, each on a grid of its own.

For tests and demonstrations. It is a drawing of plausible anatomy, evaluated at each voxel's place in mm, so that
all four agree however their grids lie. The head is not symmetric: a lesion is on the patient's left, in front.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmfnet_fast.errors import require
from dmfnet_fast.volumes.volume import Affine, Source, Volume

Field = NDArray[np.float64]

# Values of scalp, bone, fluid, gray matter, white matter, lesion: arbitrary for MR, HU, Bq/ml, counts.
_LEVELS = {
    "MR": (620.0, 60.0, 920.0, 550.0, 360.0, 800.0),
    "CT": (40.0, 900.0, 5.0, 38.0, 28.0, 60.0),
    "PT": (2500.0, 600.0, 900.0, 21000.0, 8000.0, 26000.0),
    "NM": (80.0, 20.0, 30.0, 800.0, 300.0, 150.0),
}
# Width of an edge in mm: what each scanner resolves.
_SOFTNESS = {"MR": 1.5, "CT": 1.5, "PT": 7.0, "NM": 12.0}
_AIR = {"MR": 0.0, "CT": -1000.0, "PT": 0.0, "NM": 0.0}
_UNITS = {"MR": None, "CT": "HU", "PT": "Bq/ml", "NM": None}
_NAMES = {"MR": "T2 axial", "CT": "CT head", "PT": "PET FDG brain", "NM": "SPECT perfusion"}
_KINDS = {"CT": ("AXIAL",), "NM": ("RECON TOMO", "EMISSION"), "MR": ("M",)}
_FIELD = 240.0
# PET: 370 MBq of F-18 in 70 kg, an hour before the scan.
_WEIGHT, _DOSE, _HALF_LIFE = 70.0, 3.7e8, 6586.2
_SOP_CLASSES = {
    "MR": "1.2.840.10008.5.1.4.1.1.4",
    "CT": "1.2.840.10008.5.1.4.1.1.2",
    "PT": "1.2.840.10008.5.1.4.1.1.128",
    "NM": "1.2.840.10008.5.1.4.1.1.20",
}
_ENHANCED_MR = "1.2.840.10008.5.1.4.1.1.4.1"


@dataclass(frozen=True, eq=False)
class HeadVolumes:
    """One head: `mr` oblique axial, `ct` and `pet` axial, `spect` coronal, the PET in Bq/ml."""

    mr: Volume
    ct: Volume
    pet: Volume
    spect: Volume

    def __iter__(self) -> Any:
        return iter((self.mr, self.ct, self.pet, self.spect))


def _inside(distance: Field, softness: float) -> Field:
    """1 where `distance`, in mm, is negative; 0 where it is positive; an edge of about `softness` mm between."""
    return np.asarray(np.clip(0.5 - distance / softness, 0, 1))


def _ellipsoid(at: Field, center: tuple[float, float, float], radii: tuple[float, float, float]) -> Field:
    """About the distance in mm to an ellipsoid's surface, negative inside."""
    relative = np.sqrt((((at - center) / radii) ** 2).sum(axis=-1))
    return np.asarray((relative - 1) * min(radii))


def _head(at: Field, softness: float, random: np.random.Generator) -> Field:
    """How much of each tissue is at points (..., 3) in mm, (6, ...)."""
    x, y, z = np.moveaxis(at, -1, 0)
    size = random.uniform(0.96, 1.04)
    waves = random.uniform(0, 2 * np.pi, 6)
    folds = (
        np.sin(x / 6.5 + waves[0]) * np.sin(y / 7 + waves[1]) + np.sin(y / 6 + waves[2]) * np.sin(z / 7 + waves[3])
        + np.sin(z / 6.5 + waves[4]) * np.sin(x / 7.5 + waves[5])
    )  # fmt: skip
    outer = _ellipsoid(at, (0, 0, 0), (76 * size, 96 * size, 90 * size))
    brain = outer + 15
    fissure = np.maximum.reduce([np.abs(x) - 1.5, -outer - 45, -20 - z])
    shells = [(0, outer), (1, outer + 6), (2, outer + 12)]
    inner = [(3, brain + 1.5 * np.maximum(folds, 0)), (4, brain + 9 + 4 * folds), (2, fissure)]
    for side in (-1, 1):
        inner.append((3, _ellipsoid(at, (side * 18, 8, 0), (11, 17, 12))))
        inner.append((2, _ellipsoid(at, (side * 12, -8, 14), (6, 24, 10))))
    inner.append((5, _ellipsoid(at, (34, -34, 22), (13, 15, 12))))
    tissues = np.zeros((6, *x.shape))
    # Painted from the outside in, each covering what lies below it; the brain's parts stay within it.
    for index, distance in (*shells, *((index, np.maximum(distance, brain)) for index, distance in inner)):
        cover = _inside(distance, softness)
        tissues *= 1 - cover
        tissues[index] += cover
    return tissues


def _rotation(degrees: tuple[float, float, float]) -> Field:
    """About x, then y, then z."""
    result = np.eye(3)
    for axis, angle in enumerate(np.deg2rad(degrees)):
        turn = np.eye(3)
        one, other = [number for number in range(3) if number != axis]
        turn[one, one] = turn[other, other] = np.cos(angle)
        turn[one, other], turn[other, one] = -np.sin(angle), np.sin(angle)
        result = turn @ result
    return result


def _grid(shape: tuple[int, int, int], spacing: tuple[float, float, float], axes: Field, middle: Field) -> Affine:
    """`axes` are the directions of slices, rows and columns, as columns of a matrix."""
    affine = np.eye(4)
    affine[:3, :3] = axes * spacing
    affine[:3, 3] = middle - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return affine


def draw_volume(modality: str, shape: tuple[int, int, int], affine: Affine, seed: int) -> Volume:
    """Draw a head on any grid.

    Args:
        modality: "MR", "CT", "PT" or "NM".
        shape: slices, rows and columns.
        affine: as in `Volume`; the head's middle is at the origin.
        seed: which head.
    """
    values = np.empty(shape, np.float32)
    noise = np.random.default_rng([seed, ord(modality[0])])
    rows, columns = np.meshgrid(np.arange(shape[1]), np.arange(shape[2]), indexing="ij")
    for number in range(shape[0]):
        index = np.stack([np.full_like(rows, number), rows, columns], axis=-1)
        at = index @ affine[:3, :3].T + affine[:3, 3]
        tissues = _head(at, _SOFTNESS[modality], np.random.default_rng(seed))
        air = _AIR[modality]
        image = air + np.tensordot(np.array(_LEVELS[modality]) - air, tissues, axes=1)
        spread = 0.01 * abs(_LEVELS[modality][3]) + (4 if modality == "CT" else 0)
        image += spread * noise.standard_normal(image.shape) * (tissues.sum(axis=0) > 0.5)
        values[number] = image if modality == "CT" else np.maximum(image, 0)
    source = Source("phantom", f"phantom-{modality}", _NAMES[modality], "phantom", 0)
    return Volume(values, affine, modality, _UNITS[modality], None, source)


def make_head(seed: int = 0, size: int = 192) -> HeadVolumes:
    """Draw one head on four grids.

    Args:
        seed: which head; heads differ in size and folds.
        size: rows and columns of the MR over 240 mm; all other sizes follow from it. At least 48.

    Raises:
        ValueError: `size` is below 48.
    """
    if size < 48:
        raise ValueError(f"size {size}: must be at least 48")
    axial = np.array([[0, 0, 1], [0, 1, 0], [1, 0, 0]], float)  # slices to the head, rows to the back, columns left
    coronal = np.array([[0, 0, 1], [1, 0, 0], [0, -1, 0]], float)  # slices to the back, rows to the feet, columns left
    grids = {
        "MR": ((size * 5 // 24, size, size), _rotation((8, -3, 5)) @ axial, (3.0, -4.0, 2.0), 200.0),
        "CT": ((size // 4, size * 4 // 3, size * 4 // 3), axial, (-5.0, 6.0, 1.0), 220.0),
        "PT": ((size // 3, size * 2 // 3, size * 2 // 3), axial, (2.0, -8.0, 4.0), 230.0),
        "NM": ((size // 2, size // 2, size // 2), coronal, (0.0, 3.0, -2.0), _FIELD),
    }
    volumes = []
    for modality, (shape, axes, middle, height) in grids.items():
        spacing = (height / shape[0], _FIELD / shape[1], _FIELD / shape[2])
        volumes.append(draw_volume(modality, shape, _grid(shape, spacing, axes, np.array(middle)), seed))
    return HeadVolumes(*volumes)


def _uid(*parts: str) -> str:
    """The same UID for the same words."""
    return str(require("pydicom.uid", "dicom").generate_uid(entropy_srcs=["dmfnet-fast phantom", *parts]))


def _dataset(volume: Volume, sop_class: str, name: str) -> Any:
    """What all files of a series share."""
    pydicom = require("pydicom", "dicom")
    modality = volume.modality or ""
    data = pydicom.Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    data.SpecificCharacterSet = "ISO_IR 100"
    data.ImageType = ["ORIGINAL", "PRIMARY", *_KINDS.get(modality, ())]
    data.SOPClassUID = sop_class
    data.SOPInstanceUID = _uid(modality, name)
    data.StudyDate = data.SeriesDate = data.AcquisitionDate = data.ContentDate = "20240102"
    data.StudyTime, data.SeriesTime = "090000", "100000"
    data.AcquisitionTime = data.ContentTime = "100000"
    data.AccessionNumber = data.ReferringPhysicianName = data.StudyID = data.PositionReferenceIndicator = ""
    data.Modality, data.Manufacturer, data.SeriesDescription = modality, "dmfnet-fast", _NAMES[modality]
    data.PatientName, data.PatientID = "Phantom^Head", "PHANTOM"
    data.PatientBirthDate, data.PatientSex, data.PatientWeight = "19700101", "O", _WEIGHT
    data.StudyInstanceUID, data.SeriesInstanceUID = _uid("study"), _uid(modality, "series")
    data.FrameOfReferenceUID = _uid("space")
    data.SeriesNumber, data.PatientPosition = 1 + list(_NAMES).index(modality), "HFS"
    data.Laterality = ""
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.Rows, data.Columns = volume.shape[1:]
    data.BitsAllocated = data.BitsStored = 16
    data.HighBit, data.PixelRepresentation = 15, 1 if modality in ("CT", "PT") else 0
    return data


def _decimal(numbers: Any) -> list[str]:
    """DICOM's decimal strings, of 16 characters at most."""
    return [f"{number:.8f}"[:16] for number in numbers]


def _plane(volume: Volume, slice_number: int) -> tuple[list[str], list[str], list[str]]:
    """Position, orientation and pixel spacing."""
    axes = volume.affine[:3, :3] / volume.spacing
    position = volume.affine[:3, 3] + volume.affine[:3, 0] * slice_number
    return _decimal(position), _decimal([*axes[:, 2], *axes[:, 1]]), _decimal(volume.spacing[1:])


def _stored(image: NDArray[Any], modality: str) -> tuple[NDArray[Any], float, float]:
    """16-bit values, slope and intercept; a PET has a slope for each slice."""
    slope, intercept = 1.0, -1024.0 if modality == "CT" else 0.0
    if modality == "PT":
        slope = float(f"{max(float(image.max()), 1.0) / 32000:.8g}")
    kind = np.int16 if modality in ("CT", "PT") else np.uint16
    return np.rint((image - intercept) / slope).astype(kind), slope, intercept


def _save(data: Any, path: Path) -> None:
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)


def _of_modality(data: Any, volume: Volume) -> None:
    """Elements that a modality's files must have."""
    if volume.modality == "MR":
        data.ScanningSequence, data.SequenceVariant, data.ScanOptions = "SE", "SK", ""
        data.MRAcquisitionType, data.EchoTime, data.RepetitionTime, data.EchoTrainLength = "2D", "90", "4000", "9"
    elif volume.modality == "CT":
        data.KVP, data.AcquisitionNumber = "120", "1"
    elif volume.modality == "PT":
        _pet_elements(data, volume)


def _pet_elements(data: Any, volume: Volume) -> None:
    pydicom = require("pydicom", "dicom")
    data.Units, data.CountsSource, data.SeriesType = "BQML", "EMISSION", ["STATIC", "IMAGE"]
    data.NumberOfSlices, data.CorrectedImage = volume.shape[0], ["ATTN", "DECY"]
    data.DecayCorrection, data.CollimatorType, data.FrameReferenceTime = "START", "NONE", "0"
    data.ActualFrameDuration, data.DecayFactor = "600000", "1"
    tracer = pydicom.Dataset()
    tracer.RadiopharmaceuticalStartTime, tracer.RadionuclideTotalDose = "090000", _DOSE
    tracer.RadionuclideHalfLife, tracer.RadionuclideCodeSequence = _HALF_LIFE, pydicom.Sequence()
    data.RadiopharmaceuticalInformationSequence = pydicom.Sequence([tracer])
    data.PatientOrientationCodeSequence = pydicom.Sequence()
    data.PatientGantryRelationshipCodeSequence = pydicom.Sequence()
    del data.PatientPosition


def write_series(volume: Volume, folder: Path) -> list[Path]:
    """Write a phantom as one classic DICOM file a slice, in the order of its slices."""
    paths = []
    for number, image in enumerate(volume.values):
        data = _dataset(volume, _SOP_CLASSES[volume.modality or ""], str(number))
        _of_modality(data, volume)
        data.InstanceNumber = number + 1
        data.ImagePositionPatient, data.ImageOrientationPatient, data.PixelSpacing = _plane(volume, number)
        data.SliceThickness = data.SpacingBetweenSlices = _decimal([volume.spacing[0]])[0]
        if volume.modality in ("CT", "PT"):
            del data.SpacingBetweenSlices
        stored, slope, intercept = _stored(image, volume.modality or "")
        if volume.modality != "MR":
            data.RescaleSlope, data.RescaleIntercept = f"{slope:.10g}", f"{intercept:g}"
        if volume.modality == "PT":
            data.ImageIndex = number + 1
        data.PixelData = stored.astype(stored.dtype.newbyteorder("<")).tobytes()
        paths.append(folder / f"{number + 1:04d}.dcm")
        _save(data, paths[-1])
    return paths


def write_tomogram(volume: Volume, path: Path) -> None:
    """Write a SPECT phantom as one reconstructed NM file."""
    pydicom = require("pydicom", "dicom")
    data = _dataset(volume, _SOP_CLASSES["NM"], "tomogram")
    position, orientation, data.PixelSpacing = _plane(volume, 0)
    detector = pydicom.Dataset()
    detector.ImagePositionPatient, detector.ImageOrientationPatient = position, orientation
    detector.CollimatorType = "PARA"
    data.DetectorInformationSequence = pydicom.Sequence([detector])
    normal = np.cross(volume.affine[:3, 2], volume.affine[:3, 1])
    sign = 1.0 if normal @ volume.affine[:3, 0] > 0 else -1.0
    data.SpacingBetweenSlices, data.SliceThickness = (
        _decimal([sign * volume.spacing[0]])[0], _decimal([volume.spacing[0]])[0],
    )  # fmt: skip
    data.NumberOfFrames = data.NumberOfSlices = volume.shape[0]
    data.FrameIncrementPointer = 0x00540080
    data.SliceVector = list(range(1, volume.shape[0] + 1))
    data.NumberOfDetectors = data.InstanceNumber = data.NumberOfEnergyWindows = data.NumberOfRotations = 1
    data.CountsAccumulated = ""
    for keyword in ("EnergyWindowInformation", "RadiopharmaceuticalInformation", "RotationInformation",
                    "PatientOrientationCode", "PatientGantryRelationshipCode"):  # fmt: skip
        setattr(data, f"{keyword}Sequence", pydicom.Sequence())
    del data.PatientPosition
    data.PixelData = _stored(volume.values, "NM")[0].astype("<u2").tobytes()
    _save(data, path)


def write_enhanced(volume: Volume, path: Path) -> None:
    """Write an MR phantom as one Enhanced MR file: the geometry that a reader needs, not all that the standard asks."""
    pydicom = require("pydicom", "dicom")

    def item(**elements: Any) -> Any:
        data = pydicom.Dataset()
        for keyword, value in elements.items():
            setattr(data, keyword, value)
        return pydicom.Sequence([data])

    data = _dataset(volume, _ENHANCED_MR, "enhanced")
    data.NumberOfFrames, data.InstanceNumber = volume.shape[0], 1
    _, orientation, spacing = _plane(volume, 0)
    thickness = _decimal([volume.spacing[0]])[0]
    data.SharedFunctionalGroupsSequence = item(
        PlaneOrientationSequence=item(ImageOrientationPatient=orientation),
        PixelMeasuresSequence=item(PixelSpacing=spacing, SliceThickness=thickness),
        PixelValueTransformationSequence=item(RescaleSlope="1", RescaleIntercept="0", RescaleType="US"),
    )
    data.PerFrameFunctionalGroupsSequence = pydicom.Sequence(
        item(
            FrameContentSequence=item(StackID="1", InStackPositionNumber=number + 1),
            PlanePositionSequence=item(ImagePositionPatient=_plane(volume, number)[0]),
        )[0]
        for number in range(volume.shape[0])
    )
    data.PixelData = _stored(volume.values, "MR")[0].astype("<u2").tobytes()
    _save(data, path)


def write_head(head: HeadVolumes, folder: Path) -> dict[str, Path]:
    """Write all four as DICOM: folders MR, CT and PT with a file a slice, and NM with one tomogram.

    Returns:
        The folders by modality.
    """
    for volume in (head.mr, head.ct, head.pet):
        write_series(volume, folder / (volume.modality or ""))
    write_tomogram(head.spect, folder / "NM" / "tomogram.dcm")
    return {modality: folder / modality for modality in _NAMES}


def write_nifti(volume: Volume, path: Path) -> None:
    """Write a gray volume as float32 NIfTI, compressed where the name ends in .gz."""
    nibabel = require("nibabel", "dicom")
    image = nibabel.Nifti1Image(volume.values.T, volume.ras_affine)
    image.set_sform(volume.ras_affine, 1)
    image.set_qform(volume.ras_affine, 1)
    image.header.set_xyzt_units("mm")
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(image, path)
