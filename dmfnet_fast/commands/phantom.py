"""`dmfnet-phantom`: made-up head pictures in the training data's layout."""

from __future__ import annotations

from pathlib import Path

import click

from dmfnet_fast.commands.shared import command, progress


@command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--train", default=8, type=click.IntRange(0), help="Training pairs of each modality.")
@click.option("--test", default=2, type=click.IntRange(0), help="Test pairs of each modality.")
@click.option("--size", default=256, type=click.IntRange(64, 4096), help="Width and height, pixels.")
@click.option("--seed", default=0, type=click.IntRange(0), help="Seed of the first head.")
@click.version_option(package_name="dmfnet-fast")
def main(folder: Path, train: int, test: int, size: int, seed: int) -> None:
    """Write head phantoms to FOLDER/{train,test}/{CT,PET,SPECT}-MRI/{MRI,CT|PET|SPECT}/NNN.png."""
    from dmfnet_fast.phantom import MODALITIES, write_phantoms

    total = (train + test) * len(MODALITIES) * 2
    with progress(write_phantoms(folder, train, test, size, seed), "drawing", total) as paths:
        count = sum(1 for _ in paths)
    click.echo(f"{folder}: {count} pictures")
