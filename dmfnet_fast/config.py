"""The sizes in which the network is built."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

from dmfnet_fast.diffusion.schedule import FUSION_TIMESTEPS, TIMESTEPS


@dataclass(frozen=True)
class ModelConfig:
    """DM-FNet: its widths, the timesteps whose features it fuses, and where ours may differ from the paper's.

    Attributes:
        channels: base width C of the denoiser and of the fusion network; a multiple of 16.
        norm_groups: groups of every GroupNorm; divides `channels`.
        timesteps: of the denoiser's passes, different from each other.
        noise: whether the images are diffused before they are denoised, as in the paper. Without it, the network has
            no noise input and one timestep, whose level the denoiser is told.
        interval: whether the network is told the interval that each pixel's luminance must lie in (see
            `dmfnet_fast.images.rules`), and adds to the brighter source moved into that, in place of the paper's tanh.
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
            raise ValueError(f"timesteps {steps}: must be different numbers from 1 to {TIMESTEPS}")
        if not self.noise and len(steps) > 1:
            raise ValueError(f"timesteps {steps}: without noise they would all see the same images; give one")

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


@dataclass(frozen=True)
class StudentConfig:
    """A plain convolutional network for the same task: no denoiser, no normalization, no noise.

    It is told each pixel's interval, and what it computes is added to the brighter source moved into that.

    Attributes:
        channels: of every feature map; a multiple of 8.
        blocks: residual blocks of two 3x3 convolutions.
        factor: of the pixel-unshuffle before the first convolution, 1, 2, 4 or 8.
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
        """How many pixels away an input can still change an output, at most."""
        return self.factor * (2 * self.blocks + 2) + self.factor - 1


NetworkConfig: TypeAlias = ModelConfig | StudentConfig


def config_from_dict(values: Mapping[str, Any]) -> NetworkConfig:
    """The configuration whose `to_dict` gave `values`, as JSON returns it.

    Raises:
        TypeError, ValueError: it describes no network.
    """
    return StudentConfig(**values) if "blocks" in values else ModelConfig.from_dict(values)


# The paper normalizes 4 channels together at the base width (128 / 32); the narrower presets keep that 4
# rather than the 32 groups: at C = 32 those would be single channels, whose mean the noise bias then vanishes in.
PRESETS: dict[str, NetworkConfig] = {
    "base": ModelConfig(channels=128, norm_groups=32),
    "small": ModelConfig(channels=64, norm_groups=16),
    "tiny": ModelConfig(channels=32, norm_groups=8),
    "turbo": ModelConfig(channels=32, norm_groups=8, timesteps=FUSION_TIMESTEPS[:1], noise=False, interval=True),
    "turbo-small": ModelConfig(channels=64, norm_groups=16, timesteps=FUSION_TIMESTEPS[:1], noise=False),
    "nano": StudentConfig(channels=32, blocks=6),
    "nano-large": StudentConfig(channels=64, blocks=8),
}
# The sizes of DM-FNet.
DMFNET_PRESETS = {name: config for name, config in PRESETS.items() if isinstance(config, ModelConfig)}


def preset(name: str) -> NetworkConfig:
    """The configuration called `name`.

    "base" is the paper's, "small" and "tiny" are narrower; "turbo" and "turbo-small" have one timestep and no noise;
    "nano" and "nano-large" are students.

    Raises:
        ValueError: no such preset.
    """
    if name not in PRESETS:
        raise ValueError(f"preset {name!r}: must be one of {', '.join(PRESETS)}")
    return PRESETS[name]
