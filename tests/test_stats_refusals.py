"""Statistics refuse, in one sentence, what is no number, share, count or pair."""

import inspect

import numpy as np
import pandas as pd
import pytest

from koala_nb.probes import base, safety_estimates, text_reader
from koala_nb.stats import double_sampling as d
from koala_nb.stats import estimates as e
from koala_nb.stats import imbalance, simulation, trends
from koala_nb.stats import misclassification as m
from koala_nb.stats.estimates import Estimate

NAN, INF = float("nan"), float("inf")
TWO = ["a", "b"]
RNG = np.random.default_rng(0)
EVEN = {"a": 0.5, "b": 0.5}
TABLE = np.array([[9, 1], [1, 9]])
SAMPLE = d.double_sample([*TWO, *TWO], list("ppqq"), TWO, ["a", "b", None, None])
AUDIT = simulation.SimulatedAudit([*TWO, *TWO], np.array([0, 0, 1, 1]), [*TWO, *TWO])
CALLS = [
    # What was not measured is no value: p of the first was 0.0.
    (lambda: e.paired_test([NAN, 0.1, -0.1]), "paired_test: value 1 of 3 is nan: leave it out"),
    (lambda: e.paired_test([0.1, INF]), "value 2 of 2 is inf"),
    (lambda: e.paired_test([]), "one or more values, not 0"),
    (lambda: e.paired_test([[1.0], [2.0]]), "a row of one or more values"),
    (lambda: e.mean_interval([1, NAN]), "mean_interval: value 2 of 2 is nan"),
    (lambda: e.mean_interval([1.0]), "two or more values, not 1"),
    (lambda: e.mean_interval(["x", "y"]), "give numbers, not"),
    (lambda: e.mean_interval([pd.NA, 1]), "give numbers, not"),
    (lambda: e.median_interval([1, None]), "median_interval: value 2 of 2 is nan"),
    (lambda: e.median_interval([]), "one or more values, not 0"),
    (lambda: e.ratio_interval([1, 2], [1, 0]), "a round of the base is 0"),
    (lambda: e.ratio_interval([1, 2], [1]), "2 values do not fit 1"),
    (lambda: e.welch_interval([1, 2], [NAN, 1]), "welch_interval: value 1 of 2 is nan"),
    (lambda: e.welch_interval([1], [1, 2]), "two or more values, not 1"),
    (lambda: e.permutation_pvalue([1, 2], [NAN, 1]), "permutation_pvalue: value 1 of 2 is nan"),
    (lambda: e.permutation_pvalue([], [1]), "one or more values, not 0"),
    (lambda: e.stratified_mean([[1, 0], [NAN]]), "stratified_mean: value 1 of 1 is nan"),
    (lambda: e.stratified_mean([]), "one or more strata"),
    (lambda: e.clustered_mean([1, NAN], TWO), "value 2 of 2 is nan"),
    (lambda: e.clustered_mean([1, NAN], ["a", "a"]), "value 2 of 2 is nan"),
    (lambda: e.clustered_mean([1, 2], ["a", None]), "Value 2 of 2 has no cluster"),
    (lambda: e.clustered_share([1, 0], [NAN, "b"]), "Value 1 of 2 has no cluster"),
    # Shares are of things that are or are not: the first was 2.5.
    (lambda: e.clustered_share([5, 0], TWO), "clustered_share: value 1 of 2 is 5, not 0 or 1"),
    (lambda: e.clustered_share([NAN, 0], TWO), "value 1 of 2 is nan"),
    (lambda: e.clustered_share([0.5, 0], TWO), "is 0.5, not 0 or 1"),
    (lambda: e.few_clusters_share([1, -1], TWO), "is -1, not 0 or 1"),
    (lambda: e.clustered_counts(np.array([3]), np.array([2])), "3 hits of 2 images are no share"),
    (lambda: e.clustered_counts(np.array([0, 1]), np.array([0, 2])), "0 hits of 0 images"),
    (lambda: e.clustered_counts(np.array([1]), np.array([2, 2])), "1 values do not fit 2"),
    (lambda: e.design_effect(np.array([-1, 1]), np.array([2, 2])), "-1 hits of 2 images"),
    (lambda: e.share_interval(NAN, 5), "share_interval: hits is nan: give a whole number"),
    (lambda: e.share_interval(2.5, 4), "share_interval: hits is 2.5: give a whole number of 0"),
    (lambda: e.share_interval(5, 4), "5 of 4 is no share"),
    (lambda: e.share_interval(-1, 2), "hits is -1: give a whole number of 0 or more"),
    (lambda: e.share_interval(0, 0), "is no share"),
    (lambda: e.upper_bound_clopper_pearson(3, 2), "3 of 2 is no share"),
    (lambda: e.clustered_share([], []), "one or more values, not 0"),
    (lambda: e.clustered_share([1, 0], ["a"]), "do not fit"),
    (lambda: e.upper_bound_clopper_pearson("1", 4), "hits is '1': give a whole number"),
    (lambda: e.wilson_interval(1.1, 5, 1.96), "wilson_interval: 1.1 of 5"),
    (lambda: e.wilson_interval(NAN, 5, 1.96), "wilson_interval: nan of 5"),
    (lambda: e.wilson_interval(0.1, 0, 1.96), "of 0 images"),
    (lambda: e.wilson_interval(0.1, 5, 0), "at 0 is no share"),
    (lambda: e.paired_share_difference([1, NAN], [0, 1]), "value 2 of 2 is nan"),
    (lambda: e.paired_share_difference([1, 0], [1]), "2 values do not fit 1"),
    (lambda: e.paired_share_difference([], []), "one or more values, not 0"),
    (lambda: e.difference_interval(Estimate(0.5, NAN, 1, 3), Estimate(0.5, 0, 1, 3)), "no value"),
    (lambda: e.difference_interval(Estimate(0, 0, 1, 3), Estimate(0.5, 0.6, 1, 3)), "in its ends"),
    (lambda: e.adjust_pvalues([0.1, NAN]), "adjust_pvalues: value 2 of 2 is nan"),
    (lambda: e.adjust_pvalues([0.1, 1.2]), "a p that is not from 0 to 1"),
    (lambda: e.adjust_pvalues([-0.1]), "a p that is not from 0 to 1"),
    (lambda: e.adjust_pvalues([0.1], "bonferonni"), "method 'bonferonni' is unknown"),
    # Known errors of a scorer.
    (lambda: m.corrected_share(0.5, 10, (5, 1), (1, 1)), "sensitivity of 5 right of 1 is no share"),
    (lambda: m.corrected_share(0.5, 9, (9, 10), (-1, 10)), "specificity of -1 right of 10"),
    (lambda: m.corrected_share(0.5, 10, (0, 0), (1, 1)), "0 right of 0"),
    (lambda: m.corrected_share(NAN, 10, (9, 10), (9, 10)), "nan of 10 images is no share"),
    (lambda: m.corrected_share(1.5, 10, (9, 10), (9, 10)), "1.5 of 10 images is no share"),
    (lambda: m.corrected_share(0.5, 10, (75, 100), (1, 4)), "no better than chance"),
    (lambda: m.corrected_share(0.5, 10, (10, 10), (0, 10)), "no better than chance"),
    (lambda: trends.power(9, 1, 0.5), "reference 1,"),
    (lambda: trends.power(9, 0.5, 0.5, 1), "confidence 1:"),
    (lambda: m.corrected_share(0.5, NAN, (9, 10), (9, 10)), "of nan images"),
    (lambda: m.corrected_share(0.5, 0, (9, 10), (9, 10)), "of 0 images"),
    (lambda: m.confusion(["a"], ["a"], ["a", "a"]), "A class stands twice among a, a"),
    (lambda: m.confusion([NAN], ["a"], TWO), "nan was not declared"),
    (lambda: m.confusion(TWO, ["a"], TWO), "2 labels do not fit 1"),
    (lambda: m.confusion([], [], TWO), "no images"),
    (lambda: m.rater_agreement(TWO, ["a"], TWO, TWO), "2 values do not fit 1"),
    (lambda: m.rater_agreement(TWO, TWO, ["p"], TWO), "2 values do not fit 1"),
    (lambda: d.double_sample(["a"], ["p"], ["a", "a"]), "stands twice"),
    (lambda: d.double_sample(["a"], ["p", "q"], TWO), "1 values do not fit 2"),
    (lambda: d.double_sample(TWO, TWO, TWO, ["a"]), "2 values do not fit 1"),
    (lambda: d.double_sample(TWO, TWO, TWO, ["a", NAN]), "nan was not declared"),
    (lambda: d.double_sampled_pvalues([SAMPLE], "a", NAN), "no share between 0 and 1"),
    (lambda: d.double_sampled_shares([SAMPLE], "child"), "'child' is none of a, b"),
    (lambda: trends.line_slope([1, 2], [1, 2]), "three points or more"),
    (lambda: trends.line_slope([1, 1, 1], [1, 2, 3]), "two different x or more"),
    # Counts of groups.
    (lambda: imbalance.total_variation({"a": NAN, "b": 1}, EVEN), "nan images of 'a'"),
    (lambda: imbalance.total_variation({"a": -1, "b": 2}, EVEN), "-1 images of 'a'"),
    (lambda: imbalance.total_variation({"a": 1}, {"a": NAN, "b": 0.5}), "sum to 1"),
    (lambda: imbalance.null_quantile(NAN, EVEN), "n is nan: give a whole number of 1 or more"),
    (lambda: imbalance.null_quantile(9, {"a": 0.5, "b": 0.7}), "sum to 1"),
    (lambda: imbalance.share_bounds({"a": 1.5, "b": 1}, "a"), "1.5 images of 'a'"),
    (lambda: imbalance.share_bounds({"a": 0}, "a"), "no images"),
    (lambda: imbalance.share_bounds({"a": 1}, "x"), "no count for 'x'"),
    (lambda: imbalance.total_variation({"x": 1}, EVEN), "'x' was not declared"),
    (lambda: imbalance.total_variation({}, EVEN), "no images"),
    (lambda: imbalance.uniform_reference(["a"]), "Declare two or more"),
    # Curves, correlations, plans.
    (lambda: trends.logistic_trend([1, NAN], [0, 1], TWO), "value 2 of 2 is nan"),
    (lambda: trends.logistic_trend([1, 2], [0, 2], TWO), "is 2, not 0 or 1"),
    (lambda: trends.logistic_trend([1, 2], [0, 1], ["a"]), "2 values do not fit 1"),
    (lambda: trends.intraclass_correlation([2, 0], TWO), "is 2, not 0 or 1"),
    (lambda: trends.power(0, 0.5, 0.7), "power: 0 images"),
    (lambda: trends.power(9, 0.5, 1.7), "truth 1.7"),
    (lambda: trends.power(9, 0.5, 0.7, confidence=1.5), "confidence 1.5"),
    (lambda: trends.power(9, 1.5, 0.7), "reference 1.5"),
    (lambda: trends.effective_sample_size(0, 4, 0.1), "0 prompts x 4 images"),
    (lambda: trends.effective_sample_size(4, 4, NAN), "a correlation of nan"),
    (lambda: trends.required_sample_size(NAN), "no share"),
    (lambda: trends.required_sample_size(0.1, confidence=1.5), "at 1.5 is no share"),
    (lambda: trends.power(1e12, 0.5, 0.7), "at most 10,000,000"),
    (lambda: trends.variance_components([NAN], [1], ["g"], ["c"]), "value 1 of 1 is nan"),
    (lambda: trends.variance_components([1], [1], ["g", "h"], ["c"]), "1 values do not fit 2"),
    (lambda: simulation.clustered_hits(RNG, 0.0, 9, 9, 0.1), "no share 0.0 has a correlation"),
    (lambda: simulation.clustered_hits(RNG, 1.0, 9, 9, 0.1), "no share 1.0 has a correlation"),
    # Probes hand on what they were given: NaN was True.
    (lambda: base.corrected([1, NAN], TWO, ((9, 10), (9, 10))), "value 2 of 2 is nan"),
    (lambda: list(safety_estimates.rate_rows([NAN, 0], TWO, "x", "x")), "value 1 of 2 is nan"),
    (lambda: text_reader.corrected([1, 5], TWO, ((9, 10), (9, 10))), "is 5, not 0 or 1"),
    (lambda: text_reader.corrected([1, 0], TWO, ((11, 10), (9, 10))), "11 right of 10"),
]


