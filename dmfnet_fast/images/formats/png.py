"""PNG: 8 and 16 bits, gray and color."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dmfnet_fast.images.formats.base import LoadedImage, Pixels
from dmfnet_fast.images.formats.pillow import open_as, read_full_depth, save_as, to_pil


def read(content: bytes, name: str) -> LoadedImage | None:
    """See `Reader.read`."""
    image = open_as("PNG", content, name)
    if image is None:
        return None
    with image:
        return LoadedImage(read_full_depth(image, content, name), name)


def _png16(pixels: NDArray[np.uint16]) -> bytes:
    """Encodes 16-bit RGB as PNG, which Pillow cannot do (PNG specification, third edition, color type 2)."""
    height, width, _ = pixels.shape

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = pixels.astype(">u2").view(np.uint8).reshape(height, -1)
    unfiltered = np.pad(rows, ((0, 0), (1, 0))).tobytes()  # each row begins with filter type 0 (none)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(unfiltered)) + chunk(b"IEND", b"")
    )


def encoded(pixels: NDArray[np.uint8]) -> bytes:
    """The content of a PNG file with an 8-bit image."""
    file = io.BytesIO()
    to_pil(pixels).save(file, "PNG", optimize=True)
    return file.getvalue()


def write(path: Path, pixels: Pixels) -> None:
    """See `Writer.write`."""
    if pixels.dtype == np.uint16 and pixels.ndim == 3:
        path.write_bytes(_png16(pixels))
    else:
        save_as("PNG", path, pixels)
