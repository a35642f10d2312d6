"""Bootstrap intervals and paired comparisons."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from dmfnet_fast.evaluation.statistics import comparisons, estimates


def test_intervals_are_scipys() -> None:
    values = np.random.default_rng(1).gamma(2.0, size=(25, 3))
    for column, estimate in zip(values.T, estimates(values), strict=True):
        drawn = stats.bootstrap((column,), np.mean, n_resamples=20_000, method="percentile", rng=2)
        assert estimate.mean == pytest.approx(column.mean())
        spread = drawn.confidence_interval.high - drawn.confidence_interval.low
        assert estimate.low == pytest.approx(drawn.confidence_interval.low, abs=0.04 * spread)
        assert estimate.high == pytest.approx(drawn.confidence_interval.high, abs=0.04 * spread)


def test_the_same_every_time() -> None:
    values = np.random.default_rng(1).random((7, 2))
    assert estimates(values) == estimates(values)


def test_one_pair_has_no_width() -> None:
    (estimate,) = estimates(np.array([[0.25]]))
    assert (estimate.low, estimate.mean, estimate.high) == (0.25, 0.25, 0.25)


def test_direction_of_better() -> None:
    ours, theirs = np.array([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]]), np.array([[0.0, 0.0], [2.0, 2.0], [1.0, 1.0]])
    more, less = comparisons(ours, theirs, ["more", "less"])
    assert (more.wins, more.ties, more.losses) == (2, 1, 0)
    assert (less.wins, less.ties, less.losses) == (0, 1, 2)
    assert more.difference.mean == less.difference.mean == 1.0


def test_infinite_scores() -> None:
    """PSNR is infinite where a picture equals both sources."""
    ours, theirs = np.array([[math.inf], [math.inf]]), np.array([[math.inf], [30.0]])
    (comparison,) = comparisons(ours, theirs, ["more"])
    assert (comparison.wins, comparison.ties, comparison.losses) == (1, 1, 0)
    assert estimates(ours)[0].mean == math.inf
