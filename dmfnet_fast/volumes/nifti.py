"""NIfTI files, `.nii` and `.nii.gz`, read slice by slice."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from dmfnet_fast.errors import VolumeError, require
from dmfnet_fast.volumes.elements import damage
from dmfnet_fast.volumes.messages import Message
from dmfnet_fast.volumes.volume import LARGEST_FRAME, LARGEST_VOXELS, LPS_TO_RAS, Affine, check_affine

SUFFIXES = (".nii", ".nii.gz")
# How far apart, in mm, both places of a file may be before that is worth a warning.
_SAME = 0.5
# Deflate compresses by this at most.
_LARGEST_RATIO = 1032
_BLOCK = 2**20
_MILLIMETERS = {"meter": 1000.0, "mm": 1.0, "micron": 0.001, "unknown": 1.0}


def is_nifti(path: Path) -> bool:
    """Whether a file is NIfTI by its name."""
    return path.name.lower().endswith(SUFFIXES)


def stem(path: Path) -> str:
    """The name of a NIfTI file without its suffix."""
    suffix = next(suffix for suffix in SUFFIXES[::-1] if path.name.lower().endswith(suffix))
    return path.name[: -len(suffix)]


@dataclass(frozen=True, repr=False)
class NiftiFile:
    """A checked header: (columns, rows, slices), how values are stored, and where."""

    path: Path
    size: tuple[int, int, int]
    dtype: np.dtype[Any]
    color: bool
    offset: int
    slope: float
    intercept: float
    affine: Affine
    description: str
    warnings: list[str]


@contextmanager
def _open(path: Path) -> Iterator[BinaryIO]:
    try:
        with path.open("rb") as file:
            if not path.name.lower().endswith(".gz"):
                yield file
                return
            with gzip.open(file, "rb") as inflated:
                yield cast(BinaryIO, inflated)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise VolumeError(f"{path}: is truncated or damaged: it cannot be decompressed; copy it again") from error
    except OSError as error:
        raise VolumeError(f"{path}: cannot be read: {error.strerror or error}") from error


def read_header(path: Path) -> NiftiFile:
    """Read and check a header; nothing is allocated for voxels.

    Raises:
        VolumeError: the file is no NIfTI, damaged, truncated, has no position in space or more than one volume.
    """
    nibabel = require("nibabel", "dicom")
    with _open(path) as stream:
        start = stream.read(540)
    with damage(path, "is not NIfTI, or its header is damaged"):
        kinds = {348: nibabel.Nifti1Header, 540: nibabel.Nifti2Header}
        lengths = {int.from_bytes(start[:4], "little"), int.from_bytes(start[:4], "big")}
        length = next(iter(lengths & set(kinds)))
        header = kinds[length](start[:length], check=True)
        if b"n+" not in bytes(header["magic"]):
            raise VolumeError(f"{path}: keeps header and voxels in two files; convert it to one .nii file")
        shape = tuple(map(int, header.get_data_shape()))
        dtype = header.get_data_dtype()
        # As it stands in the file; the check above makes it fit.
        bits = int(kinds[length](start[:length], check=False)["bitpix"])
        slope, intercept = (float("nan") if part is None else float(part) for part in header.get_slope_inter())
        offset = int(header.get_data_offset())
        affine = np.asarray(header.get_best_affine(), np.float64)
        placed = int(header["sform_code"]) > 0 or int(header["qform_code"]) > 0
        scale = _MILLIMETERS[header.get_xyzt_units()[0]]
        apart = _apart(header, shape) * scale
    size = _size(path, shape)
    color = dtype.names is not None and dtype.names[:3] == ("R", "G", "B")
    if not color and (dtype.names is not None or dtype.kind not in "uif" or dtype.itemsize > 8):
        raise VolumeError(f"{path}: has voxels of type {dtype}, which are not read; convert them to float32")
    if bits != 8 * dtype.itemsize:
        raise VolumeError(
            f"{path}: contradicts itself on the type of its voxels ({dtype}, {bits} bits); convert it again"
        )
    if not placed:
        raise VolumeError(f"{path}: has neither qform nor sform, so its place is unknown; convert it from DICOM again")
    _check_length(path, size, dtype.itemsize, offset)
    return NiftiFile(
        path=path,
        size=size,
        dtype=dtype,
        color=color,
        offset=offset,
        slope=slope if np.isfinite(slope) and slope != 0 else 1.0,
        intercept=intercept if np.isfinite(slope) and np.isfinite(intercept) else 0.0,
        affine=_lps(path, affine, scale),
        description=path.name,
        warnings=[] if apart < _SAME else [_two_places(path, apart)],
    )


def _two_places(path: Path, apart: float) -> str:
    return Message(
        f"{{file}}: says in two ways where it lies, {apart:.3g} mm apart (sform and qform), and the sform was used: "
        "look at the alignment",
        file=path,
    )


def _apart(header: Any, shape: tuple[int, ...]) -> float:
    """The largest distance between where sform and qform put a voxel, 0 where there is only one of them."""
    sform, qform = header.get_sform(coded=True)[0], header.get_qform(coded=True)[0]
    if sform is None or qform is None or not np.isfinite([sform, qform]).all():
        return 0.0
    corners = np.array([[*corner, 1] for corner in np.ndindex(2, 2, 2)]) * [*(*shape, 1, 1, 1)[:3], 1]
    return float(np.linalg.norm((corners @ (sform - qform).T)[:, :3], axis=1).max())


def _size(path: Path, shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Columns, rows and slices."""
    if len(shape) > 3 and any(extra != 1 for extra in shape[3:]):
        raise VolumeError(
            f"{path}: holds {int(np.prod(shape[3:]))} volumes ({len(shape)}-D); write the one to fuse, or their mean, "
            "to a file of its own, for example with fslroi, fslmaths -Tmean or nibabel.four_to_three"
        )
    size = (*shape[:3], 1, 1)[:3] if len(shape) >= 2 else (0, 0, 0)
    area = size[0] * size[1]
    if min(size) < 1 or area > LARGEST_FRAME or area * size[2] > LARGEST_VOXELS:
        raise VolumeError(f"{path}: claims the size {shape}, which is damage or too large; copy or convert it again")
    return size[0], size[1], size[2]


