"""Records that describe a format, shared by the format modules and the tables."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

# H x W (gray) or H x W x 3 (RGB) of uint8, uint16 or a float type.
Pixels = NDArray[Any]


@dataclass(frozen=True)
class LoadedImage:
    """An image as its file holds it.

    Attributes:
        pixels: H x W or H x W x 3; uint8, uint16 or float32; upright, without transparency.
        name: name of the file, for messages.
        values: the values of black and white if the file states them; None if they have to be inferred. Ignored for
            uint8, whose range is always 0..255.
    """

    pixels: Pixels
    name: str
    values: tuple[float, float] | None = None


@dataclass(frozen=True)
class Reader:
    """A format that can be read. The content of a file decides its format; suffixes only select images in folders.

    Attributes:
        name: name of the format, for messages.
        suffixes: suffixes of its files, in lower case, with the dot; a suffix may contain several dots.
        read: takes the whole content of a file and its name. Returns None if the content is in another format, and
            raises an ImageError if it is in this format but cannot be read.
    """

    name: str
    suffixes: tuple[str, ...]
    read: Callable[[bytes, str], LoadedImage | None]


@dataclass(frozen=True)
class Writer:
    """A format that can be written. Every format holds 8-bit gray and color; the attributes say what else it holds.

    Attributes:
        name: name of the format, for messages.
        suffixes: suffixes that select the format, in lower case, with the dot; the usual one comes first.
        write: takes the file to write, and pixels that the format holds.
        gray16, color16: whether it holds uint16 gray and uint16 color.
        float_gray: whether it holds float gray. No format holds float color.
    """

    name: str
    suffixes: tuple[str, ...]
    write: Callable[[Path, Pixels], None]
    gray16: bool = False
    color16: bool = False
    float_gray: bool = False

    def holds(self, pixels: Pixels) -> bool:
        """Whether the format stores these pixels without loss of bit depth."""
        if pixels.dtype.kind == "f":
            return self.float_gray and pixels.ndim == 2
        if pixels.dtype == np.uint16:
            return self.color16 if pixels.ndim == 3 else self.gray16
        return True
