"""Estimates with their 95 % intervals, one name per purpose.

A share of independent images: `share_interval`; of images by prompt: `clustered_share`, Wilson's
formula (`wilson_interval`) for as many images as count; a mean: `mean_interval`, `clustered_mean`.

Images of one prompt resemble each other, so most functions take them by cluster (prompt). How often
each interval holds the truth: `studies.coverage`, `data/results/coverage.json`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from numbers import Real
from reprlib import repr as short
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from scipy import stats

from koala_nb.stats import HUGE, check_arguments

if TYPE_CHECKING:
    import pandas as pd

# Names of kinds in `koala_nb.stats.KINDS`, by which arguments are checked.
Values = Sequence[Any] | np.ndarray  # one entry an image
Draws = int  # of a simulation: 1 or more
Design = tuple[int, int]  # prompts and images of each
Limits = tuple[float, float]  # the least and the greatest value that is possible
Row = dict[str, Any]  # of `estimates_frame`
COLUMNS = ("id", "label", "value", "low", "high", "n", "clusters", "method", "scorer")
TYPES = {"value": float, "low": float, "high": float, "n": int, "clusters": "Int64"}
UPPER = 0.975  # the quantile at the upper end of every interval here: all are of 95 %
SHRINKAGE, LIKELY = 5, 0.5  # weight and aim of `design_effect` where it sees too little
FEW_CLUSTERS, IMAGES_A_CLUSTER = 20, 4  # fewer clusters count as 4 images each, at most


class Estimate(NamedTuple):
    """A value, its interval's ends and the number of observations behind it."""

    value: float
    low: float
    high: float
    n: int


def finite(values: Values, caller: str, least: int = 1) -> np.ndarray:
    """Return values as a row of numbers; ValueError for fewer than `least`, NaN or infinity."""
    try:
        x = np.asarray(values, dtype=float)
    except (TypeError, ValueError):
        raise ValueError(f"{caller}: give numbers, not {short(list(values))}.") from None
    if x.ndim != 1 or len(x) < least:
        few = ("no", "one", "two")[least]
        raise ValueError(f"{caller}: give a row of {few} or more values, not {x.size}.")
    if not (usual := np.abs(x) < HUGE).all():
        first = int(usual.argmin())
        raise ValueError(f"{caller}: value {first + 1} of {len(x)} is {x[first]}: leave it out.")
    return x


def yes_or_no(hits: Values, caller: str) -> np.ndarray:
    """Return hits as a row of 0 and 1; ValueError, naming the first, for anything else."""
    x = finite(hits, caller)
    if (bad := ~np.isin(x, (0, 1))).any():
        first = int(bad.argmax())
        raise ValueError(f"{caller}: value {first + 1} of {len(x)} is {x[first]:g}, not 0 or 1.")
    return x


def same_length(first: Values, second: Values, caller: str) -> None:
    """Raise ValueError where two lists that belong together differ in length."""
    if len(first) != len(second):
        raise ValueError(f"{caller}: {len(first)} values do not fit {len(second)}.")


def estimate_id(*parts: str) -> str:
    """Return the id of an estimate from its parts: ("text", "very long") -> "text.very_long"."""
    return ".".join(re.sub(r"[^a-z0-9]+", "_", part.lower()).strip("_") for part in parts)


def estimate_row(
    id: str,
    label: str,
    estimate: Estimate,
    *,
    clusters: int | None = None,
    method: str = "",
    scorer: str = "",
) -> Row:
    """Return one row of `estimates_frame`.

    id: for code, such as "text.long.exact"; label: for people; clusters: how many (prompts) the n
    observations fall into; method: how value and interval were computed; scorer: what read the
    images. ValueError for an id that is not of lower case, digits, dots and underscores.
    """
    if not re.fullmatch(r"[a-z0-9_]+(\.[a-z0-9_]+)*", id):
        raise ValueError(f"{id!r} is no estimate's id: use lower case, digits, dots, underscores.")
    return dict(zip(COLUMNS, (id, label, *estimate, clusters, method, scorer)))


