"""Shares by double sampling: what is corrected, what is claimed, what evidence does."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from koala_nb.stats import double_sampling as d
from studies import audits

CLASSES = ("woman", "man", "unsure")


def sample(read, prompts=6, labels=None):
    return d.double_sample(read, [i % prompts for i in range(len(read))], CLASSES, labels)


def family(count=27, prompts=6, images=10, seed=0):
    """Other occupations, read without error, whose prompts differ a little."""
    rng = np.random.default_rng(seed)
    samples = []
    for share in rng.uniform(0.1, 0.9, count):
        by_prompt = rng.beta(share * 30, (1 - share) * 30, prompts)
        women = rng.random((images, prompts)) < by_prompt
        samples.append(sample(np.where(women, "woman", "man").ravel().tolist(), prompts))
    return samples


OTHERS = family()


def pvalue(first, others=OTHERS, reference=0.5):
    return d.double_sampled_pvalues([first, *others], "woman", reference)[0]


def share(first, others=OTHERS, group="woman"):
    return d.double_sampled_shares([first, *others], group)[0]


def test_the_estimate_is_tenenbeins():
    """20 of 50 read women, 4 of 5 labelled so; 1 of 5 of the others: .4 x .8 + .6 x .2."""
    read = ["woman"] * 20 + ["man"] * 30
    labels = ["woman"] * 4 + ["man"] + [None] * 15 + ["woman"] + ["man"] * 4 + [None] * 25
    found = share(sample(read, labels=labels))
    assert found.value == pytest.approx(0.44) and found.n == 50
    assert found.low < 0.3 and found.high > 0.6
    men = share(sample(read, labels=labels), group="man")
    assert men.value == pytest.approx(1 - found.value)


def test_without_labels_it_is_jeffreys_interval_of_the_readings():
    """One image a prompt counts whole; scipy's beta distribution."""
    alone = sample(["woman"] * 12 + ["man"] * 28, prompts=40)
    jeffreys = stats.beta(12.5, 28.5)
    assert share(alone)[:3] == pytest.approx((0.3, *jeffreys.ppf([0.025, 0.975])))
    p = 2 * min(jeffreys.cdf(0.4), jeffreys.sf(0.4))
    assert pvalue(alone, reference=0.4) == pytest.approx(p)


def test_where_every_image_is_labelled_the_reading_does_not_matter():
    labels = ["woman"] * 12 + ["man"] * 28
    good, bad = (sample(read, 40, labels) for read in (labels, ["man"] * 20 + ["woman"] * 20))
    for each in (good, bad):
        found, plain = share(each), stats.beta(12.5, 28.5).ppf([0.025, 0.975])
        assert found.value == pytest.approx(0.3)
        assert found[1:3] == pytest.approx(plain, abs=0.03)


def test_labels_of_other_occupations_correct_nothing():
    """A reader that takes women for men in one occupation only: its own labels say so."""
    read = ["man"] * 60
    fair = ["woman" if i % 2 else "man" for i in range(60)]
    blind = sample(read, labels=[label if i < 24 else None for i, label in enumerate(fair)])
    assert share(blind).value == pytest.approx(0.5) and pvalue(blind) > 0.5
    seeing = [sample(fair, labels=fair) for _ in range(5)]
    assert share(blind, seeing).value == pytest.approx(0.5)
    nothing_known = sample(read, labels=[None] * 60)
    assert share(nothing_known).high - share(nothing_known).low > 0.9


@pytest.mark.parametrize("design", [(6, 10), (6, 100), (10, 10), (12, 10)])
def test_total_collapse_is_claimed(design):
    prompts, images = design
    many = prompts * images
    others = family(27, prompts, 10)
    for women in range(4):
        read = ["woman"] * women + ["man"] * (many - women)
        assert 28 * pvalue(sample(read, prompts), others) < 0.001
    nobody = share(sample(["man"] * many, prompts), others)
    assert nobody.value == nobody.low == 0 and nobody.high < 0.07
    labels = ["man" if i < 16 else None for i in range(many)]
    assert 28 * pvalue(sample(["man"] * many, prompts, labels), others) < 0.01


