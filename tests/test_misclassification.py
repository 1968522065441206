"""Shares that a scorer read with errors and agreement: exact values, second implementations."""

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.inter_rater import cohens_kappa

from koala_nb.stats import estimates as e
from koala_nb.stats import misclassification as m

CLASSES = ["woman", "man", "unsure"]


def lang_reiczigel(x, n, sensitivity, specificity, added):
    """Preventive Veterinary Medicine 113 (2014) 13-22, after the authors' R code, which adds 2."""
    (tp, p_labels), (tn, n_labels), z = sensitivity, specificity, stats.norm.ppf(0.975)
    read = (x + z**2 / 2) / (n + z**2)
    se, sp = (tp + 1) / (p_labels + 2), (tn + 1) / (n_labels + 2)
    p = (read + sp - 1) / (se + sp - 1)
    of_se, of_sp = se * (1 - se) / (p_labels + added), sp * (1 - sp) / (n_labels + added)
    shift = 2 * z**2 * (p * of_se - (1 - p) * of_sp)
    spread = read * (1 - read) / (n + z**2) + p**2 * of_se + (1 - p) ** 2 * of_sp
    half = z * spread**0.5 / (se + sp - 1)
    return p + shift - half, p + shift + half


def test_lang_and_reiczigel_by_their_formula():
    """The rates' variance is over the labels, not labels + 2: a little wider than the authors'."""
    known = (90, 100), (95, 100)
    found = m.corrected_share(0.5, 100, *known)
    assert found == pytest.approx((0.45 / 0.85, *lang_reiczigel(50, 100, *known, added=0), 100))
    low, high = lang_reiczigel(50, 100, *known, added=2)
    assert found.low < low < found.low + 0.001 and found.high - 0.001 < high < found.high
    assert m.corrected_share(0.0, 100, *known)[:2] == (0, 0)
    assert m.corrected_share(0.5, 0.5, *known).high == 1  # an effective number may be under one
    assert m.corrected_share(1.0, 100, *known).high == 1
    assert m.corrected_share(0.5, 100, (1, 1), (100, 100)).high == 1  # one label is a label
    exact = m.corrected_share(0.30, 400, (10**6, 10**6), (10**6, 10**6))
    assert exact == pytest.approx(e.share_interval(120, 400), abs=0.004)


def test_brucellosis_in_a_herd():
    """The documented example of R's `epiR::epi.prev`: 23 of 150, .96 and .89: 5.1 %."""
    found = m.corrected_share(23 / 150, 150, (9600, 10_000), (8900, 10_000))
    assert found.value == pytest.approx(0.051, abs=5e-4) and found.n == 150
    assert found.low == pytest.approx(0, abs=0.005) and found.high == pytest.approx(0.13, abs=0.005)


def test_confusion_counts_labels_by_row_and_readings_by_column():
    table = m.confusion(["woman", "woman", "man"], ["woman", "man", "man"], CLASSES)
    assert table.tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 0]]


def test_cohens_kappa_of_a_textbook_table():
    """20, 5, 10, 15: kappa .4 (Wikipedia's example); statsmodels' asymptotic interval."""
    one, two = (["y"] * 25 + ["n"] * 25, ["y"] * 20 + ["n"] * 5 + ["y"] * 10 + ["n"] * 15)
    found = m.rater_agreement(one, two, range(50), ["y", "n", "never"])
    assert found.kappa.value == pytest.approx(0.4)
    published = cohens_kappa([[20, 5], [10, 15]])
    ends = published.kappa_low, published.kappa_upp
    assert found.asymptotic == pytest.approx((0.4, *ends, 50))
    assert found.kappa[1:3] == pytest.approx(ends, abs=0.04)  # one image a prompt
    assert found.same == e.clustered_share(np.equal(one, two), range(50))
    alike = m.rater_agreement(["y"] * 4, ["y"] * 4, range(4), ["y", "n"])
    assert np.isnan([*alike.kappa[:3], *alike.asymptotic[:3]]).all() and alike.same.value == 1
    perfect = m.rater_agreement(["y", "n"], ["y", "n"], range(2), ["y", "n"])
    assert perfect.asymptotic[:3] == (1, 1, 1)