def estimates_frame(rows: Iterable[Row]) -> pd.DataFrame:
    """Return rows of `estimate_row` as the one tidy frame of results, with exactly `COLUMNS`.

    ValueError where two rows have the same id, or one has no numbers.
    """
    import pandas as pd

    try:
        frame = pd.DataFrame(list(rows), columns=list(COLUMNS)).astype(TYPES)
    except (TypeError, ValueError) as error:
        raise ValueError(f"estimates_frame: give rows of `estimate_row` ({error}).") from None
    if (repeated := frame["id"].duplicated()).any():
        raise ValueError(f"Two estimates have the id {frame['id'][repeated].iloc[0]!r}.")
    return frame


def mean_interval(values: Values, limits: Limits | None = None) -> Estimate:
    """Return the mean with Student's t interval (`scipy.stats.ttest_1samp`).

    For a comparison of pairs, give their differences; for clusters, the clusters' means. `limits`
    are the least and greatest possible value (-1 and 1 of a difference of shares): `within_limits`.
    ValueError for fewer than two values: one tells nothing of their spread.
    """
    x = finite(values, "mean_interval", least=2)
    if np.ptp(x) < 1e-12:
        return within_limits(Estimate(float(x[0]), np.nan, np.nan, len(x)), len(x), limits)
    low, high = stats.ttest_1samp(x, 0).confidence_interval()
    return within_limits(Estimate(float(x.mean()), float(low), float(high), len(x)), len(x), limits)


def within_limits(estimate: Estimate, units: Draws, limits: Limits | None) -> Estimate:
    """Return a mean's interval cut to what is possible; NaN ends where nothing is known of them.

    Where all units had one value its ends are given as NaN. Units with another value are still
    possible: none of `units` had one, so their share is 1 - .025^(1 / units) at most (Clopper and
    Pearson 1934), and their values lie between the limits, of which one may be infinite.
    """
    if limits is None:
        return estimate
    least, greatest = limits
    value, low, high = estimate[:3]
    if not least <= value <= greatest:
        raise ValueError(f"within_limits: {value:g} is outside of {least:g} to {greatest:g}.")
    if np.isnan(low):
        unseen = 1 - (1 - UPPER) ** (1 / units)
        ends = [value + unseen * (end - value) if abs(end) < HUGE else np.nan for end in limits]
    else:
        ends = [max(least, low), min(greatest, high)]
    return estimate._replace(low=float(ends[0]), high=float(ends[1]))


def median_interval(values: Values) -> Estimate:
    """Return the median with its bootstrap interval (percentiles); ValueError for no value."""
    x = finite(values, "median_interval")
    median = float(np.median(x))
    if np.ptp(x) == 0:
        return Estimate(median, median, median, len(x))
    interval = stats.bootstrap((x,), np.median, method="percentile", rng=0).confidence_interval
    return Estimate(median, float(interval.low), float(interval.high), len(x))


def ratio_interval(values: Values, base: Values) -> Estimate:
    """Return the median ratio of two lists of the same rounds, with its interval."""
    same_length(values, base, "ratio_interval")
    below = finite(base, "ratio_interval")
    if not below.all():
        raise ValueError("ratio_interval: a round of the base is 0: nothing is a multiple of it.")
    return median_interval(finite(values, "ratio_interval") / below)


def share_interval(hits: int, n: int) -> Estimate:
    """Return a share of independent images with Wilson's interval (`scipy.stats.binomtest`).

    ValueError unless 0 <= hits <= n and n > 0.
    """
    if not 0 <= hits <= n or n < 1:
        raise ValueError(f"share_interval: {hits} of {n} is no share.")
    interval = stats.binomtest(hits, n).proportion_ci(method="wilson")
    return Estimate(hits / n, float(interval.low), float(interval.high), n)


def upper_bound_clopper_pearson(hits: int, n: int) -> float:
    """Return the one-sided 95 % upper bound of a share, hits of n independent trials.

    Clopper and Pearson's exact bound; for no hits 1 - .05^(1/n), of which 3/n is the rule of three.
    ValueError unless 0 <= hits <= n and n > 0.
    """
    if not 0 <= hits <= n or n < 1:
        raise ValueError(f"upper_bound_clopper_pearson: {hits} of {n} is no share.")
    test = stats.binomtest(hits, n, alternative="less")
    return float(test.proportion_ci(method="exact").high)


