"""NIfTI in RGB24. Slices lie in a raw file beside the result until all are there."""

from __future__ import annotations

import gzip
import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from dmfnet_fast.artifacts.atomic import replacing
from dmfnet_fast.artifacts.manifest import file_sha256
from dmfnet_fast.errors import OutputError, require
from dmfnet_fast.volumes.volume import Volume
from dmfnet_fast.volumes.writing.journal import SliceJournal, sha256, slice_part
from dmfnet_fast.volumes.writing.provenance import Provenance
from dmfnet_fast.volumes.writing.writer import VolumeWriter

RGB24 = np.dtype([("R", np.uint8), ("G", np.uint8), ("B", np.uint8)])
# Three times as fast as gzip's default; colors compress badly either way.
_COMPRESSION = 1
_COMMENT = 6  # code of an extension that holds text
_DESCRIPTION = "research only, not for diagnosis; dmfnet-fast"


class NiftiWriter(VolumeWriter):
    """Writes one `.nii` or `.nii.gz` file, `output`."""

    def __init__(self, output: Path, grid: Volume, journal: SliceJournal, provenance: Provenance) -> None:
        super().__init__(output, grid.shape, journal)
        require("nibabel", "dicom")
        self._affine = grid.ras_affine
        self._provenance = provenance
        self._lock = threading.Lock()
        self._raw = raw_path(output)
        self._slice_bytes = self.shape[1] * self.shape[2] * 3
        self._done = set(range(self.shape[0])) if self._is_there() else self._found()

    def _is_there(self) -> bool:
        """Whether the finished file is there.

        Raises:
            OutputError: something else is.
        """
        try:
            digest = file_sha256(self.output)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise OutputError(
                f"{self.output}: cannot be read: {error.strerror or error}; choose another name"
            ) from error
        if not self._journal.holds(self.output.name, digest):
            raise OutputError(
                f"{self.output}: already exists and is not as this command wrote it; choose another name, or move it"
            )
        return True

    def _found(self) -> set[int]:
        """The slices in the raw file of an interrupted run."""
        found: set[int] = set()
        if not self._raw.exists():
            return found
        if self._journal.run is None:
            raise OutputError(f"{self._raw}: already exists, from a run that is not known; delete it")
        with self._guarded(), self._raw.open("rb") as file:
            for index in range(self.shape[0]):
                content = file.read(self._slice_bytes)
                if len(content) == self._slice_bytes and self._journal.holds(slice_part(index), sha256(content)):
                    found.add(index)
        return found

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OutputError(f"{self._raw}: cannot be used: {error.strerror or error}") from error

    def _write(self, index: int, rgb: NDArray[Any]) -> None:
        content = np.ascontiguousarray(rgb).tobytes()
        self._journal.add(slice_part(index), sha256(content))
        # Written, not mapped: a full disk is an error here, and would end the process there.
        with self._lock, self._guarded(), self._raw.open("r+b" if self._raw.exists() else "w+b") as file:
            file.seek(index * self._slice_bytes)
            file.write(content)

    def _finish(self) -> list[Path]:
        # Looked for again: something else may have come there since.
        if not self._is_there():
            self._assemble()
        self._raw.unlink(missing_ok=True)
        return [self.output]

    def _assemble(self) -> None:
        voxels = np.memmap(self._raw, RGB24, "r", shape=self.shape)
        image = self._image(voxels.T)
        with replacing(self.output) as temporary:
            with temporary.open("w+b") as file:
                if self.output.name.lower().endswith(".gz"):
                    with gzip.GzipFile("", "wb", _COMPRESSION, cast(io.BufferedIOBase, file), mtime=0) as packed:
                        image.to_stream(packed)
                else:
                    image.to_stream(file)
            self._journal.add(self.output.name, file_sha256(temporary))

    def _image(self, voxels: NDArray[Any]) -> Any:
        nibabel = require("nibabel", "dicom")
        image = nibabel.Nifti1Image(voxels, self._affine)
        image.set_sform(self._affine, "scanner")
        image.set_qform(self._affine, "scanner")
        image.header.set_xyzt_units("mm")
        image.header["descrip"] = f"{_DESCRIPTION} {self._provenance.version}"[:79]
        image.header.extensions.append(nibabel.nifti1.Nifti1Extension(_COMMENT, self._provenance.to_json().encode()))
        return image


def raw_path(output: Path) -> Path:
    """Where slices lie until all are there."""
    return output.with_name(f".{output.name}.part")
