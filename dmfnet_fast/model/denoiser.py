"""Stage I: the denoiser, a UNet that predicts the clean image from a noisy one.

Sub-module names are those of the published checkpoint (its `denoise_fn.` prefix left out), which is why
some look deeper than they need to be.
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
# Of the up-path's residual blocks, counted from the last as 0, those whose outputs the fusion network reads.
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
    """Adds a projection of the noise embedding to every pixel of its channel."""

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
    """Two norm-activation-convolutions with the noise bias between them, plus the input."""

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
    """One head of attention over all pixels, plus the input."""

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
    """A residual block, with attention after it where asked for."""

    def __init__(self, inputs: int, outputs: int, embedding: int, groups: int, attention: bool = False) -> None:
        super().__init__()
        self.res_block = ResidualBlock(inputs, outputs, embedding, groups)
        self.attn = SelfAttention(outputs, groups) if attention else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor, skip: Tensor | None = None) -> Tensor:
        if skip is not None:
            x = torch.cat([x, skip], dim=1)
        return self.attn(self.res_block(x, embedding))


class Resample(nn.Module):
    """Changes the resolution, and needs no noise embedding."""


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

    Inputs are `x` (N, 1, H, W), a noisy image, H and W multiples of 16, and `level` (N, 1), the noise
    level s = sqrt(alpha_bar) of each.
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
        """Outputs of the up-path's residual blocks, each computed when it is asked for; the last is numbered 0."""
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
        """The five features that are fused, coarsest first (taps 14, 11, 8, 5, 2), each when it is asked for.

        Shapes (N, 2C, H/16, W/16), (N, C, H/8, W/8), (N, C, H/4, W/4), (N, C, H/2, W/2), (N, C, H, W).
        What comes after the last tap is not computed. Rewritten for the levels of inference, it takes the
        number of a timestep for `level`.
        """
        for number, output in zip(range(UP_BLOCKS - 1, -1, -1), self.up_path(x, level), strict=False):
            if number in TAPS:
                yield output
            if number == min(TAPS):
                return

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        """The reconstruction: the clean image (N, 1, H, W) that `x` was made from."""
        for output in self.up_path(x, level):
            x = output
        return self.final_conv(x)
