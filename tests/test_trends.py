"""Trends against published examples and their definition; power against known sample sizes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from koala_nb.stats import simulation, trends

# Beetles killed by carbon disulphide (Bliss 1935), log10 dose, number exposed and killed.
DOSE = [1.6907, 1.7242, 1.7552, 1.7842, 1.8113, 1.8369, 1.8610, 1.8839]
EXPOSED = [59, 60, 62, 56, 63, 59, 62, 60]
KILLED = [6, 13, 18, 28, 52, 53, 61, 60]


def beetles():
    dose = np.repeat(DOSE, EXPOSED)
    killed = np.concatenate([np.arange(n) < k for n, k in zip(EXPOSED, KILLED)])
    return trends.logistic_trend(dose, killed, np.arange(len(dose)))


def test_the_beetles_logit_line():
    """Dobson, An Introduction to Generalized Linear Models: -60.72 + 34.27 x."""
    found = beetles()
    assert found.intercept == pytest.approx(-60.72, abs=0.01)
    assert found.slope.value == pytest.approx(34.27, abs=0.01)
    assert found.half.value == pytest.approx(1.772, abs=0.001)
    assert 1.763 < found.half.low < found.half.value < found.half.high < 1.780
    assert found.share(found.half.value) == pytest.approx(0.5)


def test_a_flat_trend_has_no_bounded_half():
    rng = np.random.default_rng(0)
    x, hits = np.arange(200) % 10, rng.random(200) < 0.4
    found = trends.logistic_trend(x, hits, np.arange(200))
    assert found.slope.low < 0 < found.slope.high
    assert (found.half.low, found.half.high) == (-np.inf, np.inf)


@pytest.mark.parametrize(
    "x, hits",
    [([1, 2, 3, 4], [1, 1, 1, 1]), ([1, 2, 3, 4], [0, 0, 0, 0]), ([2, 2, 2, 2], [0, 1, 0, 1]),
     ([1, 2, 3, 4], [1, 1, 0, 0])],
)  # fmt: skip
def test_no_curve_where_there_is_none(x, hits):
    assert trends.logistic_trend(x, hits, "abcd") is None


@given(st.lists(st.tuples(st.integers(1, 9), st.booleans()), min_size=4, max_size=40))
@settings(max_examples=60, deadline=None)
def test_any_table_gives_a_trend_or_none(rows):
    x, hits = zip(*rows)
    found = trends.logistic_trend(x, hits, range(len(x)))
    assert found is None or found.slope.low <= found.slope.value <= found.slope.high


def test_clusters_widen_the_interval():
    rng = np.random.default_rng(0)
    x = np.repeat(np.arange(1, 41), 4)
    share = np.repeat(1 / (1 + np.exp(0.15 * (np.arange(1, 41) - 12) + rng.normal(size=40) * 4)), 4)
    hits = rng.random(160) < share
    alone = trends.logistic_trend(x, hits, np.arange(160)).slope
    together = trends.logistic_trend(x, hits, x).slope
    assert together.value == pytest.approx(alone.value)
    assert together.high - together.low > 1.2 * (alone.high - alone.low)


@pytest.mark.parametrize(
    "difference, reference, n", [(0.1, 0.5, 198), (0.2, 0.5, 48), (0.1, 0.3, 181), (0.2, 0.3, 45)]
)
def test_sample_sizes(difference, reference, n):
    assert trends.required_sample_size(difference, reference) == n
    assert trends.power(n, reference, reference + difference) >= 0.8


def test_twenty_occupations_need_more():
    assert trends.required_sample_size(0.2, confidence=1 - 0.05 / 20) == 94


def test_what_cannot_be_a_share_is_refused():
    with pytest.raises(ValueError, match="no share"):
        trends.required_sample_size(0.6, 0.5)


def test_correlated_images_find_less():
    assert trends.effective_sample_size(20, 10, 0) == 200
    assert trends.effective_sample_size(20, 10, 1) == 20
    assert trends.detectable_difference(20, 10, correlation=0.2) > trends.detectable_difference(
        20, 10, correlation=0
    )
    assert np.isnan(trends.detectable_difference(1, 1))


@pytest.mark.parametrize("truth", [0.0, 0.1, 0.4])
def test_the_correlation_is_found_again(truth):
    hits = simulation.clustered_hits(np.random.default_rng(0), 0.4, 600, 8, truth)
    images = (np.arange(8) < hits[:, None]).ravel()
    assert trends.intraclass_correlation(images, np.repeat(np.arange(600), 8)) == pytest.approx(
        truth, abs=0.04
    )


def test_the_extremes_of_correlation():
    assert trends.intraclass_correlation([1, 1, 0, 0], "aabb") == 1
    assert trends.intraclass_correlation([1, 0, 1, 0], "aabb") == 0
    assert trends.intraclass_correlation([1, 0], "ab") == 0
