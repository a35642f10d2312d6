"""The interface of every engine."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from dmfnet_fast.artifacts.interface import Interface
from dmfnet_fast.images.rules import Rules


class Engine(ABC):
    """An open network. Not thread-safe: `Fuser` serializes the calls."""

    largest_batch: int  # largest number of pairs worth passing to `run` at once
    interface: Interface  # inputs of the network
    takes_pixels = False  # whether `fuse_pixels` is implemented

    @abstractmethod
    def run(self, inputs: Mapping[str, NDArray[np.float32]]) -> NDArray[np.float32]:
        """Fuse luminances.

        Args:
            inputs: contiguous float32 arrays with the names and shapes that `interface` gives for N pairs. H and W are
                multiples of 16, at least 64.
                a, b: (N, 1, H, W) in [-1, 1].
                noise: (T, 2, H, W), standard normal.
                interval: (N, 2, H, W), the lowest and highest luminance allowed for each pixel, in [-1, 1].

        Returns:
            (N, 1, H, W) float32 in [-1, 1], inside the interval if the network takes one. The caller owns the array.
        """

    def fuse_pixels(self, a: NDArray[np.uint8], b: NDArray[np.uint8], rules: Rules, seed: int) -> NDArray[np.uint8]:
        """Fuse 8-bit images entirely on the device, with the result that `Canvas` computes from `run`.

        Call it only if `takes_pixels` is true.

        Args:
            a: luminances (N, H, W), with H and W as for `run`.
            b: luminances (N, H, W) or colors (N, H, W, 3).
            rules: constraints on every pixel of the result.
            seed: seed of the noise, for a network that takes noise.

        Returns:
            An array with the shape and type of b.
        """
        raise NotImplementedError

    @abstractmethod
    def close(self) -> None:
        """Free all resources. The engine cannot run afterwards; closing it again has no effect."""

    @property
    @abstractmethod
    def info(self) -> dict[str, str]:
        """Engine, device, precision and weights (their hash) as text."""


def some_pairs(inputs: Mapping[str, NDArray[np.float32]], part: slice) -> dict[str, NDArray[np.float32]]:
    """The inputs of part of a batch. The noise is shared by all pairs and passed on whole."""
    return {name: array if name == "noise" else array[part] for name, array in inputs.items()}
