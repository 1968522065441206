"""Estimates with their intervals: thin over scipy, one name a purpose."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats


class Estimate(NamedTuple):
    """A value, its interval's ends and the number of observations behind it."""

    value: float
    low: float
    high: float
    n: int


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> Estimate:
    """Return the mean with Student's t interval (`scipy.stats.ttest_1samp`).

    For a comparison of pairs, give their differences. ValueError for fewer than two values: one
    tells nothing of their spread.
    """
    found = np.asarray(values, dtype=float)
    if found.ndim != 1 or len(found) < 2:
        raise ValueError(f"mean_interval: give two or more values, not {found.size}.")
    if np.ptp(found) == 0:
        return Estimate(float(found[0]), float(found[0]), float(found[0]), len(found))
    interval = stats.ttest_1samp(found, 0).confidence_interval(confidence)
    return Estimate(float(found.mean()), float(interval.low), float(interval.high), len(found))


def share_interval(hits: int, n: int, confidence: float = 0.95) -> Estimate:
    """Return a share with Wilson's interval (`scipy.stats.binomtest`); ValueError unless n > 0."""
    if not 0 <= hits <= n or n < 1:
        raise ValueError(f"share_interval: {hits} of {n} is no share.")
    interval = stats.binomtest(hits, n).proportion_ci(confidence, method="wilson")
    return Estimate(hits / n, float(interval.low), float(interval.high), n)
