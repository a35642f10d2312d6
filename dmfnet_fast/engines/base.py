"""The interface of every engine."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

# "auto" is the fastest that stays within half a grey level of float32 on average, as each engine's class says.
# Convolutions of an "int8" network multiply in 8 bits; that is in its file, so no other file runs so.
Precision: TypeAlias = Literal["auto", "float32", "bfloat16", "float16", "int8"]


class Engine(ABC):
    """An open network. Not safe to call from several threads at once: `Fuser` takes turns."""

    largest_batch: int  # pairs that are worth giving to `run` at once
    timesteps: int  # T, of the noise

    @abstractmethod
    def run(self, a: NDArray[np.float32], b: NDArray[np.float32], noise: NDArray[np.float32]) -> NDArray[np.float32]:
        """Fuse luminances.

        Args:
            a, b: (N, 1, H, W) float32 in [-1, 1], contiguous; H and W multiples of 16, at least 64.
            noise: (T, 2, H, W) float32, standard normal.

        Returns:
            (N, 1, H, W) float32 in [-1, 1], owned by the caller.
        """

    @abstractmethod
    def close(self) -> None:
        """Free what the engine holds; it cannot run afterwards. Closing twice does no harm."""

    @property
    @abstractmethod
    def info(self) -> dict[str, str]:
        """What runs: engine, device, precision, weights (their hash), in words."""
