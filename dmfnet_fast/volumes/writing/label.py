"""Text drawn into a corner of every slice."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from dmfnet_fast.errors import OutputError

# The text's height as a share of the image's, and the least that can be read, in pixels.
_SHARE, _LEAST = 0.04, 8


class Label:
    """White text with a black outline in the lower left corner of an image.

    Args:
        text: a line of Latin letters.
        rows, columns: size of the images.

    Raises:
        OutputError: the text cannot be drawn, or does not fit.
    """

    def __init__(self, text: str, rows: int, columns: int) -> None:
        if not text.strip() or not text.isprintable() or not text.isascii():
            raise OutputError(f"label {text!r}: must be one line of letters, digits and punctuation (ASCII)")
        for size in range(max(_LEAST, round(rows * _SHARE)), _LEAST - 1, -1):
            font = ImageFont.load_default(size)
            place = (size // 2, rows - size // 2)
            _, top, right, _ = font.getbbox(text, anchor="ls", stroke_width=1)
            if place[0] + right <= columns and place[1] + top >= 0:
                break
        else:
            raise OutputError(f"label {text!r}: does not fit into images of {columns}x{rows}; use a shorter one")
        self._letters = Image.new("L", (columns, rows))
        self._outline = Image.new("L", (columns, rows))
        ImageDraw.Draw(self._letters).text(place, text, 255, font, anchor="ls")
        ImageDraw.Draw(self._outline).text(place, text, 255, font, anchor="ls", stroke_width=1)

    def __call__(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """A copy of the image, (rows, columns, 3), with the text."""
        drawn = Image.fromarray(np.ascontiguousarray(image))
        drawn.paste((0, 0, 0), mask=self._outline)
        drawn.paste((255, 255, 255), mask=self._letters)
        return np.asarray(drawn)
