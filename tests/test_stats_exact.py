"""Exact values: published examples, R's documented ones, or a second implementation (named)."""

from itertools import permutations, product

import numpy as np
import pytest
import statsmodels.api as sm
from scipy import optimize, stats
from statsmodels.stats import proportion

from koala_nb.stats import estimates as e
from koala_nb.stats import imbalance, simulation, trends
from koala_nb.stats import misclassification as m

# R's data set `sleep` (Student 1908): hours gained by ten people with two drugs.
SLEEP = [
    [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0],
    [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4],
]
# Uneven clusters: hits and images of nine prompts.
HITS = np.array([3, 0, 5, 1, 2, 4, 0, 1, 3])
SIZES = np.array([4, 4, 5, 2, 6, 4, 3, 1, 7])
EACH = np.concatenate([np.arange(n) < h for h, n in zip(HITS, SIZES)]).astype(float)
PROMPTS = np.repeat(np.arange(9), SIZES)


def clustered_fit(y, groups, x=None):
    """statsmodels: least squares (a mean, without x) with errors clustered by group."""
    x = np.ones(len(y)) if x is None else x
    return sm.OLS(y, x).fit(cov_type="cluster", cov_kwds={"groups": groups}, use_t=True)


def wilson(share, n, z):
    """statsmodels' Wilson interval of any effective number, at any quantile."""
    return proportion.proportion_confint(share * n, n, 2 * stats.norm.sf(z), "wilson")


def test_r_t_test_of_sleep():
    """`t.test(extra ~ group, data = sleep)` of R's help, unpaired (Welch) and paired."""
    assert e.welch_interval(*SLEEP)[:3] == pytest.approx((-1.58, -3.3654832, 0.2054832), abs=5e-8)
    paired = e.mean_interval(np.subtract(*SLEEP))
    assert paired == pytest.approx((-1.58, -2.4598858, -0.7001142, 10), abs=5e-8)


def test_the_bootstrap_of_a_median_has_its_exact_distribution():
    """A resample's median is at most the k-th of 15 if 8 draws are: a binomial tail."""
    tail = [stats.binom.sf(7, 15, k / 15) for k in range(1, 16)]  # of median <= k
    low, high = (next(k for k, p in enumerate(tail, 1) if p >= q) for q in (0.025, 0.975))
    assert e.median_interval(np.arange(15, 0, -1)) == (8, low, high, 15)
    assert e.ratio_interval(2 * np.arange(1, 16), np.full(15, 4)) == (4, low / 2, high / 2, 15)
    assert e.median_interval([3, 3]) == (3, 3, 3, 2)


@pytest.mark.parametrize(
    ("first", "second", "low", "high"),
    [
        ((9, 10), (3, 10), 0.1705, 0.8090),
        ((6, 7), (2, 7), 0.0582, 0.8062),
        ((5, 56), (0, 29), -0.0381, 0.1926),
        ((0, 10), (0, 20), -0.1611, 0.2775),
        ((10, 10), (0, 20), 0.6791, 1.0000),
    ],
)
def test_newcombes_table_of_differences(first, second, low, high):
    """Newcombe 1998, Statistics in Medicine 17, 873-890, table II, method 10."""
    sides = e.share_interval(*first), e.share_interval(*second)
    expected = (low, high, first[1] + second[1])
    assert e.difference_interval(*sides)[1:] == pytest.approx(expected, abs=5e-5)


def test_wilsons_interval_ends_at_one_whatever_is_rounded():
    assert all(e.wilson_interval(1, n, 1.96)[1] <= 1 for n in range(1, 200))


def test_a_single_image_has_its_interval():
    ends = wilson(1.0, 1, stats.norm.ppf(0.975))
    assert e.share_interval(1, 1) == pytest.approx((1, *ends, 1))
    assert e.share_interval(0, 1).high == pytest.approx(1 - ends[0])
    assert e.upper_bound_clopper_pearson(1, 1) == 1
    assert e.upper_bound_clopper_pearson(2, 10) == pytest.approx(stats.beta.ppf(0.95, 3, 8))


def test_agresti_and_min_by_hand():
    """12 up, 3 down of 40 pairs: 9 / 42 +- 1.96 sqrt(16 - 81 / 42) / 42."""
    first = [1] * 12 + [0] * 3 + [1] * 20 + [0] * 5
    second = [0] * 12 + [1] * 3 + [1] * 20 + [0] * 5
    expected = (9 / 40, 0.2142857 - 0.1750555, 0.2142857 + 0.1750555, 40)
    assert e.paired_share_difference(first, second) == pytest.approx(expected, abs=1e-6)
    assert e.paired_share_difference([1] * 3, [0] * 3).high == 1
    assert e.paired_share_difference([0] * 3, [1] * 3).low == -1