def difference_interval(first: Estimate, second: Estimate) -> Estimate:
    """Return first less second, two independent estimates, with the square-and-add interval.

    Newcombe 1998, method 10: it keeps a width where both shares are 0 or 1.
    """
    for each in (first, second):
        if not each.low <= each.value <= each.high:
            raise ValueError(f"difference_interval: {short(tuple(each))} is no value in its ends.")
    value = float(first.value - second.value)
    below = np.hypot(first.value - first.low, second.high - second.value)
    above = np.hypot(first.high - first.value, second.value - second.low)
    n = int(first.n + second.n)
    return Estimate(value, float(value - below), float(value + above), n)


def paired_share_difference(first: Values, second: Values) -> Estimate:
    """Return the share of hits in the first less that in the second, one entry a pair in each.

    Agresti and Min 2005: the interval with half a pair added to every cell, so that it has a width
    where no pair differs; z is 1.96, 95 % as published.
    """
    same_length(first, second, "paired_share_difference")
    one, other = (yes_or_no(hits, "paired_share_difference") == 1 for hits in (first, second))
    up, down, n = int((one & ~other).sum()), int((other & ~one).sum()), len(one)
    middle = (up - down) / (n + 2)
    half = 1.96 * ((up + down + 1) / (n + 2) - middle**2) ** 0.5 / (n + 2) ** 0.5
    return Estimate((up - down) / n, max(-1.0, middle - half), min(1.0, middle + half), n)


def welch_interval(first: Values, second: Values) -> Estimate:
    """Return the difference of two independent means with Welch's interval (`scipy.ttest_ind`).

    The ends are NaN where no value of either differs from another. ValueError for fewer than two.
    """
    one, other = (finite(values, "welch_interval", least=2) for values in (first, second))
    value, n = float(one.mean() - other.mean()), len(one) + len(other)
    if np.ptp(one) == 0 and np.ptp(other) == 0:
        return Estimate(value, np.nan, np.nan, n)
    interval = stats.ttest_ind(one, other, equal_var=False).confidence_interval()
    return Estimate(value, float(interval.low), float(interval.high), n)


def cluster_codes(clusters: Values) -> np.ndarray:
    """Return the number of each entry's cluster, from 0, in the order of the names.

    ValueError for an entry without a cluster (None or NaN).
    """
    import pandas as pd

    if (missing := pd.Series(list(clusters), dtype=object).isna()).any():
        first = int(missing.to_numpy().argmax()) + 1
        raise ValueError(f"Value {first} of {len(missing)} has no cluster: name its prompt.")
    return np.unique([str(name) for name in clusters], return_inverse=True)[1]


def cluster_totals(hits: Values, clusters: Values) -> tuple[np.ndarray, np.ndarray]:
    """Return hits and images of each cluster, two arrays; one entry an image in the arguments.

    ValueError where the two differ in length, there are no images or one has no number.
    """
    if len(hits) != len(clusters) or not len(hits):
        raise ValueError(f"{len(hits)} hits do not fit {len(clusters)} images' clusters.")
    codes = cluster_codes(clusters)
    return np.bincount(codes, weights=finite(hits, "cluster_totals")), np.bincount(codes)


def design_effect(hits: np.ndarray, sizes: np.ndarray) -> float:
    """Return how many images of these clusters tell as much as one independent image, 1 or more.

    The linearised variance of the ratio over the binomial one (Korn and Graubard 1998). Where hits
    or misses are in few clusters it is too uncertain: the intra-class correlation is then shrunk
    towards one half with the weight of 5 / (images per cluster) clusters. In simulations that
    covers as often near 0 and 1 as shrinking towards 1 did, and is narrower. ValueError for a
    cluster of no images, or of more hits than images.
    """
    same_length(hits, sizes, "design_effect")
    hits, sizes = finite(hits, "design_effect"), finite(sizes, "design_effect")
    if (bad := ~((hits >= 0) & (hits <= sizes) & (sizes > 0))).any():
        first = int(bad.argmax())
        raise ValueError(f"{hits[first]:g} hits of {sizes[first]:g} images are no share.")
    m, n = len(sizes), sizes.sum()
    size = (sizes**2).sum() / n  # images that share a prompt with an image, itself among them
    share = hits.sum() / n
    if m < 2 or size <= 1:
        return float(max(1.0, size))
    binomial = share * (1 - share) / n
    variance = m / (m - 1) * ((hits - share * sizes) ** 2).sum() / n**2
    effect = max(1.0, variance / binomial) if binomial > 0 else 1.0
    correlation = min(1.0, (effect - 1) / (size - 1))
    telling = min((hits > 0).sum(), (hits < sizes).sum())
    prior = SHRINKAGE / size
    shrunk = (telling * correlation + prior * LIKELY) / (telling + prior)
    return float(1 + (size - 1) * shrunk)


