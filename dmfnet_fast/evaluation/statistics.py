"""Means, their uncertainty, and paired comparisons.

A score is NaN if it is undefined for a pair, as color measures are for a gray b; such pairs are ignored. Scores may be
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
    """A mean over pairs, with the ends of its bootstrap interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """Comparison of a method with the baseline on the same pairs.

    Attributes:
        difference: mean of (method - baseline).
        wins, ties, losses: numbers of pairs in which the method is better, equal or worse.
    """

    difference: Estimate
    wins: int
    ties: int
    losses: int


@lru_cache(maxsize=8)
def _draws(pairs: int) -> NDArray[np.int64]:
    """How often each resample draws each pair, (RESAMPLES, pairs); the same for all methods and metrics."""
    return np.random.default_rng(0).multinomial(pairs, np.full(pairs, 1 / pairs), size=RESAMPLES)


def estimate(values: NDArray[np.float64]) -> Estimate | None:
    """The mean of `values` (pairs,) with a 95 % percentile bootstrap interval; None if no pair has a score.

    Efron 1979, doi:10.1214/aos/1176344552: pairs are resampled 10,000 times, with a fixed seed. Pairs are assumed to be
    independent. Slices of one patient are not, so that the interval underestimates the variation between patients.

    An infinite score makes the mean infinite, and also the mean of every resample that contains it: with one infinite
    score among many pairs, the lower end of the interval is finite and the upper end infinite. If there are both plus
    and minus infinity, the mean is undefined, and mean, low and high are NaN.
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
        # Percentiles cannot be interpolated between finite and infinite means, so the next rank outward is used.
        low, high = np.percentile(means, tail, method="lower"), np.percentile(means, 100 - tail, method="higher")
    else:
        low, high = np.percentile(means, (tail, 100 - tail))
    return Estimate(float(values.mean()), float(low), float(high))


def comparison(
    values: NDArray[np.float64], baseline: NDArray[np.float64], better: Literal["more", "less"]
) -> Comparison | None:
    """Compare `values` (pairs,) with those of the baseline, over the pairs in which both have a score.

    The difference of equal scores is 0, also if they are infinite. Returns None if there are no such pairs.
    """
    both = ~(np.isnan(values) | np.isnan(baseline))
    values, baseline = values[both], baseline[both]
    with np.errstate(invalid="ignore"):  # the difference of equal infinite scores
        difference = np.where(values == baseline, 0.0, values - baseline)
    mean = estimate(difference)
    if mean is None:
        return None
    gain = np.sign(difference) if better == "more" else -np.sign(difference)
    return Comparison(mean, int((gain > 0).sum()), int((gain == 0).sum()), int((gain < 0).sum()))
