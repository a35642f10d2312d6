"""The interface of every engine."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from dmfnet_fast.artifacts.interface import Interface
from dmfnet_fast.images.rules import Rules


class Engine(ABC):
    """An open network. Not safe to call from several threads at once: `Fuser` takes turns."""

    largest_batch: int  # pairs that are worth giving to `run` at once
    interface: Interface  # what the network takes
    takes_pixels = False  # whether there is `fuse_pixels`

    @abstractmethod
    def run(self, inputs: Mapping[str, NDArray[np.float32]]) -> NDArray[np.float32]:
        """Fuse luminances.

        Args:
            inputs: contiguous float32 arrays, of the names and shapes that `interface` gives for N pairs; H and W
                multiples of 16, at least 64.
                a, b: (N, 1, H, W) in [-1, 1].
                noise: (T, 2, H, W), standard normal.
                interval: (N, 2, H, W), the least and the greatest luminance of each pixel, in [-1, 1].

        Returns:
            (N, 1, H, W) float32 in [-1, 1], and within the interval where there is one; owned by the caller.
        """

    def fuse_pixels(self, a: NDArray[np.uint8], b: NDArray[np.uint8], rules: Rules, seed: int) -> NDArray[np.uint8]:
        """Fuse 8-bit images with nothing left for a CPU to do, equal to what `Canvas` makes of `run`.

        Only where `takes_pixels` says so.

        Args:
            a: luminances (N, H, W), H and W as for `run`.
            b: likewise, or colors (N, H, W, 3).
            rules: what holds for every pixel.
            seed: of the noise, for a network that takes it.

        Returns:
            Like b.
        """
        raise NotImplementedError

    @abstractmethod
    def close(self) -> None:
        """Free what the engine holds; it cannot run afterwards. Closing twice does no harm."""

    @property
    @abstractmethod
    def info(self) -> dict[str, str]:
        """What runs: engine, device, precision, weights (their hash), in words."""


def some_pairs(inputs: Mapping[str, NDArray[np.float32]], part: slice) -> dict[str, NDArray[np.float32]]:
    """The inputs of some pairs of a batch; they have the noise in common."""
    return {name: array if name == "noise" else array[part] for name, array in inputs.items()}
