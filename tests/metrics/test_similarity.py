"""Similarity measures against other implementations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from dmfnet_fast.metrics.similarity import hybrid_objective, psnr, ssim
from dmfnet_fast.phantom import Phantom
from train.losses import hybrid_loss


def test_psnr() -> None:
    flat = np.full((8, 8), 100.0)
    assert psnr(flat, flat) == math.inf
    assert psnr(flat, flat + 1) == pytest.approx(20 * math.log10(255))


def _slow_ssim(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """SSIM by its definition, window by window."""
    values = []
    for i in range(x.shape[0] - 6):
        for j in range(x.shape[1] - 6):
            p, q = x[i : i + 7, j : j + 7].ravel(), y[i : i + 7, j : j + 7].ravel()
            c = np.cov(p, q)
            numerator = (2 * p.mean() * q.mean() + 2.55**2) * (2 * c[0, 1] + 7.65**2)
            values.append(numerator / ((p.mean() ** 2 + q.mean() ** 2 + 2.55**2) * (c[0, 0] + c[1, 1] + 7.65**2)))
    return float(np.mean(values))


def test_ssim() -> None:
    random = np.random.default_rng(0)
    x = random.integers(0, 256, (24, 17)).astype(float)
    y = (x + random.normal(0, 20, x.shape)).clip(0, 255)
    assert ssim(x, y) == pytest.approx(_slow_ssim(x, y), abs=1e-12)
    assert ssim(x, x) == pytest.approx(1.0)
    assert ssim(np.stack([x, x]), np.stack([y, x])) == pytest.approx((ssim(x, y) + 1) / 2)


def test_objective_equals_the_training_loss(phantom: Phantom) -> None:
    random = np.random.default_rng(0)
    head = phantom.mri / 127.5 - 1
    for a, b, f in (random.uniform(-1, 1, (3, 48, 33)), np.stack([head, -head, head * 0.5])):
        expected = hybrid_loss(*(torch.from_numpy(z)[None, None] for z in (f, a, b))).item()
        assert hybrid_objective(f, a, b) == pytest.approx(expected, abs=1e-12)
