"""Turns image pairs into network inputs: padded, batched, with seeded noise for networks that take noise."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dmfnet_fast.artifacts.interface import Interface
from dmfnet_fast.diffusion.noise import fusion_noise
from dmfnet_fast.images.color import Canvas
from dmfnet_fast.images.padding import pad


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
