"""Training pairs: found, checked and held in memory, and random crops of them.

Layout: `DIR/{train,test}/{CT,PET,SPECT}-MRI/{MRI,CT|PET|SPECT}/NAME`, paired by name.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dmfnet_fast.errors import ImageError
from dmfnet_fast.images.color import luminance
from dmfnet_fast.images.io import read_image
from train.task import Draw

MODALITIES = ("CT", "PET", "SPECT")

# Crops as other scanners and readers would have them, see `varied`.
VARIED = 0.5  # this part of the pairs
GAMMA = (0.6, 1.6)  # of a
GAIN = (0.6, 1.0)  # of a, and of b
INVERTED = 0.1  # of the varied pairs: a


@dataclass(frozen=True)
class Pair:
    """A registered pair of 8 bits; `source` is the file of `b`.

    Attributes:
        planes: (5, H, W): luminance of the MRI, luminance of b, and b's red, green and blue.
    """

    modality: str
    source: Path
    planes: NDArray[np.uint8]

    @property
    def a(self) -> NDArray[np.uint8]:
        """Luminance of the MRI, (H, W)."""
        return self.planes[0]

    @property
    def b(self) -> NDArray[np.uint8]:
        """Luminance of the other image, (H, W)."""
        return self.planes[1]

    @property
    def colors(self) -> NDArray[np.uint8]:
        """The other image's colors, (H, W, 3)."""
        return np.ascontiguousarray(np.moveaxis(self.planes[2:], 0, -1))

    @property
    def name(self) -> str:
        return self.source.name