def clustered_share(hits: Values, clusters: Values) -> Estimate:
    """Return a share with Wilson's interval on the effective number of images.

    One entry an image: hit or not, and its prompt. Student's t with clusters - 1 degrees takes the
    normal's place (Dean and Pagano 2015). n is the number of images. ValueError for no images, or a
    hit that is not 0 or 1.
    """
    return clustered_counts(*cluster_totals(yes_or_no(hits, "clustered_share"), clusters))


def clustered_counts(hits: np.ndarray, sizes: np.ndarray) -> Estimate:
    """Return `clustered_share` from each cluster's hits and images."""
    effect = design_effect(hits, sizes)  # which refuses what is no share
    n = int(np.sum(sizes))
    share = float(np.sum(hits) / n)
    if len(sizes) == 1:  # one prompt: its images are independent
        return share_interval(int(np.sum(hits)), n)
    t = stats.t.ppf(UPPER, len(sizes) - 1)
    low, high = wilson_interval(share, n / effect, t)
    return Estimate(share, min(low, share), max(high, share), n)


def few_clusters_share(hits: Values, clusters: Values) -> Estimate:
    """Return `clustered_share`, made wider for few clusters of many images.

    There `design_effect` sees too little of how alike the images of a cluster are, and in simulated
    audits the interval held the truth too rarely: a cluster counts as 4 images at most.
    """
    estimate = clustered_share(hits, clusters)
    sums, sizes = cluster_totals(hits, clusters)
    m, scale = len(sizes), IMAGES_A_CLUSTER / sizes.mean()
    if not 1 < m < FEW_CLUSTERS or scale >= 1:
        return estimate
    n = m * IMAGES_A_CLUSTER / design_effect(sums * scale, sizes * scale)
    low, high = wilson_interval(estimate.value, n, stats.t.ppf(UPPER, m - 1))
    return estimate._replace(low=min(low, estimate.value), high=max(high, estimate.value))


def wilson_interval(share: float, n: float, z: float) -> tuple[float, float]:
    """Return Wilson's interval of a share of n images, any effective number, for a quantile z."""
    if not (0 <= share <= 1 and n > 0 and z > 0):
        raise ValueError(f"wilson_interval: {share} of {n} images at {z} is no share.")
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, float(centre - half)), min(1.0, float(centre + half))


def clustered_mean(values: Values, clusters: Values, limits: Limits | None = None) -> Estimate:
    """Return a mean over images with the t interval of its clusters (a linearised ratio).

    For measures that are no shares, such as error rates; n is the number of images. The images of
    a single prompt count as independent; of a single image, or of clusters with one mean, the ends
    are NaN, or those of `within_limits`.
    """
    sums, sizes = cluster_totals(values, clusters)
    if len(sizes) == 1:
        sums, sizes = finite(values, "clustered_mean"), np.ones(len(values))
    m, n = len(sizes), sizes.sum()
    mean, low, high = float(sums.sum() / n), np.nan, np.nan
    if m > 1 and np.ptp(sums / sizes) > 1e-12:
        error = np.sqrt(m / (m - 1) * ((sums - mean * sizes) ** 2).sum()) / n
        half = float(stats.t.ppf(UPPER, m - 1) * error)
        low, high = mean - half, mean + half
    return within_limits(Estimate(mean, low, high, int(n)), m, limits)


