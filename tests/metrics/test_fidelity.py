"""Fidelity metrics: cases worked out by hand, and comparisons with scipy's filters and scikit-image's CIELAB."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from skimage.color import rgb2lab

from dmfnet_fast.metrics.fidelity import (
    chroma,
    color_difference,
    color_fidelity,
    colored,
    invented,
    lab_color,
    specks,
)
from dmfnet_fast.metrics.fusion import COLOR_MEASURES, MEASURES, color_measures, fusion_metrics

RNG = np.random.default_rng(5)
RGB8 = RNG.integers(0, 256, (48, 60, 3), np.uint8)
BLACK = np.zeros((48, 60), np.uint8)


def _with(value: int, row: int, column: int, image: NDArray[np.uint8] = BLACK) -> NDArray[np.uint8]:
    result = image.copy()
    result[row, column] = value
    return result


def test_edge_may_move_by_a_pixel_and_by_eight_levels() -> None:
    """The source has one bright pixel, so the nine pixels of its neighborhood count."""
    a = _with(100, 10, 20)
    assert invented(_with(100, 11, 21), a, BLACK) == 0
    assert invented(_with(108, 10, 20), a, BLACK) == 0
    assert invented(_with(109, 10, 20), a, BLACK) == pytest.approx(100 / 9)
    assert invented(_with(109, 10, 20), BLACK, a) == pytest.approx(100 / 9)
    assert invented(_with(109, 10, 20), _with(9, 30, 30), a) == pytest.approx(100 / 18)
    assert invented(_with(109, 10, 20), _with(8, 30, 30), a) == pytest.approx(100 / 9), "a level of 8 is background"
    assert invented(_with(255, 10, 22), a, BLACK) == 0, "the background does not count"


def test_dark_pixels_can_be_invented() -> None:
    a, b = np.full((48, 60), 100, np.uint8), np.full((48, 60), 150, np.uint8)
    f = np.full((48, 60), 92, np.uint8)
    assert invented(f, a, b) == 0
    f[:, :6] = 91
    assert invented(f, a, b) == pytest.approx(10)
    f[:24, 6:] = 159
    assert invented(f, a, b) == pytest.approx(10 + 45)
    assert invented(f, _with(80, 0, 0, a), b) == pytest.approx(55 - 100 * 4 / f.size), "the corner counts too"


def test_nothing_is_invented_over_black_sources() -> None:
    assert invented(np.full((48, 60), 255, np.uint8), BLACK, BLACK) == 0


def test_dots_are_specks_and_lines_are_not() -> None:
    a = np.full((48, 60), 100, np.uint8)
    assert specks(_with(140, 10, 20, a), a, BLACK) == pytest.approx(40 / a.size)
    assert specks(_with(60, 10, 20, a), BLACK, a) == pytest.approx(40 / a.size), "pits count like peaks"
    line = a.copy()
    line[10] = 140
    assert specks(line, a, BLACK) == 0
    line[10, ::2] = 100  # dotted
    assert specks(line, a, BLACK) == pytest.approx(40 * 29.5 / a.size), "the replicated border halves the outermost dot"
    edge = np.where(np.arange(60) < 30, 100, 180).astype(np.uint8) * np.ones((48, 1), np.uint8)
    serrated = edge.copy()
    serrated[::2, 30] = 100
    assert specks(serrated, edge, BLACK) == pytest.approx(40 * 47 / a.size, rel=0.05), "half the height in every row"


def test_specks_of_a_source_may_move_by_a_pixel() -> None:
    a, b = (np.full((48, 60), 100, np.uint8) for _ in range(2))
    source = _with(140, 10, 20, a)
    assert specks(_with(140, 11, 21, a), source, b) == 0
    assert specks(_with(150, 11, 21, a), b, source) == pytest.approx(10 / a.size)
    assert specks(_with(140, 12, 20, a), source, b) == pytest.approx(40 / a.size)
    assert specks(_with(140, 10, 20), BLACK, BLACK) == 0, "the background does not count"


def test_specks_equal_the_training_loss() -> None:
    torch = pytest.importorskip("torch")
    from train.losses import invented_specks

    f, a, b = RNG.integers(9, 256, (3, 48, 60), np.uint8)
    f_, a_, b_ = (torch.from_numpy(z.astype(np.float64) / 127.5 - 1)[None, None] for z in (f, a, b))
    assert specks(f, a, b) == pytest.approx(127.5 * float(invented_specks(f_, a_, b_)))
    assert specks(f, a, b) > 1


@pytest.mark.parametrize("kind", [np.uint8, np.float64])
def test_invented_against_scipy(kind: type) -> None:
    smooth = [ndimage.gaussian_filter(RNG.uniform(-300, 300, (48, 60)), 2).clip(0, 255) for _ in range(2)]
    f, a, b = (z.astype(kind) for z in (RNG.uniform(0, 60, (48, 60)), *smooth))
    brightest = ndimage.maximum_filter(np.maximum(a, b), 3, mode="nearest").astype(float)
    darkest = ndimage.minimum_filter(np.minimum(a, b), 3, mode="nearest").astype(float)
    found = ((f > brightest + 8) | (f < darkest - 8))[brightest > 8]
    assert 0.1 < found.mean() < 0.9
    assert invented(f, a, b) == pytest.approx(100 * found.mean())


def test_cielab_against_scikit_image() -> None:
    """Equal within the tolerance of scikit-image's constants, some of which are rounded to four digits."""
    levels = np.stack(np.meshgrid(*[np.arange(0, 256, 15, dtype=np.uint8)] * 3), axis=-1).reshape(-1, 18, 3)
    for image in (RGB8, levels):
        np.testing.assert_allclose(lab_color(image), rgb2lab(image / 255)[..., 1:], atol=1e-3)


