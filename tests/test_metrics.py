"""Metrics against other implementations, and the parity made of them."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from dmfnet_fast.errors import EngineError
from dmfnet_fast.metrics import hybrid_objective, psnr, ssim
from dmfnet_fast.parity import LIMITS, Parity, check, compare
from dmfnet_fast.phantom import Phantom
from train.losses import hybrid_loss


def test_psnr() -> None:
    flat = np.full((8, 8), 100.0)
    assert psnr(flat, flat) == math.inf
    assert psnr(flat, flat + 1) == pytest.approx(20 * math.log10(255))


def _slow_ssim(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """By its definition, window by window."""
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


def test_objective_is_the_training_loss(phantom: Phantom) -> None:
    random = np.random.default_rng(0)
    head = phantom.mri / 127.5 - 1
    for a, b, f in (random.uniform(-1, 1, (3, 48, 33)), np.stack([head, -head, head * 0.5])):
        expected = hybrid_loss(*(torch.from_numpy(z)[None, None] for z in (f, a, b))).item()
        assert hybrid_objective(f, a, b) == pytest.approx(expected, abs=1e-12)


def _parity(fused: NDArray[np.float64], reference: NDArray[np.float64], precision: str = "bfloat16") -> Parity:
    zero = np.zeros_like(reference)
    return compare("engine", precision, [fused], [reference], [(zero, zero)])


def test_parity() -> None:
    reference = np.full((2, 1, 64, 80), -0.5)
    equal = _parity(reference, reference)
    assert equal.within
    assert equal.sizes == ("64x80",)
    assert json.loads(json.dumps(equal.to_dict(), allow_nan=False)) == {
        **{"engine": "engine", "precision": "bfloat16", "sizes": ["64x80"]},
        **{"max_abs": 0.0, "psnr": None, "ssim": 1.0, "objective": 0.0},
    }
    assert Parity.from_dict(equal.to_dict()) == equal
    step = 1 / 127.5
    off = _parity(reference + step, reference)
    assert off.max_abs == pytest.approx(step)
    assert off.psnr == pytest.approx(20 * np.log10(255))
    assert off.objective > 0
    assert off.within
    assert not _parity(reference + 4 * step, reference).within
    # The worst pair counts, not the mean.
    one_bad = reference.copy()
    one_bad[1] += 0.5
    assert _parity(one_bad, reference).psnr == pytest.approx(_parity(one_bad[1:], reference[1:]).psnr)


def test_parity_of_nan() -> None:
    reference = np.zeros((1, 1, 64, 64))
    broken = reference.copy()
    broken[0, 0, 3, 3] = np.nan
    parity = _parity(broken, reference)
    assert not parity.within
    restored = Parity.from_dict(json.loads(json.dumps(parity.to_dict(), allow_nan=False)))
    assert not restored.within
    with pytest.raises(EngineError, match=r"differs from the weights: engine, bfloat16, 64x64.*left as it was"):
        check(parity, "left as it was")


def test_limits_order() -> None:
    """A precision with more bits is held to more."""
    ordered = [LIMITS[name] for name in ("float32", "float16", "bfloat16")]
    for tighter, wider in itertools.pairwise(ordered):
        assert tighter.max_abs < wider.max_abs
        assert tighter.psnr > wider.psnr
        assert tighter.ssim > wider.ssim
