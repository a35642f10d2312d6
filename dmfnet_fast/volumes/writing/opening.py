"""`check_output` and `open_writer`: where a result is to go, and what is there already."""

from __future__ import annotations

import errno
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Literal

from dmfnet_fast.artifacts.atomic import make_folder
from dmfnet_fast.artifacts.manifest import file_sha256
from dmfnet_fast.errors import OutputError
from dmfnet_fast.volumes.nifti import SUFFIXES, is_nifti
from dmfnet_fast.volumes.volume import Volume
from dmfnet_fast.volumes.writing.dicom import DicomWriter, check_link, unlinked
from dmfnet_fast.volumes.writing.journal import SliceJournal
from dmfnet_fast.volumes.writing.label import Label
from dmfnet_fast.volumes.writing.nifti import NiftiWriter, raw_path
from dmfnet_fast.volumes.writing.png import PngWriter
from dmfnet_fast.volumes.writing.provenance import Provenance, run_identity
from dmfnet_fast.volumes.writing.writer import VolumeWriter

Format = Literal["dicom", "nifti", "png"]
_NIFTI_NAME = "fused.nii.gz"


def check_output(
    format: Format,  # noqa: A002
    output: Path,
    grid: Path,
    sources: tuple[Path, Path],
    label: str | None = None,
) -> None:
    """Raise an error of `open_writer` that is certain before any volume is read.

    Args:
        grid: the file or folder of the volume whose grid the result is to have.
        sources: those of the volumes to fuse.
        format, output, label: as for `open_writer`.

    Raises:
        OutputError: the output is no place for this format, or among the sources; DICOM is asked for on the grid of a
            NIfTI file, or a label in another format.
    """
    _checked_target(format, output, sources, label)
    if format == "dicom" and grid.is_file() and is_nifti(grid):
        raise unlinked(str(grid))


def open_writer(
    format: Format,  # noqa: A002
    output: Path,
    grid: Volume,
    sources: tuple[Volume, Volume],
    provenance: Provenance,
    label: str | None = None,
    *,
    overwrite: bool = False,
) -> VolumeWriter:
    """Prepare to write a fused volume.

    A run that was interrupted goes on if its sources, grid, provenance, format and label are the same. Files that this
    function's writers did not make are never replaced or deleted.

    Args:
        format: "dicom", one RGB Secondary Capture file a slice; "nifti", one RGB24 file; "png", one upright image a
            slice.
        output: a folder, which is made if need be; for NIfTI also a file's name that ends in .nii or .nii.gz.
        grid: the volume whose grid the slices are on. Of DICOM's, patient, study and frame of reference are taken.
        sources: the volumes that are fused, as read. Where registration moved one, with the affine that it has in the
            other's space.
        provenance: what makes the result.
        label: text to draw into a corner of each slice; only for DICOM.
        overwrite: begin anew, and replace the files of an earlier run, whatever it was.

    Raises:
        OutputError: the folder cannot be written, holds something else, is too small or one of the sources; or DICOM
            was asked for, and the grid's volume was not read from DICOM.
        MissingExtraError: the extra `dicom` is not installed.
    """
    target = _checked_target(format, output, (Path(sources[0].source.path), Path(sources[1].source.path)), label)
    if format == "dicom":
        check_link(grid)
    drawn = None if label is None else Label(label, *grid.shape[1:])
    run = run_identity(provenance, sources, format=format, shape=grid.shape, affine=grid.affine.tolist(), label=label)
    make_folder(target.parent if format == "nifti" else target)
    journal = SliceJournal(_journal_path(format, target))
    if journal.run is not None and (overwrite or journal.run != run):
        if not overwrite:
            raise OutputError(
                f"{target}: holds a result of other inputs or settings; choose another place, or --overwrite it"
            )
        _remove_run(journal, raw_path(target) if format == "nifti" else None)
        journal = SliceJournal(journal.path)
    writer: VolumeWriter
    if format == "dicom":
        writer = DicomWriter(target, grid, sources, journal, provenance, run, drawn)
    elif format == "nifti":
        writer = NiftiWriter(target, grid, journal, provenance)
    else:
        writer = PngWriter(target, grid, journal, provenance)
    _check_space(format, target, grid, writer.done())
    if journal.run is None:
        journal.begin(run)
    return writer