def test_a_clustered_mean_is_statsmodels():
    values = (np.random.default_rng(0).normal(size=len(PROMPTS)) + PROMPTS) / 100
    fit = clustered_fit(values, PROMPTS)
    expected = (fit.params[0], *fit.conf_int()[0], len(values))
    assert e.clustered_mean(values, PROMPTS) == pytest.approx(expected)
    one = e.clustered_mean(SLEEP[0], ["a"] * 10)  # one prompt: independent images
    assert one == pytest.approx(e.mean_interval(SLEEP[0]))


def test_the_design_effect_is_statsmodels_and_its_shrinkage():
    share, n = EACH.mean(), len(EACH)
    variance = clustered_fit(EACH, PROMPTS).cov_params()[0, 0]
    size = (SIZES**2).sum() / n
    correlation = (variance / (share * (1 - share) / n) - 1) / (size - 1)
    telling, prior = 6, 5 / size  # 7 prompts with a hit, 6 with a miss: the fewer count
    expected = 1 + (size - 1) * (telling * correlation + prior / 2) / (telling + prior)
    assert correlation < 1 and e.design_effect(HITS, SIZES) == pytest.approx(expected)
    ends = wilson(share, n / expected, stats.t.ppf(0.975, 8))
    found = e.clustered_share(EACH, PROMPTS)
    assert found == pytest.approx((share, *ends, n)) == e.clustered_counts(HITS, SIZES)
    # No telling cluster: the prior alone, a correlation of one half. Single images: 1.
    assert e.design_effect(np.zeros(3), np.full(3, 5)) == pytest.approx(3)
    assert e.design_effect(np.array([1, 0, 1]), np.ones(3)) == 1
    assert e.design_effect(np.array([2]), np.array([4])) == 4
    assert e.clustered_share([1, 0, 0, 0], ["a"] * 4) == e.share_interval(1, 4)


@pytest.mark.parametrize("hits", [[30, 5, 40, 12, 20], [30, 20]])
def test_few_clusters_count_as_four_images_each(hits):
    m, share = len(hits), sum(hits) / (40 * len(hits))
    each = np.concatenate([np.arange(40) < h for h in hits])
    effect = e.design_effect(np.array(hits) / 10, np.full(m, 4.0))
    ends = wilson(share, 4 * m / effect, stats.t.ppf(0.975, m - 1))
    found = e.few_clusters_share(each, np.repeat(range(m), 40))
    assert found == pytest.approx((share, *ends, 40 * m))


def test_enough_clusters_or_few_images_are_as_usual():
    for clusters, images in ((20, 40), (5, 4), (1, 40)):  # enough clusters, few images, one cluster
        prompts = np.repeat(range(clusters), images)
        each = np.arange(len(prompts)) % 3 == 0
        assert e.few_clusters_share(each, prompts) == e.clustered_share(each, prompts)
    prompts = np.repeat(range(19), 5)
    each = np.arange(95) % 5 < np.repeat(np.arange(19) % 6, 5)
    wide, usual = e.few_clusters_share(each, prompts), e.clustered_share(each, prompts)
    assert wide.low < usual.low and wide.high > usual.high


@pytest.mark.parametrize(("m", "tail"), [(5, 0.0010), (10, 0.0085), (20, 0.0159)])
def test_the_bootstrap_takes_hesterbergs_expanded_percentiles(m, tail):
    """Hesterberg 2015, The American Statistician 69, section 5.2: Phi(-sqrt(n / (n - 1)) t)."""
    numbers = iter(range(2001))  # the "statistic" of draw i is i, so a quantile tells its level
    found = e.cluster_bootstrap(lambda rows: next(numbers), range(m))
    assert found.low / 1999 == pytest.approx(tail, abs=6e-5)
    assert found.high / 1999 == pytest.approx(1 - tail, abs=6e-5)
    assert (found.value, found.n) == (2000, m)
    with pytest.raises(ValueError, match="one prompt tells nothing"):
        e.cluster_bootstrap(np.mean, "aaa")
    drawn = []
    e.cluster_bootstrap(lambda rows: drawn.append(rows) or 0.0, [0, 0, 1, 2, 2, 2], draws=50)
    assert drawn[-1].tolist() == list(range(6)) and {len(d) for d in drawn} <= set(range(3, 10))
    assert all({0, 1} <= set(d) or not {0, 1} & set(d) for d in drawn)  # whole clusters


