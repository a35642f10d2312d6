"""What formats have by Pillow: orientation, and PIL images out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dmfnet_fast import DMFNetWarning, ImageError
from dmfnet_fast.images.io import read_image, to_pil
from tests.images.formats.samples import RGB16


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif"])
def test_exif_orientation(tmp_path: Path, suffix: str, orientation: int) -> None:
    image = np.zeros((64, 80), np.uint8)
    image[:32, :40] = 200
    # How the pixels lie in the file when the viewer has to undo the orientation (EXIF 2.32, tag 0x0112).
    stored = {
        1: image, 2: image[:, ::-1], 3: image[::-1, ::-1], 4: image[::-1],
        5: image.T, 6: np.rot90(image, 1), 7: image[::-1, ::-1].T, 8: np.rot90(image, -1),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / f"x{suffix}", exif=exif)
    read = read_image(tmp_path / f"x{suffix}").astype(int)
    assert read.shape == image.shape
    assert np.abs(read - image).mean() < 3


def test_16_bit_color_pil_spans_its_range() -> None:
    with pytest.warns(DMFNetWarning, match="8-bit RGB"):
        image = to_pil(RGB16 // 16, (0, 4095))
    assert np.asarray(image).max() == 255


def test_more_pixels_than_pillow_decodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.png"
    Image.new("L", (64, 64)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64 * 64 // 2 - 1)
    message = (
        r"x\.png: has more pixels than Pillow decodes \(.*\); make it smaller, cut it into tiles, or, in Python .*"
    )
    with pytest.raises(ImageError, match=f"{message}MAX_IMAGE_PIXELS"):
        read_image(path)
