"""Shared code of the formats that Pillow decodes: opening, modes, transparency, 16-bit color, saving."""

from __future__ import annotations

import io
import struct
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from dmfnet_fast.errors import DMFNetError, ImageError, warn
from dmfnet_fast.images.formats.base import LoadedImage, Pixels

FULL_16_BIT = (0.0, 65535.0)
# Exceptions that Pillow raises on truncated or corrupt files.
DAMAGE = (
    OSError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, AssertionError, EOFError, struct.error,
    zlib.error,
)  # fmt: skip
_NATIVE = "16L" if sys.byteorder == "little" else "16B"


def open_as(kind: str, content: bytes, name: str) -> ImageFile.ImageFile | None:
    """Opens, but does not decode, a file of Pillow's format `kind`; None if the content is in another format.

    Raises:
        ImageError: the file is damaged, is too large, or has several pages.
    """
    try:
        # Opened from memory: Pillow memory-maps uncompressed files given by name, and then scrambles the rows of
        # rotated TIFFs.
        image = Image.open(io.BytesIO(content), formats=(kind,))
        frames = getattr(image, "n_frames", 1)
    except UnidentifiedImageError:
        return None
    except Image.DecompressionBombError as error:
        raise ImageError(
            f"{name}: has more pixels than Pillow decodes ({error}); make it smaller, cut it into tiles, or, in Python "
            "and if you trust the file, raise PIL.Image.MAX_IMAGE_PIXELS"
        ) from error
    except DAMAGE as error:
        raise ImageError(f"{name}: is truncated or damaged: {error}") from error
    if frames > 1:
        image.close()
        raise ImageError(f"{name}: holds {frames} pages; save each as an image of its own")
    assert isinstance(image, ImageFile.ImageFile)
    return image


def read_8_bit(kind: str, content: bytes, name: str) -> LoadedImage | None:
    """`Reader.read` for an 8-bit format, named `kind` in Pillow."""
    image = open_as(kind, content, name)
    if image is None:
        return None
    with image:
        return LoadedImage(from_pil(image, name), name)


def read_full_depth(image: ImageFile.ImageFile, content: bytes, name: str) -> Pixels:
    """The pixels of a PNG or TIFF from `open_as`, including 16-bit color, which Pillow itself reduces to 8 bits.

    Raises:
        ImageError: the file is damaged, or its layout is not supported.
    """
    raw_mode, key = _raw_mode(image), image.info.get("transparency")
    if ";16" not in raw_mode or image.mode.startswith("I"):
        return from_pil(image, name)
    if raw_mode.split(";")[0] not in ("RGB", "RGBA", "RGBX"):
        raise ImageError(f"{name}: is 16-bit {raw_mode}, which would lose depth; save it as 16-bit gray or RGB")
    assert image.format is not None
    try:
        pixels = _decode_deep_color(image.format, content, name)
    except DAMAGE as error:
        if isinstance(error, DMFNetError):
            raise
        raise ImageError(f"{name}: is truncated or damaged: {error}") from error
    return _over_black(pixels) if raw_mode.startswith("RGBA") else _hide(pixels, key)


def _raw_mode(image: ImageFile.ImageFile) -> str:
    """Pillow's raw mode, the layout of the samples in the file ("RGB;16B": three big-endian 16-bit channels)."""
    if not image.tile:
        return ""
    arguments = image.tile[0].args
    first = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return first if isinstance(first, str) else ""


def _set_raw_mode(image: ImageFile.ImageFile, raw_mode: str) -> None:
    image.tile = [
        tile._replace(args=(raw_mode, *tile.args[1:]) if isinstance(tile.args, tuple) else raw_mode)
        for tile in image.tile
    ]


def _decode_deep_color(kind: str, content: bytes, name: str) -> Pixels:
    """Decodes a 16-bit RGB or RGBA file to uint16.

    Pillow has no such mode and keeps only the upper byte of each sample. The file is therefore decoded twice: in its
    own byte order for the upper bytes, and in the opposite one for the lower bytes.
    """
    halves = []
    for lower in (False, True):
        image = open_as(kind, content, name)
        assert image is not None
        with image:
            layout, order = _raw_mode(image).split(";")
            stored = _NATIVE if order == "16N" else order
            if lower:
                stored = "16B" if stored == "16L" else "16L"
            _set_raw_mode(image, f"{layout};{stored}")
            halves.append(np.asarray(ImageOps.exif_transpose(image), np.uint16))
    return halves[0] << 8 | halves[1]


