"""The sizes in which the network is built."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from dmfnet_fast.schedule import FUSION_TIMESTEPS, TIMESTEPS


@dataclass(frozen=True)
class ModelConfig:
    """Widths of DM-FNet, and the timesteps whose features it fuses.

    Attributes:
        channels: base width C of the denoiser and of the fusion network; a multiple of 16.
        norm_groups: groups of every GroupNorm; divides `channels`.
        timesteps: of the denoiser's passes, different from each other.
    """

    channels: int
    norm_groups: int
    timesteps: tuple[int, ...] = FUSION_TIMESTEPS

    def __post_init__(self) -> None:
        if self.channels < 16 or self.channels % 16:
            raise ValueError(f"channels {self.channels}: must be a positive multiple of 16")
        if self.norm_groups < 1 or self.channels % self.norm_groups:
            raise ValueError(f"norm_groups {self.norm_groups}: must divide channels {self.channels}")
        steps = self.timesteps
        if not steps or len(set(steps)) < len(steps) or not all(1 <= t <= TIMESTEPS for t in steps):
            raise ValueError(f"timesteps {steps}: must be different numbers from 1 to {TIMESTEPS}")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelConfig:
        """What `to_dict` gave, as JSON returns it.

        Raises:
            TypeError, ValueError: it describes no network.
        """
        # Files written before there was a choice do not name the timesteps.
        return cls(**{**values, "timesteps": tuple(values.get("timesteps", FUSION_TIMESTEPS))})


# The paper normalises 4 channels together at the base width (128 / 32); the narrower presets keep that 4
# rather than the 32 groups: at C = 32 those would be single channels, whose mean the noise bias then vanishes in.
PRESETS: dict[str, ModelConfig] = {
    "base": ModelConfig(channels=128, norm_groups=32),
    "small": ModelConfig(channels=64, norm_groups=16),
    "tiny": ModelConfig(channels=32, norm_groups=8),
    "turbo": ModelConfig(channels=32, norm_groups=8, timesteps=FUSION_TIMESTEPS[:1]),
    "turbo-small": ModelConfig(channels=64, norm_groups=16, timesteps=FUSION_TIMESTEPS[:1]),
}


def preset(name: str) -> ModelConfig:
    """The configuration called `name`: "base" is the paper's; "turbo" and "turbo-small" have one timestep.

    Raises:
        ValueError: no such preset.
    """
    if name not in PRESETS:
        raise ValueError(f"preset {name!r}: must be one of {', '.join(PRESETS)}")
    return PRESETS[name]