def _numbers_by_value(name: str) -> list[tuple[int, str]]:
    """Sorts 2.png before 10.png: neighbors in name are to be neighboring slices."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _eight_bit(path: Path) -> NDArray[np.uint8]:
    """(H, W) or (H, W, 3)."""
    pixels = read_image(path)
    if pixels.dtype != np.uint8:
        # Which values mean black and white would be guessed for each slice alone, and differ within a series.
        raise ImageError(
            f"{path}: has more than 8 bits; training takes 8-bit images: convert the series, one range for all"
        )
    return pixels


def _planes(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """See `Pair`. Of b as gray, all channels are its luminance."""
    luminances = [luminance(a), luminance(b)]
    channels = [b[..., n] for n in range(3)] if b.ndim == 3 else [b] * 3
    return np.stack([*luminances, *channels])


def _modality_pairs(folder: Path, modality: str, smallest: int, problems: list[str]) -> list[Pair]:
    names = {
        kind: {p.name for p in (folder / kind).glob("*") if p.is_file() and not p.name.startswith(".")}
        for kind in ("MRI", modality)
    }
    for kind, other in (("MRI", modality), (modality, "MRI")):
        problems += [
            f"{folder / kind / name}: has no partner in {other}" for name in sorted(names[kind] - names[other])
        ]
    pairs = []
    if not any(names.values()):
        problems.append(
            f"{folder}: holds no pairs; expected {folder / 'MRI'}/NAME.png with {folder / modality}/NAME.png"
        )
    for name in sorted(names["MRI"] & names[modality], key=_numbers_by_value):
        try:
            a, b = (_eight_bit(folder / kind / name) for kind in ("MRI", modality))
        except ImageError as error:
            problems.append(str(error))
            continue
        if a.shape[:2] != b.shape[:2]:
            problems.append(
                f"{folder / modality / name}: is {b.shape[1]}x{b.shape[0]}, its MRI {a.shape[1]}x{a.shape[0]}"
            )
        elif min(a.shape[:2]) < smallest:
            problems.append(
                f"{folder / modality / name}: is {a.shape[1]}x{a.shape[0]}, smaller than the crop {smallest}"
            )
        else:
            pairs.append(Pair(modality, folder / modality / name, _planes(a, b)))
    return pairs


def load_pairs(data: str | Path, smallest: int) -> list[Pair]:
    """All pairs of `data/train`, in memory.

    Args:
        data: the folder that holds `train` and `test`.
        smallest: least height and width in pixels.

    Raises:
        ImageError: there are no pairs, a folder is of no known modality, or images are unpaired, unreadable, of
            more than 8 bits, of different sizes or too small; every one is listed.
    """
    root = Path(data) / "train"
    problems: list[str] = []
    pairs: list[Pair] = []
    known = {f"{modality}-MRI": modality for modality in MODALITIES}
    for folder in sorted(path for path in root.glob("*") if path.is_dir() and not path.name.startswith(".")):
        if folder.name in known:
            pairs += _modality_pairs(folder, known[folder.name], smallest, problems)
        else:
            problems.append(f"{folder}: is none of {', '.join(known)}")
    if problems:
        raise ImageError(f"{root}: {len(problems)} files or folders cannot be used:\n  " + "\n  ".join(problems))
    if not pairs:
        raise ImageError(
            f"{root}: no pairs found; expected {root}/CT-MRI/MRI/NAME.png with {root}/CT-MRI/CT/NAME.png, and so on"
        )
    return pairs


def held_out(count: int) -> list[int]:
    """Which of `count` pairs in order of name are for validation: about a tenth, in two runs of neighbors.

    Neighboring slices look alike, so single pairs would tell how well training remembers, not how well it fuses.
    At least one is held out, but never the only one.
    """
    if count < 10:
        return [count // 2] if count > 1 else []
    length = max(1, round(count / 20))
    return [start + i for start in (count // 4, 3 * count // 4) for i in range(length)]


def split(pairs: list[Pair]) -> tuple[list[Pair], list[Pair]]:
    """Pairs to train on and pairs to validate on, modality by modality; fixed, whatever the run."""
    training: list[Pair] = []
    validation: list[Pair] = []
    for modality in MODALITIES:
        group = [pair for pair in pairs if pair.modality == modality]
        held = set(held_out(len(group)))
        for i, pair in enumerate(group):
            (validation if i in held else training).append(pair)
    return training, validation


def summary(pairs: list[Pair], training: list[Pair]) -> str:
    """How many pairs there are to train and to validate on, in words."""
    counts = []
    for modality in MODALITIES:
        of_all, of_training = (sum(pair.modality == modality for pair in group) for group in (pairs, training))
        counts.append(f"{modality} {of_training} + {of_all - of_training}")
    return f"pairs to train + to validate on: {', '.join(counts)}"


def fingerprint(pairs: list[Pair]) -> str:
    """SHA-256 over the names and pixels of all pairs."""
    digest = hashlib.sha256()
    for pair in pairs:
        digest.update(f"{pair.modality} {pair.name} {pair.a.shape}\n".encode())
        digest.update(np.ascontiguousarray(pair.planes).data)
    return digest.hexdigest()


class CropSampler:
    """Random crops, flipped and turned at random by right angles, each modality as often as the others.

    Args:
        pairs: to cut from; held in memory.
        crop: side of the crops, pixels.
    """

    def __init__(self, pairs: list[Pair], crop: int) -> None:
        self.crop = crop
        by_modality = {m: [pair for pair in pairs if pair.modality == m] for m in MODALITIES}
        self.groups = [group for group in by_modality.values() if group]

    def planes(self, batch: int, draw: Draw, first: int = 5) -> Tensor:
        """Crops are drawn for the whole batch, and cut for the share of it that is asked for, n pairs.

        Returns:
            (first, n, 1, crop, crop) float32 in 0..255: the first of a pair's planes, see `Pair`.
        """
        places = [self._place(draw.random) for _ in range(batch)][draw.share]
        crops = np.empty((first, len(places), 1, self.crop, self.crop), np.uint8)
        for n, (pair, rows, columns, flips, transposed) in enumerate(places):
            crop = pair.planes[:first, rows, columns][(slice(None), *flips)]
            crops[:, n, 0] = crop.transpose(0, 2, 1) if transposed else crop
        return draw.upload(crops).float()

    def pairs(self, batch: int, draw: Draw) -> Tensor:
        """As `planes`, of luminances alone: (2, n, 1, crop, crop) in [-1, 1], images a, then images b."""
        return self.planes(batch, draw, first=2).div_(127.5).sub_(1)

    def _place(self, random: np.random.Generator) -> tuple[Pair, slice, slice, tuple[slice, ...], bool]:
        group = self.groups[random.integers(len(self.groups))]
        pair = group[random.integers(len(group))]
        top, left = (int(random.integers(size - self.crop + 1)) for size in pair.a.shape)
        flips = tuple(slice(None, None, -1 if random.integers(2) else 1) for _ in range(2))
        transposed = bool(random.integers(2))
        return pair, slice(top, top + self.crop), slice(left, left + self.crop), flips, transposed


def varied(planes: Tensor, batch: int, draw: Draw) -> Tensor:
    """`VARIED` of the pairs as other scanners would have made them: a through a gain and a gamma, b through a gain.

    `INVERTED` of those have a dark for bright. Variations are drawn for the whole batch, as crops are.

    Args:
        planes: this process's share of the batch, (5, n, 1, H, W) in 0..255, see `Pair`.

    Returns:
        Planes of the same form, whole numbers.
    """
    numbers = draw.random.random((5, batch, 1, 1, 1), np.float32)
    which, inverted, gamma, *gains = draw.upload(numbers[:, draw.share])
    gain_a, gain_b = (GAIN[0] + (GAIN[1] - GAIN[0]) * gain for gain in gains)
    a = (planes[0] / 255) ** (GAMMA[0] + (GAMMA[1] - GAMMA[0]) * gamma)
    a = 255 * gain_a * torch.where(inverted < INVERTED, 1 - a, a)
    changed = torch.cat([a[None], gain_b * planes[1:]]).round()
    return torch.where(which < VARIED, changed, planes)
