"""Pairs as a network takes them: padded, in a batch, with the fixed noise where it takes noise."""

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
    """One batch of pairs that are of one size.

    Args:
        interface: of the network.
        canvases: the pairs.
        seed: of the noise.

    Returns:
        The network's inputs by name, contiguous float32; and where the images lie in its output.
    """
    padded_a, places = zip(*(pad(canvas.a) for canvas in canvases), strict=True)
    padded_b = [pad(canvas.b)[0] for canvas in canvases]
    inputs = {"a": np.stack(padded_a)[:, None], "b": np.stack(padded_b)[:, None]}
    if interface.timesteps:
        inputs["noise"] = fusion_noise(seed, *padded_a[0].shape, interface.timesteps)
    if interface.interval:
        inputs["interval"] = np.stack([[pad(end)[0] for end in canvas.interval] for canvas in canvases])
    return inputs, places[0]
