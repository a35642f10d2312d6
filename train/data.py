"""Training pairs, which are found, checked and kept in memory, and random crops of them.

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
from dmfnet_fast.images.io import load_image, to_8_bit
from train.task import Draw

MODALITIES = ("CT", "PET", "SPECT")

# Augmentation that imitates other scanners and windowing, see `varied`.
VARIED = 0.5  # fraction of pairs that are varied
GAMMA = (0.6, 1.6)  # range for a
GAIN = (0.6, 1.0)  # range for a, and for b
INVERTED = 0.1  # fraction of the varied pairs whose a is inverted


@dataclass(frozen=True)
class Pair:
    """A registered 8-bit pair.

    Attributes:
        modality: of the other image, b: "CT", "PET" or "SPECT".
        source: the file of b.
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


def _natural_order(name: str) -> list[tuple[int, str]]:
    """Sort key that puts 2.png before 10.png, so that neighboring names are neighboring slices."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _eight_bit(path: Path) -> NDArray[np.uint8]:
    """Reads an image, (H, W) or (H, W, 3); one of more than 8 bits must state its range of values."""
    image = load_image(path)
    if image.pixels.dtype == np.uint8:
        return image.pixels
    if image.values is None:
        # The intensity range would be inferred for each slice, and would differ within a series.
        raise ImageError(
            f"{path}: has more than 8 bits, but training takes 8-bit images; convert the whole series with one range"
        )
    return to_8_bit(image.pixels, image.values)


def _planes(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Stacks the planes of a `Pair`; a gray b is repeated as red, green and blue."""
    luminances = [luminance(a), luminance(b)]
    channels = [b[..., n] for n in range(3)] if b.ndim == 3 else [b] * 3
    return np.stack([*luminances, *channels])


def _modality_pairs(folder: Path, modality: str, smallest: int, problems: list[str]) -> list[Pair]:
    """Reads the pairs of one modality, and appends a message to `problems` for every file that cannot be used."""
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
            f"{folder}: contains no pairs; expected {folder / 'MRI'}/NAME.png with {folder / modality}/NAME.png"
        )
    for name in sorted(names["MRI"] & names[modality], key=_natural_order):
        try:
            a, b = (_eight_bit(folder / kind / name) for kind in ("MRI", modality))
        except ImageError as error:
            problems.append(str(error))
            continue
        if a.shape[:2] != b.shape[:2]:
            problems.append(
                f"{folder / modality / name}: is {b.shape[1]}x{b.shape[0]}, but its MRI is {a.shape[1]}x{a.shape[0]}"
            )
        elif min(a.shape[:2]) < smallest:
            problems.append(
                f"{folder / modality / name}: is {a.shape[1]}x{a.shape[0]}, smaller than the crop size {smallest}"
            )
        else:
            pairs.append(Pair(modality, folder / modality / name, _planes(a, b)))
    return pairs


def load_pairs(data: str | Path, smallest: int) -> list[Pair]:
    """Loads all pairs of `data/train` into memory.

    Args:
        data: the folder that contains `train` and `test`.
        smallest: least height and width in pixels.

    Raises:
        ImageError: there are no pairs, a folder is not of a known modality, or images are unpaired, unreadable, of
            more than 8 bits, of different sizes or too small; the message lists every problem.
    """
    root = Path(data) / "train"
    problems: list[str] = []
    pairs: list[Pair] = []
    known = {f"{modality}-MRI": modality for modality in MODALITIES}
    for folder in sorted(path for path in root.glob("*") if path.is_dir() and not path.name.startswith(".")):
        if folder.name in known:
            pairs += _modality_pairs(folder, known[folder.name], smallest, problems)
        else:
            problems.append(f"{folder}: is not one of {', '.join(known)}")
    if problems:
        raise ImageError(f"{root}: {len(problems)} files or folders cannot be used:\n  " + "\n  ".join(problems))
    if not pairs:
        raise ImageError(
            f"{root}: no pairs found; expected {root}/CT-MRI/MRI/NAME.png with {root}/CT-MRI/CT/NAME.png, and so on"
        )
    return pairs


