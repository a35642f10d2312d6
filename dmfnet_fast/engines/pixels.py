"""Fusion from 8-bit images to 8-bit images: the steps of `Canvas` as tensor operations on the network's device."""

from __future__ import annotations

from typing import Any

import numpy as np

from dmfnet_fast.artifacts.interface import Interface
from dmfnet_fast.errors import require
from dmfnet_fast.images.color import EIGHT_BIT
from dmfnet_fast.images.rules import (
    Chroma,
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
# Pillow's luminance of 8-bit colors in fixed point: weights in units of 2^-16, and one half for rounding. All sums are
# integers below 2^24, which float32 holds exactly.
PILLOW_WEIGHTS, PILLOW_HALF, PILLOW_UNIT = (19595.0, 38470.0, 7471.0), 32768.0, 2.0**-16


def gray_of(pixels: Any) -> Any:
    """Like `color.luminance` for uint8, as float32: (N, H, W) as it is, (N, H, W, 3) with Pillow's weights."""
    if pixels.dim() == 3:
        return pixels.float()
    channels = pixels.float().unbind(-1)
    total = sum(weight * channel for weight, channel in zip(PILLOW_WEIGHTS, channels, strict=True))
    return ((total + PILLOW_HALF) * PILLOW_UNIT).floor()


def interval_of(limits: Interval) -> Any:
    """The network's input `interval` (N, 2, H, W) from limits (N, H, W) in 0..255."""
    return torch.stack([end * (2.0 / (WHITE - BLACK)) - 1.0 for end in limits], 1)


def pixels_of(fused: Any, limits: Interval, chroma: Chroma | None) -> Any:
    """The fused image from the network's output, like `Canvas.finish`.

    Args:
        fused: the output, (N, 1, H, W) in [-1, 1].
        limits: interval of each pixel, (N, H, W) in 0..255.
        chroma: the colors of b; None if b is gray.

    Returns:
        uint8 (N, H, W, 3), or (N, H, W) if b is gray.
    """
    y = within(((fused[:, 0].float() + 1) * ((WHITE - BLACK) / 2)).round().clip(BLACK, WHITE), limits)
    if chroma is None:
        return y.to(torch.uint8)
    return torch.stack(apply_luminance(y, chroma, BLACK, WHITE, True), -1).to(torch.uint8)


class PixelsToPixels:
    """A network and the rules for its inputs and results; bit-identical to `Canvas` with the same network.

    Args:
        network: forward function; takes tensors as keyword arguments.
        interface: inputs of the network.
        rules: constraints on every pixel of the result.
        noise: (T, 2, H, W) on `device`, for a network that takes noise.
        device: device of the network.
        kernels: do what surrounds the network in two launches of our kernels, which need a GPU, instead of about 120 of
            PyTorch's.
    """

    def __init__(
        self,
        network: Any,
        interface: Interface,
        rules: Rules,
        noise: Any = None,
        device: Any = "cpu",
        kernels: bool = False,
    ) -> None:
        self._network, self._interface, self._rules, self._noise = network, interface, rules, noise
        # The same float32 values as those of `color.to_network`.
        levels = (np.arange(256.0) * (2.0 / (WHITE - BLACK)) - 1.0).astype(np.float32)
        self._levels = torch.from_numpy(levels).to(device)
        self._kernels: Any = None
        if kernels:
            from kernels import pixels

            self._kernels = pixels

    def __call__(self, a: Any, b: Any) -> Any:
        """Fuse a batch of pairs.

        Args:
            a: uint8 (N, H, W) or (N, H, W, 3), with H and W that the network accepts.
            b: uint8 (N, H, W) or (N, H, W, 3); its colors are kept in the result.

        Returns:
            A uint8 tensor with the shape of b.
        """
        if self._kernels is not None:
            kept, invention = self._rules.kept_chroma, self._rules.invention
            *inputs, table = self._kernels.network_inputs(a, b, self._levels, kept, invention)
            return self._kernels.fused_pixels(self._fused(*inputs), table, b)
        gray_a, gray_b = gray_of(a), gray_of(b)
        limits, chroma = self._limits(gray_a, gray_b, b)
        network_a, network_b = (self._levels[gray.long()][:, None] for gray in (gray_a, gray_b))
        interval = interval_of(limits) if self._interface.interval else None
        return pixels_of(self._fused(network_a, network_b, interval), limits, chroma)

    def _fused(self, a: Any, b: Any, interval: Any) -> Any:
        inputs = {"a": a, "b": b}
        if self._interface.timesteps:
            inputs["noise"] = self._noise
        if self._interface.interval:
            inputs["interval"] = interval
        return self._network(**inputs)

    def _limits(self, gray_a: Any, gray_b: Any, b: Any) -> tuple[Interval, Any]:
        """The interval allowed for each pixel, float32 in 0..255, and the chroma of b, or None if b is gray."""
        if self._rules.invention:
            limits = Interval(*(torch.full(gray_b.shape, end, device=b.device) for end in EIGHT_BIT))
        else:
            limits = neighborhood_interval(gray_a, gray_b)
        if b.dim() == 3:
            return limits, None
        chroma = chroma_of(*b.float().unbind(-1))
        return common(color_interval(chroma, self._rules.kept_chroma, BLACK, WHITE, True), limits), chroma
