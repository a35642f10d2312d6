"""Parity: computation, serialization, limits, and the inputs of a reference."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from dmfnet_fast.artifacts.interface import Interface
from dmfnet_fast.artifacts.manifest import load_check, save_check
from dmfnet_fast.artifacts.parity import LIMITS, Parity, Reference, check, compare
from dmfnet_fast.diffusion.noise import fusion_noise
from dmfnet_fast.errors import EngineError
from dmfnet_fast.images.color import Canvas
from dmfnet_fast.images.rules import neighborhood_interval
from dmfnet_fast.phantom import make_phantom
from export.onnx.source import pack, unpack


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
        **{"max_abs": 0.0, "percentile": 0.0, "psnr": None, "ssim": 1.0, "objective": 0.0},
    }
    assert Parity.from_dict(equal.to_dict()) == equal
    step = 1 / 127.5
    off = _parity(reference + step, reference)
    assert off.max_abs == pytest.approx(step)
    assert off.psnr == pytest.approx(20 * np.log10(255))
    assert off.objective > 0
    assert off.within
    assert not _parity(reference + 4 * step, reference).within
    # Fewer than one in a thousand pixels may be far off, if the rest is not.
    few = np.zeros(reference.shape)
    few[0, 0, :2, :2] = 0.04
    assert _parity(reference + few, reference, "float16").percentile == 0
    assert _parity(reference + few, reference, "float16").within
    few[0, 0, :3, :3] = 0.04
    assert _parity(reference + few, reference, "float16").percentile == pytest.approx(0.04)
    assert not _parity(reference + few, reference, "float16").within
    one_bad = reference.copy()
    one_bad[1] += 0.5
    worst = _parity(one_bad[1:], reference[1:]).psnr
    assert _parity(one_bad, reference).psnr == pytest.approx(worst), "the worst pair counts, not the mean"


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
    """More precise formats have tighter limits."""
    ordered = [LIMITS[name] for name in ("float32", "float16", "bfloat16")]
    for tighter, wider in itertools.pairwise(ordered):
        assert tighter.max_abs < wider.max_abs
        assert tighter.psnr > wider.psnr
        assert tighter.ssim > wider.ssim


INTERFACES = [Interface(timesteps, interval) for timesteps in (0, 1, 3) for interval in (False, True)]


@pytest.mark.parametrize("interface", INTERFACES, ids=str)
def test_inputs_of_a_reference(interface: Interface, tmp_path: Path) -> None:
    """All of the network's inputs follow from the images, also after a round trip through a file."""
    heads = [make_phantom(seed, 64) for seed in range(2)]
    a = np.stack([head.mri for head in heads])
    b = a[:, :, ::-1].copy()
    fused = np.zeros((2, 1, 64, 64), np.float32)
    reference = Reference(a, b, fused, interface)
    inputs = reference.inputs
    assert {name: array.shape for name, array in inputs.items()} == interface.shapes(2, 64, 64)
    assert tuple(inputs) == interface.names
    np.testing.assert_allclose(inputs["a"][:, 0], a / 127.5 - 1, atol=1e-6)
    if interface.timesteps:
        assert inputs["noise"] is fusion_noise(0, 64, 64, interface.timesteps)
    if interface.interval:
        # The minimum and the maximum of both images in a 3x3 window.
        both = np.concatenate([np.pad(image, ((0, 0), (1, 1), (1, 1)), mode="edge") for image in (a, b)])
        windows = sliding_window_view(both, (3, 3), axis=(1, 2)).reshape(2, 2, 64, 64, 9)
        for n, expected in enumerate((windows.min((0, -1)), windows.max((0, -1)))):
            np.testing.assert_allclose(inputs["interval"][:, n], expected / 127.5 - 1, atol=1e-6)
    digest = save_check(tmp_path / "x.engine", reference)
    for restored in (load_check(tmp_path / "x.engine", digest, interface), *unpack(pack([reference]), interface)):
        for name, array in restored.inputs.items():
            np.testing.assert_array_equal(array, inputs[name])


def test_luminances_behind_pixels() -> None:
    """Rounded and clamped, the nearest luminances are the pixels; where the wanted ones are too, these themselves."""
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 256, (2, 2, 64, 64), dtype=np.uint8)
    interface = Interface(timesteps=0, interval=True)
    wanted = rng.uniform(-1, 1, (2, 1, 64, 64)).astype(np.float32)
    canvases = [Canvas(*pair) for pair in zip(a, b, strict=True)]
    own = np.stack([canvas.finish(y[0]) for canvas, y in zip(canvases, wanted, strict=True)])
    reference = Reference(a, b, wanted, interface)
    np.testing.assert_allclose(reference.nearest(own), wanted, atol=1e-6)
    off = own.copy()
    near = neighborhood_interval(a, b)
    inside = (near.lowest < own) & (own < near.highest)
    off[inside] += 1
    nearest = reference.nearest(off)
    again = np.stack([canvas.finish(y[0]) for canvas, y in zip(canvases, nearest, strict=True)])
    np.testing.assert_array_equal(again, off)
    errors = np.abs(nearest - wanted)[:, 0] * 127.5
    assert errors[~inside].max() <= 1e-4
    assert errors[inside].max() <= 1 + 2e-4
    assert errors[inside].mean() == pytest.approx(0.5, abs=0.05)
