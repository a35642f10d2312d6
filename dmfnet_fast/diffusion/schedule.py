"""The diffusion process: noise schedules and the fixed noise levels of inference.

`alpha_bar[t]` is the product of `1 - beta_i` for i = 1..t, so `alpha_bar[0] = 1`. The noise level is
`s = sqrt(alpha_bar)`, and a noisy image is `s * x + sqrt(1 - s^2) * n`. Everything is computed in float64: with a
float32 `s`, `1 - s^2` would lose significant digits at the small timesteps used for fusion.
Source: DM-FNet (arXiv 2506.15218) and its published implementation.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

TIMESTEPS = 2000
FUSION_TIMESTEPS = (5, 10, 20)


@lru_cache(maxsize=1)
def linear_alpha_bar() -> NDArray[np.float64]:
    """The linear schedule of stage II and inference, shape (TIMESTEPS + 1,)."""
    betas = np.linspace(1e-6, 1e-2, TIMESTEPS, dtype=np.float64)
    return np.concatenate([[1.0], np.cumprod(1.0 - betas)])


@lru_cache(maxsize=1)
def cosine_alpha_bar() -> NDArray[np.float64]:
    """The cosine schedule of stage I (Nichol and Dhariwal 2021, betas capped at 0.999), shape (TIMESTEPS + 1,)."""
    t = np.arange(TIMESTEPS + 1, dtype=np.float64)
    g = np.cos((t / TIMESTEPS + 0.008) / 1.008 * np.pi / 2) ** 2
    betas = np.minimum(1.0 - g[1:] / g[:-1], 0.999)
    return np.concatenate([[1.0], np.cumprod(1.0 - betas)])


def level_interval(
    alpha_bar: NDArray[np.float64], t: int | NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The lowest and the highest noise level of timestep `t` (1..TIMESTEPS)."""
    return np.sqrt(alpha_bar[t]), np.sqrt(alpha_bar[np.asarray(t) - 1])


def sigma_of(level: float | NDArray[np.float64]) -> NDArray[np.float64]:
    """Standard deviation of the noise at `level`: sqrt(1 - s^2)."""
    return np.sqrt(1.0 - np.square(np.asarray(level, dtype=np.float64)))


@lru_cache(maxsize=4)
def fusion_levels(timesteps: tuple[int, ...] = FUSION_TIMESTEPS) -> tuple[tuple[float, float], ...]:
    """(level, sigma) at the midpoint of each timestep's interval of noise levels, in the order of `timesteps`."""
    pairs = []
    for t in timesteps:
        low, high = level_interval(linear_alpha_bar(), t)
        level = float((low + high) / 2)
        pairs.append((level, float(sigma_of(level))))
    return tuple(pairs)
