"""Reads and writes images at full bit depth, in the formats of `images.formats`.

Inside the package an image is an array: H x W (gray) or H x W x 3 (RGB) of uint8, uint16 or a float type.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dmfnet_fast.artifacts.atomic import replacing
from dmfnet_fast.errors import ImageError, OutputError, warn
from dmfnet_fast.images import formats
from dmfnet_fast.images.formats.base import LoadedImage, Pixels, Writer
from dmfnet_fast.images.formats.pillow import FULL_16_BIT, from_pil, to_8_bit, to_pil
from dmfnet_fast.wording import alternatives

__all__ = [
    "FULL_16_BIT", "LoadedImage", "Pixels", "check_holds", "check_suffix", "from_pil", "load_image",
    "read_image", "to_8_bit", "to_pil", "write_image", "writing_image",
]  # fmt: skip


def _content(path: Path) -> bytes:
    try:
        if path.is_dir():
            raise ImageError(f"{path}: is a folder, not an image")
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise ImageError(f"{path}: no such file") from error
    except OSError as error:
        raise ImageError(f"{path}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        if isinstance(error, ImageError):
            raise
        raise ImageError(f"{str(path)!r}: is no possible file name") from error
    if not content:
        raise ImageError(f"{path}: is empty (0 bytes)")
    return content


def load_image(path: str | os.PathLike[str]) -> LoadedImage:
    """Reads an image of any format in `formats.READERS`, upright and at its full bit depth.

    Raises:
        ImageError: the file is missing, empty or damaged, has several pages, or is not in one of these formats.
    """
    path = Path(path)
    content = _content(path)
    for reader in formats.READERS:
        image = reader.read(content, str(path))
        if image is not None:
            return image
    if content[128:132] == b"DICM":
        raise ImageError(f"{path}: is DICOM, which is a volume: give both to dmfnet-fuse, or use volumes.read_volume")
    names = alternatives(reader.name for reader in formats.READERS)
    raise ImageError(f"{path}: is not an image that can be read; use {names}")


def read_image(path: str | os.PathLike[str]) -> Pixels:
    """The pixels of `load_image` alone, for callers that do not need the value range that the file states.

    Returns:
        H x W or H x W x 3; uint8, uint16 or float32.

    Raises:
        ImageError: as for `load_image`.
    """
    return load_image(path).pixels


def check_suffix(path: Path) -> Writer:
    """The writer of the format that the suffix of `path` names.

    Raises:
        OutputError: the suffix names no format that can be written.
    """
    writer = formats.writer_of(path)
    if writer is None:
        known = ", ".join(formats.suffixes(formats.WRITERS))
        raise OutputError(f"{path}: unknown image format {path.suffix!r}; use one of {known}")
    return writer


def check_holds(path: Path, pixels: Pixels) -> Writer:
    """The writer of the format that the suffix of `path` names, if it can hold such pixels, possibly reduced to 8 bits.

    Raises:
        OutputError: the suffix names no format that can be written, or the pixels are float and it cannot hold them.
    """
    writer = check_suffix(path)
    if pixels.dtype.kind == "f" and not writer.holds(pixels):
        suffixes = [able.suffixes[0] for able in formats.WRITERS if able.float_gray]
        options = alternatives(suffix[1:] for suffix in suffixes)
        raise OutputError(
            f"{path}: float images are written as gray {alternatives(suffixes)} only (in a folder: --format {options})"
        )
    return writer


def write_image(path: str | os.PathLike[str], pixels: Pixels, values: tuple[float, float] = FULL_16_BIT) -> None:
    """Writes an image atomically, in the format that the suffix names; see `writing_image`."""
    with writing_image(path, pixels, values):
        pass


@contextmanager
def writing_image(
    path: str | os.PathLike[str], pixels: Pixels, values: tuple[float, float] = FULL_16_BIT
) -> Iterator[Path]:
    """Writes an image beside `path`, yields where, and then puts it in place, in the format that the suffix names.

    16-bit pixels that the format cannot hold (see `formats.WRITERS`) are reduced to 8 bits over the range `values`
    (black, white), with a warning.

    Raises:
        OutputError: the suffix is unknown, the format cannot hold float pixels, or the file cannot be written.
    """
    path = Path(path)
    writer = check_holds(path, pixels)
    with replacing(path) as temporary:
        if not writer.holds(pixels):
            kind = "color" if pixels.ndim == 3 else "gray"
            warn(f"{path}: {path.suffix.lower()} cannot hold 16-bit {kind}: written as 8-bit")
            pixels = to_8_bit(pixels, values)
        writer.write(temporary, pixels)
        yield temporary
