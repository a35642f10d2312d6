"""Formats of one file a slice."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmfnet_fast.artifacts.atomic import remove_temporaries, replacing
from dmfnet_fast.errors import OutputError
from dmfnet_fast.volumes.writing.journal import SliceJournal, sha256
from dmfnet_fast.volumes.writing.writer import VolumeWriter

_DIGITS = 4


def slice_path(folder: Path, index: int, slices: int, suffix: str) -> Path:
    """The file of a slice, numbered from 1 with leading zeros, so that names sort as slices do."""
    return folder / f"{index + 1:0{max(_DIGITS, len(str(slices)))}d}{suffix}"


class SliceFilesWriter(VolumeWriter):
    """Writes one file a slice into the folder `output`."""

    suffix: str

    def __init__(self, output: Path, shape: tuple[int, int, int], journal: SliceJournal) -> None:
        super().__init__(output, shape, journal)
        self._done = {index for index in range(shape[0]) if self._is_there(index)}

    def path(self, index: int) -> Path:
        """The file of a slice."""
        return slice_path(self.output, index, self.shape[0], self.suffix)

    def _is_there(self, index: int) -> bool:
        """Whether a slice's file is there.

        Raises:
            OutputError: something else is.
        """
        path = self.path(index)
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return False
        except OSError as error:
            raise OutputError(f"{path}: cannot be read: {error.strerror or error}; choose another folder") from error
        if not self._journal.holds(path.name, sha256(content)):
            raise OutputError(
                f"{path}: already exists and is not as this command wrote it; choose another folder, or move it away"
            )
        return True

    @abstractmethod
    def _encoded(self, index: int, rgb: NDArray[np.uint8]) -> bytes:
        """The file of a slice."""

    def _write(self, index: int, rgb: NDArray[Any]) -> None:
        path, content = self.path(index), self._encoded(index, rgb)
        self._is_there(index)
        self._journal.add(path.name, sha256(content))
        with replacing(path) as temporary:
            temporary.write_bytes(content)

    def done(self) -> set[int]:
        return {index for index in self._done if self.path(index).is_file()}

    def _finish(self) -> list[Path]:
        remove_temporaries(self.output)
        return [self.path(index) for index in range(self.shape[0])]
