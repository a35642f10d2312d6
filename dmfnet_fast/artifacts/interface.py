"""The named inputs and the output of a fusion network, shared by exporters, engines and training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from dmfnet_fast.diffusion.schedule import FUSION_TIMESTEPS

IMAGES = ("a", "b")
RULES = "rules"
OUTPUT = "fused"
# Inputs that all pairs of a batch share.
SHARED = ("noise", RULES)
# What a network takes, by `Interface.pixels`, in words.
IMAGES_TAKEN = {False: "luminances", True: "8-bit images, with the rules inside"}


@dataclass(frozen=True)
class Interface:
    """The inputs of a network in addition to both images, and whether the images are luminances or pixels.

    The output has the shape and type of `b`. A network of pixels contains the conversion from and to 8-bit images and
    the rules: `a` is uint8 gray, `b` is uint8 color, and the interval, if any, is computed inside. `rules` are two
    numbers: a thousandth of `Rules.kept_chroma`, and 1 if `Rules.invention` is allowed, else 0.

    Attributes:
        timesteps: number of timesteps for which the network takes noise; 0 for a network without noise.
        interval: whether the network takes the interval in which each pixel's luminance must lie.
        pixels: whether the images are pixels.
    """

    timesteps: int
    interval: bool
    pixels: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the inputs, in order."""
        extra = RULES if self.pixels else "interval" if self.interval else None
        return (*IMAGES, *(("noise",) if self.timesteps else ()), *((extra,) if extra else ()))

    def shapes(self, pairs: int, height: int, width: int) -> dict[str, tuple[int, ...]]:
        """Shapes of the inputs, by name and in order, for a number of image pairs and a size in pixels."""
        luminance = pairs, 1, height, width
        known = {
            "a": (pairs, height, width) if self.pixels else luminance,
            "b": (pairs, height, width, 3) if self.pixels else luminance,
            "noise": (self.timesteps, 2, height, width),
            "interval": (pairs, 2, height, width),
            RULES: (2,),
        }
        return {name: known[name] for name in self.names}

    def dtype(self, name: str) -> np.dtype[Any]:
        """Type of an input."""
        return np.dtype(np.uint8 if self.pixels and name in IMAGES else np.float32)


def interface_of(config: Mapping[str, Any], pixels: bool = False) -> Interface:
    """The interface of the network with this configuration, which is given as stored in its file.

    Files written before noise and timesteps became configurable do not name them; their networks take noise.
    """
    if "blocks" in config:  # a student
        return Interface(timesteps=0, interval=True, pixels=pixels)
    timesteps = len(config.get("timesteps", FUSION_TIMESTEPS)) if config.get("noise", True) else 0
    return Interface(timesteps, bool(config.get("interval", False)), pixels)
