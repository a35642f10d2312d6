"""8-bit images in, 8-bit images out: what `Canvas` does, as tensor operations around a network on its own device."""

from __future__ import annotations

from typing import Any

import numpy as np

from dmfnet_fast.artifacts.interface import Interface
from dmfnet_fast.errors import require
from dmfnet_fast.images.color import EIGHT_BIT
from dmfnet_fast.images.rules import (
    Interval,
    Rules,
    apply_luminance,
    chroma_of,
    color_interval,
    common,
    neighborhood_interval,
    within,
)

torch = require("torch", extra="torch")

BLACK, WHITE = EIGHT_BIT
# Pillow's luminance of 8-bit colors: weights of 2^16, and what rounds.
PILLOW_WEIGHTS, PILLOW_HALF, PILLOW_BITS = (19595, 38470, 7471), 0x8000, 16


def _gray(pixels: Any) -> Any:
    """As `color.luminance`, of uint8: (N, H, W) as they are, (N, H, W, 3) by Pillow's weights."""
    if pixels.dim() == 3:
        return pixels
    channels = pixels.to(torch.int32).unbind(-1)
    total = sum(weight * channel for weight, channel in zip(PILLOW_WEIGHTS, channels, strict=True))
    return (total + PILLOW_HALF) >> PILLOW_BITS


class PixelsToPixels:
    """A network with the rules around it; equal to `Canvas` bit for bit, for the same network.

    Args:
        network: forward on tensors by their names.
        interface: what it takes.
        rules: what holds for every pixel.
        noise: for a network that takes it, (T, 2, H, W) on `device`.
        device: the network's.
    """

    def __init__(
        self, network: Any, interface: Interface, rules: Rules, noise: Any = None, device: Any = "cpu"
    ) -> None:
        self._network, self._interface, self._rules, self._noise = network, interface, rules, noise
        # As `color.to_network` has them.
        levels = (np.arange(256.0) * (2.0 / (WHITE - BLACK)) - 1.0).astype(np.float32)
        self._levels = torch.from_numpy(levels).to(device)

    def __call__(self, a: Any, b: Any) -> Any:
        """Fuse.

        Args:
            a: uint8 (N, H, W) or (N, H, W, 3); H and W as the network takes them.
            b: likewise; its colors are the result's.

        Returns:
            uint8, like b.
        """
        gray_a, gray_b = _gray(a), _gray(b)
        limits, chroma = self._limits(gray_a, gray_b, b)
        inputs = {name: self._levels[gray.long()][:, None] for name, gray in (("a", gray_a), ("b", gray_b))}
        if self._interface.timesteps:
            inputs["noise"] = self._noise
        if self._interface.interval:
            inputs["interval"] = torch.stack([end * (2.0 / (WHITE - BLACK)) - 1.0 for end in limits], 1)
        fused = self._network(**inputs)[:, 0].float()
        y = within(((fused + 1) * ((WHITE - BLACK) / 2)).round().clip(BLACK, WHITE), limits)
        if chroma is None:
            return y.to(torch.uint8)
        return torch.stack(apply_luminance(y, chroma, BLACK, WHITE, True), -1).to(torch.uint8)

    def _limits(self, gray_a: Any, gray_b: Any, b: Any) -> tuple[Interval, Any]:
        """The interval of each pixel, float32 in 0..255, and b's chroma if it is in color."""
        if self._rules.invention:
            limits = Interval(*(torch.full(gray_b.shape, end, device=b.device) for end in EIGHT_BIT))
        else:
            limits = neighborhood_interval(gray_a.float(), gray_b.float())
        if b.dim() == 3:
            return limits, None
        chroma = chroma_of(*b.float().unbind(-1))
        return common(color_interval(chroma, self._rules.kept_chroma, BLACK, WHITE, True), limits), chroma
