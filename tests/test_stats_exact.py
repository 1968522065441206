"""Exact values: published examples, R's documented ones, or a second implementation (named)."""

from itertools import permutations, product

import numpy as np
import pytest
import statsmodels.api as sm
from scipy import optimize, stats
from statsmodels.stats import proportion
from statsmodels.stats.inter_rater import cohens_kappa

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
    assert e.difference_interval(*sides)[1:3] == pytest.approx((low, high), abs=5e-5)


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
    values = np.random.default_rng(0).normal(size=len(PROMPTS)) + PROMPTS
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
    telling, prior = 6, 1.5 / size  # 7 prompts with a hit, 6 with a miss: the fewer count
    expected = 1 + (size - 1) * (telling * correlation + prior) / (telling + prior)
    assert correlation < 1 and e.design_effect(HITS, SIZES) == pytest.approx(expected)
    ends = wilson(share, n / expected, stats.t.ppf(0.975, 8))
    found = e.clustered_share(EACH, PROMPTS)
    assert found == pytest.approx((share, *ends, n)) == e.clustered_counts(HITS, SIZES)
    # No telling cluster: the prior alone, images of a prompt count once. Single images: 1.
    assert e.design_effect(np.zeros(3), np.full(3, 4)) == pytest.approx(4)
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


# --- scorers that err -------------------------------------------------------------------------


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
    assert m.corrected_share(1.0, 100, *known).high == 1


def test_brucellosis_in_a_herd():
    """The documented example of R's `epiR::epi.prev`: 23 of 150, .96 and .89: 5.1 %."""
    found = m.corrected_share(23 / 150, 150, (9600, 10_000), (8900, 10_000))
    assert found.value == pytest.approx(0.051, abs=5e-4) and found.n == 150
    assert found.low == pytest.approx(0, abs=0.005) and found.high == pytest.approx(0.13, abs=0.005)
    shares = m.invert_confusion([23, 127], [[9600, 400], [1100, 8900]])
    assert shares[0].value == pytest.approx(0.051, abs=5e-4)
    assert shares[1].value == pytest.approx(0.949, abs=5e-4)


def test_an_exact_scorer_leaves_the_posterior_of_a_share():
    """Perks' prior of two classes is Jeffreys' (1/2, 1/2); Wilson's ends where they are wider."""
    (found, other) = m.invert_confusion([30, 70], np.eye(2) * 1e9, draws=40_000)
    jeffreys = proportion.proportion_confint(30, 100, method="jeffreys")
    plain = wilson(0.3, 100, stats.norm.ppf(0.975))
    assert found.low == pytest.approx(min(jeffreys[0], plain[0]), abs=1e-3)
    assert found.high == pytest.approx(max(jeffreys[1], plain[1]), abs=1e-3)
    assert other.value == pytest.approx(0.7) and found.n == 100
    # Perks' prior of three: a class that nobody saw has Beta(1/3, n + 2/3).
    unseen = m.invert_confusion([60, 40, 0], np.eye(3) * 1e9, draws=40_000)[2]
    posterior = stats.beta.ppf(0.975, 1 / 3, 100 + 2 / 3)
    assert unseen.high == pytest.approx(max(posterior, wilson(0, 100, 1.959964)[1]), abs=1e-3)


def test_what_no_shares_explain_has_the_ends_of_an_exact_scorer():
    """None of 100 read, though one in five of the others should be: no surer than without error."""
    none = m.invert_confusion([0, 100], [[80, 20], [20, 80]])[0]
    assert none[:3] == pytest.approx((0, *wilson(0, 100, 1.959964)), abs=1e-6)


def test_the_nearest_shares_minimise_the_distance():
    """Duchi et al. 2008 against scipy's constrained minimiser."""
    for point in ([0.5, 0.7, -0.1], [0.2, 0.3, 0.1], [-1.0, -2.0, 5.0], [0.2, 0.3, 0.5]):
        constraint = {"type": "eq", "fun": lambda x: x.sum() - 1}
        best = optimize.minimize(lambda x, p=point: ((x - p) ** 2).sum(), np.full(3, 1 / 3),
                                 bounds=[(0, 1)] * 3, constraints=constraint)  # fmt: skip
        assert m._on_simplex(np.array([point]))[0] == pytest.approx(best.x, abs=1e-6)


