"""JPEG: full chroma."""

from __future__ import annotations

from pathlib import Path

from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from dmfnet_fast.images.io import write_image
from tests.images.formats.samples import RGB8


def test_jpeg_keeps_full_chroma(tmp_path: Path) -> None:
    write_image(tmp_path / "x.jpg", RGB8)
    with Image.open(tmp_path / "x.jpg") as image:
        assert isinstance(image, JpegImageFile)
        assert [component[1:3] for component in image.layer] == [(1, 1)] * 3
