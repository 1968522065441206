"""Trends over a factor, and what a number of images can find: thin over statsmodels and scipy."""

from __future__ import annotations

import warnings
from functools import partial
from typing import NamedTuple

import numpy as np
from scipy import stats

from koala_nb.stats import check_arguments, estimates
from koala_nb.stats.estimates import Estimate, Values, finite, same_length, yes_or_no

RARE = 10  # hits or misses, fewer of which give no curve
POWER = 0.8  # how often a difference is to be found
MOST = 10_000_000  # images of which `power` sums the distribution
APPROXIMATED = 5000  # images, from which on the normal approximation is exact enough


class Trend(NamedTuple):
    """A logistic curve of success against x."""

    intercept: float
    slope: Estimate  # change of the log odds per unit of x
    half: Estimate  # where success is 50 %; ends may be infinite

    def share(self, x: float | Values) -> np.ndarray:
        """Return the curve's share at x."""
        return 1 / (1 + np.exp(-(self.intercept + self.slope.value * np.asarray(x, float))))


def logistic_trend(x: Values, hits: Values, clusters: Values) -> Trend | None:
    """Return the logistic regression of hits on x, its errors clustered by prompt.

    `statsmodels` GLM with the sandwich estimator and Student's t over clusters; the x at 50 % has
    Fieller's interval (1954). None where there is no curve to fit: fewer than 10 hits or misses
    (there the interval held the truth in 78 %), one x only, or x tells hits and misses apart.
    ValueError for values that are no numbers, hits that are not 0 or 1, lists of other lengths.
    """
    import statsmodels.api as sm
    from statsmodels.tools.sm_exceptions import PerfectSeparationError, PerfectSeparationWarning

    values, success = (finite(x, "logistic_trend"), yes_or_no(hits, "logistic_trend"))
    for each in (hits, clusters):
        same_length(x, each, "logistic_trend")
    groups = estimates.cluster_codes(clusters)
    rarer = min(success.sum(), (1 - success).sum())
    if rarer < RARE or np.ptp(values) == 0 or groups.max() < 2:
        return None
    right, wrong = values[success == 1], values[success == 0]
    if right.max() <= wrong.min() or wrong.max() <= right.min():
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", PerfectSeparationWarning)
            fit = sm.GLM(success, sm.add_constant(values), family=sm.families.Binomial()).fit(
                cov_type="cluster", cov_kwds={"groups": groups, "use_correction": True}
            )
    except (PerfectSeparationError, PerfectSeparationWarning):
        return None
    a, b = (float(v) for v in fit.params)
    covariance = np.asarray(fit.cov_params())
    t = float(stats.t.ppf(estimates.UPPER, groups.max()))
    half = t * float(np.sqrt(covariance[1, 1]))
    slope = Estimate(b, b - half, b + half, len(success))
    return Trend(a, slope, _fieller(a, b, covariance, t, len(success)))


def _fieller(a: float, b: float, cov: np.ndarray, t: float, n: int) -> Estimate:
    """Return -a / b with all x for which a + b x is not told apart from 0; infinite if b is not."""
    value = -a / b if b else np.inf
    square = b * b - t * t * cov[1, 1]
    linear = a * b - t * t * cov[0, 1]
    rest = a * a - t * t * cov[0, 0]
    if square <= 0:
        return Estimate(value, -np.inf, np.inf, n)
    root = np.sqrt(max(0.0, linear * linear - square * rest))
    return Estimate(value, (-linear - root) / square, (-linear + root) / square, n)


def power(n: float, reference: float, truth: float, confidence: float = 0.95) -> float:
    """Return how often Wilson's interval of n images leaves the reference out, if `truth` holds.

    Exact: a sum over the binomial distribution. For clusters, n is the effective number. ValueError
    for a reference, truth or confidence that is no share.
    """
    if not (0 < reference < 1 and 0 <= truth <= 1 and 0 < confidence < 1 and 0 < n <= MOST):
        raise ValueError(
            f"power: {n} images, reference {reference}, truth {truth}, confidence {confidence}: "
            f"shares lie between 0 and 1, and there are images, at most {MOST:,}."
        )
    count = max(1, int(n))
    hits = np.arange(count + 1)
    z = stats.norm.ppf(0.5 + confidence / 2)
    # Wilson's interval holds exactly the references that a score test keeps.
    out = np.abs(hits / count - reference) > z * np.sqrt(reference * (1 - reference) / count)
    return float(stats.binom.pmf(hits, count, truth)[out].sum())


def effective_sample_size(prompts: float, seeds: float, correlation: float) -> float:
    """Return the number of independent images that prompts x seeds are worth (Kish 1965).

    ValueError for fewer than one of either, or a correlation outside 0 to 1.
    """
    if not (1 <= prompts < np.inf and 1 <= seeds < np.inf and 0 <= correlation <= 1):
        raise ValueError(
            f"No design has {prompts} prompts x {seeds} images with a correlation of {correlation}."
        )
    return prompts * seeds / (1 + (seeds - 1) * correlation)


