"""Single-page TIFF: 8 and 16 bits, gray and color, and float gray."""

from __future__ import annotations

from pathlib import Path

from PIL.TiffImagePlugin import TiffImageFile

from dmfnet_fast.errors import ImageError
from dmfnet_fast.images.formats.base import LoadedImage, Pixels
from dmfnet_fast.images.formats.pillow import open_as, read_full_depth, save_as

BITS, PHOTOMETRIC, PLANES = 258, 262, 284  # TIFF tags


def read(content: bytes, name: str) -> LoadedImage | None:
    """See `Reader.read`."""
    image = open_as("TIFF", content, name)
    if image is None:
        return None
    with image:
        assert isinstance(image, TiffImageFile)
        bits = max(image.tag_v2.get(BITS, (1,)))
        if bits > 8 and image.tag_v2.get(PLANES) == 2 and image.mode in ("RGB", "RGBA"):
            raise ImageError(f"{name}: keeps its {bits}-bit channels in separate planes; save it interleaved")
        # Photometric interpretation 0 means that white is zero; Pillow inverts such images only at 8 bits.
        inverted = image.tag_v2.get(PHOTOMETRIC) == 0 and image.mode.startswith("I;16")
        pixels = read_full_depth(image, content, name)
        return LoadedImage((2**bits - 1 - pixels).astype(pixels.dtype) if inverted else pixels, name)


def write(path: Path, pixels: Pixels) -> None:
    """See `Writer.write`."""
    save_as("TIFF", path, pixels, compression="tiff_deflate")