def test_effective_counts_weigh_the_classes_effects():
    """Rao and Scott 1981: the mean design effect, weighted by p (1 - p); t over normal squared."""
    codes, prompts = np.repeat([0, 1, 2, 0, 2], [9, 6, 3, 2, 1]), np.repeat(range(7), 3)
    share = np.bincount(codes) / len(codes)
    effects = [e.design_effect(*e.cluster_totals(codes == i, prompts)) for i in range(3)]
    assert max(effects) - min(effects) > 0.1
    effect = (np.array(effects) * share * (1 - share)).sum() / (share * (1 - share)).sum()
    growth = (stats.t.ppf(0.975, 6) / stats.norm.ppf(0.975)) ** 2
    found = m.effective_counts(codes, prompts, 3)
    assert found == pytest.approx(np.bincount(codes) / (1 + (effect - 1) * growth))
    assert m.effective_counts(codes, [0] * len(codes), 3).tolist() == np.bincount(codes).tolist()
    same = m.effective_counts(np.zeros(12, int), np.repeat(range(3), 4), 2)
    assert same == pytest.approx([12 / (1 + 3 * (stats.t.ppf(0.975, 2) / 1.959964) ** 2), 0])


def prediction_powered_design():
    """Six prompts of eight images, the first three of each labelled: readings and labels."""
    rng = np.random.default_rng(4)
    true = rng.random((6, 8)) < np.array([0.1, 0.2, 0.5, 0.6, 0.8, 0.9])[:, None]
    read = np.where(rng.random((6, 8)) < 0.85, true, ~true)
    return read.astype(float), true.astype(float)


def test_the_prediction_powered_share_is_a_mean_over_equal_prompts():
    """With equal prompts it is the mean of u_g = lambda mean(f) + mean(y - lambda f): s(u)^2 / m.

    The weight: Angelopoulos et al. 2023 (PPI++, arXiv 2311.01453), eq. 9, n labels of N images.
    """
    f, y = prediction_powered_design()
    labelled_f, labelled_y = f[:, :3], y[:, :3]
    covariance = np.cov(labelled_f.ravel(), labelled_y.ravel())[0, 1]
    weight = covariance / (f.var() * (1 + 18 / 48))
    assert 0.1 < weight < 0.9
    units = weight * f.mean(1) + (labelled_y - weight * labelled_f).mean(1)
    ends = wilson(units.mean(), units.mean() * (1 - units.mean()) / (units.var(ddof=1) / 6),
                  stats.t.ppf(0.975, 5))  # fmt: skip
    names = np.array(["man", "woman"])
    labels = [[names[int(v)] if i < 3 else None for i, v in enumerate(row)] for row in y]
    prompts = np.repeat(range(6), 8)
    found = m.prediction_powered(names[f.ravel().astype(int)], prompts, names, sum(labels, []))
    assert found["woman"] == pytest.approx((units.mean(), *ends, 48))
    # Each image a prompt of its own, or all of one: independent images, n - 1 degrees.
    influence = weight * (f - f.mean()) / 48
    rest = labelled_y - weight * labelled_f
    influence[:, :3] += (rest - rest.mean()) / 18
    variance = 48 / 47 * (influence**2).sum()
    ends = wilson(units.mean(), units.mean() * (1 - units.mean()) / variance,
                  stats.t.ppf(0.975, 47))  # fmt: skip
    for prompts in (range(48), [0] * 48):
        alone = m.prediction_powered(names[f.ravel().astype(int)], prompts, names, sum(labels, []))
        assert alone["woman"] == pytest.approx((units.mean(), *ends, 48))


