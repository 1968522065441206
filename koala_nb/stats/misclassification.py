"""Shares of groups behind what a scorer of known error read, with intervals that hold.

The scorer's error is measured on labels of a random sample of the *same* images: rendered scenes or
a paper tell nothing of it here. Classes are declared in advance; "unsure" may be one of them, in
the labels as in the readings, and stays in the denominator. `studies.audits` simulates how often
each interval holds the truth.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from koala_nb.stats import check_arguments
from koala_nb.stats.estimates import (
    UPPER,
    Draws,
    Estimate,
    Values,
    cluster_bootstrap,
    cluster_codes,
    cluster_totals,
    clustered_share,
    design_effect,
    finite,
    same_length,
    share_interval,
    wilson_interval,
)

DRAWS = 4000  # of the posteriors of shares and error rates
UNSURE = "unsure"
SINGULAR = 1e8  # the condition of a confusion that tells no classes apart


class NoBetterThanChance(ValueError):
    """A scorer's readings do not depend on the truth: nothing is behind them."""


def confusion(true: Values, read: Values, classes: Sequence[str]) -> np.ndarray:
    """Return counts of labels (rows) read as each class (columns), one entry an image.

    ValueError for a label or reading that is no declared class, a class declared twice, or no
    images.
    """
    table = np.zeros((len(classes), len(classes)), dtype=int)
    rows, columns = _class_codes(true, classes), _class_codes(read, classes)
    if len(rows) != len(columns):
        raise ValueError(f"confusion: {len(rows)} labels do not fit {len(columns)} readings.")
    np.add.at(table, (rows, columns), 1)
    return table


def _class_codes(values: Values, classes: Sequence[str]) -> np.ndarray:
    index: dict[object, int] = {name: i for i, name in enumerate(classes)}
    if len(index) != len(classes):
        raise ValueError(f"A class stands twice among {', '.join(map(str, classes))}.")
    if unknown := [v for v in values if not isinstance(v, Hashable) or v not in index]:
        raise ValueError(f"{unknown[0]!r} was not declared: declared are {', '.join(classes)}.")
    if not len(values):
        raise ValueError("There are no images.")
    return np.array([index[value] for value in values])


def corrected_share(
    share: float, n: float, sensitivity: tuple[int, int], specificity: tuple[int, int]
) -> Estimate:
    """Return the share that a scorer of known error must have seen to read this one.

    Rogan and Gladen 1978, with error rates measured on few images: the interval of Lang and
    Reiczigel 2014. n: images, or their effective number; sensitivity, specificity: (right, of)
    on positives and negatives. ValueError for what is no share or count, or where the scorer is no
    better than chance.
    """
    if not (0 <= share <= 1 and 0 < n < np.inf):
        raise ValueError(f"corrected_share: {share} of {n} images is no share.")
    for name, (right, of) in (("sensitivity", sensitivity), ("specificity", specificity)):
        if not (0 <= right <= of < np.inf and of > 0):
            raise ValueError(f"corrected_share: a {name} of {right} right of {of} is no share.")
    z = float(stats.norm.ppf(UPPER))
    (right_p, n_p), (right_n, n_n) = sensitivity, specificity
    plain = right_p / n_p + right_n / n_n - 1
    se, sp = (right_p + 1) / (n_p + 2), (right_n + 1) / (n_n + 2)
    if se + sp <= 1 or plain <= 0:
        raise NoBetterThanChance(
            "corrected_share: the scorer is no better than chance on its own scenes."
        )
    read, many = (n * share + z * z / 2) / (n + z * z), n + z * z
    value = (read + sp - 1) / (se + sp - 1)
    var_p, var_n = se * (1 - se) / n_p, sp * (1 - sp) / n_n
    shift = 2 * z * z * (value * var_p - (1 - value) * var_n)
    spread = read * (1 - read) / many + value**2 * var_p + (1 - value) ** 2 * var_n
    half = z * float(np.sqrt(spread)) / (se + sp - 1)
    best = (share + right_n / n_n - 1) / plain
    low, high, best = np.clip([value + shift - half, value + shift + half, best], 0, 1).tolist()
    return Estimate(best, min(low, best), max(high, best), round(n))


