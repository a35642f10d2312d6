"""Fusion from 8-bit images to 8-bit images: the steps of `Canvas` as tensor operations on the network's device."""

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
# Pillow's luminance of 8-bit colors in fixed point: weights in units of 2^-16, one half for rounding, and the shift.
PILLOW_WEIGHTS, PILLOW_HALF, PILLOW_BITS = (19595, 38470, 7471), 0x8000, 16


def _gray(pixels: Any) -> Any:
    """Like `color.luminance` for uint8: returns (N, H, W) unchanged, converts (N, H, W, 3) with Pillow's weights."""
    if pixels.dim() == 3:
        return pixels
    channels = pixels.to(torch.int32).unbind(-1)
    total = sum(weight * channel for weight, channel in zip(PILLOW_WEIGHTS, channels, strict=True))
    return (total + PILLOW_HALF) >> PILLOW_BITS


class PixelsToPixels:
    """A network and the rules for its inputs and results; bit-identical to `Canvas` with the same network.

    Args:
        network: forward function; takes tensors as keyword arguments.
        interface: inputs of the network.
        rules: constraints on every pixel of the result.
        noise: (T, 2, H, W) on `device`, for a network that takes noise.
        device: device of the network.
    """

    def __init__(
        self, network: Any, interface: Interface, rules: Rules, noise: Any = None, device: Any = "cpu"
    ) -> None:
        self._network, self._interface, self._rules, self._noise = network, interface, rules, noise
        # The same float32 values as those of `color.to_network`.
        levels = (np.arange(256.0) * (2.0 / (WHITE - BLACK)) - 1.0).astype(np.float32)
        self._levels = torch.from_numpy(levels).to(device)

    def __call__(self, a: Any, b: Any) -> Any:
        """Fuse a batch of pairs.

        Args:
            a: uint8 (N, H, W) or (N, H, W, 3), with H and W that the network accepts.
            b: uint8 (N, H, W) or (N, H, W, 3); its colors are kept in the result.

        Returns:
            A uint8 tensor with the shape of b.
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
        """The interval allowed for each pixel, float32 in 0..255, and the chroma of b, or None if b is gray."""
        if self._rules.invention:
            limits = Interval(*(torch.full(gray_b.shape, end, device=b.device) for end in EIGHT_BIT))
        else:
            limits = neighborhood_interval(gray_a.float(), gray_b.float())
        if b.dim() == 3:
            return limits, None
        chroma = chroma_of(*b.float().unbind(-1))
        return common(color_interval(chroma, self._rules.kept_chroma, BLACK, WHITE, True), limits), chroma
