"""TIFF: byte orders, planes, float, pages, integers of 32 bits."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dmfnet_fast import ImageError, OutputError
from dmfnet_fast.images.io import read_image, write_image
from tests.images.formats.samples import GRAY8, GRAY16, RGB16, RNG


def tiff16(path: Path, pixels: np.ndarray, order: str, orientation: int = 1, planes: int = 1) -> Path:
    """An uncompressed 16-bit RGB TIFF in either byte order (TIFF 6.0), which Pillow cannot write."""
    height, width, _ = pixels.shape
    data = pixels.astype(f"{order}u2").tobytes()
    short, long = 3, 4
    entries = [
        (256, long, 1, width), (257, long, 1, height), (258, short, 3, None), (259, short, 1, 1),
        (262, short, 1, 2), (273, long, 1, 8), (274, short, 1, orientation), (277, short, 1, 3),
        (278, long, 1, height), (279, long, 1, len(data)), (284, short, 1, planes),
    ]  # fmt: skip
    directory = 8 + len(data)
    depths = directory + 2 + 12 * len(entries) + 4
    packed = struct.pack(f"{order}H", len(entries))
    for tag, kind, count, value in entries:
        packed += struct.pack(f"{order}HHI", tag, kind, count)
        if value is None:
            packed += struct.pack(f"{order}I", depths)
        else:
            packed += struct.pack(f"{order}HH", value, 0) if kind == short else struct.pack(f"{order}I", value)
    packed += struct.pack(f"{order}I", 0) + struct.pack(f"{order}HHH", 16, 16, 16)
    mark = b"II*\0" if order == "<" else b"MM\0*"
    path.write_bytes(mark + struct.pack(f"{order}I", directory) + data + packed)
    return path


@pytest.mark.parametrize("order", ["<", ">"])
def test_16_bit_color_tiff(tmp_path: Path, order: str) -> None:
    assert np.array_equal(read_image(tiff16(tmp_path / "x.tif", RGB16, order)), RGB16)


def test_16_bit_color_tiff_upright(tmp_path: Path) -> None:
    read = read_image(tiff16(tmp_path / "x.tif", RGB16, "<", orientation=6))
    assert np.array_equal(read, np.rot90(RGB16, -1))


def test_16_bit_separate_planes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="separate planes"):
        read_image(tiff16(tmp_path / "x.tif", RGB16, "<", planes=2))


@pytest.mark.parametrize("pixels", [GRAY8, GRAY16], ids=["8", "16"])
def test_tiff_where_white_is_zero(tmp_path: Path, pixels: np.ndarray) -> None:
    Image.fromarray(pixels).save(tmp_path / "x.tif", tiffinfo={262: 0})
    # Pillow inverts 8-bit samples when it writes them, and does not touch 16-bit ones.
    stored = 255 - pixels if pixels.dtype == np.uint8 else pixels
    assert stored.tobytes() in (tmp_path / "x.tif").read_bytes()
    assert np.array_equal(read_image(tmp_path / "x.tif"), np.iinfo(pixels.dtype).max - stored)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow warns before it fails
def test_damaged_directory(tmp_path: Path) -> None:
    """A next-directory offset into nowhere made Pillow raise what it does not announce."""
    content = bytearray(tiff16(tmp_path / "x.tif", RGB16, "<").read_bytes())
    directory = struct.unpack_from("<I", content, 4)[0]
    after = directory + 2 + 12 * struct.unpack_from("<H", content, directory)[0]
    for offset in (directory + 2, 8, len(content) - 3):
        struct.pack_into("<I", content, after, offset)
        (tmp_path / "x.tif").write_bytes(content)
        with pytest.raises(ImageError, match=r"damaged|pages"):
            read_image(tmp_path / "x.tif")


def test_float_tiff_round_trip(tmp_path: Path) -> None:
    pixels = RNG.random((64, 80), np.float32)
    write_image(tmp_path / "x.tif", pixels)
    assert np.array_equal(read_image(tmp_path / "x.tif"), pixels)
    with pytest.raises(OutputError, match=r"\.tif only"):
        write_image(tmp_path / "x.png", pixels)


def test_several_pages(tmp_path: Path) -> None:
    pages = [Image.fromarray(GRAY8)] * 3
    pages[0].save(tmp_path / "x.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(ImageError, match="3 pages"):
        read_image(tmp_path / "x.tif")


@pytest.mark.parametrize(("low", "high", "fits"), [(0, 4095, True), (-1000, 3000, False)])
def test_32_bit_integers(tmp_path: Path, low: int, high: int, fits: bool) -> None:
    pixels = np.linspace(low, high, 64 * 64).reshape(64, 64).astype(np.int32)
    Image.fromarray(pixels).save(tmp_path / "x.tif")
    if fits:
        assert np.array_equal(read_image(tmp_path / "x.tif"), pixels)
    else:
        with pytest.raises(ImageError, match="-1000 to 3000"):
            read_image(tmp_path / "x.tif")
