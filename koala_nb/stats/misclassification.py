"""How a scorer's readings differ from labels, and how far two raters agree.

Classes are declared in advance; "unsure" may be one of them, in the labels as in the readings.
Shares corrected by labels of the same images: `double_sampling`.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from koala_nb.stats import check_arguments, estimates
from koala_nb.stats.estimates import Estimate, Values

UNSURE = "unsure"


class NoBetterThanChance(ValueError):
    """A scorer's readings do not depend on the truth: nothing is behind them."""


def confusion(true: Values, read: Values, classes: Sequence[str]) -> np.ndarray:
    """Return counts of labels (rows) read as each class (columns), one entry an image.

    ValueError for a label or reading that is no declared class, a class declared twice, or no
    images.
    """
    table = np.zeros((len(classes), len(classes)), dtype=int)
    rows, columns = class_codes(true, classes), class_codes(read, classes)
    if len(rows) != len(columns):
        raise ValueError(f"confusion: {len(rows)} labels do not fit {len(columns)} readings.")
    np.add.at(table, (rows, columns), 1)
    return table


def class_codes(values: Values, classes: Sequence[str]) -> np.ndarray:
    """Return each value's place among the classes; ValueError for one that was not declared."""
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
    Reiczigel 2014, which held the truth in .947 of simulated audits or more with 10 to 100 images
    of each class, numbers that are chosen in advance. n: images, or their effective number;
    sensitivity, specificity: (right, of) on positives and negatives. ValueError for what is no
    share or count, or where the scorer is no better than chance.
    """
    if not (0 <= share <= 1 and 0 < n < np.inf):
        raise ValueError(f"corrected_share: {share} of {n} images is no share.")
    for name, (right, of) in (("sensitivity", sensitivity), ("specificity", specificity)):
        if not (0 <= right <= of < np.inf and of > 0):
            raise ValueError(f"corrected_share: a {name} of {right} right of {of} is no share.")
    z = float(stats.norm.ppf(estimates.UPPER))
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


def rates_table(confusion: Values) -> np.ndarray:
    """Return a confusion as numbers; ValueError for a count below 0 or a class without labels."""
    try:
        table = np.asarray(confusion, dtype=float)
    except (TypeError, ValueError):  # texts, or rows of several lengths
        table = np.array([])
    if table.ndim != 2 or not (np.isfinite(table) & (table >= 0)).all() or not table.sum(1).all():
        raise ValueError("A confusion holds counts of 0 or more, and labels of every class.")
    return table


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
    rows, columns = class_codes(one, answers), class_codes(two, answers)
    for each in (two, clusters):
        estimates.same_length(one, each, "rater_agreement")

    def table(images: np.ndarray) -> np.ndarray:
        counts = np.zeros((len(answers), len(answers)))
        np.add.at(counts, (rows[images], columns[images]), 1)
        return counts

    kappa = asymptotic = _asymptotic_kappa(table(np.arange(len(rows))))
    if not np.isnan(kappa.value):
        kappa = estimates.cluster_bootstrap(lambda images: _kappa(table(images)), clusters)
    return Agreement(kappa, asymptotic, estimates.clustered_share(rows == columns, clusters))


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
