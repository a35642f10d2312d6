"""Turns image pairs into the inputs of networks, with seeded noise for those that take noise."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmfnet_fast.artifacts.interface import RULES, Interface
from dmfnet_fast.diffusion.noise import fusion_noise
from dmfnet_fast.images.color import Canvas
from dmfnet_fast.images.padding import pad
from dmfnet_fast.images.rules import Rules


def network_inputs(
    interface: Interface, canvases: Sequence[Canvas], seed: int = 0
) -> tuple[dict[str, NDArray[np.float32]], tuple[slice, slice]]:
    """Build one batch from pairs of equal size.

    Args:
        interface: the network's interface.
        canvases: the pairs.
        seed: seed for the noise.

    Returns:
        The network's inputs by name, contiguous float32; and the row and column slices that crop its output to the
        images.
    """
    padded_a, places = zip(*(pad(canvas.a) for canvas in canvases), strict=True)
    padded_b = [pad(canvas.b)[0] for canvas in canvases]
    inputs = {"a": np.stack(padded_a)[:, None], "b": np.stack(padded_b)[:, None]}
    if interface.timesteps:
        inputs["noise"] = fusion_noise(seed, *padded_a[0].shape, interface.timesteps)
    if interface.interval:
        inputs["interval"] = np.stack([[pad(end)[0] for end in canvas.interval] for canvas in canvases])
    return inputs, places[0]


@lru_cache(maxsize=8)
def rules_input(rules: Rules) -> NDArray[np.float32]:
    """The input `rules` of a network of pixels (see `Interface`), (2,) and read-only; the same rules give one array."""
    values = np.array([rules.kept_chroma / 1000, rules.invention], np.float32)
    values.flags.writeable = False
    return values


def pixel_inputs(
    interface: Interface, a: NDArray[np.uint8], b: NDArray[np.uint8], rules: Rules, seed: int = 0
) -> dict[str, NDArray[Any]]:
    """The inputs of a network of pixels, by name and contiguous.

    Args:
        interface: the network's interface, of pixels.
        a: luminances (N, H, W), of a size that the network accepts.
        b: luminances (N, H, W), which become three equal channels, or colors (N, H, W, 3).
        rules: constraints on every fused pixel.
        seed: seed for the noise.
    """
    known = {"a": a, "b": b if b.ndim == 4 else np.stack([b, b, b], axis=-1), RULES: rules_input(rules)}
    if interface.timesteps:
        known["noise"] = fusion_noise(seed, *a.shape[1:], interface.timesteps)
    return {name: np.ascontiguousarray(known[name]) for name in interface.names}
