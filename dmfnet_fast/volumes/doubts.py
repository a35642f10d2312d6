"""What is odd about a series although it can be read: signs of a slope that is damaged in some slices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmfnet_fast.volumes.frames import Frame

# A slice this many times as bright, or as dark, as both of its neighbors, which differ by less from each other.
_JUMP = 1.5
# Slices darker than this share of the second brightest are not compared: at the end of a head little is left.
_LEAST = 0.1
# Scanners of these kinds scale all slices of a series alike; those of PET and SPECT need not.
_ONE_SCALE = ("CT", "MR")


def doubts(frames: Sequence[Frame], values: NDArray[Any]) -> list[str]:
    """One sentence for each reason not to trust how bright slices are.

    Args:
        frames: of the slices, in their order.
        values: the slices as read.
    """
    if frames[0].pixels.color:
        return []
    return [*_scales(frames), *_jumps(frames, values)]


def _scales(frames: Sequence[Frame]) -> list[str]:
    scales = [(frame.slope, frame.intercept) for frame in frames]
    usual = max(set(scales), key=scales.count)
    if frames[0].file.header.text("Modality") not in _ONE_SCALE or len(set(scales)) == 1:
        return []
    odd = next(frame for frame, scale in zip(frames, scales, strict=True) if scale != usual)
    return [
        f"{odd.name}: has Rescale Slope {odd.slope:g} and Intercept {odd.intercept:g}, and others of its series "
        f"{usual[0]:g} and {usual[1]:g}: check that it is as bright as they are"
    ]


def _jumps(frames: Sequence[Frame], values: NDArray[Any]) -> list[str]:
    means = np.array([image.mean(dtype=np.float64) for image in values])
    means -= min(float(image.min()) for image in values)
    least = _LEAST * float(np.sort(means)[-2:][0])
    found = []
    for index in range(1, len(means) - 1):
        before, here, after = means[index - 1 : index + 2]
        if min(before, after) <= least or max(before, after) > _JUMP * min(before, after):
            continue
        if here > _JUMP * max(before, after) or here * _JUMP < min(before, after):
            found.append(
                f"{frames[index].name}: is {here / (before + after) * 2:.2g} times as bright as its neighbors: its "
                "Rescale Slope or its pixels may be damaged; compare it with the original"
            )
    return found
