"""Volumes: DICOM series and NIfTI files in, aligned by their geometry, shown in one range of values.

Needs the extra `dicom`; registration also `register`. Importing this loads neither.
"""

from dmfnet_fast.volumes.alignment import LOW_COVERAGE, LOW_OVERLAP, Alignment, align
from dmfnet_fast.volumes.display import COLORMAPS, DEFAULT_COLORMAP, colorized, colormap, display_range, legend
from dmfnet_fast.volumes.drawing import draw_alignment
from dmfnet_fast.volumes.reading import Listing, VolumeInfo, list_volumes, read_volume
from dmfnet_fast.volumes.resampling import resample
from dmfnet_fast.volumes.showing import Shown, show
from dmfnet_fast.volumes.volume import Instance, Link, Source, ValueStatistics, Volume

__all__ = [
    "COLORMAPS",
    "DEFAULT_COLORMAP",
    "LOW_COVERAGE",
    "LOW_OVERLAP",
    "Alignment",
    "Instance",
    "Link",
    "Listing",
    "Shown",
    "Source",
    "ValueStatistics",
    "Volume",
    "VolumeInfo",
    "align",
    "colorized",
    "colormap",
    "display_range",
    "draw_alignment",
    "legend",
    "list_volumes",
    "read_volume",
    "resample",
    "show",
]
