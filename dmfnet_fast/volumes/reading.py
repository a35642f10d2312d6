"""`read_volume` and `list_volumes`: DICOM files, folders, DICOMDIRs and NIfTI files."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmfnet_fast.errors import VolumeError, memory_guard, warn
from dmfnet_fast.images.formats import name_in_folder
from dmfnet_fast.volumes.dicom_file import LOSSY_SYNTAXES, may_be_dicom, quiet
from dmfnet_fast.volumes.doubts import doubts
from dmfnet_fast.volumes.frames import Frame
from dmfnet_fast.volumes.messages import Message
from dmfnet_fast.volumes.nifti import NiftiFile, is_nifti, read_header, read_values
from dmfnet_fast.volumes.pixels import has_units, read_frames
from dmfnet_fast.volumes.series import Candidate, Skipped, candidates_in, copied_elements, files_in, identity_of
from dmfnet_fast.volumes.stacking import straightened
from dmfnet_fast.volumes.suv import suv_factor
from dmfnet_fast.volumes.volume import LARGEST_VOXELS, Instance, Link, Source, Volume

_UNITS = {"BQML": "Bq/ml", "GML": "SUV", "CNTS": None, "PROPCNTS": None, "NONE": None}
# Names of a modality that a user may give for NIfTI.
_MODALITIES = {"MRI": "MR", "PET": "PT", "SPECT": "NM"}
_LONGEST_DESCRIPTION = 64
_BELOW_FAT = -300.0


@dataclass(frozen=True)
class VolumeInfo:
    """One volume of a folder or file.

    Attributes:
        uid: what `read_volume(series=...)` takes: the Series Instance UID, followed by "#" and a number where a series
            holds several volumes; the file's name for NIfTI.
        description: the series' description and what tells its volumes apart.
        modality: DICOM's word, None for NIfTI.
        shape: (slices, rows, columns); where there is a problem, slices counts the images found.
        spacing: mm between (slices, rows, columns); None where there is a problem.
        files: how many files hold it.
        problem: why it cannot be read, or None.
    """

    uid: str
    description: str
    modality: str | None
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float] | None
    files: int
    problem: str | None

    def __str__(self) -> str:
        slices, rows, columns = self.shape
        size = f"{columns}x{rows}x{slices}"
        step = "" if self.spacing is None else f", {' x '.join(f'{mm:.3g}' for mm in self.spacing[::-1])} mm"
        state = "" if self.problem is None else " (cannot be read)"
        return f"{self.uid}  {self.modality or '?'} {self.description or 'without description'}, {size}{step}{state}"


@dataclass(frozen=True)
class Listing:
    """What `list_volumes` found: volumes, and files that belong to none with the reason."""

    volumes: tuple[VolumeInfo, ...]
    skipped: tuple[Skipped, ...]


def _checked(path: str | os.PathLike[str]) -> Path:
    path = Path(path)
    if not path.exists():
        raise VolumeError(f"{path}: no such file or folder")
    if not path.is_dir() and not path.is_file():
        raise VolumeError(f"{path}: is neither a file nor a folder")
    return path


def _description(candidate: Candidate) -> str:
    """The series' description; "" where it is damaged and may hold other elements."""
    value = candidate.header.get("SeriesDescription")
    sound = isinstance(value, str) and value.isprintable() and len(value) <= _LONGEST_DESCRIPTION
    return candidate.header.text("SeriesDescription") if sound else ""


def _info(candidate: Candidate) -> VolumeInfo:
    pixels = candidate.frames[0].file.pixels
    grid = candidate.stack
    size = (pixels.rows, pixels.columns) if pixels is not None else (0, 0)
    spacing = None if grid is None else np.linalg.norm(grid.affine[:3, :3], axis=0).tolist()
    return VolumeInfo(
        uid=candidate.uid,
        description=" ".join(filter(None, (_description(candidate), candidate.label))),
        modality=candidate.header.text("Modality") or None,
        shape=(len(candidate.frames), *size) if grid is None else grid.shape,
        spacing=None if spacing is None else (spacing[0], spacing[1], spacing[2]),
        files=len({frame.file.path for frame in candidate.frames}),
        problem=None if candidate.problem is None else str(candidate.problem),
    )


