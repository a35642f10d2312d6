"""The formats of images: one a file, and one row in each table for what can be done with it.

Whatever lists formats, in messages and in the help of commands, takes them from these tables.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from dmfnet_fast.images.formats import bmp, jpeg, png, tiff
from dmfnet_fast.images.formats.base import Reader, Writer

__all__ = ["READERS", "WRITERS", "either", "name_in_folder", "suffixes", "writer_of"]

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
    """Every suffix of these formats, in lower case, with the dot."""
    return [suffix for kind in formats for suffix in kind.suffixes]


def either(names: Iterable[str]) -> str:
    """Names in a sentence: "PNG, JPEG or TIFF"."""
    *first, last = names
    return f"{', '.join(first)} or {last}" if first else last


def writer_of(path: Path) -> Writer | None:
    """The writer of the format that a file's suffix names, in any case; None if there is none."""
    return next((writer for writer in WRITERS if path.suffix.lower() in writer.suffixes), None)


def name_in_folder(path: Path) -> str | None:
    """The name, without its suffix, of a file that can be read by its suffix, in any case; None of another file."""
    name = path.name
    found = (suffix for suffix in suffixes(READERS) if name.lower().endswith(suffix))
    return next((name[: -len(suffix)] for suffix in found), None)
