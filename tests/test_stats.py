"""Estimates, trends and imbalance against published examples, scipy, and simulated coverage."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from koala_nb.core.catalog import data_folder
from koala_nb.stats import estimates, imbalance, simulation, trends
from koala_nb.stats.estimates import mean_interval


def test_a_published_share():
    """Newcombe (1998), Statistics in Medicine 17: 81 of 263."""
    assert estimates.share_interval(81, 263)[1:3] == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert np.isnan(estimates.welch_interval([1, 1], [0, 0]).low)  # nothing is known of a spread
    assert np.isnan(estimates.clustered_mean([0.3], ["a"])[1:3]).all()


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=8))
def test_an_interval_holds_its_mean(values):
    found = mean_interval(values, (-1e6, 1e6))
    assert found.low <= found.value <= found.high


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(1, 6)), min_size=2, max_size=30))
def test_a_clustered_share_holds_its_value_and_its_misses_mirror_it(pairs):
    sizes = np.array([size for _, size in pairs])
    hits = np.minimum([hit for hit, _ in pairs], sizes)
    found = estimates.clustered_counts(hits, sizes)
    plain = estimates.share_interval(int(hits.sum()), int(sizes.sum()))
    assert 0 <= found.low <= found.value <= found.high <= 1 and found.n == sizes.sum()
    assert found.high - found.low >= plain.high - plain.low - 1e-9  # no narrower than Wilson's
    mirrored = estimates.clustered_counts(sizes - hits, sizes)
    assert found[1:3] == pytest.approx((1 - mirrored.high, 1 - mirrored.low))


def test_a_share_of_none_is_as_narrow_as_its_coverage_allows():
    """Six prompts of ten images, correlated by .3: 95 % at every share near 0, no hit up to .38."""
    rng, sizes = np.random.default_rng(0), np.full(6, 10)
    assert estimates.clustered_counts(np.zeros(6), sizes).high == pytest.approx(0.377, abs=5e-4)
    for share in (0.02, 0.05, 0.1, 0.2):
        hits = [simulation.clustered_hits(rng, share, 6, 10, correlation=0.3) for _ in range(600)]
        found = [estimates.clustered_counts(row, sizes) for row in hits]
        assert np.mean([f.low <= share <= f.high for f in found]) > 0.94


def test_the_order_and_the_names_of_clusters_do_not_matter():
    hits, prompts = [1, 0, 1, 1, 0, 0], ["b", "a", "b", "c", "a", "c"]
    names = [{"a": 1, "b": 0, "c": 2}[prompt] for prompt in prompts]
    again = estimates.clustered_share(hits[::-1], names[::-1])
    assert estimates.clustered_share(hits, prompts) == again


def test_a_mean_of_values_that_do_not_differ_is_not_known_for_sure():
    """Six pairs alike: up to 1 - .025^(1/6) = 45.9 % of all pairs may differ, by 1 at most."""
    assert np.isnan(mean_interval([0.0] * 6)[1:3]).all()
    assert mean_interval([0.0] * 6, (-1, 1)) == pytest.approx((0, -0.4593, 0.4593, 6), abs=5e-5)
    low, high = estimates.clustered_mean([0.25] * 12, [*"aabbccddeeff"], (0, 1))[1:3]
    assert (low, high) == pytest.approx((0.25 - 0.4593 * 0.25, 0.25 + 0.4593 * 0.75), abs=5e-5)
    assert np.isnan(mean_interval([2.0] * 3, (0, np.inf)).high)


def test_a_mean_stays_within_what_is_possible():
    high = mean_interval([3, 3, 3, 2.5], (0, 3))
    assert high.low == mean_interval([3, 3, 3, 2.5]).low and high.high == 3


@pytest.mark.parametrize("rate", [0.02, 0.1, 0.3])
def test_paired_differences_of_rare_events_are_covered(rate):
    """Six prompts of ten pairs, of which a few differ: .55 of these intervals had no width."""
    rng = np.random.default_rng(0)
    first, second = rng.binomial(10, rate, (2, 2000, 6)) / 10
    results = [mean_interval(row, (-1, 1)) for row in first - second]
    assert np.mean([r.low <= 0 <= r.high for r in results]) > 0.93
    assert min(r.high - r.low for r in results) > 0.05


def test_holm_and_benjamini_hochberg_as_in_rs_p_adjust():
    p = [0.01, 0.04, 0.03, 0.005]
    assert estimates.adjust_pvalues(p) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert estimates.adjust_pvalues(p, "fdr_bh") == pytest.approx([0.02, 0.04, 0.04, 0.02])


def test_estimates_have_one_tidy_form():
    long = ("text.long.exact", "Long texts, exact", estimates.Estimate(0.5, 0.4, 0.6, 90))
    row = estimates.estimate_row(*long, clusters=30, method="wilson, clustered", scorer="rapidocr")
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


def test_the_interval_holds_over_few_concepts_of_many_images():
    rng = np.random.default_rng(0)
    concepts, images, truth = np.repeat(range(8), 76), 76, 0.1
    methods, covered = (estimates.clustered_share, estimates.few_clusters_share), []
    for _ in range(600):
        hits = simulation.clustered_hits(rng, truth, 8, images, correlation=0.35)
        shown = np.concatenate([np.arange(images) < count for count in hits])
        both = [method(shown, concepts) for method in methods]
        covered.append([estimate.low <= truth <= estimate.high for estimate in both])
    usual, wider = np.mean(covered, axis=0)
    assert usual < 0.9 and wider > simulation.COVERAGE_BAR


@pytest.mark.parametrize(("both", "up", "down"), [(0.6, 0.1, 0.1), (0.3, 0.3, 0.05), (0.0, 0, 0)])
def test_paired_intervals_hold_the_truth(both, up, down):
    rng = np.random.default_rng(0)
    covered = []
    for cells in rng.multinomial(100, [both, up, down, 1 - both - up - down], 600):
        first = np.repeat([True, True, False, False], cells)
        second = np.repeat([True, False, True, False], cells)
        found = estimates.paired_share_difference(first, second)
        assert found.value == pytest.approx((cells[1] - cells[2]) / 100)
        covered.append(found.low <= up - down <= found.high and found.low < found.high)
    assert np.mean(covered) >= 0.93


# --- trends and power ---------------------------------------------------------------------------

# Beetles killed by carbon disulphide (Bliss 1935), log10 dose, number exposed and killed.
DOSE = [1.6907, 1.7242, 1.7552, 1.7842, 1.8113, 1.8369, 1.8610, 1.8839]
EXPOSED = [59, 60, 62, 56, 63, 59, 62, 60]
KILLED = [6, 13, 18, 28, 52, 53, 61, 60]


def test_the_beetles_logit_line():
    """Dobson, An Introduction to Generalized Linear Models: -60.72 + 34.27 x."""
    dose = np.repeat(DOSE, EXPOSED)
    killed = np.concatenate([np.arange(n) < k for n, k in zip(EXPOSED, KILLED)])
    found = trends.logistic_trend(dose, killed, np.arange(len(dose)))
    assert found.intercept == pytest.approx(-60.72, abs=0.01)
    assert found.slope.value == pytest.approx(34.27, abs=0.01)
    assert found.half.value == pytest.approx(1.772, abs=0.001)
    assert 1.763 < found.half.low < found.half.value < found.half.high < 1.780
    assert found.share(found.half.value) == pytest.approx(0.5)


def test_a_single_prompt_and_image_find_nothing():
    assert np.isnan(trends.detectable_difference(1, 1))
    assert trends.required_sample_size(0.2, confidence=1 - 0.05 / 20) == 94  # of 20 occupations


def test_a_flat_trend_has_no_bounded_half():
    rng = np.random.default_rng(0)
    x, hits = np.arange(200) % 10, rng.random(200) < 0.4
    found = trends.logistic_trend(x, hits, np.arange(200))
    assert found.slope.low < 0 < found.slope.high
    assert (found.half.low, found.half.high) == (-np.inf, np.inf)


@pytest.mark.parametrize(
    "x, hits", [("1234", "1111"), ("1234", "0000"), ("2222", "0101"), ("1234", "1100")]
)
def test_no_curve_where_there_is_none(x, hits):
    assert trends.logistic_trend(list(map(int, x)), list(map(int, hits)), "abcd") is None


@given(st.lists(st.tuples(st.integers(1, 9), st.booleans()), min_size=4, max_size=40))
@settings(max_examples=60, deadline=None)
def test_any_table_gives_a_trend_or_none(rows):
    x, hits = zip(*rows)
    found = trends.logistic_trend(x, hits, range(len(x)))
    assert found is None or found.slope.low <= found.slope.value <= found.slope.high


# --- imbalance --------------------------------------------------------------------------------

GROUPS = ["a", "b", "c", "d", "e"]
EVEN = imbalance.uniform_reference(GROUPS)
group_counts = st.lists(st.integers(0, 50), min_size=5, max_size=5).filter(any)


@given(group_counts, st.permutations(GROUPS))
def test_total_variation_takes_its_groups_from_the_reference(values, order):
    named = dict(zip(GROUPS, values))
    distance = imbalance.total_variation(named, EVEN)
    assert distance <= imbalance.total_variation({"a": sum(values)}, EVEN) + 1e-12  # collapse
    shown = {group: n for group, n in named.items() if n}  # the others count as declared
    assert imbalance.total_variation(shown, EVEN) == pytest.approx(distance)
    other = imbalance.total_variation({g: named[g] for g in order}, {g: EVEN[g] for g in order})
    assert other == pytest.approx(distance)


def test_a_fair_model_shows_some_imbalance():
    """Half the range of a binomial share: its 95th percentile by scipy."""
    two = imbalance.uniform_reference(["woman", "man"])
    for n in (9, 100):
        expected = abs(stats.binom.ppf(0.975, n, 0.5) / n - 0.5)
        assert imbalance.null_quantile(n, two) == pytest.approx(expected, abs=0.012)


def test_a_null_is_exceeded_by_one_fair_model_in_twenty():
    four = imbalance.uniform_reference("abcd")
    limit = imbalance.null_quantile(50, four, draws=4000)
    draws = np.random.default_rng(1).multinomial(50, [0.25] * 4, 2000)
    below = [imbalance.total_variation(dict(zip("abcd", row)), four) <= limit for row in draws]
    assert 0.93 <= np.mean(below) <= 0.975
    assert imbalance.null_quantile(5000, four) < limit / 5
    another = imbalance.total_variation({"a": 1, "b": 1, "x": 2}, {"a": 0.5, "b": 0.5, "x": 0})
    assert another == 0.5  # half was read as neither


def test_the_published_audit_of_koala_lightning():
    table = pd.read_csv(data_folder() / "reference" / "t2i_biasbench_koala.csv")
    assert (table.groupby(["prompt", "attribute"]).captions.sum() == 100).all()
    by_prompt = table[table.source == "table"].groupby("prompt")[["group", "captions"]]
    doctor, beauty = (dict(by_prompt.get_group(name).values) for name in ("doctor", "beauty"))
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