@pytest.mark.parametrize("hits", [20, 27, 35])
def test_the_claims_p_is_the_score_tests(hits):
    """statsmodels' z of one proportion at the null's variance, Student's t, two-sided."""
    read, classes = ["a"] * hits + ["b"] * (50 - hits), ["a", "b"]
    z, _ = proportion.proportions_ztest(hits, 50, 0.4, prop_var=0.4)
    expected = 2 * stats.t.sf(abs(z), 49)
    for prompts in (range(50), [0] * 50):  # one image a prompt, or one prompt
        design = e.design_effect(*e.cluster_totals([r == "a" for r in read], prompts))
        t = 2 * stats.t.sf(abs(z) / design**0.5, 49)
        assert m.score_test_pvalue(read, prompts, classes, None, "a", 0.4) == pytest.approx(t)
    assert m.score_test_pvalue(read, range(50), classes, None, "a", 0.4) == pytest.approx(expected)


def test_the_claims_p_has_the_scorers_error_in_it():
    """Two classes in closed form: Rogan and Gladen's share, both rates' variance at the null."""
    read, prompts = np.repeat(["a", "b", "a", "b"], [14, 10, 9, 27]), np.arange(60) % 12
    table = np.array([[45, 5], [8, 72]])
    se, sp = 45.5 / 51, 72.5 / 81  # half a count in every cell
    n = 60 / e.design_effect(*e.cluster_totals(read == "a", prompts))
    share = ((read == "a").mean() + sp - 1) / (se + sp - 1)
    at_null = 0.55 * se + 0.45 * (1 - sp)
    variance = at_null * (1 - at_null) / n
    variance += 0.55**2 * se * (1 - se) / 51 + 0.45**2 * sp * (1 - sp) / 81
    t = (share - 0.55) / (variance**0.5 / (se + sp - 1))
    found = m.score_test_pvalue(read, prompts, ["a", "b"], table, "a", 0.55)
    assert found == pytest.approx(2 * stats.t.sf(abs(t), 11)) and 0.001 < found < 0.5


def test_the_claims_p_among_three_classes_is_the_delta_methods():
    """Gradients by differences, covariances of multinomials; the others keep their proportions."""
    read, prompts = np.repeat(list("abc"), [30, 12, 48]), np.arange(90)
    table = np.array([[40, 6, 4], [5, 30, 5], [10, 4, 46]])
    rates, labels = (table + 0.5) / (table + 0.5).sum(1, keepdims=True), table.sum(1) + 1.5
    share = lambda read, rates: np.linalg.solve(rates.T, read)  # noqa: E731
    true = share(np.array([30, 12, 48]) / 90, rates)
    null = np.array([0.3, *(0.7 * true[1:] / true[1:].sum())])
    at_null, step = null @ rates, 1e-6

    def gradient(of, at):
        moved = [of(at + step * np.eye(3)[i]) - of(at - step * np.eye(3)[i]) for i in range(3)]
        return np.array(moved) / (2 * step)

    def spread(gradient, p):
        return gradient @ (np.diag(p) - np.outer(p, p)) @ gradient

    variance = spread(gradient(lambda q: share(q, rates)[0], at_null), at_null) / 90
    for k in range(3):
        others = np.arange(3)[:, None] == k
        slope = gradient(lambda row, o=others: share(at_null, np.where(o, row, rates))[0], rates[k])
        variance += spread(slope, rates[k]) / labels[k]
    expected = 2 * stats.t.sf(abs(true[0] - 0.3) / variance**0.5, 89)
    found = m.score_test_pvalue(read, prompts, list("abc"), table, "a", 0.3)
    assert found == pytest.approx(expected, rel=1e-4) and 0.001 < found < 0.9


def test_the_claims_p_counts_unsure_images_on_either_side():
    read, classes = ["a"] * 10 + ["b"] * 50 + [m.UNSURE] * 20, ["a", "b", m.UNSURE]
    z, _ = proportion.proportions_ztest(30, 80, 0.5, prop_var=0.5)  # all unsure are of a
    found = m.score_test_pvalue(read, range(80), classes, None, "a", 0.5)
    assert found == pytest.approx(2 * stats.t.cdf(z, 79))
    mirrored = m.score_test_pvalue(read, range(80), classes, None, "b", 0.5)
    z, _ = proportion.proportions_ztest(50, 80, 0.5, prop_var=0.5)  # none is of b
    assert mirrored == pytest.approx(2 * stats.t.sf(z, 79))


