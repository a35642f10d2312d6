"""Montages: images side by side for visual comparison."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

GAP = 8
TITLE = 20
BACKGROUND, TEXT = (24, 24, 24), (225, 225, 225)


def montage(rows: Sequence[Sequence[NDArray[np.uint8]]], titles: Sequence[str]) -> NDArray[np.uint8]:
    """Lay out rows of images under column titles on a dark background.

    Args:
        rows: images H x W or H x W x 3, uint8; those of one row have the same size.
        titles: one title per column.

    Returns:
        The RGB image, (H, W, 3) uint8.
    """
    tiles = [[Image.fromarray(image).convert("RGB") for image in row] for row in rows]
    widths = [max(row[n].width for row in tiles) for n in range(len(titles))]
    heights = [max(tile.height for tile in row) for row in tiles]
    size = (sum(widths) + GAP * (len(widths) + 1), TITLE + sum(heights) + GAP * (len(heights) + 1))
    canvas = Image.new("RGB", size, BACKGROUND)
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(12)
    top = TITLE + GAP
    for row, height in zip(tiles, heights, strict=True):
        left = GAP
        for tile, width in zip(row, widths, strict=True):
            canvas.paste(tile, (left, top))
            left += width + GAP
        top += height + GAP
    left = GAP
    for title, width in zip(titles, widths, strict=True):
        draw.text((left + width / 2, TITLE / 2 + GAP / 2), title, TEXT, font, anchor="mm")
        left += width + GAP
    return np.asarray(canvas)
