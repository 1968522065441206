"""The text probe's estimates and figures, on readings whose truth is known."""

import re

import numpy as np
import pandas as pd
import pytest

from koala_nb.probes import text_estimates, text_figures
from koala_nb.probes import text_scores as scores


def table_of(share, prompts=60, images=4, seed=0):
    """Readings whose chance of being right is share(length)."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(prompts):
        asked = "abcdefghijklmnopqrstuvwxyz"[: 1 + i % 20]
        for _ in range(images):
            read = asked if rng.random() < share(len(asked)) else ""
            factors = {"id": f"p{i}", "text": asked, "length": len(asked)}
            factors |= {"seen": "yes" if i % 2 else "no", "read": read}
            rows.append(factors | scores.scores(asked, read))
    return pd.DataFrame(rows)


def test_a_curve_finds_its_half():
    tables = [table_of(lambda n: 1 / (1 + np.exp(0.6 * (n - 9))), seed=s) for s in range(20)]
    halves = [text_estimates.trend(table).half for table in tables]
    assert sum(half.low < 9 < half.high for half in halves) >= 17
    assert all(half.high - half.low < 3 for half in halves)
    said = text_estimates.legible(tables[0])
    assert said.startswith(f"legible up to {halves[0].value:.1f} characters")


@pytest.mark.parametrize(
    ("share", "says"),
    [(lambda n: 0, "no curve.*0 of 240"), (lambda n: 1, "no curve.*240 of 240"),
     (lambda n: n <= 10, "none above 10"), (lambda n: 0.3, "does not fall reliably"),
     (lambda n: 0.3 * (n < 5), "fewer than half"),
     (lambda n: 0.98 - 0.01 * n, "half or more")],
)  # fmt: skip
def test_where_there_is_no_half_a_sentence_says_so(share, says):
    assert re.search(says, text_estimates.legible(table_of(share)))


def test_nothing_read_stays_in_every_denominator():
    table = table_of(lambda n: 0.25)
    found = text_estimates.summary(table).set_index("score")
    assert (found.n == len(table)).all()
    assert found.value["exact"] == pytest.approx((table.read != "").mean(), abs=1e-5)
    assert found.value["nothing_read"] == pytest.approx(1 - found.value["exact"], abs=1e-5)


def test_chance_is_told_from_writing():
    nothing = text_estimates.against_chance(table_of(lambda n: 0)).set_index("compared with")
    assert nothing.value["difference"] == 0
    half = table_of(lambda n: 0.5)
    found = text_estimates.against_chance(half).set_index("compared with")
    assert found.low["difference"] > 0
    gap = found.value["the text asked for"] - found.value["other texts"]
    assert found.value["difference"] == pytest.approx(gap, abs=1e-5)
    other = half.assign(read=half.text.iloc[::-1].to_numpy())  # readable, but not what was asked
    pairs = zip(other.text, other.read, strict=True)
    other["ned_folded"] = [scores.edit_similarity(asked, read) for asked, read in pairs]
    assert text_estimates.against_chance(other).value.iloc[2] < 0.05
    assert text_estimates.against_chance(half[half.text == "a"]).empty


def test_a_mean_without_spread_has_no_interval():
    found = text_estimates.summary(table_of(lambda n: 0)).set_index("score")
    assert np.isnan(found.high["word_f1"]) and found.high["exact"] > 0


def test_seen_against_new_keeps_a_width_at_zero_and_finds_a_difference():
    none = text_estimates.seen_against_new(table_of(lambda n: 0)).iloc[0]
    assert none.value == 0 and none.low < 0 < none.high and none.p_holm == 1
    table = table_of(lambda n: 0.1)
    table["exact_folded"] = table.exact_folded.astype(float)
    table.loc[table.seen == "yes", ["exact_folded", "ned_folded"]] = 1.0
    found = text_estimates.seen_against_new(table)
    assert (found.low > 0).all() and (found.p_holm < 0.01).all()
    assert text_estimates.seen_against_new(table.assign(seen=None)) is None


def test_a_reader_that_fails_on_the_font_says_nothing_about_the_model():
    table = table_of(lambda n: 0)
    found = text_estimates.corrected(
        table, {"1-2": ((20, 20), (38, 40)), "3-4": ((0, 20), (40, 40))}
    )
    assert found.letters.tolist() == ["1-2", "3-4"]
    assert found.high[0] < 0.5 and found.value[1:].isna().all()


def test_figures_draw_and_refuse_nothing():
    table = table_of(lambda n: 0.5)
    assert text_figures.curves({"a": text_estimates.by_length(table)}, "share").axes
    pairs = [{"asked": "a", "read": scores.MISSING, "count": 3}]
    pairs.append({"asked": "$", "read": chr(0x4E00), "count": 1})
    assert text_figures.confusion_map(pairs, "t").axes
    assert "a read as nothing 3 times" in text_figures.said(pairs)
    with pytest.raises(ValueError, match="no confused pair"):
        text_figures.confusion_map([], "t")