def test_a_stratified_mean_is_the_exact_bootstrap():
    """[1, 0] and [1, 1, 1]: the mean of means is .5, .75 or 1 with 1/4, 1/2, 1/4."""
    assert e.stratified_mean([[1, 0], [1, 1, 1]]) == (0.75, 0.5, 1.0, 5)
    values = np.random.default_rng(1).normal(size=(2, 30)) * [[1], [3]]
    error = np.sqrt((values.var(1) / 30).sum()) / 2  # of the bootstrap, by its formula
    found = e.stratified_mean(list(values))
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.1)


def test_signs_and_exchanges_are_enumerated():
    x = np.array([3.0, 1.0, -2.0, 5.0, 0.5])
    means = [abs((x * signs).mean()) for signs in product((1, -1), repeat=5)]
    assert e.paired_test(x) == pytest.approx(np.mean(np.array(means) >= abs(x.mean()) - 1e-12))
    assert e.paired_test(np.ones(30)) == 2 / 10_000  # resampled: none is as extreme
    assert e.paired_test(np.ones(30), resamples=99) == 2 / 100
    one, other = np.array([1.0, 4.0, 2.5]), np.array([3.0, 6.0])
    pool, gap = np.concatenate([one, other]), abs(one.mean() - other.mean())
    every = [abs(np.mean(p[:3]) - np.mean(p[3:])) for p in permutations(pool)]
    share = min(1, 2 * np.mean([np.mean(p[:3]) - np.mean(p[3:]) <= -gap + 1e-12
                                for p in permutations(pool)]))  # fmt: skip
    assert e.permutation_pvalue(one, other) == pytest.approx(share) and len(every) == 120
    assert e.permutation_pvalue([1, 1], [1]) == 1


# --- groups, curves, plans --------------------------------------------------------------------


def test_bounds_of_a_share_and_distance_by_hand():
    counts = {"a": 30, "b": 50, "unsure": 20}
    ends = wilson(0.3, 100, 1.959964)[0], wilson(0.5, 100, 1.959964)[1]
    assert imbalance.share_bounds(counts, "a") == pytest.approx((0.3, *ends, 100), abs=1e-7)
    plain = (0.2, *wilson(0.2, 100, 1.959964), 100)
    assert imbalance.share_bounds(counts, "unsure") == pytest.approx(plain, abs=1e-7)
    reference = {"a": 0.5, "b": 0.3, "c": 0.2}
    assert imbalance.total_variation({"a": 2, "b": 2}, reference) == pytest.approx(0.2)
    assert imbalance.total_variation({"c": 7}, reference) == pytest.approx(0.8)


def test_the_logistic_curve_has_the_sandwichs_errors_and_fiellers_ends():
    """The sandwich by hand, (G / (G - 1)) ((N - 1) / (N - 2)); Fieller's ends by root finding."""
    rng = np.random.default_rng(3)
    x, groups = np.repeat(np.arange(12) / 2, 5), np.repeat(np.arange(12), 5)
    hits = rng.random(60) < 1 / (1 + np.exp(3 - 1.2 * x + np.repeat(rng.normal(size=12), 5)))
    found = trends.logistic_trend(x, hits, groups)
    design = np.column_stack([np.ones(60), x])
    beta = sm.Logit(hits.astype(float), design).fit(disp=False, tol=1e-12).params
    p = 1 / (1 + np.exp(-design @ beta))
    bread = np.linalg.inv(design.T @ (design * (p * (1 - p))[:, None]))
    scores = np.stack([(design * (hits - p)[:, None])[groups == g].sum(0) for g in range(12)])
    cov = 12 / 11 * 59 / 58 * bread @ scores.T @ scores @ bread
    t = stats.t.ppf(0.975, 11)
    half = t * cov[1, 1] ** 0.5
    assert found.intercept == pytest.approx(beta[0], rel=1e-6)
    expected = (beta[1], beta[1] - half, beta[1] + half, 60)
    assert found.slope == pytest.approx(expected, rel=1e-6)
    assert found.share(x) == pytest.approx(p, abs=1e-6)

    def told_apart(at):
        variance = cov[0, 0] + 2 * at * cov[0, 1] + at**2 * cov[1, 1]
        return (beta[0] + beta[1] * at) ** 2 - t**2 * variance

    middle = -beta[0] / beta[1]
    ends = optimize.brentq(told_apart, -20, middle), optimize.brentq(told_apart, middle, 60)
    assert found.half == pytest.approx((middle, *ends, 60), rel=1e-5)
    assert trends.logistic_trend(x, hits, groups % 2) is None  # two clusters
    assert trends.logistic_trend(x, hits, groups % 3) is not None


