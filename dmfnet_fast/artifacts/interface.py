"""What a fusion network takes and returns, by name: exporters, engines and training agree here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dmfnet_fast.diffusion.schedule import FUSION_TIMESTEPS

IMAGES = ("a", "b")
OUTPUT = "fused"


@dataclass(frozen=True)
class Interface:
    """What a network takes beside both images.

    Attributes:
        timesteps: for which it takes noise; 0 for a network without noise.
        interval: whether it takes the interval that each pixel's luminance must lie in.
    """

    timesteps: int
    interval: bool

    @property
    def names(self) -> tuple[str, ...]:
        """Of its inputs, in their order."""
        return (*IMAGES, *(("noise",) if self.timesteps else ()), *(("interval",) if self.interval else ()))

    def shapes(self, pairs: int, height: int, width: int) -> dict[str, tuple[int, int, int, int]]:
        """Of its inputs."""
        known = {
            **dict.fromkeys(IMAGES, (pairs, 1, height, width)),
            "noise": (self.timesteps, 2, height, width),
            "interval": (pairs, 2, height, width),
        }
        return {name: known[name] for name in self.names}


def interface_of(config: Mapping[str, Any]) -> Interface:
    """What a network of this configuration, as its file has it, takes.

    Files written before there was a choice do not name the timesteps, and take noise.
    """
    if "blocks" in config:  # a student
        return Interface(timesteps=0, interval=True)
    timesteps = len(config.get("timesteps", FUSION_TIMESTEPS)) if config.get("noise", True) else 0
    return Interface(timesteps, bool(config.get("interval", False)))
