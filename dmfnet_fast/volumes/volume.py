"""`Volume`: voxels with their place in space, and what is known of where they came from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmfnet_fast.errors import VolumeError

Affine = NDArray[np.float64]

# DICOM's patient axes (LPS) and NIfTI's world (RAS) differ in the sign of the first two.
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
# Allocations stop here: 4 GiB of float32, and 256 MiB for a slice, which are handled one at a time.
LARGEST_VOXELS, LARGEST_FRAME = 2**30, 2**26
# Of one file; each is an object of its own.
MOST_FRAMES = 2**16
# How far the axes of a grid may be from perpendicular (cosine of the angle between two of them).
SKEW = 0.01


@dataclass(frozen=True)
class Source:
    """Where a volume came from. Nothing in it is taken from an element that names a patient; paths may name one.

    Attributes:
        path: the file or folder that was read.
        uid: how `read_volume(series=...)` names this volume.
        description: the series' description, or the file's name for NIfTI.
        kind: "dicom" or "nifti".
        files: how many files the volume was read from.
        notes: what was done, left out or doubtful on reading, one sentence each.
        warnings: those of the notes that were also warned of.
    """

    path: str
    uid: str
    description: str
    kind: str
    files: int
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, repr=False)
class Instance:
    """The DICOM object, and the frame in it (from 1, None in a file of one image), that holds a slice."""

    sop_class: str
    sop_instance: str
    frame: int | None


@dataclass(frozen=True, repr=False)
class Link:
    """What a writer needs to put a result beside its sources; never logged, so its repr is empty.

    Attributes:
        study: Study Instance UID.
        series: Series Instance UID.
        instances: the source of each slice as it was read, in that order; resampling leaves them as they are.
        patient: a pydicom Dataset of the elements to copy: patient, study and body part.
        identity: what tells patients apart, by keyword; empty values are left out.
        lossy: whether an image was ever compressed with loss.
        burned_in: whether an image says that text is burned into it.
    """

    study: str
    series: str
    instances: tuple[Instance, ...]
    patient: Any
    identity: dict[str, str]
    lossy: bool
    burned_in: bool

    def __repr__(self) -> str:
        return "Link(...)"


@dataclass(frozen=True)
class ValueStatistics:
    """What of a gray volume's values decides how they are shown.

    Attributes:
        low: 1st percentile of all values.
        high: 99.8th percentile of those that are brighter than the background.
        dark: 5th percentile of those that are not 0.
    """

    low: float
    high: float
    dark: float


@dataclass(frozen=True, eq=False)
class Volume:
    """A stack of parallel, evenly spaced slices; neither it nor its values are to be changed, as others hold them too.

    Attributes:
        values: (slices, rows, columns) float32, or (slices, rows, columns, 3) uint8 for color.
        affine: 4x4; takes (slice, row, column, 1), counted from 0 at voxel centers, to (x, y, z, 1) in mm in DICOM's
            patient axes, LPS: x to the patient's left, y to the back, z to the head. Its axes are perpendicular.
        modality: DICOM's word, "MR", "CT", "PT", "NM" or another; None where the file does not say (NIfTI).
        units: "HU", "SUV", "Bq/ml", or None where the values have no unit.
        frame_of_reference: Frame of Reference UID, None where there is none.
        source: where the volume came from.
        link: what a DICOM writer needs; None for NIfTI and for computed volumes.
        statistics: of a resampled volume, those of its values before, so that it is shown as it would be on its own
            grid; None where they are those of `values`, and for color. Whoever replaces the values drops them.
    """

    values: NDArray[Any]
    affine: Affine
    modality: str | None
    units: str | None
    frame_of_reference: str | None
    source: Source
    link: Link | None = field(default=None, repr=False)
    statistics: ValueStatistics | None = None

    def __post_init__(self) -> None:
        color = self.values.ndim == 4
        expected = np.dtype(np.uint8) if color else np.dtype(np.float32)
        if self.values.ndim not in (3, 4) or (color and self.values.shape[3] != 3) or self.values.dtype != expected:
            raise VolumeError(
                f"{self.source.path}: a volume is (slices, rows, columns) float32 or, in color, "
                f"(slices, rows, columns, 3) uint8, not {self.values.shape} {self.values.dtype}"
            )
        check_affine(self.affine, self.source.path)

    def __repr__(self) -> str:
        size = "x".join(map(str, self.shape))
        return f"Volume({size}, {self.modality or 'unknown modality'}, {self.source.description!r})"

    @property
    def shape(self) -> tuple[int, int, int]:
        """(slices, rows, columns)."""
        slices, rows, columns = self.values.shape[:3]
        return slices, rows, columns

    @property
    def color(self) -> bool:
        """Whether voxels are RGB."""
        return self.values.ndim == 4

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Distance in mm between neighboring (slices, rows, columns)."""
        slices, rows, columns = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(slices), float(rows), float(columns)

    @property
    def ras_affine(self) -> Affine:
        """NIfTI's affine: takes (column, row, slice, 1) to (x, y, z, 1) in mm, RAS; for `values.T`."""
        return np.asarray(LPS_TO_RAS @ self.affine[:, [2, 1, 0, 3]])


def check_affine(affine: Affine, name: str) -> None:
    """Raise a VolumeError unless `affine` is a grid of perpendicular axes and plausible spacing."""
    if affine.shape != (4, 4) or not np.isfinite(affine).all() or affine[3].tolist() != [0, 0, 0, 1]:
        raise VolumeError(f"{name}: has no usable position in space; export it again with its geometry")
    axes = affine[:3, :3]
    lengths = np.linalg.norm(axes, axis=0)
    if not ((lengths > 0.01) & (lengths < 100)).all():
        spacing = " x ".join(f"{length:.4g}" for length in lengths)
        raise VolumeError(f"{name}: has voxels of {spacing} mm, which no head is scanned with; check its units")
    units = axes / lengths
    if np.abs(units.T @ units - np.eye(3)).max() > SKEW:
        raise VolumeError(f"{name}: has axes that are not perpendicular; resample it onto a straight grid first")
