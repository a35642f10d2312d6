"""Means, their uncertainty, and paired comparisons.

Scores are NaN where a pair has none, such as those of color where b is gray; such pairs do not count. Scores may be
infinite (PSNR).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 10_000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean over pairs, with its bootstrap interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """One method against the baseline, on the same pairs.

    Attributes:
        difference: mean of (method - baseline).
        wins, ties, losses: numbers of pairs, by the metric's own direction.
    """

    difference: Estimate
    wins: int
    ties: int
    losses: int


@lru_cache(maxsize=8)
def _draws(pairs: int) -> NDArray[np.int64]:
    """How often each pair is drawn in each resample, (RESAMPLES, pairs): the same for all methods and metrics."""
    return np.random.default_rng(0).multinomial(pairs, np.full(pairs, 1 / pairs), size=RESAMPLES)


def estimate(values: NDArray[np.float64]) -> Estimate | None:
    """The mean of `values` (pairs,) and its percentile bootstrap interval of 95 %; None if no pair has a score.

    Efron 1979, doi:10.1214/aos/1176344552: whole pairs are drawn anew 10,000 times, with a fixed seed. The pairs are
    taken for independent; slices of one patient are not, so that other patients vary more than this says.

    A mean that an infinite score takes part in is infinite, and so is that of every resample that holds it: one pair of
    many leaves a finite lower end, below an infinite upper one. Where plus and minus infinity meet there is no mean:
    all three are NaN.
    """
    values = values[~np.isnan(values)]
    pairs = len(values)
    if not pairs:
        return None
    infinite = np.isinf(values)
    if np.isin([np.inf, -np.inf], values).all():
        return Estimate(np.nan, np.nan, np.nan)
    counts = _draws(pairs)
    means = counts @ np.where(infinite, 0.0, values) / pairs
    tail = 50 * (1 - CONFIDENCE)
    if infinite.any():
        means[counts[:, infinite].any(axis=1)] = values[infinite][0]
        # Between a finite and an infinite mean nothing can be interpolated: the next rank outwards is taken.
        low, high = np.percentile(means, tail, method="lower"), np.percentile(means, 100 - tail, method="higher")
    else:
        low, high = np.percentile(means, (tail, 100 - tail))
    return Estimate(float(values.mean()), float(low), float(high))


def comparison(
    values: NDArray[np.float64], baseline: NDArray[np.float64], better: Literal["more", "less"]
) -> Comparison | None:
    """`values` (pairs,) against those of the baseline, over the pairs where both have a score; None if there are none.

    Equal scores differ by 0, infinite ones too.
    """
    both = ~(np.isnan(values) | np.isnan(baseline))
    values, baseline = values[both], baseline[both]
    with np.errstate(invalid="ignore"):  # of equal infinite scores
        difference = np.where(values == baseline, 0.0, values - baseline)
    mean = estimate(difference)
    if mean is None:
        return None
    gain = np.sign(difference) if better == "more" else -np.sign(difference)
    return Comparison(mean, int((gain > 0).sum()), int((gain == 0).sum()), int((gain < 0).sum()))
