"""Image formats: one module each, and one row in `READERS`, `WRITERS` or both.

All messages and help texts that list formats take them from these tables.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from dmfnet_fast.images.formats import bmp, jpeg, png, tiff
from dmfnet_fast.images.formats.base import Reader, Writer

__all__ = ["READERS", "WRITERS", "name_in_folder", "suffixes", "writer_of"]

READERS: tuple[Reader, ...] = (
    Reader("PNG", (".png",), png.read),
    Reader("JPEG", (".jpg", ".jpeg"), jpeg.read),
    Reader("TIFF", (".tif", ".tiff"), tiff.read),
    Reader("BMP", (".bmp",), bmp.read),
)
WRITERS: tuple[Writer, ...] = (
    Writer("PNG", (".png",), png.write, gray16=True, color16=True),
    Writer("TIFF", (".tif", ".tiff"), tiff.write, gray16=True, float_gray=True),
    Writer("BMP", (".bmp",), bmp.write),
    Writer("JPEG", (".jpg", ".jpeg"), jpeg.write),
)


def suffixes(formats: Iterable[Reader | Writer]) -> list[str]:
    """All suffixes of these formats, in lower case, with the dot."""
    return [suffix for kind in formats for suffix in kind.suffixes]


def writer_of(path: Path) -> Writer | None:
    """The writer for a file's suffix, in upper or lower case; None if no format has this suffix."""
    return next((writer for writer in WRITERS if path.suffix.lower() in writer.suffixes), None)


def name_in_folder(path: Path) -> str | None:
    """The file's name without its suffix if some reader has the suffix, in upper or lower case; otherwise None."""
    name = path.name
    found = (suffix for suffix in suffixes(READERS) if name.lower().endswith(suffix))
    return next((name[: -len(suffix)] for suffix in found), None)