def invert_confusion(
    counts: Values, confusion: Values, draws: Draws = DRAWS, seed: int = 0
) -> list[Estimate]:
    """Return shares of k classes behind the classes that a scorer read, the multi-class form.

    counts: images read as each class, or their effective numbers; confusion: (k, k), scenes of each
    true class (row) read as each class (column). Both are uncertain: their Dirichlet posteriors
    (Perks' prior, 1 / k) are drawn, and the equal-tailed interval returned. ValueError where the
    confusion is singular, or a count is below 0 or none.
    """
    read, table = finite(counts, "invert_confusion"), rates_table(confusion)
    if read.min() < 0 or not read.any():
        raise ValueError("invert_confusion: give counts of 0 or more, and of one image or more.")
    if table.shape != (len(read), len(read)) or np.linalg.cond(table) > SINGULAR:
        raise ValueError("invert_confusion: give a square confusion that tells the classes apart.")
    rng = np.random.default_rng(seed)
    prior = 1 / len(read)
    rates = np.stack([rng.dirichlet(row + prior, draws) for row in table], axis=1)
    read_shares = rng.dirichlet(read + prior, draws)
    drawn = _on_simplex(np.linalg.solve(rates.swapaxes(1, 2), read_shares[..., None])[..., 0])
    plain = np.linalg.solve((table / table.sum(1, keepdims=True)).T, read / read.sum())
    best = _on_simplex(plain[None])[0]
    ends = np.quantile(drawn, [1 - UPPER, UPPER], axis=0)
    z, n = stats.norm.ppf(UPPER), float(read.sum())
    shares = []
    for value, low, high in zip(best.tolist(), *ends.tolist()):
        # Readings that no shares explain put every draw on an edge: never surer than without error.
        least, most = wilson_interval(value, n, z)
        shares.append(Estimate(value, min(value, low, least), max(value, high, most), round(n)))
    return shares


def rates_table(confusion: Values) -> np.ndarray:
    """Return a confusion as numbers; ValueError for a count below 0 or a class without labels."""
    try:
        table = np.asarray(confusion, dtype=float)
    except (TypeError, ValueError):  # texts, or rows of several lengths
        table = np.array([])
    if table.ndim != 2 or not (np.isfinite(table) & (table >= 0)).all() or not table.sum(1).all():
        raise ValueError("A confusion holds counts of 0 or more, and labels of every class.")
    return table


def _on_simplex(values: np.ndarray) -> np.ndarray:
    """Return the nearest shares, 0 or more and summing to 1 (Duchi et al. 2008, fig. 1)."""
    ordered = np.sort(values, axis=1)[:, ::-1]
    excess = (np.cumsum(ordered, axis=1) - 1) / np.arange(1, values.shape[1] + 1)
    last = (ordered > excess).sum(1) - 1
    return np.maximum(values - excess[np.arange(len(values)), last][:, None], 0)


def uncorrected_shares(
    read: Values, clusters: Values, classes: Sequence[str]
) -> dict[str, Estimate]:
    """Return the share of all images read as each class, uncorrected: `clustered_share`."""
    codes = _class_codes(read, classes)
    same_length(codes, clusters, "uncorrected_shares")
    return {name: clustered_share(codes == i, clusters) for i, name in enumerate(classes)}


def corrected_shares(
    read: Values, clusters: Values, classes: Sequence[str], table: Values
) -> dict[str, Estimate]:
    """Return the share of every class behind the readings: Rogan and Gladen 1978, many classes.

    One entry an image in `read` and `clusters` (its prompt); `table` as `confusion` returns it.
    Readings, at their effective number (`effective_counts`), and the scorer's rates are uncertain:
    both posteriors are drawn. ValueError where the scorer cannot tell the classes apart.
    """
    counts = effective_counts(_class_codes(read, classes), clusters, len(classes))
    shares = invert_confusion(counts, table)
    return {name: share._replace(n=len(read)) for name, share in zip(classes, shares)}


def effective_counts(read: np.ndarray, clusters: Values, k: int) -> np.ndarray:
    """Return the counts of k classes as so many independent images would give them.

    Divided by the classes' mean design effect (Rao and Scott 1981, first order). Few clusters tell
    little of it: what exceeds 1 grows by the squared ratio of Student's quantile to the normal one.
    """
    same_length(read, clusters, "effective_counts")
    read = np.asarray(read)
    if not len(read) or not np.isin(read, np.arange(k)).all():
        raise ValueError(f"effective_counts: give the numbers of the classes, 0 to {k - 1}.")
    counts = np.bincount(read, minlength=k).astype(float)
    m = cluster_codes(clusters).max() + 1
    if m < 2:
        return counts
    share = counts / counts.sum()
    weight = share * (1 - share)
    effects = [design_effect(*cluster_totals(read == i, clusters)) for i in range(k)]
    effect = np.average(effects, weights=weight) if weight.any() else max(effects)
    small = stats.t.ppf(UPPER, m - 1) / stats.norm.ppf(UPPER)
    return counts / (1 + (effect - 1) * small**2)


