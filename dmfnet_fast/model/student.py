"""The student: a small plain network that is trained on DM-FNet's task and loss."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dmfnet_fast.config import StudentConfig
from dmfnet_fast.images.rules import Interval, within


def from_brighter(change: Tensor, a: Tensor, b: Tensor, interval: Tensor, bounded: bool = True) -> Tensor:
    """`change` (N, 1, H, W) added to the brighter source, which is first moved into the interval (N, 2, H, W).

    The sum is moved into it too, if it is to be `bounded`.
    """
    allowed = Interval(*interval.split(1, dim=1))
    result = within(torch.maximum(a, b), allowed) + change
    return within(result, allowed) if bounded else result


class Student(nn.Module):
    """Pixel-unshuffle, 3x3 convolutions with residual blocks, pixel-shuffle; added to the brighter source.

    Nothing in it depends on the image as a whole, so an image is equal to its tiles where they overlap by `reach`.

    Attributes:
        config: what it was built with.
        record: of its training.
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
        """Fuse.

        Args:
            a: the anatomical images, luminance (N, 1, H, W) in [-1, 1]; H and W multiples of `factor`.
            b: the other modality's, likewise.
            interval: the least and the greatest luminance of each pixel, (N, 2, H, W) in [-1, 1].
            bounded: whether the result is moved into the interval; a loss wants to see how far outside it is.

        Returns:
            Fused luminance (N, 1, H, W), float32.
        """
        inputs = torch.cat([a, b, interval], dim=1).to(self.first.weight.dtype)
        h = F.relu(self.first(F.pixel_unshuffle(inputs, self.config.factor)))
        for block in self.blocks:
            h = h + block(h)
        # Small beside what it is added to: half precision costs nothing that shows.
        change = F.pixel_shuffle(self.last(h), self.config.factor)
        return from_brighter(change.to(a.dtype), a, b, interval, bounded)
