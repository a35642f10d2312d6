"""`dmfnet-demo`: fuses phantom heads, slices and a volume, and writes what to look at."""

from __future__ import annotations

from pathlib import Path

import click

from dmfnet_fast.artifacts.atomic import make_folder
from dmfnet_fast.commands.fuse import main as fuse
from dmfnet_fast.commands.shared import PATH, command
from dmfnet_fast.errors import MissingExtraError, require
from dmfnet_fast.fuser import Fuser
from dmfnet_fast.images.io import write_image
from dmfnet_fast.images.montage import montage
from dmfnet_fast.phantom import MODALITIES, make_phantom
from dmfnet_fast.volumes.phantom import make_head, write_head

HEADS = 2
SIZE = 128  # rows and columns of the volume's MR


@command()
@click.argument("folder", type=PATH)
@click.version_option(package_name="dmfnet-fast")
def main(folder: Path) -> None:
    """Fuse phantom heads in three modalities, write a montage of each modality to FOLDER, and print its path.

    With the extra dicom, also write a head as DICOM to FOLDER/volume and fuse its MR and PET into FOLDER/fused-volume.
    """
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
    try:
        require("pydicom", "dicom")
    except MissingExtraError as error:
        click.echo(f"no volume is fused: {error}", err=True)
        return
    series = write_head(make_head(size=SIZE), folder / "volume")
    fuse(
        [str(series["MR"]), str(series["PT"]), "-o", str(folder / "fused-volume"), "--overwrite"], standalone_mode=False
    )


if __name__ == "__main__":
    main()
