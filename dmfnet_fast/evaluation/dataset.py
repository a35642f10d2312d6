"""Data sets of image pairs: found in folders, and read pair by pair."""

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
# An image as saved in 8 bits, H x W or H x W x 3.
Saved = NDArray[np.uint8]

LAYOUT = (
    "pairs are in folders named B-A, which hold B/NAME.png and A/NAME.png, for example CT-MRI/CT and CT-MRI/MRI; if "
    "both modalities have the same name, their folders are named A and B: MR-MR/A and MR-MR/B"
)


@dataclass(frozen=True)
class Scene:
    """A pair whose images have been read.

    Attributes:
        pair: the files.
        sources: the images a and b; the values of black and white are known.
    """

    pair: Pair
    sources: tuple[Source, Source]

    @property
    def values(self) -> Range:
        """The values of black and white in b, and hence in fused images."""
        return _known(self.sources[1])

    @cached_property
    def saved(self) -> tuple[Saved, Saved]:
        """a and b as saved in 8 bits."""
        first, second = (to_8_bit(source.pixels, _known(source)) for source in self.sources)
        return first, second

    @cached_property
    def grays(self) -> tuple[Gray, Gray]:
        """The luminances of a and b as saved in 8 bits, (H, W) uint8."""
        first, second = (luminance(image) for image in self.saved)
        return first, second


def _known(source: Source) -> Range:
    assert source.values is not None
    return source.values


@dataclass(frozen=True)
class Pair:
    """A pair of files. It does not keep the images, so that memory use does not grow with the data set.

    Attributes:
        modality: name of the folder, such as "CT-MRI".
        kinds: names of the modalities of a and b, such as "MRI" and "CT".
        name: name of both files, without suffix.
        a, b: the files.
        range_a, range_b: values of black and white in 16-bit or float images; if None, they are inferred.
    """

    modality: str
    kinds: tuple[str, str]
    name: str
    a: Path
    b: Path
    range_a: Range | None = None
    range_b: Range | None = None

    def read(self) -> Scene:
        """Read both images.

        Raises:
            ImageError: an image cannot be read, or the images differ in size or are too small for the metrics.
        """
        first, second = _read(self.a, self.range_a), _read(self.b, self.range_b)
        if first.pixels.shape[:2] != second.pixels.shape[:2]:
            sizes = [f"{s.name} is {s.pixels.shape[1]}x{s.pixels.shape[0]}" for s in (first, second)]
            raise ImageError(f"{', '.join(sizes)}: register them to one size first")
        if min(first.pixels.shape[:2]) < SMALLEST:
            raise ImageError(
                f"{first.name}: is too small for the metrics; give images of {SMALLEST}x{SMALLEST} or more"
            )
        return Scene(self, (first, second))

    def __str__(self) -> str:
        return f"{self.modality} {self.name}"


def _read(path: Path, stated: Range | None) -> Source:
    image = load_image(path)
    return Source(image.pixels, image.name, values=range_of(image, stated))


def _possible_kinds(name: str) -> list[tuple[str, str]]:
    """All pairs (a, b) of subfolder names that the folder name B-A allows; there may be several hyphens."""
    parts = name.split("-")
    splits = [("-".join(parts[n:]), "-".join(parts[:n])) for n in range(1, len(parts))]
    return [("A", "B") if a == b else (a, b) for a, b in splits if a and b]


def _kinds(folder: Path) -> tuple[str, str] | None:
    """The names of the subfolders of a and b in a folder of pairs; None if `folder` is not a folder of pairs."""
    existing = (kinds for kinds in _possible_kinds(folder.name) if all((folder / kind).is_dir() for kind in kinds))
    return next(existing, None)


def find_pairs(
    data: Path,
    split: str,
    modalities: Sequence[str] = (),
    range_a: Range | None = None,
    range_b: Range | None = None,
) -> tuple[list[Pair], list[str]]:
    """Find the pairs in `data/split`.

    Pairs are in folders named B-A (CT-MRI, IR-VIS), which hold a folder B with the images b and a folder A with the
    images a. If both names are the same, as in MR-MR, the folders are named B and A literally.

    Args:
        data: folder of the data set.
        split: folder in `data`; "." for `data` itself.
        modalities: names of the folders to use, either in full or by their B (CT for CT-MRI); all if empty.
        range_a, range_b: see `Pair`.

    Returns:
        The pairs, and a message for each file that has no partner or several.

    Raises:
        ImageError: there are no pairs at all or of a requested modality, or a folder named B-A does not hold B and A.
    """
    root = data / split
    names = sorted(path.name for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    # Each folder by its name, with all names by which it can be requested.
    folders = {name: {name, *(b for _, b in _possible_kinds(name))} for name in names if not name.startswith(".")}
    for requested in modalities:
        if not any(requested in aliases for aliases in folders.values()):
            available = ", ".join(name for name in folders if _possible_kinds(name)) or "no folder of pairs"
            raise ImageError(f"{root}: holds no {requested}; there is {available}")
    pairs: list[Pair] = []
    problems: list[str] = []
    for name, aliases in folders.items():
        if not _possible_kinds(name) or (modalities and not aliases.intersection(modalities)):
            continue
        kinds = _kinds(root / name)
        if kinds is None:
            a, b = _possible_kinds(name)[0]
            raise ImageError(
                f"{root / name}: holds no folders {b} and {a}; {LAYOUT} (or select other folders with --modality)"
            )
        found = pair_folders(root / name / kinds[0], root / name / kinds[1])
        pairs += [Pair(name, kinds, pair, a, b, range_a, range_b) for pair, a, b in found.pairs]
        problems += [problem for _, problem in found.problems]
    if not pairs:
        raise ImageError(f"{root}: holds no pairs; {LAYOUT}")
    return pairs, problems
