"""Pairs to evaluate on, found in folders and read one by one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dmfnet_fast.errors import ImageError
from dmfnet_fast.fuser import Range, Source
from dmfnet_fast.images.color import luminance, range_of
from dmfnet_fast.images.io import load_image, to_8_bit
from dmfnet_fast.images.pairing import pair_folders
from dmfnet_fast.metrics.fusion import SMALLEST

Gray = NDArray[np.uint8]
# An image H x W or H x W x 3, 8-bit, as it would be saved.
Saved = NDArray[np.uint8]

LAYOUT = (
    "pairs are in folders named B-A, which hold B/NAME.png and A/NAME.png: CT-MRI/CT with CT-MRI/MRI; where both "
    "would be called the same, they are called A and B: MR-MR/A with MR-MR/B"
)


@dataclass(frozen=True)
class Scene:
    """The images of a pair, read.

    Attributes:
        sources: a and b, with the values that are black and white in them.
    """

    pair: Pair
    sources: tuple[Source, Source]

    @property
    def values(self) -> Range:
        """What is black and white in b, and in images fused from the pair."""
        return _known(self.sources[1])

    @cached_property
    def saved(self) -> tuple[Saved, Saved]:
        """a and b as they would be saved in 8 bits."""
        first, second = (to_8_bit(source.pixels, _known(source)) for source in self.sources)
        return first, second

    @cached_property
    def grays(self) -> tuple[Gray, Gray]:
        """The luminances that are scored, of a and b as saved, (H, W) uint8."""
        first, second = (luminance(image) for image in self.saved)
        return first, second


def _known(source: Source) -> Range:
    assert source.values is not None
    return source.values


@dataclass(frozen=True)
class Pair:
    """A pair of files. Images are not kept, so that a large data set takes no more memory than a small one.

    Attributes:
        modality: name of the folder, such as "CT-MRI".
        kinds: what a and b are called, such as "MRI" and "CT".
        range_a, range_b: values that mean black and white in 16-bit or float images; None guesses them.
    """

    modality: str
    kinds: tuple[str, str]
    name: str
    a: Path
    b: Path
    range_a: Range | None = None
    range_b: Range | None = None

    def read(self) -> Scene:
        """Both images.

        Raises:
            ImageError: one cannot be read, or they are of different sizes or too small.
        """
        first, second = _read(self.a, self.range_a), _read(self.b, self.range_b)
        if first.pixels.shape[:2] != second.pixels.shape[:2]:
            sizes = [f"{s.name} is {s.pixels.shape[1]}x{s.pixels.shape[0]}" for s in (first, second)]
            raise ImageError(f"{', '.join(sizes)}: register them to one size first")
        if min(first.pixels.shape[:2]) < SMALLEST:
            raise ImageError(f"{first.name}: is too small for the metrics, which take {SMALLEST}x{SMALLEST} and more")
        return Scene(self, (first, second))

    def __str__(self) -> str:
        return f"{self.modality} {self.name}"


def _read(path: Path, stated: Range | None) -> Source:
    image = load_image(path)
    return Source(image.pixels, image.name, values=range_of(image, stated))


def _halves(name: str) -> list[tuple[str, str]]:
    """Every way to read a folder's name as B-A, as (a, b), the names of the folders in it."""
    parts = name.split("-")
    ways = [("-".join(parts[n:]), "-".join(parts[:n])) for n in range(1, len(parts))]
    return [("A", "B") if a == b else (a, b) for a, b in ways if a and b]


def _kinds(folder: Path) -> tuple[str, str] | None:
    """The names of the folders of a and b in a folder of pairs; None if it is none."""
    ways = (way for way in _halves(folder.name) if all((folder / kind).is_dir() for kind in way))
    return next(ways, None)


def find_pairs(
    data: Path,
    split: str,
    modalities: Sequence[str] = (),
    range_a: Range | None = None,
    range_b: Range | None = None,
) -> tuple[list[Pair], list[str]]:
    """The pairs in `data/split`, and what is wrong with files that have no partner.

    They are in folders B-A (CT-MRI, IR-VIS), which hold a folder B and a folder A: b is what comes first, and a what
    comes last. In MR-MR, where both would be called the same, a is in A and b in B.

    Args:
        split: "." for `data` itself.
        modalities: names of folders, or of b (CT for CT-MRI), to which to keep; all if there are none.
        range_a, range_b: see `Pair`.

    Raises:
        ImageError: there are no pairs, or none of a modality that was named, or a folder named B-A does not hold B
            and A.
    """
    root = data / split
    names = sorted(path.name for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    folders = {name: {name, *(b for _, b in _halves(name))} for name in names if not name.startswith(".")}
    for wanted in modalities:
        if not any(wanted in called for called in folders.values()):
            there = ", ".join(name for name in folders if _halves(name)) or "no folder of pairs"
            raise ImageError(f"{root}: holds no {wanted}; there is {there}")
    pairs: list[Pair] = []
    problems: list[str] = []
    for name, called in folders.items():
        if not _halves(name) or (modalities and not called.intersection(modalities)):
            continue
        kinds = _kinds(root / name)
        if kinds is None:
            a, b = _halves(name)[0]
            raise ImageError(
                f"{root / name}: holds no folders {b} and {a}; {LAYOUT} (or name other folders with --modality)"
            )
        found = pair_folders(root / name / kinds[0], root / name / kinds[1])
        pairs += [Pair(name, kinds, pair, a, b, range_a, range_b) for pair, a, b in found.pairs]
        problems += [problem for _, problem in found.problems]
    if not pairs:
        raise ImageError(f"{root}: holds no pairs; {LAYOUT} (choose the folder with --split)")
    return pairs, problems