def holds_result(format: Format, output: Path) -> bool:  # noqa: A002
    """Whether there is a result, finished or not, in a format and at a place as for `open_writer`."""
    return _journal_path(format, _target(format, output)).is_file()


def remove_result(format: Format, output: Path) -> None:  # noqa: A002
    """Delete what a writer of a format has written at a place as for `open_writer`; nothing else.

    Raises:
        OutputError: a file was changed since, or cannot be deleted; then nothing is deleted, if possible.
    """
    target = _target(format, output)
    _remove_run(SliceJournal(_journal_path(format, target)), raw_path(target) if format == "nifti" else None)
    if format != "nifti":
        with suppress(OSError):  # it holds something else
            target.rmdir()


def _checked_target(kind: Format, output: Path, sources: tuple[Path, Path], label: str | None) -> Path:
    """`_target`, where it is apart from the sources and there can be a label in it."""
    target = _target(kind, output)
    _check_apart(target, sources)
    if kind != "dicom" and label is not None:
        raise OutputError(f"label {label!r}: is drawn only into DICOM; leave it out, or choose DICOM")
    return target


def _target(kind: Format, output: Path) -> Path:
    """The folder, or NIfTI's file."""
    if kind == "nifti" and not is_nifti(output):
        output = output / _NIFTI_NAME
    elif kind != "nifti" and is_nifti(output):
        raise OutputError(f"{output}: is a name for NIfTI; name a folder for {kind.upper()}, or choose NIfTI")
    folder = output.parent if kind == "nifti" else output
    if folder.exists() and not folder.is_dir():
        names = f", or a name that ends in {' or '.join(SUFFIXES)}" if kind == "nifti" else ""
        raise OutputError(f"{folder}: is a file; name a folder{names}")
    if kind == "nifti" and output.is_dir():
        raise OutputError(f"{output}: is a folder with the name of a file; choose another name")
    return output


def _journal_path(kind: Format, target: Path) -> Path:
    return target.with_name(f".{target.name}.jsonl") if kind == "nifti" else target / f".dmfnet-fuse-{kind}.jsonl"


def _check_apart(target: Path, sources: tuple[Path, Path]) -> None:
    """Raise an OutputError if results would lie among the sources."""
    place = target.resolve()
    for source in sources:
        given = source.resolve()
        if place == given and given.is_file():
            raise OutputError(f"{target}: is one of the inputs; choose another name")
        if given.is_dir() and given in (place, *place.parents):
            raise OutputError(f"{target}: lies in the input folder {source}; choose a place outside of it")


def _check_space(kind: Format, target: Path, grid: Volume, done: set[int]) -> None:
    """Raise an OutputError if the disk cannot hold what is still to be written; PNGs, which shrink, are not counted."""
    if kind == "png":
        return
    slices, rows, columns = grid.shape
    needed = (slices - len(done)) * rows * columns * 3
    free = shutil.disk_usage(target.parent).free
    if free < needed:
        raise OutputError(
            f"{target}: needs {needed / 2**20:.0f} MiB, and {free / 2**20:.0f} MiB of the disk are free; make room, or "
            "choose another disk"
        ) from OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _remove_run(journal: SliceJournal, raw: Path | None) -> None:
    """Delete what an earlier run wrote, unless it was changed since.

    Raises:
        OutputError: a file was changed, or cannot be deleted.
    """
    folder = journal.path.parent
    found = [folder / part for part in journal.files if (folder / part).is_file()]
    try:
        for path in found:
            if not journal.holds(path.name, file_sha256(path)):
                raise OutputError(f"{path}: was changed since this command wrote it; move it away first")
        for path in found:
            path.unlink()
        if raw is not None:
            raw.unlink(missing_ok=True)
        journal.remove()
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(f"{folder}: cannot be overwritten: {error.strerror or error}") from error
