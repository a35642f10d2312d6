"""What the tests of writers share."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmfnet_fast.volumes.volume import Volume
from dmfnet_fast.volumes.writing import Format, Provenance, VolumeWriter, open_writer

PROVENANCE = Provenance("1.2.3", "nano.onnx", "0123456789abcdef" * 4, {"range_a": [0, 500], "precision": "float32"})
FORMATS: tuple[Format, ...] = ("dicom", "nifti", "png")


def colors(shape: tuple[int, int, int], seed: int = 0) -> NDArray[np.uint8]:
    """A volume of random colors."""
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), np.uint8)


def write(writer: VolumeWriter, values: NDArray[np.uint8], only: Iterable[int] | None = None) -> None:
    for index in range(len(values)) if only is None else only:
        writer.write(index, values[index])


def write_all(
    format: Format,  # noqa: A002
    output: Path,
    sources: tuple[Volume, Volume],
    values: NDArray[np.uint8] | None = None,
    **more: Any,
) -> list[Path]:
    """Write a volume on the grid of the first source."""
    writer = open_writer(format, output, sources[0], sources, PROVENANCE, **more)
    write(writer, colors(sources[0].shape) if values is None else values)
    return writer.finish()


def contents(folder: Path) -> dict[str, bytes]:
    """All files in a folder and below."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
