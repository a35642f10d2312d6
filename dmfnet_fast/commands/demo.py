"""`dmfnet-demo`: fuses phantom heads and writes montages for visual inspection."""

from __future__ import annotations

from pathlib import Path

import click

from dmfnet_fast.artifacts.atomic import make_folder
from dmfnet_fast.commands.shared import command
from dmfnet_fast.fuser import Fuser
from dmfnet_fast.images.io import write_image
from dmfnet_fast.images.montage import montage
from dmfnet_fast.phantom import MODALITIES, make_phantom

HEADS = 2


@command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.version_option(package_name="dmfnet-fast")
def main(folder: Path) -> None:
    """Fuse phantom heads in three modalities, write a montage of each modality to FOLDER, and print its path."""
    make_folder(folder)
    phantoms = [make_phantom(seed) for seed in range(HEADS)]
    with Fuser() as fuser:
        for modality in MODALITIES:
            rows = []
            for phantom in phantoms:
                other = phantom.other(modality)
                rows.append([phantom.mri, other, fuser.fuse(phantom.mri, other)])
            path = folder / f"{modality.lower()}-mri.png"
            write_image(path, montage(rows, ["MRI", modality, "fused"]))
            click.echo(path)
