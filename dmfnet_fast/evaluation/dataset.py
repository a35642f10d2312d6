"""Pairs to evaluate on, in the layout that training reads."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dmfnet_fast.colour import luminance, value_range
from dmfnet_fast.errors import PictureError
from dmfnet_fast.fuser import Range, Source
from dmfnet_fast.metrics import SMALLEST
from dmfnet_fast.pairs import pair_folders
from dmfnet_fast.phantom import MODALITIES
from dmfnet_fast.pictures import Pixels, read_picture, to_8_bit

Grey = NDArray[np.uint8]


def grey(pixels: Pixels, values: Range) -> Grey:
    """Luminance (H, W) of a picture as it would be saved in 8 bits: of that is scored."""
    return luminance(to_8_bit(pixels, values))


@dataclass(frozen=True)
class Pair:
    """A pair of files: `a` the MRI, `b` the other modality. Read when asked for, and kept."""

    modality: str
    name: str
    a: Path
    b: Path

    def _read(self, path: Path) -> Source:
        pixels = read_picture(path)
        return Source(pixels, str(path), values=value_range(pixels, None, str(path)))

    @cached_property
    def sources(self) -> tuple[Source, Source]:
        """Both pictures, with the values that are black and white in them.

        Raises:
            PictureError: one cannot be read, or they are of different sizes or too small.
        """
        first, second = self._read(self.a), self._read(self.b)
        if first.pixels.shape[:2] != second.pixels.shape[:2]:
            sizes = [f"{s.name} is {s.pixels.shape[1]}x{s.pixels.shape[0]}" for s in (first, second)]
            raise PictureError(f"{', '.join(sizes)}: register them to one size first")
        if min(first.pixels.shape[:2]) < SMALLEST:
            raise PictureError(f"{first.name}: is too small for the metrics, which take {SMALLEST}x{SMALLEST} and more")
        return first, second

    @property
    def values(self) -> Range:
        """What is black and white in b, and in pictures fused from the pair."""
        values = self.sources[1].values
        assert values is not None
        return values

    @cached_property
    def greys(self) -> tuple[Grey, Grey]:
        """Both luminances, (H, W) uint8."""
        first, second = (grey(source.pixels, source.values or (0.0, 255.0)) for source in self.sources)
        return first, second

    def __str__(self) -> str:
        return f"{self.modality}-MRI {self.name}"


def find_pairs(data: Path, split: str) -> tuple[list[Pair], list[str]]:
    """The pairs in `data/split/MODALITY-MRI/{MRI,MODALITY}`, and what is wrong with files that have no partner.

    Raises:
        PictureError: there are none.
    """
    pairs: list[Pair] = []
    problems: list[str] = []
    for modality in MODALITIES:
        folder = data / split / f"{modality}-MRI"
        if folder.is_dir():
            found = pair_folders(folder / "MRI", folder / modality)
            pairs += [Pair(modality, name, a, b) for name, a, b in found.pairs]
            problems += [problem for _, problem in found.problems]
    if not pairs:
        first = MODALITIES[0]
        raise PictureError(
            f"{data / split}: holds no pairs; they are in {first}-MRI/MRI/NAME.png with {first}-MRI/{first}/NAME.png, "
            f"and so for {' and '.join(MODALITIES[1:])} (choose the folder with --split)"
        )
    return pairs, problems
