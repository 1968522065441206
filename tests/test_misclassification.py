"""Shares behind the readings of a scorer that errs: what is corrected, and what is claimed."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from koala_nb.stats import estimates
from koala_nb.stats import misclassification as c

CLASSES = ["woman", "man", "unsure"]


def images(woman, man, unsure, prompts=10):
    read = ["woman"] * woman + ["man"] * man + ["unsure"] * unsure
    return read, [i % prompts for i in range(len(read))]


def test_confusion_counts_labels_by_row_and_readings_by_column():
    table = c.confusion(["woman", "woman", "man"], ["woman", "man", "man"], CLASSES)
    assert table.tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 0]]
    with pytest.raises(ValueError, match="'child' was not declared"):
        c.confusion(["child"], ["woman"], CLASSES)
    with pytest.raises(ValueError, match="2 labels do not fit 1"):
        c.confusion(["man", "man"], ["woman"], CLASSES)
    with pytest.raises(ValueError, match="no images"):
        c.confusion([], [], CLASSES)


def test_unsure_stays_in_the_denominator():
    found = c.uncorrected_shares(*images(30, 50, 20), CLASSES)
    assert [found[name].value for name in CLASSES] == pytest.approx([0.3, 0.5, 0.2])
    bounds = c.bounds_over_unsure(found, "woman")
    assert bounds.low == found["woman"].low and bounds.high > 0.5
    assert c.bounds_over_unsure(found, "unsure") == found["unsure"]
    with pytest.raises(ValueError, match="no share of 'cat'"):
        c.bounds_over_unsure(found, "cat")


def test_an_exact_scorer_needs_no_correction():
    read, prompts = images(30, 60, 10)
    found = c.corrected_shares(read, prompts, CLASSES, np.eye(3) * 100)
    for name, share in zip(CLASSES, (0.3, 0.6, 0.1)):
        assert found[name].value == pytest.approx(share, abs=1e-9)
        assert found[name].low < share < found[name].high and found[name].n == 100


def test_the_known_error_is_taken_back():
    table = np.array([[80, 20], [10, 90]])  # 40 % true: .4 x .8 + .6 x .1 = .38 read
    found = c.corrected_shares(*images(38, 62, 0), CLASSES[:2], table)
    assert found["woman"].value == pytest.approx(0.4)
    # No shares explain these readings; as for none of 100, read without error:
    none = c.corrected_shares(*images(0, 100, 0), CLASSES[:2], [[80, 20], [20, 80]])["woman"]
    assert none.value == 0 and none.high > 0.03


def test_prompts_that_are_alike_widen_the_interval():
    read, alike, mixed = ["woman"] * 50 + ["man"] * 50, np.arange(100) // 10, np.arange(100) % 10
    wide, thin = (
        c.corrected_shares(read, prompts, CLASSES[:2], np.eye(2) * 100)["woman"]
        for prompts in (alike, mixed)
    )
    assert wide.high - wide.low > 2 * (thin.high - thin.low)
    counts = c.effective_counts(np.repeat([0, 1], 50), alike, 2)
    assert counts.sum() < 15  # ten prompts of one group each tell as much as ten images, or less


def test_prediction_powered_equals_the_labels_mean_without_a_telling_scorer():
    labels = ["woman"] * 3 + ["man"] * 7 + [None] * 90
    found = c.prediction_powered(["man"] * 100, range(100), CLASSES[:2], labels)["woman"]
    assert found.value == pytest.approx(0.3) and found.n == 100
    with pytest.raises(ValueError, match="two or more"):
        c.prediction_powered(["man"] * 3, [0, 1, 2], CLASSES, [None, None, "man"])


def test_prediction_powered_uses_the_unlabelled_images():
    rng = np.random.default_rng(0)
    true = rng.choice(["woman", "man"], 2000, p=[0.3, 0.7])
    read = np.where(rng.random(2000) < 0.95, true, np.where(true == "man", "woman", "man"))
    labels = [name if i < 200 else None for i, name in enumerate(true)]
    found = c.prediction_powered(read, np.arange(2000), CLASSES[:2], labels)["woman"]
    plain = estimates.share_interval(int((true[:200] == "woman").sum()), 200)
    assert found.low < (true == "woman").mean() < found.high
    assert found.high - found.low < 0.65 * (plain.high - plain.low)


def test_no_error_among_few_labels_is_no_certainty():
    labels = ["woman"] * 5 + [None] * 5
    found = c.prediction_powered(["woman"] * 10, range(10), CLASSES[:2], labels)["woman"]
    assert found.value == 1 and found.low < 0.6


def test_a_claim_holds_whatever_the_unsure_are():
    table = np.eye(3) * 100
    assert c.score_test_pvalue(*images(70, 30, 0), CLASSES, table, "woman", 0.5) < 0.01
    # 40 women, 20 unsure: half may be women, so nothing is claimed.
    assert c.score_test_pvalue(*images(40, 40, 20), CLASSES, table, "woman", 0.5) > 0.5
    assert c.score_test_pvalue(*images(5, 65, 30), CLASSES, None, "woman", 0.5) < 0.05
    for bad in (("child", 0.5), ("woman", 1.0)):
        with pytest.raises(ValueError, match="is no declared group"):
            c.score_test_pvalue(*images(5, 5, 0), CLASSES, None, *bad)


def test_a_claim_and_its_mirror_agree():
    table = np.array([[90, 10], [10, 90]])
    one = c.score_test_pvalue(*images(30, 70, 0), CLASSES[:2], table, "woman", 0.4)
    other = c.score_test_pvalue(*images(30, 70, 0), CLASSES[:2], table, "man", 0.6)
    assert one == pytest.approx(other)


@given(st.lists(st.sampled_from(CLASSES), min_size=2, max_size=60), st.integers(1, 12))
def test_intervals_hold_their_value_and_stay_shares(read, prompts):
    clusters = [i % prompts for i in range(len(read))]
    table = np.array([[80, 10, 10], [5, 90, 5], [20, 20, 60]])
    labels = [name if i % 2 == 0 or i < 3 else None for i, name in enumerate(read)]
    plain = c.uncorrected_shares(read, clusters, CLASSES)
    corrected = c.corrected_shares(read, clusters, CLASSES, table)
    for found in (plain, corrected, c.prediction_powered(read, clusters, CLASSES, labels)):
        assert list(found) == CLASSES
        for each in found.values():
            assert 0 <= each.low <= each.value <= each.high <= 1 and each.n == len(read)
    assert sum(each.value for each in corrected.values()) == pytest.approx(1)
    assert 0 <= c.score_test_pvalue(read, clusters, CLASSES, table, "woman", 0.5) <= 1


@given(st.permutations(range(40)))
def test_the_order_of_images_does_not_matter(order):
    read, clusters = images(12, 20, 8)
    table = np.array([[80, 10, 10], [5, 90, 5], [20, 20, 60]])
    shares = c.corrected_shares(read, clusters, CLASSES, table)
    shuffled = [read[i] for i in order], [clusters[i] for i in order]
    again = c.corrected_shares(*shuffled, CLASSES, table)
    assert all(again[k] == pytest.approx(shares[k]) for k in CLASSES)


def test_two_classes_are_rogan_and_gladens():
    one = c.corrected_share(0.2, 400, (90, 100), (95, 100))
    assert one.value == pytest.approx((0.20 + 0.95 - 1) / (0.90 + 0.95 - 1))
    both = c.invert_confusion([80, 320], [[90, 10], [5, 95]])
    assert both[0].value == pytest.approx(one.value)
    assert both[0][1:3] == pytest.approx(one[1:3], abs=0.02)
    assert sum(found.value for found in both) == pytest.approx(1)


def test_what_is_known_of_the_scorer_sets_the_width():
    exact = c.corrected_share(0.30, 400, (10**6, 10**6), (10**6, 10**6))
    assert exact == pytest.approx(estimates.share_interval(120, 400), abs=0.004)
    sure = c.corrected_share(0.3, 400, (900, 1000), (980, 1000))
    unsure = c.corrected_share(0.3, 400, (18, 20), (49, 50))
    assert unsure.high - unsure.low > sure.high - sure.low


def test_a_scorer_that_guesses_is_refused():
    with pytest.raises(ValueError, match="no better than chance"):
        c.corrected_share(0.3, 400, (50, 100), (50, 100))
    with pytest.raises(ValueError, match="tells the classes apart"):
        c.invert_confusion([10, 10], [[5, 5], [5, 5]])