def _over_black(pixels: Pixels) -> Pixels:
    """Blends pixels over black and drops their alpha, the last of 2 or 4 channels."""
    top = np.iinfo(pixels.dtype).max
    colors, alpha = pixels[..., :-1].astype(np.float64), pixels[..., -1:].astype(np.float64)
    blended = np.rint(colors * (alpha / top)).astype(pixels.dtype)
    return blended[..., 0] if blended.shape[2] == 1 else blended


def _hide(pixels: Pixels, key: Any) -> Pixels:
    """Sets pixels that have the transparent value of their file to black."""
    if not isinstance(key, int | tuple):
        return pixels
    hidden = pixels == key if pixels.ndim == 2 else (pixels == np.array(key)).all(axis=2)
    return np.where(hidden[..., None] if pixels.ndim == 3 else hidden, 0, pixels).astype(pixels.dtype)


def from_pil(image: Image.Image, name: str) -> Pixels:
    """The pixels of a PIL image, upright by its EXIF orientation; transparency is blended over black.

    Returns:
        H x W or H x W x 3; uint8, uint16 (modes I;16 and I) or float32 (mode F).

    Raises:
        ImageError: the image is damaged, or its mode is not supported.
    """
    try:
        image = ImageOps.exif_transpose(image)
        if image.mode == "P" or image.mode == "PA":
            transparent = image.mode == "PA" or "transparency" in image.info
            colors = image.convert("RGBA" if transparent else "RGB")
            pixels = np.asarray(colors)
            pixels = _over_black(pixels) if transparent else pixels
            gray = (pixels[..., 0] == pixels[..., 1]).all() and (pixels[..., 0] == pixels[..., 2]).all()
            return pixels[..., 0] if gray else pixels
        if image.mode in ("La", "RGBa") or (image.mode in ("L", "RGB") and "transparency" in image.info):
            image = image.convert("LA" if image.mode.startswith("L") else "RGBA")
        if image.mode in ("LA", "RGBA"):
            return _over_black(np.asarray(image))
        if image.mode in ("RGBX", "CMYK", "YCbCr", "HSV"):
            return np.asarray(image.convert("RGB"))
        key = image.info.get("transparency")
        if image.mode == "1":
            return _hide(np.asarray(image.convert("L")), key)
        pixels = np.asarray(image)
    except DAMAGE as error:
        raise ImageError(f"{name}: is truncated or damaged: {error}") from error
    if image.mode in ("L", "RGB", "F"):
        return pixels
    if image.mode.startswith("I;16"):
        return _hide(pixels.astype(np.uint16), key)
    if image.mode == "I":
        if pixels.min() < 0 or pixels.max() > 65535:
            raise ImageError(
                f"{name}: has values from {pixels.min()} to {pixels.max()}; shift and scale them to 0..65535"
            )
        return pixels.astype(np.uint16)
    raise ImageError(f"{name}: has mode {image.mode}, which has no luminance; save it as gray or RGB")


def to_8_bit(pixels: Pixels, values: tuple[float, float]) -> NDArray[np.uint8]:
    """Scales pixels from the range `values` (black, white) to uint8; values outside the range are clipped."""
    if pixels.dtype == np.uint8:
        return pixels
    low, high = values
    return np.rint((pixels.astype(np.float64).clip(low, high) - low) * (255.0 / (high - low))).astype(np.uint8)


def to_pil(pixels: Pixels, values: tuple[float, float] = FULL_16_BIT) -> Image.Image:
    """A PIL image of the same depth: mode L, RGB, I;16 or F.

    PIL has no 16-bit color: such pixels become 8-bit RGB over the range `values` (black, white), with a warning.
    """
    if pixels.dtype == np.uint16 and pixels.ndim == 3:
        warn("PIL images cannot hold 16-bit color: the result is 8-bit RGB; give an array to keep the depth")
        pixels = to_8_bit(pixels, values)
    if pixels.dtype.kind == "f":
        pixels = pixels.astype(np.float32)
    return Image.fromarray(pixels)


def save_as(kind: str, path: Path, pixels: Pixels, **options: Any) -> None:
    """Writes pixels in Pillow's format `kind`; their bit depth must be one that PIL supports."""
    to_pil(pixels).save(path, kind, **options)
