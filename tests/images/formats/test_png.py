"""PNG: 16 bits of color, transparency, palettes."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dmfnet_fast import ImageError
from dmfnet_fast.images.io import read_image, write_image
from tests.images.formats.samples import GRAY8, GRAY16, RGB8, RGB16


def png16_alpha(path: Path, pixels: np.ndarray, color_type: int) -> Path:
    """A 16-bit PNG with alpha, color type 6 (RGBA) or 4 (gray and alpha)."""
    height, width = pixels.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 16, color_type, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    return path


def test_16_bit_color_png_round_trip(tmp_path: Path) -> None:
    write_image(tmp_path / "x.png", RGB16)
    read = read_image(tmp_path / "x.png")
    assert read.dtype == np.uint16
    assert np.array_equal(read, RGB16)
    # An independent reader agrees about the upper bytes.
    assert np.array_equal(np.asarray(Image.open(tmp_path / "x.png")), RGB16 >> 8)


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_transparent_color(tmp_path: Path, mode: str) -> None:
    pixels = np.full((64, 64), 200, np.uint8)
    pixels[:, :32] = 90
    Image.fromarray(pixels).convert(mode).save(tmp_path / "x.png", transparency=200 if mode == "L" else (200,) * 3)
    read = read_image(tmp_path / "x.png")
    assert not read[:, 32:].any()
    assert (read[:, :32] == 90).all()


def test_transparent_value_of_16_and_1_bits(tmp_path: Path) -> None:
    pixels = np.full((64, 64), 13621, np.uint16)
    pixels[:8] = 500
    Image.fromarray(pixels).save(tmp_path / "x.png", transparency=13621)
    assert np.array_equal(read_image(tmp_path / "x.png"), np.where(pixels == 500, 500, 0))
    Image.fromarray(GRAY8 > 127).save(tmp_path / "y.png", transparency=255)
    with Image.open(tmp_path / "y.png") as image:
        assert image.info["transparency"] == 255
    assert not read_image(tmp_path / "y.png").any()


def test_16_bit_alpha(tmp_path: Path) -> None:
    alpha = np.full((64, 80, 1), 65535, np.uint16)
    alpha[:8] = 0
    read = read_image(png16_alpha(tmp_path / "x.png", np.dstack([RGB16, alpha]), 6))
    assert np.array_equal(read[8:], RGB16[8:])
    assert not read[:8].any()


def test_16_bit_gray_and_alpha_is_refused(tmp_path: Path) -> None:
    path = png16_alpha(tmp_path / "x.png", np.dstack([GRAY16, GRAY16]), 4)
    with pytest.raises(ImageError, match="would lose depth"):
        read_image(path)


def test_rgba_over_black(tmp_path: Path) -> None:
    alpha = np.full((64, 80, 1), 255, np.uint8)
    alpha[:, :40] = 0
    Image.fromarray(np.dstack([RGB8, alpha])).save(tmp_path / "x.png")
    read = read_image(tmp_path / "x.png")
    assert np.array_equal(read[:, 40:], RGB8[:, 40:])
    assert not read[:, :40].any()


def test_gray_and_alpha(tmp_path: Path) -> None:
    Image.fromarray(np.dstack([GRAY8, np.full_like(GRAY8, 255)])).save(tmp_path / "x.png")
    assert np.array_equal(read_image(tmp_path / "x.png"), GRAY8)


def test_palettes(tmp_path: Path) -> None:
    colors = Image.fromarray(RGB8).quantize(16)
    colors.save(tmp_path / "colors.png")
    assert np.array_equal(read_image(tmp_path / "colors.png"), np.asarray(colors.convert("RGB")))
    gray = Image.fromarray(GRAY8).convert("P")
    gray.save(tmp_path / "gray.png")
    assert np.array_equal(read_image(tmp_path / "gray.png"), GRAY8)
    colors.save(tmp_path / "transparent.png", transparency=0)
    hidden = np.asarray(colors) == 0
    assert not read_image(tmp_path / "transparent.png")[hidden].any()


def test_1_bit(tmp_path: Path) -> None:
    Image.fromarray(GRAY8 > 127).save(tmp_path / "x.png")
    assert np.array_equal(read_image(tmp_path / "x.png"), np.where(GRAY8 > 127, 255, 0))


def test_truncated_8_bit_png(tmp_path: Path) -> None:
    write_image(tmp_path / "x.png", GRAY8)
    content = (tmp_path / "x.png").read_bytes()
    (tmp_path / "x.png").write_bytes(content[: len(content) // 2])
    with pytest.raises(ImageError, match="truncated or damaged"):
        read_image(tmp_path / "x.png")
