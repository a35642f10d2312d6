"""`Shown`: a volume as 8-bit images, all of one range of values; what is fused and what people look at."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dmfnet_fast.errors import VolumeError, warn
from dmfnet_fast.images.color import check_range
from dmfnet_fast.volumes.display import DEFAULT_COLORMAP, TRACERS, colormap, display_range
from dmfnet_fast.volumes.measures import value_statistics
from dmfnet_fast.volumes.volume import Volume

GRAY = "gray"


@dataclass(frozen=True, eq=False)
class Shown:
    """A volume, and how its values become 8-bit images.

    Attributes:
        volume: the volume.
        limits: the values of black and white, or of both ends of the palette; 0 and 255 for color.
        palette: one of `display.COLORMAPS`, or None where values stay gray or are colors already.
    """

    volume: Volume
    limits: tuple[float, float]
    palette: str | None

    @property
    def color(self) -> bool:
        """Whether images are in color."""
        return self.volume.color or self.palette is not None

    def image(self, number: int) -> NDArray[np.uint8]:
        """One slice: (rows, columns) or (rows, columns, 3)."""
        return self.display(self.volume.values[number])

    def display(self, values: NDArray[np.generic]) -> NDArray[np.uint8]:
        """Values of the volume, of any shape, as gray levels or colors."""
        if self.volume.color:
            return np.asarray(values, np.uint8)
        low, high = self.limits
        levels = np.subtract(values, np.float32(low), dtype=np.float32)
        levels *= np.float32(255.0 / (high - low))
        np.rint(levels, out=levels)
        index = levels.clip(0, 255, out=levels).astype(np.uint8)
        return index if self.palette is None else colormap(self.palette).take(index, axis=0)


def show(volume: Volume, limits: tuple[float, float] | None = None, palette: str | None = None) -> Shown:
    """Decide how a volume is shown.

    Args:
        volume: the volume; where it is to be fused, on the grid of the other one.
        limits: the values of black and white; None selects those of `display_range`. Not used for color.
        palette: one of `display.COLORMAPS`, or "gray"; None selects hot iron for a gray PET or SPECT, and gray for
            everything else.

    Raises:
        VolumeError: the volume shows nothing, is a PET or SPECT without anything dark, is in color and a palette is
            asked for, or there is no such palette.
        ImageError: the limits are not two finite numbers in ascending order.
        MissingExtraError: a palette is needed, and the extra `dicom` is not installed.
    """
    name = volume.source.path
    if volume.color:
        if palette is not None:
            raise VolumeError(f"{name}: is in color already; leave the colormap out")
        if limits is not None:
            warn(f"{name}: is in color, which always spans 0..255: its range is not used")
        return Shown(volume, display_range(volume), None)
    if palette is None:
        palette = DEFAULT_COLORMAP if is_tracer(volume) else GRAY
    if palette != GRAY:
        colormap(palette)
    if limits is None:
        limits = display_range(volume)
        _check_contrast(volume, limits[1])
    else:
        limits = check_range(limits, name)
    return Shown(volume, limits, None if palette == GRAY else palette)


def _check_contrast(volume: Volume, high: float) -> None:
    """Raise a VolumeError if a PET or SPECT, shown from 0, is bright everywhere, as with a damaged intercept."""
    if not is_tracer(volume):
        return
    low = value_statistics(volume).dark
    if low > high / 2:
        raise VolumeError(
            f"{volume.source.path}: would be bright everywhere: its values lie between {low:.4g} and {high:.4g}, far "
            "from 0; check the file, or state their range (--range-a or --range-b)"
        )


def is_tracer(volume: Volume) -> bool:
    """Whether a volume shows a tracer: PET and SPECT."""
    return volume.modality in TRACERS or volume.units == "SUV"
