"""Exact values of shares that a scorer read with errors, from second implementations."""

import numpy as np
import pytest
from scipy import optimize, stats
from statsmodels.stats import proportion
from statsmodels.stats.inter_rater import cohens_kappa

from koala_nb.stats import estimates as e
from koala_nb.stats import misclassification as m


def wilson(share, n, z):
    """statsmodels' Wilson interval of any effective number, at any quantile."""
    return proportion.proportion_confint(share * n, n, 2 * stats.norm.sf(z), "wilson")


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
