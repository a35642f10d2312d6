"""The student: a small plain convolutional network, trained on DM-FNet's task and loss."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dmfnet_fast.config import StudentConfig
from dmfnet_fast.images.rules import Interval, within


def from_brighter(change: Tensor, a: Tensor, b: Tensor, interval: Tensor, bounded: bool = True) -> Tensor:
    """Add `change` (N, 1, H, W) to the brighter source, which is first clamped to the interval (N, 2, H, W).

    If `bounded`, the sum is clamped to the interval too.
    """
    allowed = Interval(*interval.split(1, dim=1))
    result = within(torch.maximum(a, b), allowed) + change
    return within(result, allowed) if bounded else result


class Student(nn.Module):
    """Pixel-unshuffle, 3x3 convolutions with residual blocks, and pixel-shuffle, added to the brighter source.

    Nothing depends on the image as a whole: tiles that are aligned to `config.factor` and have margins of at least
    `config.reach` pixels give the same result as the whole image.

    Attributes:
        config: configuration of the network.
        record: training record, any JSON-serializable values.
    """

    def __init__(self, config: StudentConfig) -> None:
        super().__init__()
        self.config = config
        self.record: dict[str, Any] = {}
        width, samples = config.channels, config.factor**2
        self.first = nn.Conv2d(4 * samples, width, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1))
            for _ in range(config.blocks)
        )
        self.last = nn.Conv2d(width, samples, 3, padding=1)

    def forward(self, a: Tensor, b: Tensor, interval: Tensor, bounded: bool = True) -> Tensor:
        """Fuse luminances.

        Args:
            a: luminance of the anatomical images, (N, 1, H, W) in [-1, 1]; H and W are multiples of `config.factor`.
            b: luminance of the other modality, likewise.
            interval: the least and the greatest luminance of each pixel, (N, 2, H, W) in [-1, 1].
            bounded: whether to clamp the result to the interval; training losses need the unclamped result.

        Returns:
            Fused luminance (N, 1, H, W), float32.
        """
        inputs = torch.cat([a, b, interval], dim=1).to(self.first.weight.dtype)
        h = F.relu(self.first(F.pixel_unshuffle(inputs, self.config.factor)))
        for block in self.blocks:
            h = h + block(h)
        # The change is small compared with the brighter source, so the error of half precision is not visible.
        change = F.pixel_shuffle(self.last(h), self.config.factor)
        return from_brighter(change.to(a.dtype), a, b, interval, bounded)