def test_all_women_and_one_unsure():
    women = sample(["woman"] * 60)
    assert pvalue(women) == pytest.approx(pvalue(sample(["man"] * 60)), rel=0.5)
    one_unsure = sample(["man"] * 59 + ["unsure"])
    assert pvalue(sample(["man"] * 60)) <= pvalue(one_unsure) < 0.001
    assert pvalue(sample(["man"] * 35 + ["unsure"] * 25)) > 0.05, "half may be women"
    (bounds,) = d.double_sampled_bounds([sample(["man"] * 35 + ["unsure"] * 25)], "woman")
    assert bounds.value == 0 and bounds.high > 0.5


read_and_true = st.tuples(st.sampled_from(CLASSES), st.sampled_from(CLASSES), st.booleans())


@settings(max_examples=30, deadline=None)
@given(st.lists(read_and_true, min_size=12, max_size=90), st.integers(0, 89), st.integers(2, 8))
def test_more_evidence_never_weakens_a_claim(images, place, prompts):
    """One woman or unsure, as read and as labelled, becomes a man: never less sure of men."""
    place %= len(images)
    shares = []
    for who in ("woman", "unsure", "man"):
        changed = [*images[:place], (who, who, images[place][2]), *images[place + 1 :]]
        reads, truths, known = zip(*changed)
        for labels in (None, truths):  # as read; every image labelled
            each = sample(list(reads), prompts, labels)
            posterior = d._posteriors([each, *OTHERS], {"woman", "unsure"}, False)[0]
            shares.append((labels is None, 1 - posterior.below(0.5)))
    for as_read in (True, False):
        p = [value for kind, value in shares if kind == as_read]
        assert p[0] >= p[2] - 1e-9 and p[1] >= p[2] - 1e-9


def test_the_correlation_is_that_of_the_others():
    alike = [sample((["woman"] * 3 + ["man"] * 3) * 10) for _ in range(6)]  # a prompt is one group
    mixed = family(6, seed=1)
    read = ["woman"] * 20 + ["man"] * 40
    wide, thin = (share(sample(read), others) for others in (alike, mixed))
    assert wide.high - wide.low > 1.5 * (thin.high - thin.low)
    (fixed, *_) = d.double_sampled_shares([sample(read), *alike], "woman", fixed_prompts=True)
    plain = stats.beta(20.5, 40.5).ppf([0.025, 0.975])
    assert fixed[1:3] == pytest.approx(plain)


def test_a_population_alone_has_students_t():
    """Three prompts tell little of how prompts differ."""
    read = ["woman", "woman", "man"] * 20
    few = share(sample(read, 3), [])
    assert few.high - few.low > 0.5
    (single,) = d.double_sampled_shares([sample(["woman"] * 5 + ["man"] * 5, 1)], "woman")
    assert single.low < 0.5 < single.high


@given(st.permutations(range(30)))
@settings(max_examples=20, deadline=None)
def test_the_order_of_images_does_not_matter(order):
    read = ["woman"] * 9 + ["man"] * 15 + ["unsure"] * 6
    labels = [name if i % 3 == 0 else None for i, name in enumerate(read)]
    prompts = [i % 5 for i in range(30)]
    columns = [[each[i] for i in order] for each in (read, prompts, labels)]
    first = d.double_sample(read, prompts, CLASSES, labels)
    again = d.double_sample(columns[0], columns[1], CLASSES, columns[2])
    assert share(again) == pytest.approx(share(first))


@pytest.mark.parametrize("concentration", [audits.ALIKE, 9])
def test_intervals_cover_where_the_reader_errs_differently(concentration):
    """By the code as it is, beside the committed grid (`test_simulation`)."""
    rows = list(audits.coverage((10, 10, 30), 3, 0.05, concentration, audits=60, seed=5))
    covered: dict[str, list[float]] = {}
    for row in rows:
        covered.setdefault(row["interval"], []).append(row["coverage"])
    assert np.mean(covered["double-sampled"]) >= 0.93
    assert np.mean(covered["uncorrected"]) < 0.85


def test_fair_families_are_not_accused():
    found = audits.false_alarms((10, 10, 30), 2, 9, 3, families=25, seed=2)
    assert found["double-sampled"] <= 0.12 < found["uncorrected"]


def test_a_sample_without_labels_is_as_read():
    labels = ["man"] * 30 + [None] * 30
    each = sample(["woman"] * 30 + ["man"] * 30, labels=labels)
    assert each.labelled == 30 and replace(each, labels=None).labelled == 0
    assert share(each).value == 0 and share(audits.as_read(each)).value == 0.5