def is_volume(path: Path) -> bool:
    """Whether a path is a volume rather than an image or a folder of images.

    A file is one if it is DICOM, a DICOMDIR or named .nii or .nii.gz. A folder that directly holds images is one if it
    directly holds more of these files than images; a folder without images is one if it has such a file in it or below.

    Raises:
        VolumeError: a file cannot be read, or a folder holds as many images as these files.
    """
    if not path.is_dir():
        return _is_volume_file(path)
    try:
        inside = sorted(path.iterdir())
    except OSError as error:
        raise VolumeError(f"{path}: cannot be read: {error.strerror}; make it readable") from error
    direct = [file for file in inside if file.is_file() and not file.name.startswith(".")]
    others = [file for file in direct if name_in_folder(file) is None]
    images = len(direct) - len(others)
    if images:
        volumes = sum(map(_is_volume_file, others))
        if volumes == images:
            # Such as an export with a preview of every slice, whose previews must not be fused instead.
            raise VolumeError(
                f"{path}: holds as many images as DICOM or NIfTI files ({images}), so it is unknown which are meant; "
                "move either into a folder of their own"
            )
        return volumes > images
    return any(map(_is_volume_file, others)) or any(map(_is_volume_file, files_in(path)))


def _is_volume_file(path: Path) -> bool:
    return is_nifti(path) or path.name.upper() == "DICOMDIR" or (path.is_file() and may_be_dicom(path))


def list_volumes(path: str | os.PathLike[str]) -> Listing:
    """What a DICOM file, a folder (searched recursively), a DICOMDIR or a NIfTI file holds; pixels are not read.

    Raises:
        VolumeError: nothing is there, or a file cannot be read at all.
        MissingExtraError: the extra `dicom` is not installed.
    """
    path = _checked(path)
    if path.is_file() and is_nifti(path):
        with quiet():
            file = read_header(path)
        spacing = np.linalg.norm(file.affine[:3, :3], axis=0).tolist()
        step = (spacing[0], spacing[1], spacing[2])
        return Listing((VolumeInfo(path.name, path.name, None, file.size[::-1], step, 1, None),), ())
    with quiet():
        candidates, skipped = candidates_in(path)
        return Listing(tuple(map(_info, candidates)), tuple(skipped))


def read_volume(
    path: str | os.PathLike[str], series: str | None = None, *, modality: str | None = None
) -> Volume:  # fmt: skip
    """Read one volume from a DICOM file, a folder (searched recursively), a DICOMDIR or a NIfTI file.

    PET in Bq/ml becomes SUV where weight, dose and times allow. NIfTI that is said to be CT is in HU if it holds air. A
    gantry's tilt is sheared right. What was done is in `source.notes`; copies of a slice that were left out, and slices
    whose brightness is doubtful, are also warned of.

    Args:
        path: file or folder.
        series: the `uid` of one of `list_volumes(path)`, or the Series Instance UID; needed where there are several.
        modality: "MR", "CT", "PT", "NM" (or "MRI", "PET", "SPECT") for files that do not say, as NIfTI; of a file
            that does say, it must be the same.

    Returns:
        The volume; slices are sorted along the normal of their plane.

    Raises:
        VolumeError: nothing or several volumes are there, or the one cannot be read as it is: missing slices, unequal
            spacing, positions used twice, no geometry, encryption, damage. The message names the file and what to do.
        MissingExtraError: the extra `dicom` is not installed.
        OutOfMemoryError: it does not fit the memory.
    """
    path = _checked(path)
    told = None if modality is None else _MODALITIES.get(modality.upper(), modality.upper())
    with memory_guard(f"{path} does not fit; resample it onto a coarser grid"), quiet():
        if path.is_file() and is_nifti(path):
            file = read_header(path)
            volume = _read_nifti(file, told)
        else:
            candidates, skipped = candidates_in(path)
            volume = _read_dicom(path, _chosen(path, candidates, skipped, series), skipped, told)
    for message in volume.source.warnings:
        warn(message)
    return volume


def _read_nifti(file: NiftiFile, modality: str | None) -> Volume:
    path = file.path
    values, notes = read_values(file)
    notes += file.warnings
    units = None
    if modality == "CT" and not file.color:
        # Only Hounsfield units reach that far below water; some CTs are shifted or scaled in conversion.
        if float(values.min()) < _BELOW_FAT:
            units = "HU"
        else:
            notes.append(f"its values are not in Hounsfield units: none is below {_BELOW_FAT:g}, as air would be")
    source = Source(str(path), path.name, file.description, "nifti", 1, tuple(notes), tuple(file.warnings))
    return Volume(values, file.affine, modality, units, None, source)


def _chosen(path: Path, candidates: list[Candidate], skipped: list[Skipped], series: str | None) -> Candidate:
    if not candidates:
        raise VolumeError(_nothing(path, skipped))
    if series is not None:
        matching = [candidate for candidate in candidates if series in (candidate.uid, candidate.uid.split("#")[0])]
        if not matching:
            raise VolumeError(f"{path}: holds no series {series}; it holds\n{_lines(candidates)}")
        exact = [candidate for candidate in matching if candidate.uid == series]
        candidates = exact or matching
    if len(candidates) > 1:
        raise VolumeError(
            f"{path}: holds {len(candidates)} volumes; choose one by its UID (--series-a or --series-b UID):\n"
            f"{_lines(candidates)}"
        )
    if candidates[0].problem is not None:
        raise candidates[0].problem
    return candidates[0]


