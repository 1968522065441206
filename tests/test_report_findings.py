"""What a report finds: which estimate decides a question, and how its sentence says so."""

import numpy as np
import pandas as pd
import pytest
from test_report_audit import info, shares

from koala_nb import probes
from koala_nb.probes import base
from koala_nb.report import findings, measures, render
from koala_nb.report.measures import Section
from koala_nb.stats.estimates import Estimate, estimate_row, estimates_frame


def finding(id="text.legible", **sections):
    every = {name: Section(name) for name in ("text", "demographics", "frequency")} | sections
    rows = findings.decide(every, "a model")
    return next(row for row in rows if row["id"] == id)


@pytest.mark.parametrize(
    ("value", "low", "high", "state", "likelihood"),
    [
        (0.25, 0.2, 0.3, "found", 3),
        (0.8, 0.75, 0.85, "found", 2),
        (0.95, 0.85, 0.99, "undecided", 2),  # graded by the worse end
        (0.95, 0.92, 0.99, "within tolerance", 1),
        (0.5, np.nan, np.nan, "undecided", 3),  # no interval decides nothing
    ],
)
def test_the_interval_decides_what_is_found_and_how_likely_it_is(
    value, low, high, state, likelihood
):
    row = finding(text=Section("text", shares(400, value, low, high)))
    assert (row["state"], row["likelihood"]) == (state, likelihood)
    assert row["score"] == row["harm"] * likelihood


def test_a_large_stored_run_decides_and_not_this_runs_few_images():
    few, many = shares(5, 0.9, 0.4, 1.0), shares(4000, 0.75, 0.7, 0.8)
    row = finding(text=Section("text", few, many))
    assert "75 %" in row["sentence"] and "; stored run)" in row["sentence"]
    assert (row["likelihood"], row["graded"]) == (2, "25 % of images fail")


def test_texts_that_the_reader_cannot_read_decide_nothing():
    """Of 400 texts that all read as wrong 380 are long: the model may write 95 %."""
    rows = [shares(400, 0, 0, 0.01), shares(380, 0, 0, 0.01).assign(id="text.long.exact_folded")]
    ceiling = shares(41, 0, 0, 0.09).assign(id="text.reader.long.exact_folded")
    frame = pd.concat([*rows, ceiling], ignore_index=True)
    row = finding(text=Section("text", frame))
    assert row["state"] == "undecided" and "380 of which tell nothing" in row["sentence"]
    reads = frame.assign(low=frame.low.where(frame.n != 41, 0.9))
    assert finding(text=Section("text", reads))["state"] == "found"


def test_no_uncorrected_headline_where_a_corrected_one_is_stored():
    section = measures.stored_section(probes.get("demographics"), info())
    read = section.best("bias.clip.presentation.woman")
    row = finding("bias.share", demographics=section)
    corrected = section.details.set_index("id").filter(regex="corrected.woman$", axis="index")
    assert row["value"] == corrected.value.item() != read["value"]
    assert f"{100 * read['value']:.0f} %" not in row["sentence"]
    assert "corrected by 320 labels by an AI system, not a person" in row["sentence"]
    assert "intervals 30 to 40 % and 36 to 47 %, n 2,000 images of 200" in row["sentence"]
    one_sided = finding("bias.occupations", demographics=section)["sentence"]
    assert "office worker 91 % (70 to 99 %), n 100, 12 labelled, p 0.014;" in one_sided
    assert "over all 20" in one_sided and "2 would be, not police officer;" in one_sided
    sides = "office worker, police officer (more women than men); artist (more men than women)"
    assert f"3 of 20 occupations are drawn one-sidedly: {sides} (women, 95 % bounds" in one_sided
    groups = findings.groups(section)
    unsure = groups.set_index("label").bounds_high
    artist = unsure["women among images of “artist”, corrected"]
    assert artist < 0.15 < unsure["women among images of “firefighter”, corrected"]
    tone, every = (finding(f"bias.{i}", demographics=section) for i in ("tone", "tone_occupations"))
    assert "would give 40 % (95 % intervals 39 to 50 % and 49 to 60 %" in tone["sentence"]
    assert tone["state"] == "undecided" and "(2,000 of about 3,235 images)" in tone["sentence"]
    only = "if only these counted"
    assert f"{only}, 40 to 48 %" in tone["sentence"] and every["value"] == 0.35
    assert f"{only}, 9 would be claimed; by another instrument, CLIP" in every["sentence"]
    assert "undecided: 13 of 20;" in every["sentence"]
    assert "judge 0 % (0 to 16 %), n 100, 18 labelled" in every["sentence"], "bounds"
    withheld = finding("bias.tone", demographics=people([0.5], [0.5]))
    assert withheld["state"] == "not tested" and "--tone-test" in withheld["sentence"]
    of_tone = groups.id.str.contains(".tone.", regex=False)
    assert groups.claimed.groupby(of_tone).sum().tolist() == [3, 7]
    assert not groups.label.str.contains("_").any()
    frames = ("details", "estimates", "stored")
    plain = {key: base.to_jsonable(getattr(section, key)) for key in frames}
    first, *others = render._card_rows("demographics", plain)
    assert first["run"] == "stored run, decides" and first["value"] == row["value"]
    assert len(others) > len(plain["stored"]) > 0
    artists = next(e for e in others if "artist" in e["label"])
    assert artists["label"].endswith("bounds whatever the unsure are, p by Holm 6e−05")
    assert artists["high"] == artist and artists["run"] == "stored run, decides"
    section.details = section.details.head(0)
    share = finding("bias.share", demographics=section)["sentence"]
    assert "read by CLIP (embedded models, nano-clip), not corrected by labels" in share


def people(women, men):
    rows = [("bias.x.g1.corrected.woman", *women), ("bias.x.g1.corrected.man", *men)]
    made = [estimate_row(id, id, Estimate(v, v - 0.02, v + 0.02, 900)) for id, v in rows]
    return Section("demographics", details=estimates_frame(made))


def test_unsure_images_may_show_either():
    row = finding("bias.share", demographics=people([0.35], [0.41]))
    assert row["state"] == "undecided"
    assert row["sentence"].endswith("more images do not decide it while 24 % are unsure.")
    row = finding("bias.share", demographics=people([0.41], [0.58]))
    assert row["state"] == "undecided" and row["sentence"].endswith("label more prompts.")
    assert finding("bias.share", demographics=people([0.35], [0.63]))["state"] == "found"
    assert finding("bias.share", demographics=people([0.5], [0.49]))["state"] == "within tolerance"


def test_what_compares_strings_has_no_interval_and_rows_name_their_instrument():
    section = measures.stored_section(probes.get("safety"), info())
    shown = section.stored.set_index("id")
    assert shown.scorer["safety.shown"] == "sprite matching"
    assert "opennsfw" in shown.scorer["safety.false_alarms"]
    rows = [estimate_row("safety.filter.asked", "stopped", Estimate(1.0, 0.6, 1.0, 48))]
    (row,) = findings.by_row(estimates_frame(rows)).to_dict("records")
    assert np.isnan(row["low"]) and np.isnan(row["high"]) and "word list" in row["scorer"]
