"""The named inputs and the output of a fusion network, shared by exporters, engines and training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dmfnet_fast.diffusion.schedule import FUSION_TIMESTEPS

IMAGES = ("a", "b")
OUTPUT = "fused"


@dataclass(frozen=True)
class Interface:
    """The inputs of a network in addition to both images.

    Attributes:
        timesteps: number of timesteps for which the network takes noise; 0 for a network without noise.
        interval: whether the network takes the interval in which each pixel's luminance must lie.
    """

    timesteps: int
    interval: bool

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the inputs, in order."""
        return (*IMAGES, *(("noise",) if self.timesteps else ()), *(("interval",) if self.interval else ()))

    def shapes(self, pairs: int, height: int, width: int) -> dict[str, tuple[int, int, int, int]]:
        """Shapes of the inputs, by name and in order, for a number of image pairs and a size in pixels."""
        known = {
            **dict.fromkeys(IMAGES, (pairs, 1, height, width)),
            "noise": (self.timesteps, 2, height, width),
            "interval": (pairs, 2, height, width),
        }
        return {name: known[name] for name in self.names}


def interface_of(config: Mapping[str, Any]) -> Interface:
    """The interface of the network with this configuration, which is given as stored in its file.

    Files written before noise and timesteps became configurable do not name them; their networks take noise.
    """
    if "blocks" in config:  # a student
        return Interface(timesteps=0, interval=True)
    timesteps = len(config.get("timesteps", FUSION_TIMESTEPS)) if config.get("noise", True) else 0
    return Interface(timesteps, bool(config.get("interval", False)))