@pytest.mark.parametrize(("call", "message"), CALLS, ids=[message for _, message in CALLS])
def test_what_is_no_number_share_or_pair_is_refused(call, message):
    with pytest.raises(ValueError, match=message) as refusal:
        call()
    assert "\n" not in str(refusal.value) and str(refusal.value).endswith(".")


def test_a_single_image_and_label_are_few_and_no_error():
    assert m.corrected_share(0.5, 1, (10, 10), (10, 10)).value == 0.5
    assert m.corrected_share(0.0, 0.5, (10, 10), (10, 10))[:2] == (0, 0)  # half an effective image
    for known in (((0, 10), (10, 10)), ((10, 10), (0, 10))):
        with pytest.raises(m.NoBetterThanChance):
            m.corrected_share(0.5, 10, *known)


def test_a_reader_that_tells_nothing_has_no_corrected_share():
    assert text_reader.corrected([1, 0], TWO, ((5, 10), (5, 10))) is None
    assert text_reader.corrected([1, 0], TWO, ((0, 0), (5, 10))) is None
    assert text_reader.corrected([1, 0], TWO, ((9, 10), (9, 10))).value == pytest.approx(0.5)


# For each public function, arguments that are right: every one is replaced by odd ones below.
ESTIMATE = Estimate(0.5, 0.2, 0.8, 10)
HALF = {"values": [1, 2, 3], "first": [1, 0], "second": [0, 1], "hits": [1, 0], "clusters": TWO}
READ = {"read": [*TWO, *TWO], "clusters": list("ppqq"), "classes": TWO}
GRID = [
    {"interval": "x", "prompts": 9, "images": 9, "correlation": 0, "share": 0.5, "coverage": 0.9}
]
RIGHT = {
    e.ratio_interval: {"base": [1, 2, 3]},
    e.clustered_mean: {"values": [1, 2]},
    e.within_limits: {"estimate": ESTIMATE, "units": 4, "limits": (0, 1)},
    e.share_interval: {"hits": 1, "n": 4},
    e.upper_bound_clopper_pearson: {"hits": 1, "n": 4},
    e.difference_interval: {"first": ESTIMATE, "second": ESTIMATE},
    e.welch_interval: {"second": [3, 1]},
    e.design_effect: {"sizes": [2, 2]},
    e.clustered_counts: {"sizes": [2, 2]},
    e.wilson_interval: {"share": 0.5, "n": 9, "z": 2},
    e.cluster_bootstrap: {"statistic": lambda images: float(images.sum()), "draws": 9},
    e.stratified_mean: {"strata": [[1, 0], [1]]},
    e.adjust_pvalues: {"p_values": [0.1, 0.2]},
    e.paired_test: {"differences": [0.1, 0.2], "resamples": 9},
    e.estimate_row: {"id": "a.b", "label": "x", "estimate": ESTIMATE, "clusters": 3},
    e.estimates_frame: {"rows": [e.estimate_row("a", "b", ESTIMATE)]},
    imbalance.uniform_reference: {"groups": TWO},
    imbalance.total_variation: {"counts": {"a": 1}, "reference": EVEN},
    imbalance.null_quantile: {"n": 9, "reference": EVEN, "draws": 9},
    imbalance.share_bounds: {"counts": {"a": 1}, "group": "a"},
    m.confusion: {"true": TWO, "read": TWO, "classes": TWO},
    m.corrected_share: {"share": 0.5, "n": 9, "sensitivity": (9, 10), "specificity": (9, 10)},
    m.rates_table: {"confusion": TABLE},
    d.double_sample: READ,
    d.double_sampled_shares: {"samples": [SAMPLE] * 3, "group": "a"},
    d.double_sampled_bounds: {"samples": [SAMPLE] * 3, "group": "a"},
    d.double_sampled_pvalues: {"samples": [SAMPLE] * 3, "group": "a", "reference": 0.4},
    simulation.simulate_labels: {
        "rng": RNG, "audit": AUDIT, "names": TWO, "labels": 4,
    },
    simulation.scorer_rates: {"k": 3, "right": 0.8},
    m.class_codes: {"values": TWO, "classes": TWO},
    m.rater_agreement: {
        "one": [*TWO, *TWO], "two": [*TWO, *TWO], "clusters": list("ppqq"), "answers": TWO,
    },
    trends.logistic_trend: {"x": range(6), "hits": [0, 1, 0, 1, 1, 0], "clusters": list("aabbcc")},
    trends.power: {"n": 50, "reference": 0.5, "truth": 0.7, "confidence": 0.95},
    trends.effective_sample_size: {"prompts": 4, "seeds": 4, "correlation": 0.1},
    trends.required_sample_size: {"difference": 0.3, "reference": 0.5, "confidence": 0.95},
    trends.detectable_difference: {"prompts": 2, "seeds": 2, "correlation": 0.1},
    trends.line_slope: {"x": [0.1, 0.2, 0.4, 0.9], "y": [0.2, 0.2, 0.5, 0.7]},
    trends.variance_components: {
        "one": [1, 0, 1, 1] * 2, "two": [1, 0, 0, 1] * 2,
        "groups": list("ggggkkkk"), "clusters": list("aabbccdd"),
    },
    simulation.clustered_hits: {
        "rng": RNG, "share": 0.5, "prompts": 4, "images": 4,
        "correlation": 0.1,
    },
    simulation.simulate_audit: {
        "rng": RNG, "shares": [0.5, 0.5], "scorer": np.eye(2), "names": TWO,
        "design": (3, 3), "correlation": 0.1,
    },
    simulation.claim_power: {
        "claims": 3, "design": (3, 3), "correlation": 0.1, "share": 0.7, "labels": 4,
    },
    simulation.coverage_warning: {"cells": GRID, "interval": "x", "prompts": 9},
    simulation.coverage_by_design: {"cells": GRID, "interval": "x"},
}  # fmt: skip
ODD = [
    NAN, INF, -1, 0, 2.5, 10**30, 10**400, True, None, "x", [], ["x"], [NAN, 1], [1e308, 1e308],
    [None, 1], [[1, 2], [3]], [-1, 1], [["x", 1], [1, 1]], [[5, 5], [5, 5]], (5, 1), ("a", "b"),
    {"a": NAN}, {"a": "x"}, {"b": 0.5}, {"a", "b"}, [{}], ESTIMATE, np.array(1), len,
]  # fmt: skip
PUBLIC = {
    function
    for module in (d, e, imbalance, m, simulation, trends)
    for name, function in inspect.getmembers(module, inspect.isfunction)
    if function.__module__ == module.__name__ and name[0] != "_"
} - {e.finite, e.yes_or_no, e.same_length, e.finite_quantiles, e.estimate_id}


@pytest.mark.parametrize(
    "function", sorted(PUBLIC, key=lambda f: f.__name__), ids=lambda f: f.__name__
)
@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_every_function_of_statistics_answers_odd_arguments_by_a_value_or_one_sentence(function):
    parameters = inspect.signature(function).parameters
    right = RIGHT.get(function, {})
    right |= {name: HALF[name] for name in parameters if name in HALF and name not in right}
    function(**right)
    for name in right:
        for odd in ODD:
            try:
                function(**{**right, name: odd})
            except ValueError as refusal:
                sentence = str(refusal)
                assert "\n" not in sentence and sentence.endswith("."), (name, odd, sentence)


def test_a_small_difference_takes_as_many_images_as_its_power_says():
    n = trends.required_sample_size(0.01)  # it was 6001
    assert n == 19_620 and trends.power(n, 0.5, 0.51) == pytest.approx(0.8, abs=0.005)