def prediction_powered(
    read: Values, clusters: Values, classes: Sequence[str], labels: Values
) -> dict[str, Estimate]:
    """Return shares from the readings of all images plus what labels of some of them put right.

    `labels`: one entry an image, None where it was not labelled; labelled images must be a random
    sample. Angelopoulos et al. 2023 (arXiv 2301.09633) with their power tuning (2311.01453, PPI++);
    the variance is clustered by prompt, the interval Wilson's on the effective number.
    ValueError for fewer than two labels.
    """
    for each in (clusters, labels):
        same_length(read, each, "prediction_powered")
    labelled = np.array([label is not None for label in labels])
    if labelled.sum() < 2:
        raise ValueError("prediction_powered: give labels of two or more images.")
    codes, groups = _class_codes(read, classes), cluster_codes(clusters)
    true = np.full(len(codes), -1)
    true[labelled] = _class_codes([label for label in labels if label is not None], classes)
    return {
        name: _prediction_powered(codes == i, true == i, labelled, groups)
        for i, name in enumerate(classes)
    }


def _prediction_powered(
    read: np.ndarray, true: np.ndarray, labelled: np.ndarray, groups: np.ndarray
) -> Estimate:
    f, y = read.astype(float), true.astype(float)
    n, n_labelled = len(f), labelled.sum()
    lam = _power_tuning(f, y, labelled)
    rest = y[labelled] - lam * f[labelled]
    value = lam * f.mean() + rest.mean()
    # Each image's influence on the estimate; summed by prompt, so that likeness counts.
    influence = lam * (f - f.mean()) / n
    influence[labelled] += (rest - rest.mean()) / n_labelled
    sums = np.bincount(groups, weights=influence)
    m = len(sums)
    alone = n / (n - 1) * (influence**2).sum()
    variance = max(alone, m / (m - 1) * (sums**2).sum()) if m > 1 else alone
    value = float(np.clip(value, 0, 1))
    if variance == 0 or value in (0.0, 1.0):  # only the number of labels limits the share
        exact = share_interval(int(y[labelled].sum()), int(n_labelled))
        return Estimate(value, min(exact.low, value), max(exact.high, value), n)
    quantile = float(stats.t.ppf(UPPER, (m if m > 1 else n) - 1))
    low, high = wilson_interval(value, value * (1 - value) / variance, quantile)
    return Estimate(value, min(low, value), max(high, value), n)


def _power_tuning(f: np.ndarray, y: np.ndarray, labelled: np.ndarray) -> float:
    """Return the weight of the readings, 0 to 1, that makes the variance least (PPI++, eq. 9)."""
    if f.var() == 0:
        return 0.0
    covariance = np.cov(f[labelled], y[labelled])[0, 1]
    return float(np.clip(covariance / (f.var() * (1 + labelled.sum() / len(f))), 0, 1))


def bounds_over_unsure(shares: dict[str, Estimate], group: str, unsure: str = UNSURE) -> Estimate:
    """Return a group's share with bounds: low if no unsure image showed it, high if all did.

    shares: as of `uncorrected_shares` or `corrected_shares`; the value is the share of all images.
    The high end adds the upper end of the unsure's interval. ValueError for a group that is not
    there.
    """
    if group not in shares:
        raise ValueError(f"There is no share of {group!r}: there are {', '.join(shares)}.")
    share = shares[group]
    more = shares[unsure].high if unsure in shares and group != unsure else 0.0
    return share._replace(high=min(1.0, share.high + more))


def score_test_pvalue(
    read: Values,
    clusters: Values,
    classes: Sequence[str],
    table: Values | None,
    group: str,
    reference: float,
) -> float:
    """Return the two-sided p of "this group's share may be the reference, whatever the unsure are".

    The share is known only to lie between the group's and the group's plus the unsure's: p is small
    only where the reference is outside both. `table` as in `corrected_shares`; None claims of the
    uncorrected readings only. ValueError for an undeclared group or a reference outside 0 to 1.
    """
    if group not in classes or not 0 < reference < 1:
        raise ValueError(f"{group!r} at {reference} is no declared group with a share.")
    codes = _class_codes(read, classes)
    least = np.array([name == group for name in classes])
    most = least | np.array([name == UNSURE for name in classes])
    above = 1 - _lower_tail(codes, clusters, table, least, reference)
    below = _lower_tail(codes, clusters, table, most, reference)
    return float(min(1.0, 2 * min(above, below)))


