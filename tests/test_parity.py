"""Parity, as a type and as a limit."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from numpy.typing import NDArray

from dmfnet_fast.errors import EngineError
from dmfnet_fast.parity import LIMITS, Parity, check, compare


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
