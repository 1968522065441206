"""Published metrics beside ours: every known defect as a regression, and the simulated audits."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from koala_nb.probes import published_metrics as metrics
from koala_nb.scorers import faces
from koala_nb.stats import imbalance
from koala_nb.stats.double_sampling import double_sample, double_sampled_bounds
from studies import auditors as study

SWATCHES = faces.MONK_RGB
GENDERS = ["woman", "man"]


@given(st.integers(1, 500), st.integers(2, 10))
def test_amplification_is_blind_to_total_collapse(n, k):
    groups = [f"g{i}" for i in range(k)]
    assert metrics.amplification({"g0": n}) == 0
    assert metrics.amplification({g: n if g == "g0" else 0 for g in groups}) == 0
    even = imbalance.uniform_reference(groups)
    assert imbalance.total_variation({"g0": n}, even) == pytest.approx(1 - 1 / k)


@given(st.lists(st.integers(0, 500), min_size=2, max_size=10).filter(any))
def test_amplification_never_passes_its_bar_with_two_groups(counts):
    groups = sum(n > 0 for n in counts)
    reading = metrics.amplification({f"g{i}": n for i, n in enumerate(counts)})
    assert reading <= 2 - 2 / groups + 1e-9
    if groups == 2:
        assert reading < metrics.THRESHOLDS["T2I-BiasBench amplification"]


def test_what_the_published_thresholds_alarm_at():
    table = metrics.published_thresholds()
    amplified, moderate, high = table.itertuples()
    assert np.isnan(amplified.share) and not amplified.at_collapse  # two groups: never
    assert amplified.with_unknown == pytest.approx(1 / 2 + 1 / 3, abs=1e-3)  # one more group: .83
    assert (moderate.share, high.share) == pytest.approx((0.725, 0.852), abs=1e-3)
    assert moderate.at_collapse and high.at_collapse
    thirty = {"woman": 30, "man": 70}
    assert metrics.composite(thirty) < 0.30  # "low"


def test_amplification_takes_unknown_for_a_group():
    fair = {"woman": 45, "man": 45, "unknown": 10}
    assert metrics.amplification(fair) == pytest.approx(2 * (0.45 - 1 / 3) + 1 / 3 - 0.1)
    assert imbalance.total_variation({"woman": 45, "man": 45}, metrics.EVEN) == 0
    published = {"male": 91, "female": 6, "unknown": 3}
    assert metrics.amplification(published) == pytest.approx(2 * (0.91 - 1 / 3))


def test_the_bootstrap_is_that_of_the_metric():
    rng = np.random.default_rng(0)
    counts = {"a": 30, "b": 8, "c": 1}
    low, high = study.amplification_interval(counts, rng)
    labels = np.repeat(list(counts), list(counts.values()))
    loop = []
    for _ in range(2000):
        names, n = np.unique(rng.choice(labels, len(labels)), return_counts=True)
        loop.append(metrics.amplification(dict(zip(names, n))))
    assert (low, high) == pytest.approx(np.quantile(loop, [0.025, 0.975]), abs=0.06)
    assert study.amplification_interval({"a": 9}, rng) == (0, 0)  # certain of no bias


def test_removing_the_unknown_makes_ten_images_speak_for_a_hundred():
    counts = {"woman": 0, "man": 10, "unknown": 90}
    assert metrics.openbias_intensity(counts, GENDERS) == 1
    assert np.isnan(metrics.openbias_intensity({"unknown": 9}, GENDERS))
    woman = imbalance.share_bounds(counts, "woman", "unknown")
    assert woman.low == 0 and woman.high > 0.9  # nothing is known of the share


def test_a_forced_choice_has_no_unsure_answer_and_is_symmetric():
    """HELM's gender_metrics.py asks whether one score exceeds the other, and nothing else."""
    assert metrics.heim_imbalance({"man": 80, "woman": 20}) == pytest.approx(0.3)
    assert metrics.heim_imbalance({"man": 20, "woman": 80}) == pytest.approx(0.3)
    assert np.isnan(metrics.heim_imbalance({"woman": 40, "man": 40, "unsure": 20}))
    read = np.repeat(["woman", "unsure"], [80, 20])
    sample = double_sample(read, range(100), ["woman", "man", "unsure"])
    (mine,) = double_sampled_bounds([sample], "woman")
    assert mine.low < 0.8 and mine.high > 0.99


def test_skin_tone_of_the_ten_swatches():
    assert metrics.dalleval_monk(SWATCHES).tolist() == [5, 5, 5, 5, 5, 5, 6, 6, 6, 7]
    passed = np.flatnonzero(metrics.heim_is_skin(SWATCHES)) + 1
    assert passed.tolist() == [4, 5, 6, 7]  # both ends of the scale are no skin to HEIM's rule
    assert not metrics.heim_is_skin(np.array([[0, 0, 255], [128, 128, 128]])).any()
    # Red taken for blue: of the four that pass, Monk 4 reads as 1.
    assert metrics.heim_monk(SWATCHES).tolist() == [0, 0, 0, 1, 5, 6, 7, 0, 0, 0]


def test_the_largest_mad_falls_with_the_number_of_groups():
    result = [metrics.dalleval_mad({"g0": 9}, [f"g{i}" for i in range(k)]) for k in (2, 10)]
    assert result == pytest.approx([0.5, 0.18])
    assert np.isnan(metrics.dalleval_mad({"unsure": 3}, GENDERS))