def held_out(count: int) -> list[int]:
    """Indices of the validation pairs among `count` pairs in order of name: about a tenth, in two runs of neighbors.

    Neighboring slices look alike, so that isolated validation pairs would measure memorization. At least one pair is
    held out, unless it is the only one.
    """
    if count < 10:
        return [count // 2] if count > 1 else []
    length = max(1, round(count / 20))
    return [start + i for start in (count // 4, 3 * count // 4) for i in range(length)]


def split(pairs: list[Pair]) -> tuple[list[Pair], list[Pair]]:
    """Splits every modality into training and validation pairs; the split is the same for all runs."""
    training: list[Pair] = []
    validation: list[Pair] = []
    for modality in MODALITIES:
        group = [pair for pair in pairs if pair.modality == modality]
        held = set(held_out(len(group)))
        for i, pair in enumerate(group):
            (validation if i in held else training).append(pair)
    return training, validation


def summary(pairs: list[Pair], training: list[Pair]) -> str:
    """The numbers of training and validation pairs by modality, as text."""
    counts = []
    for modality in MODALITIES:
        total, trained = (sum(pair.modality == modality for pair in group) for group in (pairs, training))
        counts.append(f"{modality} {trained} + {total - trained}")
    return f"training + validation pairs: {', '.join(counts)}"


def fingerprint(pairs: list[Pair]) -> str:
    """SHA-256 over the names and pixels of all pairs."""
    digest = hashlib.sha256()
    for pair in pairs:
        digest.update(f"{pair.modality} {pair.name} {pair.a.shape}\n".encode())
        digest.update(np.ascontiguousarray(pair.planes).data)
    return digest.hexdigest()


class CropSampler:
    """Random crops with random flips and right-angle rotations; all modalities are equally likely.

    Args:
        pairs: the pairs to crop.
        crop: side of the square crops in pixels.
    """

    def __init__(self, pairs: list[Pair], crop: int) -> None:
        self.crop = crop
        by_modality = {m: [pair for pair in pairs if pair.modality == m] for m in MODALITIES}
        self.groups = [group for group in by_modality.values() if group]

    def planes(self, batch: int, draw: Draw, first: int = 5) -> Tensor:
        """Draws crops for the whole batch, and cuts the n crops of this process's share.

        Args:
            batch: pairs in the whole batch.
            draw: the step's randomness and share.
            first: number of planes of each pair, see `Pair`.

        Returns:
            (first, n, 1, crop, crop) float32 in 0..255.
        """
        places = [self._place(draw.random) for _ in range(batch)][draw.share]
        crops = np.empty((first, len(places), 1, self.crop, self.crop), np.uint8)
        for n, (pair, rows, columns, flips, transposed) in enumerate(places):
            crop = pair.planes[:first, rows, columns][(slice(None), *flips)]
            crops[:, n, 0] = crop.transpose(0, 2, 1) if transposed else crop
        return draw.upload(crops).float()

    def pairs(self, batch: int, draw: Draw) -> Tensor:
        """Like `planes`, for the luminances: (2, n, 1, crop, crop) in [-1, 1], images a, then images b."""
        return self.planes(batch, draw, first=2).div_(127.5).sub_(1)

    def _place(self, random: np.random.Generator) -> tuple[Pair, slice, slice, tuple[slice, ...], bool]:
        group = self.groups[random.integers(len(self.groups))]
        pair = group[random.integers(len(group))]
        top, left = (int(random.integers(size - self.crop + 1)) for size in pair.a.shape)
        flips = tuple(slice(None, None, -1 if random.integers(2) else 1) for _ in range(2))
        transposed = bool(random.integers(2))
        return pair, slice(top, top + self.crop), slice(left, left + self.crop), flips, transposed


def varied(planes: Tensor, batch: int, draw: Draw) -> Tensor:
    """Imitates other scanners on a fraction `VARIED` of the pairs: a gain and a gamma for a, and a gain for b.

    In a fraction `INVERTED` of those, a is also inverted. Variations are drawn for the whole batch, like crops.

    Args:
        planes: this process's share of the batch, (5, n, 1, H, W) in 0..255, see `Pair`.

    Returns:
        Planes of the same shape, with integral values.
    """
    numbers = draw.random.random((5, batch, 1, 1, 1), np.float32)
    selected, inverted, gamma, *gains = draw.upload(numbers[:, draw.share])
    gain_a, gain_b = (GAIN[0] + (GAIN[1] - GAIN[0]) * gain for gain in gains)
    a = (planes[0] / 255) ** (GAMMA[0] + (GAMMA[1] - GAMMA[0]) * gamma)
    a = 255 * gain_a * torch.where(inverted < INVERTED, 1 - a, a)
    result = torch.cat([a[None], gain_b * planes[1:]]).round()
    return torch.where(selected < VARIED, result, planes)
