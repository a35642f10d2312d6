"""Reading and writing images without losing their depth.

Inside the package an image is an array: H x W (gray) or H x W x 3 (RGB) of uint8, uint16 or a float type.
"""

from __future__ import annotations

import io
import os
import struct
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from dmfnet_fast.artifacts.atomic import replacing
from dmfnet_fast.errors import DMFNetError, ImageError, OutputError, warn

Pixels = NDArray[Any]

SMALLEST = 64
FULL_16_BIT = (0.0, 65535.0)
TIFF_BITS, TIFF_PHOTOMETRIC, TIFF_PLANES = 258, 262, 284
READABLE = ("PNG", "JPEG", "TIFF", "BMP")
# Written by suffix; JPEG keeps the chroma at full resolution because the color of b is half of the result.
WRITABLE: dict[str, tuple[str, dict[str, Any]]] = {
    ".png": ("PNG", {}),
    ".tif": ("TIFF", {"compression": "tiff_deflate"}),
    ".tiff": ("TIFF", {"compression": "tiff_deflate"}),
    ".bmp": ("BMP", {}),
    ".jpg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".jpeg": ("JPEG", {"quality": 95, "subsampling": 0}),
}
# What Pillow raises on files that are cut off or corrupt.
DAMAGE = (
    OSError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, AssertionError, EOFError, struct.error,
    zlib.error,
)  # fmt: skip
_DEEP_SUFFIXES = (".png", ".tif", ".tiff")
_NATIVE = "16L" if sys.byteorder == "little" else "16B"


def check_suffix(path: Path) -> None:
    """Raise an OutputError unless `path` names a format that can be written."""
    if path.suffix.lower() not in WRITABLE:
        raise OutputError(f"{path}: unknown image format {path.suffix!r}; use one of {', '.join(WRITABLE)}")


def _open(path: Path) -> ImageFile.ImageFile:
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
    try:
        # From memory: Pillow maps uncompressed files given by name, and mixes up the rows of rotated TIFFs then.
        image = Image.open(io.BytesIO(content), formats=READABLE)
        frames = getattr(image, "n_frames", 1)
    except UnidentifiedImageError as error:
        if content[128:132] == b"DICM":
            raise ImageError(f"{path}: is DICOM; export it as 16-bit PNG or TIFF first") from error
        raise ImageError(f"{path}: is not an image that can be read; use PNG, JPEG, TIFF or BMP") from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"{path}: is too large to be safe: {error}") from error
    except DAMAGE as error:
        raise ImageError(f"{path}: is truncated or damaged: {error}") from error
    if frames > 1:
        image.close()
        raise ImageError(f"{path}: holds {frames} pages; save each as an image of its own")
    assert isinstance(image, ImageFile.ImageFile)
    return image


def _raw_mode(image: ImageFile.ImageFile) -> str:
    """How the file stores its samples, in Pillow's words ("RGB;16B": three big-endian 16-bit channels)."""
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


def _decode_deep_color(path: Path) -> Pixels:
    """A 16-bit RGB or RGBA file as uint16.

    Pillow has no such mode and keeps the upper byte of each sample. Decoded once as stored and once as if
    in the other byte order, it yields the upper and then the lower bytes.
    """
    halves = []
    for lower in (False, True):
        with _open(path) as image:
            layout, order = _raw_mode(image).split(";")
            stored = _NATIVE if order == "16N" else order
            if lower:
                stored = "16B" if stored == "16L" else "16L"
            _set_raw_mode(image, f"{layout};{stored}")
            halves.append(np.asarray(ImageOps.exif_transpose(image), np.uint16))
    return halves[0] << 8 | halves[1]


def _over_black(pixels: Pixels) -> Pixels:
    """H x W x (1 or 3) with alpha last: blended over black, alpha gone."""
    top = np.iinfo(pixels.dtype).max
    colors, alpha = pixels[..., :-1].astype(np.float64), pixels[..., -1:].astype(np.float64)
    blended = np.rint(colors * (alpha / top)).astype(pixels.dtype)
    return blended[..., 0] if blended.shape[2] == 1 else blended


def _hide(pixels: Pixels, key: Any) -> Pixels:
    """Black where the image has the value that its file declares transparent."""
    if not isinstance(key, int | tuple):
        return pixels
    hidden = pixels == key if pixels.ndim == 2 else (pixels == np.array(key)).all(axis=2)
    return np.where(hidden[..., None] if pixels.ndim == 3 else hidden, 0, pixels).astype(pixels.dtype)


