"""What is kept of a fused volume while its slices pass: their means, two cuts across them, and a few whole slices.

Means and cuts show whether slices pump, that is, differ in brightness from their neighbors although the sources do not.
"""

from __future__ import annotations

import base64
import zlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmfnet_fast.artifacts.json_lines import JsonLines
from dmfnet_fast.images.color import luminance
from dmfnet_fast.volumes.fusing import Image
from dmfnet_fast.volumes.measures import extent, foreground
from dmfnet_fast.volumes.volume import Volume

# Fused slices may change in brightness from one to the next this many times as unevenly as their sources.
PUMPING = 2.0
_WHOLE_SLICES = 6


@dataclass(frozen=True)
class Places:
    """Where to look: whole slices, and the row and the column through which the cuts across slices go."""

    slices: tuple[int, ...]
    row: int
    column: int


def places_in(volume: Volume) -> Places:
    """Slices evenly spaced over the head, and the middle of it."""
    slices, rows, columns = extent(foreground(volume), (0.02, 0.5, 0.98))
    whole = np.unique(np.linspace(slices[0], slices[2], _WHOLE_SLICES).round().astype(int))
    return Places(tuple(whole.tolist()), int(rows[1]), int(columns[1]))


class Looks:
    """Collects what the report shows of fused slices, and keeps it in a file for a run that goes on.

    Args:
        path: the file.
        run: the identity of the run; what the file has of another one is dropped.
        shape: of the fused volume.
        places: where to look.

    Attributes:
        means: (slices, 3), mean luminance 0..255 of the images a, b and fused; NaN where not known.
        whole: the whole slices, as their images a, b and fused, by number.
        along_row: (slices, columns, 3) uint8, the fused cut through the row.
        along_column: (slices, rows, 3) uint8, the fused cut through the column.
    """

    def __init__(self, path: Path, run: str, shape: tuple[int, int, int], places: Places) -> None:
        slices, rows, columns = shape
        self.places = places
        self.means = np.full((slices, 3), np.nan)
        self.whole: dict[int, tuple[Image, Image, Image]] = {}
        self.along_row = np.zeros((slices, columns, 3), np.uint8)
        self.along_column = np.zeros((slices, rows, 3), np.uint8)
        self._file = JsonLines(path)
        start = {"run": run}
        entries = self._file.read()
        if entries[:1] != [start]:
            entries = [start]
            self._file.restart(start)
        for entry in entries[1:]:
            with suppress(ValueError, KeyError, TypeError, IndexError, zlib.error):
                self._restore(entry)

    def _restore(self, entry: dict[str, Any]) -> None:
        number = int(entry["slice"])
        cuts = np.frombuffer(zlib.decompress(base64.b64decode(entry["cuts"])), np.uint8).reshape(-1, 3)
        columns = self.along_row.shape[1]
        self.along_row[number], self.along_column[number] = cuts[:columns], cuts[columns:]
        self.means[number] = entry["means"]

    @property
    def known(self) -> set[int]:
        """The slices of which everything is known that is not kept in memory alone."""
        return set(np.flatnonzero(np.isfinite(self.means).all(axis=1)).tolist())

    def add(self, number: int, a: Image, b: Image, fused: Image) -> None:
        """Look at one slice. Safe to call from several threads.

        Raises:
            OutputError: the file cannot be written.
        """
        if number in self.places.slices:
            self.whole[number] = a, b, fused
        row, column = fused[self.places.row], fused[:, self.places.column]
        means = [round(float(luminance(image).mean()), 4) for image in (a, b, fused)]
        cuts = base64.b64encode(zlib.compress(np.concatenate([row, column]).tobytes(), 1)).decode()
        self._file.append({"slice": number, "means": means, "cuts": cuts})
        self.along_row[number], self.along_column[number] = row, column
        self.means[number] = means


def pumping(means: NDArray[np.float64]) -> float:
    """How unevenly the brightness of fused slices changes compared with that of their sources.

    Root mean square of the second difference of the slices' mean luminance, over the larger one of the sources'.

    Args:
        means: (slices, 3), of a, b and fused.

    Returns:
        1 where the fused volume is as even as its less even source; 0 for fewer than three slices.
    """
    if len(means) < 3:
        return 0.0
    a, b, fused = np.sqrt((np.diff(means, 2, axis=0) ** 2).mean(axis=0))
    # A hundredth of a gray level is what rounding to 8 bits leaves.
    return float(fused / max(a, b, 0.01))
