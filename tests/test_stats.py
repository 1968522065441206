"""Estimates against published examples and simulated coverage."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from koala_nb.stats import estimates, simulation
from koala_nb.stats.estimates import mean_interval, share_interval

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


clusters = st.lists(st.tuples(st.integers(0, 6), st.integers(1, 6)), min_size=2, max_size=30)


@given(clusters)
def test_a_clustered_share_holds_its_value_and_is_no_narrower_than_wilsons(pairs):
    sizes = np.array([size for _, size in pairs])
    hits = np.minimum([hit for hit, _ in pairs], sizes)
    found = estimates.clustered_counts(hits, sizes)
    plain = estimates.share_interval(int(hits.sum()), int(sizes.sum()))
    assert 0 <= found.low <= found.value <= found.high <= 1
    assert found.n == sizes.sum()
    assert found.high - found.low >= plain.high - plain.low - 1e-9


@given(clusters)
def test_misses_mirror_hits(pairs):
    sizes = np.array([size for _, size in pairs])
    hits = np.minimum([hit for hit, _ in pairs], sizes)
    found, mirrored = (
        estimates.clustered_counts(hits, sizes),
        estimates.clustered_counts(sizes - hits, sizes),
    )
    assert found.low == pytest.approx(1 - mirrored.high)
    assert found.high == pytest.approx(1 - mirrored.low)


def test_one_prompt_has_wilsons_interval():
    found = estimates.clustered_share([1] * 91 + [0] * 9, ["doctor"] * 100)
    assert (round(found.low, 3), round(found.high, 3)) == (0.838, 0.952)  # audits of KOALA


def test_images_that_are_all_alike_count_once_a_prompt():
    """20 prompts whose 10 images agree are worth about 20 images."""
    hits = np.repeat([1, 0] * 10, 10)
    effect = estimates.design_effect(*estimates.cluster_totals(hits, np.repeat(np.arange(20), 10)))
    assert effect == pytest.approx(10, rel=0.06)  # 20 / 19 from the sample's variance


def test_images_without_correlation_have_a_design_effect_near_one():
    rng = np.random.default_rng(0)
    hits, sizes = rng.binomial(10, 0.4, 400), np.full(400, 10)
    assert 1 <= estimates.design_effect(hits, sizes) < 1.2


def test_the_order_and_the_names_of_clusters_do_not_matter():
    hits, prompts = [1, 0, 1, 1, 0, 0], ["b", "a", "b", "c", "a", "c"]
    again = estimates.clustered_share(
        hits[::-1], [{"a": 1, "b": 0, "c": 2}[p] for p in prompts[::-1]]
    )
    assert estimates.clustered_share(hits, prompts) == again


@pytest.mark.parametrize("hits, names", [([], []), ([1, 0], ["a"])])
def test_hits_that_do_not_fit_are_refused(hits, names):
    with pytest.raises(ValueError, match="do not fit"):
        estimates.clustered_share(hits, names)


def test_the_clustered_mean_of_one_image_a_prompt_is_students():
    values = [0.1, 0.5, 0.2, 0.9]
    assert estimates.clustered_mean(values, "abcd") == pytest.approx(
        estimates.mean_interval(values)
    )


def test_a_single_image_tells_nothing():
    assert estimates.clustered_mean([0.3], ["a"]) == (0.3, -np.inf, np.inf, 1)


def test_the_bootstrap_of_a_mean_is_near_the_t_interval():
    rng = np.random.default_rng(1)
    values, names = rng.normal(size=300), np.repeat(np.arange(60), 5)
    found = estimates.cluster_bootstrap(lambda rows: values[rows].mean(), names)
    expected = estimates.clustered_mean(values, names)
    assert found.value == pytest.approx(expected.value)
    assert found.low == pytest.approx(expected.low, abs=0.02)
    assert found.high == pytest.approx(expected.high, abs=0.02)
    assert found == estimates.cluster_bootstrap(lambda rows: values[rows].mean(), names)


def test_holm_and_benjamini_hochberg_as_in_rs_p_adjust():
    p = [0.01, 0.04, 0.03, 0.005]
    assert estimates.adjust_pvalues(p) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert estimates.adjust_pvalues(p, "fdr_bh") == pytest.approx([0.02, 0.04, 0.04, 0.02])
    with pytest.raises(ValueError, match="unknown"):
        estimates.adjust_pvalues(p, "bonferonni")


def test_flipping_signs():
    assert estimates.paired_test([1.0] * 10) == pytest.approx(2 / 2**10)  # exact
    assert estimates.paired_test([1.0, -1.0, 2.0, -2.0]) == 1
    assert estimates.paired_test([0.0, 0.0]) == 1


def test_estimates_have_one_tidy_form():
    row = estimates.estimate_row(
        "text.long.exact", "Long texts, exact", estimates.Estimate(0.5, 0.4, 0.6, 90), clusters=30,
        method="wilson, clustered", scorer="rapidocr",
    )  # fmt: skip
    other = estimates.estimate_row("text.short.exact", "Short", estimates.Estimate(1, 1, 1, 4))
    frame = estimates.estimates_frame([row, other])
    assert list(frame.columns) == list(estimates.COLUMNS)
    assert frame["clusters"].tolist()[0] == 30 and frame["clusters"].isna()[1]
    assert frame.set_index("id").loc["text.short.exact", "value"] == 1.0
    assert list(estimates.estimates_frame([]).columns) == list(estimates.COLUMNS)
    with pytest.raises(ValueError, match="'text.long.exact'"):
        estimates.estimates_frame([row, row])


@pytest.mark.parametrize("bad", ["", "Text.long", "text long", "text..long", ".text", "text-long"])
def test_an_estimate_id_is_lower_case_dots_and_underscores(bad):
    with pytest.raises(ValueError, match="no estimate's id"):
        estimates.estimate_row(bad, "label", estimates.Estimate(0, 0, 0, 1))
    assert estimates.estimate_id("text", "Very long") == "text.very_long"


@given(st.integers(1, 3000))
def test_a_zero_has_the_exact_bound(n):
    bound = estimates.upper_bound_clopper_pearson(0, n)
    assert bound == pytest.approx(1 - 0.05 ** (1 / n), abs=1e-9)
    assert bound <= 3 / n  # the rule of three


@given(st.integers(1, 60).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_bound_grows_with_hits_and_holds_the_share(pair):
    hits, n = pair
    bound = estimates.upper_bound_clopper_pearson(hits, n)
    assert hits / n <= bound <= 1
    assert hits == n or bound < estimates.upper_bound_clopper_pearson(hits + 1, n)


def test_no_share_has_no_bound():
    with pytest.raises(ValueError, match="3 of 2"):
        estimates.upper_bound_clopper_pearson(3, 2)


def test_the_interval_holds_over_few_concepts_of_many_images():
    rng = np.random.default_rng(0)
    concepts, images, truth = np.repeat(range(8), 76), 76, 0.1

    def holds(found):
        return found.low <= truth <= found.high

    audits = []
    for _ in range(600):
        hits = simulation.clustered_hits(rng, truth, 8, images, correlation=0.35)
        shown = np.concatenate([np.arange(images) < count for count in hits])
        audits.append(
            [
                holds(f(shown, concepts))
                for f in (estimates.clustered_share, estimates.few_clusters_share)
            ]
        )
    usual, own = np.mean(audits, axis=0)
    assert usual < 0.9 and own > simulation.COVERAGE_BAR


@pytest.mark.parametrize(("both", "up", "down"), [(0.6, 0.1, 0.1), (0.3, 0.3, 0.05), (0.0, 0, 0)])
def test_paired_intervals_hold_the_truth(both, up, down):
    rng = np.random.default_rng(0)
    held = []
    for cells in rng.multinomial(100, [both, up, down, 1 - both - up - down], 600):
        first = np.repeat([True, True, False, False], cells)
        second = np.repeat([True, False, True, False], cells)
        found = estimates.paired_share_difference(first, second)
        assert found.value == pytest.approx((cells[1] - cells[2]) / 100)
        held.append(found.low <= up - down <= found.high and found.low < found.high)
    assert np.mean(held) >= 0.93