def _lines(candidates: list[Candidate]) -> str:
    return "\n".join(f"  {_info(candidate)}" for candidate in candidates)


def _nothing(path: Path, skipped: list[Skipped]) -> str:
    if path.is_dir() and any(is_nifti(file) for file in files_in(path)):
        return f"{path}: is a folder with NIfTI files; give one of them by its name"
    if not skipped:
        return f"{path}: holds no DICOM files"
    first = skipped[0]
    others = f", and {len(skipped) - 1} more" if len(skipped) > 1 else ""
    return f"{path}: holds no volume: {first.path} is {first.reason}{others}; give the images of a series"


def _read_dicom(path: Path, candidate: Candidate, skipped: list[Skipped], told: str | None) -> Volume:
    grid, header = candidate.stack, candidate.header
    assert grid is not None
    modality = header.text("Modality") or None
    if told is not None and modality not in (None, "OT", told):
        raise VolumeError(f"{path}: is {modality}, not {told}; leave the modality out, or give the other file")
    if modality is None and told is None:
        raise VolumeError(f"{path}: does not say what it is: Modality is missing; export it again")
    values = _values(path, candidate)
    warnings = [*candidate.warnings, *doubts(grid.frames, values)]
    notes = list(warnings)
    notes.extend(Message("{file}: left out: {reason}", file=item.path, reason=item.reason) for item in skipped)
    if grid.shift is not None:
        notes.append("slices were moved onto a straight grid: the gantry was tilted")
    units = "HU" if modality == "CT" and not candidate.frames[0].pixels.color else None
    if modality == "PT" and not candidate.frames[0].pixels.color:
        units = _standardize(values, candidate, notes)
    source = Source(
        str(path), candidate.uid, _info(candidate).description, "dicom",
        len({frame.file.path for frame in candidate.frames}), tuple(notes), tuple(warnings),
    )  # fmt: skip
    frame_of_reference = header.text("FrameOfReferenceUID") or None
    told_or_read = told if modality in (None, "OT") and told is not None else modality
    return Volume(values, grid.affine, told_or_read, units, frame_of_reference, source, _link(candidate))


def _values(path: Path, candidate: Candidate) -> NDArray[Any]:
    grid = candidate.stack
    assert grid is not None
    if grid.shape[0] * grid.shape[1] * grid.shape[2] > LARGEST_VOXELS:
        raise VolumeError(f"{path}: has {grid.shape} voxels, more than are read; resample it onto a coarser grid")
    color = grid.frames[0].pixels.color
    values = np.empty((*grid.shape, 3) if color else grid.shape, np.uint8 if color else np.float32)
    air = _air(candidate)
    for place, image in read_frames(grid.frames):
        if grid.shift is None:
            values[place] = image
        else:
            moved = straightened(image, grid.shift[place], grid.shape[1:], air)
            values[place] = np.rint(moved) if color else moved
    return values


def _air(candidate: Candidate) -> float:
    """What lies outside of a sheared slice."""
    return -1000.0 if candidate.header.text("Modality") == "CT" and has_units(candidate.frames[0]) else 0.0


def _standardize(values: NDArray[Any], candidate: Candidate, notes: list[str]) -> str | None:
    """Turn a PET into SUV in place if that is possible; returns its units."""
    units = candidate.header.text("Units").upper()
    # Of several bed positions, decay is corrected to the start of the first.
    headers = (frame.file.header for frame in candidate.frames)
    first = min(headers, key=lambda header: (header.text("AcquisitionDate"), header.text("AcquisitionTime")))
    factor = suv_factor(first)
    if isinstance(factor, str):
        notes.append(f"no SUV: {factor}")
        return _UNITS.get(units)
    values *= np.float32(factor[0])
    notes.append(factor[1])
    return "SUV"


def _link(candidate: Candidate) -> Link:
    header = candidate.header
    instances = tuple(
        Instance(
            frame.file.header.text("SOPClassUID"),
            frame.file.header.text("SOPInstanceUID"),
            frame.index + 1 if frame.pixels.frames > 1 else None,
        )
        for frame in candidate.frames
    )
    return Link(
        study=header.text("StudyInstanceUID"),
        series=header.text("SeriesInstanceUID"),
        instances=instances,
        patient=copied_elements(header),
        identity=identity_of(header),
        lossy=any(_is_lossy(frame) for frame in candidate.frames),
        burned_in=any(frame.file.header.text("BurnedInAnnotation") == "YES" for frame in candidate.frames),
    )


def _is_lossy(frame: Frame) -> bool:
    return frame.file.header.text("LossyImageCompression") == "01" or frame.pixels.syntax in LOSSY_SYNTAXES
