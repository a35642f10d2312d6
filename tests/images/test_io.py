"""Files are read and written at their full depth, and bad ones are named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dmfnet_fast import DMFNetWarning, ImageError, OutputError
from dmfnet_fast.images.io import read_image, write_image
from tests.images.formats.samples import GRAY8, GRAY16, RGB8, RGB16


@pytest.mark.parametrize("suffix", [".png", ".tif", ".tiff", ".bmp"])
@pytest.mark.parametrize("pixels", [GRAY8, RGB8], ids=["gray", "rgb"])
def test_8_bit_round_trip(tmp_path: Path, suffix: str, pixels: np.ndarray) -> None:
    write_image(tmp_path / f"x{suffix}", pixels)
    assert np.array_equal(read_image(tmp_path / f"x{suffix}"), pixels)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bit_gray_round_trip(tmp_path: Path, suffix: str) -> None:
    write_image(tmp_path / f"x{suffix}", GRAY16)
    read = read_image(tmp_path / f"x{suffix}")
    assert read.dtype == np.uint16
    assert np.array_equal(read, GRAY16)


@pytest.mark.parametrize("pixels", [GRAY16, RGB16], ids=["gray", "rgb"])
def test_lost_depth_is_said(tmp_path: Path, pixels: np.ndarray) -> None:
    with pytest.warns(DMFNetWarning, match="written as 8-bit"):
        write_image(tmp_path / "x.bmp", pixels // 16, (0, 4095))
    assert np.array_equal(read_image(tmp_path / "x.bmp"), np.rint(pixels // 16 / 4095 * 255))


def test_unreadable_files(tmp_path: Path) -> None:
    write_image(tmp_path / "good.png", RGB16)
    good = (tmp_path / "good.png").read_bytes()
    write_image(tmp_path / "good.jpg", RGB8)
    contents = {
        "empty.png": (b"", "is empty"),
        "text.png": (b"not an image at all", "is not an image"),
        "truncated.png": (good[: len(good) // 2], "truncated or damaged"),
        "truncated.jpg": ((tmp_path / "good.jpg").read_bytes()[:900], "truncated or damaged"),
        "header.png": (good[:20], "is not an image|truncated or damaged"),
        "scan.dcm": (b"\0" * 128 + b"DICM" + b"\0" * 99, "is DICOM"),
    }
    for name, (content, message) in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ImageError, match=message) as caught:
            read_image(tmp_path / name)
        assert name in str(caught.value)
    with pytest.raises(ImageError, match="no such file"):
        read_image(tmp_path / "missing.png")
    with pytest.raises(ImageError, match="is a folder"):
        read_image(tmp_path)


def test_unwritable(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for path, message in (
        (tmp_path / "x.xyz", "unknown image format"),
        (tmp_path / "x", "unknown image format"),
        (tmp_path / "missing" / "x.png", "does not exist"),
        (tmp_path / "file" / "x.png", "does not exist|cannot be written"),
    ):
        with pytest.raises(OutputError, match=message):
            write_image(path, GRAY8)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
