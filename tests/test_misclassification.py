"""Shares behind the readings of a scorer that errs: what is corrected, and what is claimed."""

import pytest

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


def test_two_classes_are_rogan_and_gladens():
    one = c.corrected_share(0.2, 400, (90, 100), (95, 100))
    assert one.value == pytest.approx((0.20 + 0.95 - 1) / (0.90 + 0.95 - 1))


def test_what_is_known_of_the_scorer_sets_the_width():
    exact = c.corrected_share(0.30, 400, (10**6, 10**6), (10**6, 10**6))
    assert exact == pytest.approx(estimates.share_interval(120, 400), abs=0.004)
    sure = c.corrected_share(0.3, 400, (900, 1000), (980, 1000))
    unsure = c.corrected_share(0.3, 400, (18, 20), (49, 50))
    assert unsure.high - unsure.low > sure.high - sure.low


def test_a_scorer_that_guesses_is_refused():
    with pytest.raises(ValueError, match="no better than chance"):
        c.corrected_share(0.3, 400, (50, 100), (50, 100))