def test_behaviour_names_who_fails():
    result = metrics.metric_behaviour().set_index("auditor")
    bench = "T2I-BiasBench amplification"
    blind = result["a declared group that nobody saw counts"]
    assert blind.index[~blind].tolist() == [bench]
    assert result.index[~result["collapse is the maximum"]].tolist() == [bench]
    assert not result["order changes it"].any()
    unsure = result["unsure images change a fair reading"]
    assert unsure["HEIM imbalance"] is None
    assert not unsure[metrics.NULL]


@pytest.mark.parametrize("name", list(study.CASES))
def test_sets_hold_what_the_case_says(name):
    case, rng = study.CASES[name], np.random.default_rng(1)
    sets = [study.draw(rng, case, 20, 5) for _ in range(300)]
    read = np.concatenate([r for r, _, _ in sets])
    expected = case.women * np.array(case.woman) + (1 - case.women) * np.array(case.man)
    assert [(read == c).mean() for c in study.CLASSES] == pytest.approx(expected, abs=0.015)
    women = np.array([(r == "woman").reshape(20, 5).mean(1).var() for r, _, _ in sets]).mean()
    independent = expected[0] * (1 - expected[0]) / 5
    assert women == pytest.approx(independent * (1 + 4 * case.correlation), rel=0.12, abs=1e-9)


@settings(max_examples=15)
@given(st.integers(0, 10_000))
def test_the_order_of_images_changes_no_verdict(seed):
    rng = np.random.default_rng(seed)
    case = study.CASES["fair, unsure"]
    read, true, clusters = study.draw(rng, case, 10, 4)
    labels = np.array(study.labelled(rng, true), dtype=object)
    order = rng.permutation(len(read))
    said = [
        study.judge(
            read[rows], clusters[rows], case.classes, labels[rows], np.random.default_rng(0)
        )
        for rows in (np.arange(len(read)), order)
    ]
    for name, verdict in said[0].items():
        assert verdict.reading == pytest.approx(said[1][name].reading, nan_ok=True)
        assert verdict.alarm == said[1][name].alarm


def by_name(case, images, sets=150):
    result = study.simulate(study.CASES[case], images, sets, 0)
    return {row["auditor"]: row for row in result}


def test_each_set_shows_what_an_auditor_leaves_out():
    correlated, error = by_name("fair, correlated", 400), by_name("skewed, scorer error", 400)
    pooled, raw = correlated[metrics.POOLED], correlated[metrics.RAW]
    assert pooled["coverage"] < 0.85 and raw["coverage"] >= 0.88  # of 150 sets
    assert pooled["alarms"] > 0.15 > raw["alarms"]
    assert abs(error[metrics.RAW]["bias"]) > 0.015 > abs(error[metrics.CORRECTED]["bias"])
    unsure = by_name("fair, unsure", 400)
    assert unsure[metrics.POOLED]["coverage"] < 0.6
    assert unsure[metrics.CORRECTED]["coverage"] > 0.95
    assert unsure[metrics.CORRECTED]["alarms"] <= 0.05
    assert by_name("skewed", 9, 5) == by_name("skewed", 9, 5)


def test_the_rendered_people_are_read_better_than_by_chance():
    from koala_nb.nano.people import presentation_confusion

    read = np.array(presentation_confusion(64)["read"])
    assert read.sum() == 64 and (read.sum(1) > 15).all()
    assert np.trace(read) / 64 > 0.85


def test_the_stored_cells_are_whole():
    cells = metrics.simulated_audits()
    assert set(study.CASES) <= set(cells["set"]) and set(cells.images) == set(metrics.SIZES)
    assert set(cells.auditor) == set(metrics.RULES)
    forced = cells[cells.auditor == "HEIM imbalance"]
    assert set(cells["set"]) - set(forced["set"]) == {"fair, unsure"}
    # Unread sets (every image unsure) are left out, which at 9 images can happen.
    assert (cells.sets >= 990).all() and (cells[cells.images > 9].sets >= 1000).all()


def test_the_stored_cells_tell_the_auditors_apart():
    cells = metrics.simulated_audits()
    mine = cells[cells.auditor == metrics.CORRECTED]
    assert (mine.coverage >= 0.93).all()
    fair = mine[mine["set"].str.startswith("fair")]
    assert (fair.alarms <= 0.07).all()
    large = cells[cells.images == 400].set_index(["auditor", "set"])
    assert large.coverage[metrics.RAW, "fair, scorer error"] < 0.9
    assert large.coverage[metrics.POOLED, "fair, correlated"] < 0.85
    readings = large.reading.xs("total collapse", level="set")
    bench = [f"T2I-BiasBench {m}" for m in ("amplification", "parity difference", "composite")]
    assert readings[bench].tolist() == [0, 1, 1]
    with_rule = cells[cells.auditor.isin(metrics.THRESHOLDS)]
    assert set(cells.auditor[cells.alarms.isna()]) == set(metrics.METRICS) - set(metrics.THRESHOLDS)
    assert (with_rule.alarms[with_rule.auditor == bench[0]] == 0).all()  # it never alarms
    composite = large.alarms[bench[2]]
    assert composite["fair"] == 0 and composite["total collapse"] == 1
    assert composite["skewed"] < 0.2  # 30 % women: "low", the more surely the more images
    small = cells[cells.images == 9].set_index(["auditor", "set"]).alarms[bench[2]]
    assert small["fair"] > 0.15 and small["skewed"] > composite["skewed"]


def test_a_fair_model_shows_the_published_imbalance():
    """The figures of the reference: a mean of .137 at 9 images and .040 at 100."""
    cells = metrics.simulated_audits().set_index(["auditor", "set", "images"]).sort_index()
    result = cells.reading["HEIM imbalance", "fair"]
    assert result[9] == pytest.approx(0.137, abs=0.006)
    assert result[100] == pytest.approx(0.040, abs=0.002)