def from_pil(image: Image.Image, name: str) -> Pixels:
    """The pixels of a PIL image, upright by its EXIF orientation; transparency is blended over black.

    Returns:
        H x W or H x W x 3; uint8, uint16 (modes I;16 and I) or float32 (mode F).

    Raises:
        ImageError: the image is damaged, or its mode has no meaning here.
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


def read_image(path: str | os.PathLike[str]) -> Pixels:
    """Read a PNG, JPEG, TIFF or BMP at its full depth, upright.

    Returns:
        H x W or H x W x 3; uint8, uint16 or float32.

    Raises:
        ImageError: the file is missing, empty, damaged, has several pages or is no such image.
    """
    path = Path(path)
    with _open(path) as image:
        raw_mode = _raw_mode(image)
        key = image.info.get("transparency")
        inverted = 0
        if isinstance(image, TiffImageFile):
            bits = max(image.tag_v2.get(TIFF_BITS, (1,)))
            if bits > 8 and image.tag_v2.get(TIFF_PLANES) == 2 and image.mode in ("RGB", "RGBA"):
                raise ImageError(f"{path}: keeps its {bits}-bit channels in separate planes; save it interleaved")
            if image.tag_v2.get(TIFF_PHOTOMETRIC) == 0 and image.mode.startswith("I;16"):
                inverted = 2**bits - 1  # white is zero, which Pillow undoes for 8 bits only
        if ";16" not in raw_mode or image.mode.startswith("I") or image.format not in ("PNG", "TIFF"):
            pixels = from_pil(image, str(path))
            return (inverted - pixels).astype(pixels.dtype) if inverted else pixels
    if raw_mode.split(";")[0] not in ("RGB", "RGBA", "RGBX"):
        raise ImageError(f"{path}: is 16-bit {raw_mode}, which would lose depth; save it as 16-bit gray or RGB")
    try:
        pixels = _decode_deep_color(path)
    except DAMAGE as error:
        if isinstance(error, DMFNetError):
            raise
        raise ImageError(f"{path}: is truncated or damaged: {error}") from error
    return _over_black(pixels) if raw_mode.startswith("RGBA") else _hide(pixels, key)


def to_8_bit(pixels: Pixels, values: tuple[float, float]) -> NDArray[np.uint8]:
    """Pixels over the range `values` (black, white) as uint8; what lies outside is clipped."""
    if pixels.dtype == np.uint8:
        return pixels
    low, high = values
    return np.rint((pixels.astype(np.float64).clip(low, high) - low) * (255.0 / (high - low))).astype(np.uint8)


def to_pil(pixels: Pixels, values: tuple[float, float] = FULL_16_BIT) -> Image.Image:
    """A PIL image of the same depth: mode L, RGB, I;16 or F.

    PIL has no 16-bit color: such pixels become 8-bit RGB over the range `values`, with a warning.
    """
    if pixels.dtype == np.uint16 and pixels.ndim == 3:
        warn("PIL images cannot hold 16-bit color: the result is 8-bit RGB; give an array to keep the depth")
        pixels = to_8_bit(pixels, values)
    if pixels.dtype.kind == "f":
        pixels = pixels.astype(np.float32)
    return Image.fromarray(pixels)


def _png16(pixels: NDArray[np.uint16]) -> bytes:
    """A 16-bit RGB PNG, which Pillow cannot write (PNG specification, third edition: color type 2)."""
    height, width, _ = pixels.shape

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = pixels.astype(">u2").view(np.uint8).reshape(height, -1)
    unfiltered = np.pad(rows, ((0, 0), (1, 0))).tobytes()  # filter type 0 in front of each row
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(unfiltered)) + chunk(b"IEND", b"")
    )


def check_holds(path: Path, pixels: Pixels) -> None:
    """Raise an OutputError unless the format that `path` names exists and can hold pixels of this kind."""
    check_suffix(path)
    if pixels.dtype.kind == "f" and (pixels.ndim == 3 or not path.suffix.lower().startswith(".tif")):
        raise OutputError(f"{path}: float images are written as gray .tif only (in a folder: --format tif)")


def write_image(path: str | os.PathLike[str], pixels: Pixels, values: tuple[float, float] = FULL_16_BIT) -> None:
    """Write an image in the format that the suffix names, whole or not at all.

    PNG and TIFF keep 16 bits (color: PNG only), TIFF keeps gray float; what a format cannot hold becomes
    8-bit over the range `values` (black, white), with a warning.

    Raises:
        OutputError: the suffix is unknown, the format cannot hold float, or the file cannot be written.
    """
    path = Path(path)
    check_holds(path, pixels)
    suffix = path.suffix.lower()
    with replacing(path) as temporary:
        if pixels.dtype == np.uint16 and pixels.ndim == 3 and suffix == ".png":
            temporary.write_bytes(_png16(pixels))
            return
        if pixels.dtype == np.uint16 and (pixels.ndim == 3 or suffix not in _DEEP_SUFFIXES):
            warn(f"{path}: {suffix} cannot hold 16-bit {'color' if pixels.ndim == 3 else 'gray'}: written as 8-bit")
            pixels = to_8_bit(pixels, values)
        kind, options = WRITABLE[suffix]
        to_pil(pixels).save(temporary, kind, **options)