def test_bounds_add_the_unsures_upper_end():
    shares = {"a": e.Estimate(0.3, 0.2, 0.4, 9), "unsure": e.Estimate(0.1, 0.05, 0.25, 9)}
    assert m.bounds_over_unsure(shares, "a") == pytest.approx((0.3, 0.2, 0.65, 9))
    assert m.bounds_over_unsure({"a": shares["a"]}, "a") == shares["a"]
    many = shares | {"unsure": e.Estimate(0.6, 0.5, 0.7, 9)}
    assert m.bounds_over_unsure(many, "a").high == 1


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

    def told_apart(at):
        variance = cov[0, 0] + 2 * at * cov[0, 1] + at**2 * cov[1, 1]
        return (beta[0] + beta[1] * at) ** 2 - t**2 * variance

    middle = -beta[0] / beta[1]
    ends = optimize.brentq(told_apart, -20, middle), optimize.brentq(told_apart, middle, 60)
    assert found.half == pytest.approx((middle, *ends, 60), rel=1e-5)
    assert trends.logistic_trend([1, 2, 1, 2], [0, 1, 1, 0], "aabb") is None  # two clusters


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


def test_the_slope_takes_the_references_error_off():
    """Fuller 1987, section 1.2: cov(x, y) / (var(x) - error); without error, `np.polyfit`."""
    rng = np.random.default_rng(5)
    reference = rng.uniform(0.1, 0.9, (12, 1)) + rng.uniform(-0.05, 0.05, (12, 2))
    counts = [np.stack([rng.integers(2, 9, 4), np.full(4, 10)], axis=1) for _ in range(12)]
    hits, images = np.array([c.sum(0) for c in counts]).T
    y = np.log((hits + 0.5) / (images - hits + 0.5))
    once = np.repeat(reference[:, :1], 2, axis=1)
    x = np.log(once[:, 0] / (1 - once[:, 0]))
    found = trends.logit_slope(once, counts, draws=200)
    assert found.value == pytest.approx(np.polyfit(x, y, 1)[0]) and found.n == 12
    assert found.low < found.value < found.high
    rng, resampled = np.random.default_rng(7), []  # groups, and prompts within, written anew
    for _ in range(4000):
        chosen = rng.integers(12, size=12)
        h, n = np.array([counts[i][rng.integers(4, size=4)].sum(0) for i in chosen]).T
        resampled.append(np.polyfit(x[chosen], np.log((h + 0.5) / (n - h + 0.5)), 1)[0])
    ends = np.quantile(resampled, [0.025, 0.975])
    found = trends.logit_slope(once, counts)
    assert found[1:3] == pytest.approx(ends, abs=0.06 * (ends[1] - ends[0]))
    logits = np.log(reference / (1 - reference))
    error = np.diff(logits, axis=1).ravel() ** 2 / 4  # of the mean of two readings
    mean = logits.mean(1)
    slope = np.cov(mean, y, bias=True)[0, 1] / (mean.var() - error.mean())
    assert trends.logit_slope(reference, counts, draws=5).value == pytest.approx(slope)


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
    assert (audit.confusion.sum(1) == simulation.LABELS).all()
    assert audit.confusion / simulation.LABELS == pytest.approx(scorer, abs=0.16)
    alike = trends.intraclass_correlation(np.array(audit.true) == "a", audit.clusters)
    assert alike == pytest.approx(0.2, abs=0.04)
    assert audit.clusters.tolist() == np.repeat(range(400), 20).tolist()


def test_a_claims_power_without_error_is_the_exact_one():
    """One claim of independent images: the power of `trends.power`, whose test is the same."""
    found = simulation.claim_power(1, (60, 1), 0.0, 0.7)
    assert found == pytest.approx(trends.power(60, 0.5, 0.7), abs=0.06)
    assert simulation.claim_power(20, (60, 1), 0.0, 0.7) < found - 0.1
    assert simulation.claim_power(1, (60, 1), 0.0, 0.7, [[80, 20], [20, 80]]) < found - 0.1


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
