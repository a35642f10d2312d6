"""BMP: 8 bits per channel."""

from __future__ import annotations

from pathlib import Path

from dmfnet_fast.images.formats.base import LoadedImage, Pixels
from dmfnet_fast.images.formats.pillow import read_8_bit, save_as


def read(content: bytes, name: str) -> LoadedImage | None:
    """See `Reader.read`."""
    return read_8_bit("BMP", content, name)


def write(path: Path, pixels: Pixels) -> None:
    """See `Writer.write`."""
    save_as("BMP", path, pixels)
