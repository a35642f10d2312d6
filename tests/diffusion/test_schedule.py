"""Noise schedules: known values, and the precision of sigma."""

from __future__ import annotations

import numpy as np

from dmfnet_fast.diffusion.schedule import TIMESTEPS, cosine_alpha_bar, level_interval, linear_alpha_bar, sigma_of


def test_linear() -> None:
    alpha_bar = linear_alpha_bar()
    assert alpha_bar.shape == (TIMESTEPS + 1,)
    assert alpha_bar[0] == 1
    np.testing.assert_allclose(alpha_bar[1] / alpha_bar[0], 1 - 1e-6, rtol=1e-15)
    np.testing.assert_allclose(alpha_bar[-1] / alpha_bar[-2], 1 - 1e-2, rtol=1e-12)


def test_cosine() -> None:
    alpha_bar = cosine_alpha_bar()
    t = 1000
    g = [np.cos((x / TIMESTEPS + 0.008) / 1.008 * np.pi / 2) ** 2 for x in (0, t)]
    np.testing.assert_allclose(alpha_bar[t], g[1] / g[0], rtol=1e-12)
    assert (np.diff(alpha_bar) < 0).all()
    np.testing.assert_allclose(alpha_bar[-1] / alpha_bar[-2], 1e-3, rtol=1e-9)  # beta is capped at 0.999


def test_level_intervals_are_adjacent() -> None:
    low, high = level_interval(linear_alpha_bar(), np.array([1, 5, 6]))
    assert high[0] == 1
    assert low[1] == high[2]
    assert (low < high).all()


def test_sigma_is_accurate_near_level_1() -> None:
    assert abs(float(sigma_of(np.sqrt(1 - 1e-10))) - 1e-5) < 1e-11
