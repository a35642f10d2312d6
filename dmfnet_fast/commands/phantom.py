"""`dmfnet-phantom`: writes phantom head images in the layout of training data."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

from dmfnet_fast.artifacts.atomic import make_folder
from dmfnet_fast.commands.shared import command, progress
from dmfnet_fast.errors import OutputError
from dmfnet_fast.images.io import write_image
from dmfnet_fast.phantom import MODALITIES, make_phantom


def write_phantoms(folder: Path, train: int = 8, test: int = 2, size: int = 256, seed: int = 0) -> Iterator[Path]:
    """Write phantom pairs in the layout that training reads, `folder/{train,test}/MODALITY-MRI/...`.

    Every pair shows a different head.

    Args:
        folder: where to write.
        train, test: number of pairs of each modality.
        size: width and height in pixels, as for `make_phantom`.
        seed: seed of the first head; it increases by one for each further head.

    Yields:
        The path of each file, once it is written.

    Raises:
        OutputError: `folder` cannot be written, or its `train` or `test` already holds files.
    """
    for split in ("train", "test"):
        if (folder / split).is_dir() and any((folder / split).iterdir()):
            raise OutputError(f"{folder / split}: already holds files; name an empty folder")
    for split, count in (("train", train), ("test", test)):
        for modality in MODALITIES:
            for number in range(1, count + 1):
                phantom = make_phantom(seed, size)
                seed += 1
                for kind, pixels in (("MRI", phantom.mri), (modality, phantom.other(modality))):
                    path = folder / split / f"{modality}-MRI" / kind / f"{number:03d}.png"
                    make_folder(path.parent)
                    write_image(path, pixels)
                    yield path


@command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--train", default=8, type=click.IntRange(0), help="Training pairs of each modality.")
@click.option("--test", default=2, type=click.IntRange(0), help="Test pairs of each modality.")
@click.option("--size", default=256, type=click.IntRange(64, 4096), help="Width and height in pixels.")
@click.option("--seed", default=0, type=click.IntRange(0), help="Seed of the first head.")
@click.version_option(package_name="dmfnet-fast")
def main(folder: Path, train: int, test: int, size: int, seed: int) -> None:
    """Write head phantoms to FOLDER/{train,test}/{CT,PET,SPECT}-MRI/{MRI,CT|PET|SPECT}/NNN.png."""
    total = (train + test) * len(MODALITIES) * 2
    with progress(write_phantoms(folder, train, test, size, seed), "drawing", total) as paths:
        count = sum(1 for _ in paths)
    click.echo(f"{folder}: {count} images")
