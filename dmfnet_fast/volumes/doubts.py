"""What is odd about a series although it can be read: signs of a slope or a position that is damaged in some slices."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmfnet_fast.volumes.frames import Frame
from dmfnet_fast.volumes.messages import Message

# A slice this many times as bright, or as dark, as both of its neighbors, which differ by less from each other.
_JUMP = 1.5
# Fewer slices have no order that one could break.
_ORDERED = 6
# Slices darker than this share of the second brightest are not compared: at the end of a head little is left.
_LEAST = 0.1
# Scanners of these kinds scale all slices of a series alike; those of PET and SPECT need not.
_ONE_SCALE = ("CT", "MR")


def doubts(frames: Sequence[Frame], values: NDArray[Any]) -> list[str]:
    """One sentence for each reason not to trust how bright slices are, or where they lie.

    Args:
        frames: of the slices, in their order.
        values: the slices as read.
    """
    brightness = [] if frames[0].pixels.color else [*_scales(frames), *_jumps(frames, values)]
    return [*_order(frames), *brightness]


def _order(frames: Sequence[Frame]) -> list[str]:
    """Slices are numbered as they lie, or as they were taken, in a pattern; one or two that break it are suspicious."""
    texts = [frame.file.header.text("InstanceNumber") for frame in frames]
    if len(frames) < _ORDERED or len(set(texts)) < len(texts) or not all(text.isdecimal() for text in texts):
        return []
    numbers = [int(text) for text in texts]
    up, down = _ascending(numbers), _ascending([-number for number in numbers])
    kept = up if len(up) > len(down) else down
    odd = [frames[index].name for index in range(len(frames)) if index not in kept]
    if len(odd) not in (1, 2):
        return []
    return [
        Message(
            "{file}: does not lie where its Instance Number is among those of the other slices: its position may be "
            "damaged; look at the slices beside it",
            file=odd[-1],
        )
    ]


def _ascending(numbers: Sequence[int]) -> set[int]:
    """Where a longest ascending part of a sequence of different numbers has its members."""
    # The lowest end of an ascending part of each length so far, where it is, and for each member the one before it.
    ends: list[int] = []
    at: list[int] = []
    before: list[int] = []
    for index, number in enumerate(numbers):
        length = bisect_left(ends, number)
        before.append(at[length - 1] if length else -1)
        ends[length : length + 1] = [number]
        at[length : length + 1] = [index]
    members = set()
    index = at[-1] if at else -1
    while index >= 0:
        members.add(index)
        index = before[index]
    return members


def _scales(frames: Sequence[Frame]) -> list[str]:
    scales = [(frame.slope, frame.intercept) for frame in frames]
    usual = max(set(scales), key=scales.count)
    if frames[0].file.header.text("Modality") not in _ONE_SCALE or len(set(scales)) == 1:
        return []
    odd = next(frame for frame, scale in zip(frames, scales, strict=True) if scale != usual)
    return [
        Message(
            f"{{file}}: has Rescale Slope {odd.slope:g} and Intercept {odd.intercept:g}, and others of its series "
            f"{usual[0]:g} and {usual[1]:g}: check that it is as bright as they are",
            file=odd.name,
        )
    ]


def _jumps(frames: Sequence[Frame], values: NDArray[Any]) -> list[str]:
    means = np.array([image.mean(dtype=np.float64) for image in values])
    means -= min(float(image.min()) for image in values)
    least = _LEAST * float(np.sort(means)[-2:][0])
    found: list[str] = []
    for index in range(1, len(means) - 1):
        before, here, after = means[index - 1 : index + 2]
        if min(before, after) <= least or max(before, after) > _JUMP * min(before, after):
            continue
        if here > _JUMP * max(before, after) or here * _JUMP < min(before, after):
            found.append(
                Message(
                    f"{{file}}: is {here / (before + after) * 2:.2g} times as bright as its neighbors: its Rescale "
                    "Slope or its pixels may be damaged; compare it with the original",
                    file=frames[index].name,
                )
            )
    return found
