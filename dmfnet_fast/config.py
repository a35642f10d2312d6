"""Network configurations and the presets built from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

from dmfnet_fast.diffusion.schedule import FUSION_TIMESTEPS, TIMESTEPS


@dataclass(frozen=True)
class ModelConfig:
    """Configuration of DM-FNet: its width, the timesteps whose features it fuses, and its departures from the paper.

    Attributes:
        channels: base width C of the denoiser and of the fusion network; a multiple of 16.
        norm_groups: number of groups of every GroupNorm; divides `channels`.
        timesteps: distinct timesteps of the denoiser's passes.
        noise: whether the images are diffused before they are denoised, as in the paper. Without noise, the network
            has no noise input and a single timestep, whose noise level still conditions the denoiser.
        interval: whether the network takes the interval in which each pixel's luminance must lie (see
            `dmfnet_fast.images.rules`). If so, its output is added to the brighter source, clamped to that interval,
            instead of passing through the paper's tanh.
    """

    channels: int
    norm_groups: int
    timesteps: tuple[int, ...] = FUSION_TIMESTEPS
    noise: bool = True
    interval: bool = False

    def __post_init__(self) -> None:
        if self.channels < 16 or self.channels % 16:
            raise ValueError(f"channels {self.channels}: must be a positive multiple of 16")
        if self.norm_groups < 1 or self.channels % self.norm_groups:
            raise ValueError(f"norm_groups {self.norm_groups}: must divide channels {self.channels}")
        steps = self.timesteps
        if not steps or len(set(steps)) < len(steps) or not all(1 <= t <= TIMESTEPS for t in steps):
            raise ValueError(f"timesteps {steps}: must be distinct numbers from 1 to {TIMESTEPS}")
        if not self.noise and len(steps) > 1:
            raise ValueError(f"timesteps {steps}: without noise they would all see the same images; give one")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelConfig:
        """Restore a configuration from the result of `to_dict`, also after a round trip through JSON.

        Raises:
            TypeError, ValueError: `values` is not a valid configuration.
        """
        # Files written before the timesteps became configurable do not name them.
        return cls(**{**values, "timesteps": tuple(values.get("timesteps", FUSION_TIMESTEPS))})


@dataclass(frozen=True)
class StudentConfig:
    """Configuration of a student: a plain convolutional network without denoiser, normalization or noise.

    It takes each pixel's luminance interval; its output is added to the brighter source, clamped to that interval.

    Attributes:
        channels: channels of every feature map; a multiple of 8.
        blocks: number of residual blocks, each of two 3x3 convolutions.
        factor: factor of the pixel-unshuffle before the first convolution: 1, 2, 4 or 8.
    """

    channels: int
    blocks: int
    factor: int = 2

    def __post_init__(self) -> None:
        if self.channels < 8 or self.channels % 8:
            raise ValueError(f"channels {self.channels}: must be a positive multiple of 8")
        if self.blocks < 1:
            raise ValueError(f"blocks {self.blocks}: must be at least 1")
        if self.factor not in (1, 2, 4, 8):
            raise ValueError(f"factor {self.factor}: must be 1, 2, 4 or 8")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def reach(self) -> int:
        """The largest distance, in pixels, at which an input can affect an output."""
        return self.factor * (2 * self.blocks + 2) + self.factor - 1


NetworkConfig: TypeAlias = ModelConfig | StudentConfig


def config_from_dict(values: Mapping[str, Any]) -> NetworkConfig:
    """Restore either kind of configuration from the result of its `to_dict`, also after a round trip through JSON.

    Raises:
        TypeError, ValueError: `values` is not a valid configuration.
    """
    return StudentConfig(**values) if "blocks" in values else ModelConfig.from_dict(values)


# The paper normalizes 4 channels together at the base width (128 / 32). The narrower presets keep the 4 channels per
# group rather than the 32 groups: at C = 32 each group would be a single channel, and subtracting its mean would
# cancel the noise bias.
PRESETS: dict[str, NetworkConfig] = {
    "base": ModelConfig(channels=128, norm_groups=32),
    "small": ModelConfig(channels=64, norm_groups=16),
    "tiny": ModelConfig(channels=32, norm_groups=8),
    "turbo": ModelConfig(channels=32, norm_groups=8, timesteps=FUSION_TIMESTEPS[:1], noise=False, interval=True),
    "turbo-small": ModelConfig(channels=64, norm_groups=16, timesteps=FUSION_TIMESTEPS[:1], noise=False),
    "nano": StudentConfig(channels=32, blocks=6),
    "nano-large": StudentConfig(channels=64, blocks=8),
}

DMFNET_PRESETS = {name: config for name, config in PRESETS.items() if isinstance(config, ModelConfig)}


def preset(name: str) -> NetworkConfig:
    """The configuration called `name`.

    "base" is the paper's network; "small" and "tiny" are narrower; "turbo" and "turbo-small" have one timestep and no
    noise; "nano" and "nano-large" are students.

    Raises:
        ValueError: there is no preset of that name.
    """
    if name not in PRESETS:
        raise ValueError(f"preset {name!r}: must be one of {', '.join(PRESETS)}")
    return PRESETS[name]