@pytest.mark.parametrize(("n", "reference", "truth", "level"), [
    (20, 0.5, 0.8, 0.95), (33, 0.3, 0.55, 0.99), (12.9, 0.6, 0.6, 0.9)])  # fmt: skip
def test_power_is_how_often_statsmodels_interval_leaves_the_reference_out(
    n, reference, truth, level
):
    count = int(n)
    rejected = 0.0
    for hits in range(count + 1):
        low, high = proportion.proportion_confint(hits, count, 1 - level, "wilson")
        outside = not low <= reference <= high
        rejected += outside * stats.binom.pmf(hits, count, truth)
    assert trends.power(n, reference, truth, level) == pytest.approx(rejected)
    assert trends.power(0.5, 0.05, truth) == pytest.approx(truth)  # of one image, a hit tells


def test_plans_by_brute_force():
    assert trends.effective_sample_size(20, 10, 0.05) == pytest.approx(200 / 1.45)  # Kish 1965
    gap, n = trends.detectable_difference(20, 10), 200 / 1.45
    assert trends.power(n, 0.5, 0.5 + gap) >= 0.8 > trends.power(n, 0.5, 0.5 + gap - 0.005)
    assert gap == 0.12
    n = trends.required_sample_size(0.2, 0.3, confidence=0.9)
    strong = [k for k in range(2, 200) if trends.power(k, 0.3, 0.5, 0.9) >= 0.8]
    assert [*range(n, 200)] == strong[-(200 - n) :] and n - 1 not in strong
    assert trends.required_sample_size(-0.2, 0.7, confidence=0.9) == n  # the mirror image
    assert trends.required_sample_size(0.5) == 4  # all hit: 1/2 > 1.96 sqrt(1/4 / n) from 4 on


@pytest.mark.parametrize(
    ("reference", "difference"), [(0.1, 0.7), (0.3, 0.6), (0.2, 0.7), (0.8, -0.3)]
)
def test_a_required_sample_size_is_where_power_stays(reference, difference):
    found = trends.required_sample_size(difference, reference)
    weak = [n for n in range(1, 150) if trends.power(n, reference, reference + difference) < 0.8]
    assert found == max(2, weak[-1] + 1 if weak else 2)  # never a single image


def test_the_intraclass_correlation_is_that_of_scipys_anova():
    """(MSB - MSW) / (MSB + (k0 - 1) MSW), the mean squares from `scipy.stats.f_oneway`."""
    groups = [EACH[PROMPTS == g] for g in range(9)]
    within = sum(((g - g.mean()) ** 2).sum() for g in groups) / (len(EACH) - 9)
    between = stats.f_oneway(*groups).statistic * within
    typical = (len(EACH) - (SIZES**2).sum() / len(EACH)) / 8
    expected = (between - within) / (between + (typical - 1) * within)
    assert trends.intraclass_correlation(EACH, PROMPTS) == pytest.approx(expected)
    assert 0.01 < expected < 0.9
    assert trends.intraclass_correlation([0, 0, 0, 0], "aabb") == 0


def test_a_lines_slope_is_polyfits_and_its_interval_hc3s():
    """MacKinnon and White 1985, by hand: residuals over 1 - leverage, and Student's t."""
    rng = np.random.default_rng(5)
    x = rng.uniform(0, 1, 12)
    y = 0.1 + 0.8 * x + rng.normal(0, 0.1, 12) * (0.5 + x)
    found = trends.line_slope(x, y)
    assert found.value == pytest.approx(np.polyfit(x, y, 1)[0]) and found.n == 12
    design = np.stack([np.ones(12), x], axis=1)
    bread = np.linalg.inv(design.T @ design)
    leverage = np.einsum("ij,jk,ik->i", design, bread, design)
    residuals = (y - np.polyval(np.polyfit(x, y, 1), x)) / (1 - leverage)
    variance = bread @ (design.T * residuals**2 @ design) @ bread
    half = stats.t.ppf(0.975, 10) * variance[1, 1] ** 0.5
    assert found[1:3] == pytest.approx((found.value - half, found.value + half))


