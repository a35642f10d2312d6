"""The sizes in which the network is built."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class ModelConfig:
    """Widths of DM-FNet.

    Attributes:
        channels: base width C of the denoiser and of the fusion network; a multiple of 16.
        norm_groups: groups of every GroupNorm; divides `channels`.
    """

    channels: int
    norm_groups: int

    def __post_init__(self) -> None:
        if self.channels < 16 or self.channels % 16:
            raise ValueError(f"channels {self.channels}: must be a positive multiple of 16")
        if self.norm_groups < 1 or self.channels % self.norm_groups:
            raise ValueError(f"norm_groups {self.norm_groups}: must divide channels {self.channels}")

    def to_dict(self) -> dict[str, int]:
        return asdict(self)


# The paper normalises 4 channels together at the base width (128 / 32); the narrower presets keep that 4
# rather than the 32 groups: at C = 32 those would be single channels, whose mean the noise bias then vanishes in.
PRESETS: dict[str, ModelConfig] = {
    "base": ModelConfig(channels=128, norm_groups=32),
    "small": ModelConfig(channels=64, norm_groups=16),
    "tiny": ModelConfig(channels=32, norm_groups=8),
}


def preset(name: str) -> ModelConfig:
    """The configuration called `name`: "base" (the paper), "small" or "tiny".

    Raises:
        ValueError: no such preset.
    """
    if name not in PRESETS:
        raise ValueError(f"preset {name!r}: must be one of {', '.join(PRESETS)}")
    return PRESETS[name]
