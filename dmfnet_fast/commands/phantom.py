"""`dmfnet-phantom`: writes phantom heads: images in the layout of training data, or volumes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

from dmfnet_fast.artifacts.atomic import make_folder
from dmfnet_fast.commands.shared import PATH, command, progress
from dmfnet_fast.errors import OutputError
from dmfnet_fast.images.io import write_image
from dmfnet_fast.phantom import MODALITIES, make_phantom
from dmfnet_fast.volumes.phantom import make_head, write_head, write_nifti

TRAIN, TEST = 8, 2
# Rows and columns of volumes: all four take 4 GB of memory then.
LARGEST_VOLUMES = 1024


def write_phantoms(
    folder: Path, train: int = TRAIN, test: int = TEST, size: int = 256, seed: int = 0
) -> Iterator[Path]:
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


def write_volumes(folder: Path, size: int = 256, seed: int = 0) -> list[Path]:
    """Write one head as volumes: folders MR, CT and PT with a DICOM file a slice, NM/tomogram.dcm, and all as NIfTI.

    Args:
        folder: where to write.
        size: rows and columns of the MR; all other sizes follow from it.
        seed: which head.

    Returns:
        The folders and files, which `dmfnet-fuse` takes.

    Raises:
        OutputError: `folder` cannot be written, or already holds files.
        MissingExtraError: the extra `dicom` is not installed.
    """
    if folder.is_dir() and any(folder.iterdir()):
        raise OutputError(f"{folder}: already holds files; name an empty folder")
    make_folder(folder)
    head = make_head(seed, size)
    paths = list(write_head(head, folder).values())
    for volume in head:
        paths.append(folder / f"{volume.modality}.nii.gz")
        write_nifti(volume, paths[-1])
    return paths


@command()
@click.argument("folder", type=PATH)
@click.option("--train", type=click.IntRange(0), help=f"Training pairs of each modality; {TRAIN} by default.")
@click.option("--test", type=click.IntRange(0), help=f"Test pairs of each modality; {TEST} by default.")
@click.option("--volumes", is_flag=True, help="Write one head as volumes instead: MR, CT, PET and SPECT.")
@click.option("--size", default=256, type=click.IntRange(64, 4096), help="Width and height in pixels.")
@click.option("--seed", default=0, type=click.IntRange(0), help="Seed of the first head.")
@click.version_option(package_name="dmfnet-fast")
def main(folder: Path, train: int | None, test: int | None, volumes: bool, size: int, seed: int) -> None:
    """Write head phantoms to FOLDER/{train,test}/{CT,PET,SPECT}-MRI/{MRI,CT|PET|SPECT}/NNN.png.

    With --volumes, write DICOM series to FOLDER/{MR,CT,PT,NM}, and the same as NIfTI to FOLDER/{MR,CT,PT,NM}.nii.gz.
    """
    if volumes:
        if train is not None or test is not None:
            raise OutputError("--volumes writes one head: leave --train and --test out")
        if size > LARGEST_VOLUMES:
            raise OutputError(f"--size {size}: volumes are at most {LARGEST_VOLUMES} pixels wide")
        with progress([folder], "drawing") as folders:
            for path in folders:
                written = write_volumes(path, size, seed)
        click.echo("\n".join(map(str, written)))
        return
    train, test = TRAIN if train is None else train, TEST if test is None else test
    total = (train + test) * len(MODALITIES) * 2
    with progress(write_phantoms(folder, train, test, size, seed), "drawing", total) as paths:
        count = sum(1 for _ in paths)
    click.echo(f"{folder}: {count} images")


if __name__ == "__main__":
    main()
