"""The rules for color and against invention, and their equality in numpy, PyTorch and ONNX."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import onnxruntime
import pytest
import torch
from scipy import ndimage

from dmfnet_fast.images.color import LUMINANCE, Canvas, luminance
from dmfnet_fast.images.rules import (
    Interval,
    Rules,
    apply_luminance,
    chroma_of,
    color_interval,
    common,
    neighborhood_interval,
    within,
)

PixelType: TypeAlias = type[np.uint8 | np.uint16 | np.float32 | np.float64]
TOPS: dict[PixelType, int] = {np.uint8: 255, np.uint16: 65535, np.float64: 1}

RNG = np.random.default_rng(3)
A = RNG.integers(0, 256, (64, 80), np.uint8)
B = RNG.integers(0, 256, (64, 80, 3), np.uint8)
# Black, white and fully saturated colors in the first rows, gray in the next, random colors in the rest.
B[:8] = RNG.choice(np.array([0, 255], np.uint8), (8, 80, 3))
B[8:16] = RNG.integers(0, 256, (8, 80, 1), np.uint8)
FUSED = RNG.uniform(-1.1, 1.1, (64, 80)).astype(np.float32)


def chroma(pixels: Any) -> Any:
    """The difference of the channels from the luminance."""
    return pixels - (pixels @ LUMINANCE)[..., None]


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.75, 1.0])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float64])
def test_every_pixel_keeps_its_color(kept: float, dtype: PixelType) -> None:
    top = TOPS[dtype]
    a, b = (A / 255 * top).astype(dtype), (B / 255 * top).astype(dtype)
    result = Canvas(a, b, (0, top), (0, top), Rules(kept)).finish(FUSED).astype(np.float64)
    step = 1e-6 if dtype == np.float64 else 1
    wanted = chroma(b.astype(np.float64))
    colored = np.abs(wanted).max(axis=-1) > 20 * step
    part = (chroma(result) * wanted).sum(-1)[colored] / (wanted**2).sum(-1)[colored]
    # The channels are rounded; with all chroma kept, so is the only luminance that allows it.
    error = 1.5 * step / np.abs(wanted).max(axis=-1)[colored]
    error += step / np.minimum(wanted.max(axis=-1), -wanted.min(axis=-1))[colored]
    assert (part >= kept - error).all()
    assert (part <= 1 + error).all()
    # Hue is preserved: the chroma has b's direction up to rounding.
    rest = chroma(result)[colored] - part[:, None] * wanted[colored]
    assert np.abs(rest).max() <= 1.5 * step


@pytest.mark.parametrize("kept", [0.0, 0.75])
def test_nothing_is_invented(kept: float) -> None:
    result = Canvas(A, B, rules=Rules(kept)).finish(FUSED)
    footprint, y = np.ones((3, 3)), luminance(B)
    darkest = ndimage.minimum_filter(np.minimum(A, y), footprint=footprint, mode="nearest").astype(int)
    brightest = ndimage.maximum_filter(np.maximum(A, y), footprint=footprint, mode="nearest").astype(int)
    fused = luminance(result).astype(int)
    # One level for rounding the luminance, one for rounding the channels.
    assert (fused >= darkest - 2).all()
    assert (fused <= brightest + 2).all()
    allowed = luminance(Canvas(A, B, rules=Rules(kept, invention=True)).finish(FUSED)).astype(int)
    assert (allowed < darkest - 2).any()


def test_neighborhood_equals_scipy() -> None:
    near = neighborhood_interval(A, luminance(B))
    footprint = np.ones((3, 3))
    low, high = np.minimum(A, luminance(B)), np.maximum(A, luminance(B))
    assert np.array_equal(near.lowest, ndimage.minimum_filter(low, footprint=footprint, mode="nearest"))
    assert np.array_equal(near.highest, ndimage.maximum_filter(high, footprint=footprint, mode="nearest"))


def test_own_luminance_of_b_is_always_allowed() -> None:
    """Hence both rules can hold at every pixel."""
    canvas = Canvas(A, B, rules=Rules(1.0))
    own = canvas.b
    low, high = canvas.interval
    assert (low <= own + 2.1 / 255).all()
    assert (own <= high + 2.1 / 255).all()


def test_allowed_luminance_is_unchanged() -> None:
    canvas = Canvas(A, B)
    low, high = canvas.interval
    fused = low + (high - low) * RNG.random(low.shape).astype(np.float32)
    result = luminance(canvas.finish(fused)).astype(float)
    assert np.abs(result - (fused + 1) * 127.5).max() <= 1.01


def test_gray_has_no_color_rule() -> None:
    canvas = Canvas(A, A[::-1].copy(), rules=Rules(1.0, invention=True))
    assert np.array_equal(canvas.interval[0], np.full(A.shape, -1))
    assert np.array_equal(canvas.interval[1], np.full(A.shape, 1))
    assert np.array_equal(canvas.finish(canvas.a), A)


def test_yellow_does_not_become_white() -> None:
    """Yellow on white represents a hot spot over bright fat."""
    white, yellow = np.full((64, 64), 255, np.uint8), np.tile(np.array([255, 255, 0], np.uint8), (64, 64, 1))
    bright = np.ones((64, 64), np.float32)
    assert Canvas(white, yellow).finish(bright)[0, 0, 2] < 70
    assert (Canvas(white, yellow, rules=Rules(0.0)).finish(bright) == 255).all()


@pytest.mark.parametrize("kept", [-0.1, 1.1, float("nan")])
def test_invalid_rules(kept: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        Rules(kept)


class InTorch(torch.nn.Module):
    """`Canvas` for 8-bit images in PyTorch: from both images and the fused luminance to the result."""

    def forward(self, a: torch.Tensor, b: torch.Tensor, y: torch.Tensor, fused: torch.Tensor) -> torch.Tensor:
        """Shapes: `a` (H, W), `b` (3, H, W), `y` (H, W), which is b's luminance, and `fused` (H, W)."""
        colors = chroma_of(*b.float().unbind(0))
        color = color_interval(colors, 0.75, 0.0, 255.0, True)
        limits = common(color, Interval(*neighborhood_interval(a.float(), y.float())))
        luminance = within(torch.round((fused + 1) * 127.5), limits)
        return torch.stack(apply_luminance(luminance, colors, 0.0, 255.0, True)).to(torch.uint8)


def inputs() -> dict[str, Any]:
    return {"a": A, "b": np.ascontiguousarray(B.transpose(2, 0, 1)), "y": luminance(B).copy(), "fused": FUSED}


def test_torch_is_equal() -> None:
    result = InTorch()(*map(torch.tensor, inputs().values()))
    assert np.array_equal(result.numpy().transpose(1, 2, 0), Canvas(A, B).finish(FUSED))


def test_onnx_is_equal() -> None:
    given = inputs()
    program = torch.onnx.export(
        InTorch(), tuple(map(torch.tensor, given.values())), input_names=list(given), dynamo=True, verbose=False
    )
    assert program is not None
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"])
    (result,) = session.run(None, given)
    assert np.array_equal(result.transpose(1, 2, 0), Canvas(A, B).finish(FUSED))
