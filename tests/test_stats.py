"""Estimates against published examples and simulated coverage."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from koala_nb.stats import mean_interval, share_interval

finite = st.floats(-1e6, 1e6)


def test_mean_of_a_textbook_case():
    """2, 4, 6: mean 4, s = 2, t(0.975, 2) = 4.3027, so 4 +- 4.3027 * 2 / sqrt(3)."""
    found = mean_interval([2, 4, 6])
    assert found.value == 4 and found.n == 3
    assert found.high - 4 == pytest.approx(4.302653 * 2 / 3**0.5, rel=1e-6)
    assert 4 - found.low == pytest.approx(found.high - 4)


def test_wilson_of_a_published_case():
    """Newcombe (1998), Statistics in Medicine 17: 81 of 263 gives 0.2553 to 0.3662."""
    found = share_interval(81, 263)
    assert found.low == pytest.approx(0.2553, abs=5e-5)
    assert found.high == pytest.approx(0.3662, abs=5e-5)


def test_the_intervals_cover_what_they_promise():
    rng = np.random.default_rng(0)
    covered = [mean_interval(row) for row in rng.normal(3, 2, (4000, 5))]
    share = np.mean([found.low <= 3 <= found.high for found in covered])
    assert share == pytest.approx(0.95, abs=0.012)


@given(st.lists(finite, min_size=2, max_size=8), st.floats(0.5, 0.99))
def test_an_interval_holds_its_mean_and_grows_with_confidence(values, confidence):
    found, wider = mean_interval(values, confidence), mean_interval(values, 0.999)
    assert wider.low <= found.low <= found.value <= found.high <= wider.high


@pytest.mark.parametrize("values", [[], [1.0]])
def test_one_value_has_no_spread(values):
    with pytest.raises(ValueError, match="two or more"):
        mean_interval(values)


@pytest.mark.parametrize(("hits", "n"), [(3, 2), (-1, 2), (0, 0)])
def test_what_is_no_share(hits, n):
    with pytest.raises(ValueError, match="is no share"):
        share_interval(hits, n)