def cluster_bootstrap(
    statistic: Callable[[np.ndarray], float], clusters: Values, draws: Draws = 2000, seed: int = 0
) -> Estimate:
    """Return any statistic of images with an expanded percentile interval over resampled clusters.

    `statistic` takes the positions of images, some of them several times. The percentiles are those
    that make up for few clusters (Hesterberg 2015, section 5.2). Values of resamples that are not
    finite are left out. ValueError for fewer than two clusters.
    """
    codes = cluster_codes(clusters)
    groups = [np.flatnonzero(codes == c) for c in np.unique(codes)]
    m = len(groups)
    if m < 2:
        raise ValueError("cluster_bootstrap: one prompt tells nothing of how prompts differ.")
    rng = np.random.default_rng(seed)
    resampled = [
        statistic(np.concatenate([groups[c] for c in rng.integers(m, size=m)]))
        for _ in range(draws)
    ]
    t = stats.t.ppf(1 - UPPER, m - 1)
    tail = float(stats.norm.cdf(np.sqrt(m / (m - 1)) * t))
    value = statistic(np.arange(len(codes)))
    if not all(isinstance(one, Real) for one in (value, *resampled)):
        raise ValueError(f"cluster_bootstrap: the statistic is {short(value)}, and no number.")
    return Estimate(float(value), *finite_quantiles(resampled, tail), len(codes))


def finite_quantiles(resampled: Values, tail: float) -> tuple[float, float]:
    """Return the quantiles at both tails of the values that are finite; NaN where none is."""
    x = np.asarray(resampled, float)
    x = x[np.isfinite(x)]
    low, high = np.quantile(x, [tail, 1 - tail]).tolist() if len(x) else (np.nan, np.nan)
    return low, high


def stratified_mean(strata: Sequence[Values]) -> Estimate:
    """Return the mean of the strata's means, its 95 % interval resampling values within strata."""
    groups = [finite(values, "stratified_mean") for values in strata]
    if not groups:
        raise ValueError("stratified_mean: give the values of one or more strata.")
    rng = np.random.default_rng(0)
    resampled = [rng.choice(values, (500, len(values))).mean(1) for values in groups]
    low, high = np.quantile(np.mean(resampled, axis=0), [0.025, 0.975])
    value = float(np.mean([values.mean() for values in groups]))
    return Estimate(value, float(low), float(high), sum(map(len, groups)))


def adjust_pvalues(p_values: Values, method: str = "holm") -> np.ndarray:
    """Return p values adjusted for how many they are (`statsmodels` `multipletests`).

    method: "holm" for claims, "fdr_bh" (Benjamini and Hochberg) for exploration. ValueError for a p
    that is not from 0 to 1.
    """
    from statsmodels.stats.multitest import multipletests

    if method not in ("holm", "fdr_bh"):
        raise ValueError(f"adjust_pvalues: method {method!r} is unknown: use 'holm' or 'fdr_bh'.")
    if not len(p_values):
        return np.array([])
    p = finite(p_values, "adjust_pvalues")
    if p.min() < 0 or p.max() > 1:
        raise ValueError(f"adjust_pvalues: {short(p.tolist())} holds a p that is not from 0 to 1.")
    return multipletests(p, method=method)[1]


def paired_test(differences: Sequence[float], resamples: Draws = 9999) -> float:
    """Return the two-sided p of "no difference" by flipping signs (`permutation_test`).

    Give one difference a cluster, such as a prompt's. No p is below 2 / (`resamples` + 1).
    ValueError for no difference, or one that is no number: a pair that lacks a side is no pair.
    """
    x = finite(differences, "paired_test")
    if len(x) < 2 or not x.any():  # one pair: its two signs are equally extreme
        return 1.0
    how = {"permutation_type": "samples", "n_resamples": resamples, "batch": 1000}
    return float(stats.permutation_test((x,), np.mean, rng=np.random.default_rng(0), **how).pvalue)


def permutation_pvalue(first: Values, second: Values) -> float:
    """Return the two-sided p of "no difference of means" by exchanging values of two groups."""
    one, other = (finite(values, "permutation_pvalue") for values in (first, second))
    if np.ptp(np.concatenate([one, other])) == 0:
        return 1.0

    def difference(a: np.ndarray, b: np.ndarray, axis: int) -> np.ndarray:
        return a.mean(axis=axis) - b.mean(axis=axis)

    rng = np.random.default_rng(0)
    return float(stats.permutation_test((one, other), difference, n_resamples=4999, rng=rng).pvalue)


check_arguments(globals())
