"""DM-FNet as trained: it fuses the denoiser's features of both images at a few timesteps (three as published)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dmfnet_fast.config import ModelConfig
from dmfnet_fast.diffusion.schedule import fusion_levels
from dmfnet_fast.model.denoiser import Denoiser
from dmfnet_fast.model.fusion import FusionNetwork
from dmfnet_fast.model.student import from_brighter


class DMFNet(nn.Module):
    """Fuses two registered images, deterministically.

    Attributes:
        config: configuration of the network.
        record: training record, any JSON-serializable values.
        denoiser: stage I.
        fusion: stage II.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.record: dict[str, Any] = {}
        self.denoiser = Denoiser(config)
        self.fusion = FusionNetwork(config)

    def features(
        self, a: Tensor, b: Tensor, noise: Tensor | None = None, levels: Tensor | None = None
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The denoiser's features of a and of b, in the form that the fusion network takes.

        Args:
            a, b: luminances (N, 1, H, W) in [-1, 1].
            noise: standard normal, (T, 2, H, W), or (T, 2, N, 1, H, W) with separate noise for each pair; None for a
                network without noise.
            levels: noise levels (T, N) in float64, shared by both images of a pair; None selects the fixed levels of
                inference.
        """
        pairs = a.shape[0]
        if levels is None:
            levels = torch.tensor([level for level, _ in fusion_levels(self.config.timesteps)], dtype=torch.float64)
            levels = levels[:, None].expand(-1, pairs)
        images = torch.cat([a, b])
        if noise is None:
            return self._halves([list(self.denoiser.features(images, levels[0].repeat(2)[:, None].to(images)))])
        if noise.dim() == 4:
            noise = noise[:, :, None, None].expand(-1, -1, pairs, -1, -1, -1)
        by_timestep = []
        for s, n in zip(levels, noise, strict=True):
            s = s.repeat(2)[:, None]
            # Computed in float64: with a float32 level, the rounding of 1 - s^2 would change features by 1e-4.
            sigma = torch.sqrt(1 - s.square()).to(images)
            level = s.to(images)
            noisy = level[..., None, None] * images + sigma[..., None, None] * n.flatten(0, 1)
            by_timestep.append(list(self.denoiser.features(noisy, level)))
        return self._halves(by_timestep)

    @staticmethod
    def _halves(by_timestep: list[list[Tensor]]) -> tuple[list[Tensor], list[Tensor]]:
        """Features of a and of b, with all timesteps concatenated along the channels."""
        joined = [torch.cat(timesteps, dim=1) for timesteps in zip(*by_timestep, strict=True)]
        halves = [feature.chunk(2) for feature in joined]
        return [half[0] for half in halves], [half[1] for half in halves]

    def forward(
        self,
        a: Tensor,
        b: Tensor,
        noise: Tensor | None = None,
        interval: Tensor | None = None,
        levels: Tensor | None = None,
        bounded: bool = True,
    ) -> Tensor:
        """Fuse luminances.

        Args:
            a: luminance of the anatomical images, (N, 1, H, W) in [-1, 1]; H and W are multiples of 16 and at least 64.
            b: luminance of the other modality, likewise.
            noise, levels: as for `features`. At inference, noise is (T, 2, H, W), the same for every pair.
            interval: for a network that takes it, the least and the greatest luminance of each pixel, (N, 2, H, W).
            bounded: whether to clamp the result to the interval; training losses need the unclamped result.

        Returns:
            Fused luminance (N, 1, H, W): in [-1, 1] without an interval, else in the interval if `bounded`.
        """
        result = self.fusion(*self.features(a, b, noise, levels), interval)
        if interval is None:
            return result
        return from_brighter(result, a, b, interval, bounded)
