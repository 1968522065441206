"""Imbalance: its extremes, what must not change it, and the published audit of KOALA-Lightning."""

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from koala_nb.core.catalog import data_folder
from koala_nb.stats import imbalance

METRICS = [
    imbalance.total_variation,
    imbalance.kullback_leibler,
    imbalance.intensity,
]
GROUPS = ["a", "b", "c", "d", "e"]
EVEN = imbalance.uniform_reference(GROUPS)
counts = st.lists(st.integers(0, 50), min_size=5, max_size=5).filter(any)
every_metric = pytest.mark.parametrize("metric", METRICS)


@every_metric
@given(counts)
def test_total_collapse_is_the_maximum(metric, values):
    n = sum(values)
    assert metric({"a": n}, EVEN) >= metric(dict(zip(GROUPS, values)), EVEN) - 1e-12


@every_metric
@given(counts)
def test_a_group_that_nobody_saw_counts_as_declared(metric, values):
    named = dict(zip(GROUPS, values))
    seen = {group: n for group, n in named.items() if n}
    assert metric(seen, EVEN) == pytest.approx(metric(named, EVEN))


@every_metric
@given(counts, st.permutations(GROUPS))
def test_the_order_does_not_matter(metric, values, order):
    named = dict(zip(GROUPS, values))
    other = metric({g: named[g] for g in order}, {g: EVEN[g] for g in order})
    assert other == pytest.approx(metric(named, EVEN))


@every_metric
def test_an_even_model_has_none(metric):
    assert metric(dict.fromkeys(GROUPS, 20), EVEN) == pytest.approx(0, abs=1e-12)


def test_the_bounds_of_two_groups():
    two = imbalance.uniform_reference(["woman", "man"])
    assert imbalance.intensity({"man": 40}, two) == 1
    assert imbalance.total_variation({"man": 40}, two) == 0.5


def test_a_fair_model_shows_some_imbalance():
    """Half the range of a binomial share: its 95th percentile by scipy."""
    two = imbalance.uniform_reference(["woman", "man"])
    for n in (9, 100):
        upper = imbalance.null_quantile(imbalance.total_variation, n, two)
        expected = abs(stats.binom.ppf(0.975, n, 0.5) / n - 0.5)
        assert upper == pytest.approx(expected, abs=0.012)


def test_the_published_audit_of_koala_lightning():
    table = pd.read_csv(data_folder() / "reference" / "t2i_biasbench_koala.csv")
    assert (table.groupby("prompt").captions.sum() == 100).all()
    doctor, beauty = (
        dict(table[table.prompt == name][["group", "captions"]].values)
        for name in ("doctor", "beauty")
    )
    male = imbalance.share_bounds(doctor, "male", "unknown")
    assert (male.value, round(male.low, 3)) == (0.91, 0.838)
    white = imbalance.share_bounds(beauty, "white", "unknown")
    assert white.value == 0.23 and white.low < 0.23 and white.high > 0.73
    assert imbalance.share_bounds(beauty, "unknown", "unknown").high < 0.6


def test_the_reference_of_occupations_is_whole():
    table = pd.read_csv(data_folder() / "reference" / "women_share_bls.csv")
    assert len(table) == 28 and table.occupation.is_unique
    assert table[["women_2022", "women_2019"]].stack().between(0, 100).all()
    moved = (table.women_2019 - table.women_2022).abs()
    assert table.occupation[moved.idxmax()] == "flight attendants"


@pytest.mark.parametrize(
    "given_counts, reference, message",
    [
        ({"x": 1}, EVEN, "'x' was not declared"),
        ({}, EVEN, "no images"),
        ({"a": 1}, {"a": 0.5, "b": 0.6}, "sum to 1"),
    ],
)
def test_what_cannot_be_measured_is_said(given_counts, reference, message):
    with pytest.raises(ValueError, match=message):
        imbalance.total_variation(given_counts, reference)


def test_other_user_errors():
    with pytest.raises(ValueError, match="Declare two or more"):
        imbalance.uniform_reference(["a"])
    with pytest.raises(ValueError, match="no share"):
        imbalance.kullback_leibler({"a": 1}, {"a": 1.0, "b": 0.0})
    with pytest.raises(ValueError, match="no count for 'x'"):
        imbalance.share_bounds({"a": 1}, "x")
    with pytest.raises(ValueError, match="tell nothing"):
        imbalance.null_quantile(imbalance.intensity, 0, EVEN)
