"""BMP: 16 bits a pixel."""

from __future__ import annotations

import struct
from pathlib import Path

from dmfnet_fast.images.io import read_image


def test_16_bits_a_pixel_bmp(tmp_path: Path) -> None:
    """RGB565: 16 bits a pixel, not a sample."""
    header = struct.pack("<2sIHHI", b"BM", 14 + 40 + 12 + 64 * 64 * 2, 0, 0, 66)
    info = struct.pack("<IiiHHIIiiII", 40, 64, 64, 1, 16, 3, 64 * 64 * 2, 0, 0, 0, 0)
    masks = struct.pack("<III", 0xF800, 0x07E0, 0x001F)
    (tmp_path / "x.bmp").write_bytes(header + info + masks + struct.pack("<H", 0xF800) * (64 * 64))
    assert (read_image(tmp_path / "x.bmp") == (255, 0, 0)).all()
