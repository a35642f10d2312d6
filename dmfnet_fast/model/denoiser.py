"""Stage I: the denoiser, a UNet that predicts the clean image from a noisy one.

Sub-modules are named as in the published checkpoint, without its prefix `denoise_fn.`; so some are nested
deeper than necessary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dmfnet_fast.config import ModelConfig

MULTIPLIERS = (1, 1, 1, 1, 2)
BLOCKS_PER_LEVEL = 2
DROPOUT = 0.2
# The up-path's residual blocks are numbered backward from the last, number 0; the fusion network reads those in TAPS.
UP_BLOCKS = 15
TAPS = (2, 5, 8, 11, 14)


class NoiseEmbedding(nn.Module):
    """Sine and cosine of the continuous noise level: (N, 1) -> (N, channels)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, level: Tensor) -> Tensor:
        half = self.channels // 2
        steps = torch.arange(half, dtype=level.dtype, device=level.device) / half
        angles = level * torch.exp(-math.log(1e4) * steps)
        return torch.cat([torch.sin(angles), torch.cos(angles)], dim=-1)


class NoiseBias(nn.Module):
    """Adds a linear projection of the noise embedding, one value per channel, to all pixels."""

    def __init__(self, embedding: int, channels: int) -> None:
        super().__init__()
        self.noise_func = nn.Sequential(nn.Linear(embedding, channels))

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        return x + self.noise_func(embedding)[:, :, None, None]


class NormActivationConv(nn.Module):
    """conv3x3(dropout(SiLU(GroupNorm(x))))."""

    def __init__(self, inputs: int, outputs: int, groups: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.GroupNorm(groups, inputs),
            nn.SiLU(),
            nn.Dropout(dropout) if dropout else nn.Identity(),
            nn.Conv2d(inputs, outputs, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


class ResidualBlock(nn.Module):
    """Two norm-activation-convolutions with the noise bias between them, and a residual connection."""

    def __init__(self, inputs: int, outputs: int, embedding: int, groups: int) -> None:
        super().__init__()
        self.noise_func = NoiseBias(embedding, outputs)
        self.block1 = NormActivationConv(inputs, outputs, groups)
        self.block2 = NormActivationConv(outputs, outputs, groups, dropout=DROPOUT)
        self.res_conv = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.noise_func(self.block1(x), embedding)
        return self.block2(h) + self.res_conv(x)


class SelfAttention(nn.Module):
    """Single-head self-attention over all pixels, with a residual connection."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1, bias=False)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        channels, height, width = x.shape[1:]
        tokens = self.qkv(self.norm(x)).unflatten(1, (3, 1, channels)).flatten(4).transpose(3, 4)
        query, key, value = tokens.unbind(1)  # each (N, 1 head, tokens, channels)
        attended = F.scaled_dot_product_attention(query, key, value)
        return self.out(attended.transpose(2, 3).flatten(1, 2).unflatten(2, (height, width))) + x


class Block(nn.Module):
    """A residual block, optionally followed by self-attention.

    `skip`, if given, is concatenated with the input along the channels.
    """

    def __init__(self, inputs: int, outputs: int, embedding: int, groups: int, attention: bool = False) -> None:
        super().__init__()
        self.res_block = ResidualBlock(inputs, outputs, embedding, groups)
        self.attn = SelfAttention(outputs, groups) if attention else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor, skip: Tensor | None = None) -> Tensor:
        if skip is not None:
            x = torch.cat([x, skip], dim=1)
        return self.attn(self.res_block(x, embedding))


class Resample(nn.Module):
    """Base of the modules that change the resolution and take no noise embedding."""


class Downsample(Resample):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Upsample(Resample):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Denoiser(nn.Module):
    """The denoising UNet.

    Its inputs are noisy images `x` (N, 1, H, W), with H and W multiples of 16, and `level` (N, 1), the noise level
    s = sqrt(alpha_bar) of each image.

    Attributes:
        config: configuration of the network.
        record: training record, any JSON-serializable values.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.record: dict[str, Any] = {}
        base, groups = config.channels, config.norm_groups
        self.noise_level_mlp: nn.Module = nn.Sequential(
            NoiseEmbedding(base), nn.Linear(base, 4 * base), nn.SiLU(), nn.Linear(4 * base, base)
        )
        self.init_conv = nn.Conv2d(1, base, 3, padding=1)

        widths = [base * multiplier for multiplier in MULTIPLIERS]
        channels, skips = base, [base]
        downs: list[nn.Module] = []
        for level, width in enumerate(widths):
            for _ in range(BLOCKS_PER_LEVEL):
                downs.append(Block(channels, width, base, groups))
                channels = width
                skips.append(channels)
            if level < len(widths) - 1:
                downs.append(Downsample(channels))
                skips.append(channels)
        self.downs = nn.ModuleList(downs)

        self.mid = nn.ModuleList(
            [
                Block(channels, channels, base, groups, attention=True),
                Block(channels, channels, base, groups),
            ]
        )

        ups: list[nn.Module] = []
        for level, width in reversed(list(enumerate(widths))):
            for _ in range(BLOCKS_PER_LEVEL + 1):
                ups.append(Block(channels + skips.pop(), width, base, groups))
                channels = width
            if level > 0:
                ups.append(Upsample(channels))
        self.ups = nn.ModuleList(ups)
        self.final_conv = NormActivationConv(channels, 1, groups)

    def up_path(self, x: Tensor, level: Tensor | int) -> Iterator[Tensor]:
        """The outputs of the up-path's residual blocks, from number `UP_BLOCKS` - 1 down to 0, computed lazily."""
        embedding = self.noise_level_mlp(level)
        x = self.init_conv(x)
        skips = [x]
        for module in self.downs:
            x = module(x) if isinstance(module, Resample) else module(x, embedding)
            skips.append(x)
        for module in self.mid:
            x = module(x, embedding)
        for module in self.ups:
            if isinstance(module, Resample):
                x = module(x)
            else:
                x = module(x, embedding, skips.pop())
                yield x

    def features(self, x: Tensor, level: Tensor | int) -> Iterator[Tensor]:
        """The five features to fuse, coarsest first (taps 14, 11, 8, 5, 2), computed lazily.

        The shapes are (N, 2C, H/16, W/16), (N, C, H/8, W/8), (N, C, H/4, W/4), (N, C, H/2, W/2) and (N, C, H, W).
        Blocks after the last tap are not computed. Once the noise levels are folded into the blocks
        (`rewrites.fold_noise_levels`), `level` is the index of a timestep instead.
        """
        for number, output in zip(range(UP_BLOCKS - 1, -1, -1), self.up_path(x, level), strict=False):
            if number in TAPS:
                yield output
            if number == min(TAPS):
                return

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        """Predict the clean images (N, 1, H, W) from which the noisy images `x` were made."""
        for output in self.up_path(x, level):
            x = output
        return self.final_conv(x)