def required_sample_size(
    difference: float, reference: float = 0.5, confidence: float = 0.95
) -> int:
    """Return the number of independent images from which on a difference is found with 80 % power.

    Above 5,000 by the normal approximation. ValueError where reference + difference or the
    confidence is no share.
    """
    truth = reference + difference
    shares = 0 < reference < 1 and 0 <= truth <= 1 and 0 < confidence < 1
    if not shares or abs(difference) < 1e-9:
        raise ValueError(
            f"required_sample_size: {reference} {difference:+} at {confidence} is no share to be "
            "found."
        )
    z, z_power = stats.norm.ppf([0.5 + confidence / 2, POWER])
    spreads = np.sqrt([reference * (1 - reference), truth * (1 - truth)])
    about = ((z * spreads[0] + z_power * spreads[1]) / difference) ** 2  # the normal approximation
    if about > APPROXIMATED:
        return int(np.ceil(about))
    # Power rises with n in a saw: all n are tried up to where it surely stays above.
    tried = range(2, 2 * int(about) + 101)
    too_few = [n for n in tried if power(n, reference, truth, confidence) < POWER]
    return too_few[-1] + 1 if too_few else 2


def detectable_difference(
    prompts: float, seeds: float, correlation: float = 0.05, confidence: float = 0.95
) -> float:
    """Return the smallest difference from one half that prompts x seeds find with 80 % power.

    In steps of .005; NaN where even the largest is not found.
    """
    n = effective_sample_size(prompts, seeds, correlation)
    steps = (0.005 * step for step in range(1, 101))
    enough = (step for step in steps if power(n, 0.5, 0.5 + step, confidence) >= POWER)
    return next(enough, float("nan"))


def intraclass_correlation(hits: Values, clusters: Values) -> float:
    """Return the intra-class correlation of hits within clusters, 0 to 1 (analysis of variance)."""
    sums, sizes = estimates.cluster_totals(yes_or_no(hits, "intraclass_correlation"), clusters)
    m, n = len(sizes), sizes.sum()
    if m < 2 or n == m:
        return 0.0
    share = sums.sum() / n
    between = (sizes * (sums / sizes - share) ** 2).sum() / (m - 1)
    inside = (sums * (1 - sums / sizes)).sum() / (n - m)
    typical = (n - (sizes**2).sum() / n) / (m - 1)
    whole = between + (typical - 1) * inside
    return float(np.clip((between - inside) / whole, 0, 1)) if whole else 0.0


def line_slope(x: Values, y: Values) -> Estimate:
    """Return the slope of a straight line of y on x, by least squares (`statsmodels` OLS).

    Its interval is Student's t with errors that may differ from point to point (HC3, MacKinnon and
    White 1985). ValueError for fewer than three points, or where x is all the same.
    """
    import statsmodels.api as sm

    same_length(x, y, "line_slope")
    points, heights = (finite(x, "line_slope", least=2), finite(y, "line_slope", least=2))
    if len(points) < 3 or np.ptp(points) == 0:
        raise ValueError("line_slope: give three points or more, of two different x or more.")
    fit = sm.OLS(heights, sm.add_constant(points)).fit(cov_type="HC3", use_t=True)
    low, high = fit.conf_int(1 - 0.95)[1]
    return Estimate(float(fit.params[1]), float(low), float(high), len(points))


def variance_components(
    one: Values, two: Values, groups: Values, clusters: Values
) -> list[Estimate]:
    """Return the parts of the variance within groups that are due to cluster, image and reader.

    Method of moments; one, two: hits of two readers of the same images, of several images a
    cluster. A part may come out below 0. Intervals by resampling groups. ValueError for hits that
    are not 0 or 1.
    """
    import pandas as pd

    a, b = (yes_or_no(hits, "variance_components") for hits in (one, two))
    for each in (two, groups, clusters):
        same_length(one, each, "variance_components")
    columns = {"group": groups, "prompt": clusters, "mean": (a + b) / 2, "reader": (a - b) ** 2 / 2}
    parts = []
    for _, images in pd.DataFrame(columns).groupby("group", sort=False):
        by_prompt = images.groupby("prompt", sort=False)["mean"]
        within, reader = by_prompt.var(ddof=1).mean(), images.reader.mean()
        between = by_prompt.mean().var(ddof=1) - within / by_prompt.size().mean()
        parts.append((between, within - reader / 2, reader))
    moments = np.array(parts)

    def part(rows: np.ndarray, k: int) -> float:
        whole = moments[rows].mean(0)
        return float(whole[k] / whole.sum())

    every = np.arange(len(moments))
    return [estimates.cluster_bootstrap(partial(part, k=k), every) for k in range(3)]


check_arguments(globals())