def test_chroma_against_pillow() -> None:
    expected = np.asarray(Image.fromarray(RGB8).convert("YCbCr"))[..., 1:].astype(float) - 128
    assert np.abs(chroma(RGB8) - expected).max() <= 1


def _flat(*color: float) -> NDArray[np.uint8]:
    return np.broadcast_to(np.rint(color).astype(np.uint8), (48, 60, 3)).copy()


def _from_ycbcr(y: float, cb: float, cr: float) -> NDArray[np.uint8]:
    r, b = y + 1.402 * cr, y + 1.772 * cb
    return _flat(r, (y - 0.299 * r - 0.114 * b) / 0.587, b)


@pytest.mark.parametrize(
    ("fused", "kept", "bleached", "hue"),
    [
        (_from_ycbcr(120, 40, 30), 100, 0, 0),
        (_from_ycbcr(150, 40, 30), 100, 0, 0),
        (_from_ycbcr(120, 60, 45), 100, 0, 0),  # oversaturation counts as 100 %
        (_from_ycbcr(120, 24, 18), 60, 0, 0),
        (_from_ycbcr(120, 16, 12), 40, 100, 0),
        (_from_ycbcr(120, -40, -30), 100, 0, 180),
        (_from_ycbcr(120, -30, 40), 100, 0, 90),
        (_from_ycbcr(120, 30, -40), 100, 0, 90),
        (_from_ycbcr(120, 30, 40), 100, 0, 2 * math.degrees(math.atan2(1, 7))),
    ],
)
def test_colors_worked_out_by_hand(fused: NDArray[np.uint8], kept: float, bleached: float, hue: float) -> None:
    """b has a chroma of 50, in the direction (40, 30)."""
    b = _from_ycbcr(100, 40, 30)
    found = color_fidelity(fused, b)
    assert found is not None
    assert found.kept == pytest.approx(kept, abs=2)
    assert found.bleached == bleached
    assert found.hue == pytest.approx(hue, abs=2)
    lab = [rgb2lab(image[:1, :1])[0, 0, 1:] for image in (fused, b)]
    assert found.ab == pytest.approx(math.dist(*lab), abs=1e-3)


def test_only_colored_pixels_count() -> None:
    """A quarter of b is colored, and a third of that quarter is gray in the fused image; other pixels are arbitrary."""
    b = _from_ycbcr(100, 18, 21)  # a chroma of 28
    b[:24, :30] = _from_ycbcr(100, 40, 30)[0, 0]
    fused = RGB8.copy()
    fused[:24, :30] = b[:24, :30]
    fused[:8, :30] = 100
    found = color_fidelity(fused, b)
    assert colored(b).sum() == 24 * 30
    assert found is not None
    assert found.kept == pytest.approx(200 / 3)
    assert found.bleached == pytest.approx(100 / 3)
    assert found.hue == pytest.approx(0, abs=1e-6), "gray pixels have no hue"
    difference = color_difference(fused, b)
    assert (difference > 0).sum() == 8 * 30
    assert (difference[:8, :30] > 20).all()
    assert found.ab == pytest.approx(difference[:8, :30].mean() / 3)


def test_gray_result_has_lost_all_color_and_has_no_hue() -> None:
    b = _from_ycbcr(100, 40, 30)
    for gray in (np.full((48, 60), 200, np.uint8), np.full((48, 60, 3), 200, np.uint8)):
        found = color_fidelity(gray, b)
        assert found is not None
        assert found.kept == pytest.approx(0, abs=1e-9)
        assert (found.bleached, found.hue) == (100, None)
        assert found.ab == pytest.approx(math.hypot(*rgb2lab(b)[0, 0, 1:]), abs=0.01)


@pytest.mark.parametrize("b", [BLACK, np.repeat(RGB8[..., :1], 3, axis=2), _from_ycbcr(100, 15, 15)])
def test_color_measures_are_undefined_without_colors(b: NDArray[np.uint8]) -> None:
    assert color_fidelity(RGB8, b) is None
    assert not color_difference(RGB8, b).any()
    assert color_measures(RGB8, b) == {measure.name: None for measure in COLOR_MEASURES}


def test_all_measures_by_name() -> None:
    b = _from_ycbcr(100, 40, 30)
    found = color_fidelity(RGB8, b)
    assert found is not None
    assert color_measures(RGB8, b) == {
        "chroma kept": found.kept,
        "bleached": found.bleached,
        "hue error": found.hue,
        "ab error": found.ab,
    }
    gray = RGB8[..., 0]
    assert [measure.name for measure in MEASURES] == [*fusion_metrics(gray, gray, gray), *color_measures(RGB8, b)]
    assert {m.name for m in MEASURES if m.better == "less"} == {
        "objective", "invented", "specks", "bleached", "hue error", "ab error",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("fused", "b", "message"),
    [
        (RGB8.astype(float), RGB8, r"fused \(48, 60, 3\), float64: must be \(H, W\) or \(H, W, 3\), uint8"),
        (RGB8, RGB8[..., :2], r"b \(48, 60, 2\), uint8: must be"),
        (RGB8[0, 0], RGB8, r"fused \(3,\), uint8: must be"),
        (RGB8[:40], RGB8, r"fused \(40, 60, 3\) and b \(48, 60, 3\): they must be of one size"),
    ],
)
def test_invalid_images(fused: NDArray[np.uint8], b: NDArray[np.uint8], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        color_measures(fused, b)