def test_variance_components_by_expected_mean_squares():
    """One group of three clusters x two images x two readers, by hand; then shares of extremes."""
    one, two = [1, 1, 0, 1, 0, 0], [1, 0, 0, 1, 0, 1]
    clusters = list("aabbcc")
    mean = np.add(one, two) / 2
    within = np.mean([mean[i : i + 2].var(ddof=1) for i in (0, 2, 4)])
    between = np.var([mean[i : i + 2].mean() for i in (0, 2, 4)], ddof=1) - within / 2
    reader = 1 / 6  # two disagreements in six, one each way: half of a squared difference
    parts = np.array([between, within - reader / 2, reader])
    groups = ["g"] * 6 + ["h"] * 6  # both alike: resampling changes nothing
    found = trends.variance_components(one * 2, two * 2, groups, clusters + list("defdef"))
    again = trends.variance_components(one * 2, two * 2, groups, clusters + list("ddeeff"))
    assert [part.value for part in again] == pytest.approx(parts / parts.sum())
    assert again[0].low == again[0].high and found != again
    alike = trends.variance_components(
        [1, 1, 0, 0] * 2, [1, 1, 0, 0] * 2, list("gggghhhh"), list("aabbccdd")
    )
    assert [part.value for part in alike] == pytest.approx([1, 0, 0])


# --- simulated audits -------------------------------------------------------------------------


def test_simulated_hits_have_the_beta_binomials_mean_and_variance():
    """scipy's beta-binomial: n p (1 - p) (1 + (n - 1) rho)."""
    hits = simulation.clustered_hits(np.random.default_rng(0), 0.3, 40_000, 10, 0.2)
    spread = stats.betabinom(10, 0.3 * 4, 0.7 * 4)
    assert hits.mean() == pytest.approx(spread.mean(), rel=0.02)
    assert hits.var() == pytest.approx(spread.var(), rel=0.03)
    assert simulation.clustered_hits(np.random.default_rng(0), 0.3, 3, 10, 0).shape == (3,)


def test_a_simulated_audit_reads_as_its_scorer_does():
    scorer = np.array([[0.9, 0.1, 0.0], [0.2, 0.7, 0.1], [0.0, 0.0, 1.0]])
    shares, names = np.array([0.5, 0.3, 0.2]), ["a", "b", "c"]
    rng, design = np.random.default_rng(0), (400, 20)
    audit = simulation.simulate_audit(rng, shares, scorer, names, design, 0.2)
    counts = m.confusion(audit.true, audit.read, names)
    assert counts.sum(1) / 8000 == pytest.approx(shares, abs=0.03)
    assert counts / counts.sum(1, keepdims=True) == pytest.approx(scorer, abs=0.015)
    alike = trends.intraclass_correlation(np.array(audit.true) == "a", audit.clusters)
    assert alike == pytest.approx(0.2, abs=0.04)
    assert audit.clusters.tolist() == np.repeat(range(400), 20).tolist()


def test_a_claims_power_with_every_image_labelled_is_the_exact_one():
    """One claim of independent images: about the power of `trends.power`."""
    found = simulation.claim_power(1, (60, 1), 0.0, 0.7, labels=60)
    assert found == pytest.approx(trends.power(60, 0.5, 0.7), abs=0.08)
    assert simulation.claim_power(20, (60, 1), 0.0, 0.7, labels=60) < found - 0.1
    assert simulation.claim_power(1, (60, 1), 0.0, 0.7, labels=15) < found - 0.1


def test_the_nearest_cell_is_by_log_counts_and_shares_five_times():
    near = {"interval": "i", "prompts": 20, "images": 4, "correlation": 0.1, "share": 0.5}
    near["coverage"] = 0.9299
    far = near | {"share": 0.6, "coverage": 0.93}  # 0.25 from a share of .5
    for prompts, cell in ((30, near), (34, far), (12, far), (14, near)):  # log 1.5, 1.7 squared
        other = far | {"prompts": prompts}
        warning = simulation.coverage_warning([near, other], "i", prompts=prompts, share=0.5)
        assert (warning is not None) == (cell is near), prompts
    design = {"prompts": 20, "share": 0.5}
    assert simulation.coverage_warning([near], "i", **design) == (
        "Caution: in simulated audits like this one (20 prompts x 4 images, correlation 0.1, share "
        "0.5) the 95 % interval held the truth in 93.0%."
    )
    assert simulation.coverage_warning([near], "another", **design) is None
    assert simulation.coverage_warning([near], "i", prompts=1, correlation=0, share=0)
