"""Training pairs: found, checked and held in memory, and random crops of them.

Layout: `DIR/{train,test}/{CT,PET,SPECT}-MRI/{MRI,CT|PET|SPECT}/NAME`, paired by name.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dmfnet_fast.colour import to_luminance8
from dmfnet_fast.errors import PictureError
from dmfnet_fast.pictures import read_picture

MODALITIES = ("CT", "PET", "SPECT")


@dataclass(frozen=True)
class Pair:
    """A registered pair as 8-bit luminance, (H, W) each; `a` is the MRI."""

    modality: str
    name: str
    a: NDArray[np.uint8]
    b: NDArray[np.uint8]


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
    for name in sorted(names["MRI"] & names[modality]):
        try:
            a, b = (
                to_luminance8(read_picture(folder / kind / name), str(folder / kind / name))
                for kind in ("MRI", modality)
            )
        except PictureError as error:
            problems.append(str(error))
            continue
        if a.shape != b.shape:
            problems.append(
                f"{folder / modality / name}: is {b.shape[1]}x{b.shape[0]}, its MRI {a.shape[1]}x{a.shape[0]}"
            )
        elif min(a.shape) < smallest:
            problems.append(
                f"{folder / modality / name}: is {a.shape[1]}x{a.shape[0]}, smaller than the crop {smallest}"
            )
        else:
            pairs.append(Pair(modality, name, a, b))
    return pairs


def load_pairs(data: str | Path, split: str, smallest: int) -> list[Pair]:
    """All pairs of one split, in memory.

    Args:
        data: the folder that holds `train` and `test`.
        split: "train" or "test".
        smallest: least height and width in pixels.

    Raises:
        PictureError: there are no pairs, or images are unpaired, unreadable, of different sizes or too small;
            every one is listed.
    """
    root = Path(data) / split
    problems: list[str] = []
    pairs: list[Pair] = []
    for modality in MODALITIES:
        if (root / f"{modality}-MRI").is_dir():
            pairs += _modality_pairs(root / f"{modality}-MRI", modality, smallest, problems)
    if problems:
        raise PictureError(f"{root}: {len(problems)} images cannot be used:\n  " + "\n  ".join(problems))
    if not pairs:
        raise PictureError(
            f"{root}: no pairs found; expected {root}/CT-MRI/MRI/NAME.png with {root}/CT-MRI/CT/NAME.png, and so on"
        )
    return pairs


def fingerprint(pairs: list[Pair]) -> str:
    """SHA-256 over the names and pixels of all pairs."""
    digest = hashlib.sha256()
    for pair in pairs:
        digest.update(f"{pair.modality} {pair.name} {pair.a.shape}\n".encode())
        digest.update(np.ascontiguousarray(pair.a).data)
        digest.update(np.ascontiguousarray(pair.b).data)
    return digest.hexdigest()


class CropSampler:
    """Random crops with random flips, each modality as often as the others."""

    def __init__(self, pairs: list[Pair], crop: int) -> None:
        self.crop = crop
        by_modality = {m: [pair for pair in pairs if pair.modality == m] for m in MODALITIES}
        self.groups = [group for group in by_modality.values() if group]

    def pairs(self, batch: int, random: np.random.Generator) -> Tensor:
        """(2, batch, 1, crop, crop) float32 in [-1, 1]: images a, then images b."""
        crops = np.empty((2, batch, 1, self.crop, self.crop), np.uint8)
        for n in range(batch):
            group = self.groups[random.integers(len(self.groups))]
            pair = group[random.integers(len(group))]
            height, width = pair.a.shape
            top = random.integers(height - self.crop + 1)
            left = random.integers(width - self.crop + 1)
            flips = tuple(slice(None, None, -1 if random.integers(2) else 1) for _ in range(2))
            for image, target in zip((pair.a, pair.b), crops, strict=True):
                target[n, 0] = image[top : top + self.crop, left : left + self.crop][flips]
        return torch.from_numpy(crops).float().div_(127.5).sub_(1)
