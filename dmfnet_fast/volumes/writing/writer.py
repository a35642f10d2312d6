"""`VolumeWriter`: what all writers of volumes have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmfnet_fast.errors import OutputError
from dmfnet_fast.volumes.writing.journal import SliceJournal


class VolumeWriter(ABC):
    """Writes the slices of one fused volume, in any order and from several threads.

    Args:
        output: the folder or file to write.
        shape: slices, rows and columns of the volume.
        journal: of this run.
    """

    def __init__(self, output: Path, shape: tuple[int, int, int], journal: SliceJournal) -> None:
        self.output = output
        self.shape = shape
        self._journal = journal
        self._done: set[int] = set()

    @property
    def run(self) -> str:
        """The identity of the run: the same for the same sources, provenance and format."""
        assert self._journal.run is not None, "`open_writer` begins the journal"
        return self._journal.run

    def write(self, index: int, rgb: NDArray[np.uint8]) -> None:
        """Write one slice, which is on disk when this returns. One that is there already is left as it is.

        Args:
            index: of the slice, from 0.
            rgb: (rows, columns, 3).

        Raises:
            ValueError: the index or the shape is not one of this volume.
            OutputError: the slice cannot be written, or a file that is not of this run lies where it belongs.
        """
        if not 0 <= index < self.shape[0] or rgb.shape != (*self.shape[1:], 3) or rgb.dtype != np.uint8:
            raise ValueError(f"slice {index}, {rgb.shape} {rgb.dtype}: not of a volume of {self.shape} in RGB")
        if index not in self._done:
            self._write(index, rgb)
            self._done.add(index)

    @abstractmethod
    def _write(self, index: int, rgb: NDArray[Any]) -> None:
        """`write`, with arguments that fit."""

    def done(self) -> set[int]:
        """The slices that are on disk, those of an interrupted run with the same settings and sources included."""
        return set(self._done)

    def finish(self) -> list[Path]:
        """Complete the volume.

        Returns:
            The files that hold it.

        Raises:
            OutputError: a file cannot be written, or a slice is missing.
        """
        missing = sorted(set(range(self.shape[0])) - self.done())
        if missing:
            raise OutputError(f"{self.output}: is incomplete: slice {missing[0] + 1} was not written or was removed")
        return self._finish()

    @abstractmethod
    def _finish(self) -> list[Path]:
        """`finish`, once all slices are there."""