def _check_length(path: Path, size: tuple[int, int, int], itemsize: int, offset: int) -> None:
    needed = offset + size[0] * size[1] * size[2] * itemsize
    held = path.stat().st_size * (_LARGEST_RATIO if path.name.lower().endswith(".gz") else 1)
    if offset < 0 or held < needed:
        raise VolumeError(f"{path}: is truncated or damaged: its header claims {needed} bytes; copy it again")


def _lps(path: Path, affine: Affine, scale: float) -> Affine:
    """NIfTI's (column, row, slice) to RAS as (slice, row, column) to LPS."""
    if not np.isfinite(affine).all():
        raise VolumeError(f"{path}: has no usable position in space; convert it from DICOM again")
    affine = np.diag([scale, scale, scale, 1.0]) @ affine
    result = np.asarray((LPS_TO_RAS @ affine)[:, [2, 1, 0, 3]])
    check_affine(result, str(path))
    return result


def read_values(file: NiftiFile) -> tuple[NDArray[Any], list[str]]:
    """The voxels, (slices, rows, columns) float32 or (slices, rows, columns, 3) uint8, and what was done to them.

    Raises:
        VolumeError: the file ends early, or its values overflow.
    """
    columns, rows, slices = file.size
    count = columns * rows * file.dtype.itemsize
    color = (3,) if file.color else ()
    values = np.empty((slices, rows, columns, *color), np.uint8 if file.color else np.float32)
    replaced = 0
    with _open(file.path) as stream:
        stream.seek(file.offset)
        for number in range(slices):
            data = stream.read(count)
            if len(data) < count:
                raise VolumeError(f"{file.path}: ends after {number} of {slices} slices; copy or convert it again")
            image = np.frombuffer(data, file.dtype).reshape(rows, columns)
            if file.color:
                values[number] = np.stack([image[name] for name in ("R", "G", "B")], axis=-1)
                continue
            with np.errstate(over="ignore", invalid="ignore"):
                values[number] = image.astype(np.float64) * file.slope + file.intercept
            holes = np.isnan(values[number])
            replaced += int(holes.sum())
            values[number][holes] = 0
            if np.isinf(values[number]).any():
                raise VolumeError(f"{file.path}: has infinite values in slice {number}; replace them first")
        # The checksum of compressed data comes last.
        while stream.read(_BLOCK):
            pass
    return values, [f"{replaced} voxels that are no numbers (NaN) were set to 0"] if replaced else []
