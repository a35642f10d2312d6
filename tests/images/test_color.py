"""Conversion between images and luminances, inferred ranges, and the colors of fused images."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import pytest
from PIL import Image

from dmfnet_fast import DMFNetWarning, ImageError
from dmfnet_fast.images.color import LUMINANCE, Canvas, is_color, luminance, to_network, value_range
from dmfnet_fast.images.io import Pixels
from dmfnet_fast.images.rules import Rules
from dmfnet_fast.phantom import Phantom

PixelType: TypeAlias = type[np.uint8 | np.uint16 | np.float32 | np.float64]
TOPS: dict[PixelType, int] = {np.uint8: 255, np.uint16: 65535, np.float64: 1}

RNG = np.random.default_rng(1)
RGB8 = RNG.integers(0, 256, (64, 64, 3), np.uint8)
NO_RULES = Rules(kept_chroma=0, invention=True)


def apply_luminance(fused: np.ndarray, b: Pixels, values: tuple[float, float]) -> Pixels:
    """An image with the luminance `fused`, in b's colors, without any rule."""
    a = b if b.ndim == 2 else b[..., 1]
    return Canvas(a, b, values, values, NO_RULES).finish(fused)


def test_luminance_equals_pillow() -> None:
    assert np.array_equal(luminance(RGB8), np.asarray(Image.fromarray(RGB8).convert("L")))


def test_16_bit_luminance_agrees_with_8_bit() -> None:
    np.testing.assert_allclose(luminance(RGB8.astype(np.uint16) * 257) / 257, luminance(RGB8), atol=0.51)


def test_network_range() -> None:
    gray = np.array([[0, 255], [51, 102]], np.uint8)
    np.testing.assert_allclose(to_network(gray, (0, 255)), gray / 127.5 - 1, atol=1e-7)
    np.testing.assert_allclose(to_network(np.array([[-5.0, 10.0]]), (0, 5)), [[-1, 1]])


def test_apply_luminance_keeps_chroma() -> None:
    """Where nothing clips, Cb and Cr of the result are those of b and its luminance is the fused one."""
    b = RNG.integers(90, 160, (64, 64, 3), np.uint8)
    fused = RNG.uniform(-0.25, 0.25, (64, 64)).astype(np.float32)
    result = apply_luminance(fused, b, (0, 255))
    before, after = (np.asarray(Image.fromarray(x).convert("YCbCr")).astype(int) for x in (b, result))
    assert np.abs(before[..., 1:] - after[..., 1:]).max() <= 1
    assert np.abs(after[..., 0] - np.rint((fused + 1) * 127.5)).max() <= 1


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float64])
def test_apply_luminance_keeps_luminance_and_hue(dtype: PixelType) -> None:
    """Where the fused luminance rules out b's color, the result is desaturated by no more than necessary."""
    top = TOPS[dtype]
    b = (RNG.random((64, 64, 3)) * top).astype(dtype)
    y = RNG.random((64, 64)) * top
    result = apply_luminance((y / top * 2 - 1).astype(np.float32), b, (0, top)).astype(np.float64)
    step = 1 if dtype != np.float64 else 1e-6
    assert np.abs(result @ LUMINANCE - y).max() <= step * 1.01
    chroma, wanted = (x - (x @ LUMINANCE)[..., None] for x in (result, b.astype(np.float64)))
    ratio = (chroma * wanted).sum(-1) / (wanted**2).sum(-1)
    assert ratio.min() >= 0
    assert ratio.max() <= 1 + 4 * step / np.abs(wanted).max(axis=-1).min()
    # The direction of the chroma, which is the hue, equals b's up to rounding.
    assert np.abs(chroma - ratio[..., None] * wanted).max() <= 1.5 * step
    paler = ratio < 1 - 4 * step / np.abs(wanted).max(axis=-1)
    assert 0.2 < paler.mean() < 0.9
    margin = np.minimum(result.min(axis=-1), top - result.max(axis=-1))
    assert margin[paler].max() <= step


def test_applying_own_luminance_is_identity() -> None:
    for pixels in (RGB8, RGB8[..., 0]):
        again = apply_luminance(to_network(pixels, (0, 255)), pixels, (0, 255))
        assert np.abs(again.astype(int) - pixels).max() <= 1
    assert np.array_equal(apply_luminance(to_network(RGB8[..., 0], (0, 255)), RGB8[..., 0], (0, 255)), RGB8[..., 0])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, np.float64])
def test_apply_luminance_keeps_type_and_range(dtype: PixelType) -> None:
    top = 4000 if dtype == np.uint16 else 200 if dtype == np.uint8 else 0.7
    b = (RNG.random((64, 64, 3)) * top).astype(dtype)
    result = apply_luminance(RNG.uniform(-1, 1, (64, 64)).astype(np.float32), b, (0, top))
    assert result.dtype == dtype
    assert result.min() >= 0
    assert result.max() <= dtype(top)


def test_ranges() -> None:
    assert value_range(RGB8, (5, 7), "x") == (0, 255)
    full = np.array([[0, 40000]], np.uint16)
    assert value_range(full, None, "x") == (0, 65535)
    assert value_range(full, (100, 200), "x") == (100, 200)
    assert value_range(np.array([[0.0, 1.0]]), None, "x") == (0, 1)
    assert value_range(np.array([[-1000.0, 3000.0]]), (-1024, 3071), "x") == (-1024, 3071)


@pytest.mark.parametrize(("peak", "top"), [(4000, 4095), (200, 255), (32767, 32767), (1, 255)])
def test_partly_used_16_bit(peak: int, top: int) -> None:
    with pytest.warns(DMFNetWarning, match=f"0..{top}"):
        assert value_range(np.array([[0, peak]], np.uint16), None, "ct.png") == (0, top)


def test_hot_pixels_do_not_hide_12_bit_data() -> None:
    pixels = RNG.integers(0, 4000, (128, 128)).astype(np.uint16)
    pixels[0, 0] = 60000
    with pytest.warns(DMFNetWarning, match=r"a few reach 60000: 0\.\.4095"):
        assert value_range(pixels, None, "mri.png") == (0, 4095)


def test_small_lesion_is_not_a_hot_pixel() -> None:
    pixels = RNG.integers(0, 4000, (128, 128)).astype(np.uint16)
    pixels[60:64, 60:63] = 60000
    with pytest.warns(DMFNetWarning, match="nearly all values lie in"):
        assert value_range(pixels, None, "pet.png") == (0, 65535)


def test_narrow_16_bit_data_warns() -> None:
    pixels = RNG.integers(31744, 34000, (64, 64)).astype(np.uint16)
    with pytest.warns(DMFNetWarning, match="nearly all values lie in"):
        assert value_range(pixels, None, "ct.png") == (0, 65535)


@pytest.mark.parametrize("stated", [(1, 1), (2, 1), (0, np.inf), (np.nan, 1)])
def test_invalid_range(stated: tuple[float, float]) -> None:
    with pytest.raises(ImageError, match="two finite numbers"):
        value_range(np.zeros((2, 2), np.uint16), stated, "x")


@pytest.mark.parametrize("values", [(-0.1, 0.5), (0.0, 255.0)])
def test_float_outside_its_range(values: tuple[float, float]) -> None:
    with pytest.raises(ImageError, match="state its range"):
        value_range(np.array([values]), None, "x")


def test_is_color(phantom: Phantom) -> None:
    assert is_color(phantom.pet)
    assert is_color(phantom.spect)
    assert not is_color(phantom.mri)
    assert not is_color(np.repeat(phantom.mri[..., None], 3, axis=2))
    assert not is_color(np.zeros((64, 64, 3), np.uint8))
