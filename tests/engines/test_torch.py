"""The PyTorch engine on the CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dmfnet_fast import Fuser
from dmfnet_fast.engines import SHIPPED_WEIGHTS, torch_engine
from dmfnet_fast.errors import EngineError


def test_precisions() -> None:
    a, b = np.random.default_rng(0).uniform(-1, 1, (2, 3, 1, 64, 64)).astype(np.float32)
    fused = {}
    for precision in ("float32", "bfloat16"):
        with Fuser(SHIPPED_WEIGHTS, precision=precision) as fuser:
            assert fuser.info["precision"] == precision
            fused[precision] = fuser.run(a, b)
            assert np.array_equal(fuser.run(a[1:2], b[1:2]), fused[precision][1:2])
    difference = np.abs(fused["float32"] - fused["bfloat16"])
    assert 0 < difference.mean() < 0.01
    assert difference.max() < 0.1


@pytest.mark.parametrize("native", [False, True])
def test_auto(native: bool, tiny_weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_engine, "_fast_bfloat16", lambda: native)
    with Fuser(tiny_weights) as fuser:
        assert fuser.info["precision"] == ("bfloat16" if native else "float32")


def test_float16_needs_a_gpu(tiny_weights: Path) -> None:
    with pytest.raises(EngineError, match="precision 'float16': on a CPU use auto, float32 or bfloat16"):
        Fuser(tiny_weights, precision="float16")
