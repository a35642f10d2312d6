"""The interface of every engine."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmfnet_fast.artifacts.interface import SHARED, Interface
from dmfnet_fast.artifacts.network_inputs import pixel_inputs
from dmfnet_fast.images.rules import Rules


class Engine(ABC):
    """An open network. Not thread-safe: `Fuser` serializes the calls."""

    largest_batch: int  # largest number of pairs worth passing to `run` at once
    interface: Interface  # inputs of the network
    takes_pixels = False  # whether `fuse_pixels` may be called

    @abstractmethod
    def run(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        """Fuse luminances, or, if `interface.pixels`, pixels.

        Args:
            inputs: contiguous arrays with the names, shapes and types that `interface` gives for N pairs. H and W are
                multiples of 16, at least 64.
                a, b: (N, 1, H, W) in [-1, 1]; for pixels, uint8, a (N, H, W) and b (N, H, W, 3).
                noise: (T, 2, H, W), standard normal.
                interval: (N, 2, H, W), the lowest and highest luminance allowed for each pixel, in [-1, 1].
                rules: (2,), see `Interface`.

        Returns:
            (N, 1, H, W) float32 in [-1, 1], inside the interval if the network takes one; for pixels, uint8
            (N, H, W, 3). The caller owns the array.
        """

    def fuse_pixels(self, a: NDArray[np.uint8], b: NDArray[np.uint8], rules: Rules, seed: int) -> NDArray[np.uint8]:
        """Fuse 8-bit images entirely on the device, with the result that `Canvas` computes from `run`.

        Call it only if `takes_pixels` is true. This method is for engines with `interface.pixels`, others override it.

        Args:
            a: luminances (N, H, W), with H and W as for `run`.
            b: luminances (N, H, W) or colors (N, H, W, 3).
            rules: constraints on every pixel of the result.
            seed: seed of the noise, for a network that takes noise.

        Returns:
            An array with the shape and type of b.
        """
        fused = self.run(pixel_inputs(self.interface, a, b, rules, seed))
        return fused if b.ndim == 4 else np.ascontiguousarray(fused[..., 0])

    @abstractmethod
    def close(self) -> None:
        """Free all resources. The engine cannot run afterwards; closing it again has no effect."""

    @property
    @abstractmethod
    def info(self) -> dict[str, str]:
        """Engine, device, precision and weights (their hash) as text."""


def some_pairs(inputs: Mapping[str, NDArray[Any]], part: slice) -> dict[str, NDArray[Any]]:
    """The inputs of part of a batch. Those that all pairs share are passed on whole."""
    return {name: array if name in SHARED else array[part] for name, array in inputs.items()}