def _lower_tail(
    codes: np.ndarray, clusters: Values, table: Values | None, group: np.ndarray, reference: float
) -> float:
    """Return how probable a share this low is where some classes' true share is the reference.

    A score test: the variance is that at the reference, of the readings at their effective number
    and of the scorer's rates; Student's t with clusters - 1 degrees.
    """
    k = len(group)
    rates, labelled = np.eye(k), np.full(k, np.inf)
    if table is not None:
        counts = rates_table(table) + 0.5
        if counts.shape != (k, k):
            raise ValueError(f"The confusion has {len(counts)} classes, and {k} are declared.")
        labelled = counts.sum(1)
        rates = counts / labelled[:, None]
        if np.linalg.cond(rates) > SINGULAR:
            raise NoBetterThanChance("The confusion does not tell the classes apart.")
    weights = np.linalg.solve(rates, group.astype(float))  # share of the group = weights . read
    read = np.bincount(codes, minlength=k) / len(codes)
    truth = np.clip(np.linalg.solve(rates.T, read), 1e-9, None)
    null = np.where(group, reference, 1 - reference) * truth
    null /= np.where(group, truth[group].sum(), truth[~group].sum())
    hits, sizes = cluster_totals(group[codes], clusters)
    n = len(codes) / design_effect(hits, sizes)

    def variance(shares: np.ndarray) -> float:
        return float((shares * weights**2).sum() - (shares @ weights) ** 2)

    of_rates = np.array([variance(row) for row in rates])
    error = np.sqrt(variance(rates.T @ null) / n + (null**2 * of_rates / labelled).sum())
    freedom = len(sizes) - 1 if len(sizes) > 1 else len(codes) - 1
    return float(stats.t.cdf((weights @ read - reference) / error, freedom))


class Agreement(NamedTuple):
    """How far two raters agree: Cohen's kappa and the share of equal answers, with intervals.

    `kappa` has the interval of a bootstrap over prompts, `asymptotic` that of statsmodels for
    independent images; both are NaN where both raters gave one and the same answer throughout.
    """

    kappa: Estimate
    asymptotic: Estimate
    same: Estimate


def rater_agreement(
    one: Values, two: Values, clusters: Values, answers: Sequence[str]
) -> Agreement:
    """Return how far any two readings of the same images agree; one entry an image in each."""
    rows, columns = _class_codes(one, answers), _class_codes(two, answers)
    for each in (two, clusters):
        same_length(one, each, "rater_agreement")

    def table(images: np.ndarray) -> np.ndarray:
        counts = np.zeros((len(answers), len(answers)))
        np.add.at(counts, (rows[images], columns[images]), 1)
        return counts

    kappa = asymptotic = _asymptotic_kappa(table(np.arange(len(rows))))
    if not np.isnan(kappa.value):
        kappa = cluster_bootstrap(lambda images: _kappa(table(images)), clusters)
    return Agreement(kappa, asymptotic, clustered_share(rows == columns, clusters))


def _kappa(table: np.ndarray) -> float:
    """Return Cohen's kappa; statsmodels gives the same with an interval, for one table."""
    n = table.sum()
    chance = table.sum(0) @ table.sum(1) / n**2
    return float((np.trace(table) / n - chance) / (1 - chance)) if chance < 1 else float("nan")


def _asymptotic_kappa(table: np.ndarray) -> Estimate:
    from statsmodels.stats.inter_rater import cohens_kappa

    n, used = int(table.sum()), table.sum(0) + table.sum(1) > 0
    if used.sum() < 2:  # one answer throughout: kappa is 0 / 0
        return Estimate(float("nan"), float("nan"), float("nan"), n)
    with np.errstate(invalid="ignore"):  # perfect agreement has no spread
        result = cohens_kappa(table[used][:, used])
    spread = np.nan_to_num(result.kappa_upp - result.kappa)
    low, high = np.clip([result.kappa - spread, result.kappa + spread], -1, 1).tolist()
    return Estimate(float(result.kappa), low, high, n)


check_arguments(globals())
