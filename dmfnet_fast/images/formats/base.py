"""What a format is: the records that its file and the tables share."""

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
        name: the file's, in messages.
        values: the values that mean black and white, if the file states them; else None, and they are inferred.
            Of no use to uint8, which always means 0..255.
    """

    pixels: Pixels
    name: str
    values: tuple[float, float] | None = None


@dataclass(frozen=True)
class Reader:
    """A format that can be read. A file's content tells its format; in folders, suffixes tell which files are images.

    Attributes:
        name: of the format, in messages.
        suffixes: of its files, in lower case, with the dot; several dots are possible.
        read: takes a file's whole content and its name. Returns None if the content is of another format; raises an
            ImageError if it is of this one and cannot be read.
    """

    name: str
    suffixes: tuple[str, ...]
    read: Callable[[bytes, str], LoadedImage | None]


@dataclass(frozen=True)
class Writer:
    """A format that can be written: 8 bits, gray and color, and what the attributes say.

    Attributes:
        name: of the format, in messages.
        suffixes: that name it, in lower case, with the dot; the first is the usual one.
        write: takes the file to write and pixels that the format holds.
        gray16, color16: whether it holds uint16.
        float_gray: whether it holds float gray. No format holds float color.
    """

    name: str
    suffixes: tuple[str, ...]
    write: Callable[[Path, Pixels], None]
    gray16: bool = False
    color16: bool = False
    float_gray: bool = False

    def holds(self, pixels: Pixels) -> bool:
        """Whether it keeps the depth of these pixels."""
        if pixels.dtype.kind == "f":
            return self.float_gray and pixels.ndim == 2
        if pixels.dtype == np.uint16:
            return self.color16 if pixels.ndim == 3 else self.gray16
        return True
