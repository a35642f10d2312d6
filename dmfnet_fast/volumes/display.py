"""How values become gray levels and colors: one range for a whole volume, and DICOM's well-known palettes."""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from dmfnet_fast.errors import VolumeError, require
from dmfnet_fast.volumes.measures import value_statistics
from dmfnet_fast.volumes.volume import Volume

# Shows brain and bone in one image.
CT_RANGE = (-100.0, 500.0)
TRACERS = ("PT", "NM")

# PS3.6, Annex B: for each name, the file in which pydicom keeps the table.
COLORMAPS = {
    "hot-iron": "hotiron.dcm",
    "pet": "pet.dcm",
    "hot-metal-blue": "hotmetalblue.dcm",
    "pet-20-step": "pet20step.dcm",
}
DEFAULT_COLORMAP = "hot-iron"


def display_range(volume: Volume) -> tuple[float, float]:
    """The values shown as black and as white, one pair for the whole volume.

    CT in HU: -100 to 500, in which brain and bone both show. PET and SPECT: 0 to the 99.8th percentile of what is
    brighter than the background, rounded up to a multiple of 0.5 for SUV. MRI and unknown modalities: the 1st
    percentile of all values to the 99.8th of the head. Color: 0 to 255. A volume that was resampled keeps the range of
    the values that were read.

    Raises:
        VolumeError: all values are equal.
    """
    if volume.color:
        return 0.0, 255.0
    if volume.units == "HU":
        return CT_RANGE
    statistics = value_statistics(volume)
    low, high = statistics.low, statistics.high
    if volume.modality in TRACERS or volume.units == "SUV":
        low, high = 0.0, float(np.ceil(high * 2) / 2) if volume.units == "SUV" else high
    if not high > low:
        raise VolumeError(f"{volume.source.path}: shows nothing: its values lie at {low:g}; check the file")
    return low, high


@cache
def colormap(name: str) -> NDArray[np.uint8]:
    """One of DICOM's well-known palettes, (256, 3) uint8, read-only.

    Raises:
        VolumeError: there is none of that name; `COLORMAPS` has them.
        MissingExtraError: the extra `dicom` is not installed.
    """
    if name not in COLORMAPS:
        raise VolumeError(f"unknown colormap {name!r}; use one of {', '.join(COLORMAPS)}")
    files = require("pydicom.data", "dicom").get_palette_files(COLORMAPS[name])
    dataset = require("pydicom", "dicom").dcmread(files[0])
    channels = [
        np.frombuffer(dataset[f"{color}PaletteColorLookupTableData"].value, np.uint8)[:256]
        for color in ("Red", "Green", "Blue")
    ]
    table = np.stack(channels, axis=-1)
    table.flags.writeable = False
    return table


def colorized(
    values: NDArray[np.float32], limits: tuple[float, float], name: str = DEFAULT_COLORMAP
) -> NDArray[np.uint8]:
    """Gray values of any shape in a palette's colors, whose ends are at `limits`; adds an axis: (..., 3) uint8."""
    low, high = limits
    index = np.rint((np.asarray(values, np.float32) - low) * (255.0 / (high - low))).clip(0, 255).astype(np.uint8)
    return colormap(name)[index]


def legend(
    limits: tuple[float, float], units: str | None, name: str = DEFAULT_COLORMAP, height: int = 256
) -> Image.Image:
    """A palette as a bar with its limits and units written beside it, an RGB image to put beside others.

    Args:
        limits: the values of both ends.
        units: as in `Volume.units`, or None.
        name: the palette.
        height: in pixels, at least 64.
    """
    page = Image.new("RGB", (80, height))
    bar = colormap(name)[np.linspace(255, 0, height - 24).round().astype(int)]
    page.paste(Image.fromarray(np.repeat(bar[:, None], 16, axis=1)), (4, 12))
    draw = ImageDraw.Draw(page)
    for share, value in ((0.0, limits[1]), (0.5, (limits[0] + limits[1]) / 2), (1.0, limits[0])):
        draw.text(
            (24, 7 + share * (height - 25)),
            f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}",
            fill=(255, 255, 255),
        )
    draw.text((24, 19), units or "", fill=(255, 255, 255))
    return page
