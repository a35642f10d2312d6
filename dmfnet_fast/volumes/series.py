"""Which volumes a set of DICOM files holds."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from dmfnet_fast.errors import VolumeError, require
from dmfnet_fast.volumes.dicom_file import PATIENT, SHARED, STUDY, DicomFile, looks_like_dicom, read_file
from dmfnet_fast.volumes.elements import Elements, damage
from dmfnet_fast.volumes.frames import DIFFERENCES, Frame, frames_of, why_skipped
from dmfnet_fast.volumes.messages import Message
from dmfnet_fast.volumes.pixels import read_frame
from dmfnet_fast.volumes.stacking import SAME_POSITION, Stack, heights, stack

# A series of at least this many slices is not expected to hold a single one of another size or direction.
_FEW = 4


@dataclass(frozen=True)
class Skipped:
    """A file that is part of no volume, and why."""

    path: str
    reason: str


@dataclass
class Candidate:
    """One volume that could be read, or the reason why it cannot."""

    frames: list[Frame]
    stack: Stack | None = None
    problem: VolumeError | None = None
    warnings: list[str] = field(default_factory=list)
    uid: str = ""
    label: str = ""

    @property
    def header(self) -> Elements:
        return self.frames[0].file.header


@dataclass
class _Series:
    """Files that say they are of one series; `problem` is the first that was found with one of them."""

    header: Elements
    frames: list[Frame] = field(default_factory=list)
    problem: VolumeError | None = None


def files_in(path: Path) -> Iterator[Path]:
    """Regular files in a folder and below, in order; hidden ones and DICOMDIRs left out.

    Raises:
        VolumeError: a folder cannot be read, so that it is unknown what is missing.
    """

    def refuse(error: OSError) -> NoReturn:
        raise VolumeError(
            f"{error.filename}: cannot be read: {error.strerror}; make it readable, or take it out"
        ) from error

    for folder, folders, names in os.walk(path, onerror=refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            file = Path(folder) / name
            if not name.startswith(".") and name.upper() != "DICOMDIR" and file.is_file():
                yield file


def _listed(directory: DicomFile) -> Iterator[Path]:
    """The files that a DICOMDIR names, whatever the case of their names on this disk.

    Raises:
        VolumeError: one is missing, or lies outside the DICOMDIR's folder.
    """
    folder = directory.path.parent
    for record in directory.header.items("DirectoryRecordSequence"):
        name = record.text("ReferencedFileID")
        if not name or record.text("DirectoryRecordType").upper() != "IMAGE":
            continue
        parts = name.split("\\")
        if any(part in ("", ".", "..") or "/" in part for part in parts):
            raise VolumeError(f"{directory.path}: names a file outside its folder; give the folder itself")
        spellings = (folder.joinpath(*parts), folder.joinpath(*(part.lower() for part in parts)))
        found = next((spelling for spelling in spellings if spelling.is_file()), None)
        if found is None:
            raise VolumeError(f"{directory.path}: names {spellings[0]}, which is missing; copy the whole medium again")
        yield found


def candidates_in(path: Path) -> tuple[list[Candidate], list[Skipped]]:
    """The volumes in a DICOM file, a DICOMDIR or a folder, and the files that belong to none.

    Raises:
        VolumeError: a file cannot be read at all, so that it is unknown what it would be part of.
    """
    skipped: list[Skipped] = []
    series: dict[tuple[str, ...], _Series] = {}
    for file in _files(path, skipped):
        reason = None if file.problem is not None else why_skipped(file)
        if reason is not None:
            skipped.append(Skipped(str(file.path), reason))
            continue
        _add(series, file)
    candidates = [candidate for one in series.values() for candidate in _volumes_of(one)]
    several = len(candidates) > 1
    candidates = [one for one in candidates if not (several and _is_lone(one, candidates, skipped))]
    _name(candidates)
    return candidates, skipped


def _files(path: Path, skipped: list[Skipped]) -> Iterator[DicomFile]:
    if not path.is_dir():
        file = read_file(path)
        if file.header.get("DirectoryRecordSequence") is None:
            yield file
            return
        for listed in _listed(file):
            yield read_file(listed)
        return
    for found in files_in(path):
        try:
            file = read_file(found)
        except VolumeError:
            if looks_like_dicom(found):
                raise
            skipped.append(Skipped(str(found), "not DICOM"))
            continue
        yield file


def identity_of(header: Elements) -> dict[str, str]:
    """What tells patients apart, without empty values; names by their letters alone."""
    values = {keyword: header.text(keyword) for keyword in PATIENT if keyword != "PatientSex"}
    values["PatientName"] = " ".join(values["PatientName"].replace("^", " ").replace("=", " ").split()).casefold()
    return {keyword: value for keyword, value in values.items() if value}


def _add(series: dict[tuple[str, ...], _Series], file: DicomFile) -> None:
    header = file.header
    patient = "\n".join(f"{keyword}={value}" for keyword, value in identity_of(header).items())
    key = patient, header.text("StudyInstanceUID"), header.text("SeriesInstanceUID")
    entry = series.setdefault(key, _Series(header))
    try:
        if file.problem is not None:
            raise file.problem
        entry.frames.extend(frames_of(file))
    except VolumeError as error:
        entry.problem = entry.problem or error


def _alike(one: Frame, other: Frame) -> bool:
    """Whether frames could be slices of one volume: same size, spacing, direction, space and kind of pixels."""
    a, b = one.pixels, other.pixels
    return (
        (a.rows, a.columns, a.color) == (b.rows, b.columns, b.color)
        and bool(np.allclose(one.spacing, other.spacing, rtol=1e-3, atol=0))
        and bool(np.abs(one.orientation - other.orientation).max() < 1e-3)
        and one.file.header.text("FrameOfReferenceUID") == other.file.header.text("FrameOfReferenceUID")
    )


def _volumes_of(series: _Series) -> list[Candidate]:
    if series.problem is not None:
        return [Candidate([*series.frames, *_unplaced(series)], problem=series.problem)]
    groups: list[list[Frame]] = []
    for frame in series.frames:
        for group in groups:
            if _alike(group[0], frame):
                group.append(frame)
                break
        else:
            groups.append([frame])
    largest = max(groups, key=len)
    odd = next((group for group in groups if len(group) == 1 and len(largest) >= _FEW), None)
    if odd is not None:
        error = VolumeError(
            f"{odd[0].name}: differs from the others of its series in size, spacing, direction or frame of reference; "
            "take it out, or export the series again"
        )
        return [Candidate(series.frames, problem=error)]
    return [candidate for group in groups for candidate in _stacks(group)]


def _unplaced(series: _Series) -> list[Frame]:
    """A frame that stands for a series none of whose files has a usable one."""
    if series.frames:
        return []
    empty = DicomFile(series.header.path, series.header, None)
    return [Frame(empty, 0, np.zeros(3), np.eye(3)[:2], (1.0, 1.0), None, 1.0, 0.0, "")]


def _stacks(frames: list[Frame]) -> list[Candidate]:
    """One candidate, or several where frames at one position differ in something that tells them apart."""
    try:
        frames, dropped = _without_copies(frames, same_object=True)
        parts = _split(frames)
        candidates = [Candidate(part, label=label) for part, label in parts]
    except VolumeError as error:
        return [Candidate(frames, problem=error)]
    for candidate in candidates:
        try:
            candidate.frames, copies = _without_copies(candidate.frames, same_object=False)
            candidate.warnings = [*dropped, *copies]
            _check_positions(candidate.frames)
            _check_count(candidate.frames)
            candidate.stack = stack(candidate.frames)
            candidate.frames = list(candidate.stack.frames)
        except VolumeError as error:
            candidate.problem = error
    return candidates


def _positions(frames: Sequence[Frame]) -> list[list[Frame]]:
    """Frames by position along the normal, in order."""
    at = heights(frames)
    order = np.argsort(at, kind="stable")
    groups: list[list[Frame]] = [[frames[order[0]]]]
    for before, index in pairwise(order):
        if at[index] - at[before] > SAME_POSITION:
            groups.append([])
        groups[-1].append(frames[index])
    return groups


def _without_copies(frames: list[Frame], same_object: bool) -> tuple[list[Frame], list[str]]:
    """Leave out frames that repeat another one bit for bit: those with its SOP Instance UID, or any at its position.

    Raises:
        VolumeError: two files have one SOP Instance UID and different pixels.
    """
    dropped: dict[int, str] = {}
    for group in _positions(frames):
        for number, frame in enumerate(group):
            for original in group[:number]:
                if id(original) in dropped or (same_object and not _same_object(original, frame)):
                    continue
                if np.array_equal(read_frame(original), read_frame(frame)):
                    dropped[id(frame)] = Message(
                        "{file}: is a copy of {other}; left out", file=frame.name, other=original.name
                    )
                    break
                if same_object:
                    raise VolumeError(
                        f"{frame.name}: has the SOP Instance UID of {original.name} and another image; "
                        "take one of them out"
                    )
    return [frame for frame in frames if id(frame) not in dropped], list(dropped.values())


def _same_object(one: Frame, other: Frame) -> bool:
    instances = {frame.file.header.text("SOPInstanceUID") for frame in (one, other)}
    return one.file.path != other.file.path and one.index == other.index and len(instances) == 1 and instances != {""}


def _split(frames: list[Frame]) -> list[tuple[list[Frame], str]]:
    """Frames divided until no two of a part are at one position, as far as their headers can tell them apart.

    Values that appear once at each position are preferred; a division that leaves positions out is the second choice.
    """
    positions = _positions(frames)
    if all(len(group) == 1 for group in positions):
        return [(frames, "")]
    for complete in (True, False):
        for name in DIFFERENCES:
            parts: dict[object, list[Frame]] = {}
            for frame in frames:
                parts.setdefault(frame.differences.get(name), []).append(frame)
            if len(parts) > 1 and _divides(parts, len(positions), complete):
                return [
                    (part, " ".join(filter(None, (_label(name, value), label))))
                    for value, several in parts.items()
                    for part, label in _split(several)
                ]
    return [(frames, "")]


def _divides(parts: dict[object, list[Frame]], positions: int, complete: bool) -> bool:
    for part in parts.values():
        groups = _positions(part)
        counts = {len(group) for group in groups}
        if complete and (len(groups) != positions or len(counts) != 1):
            return False
        if not complete and counts != {1}:
            return False
    return True


def _label(name: str, value: object) -> str:
    parts = value if isinstance(value, tuple) else (value,)
    text = "/".join(str(part).replace("\\", "/") for part in parts if part)
    return f"{name} {text}" if text else ""


def _check_positions(frames: list[Frame]) -> None:
    for group in _positions(frames):
        if len(group) > 1:
            raise VolumeError(
                f"{group[1].name}: lies where {group[0].name} does, with another image, and nothing tells their "
                "volumes apart; take one of them out, or export only one of the volumes"
            )


def _check_count(frames: list[Frame]) -> None:
    """PET headers say how many slices there should be."""
    header = frames[0].file.header
    expected = header.number("NumberOfSlices")
    if header.text("Modality") == "PT" and expected is not None and len(frames) < expected and len(frames) > 1:
        raise VolumeError(
            f"{header.path}: its series should have {expected:g} slices and {len(frames)} are here; copy or export "
            "the whole series again"
        )


def _is_lone(candidate: Candidate, candidates: list[Candidate], skipped: list[Skipped]) -> bool:
    """Whether to leave out a single slice beside other volumes: not if it could be a lost slice of one of them."""
    lone = candidate.problem is None and len(candidate.frames) == 1
    lone = lone and not any(
        other is not candidate and other.problem is None and _alike(other.frames[0], candidate.frames[0])
        for other in candidates
    )
    if lone:
        skipped.append(Skipped(candidate.frames[0].name, "a single slice, such as a localizer"))
    return lone


def _name(candidates: list[Candidate]) -> None:
    """Give each candidate a UID to choose it by: its series', numbered where several share that."""
    totals: dict[str, int] = {}
    for candidate in candidates:
        candidate.uid = candidate.header.text("SeriesInstanceUID")
        totals[candidate.uid] = totals.get(candidate.uid, 0) + 1
    counts: dict[str, int] = {}
    for candidate in candidates:
        series = candidate.uid
        if totals[series] > 1:
            counts[series] = counts.get(series, 0) + 1
            candidate.uid = f"{series}#{counts[series]}"


def copied_elements(header: Elements) -> Any:
    """A Dataset of what a result shares with its source: patient, study and body part."""
    pydicom = require("pydicom", "dicom")
    with damage(header.path, "its patient or study cannot be understood"):
        copied = pydicom.Dataset()
        for keyword in ("SpecificCharacterSet", *PATIENT, *STUDY, *SHARED):
            if keyword in header.dataset:
                copied[keyword] = header.dataset[keyword]
        return copied
