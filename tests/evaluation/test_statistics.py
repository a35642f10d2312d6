"""Bootstrap intervals and paired comparisons."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from dmfnet_fast.evaluation.statistics import Comparison, Estimate, comparison, estimate


def _estimate(*values: float) -> Estimate:
    found = estimate(np.array(values))
    assert found is not None
    return found


def test_intervals_against_scipy() -> None:
    for column in np.random.default_rng(1).gamma(2.0, size=(3, 25)):
        found = _estimate(*column)
        drawn = stats.bootstrap((column,), np.mean, n_resamples=20_000, method="percentile", rng=2)
        assert found.mean == pytest.approx(column.mean())
        spread = drawn.confidence_interval.high - drawn.confidence_interval.low
        assert found.low == pytest.approx(drawn.confidence_interval.low, abs=0.04 * spread)
        assert found.high == pytest.approx(drawn.confidence_interval.high, abs=0.04 * spread)


def test_intervals_are_reproducible() -> None:
    values = np.random.default_rng(1).random(7)
    assert estimate(values) == estimate(values)


def test_interval_of_one_pair_has_no_width() -> None:
    assert _estimate(0.25) == Estimate(0.25, 0.25, 0.25)


def test_pairs_without_a_score_do_not_count() -> None:
    assert _estimate(1.0, math.nan, 2.0, 5.0) == _estimate(1.0, 2.0, 5.0)
    assert estimate(np.array([math.nan, math.nan])) is None


def test_direction_of_better() -> None:
    ours, theirs = np.array([1.0, 2.0, 3.0]), np.array([0.0, 2.0, 1.0])
    more, less = comparison(ours, theirs, "more"), comparison(ours, theirs, "less")
    assert more is not None
    assert less is not None
    assert (more.wins, more.ties, more.losses) == (2, 1, 0)
    assert (less.wins, less.ties, less.losses) == (0, 1, 2)
    assert more.difference == less.difference == _estimate(1.0, 0.0, 2.0)


def test_only_pairs_with_both_scores_are_compared() -> None:
    nan = math.nan
    found = comparison(np.array([1.0, nan, 4.0]), np.array([3.0, 1.0, nan]), "less")
    assert found == Comparison(Estimate(-2.0, -2.0, -2.0), 1, 0, 0)
    assert comparison(np.array([nan]), np.array([1.0]), "less") is None


def test_infinite_scores() -> None:
    """PSNR is infinite where an image equals both sources."""
    inf = math.inf
    found = comparison(np.array([inf, inf]), np.array([inf, 30.0]), "more")
    assert found is not None
    assert (found.wins, found.ties, found.losses) == (1, 1, 0)
    assert _estimate(inf, inf) == Estimate(inf, inf, inf)


@pytest.mark.filterwarnings("error")
def test_intervals_with_an_infinite_pair() -> None:
    """A third of the resamples of 20 pairs lack the infinite one: the lower end is finite, the upper end infinite."""
    values = np.random.default_rng(1).uniform(20, 30, 19)
    found = _estimate(*values, math.inf)
    assert found.mean == found.high == math.inf
    assert 21 < found.low < values.mean()
    mirrored = _estimate(*-values, -math.inf)
    assert (mirrored.mean, mirrored.low, mirrored.high) == (-math.inf, -math.inf, -found.low)
    assert all(math.isnan(value) for value in vars(_estimate(math.inf, -math.inf, 1.0)).values())
