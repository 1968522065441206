"""The bias probe: its prompts, estimates, verdicts and what it does without labels."""

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from koala_nb import cli
from koala_nb.display.tables import table_html
from koala_nb.probes import base, bias
from koala_nb.probes import bias_estimates as estimates
from koala_nb.scorers.faces import FaceReaders

SHARES = {"a": 0.2, "b": 0.5, "c": 0.8}
PREFIX = dict.fromkeys(("presentation", "tone", "descriptor"))
PREFIX |= {"guidance": 3.5, "part": "neutral", "template": "t01"}


def table(shares=SHARES, prompts=10, images=10, seed=0, guidance=3.5, right=1.0):
    """Images of occupations whose share of women is known, read by two instruments."""
    rng = np.random.default_rng(seed)
    rows = []
    for name, share in shares.items():
        for i in range(prompts * images):
            who = "woman" if rng.random() < share else "man"
            other = "man" if who == "woman" else "woman"
            row = {"occupation": name, "reference": name, "id": f"{name}-{i // images}", "seed": i}
            row |= PREFIX | {"true": who, "guidance": guidance}
            for reader in ("one", "two"):
                row[f"presentation_{reader}"] = who if rng.random() < right else other
            rows.append(row)
    return pd.DataFrame(rows)


def labelled(images):
    """Labels of all images, as a label file holds them."""
    kept = images[["guidance", "id", "seed"]].assign(presentation=images.true, tone="light")
    return kept.assign(**{"pass": 1})


@pytest.mark.parametrize("domain, occupations", [("emoji-world", 20), ("photographic", 28)])
def test_prompt_sets_are_balanced(domain, occupations):
    asked = bias.prompts(domain)
    neutral = asked[asked.part == "neutral"]
    assert neutral.occupation.nunique() == occupations
    assert set(neutral.groupby("occupation").size()) == {neutral.template.nunique()}
    assert neutral.template.nunique() >= 5
    assert neutral.presentation.isna().all() and neutral.tone.isna().all()
    words = neutral.prompt.str.lower().str.split()
    assert not words.map(lambda w: bool({"woman", "man", "female", "male"} & set(w))).any()
    assert set(asked.part) == {*(p for s in bias.runs.values() for p in s.parts)}
    pairs = asked[asked.part == "counterfactual"].groupby("occupation").presentation.value_counts()
    assert pairs.nunique() == 1, "as many prompts name a woman as a man"
    assert set(asked.reference) == set(estimates.reference(domain).reference)


def test_raw_shares_and_verdicts():
    result = estimates.by_occupation(table(), "presentation_one", SHARES).set_index("occupation")
    assert result.loc["a", "raw"] == pytest.approx(0.2, abs=0.1)
    assert result.loc["a", "verdict"] == "more men than women are read (uncorrected)"
    assert result.loc["b", "verdict"] == "not told from an even split"
    assert result.corrected.isna().all(), "nothing is corrected without labels"


def test_labels_correct_a_scorer_that_errs():
    images = table(dict.fromkeys("abcdef", 0.85), right=0.75, seed=2)
    errors = estimates.confusion(labelled(images), images, "presentation_one")
    assert errors is None, "no image is labelled unsure: that class's error is not known"
    assert estimates.confusion(None, images, "presentation_one") is None
    every = labelled(images)
    every.loc[every.index[:20], "presentation"] = "unsure"
    counts = estimates.confusion(every, images, "presentation_one")
    assert counts.sum() == len(images) and counts[2].sum() == 20
    errors = np.array([[75, 25, 0], [25, 75, 0], [0, 0, 100]])
    result = estimates.by_occupation(images, "presentation_one", {}, errors)
    assert result.raw.mean() < 0.75 and result.corrected.mean() == pytest.approx(0.85, abs=0.06)
    held = labelled(images).iloc[::5]
    told = estimates.prediction_powered_shares(images, "presentation_one", held)["woman"]
    assert told.low < images.true.eq("woman").mean() < told.high


def test_no_verdict_below_the_planned_number():
    told = estimates.verdict(0.99, 1e-9, 30, estimates.required_sample_size(20), True)
    assert told.startswith("no verdict: 30 of ")
    few = estimates.by_occupation(table(prompts=1, images=3), "presentation_one", SHARES)
    assert few.verdict.str.startswith("no verdict").all()
    assert estimates.verdict(0.99, 0.001, 500, 60, True) == "more women than men"
    assert estimates.verdict(0.99, 0.06, 500, 60, True) == "not told from an even split"


def test_no_verdict_where_an_occupations_own_labels_object():
    images = table({"a": 0.95, "c": 0.95})
    held = labelled(images)
    held.loc[images.occupation == "a", "presentation"] = "man"
    errors = np.diag([100, 100, 100])
    result = estimates.by_occupation(images, "presentation_one", {}, errors, held)
    assert result.verdict[0] == "no verdict: the two corrections disagree"
    assert result.verdict[1] == "more women than men"


def test_a_plan_is_enough_only_where_the_claim_itself_has_the_power():
    """Ten prompts of ten images are worth the floor of 60, and find .75 in less than half."""
    assert estimates.required_sample_size(1) < estimates.required_sample_size(20)
    assert "(too few for 80 %)" in estimates.plan(20, 10, 10)
    assert "(enough)" in estimates.plan(20, 40, 10)
    assert "(too few: there will be no verdict)" in estimates.plan(20, 1, 2)


def test_power_falls_with_the_readers_errors_and_with_unsure_labels():
    sure = np.array([[98, 2, 0], [2, 98, 0], [0, 1, 9]])
    errors = np.array([[90, 10, 0], [20, 80, 0], [40, 40, 20]])
    perfect, good, poor = (estimates.power(20, 20, 10, each) for each in (None, sure, errors))
    assert perfect > 0.9 > good > 0.3 > poor


def test_unsure_stays_in_the_denominator():
    images = table({"a": 0.0})
    images.loc[images.index[:50], "presentation_one"] = "unsure"
    (row,) = estimates.by_occupation(images, "presentation_one", {}).to_dict("records")
    assert row["unsure"] == 0.5 and row["raw"] == 0 and row["bounds_high"] > 0.5
    assert row["p"] > 0.05, "all unsure images might show women"


@settings(max_examples=8, deadline=None)
@given(st.floats(0.3, 2.5))
def test_slope_is_found(true):
    x = np.linspace(-1.5, 1.5, 12)
    first = {str(i): 1 / (1 + np.exp(-v)) for i, v in enumerate(x)}
    shares = {k: 1 / (1 + np.exp(-true * v)) for (k, _), v in zip(first.items(), x)}
    parts = []
    for name, share in shares.items():
        read = ["woman"] * round(400 * share) + ["man"] * round(400 * (1 - share))
        part = {"occupation": name, "reference": name, "presentation_one": read}
        parts += [pd.DataFrame(part | {"id": f"{name}-{prompt}"}) for prompt in range(2)]
    result = estimates.slope(pd.concat(parts), "presentation_one", first, draws=40)
    assert result.value == pytest.approx(true, rel=0.08)
    assert result.low <= result.value <= result.high


def test_guidance_amplification_has_the_references_side():
    sharp, flat = table({"a": 0.02, "c": 0.98}), table({"a": 0.2, "c": 0.8}, guidance=1.0)
    result = estimates.amplification(sharp, "presentation_one", SHARES, flat)
    assert result.value == pytest.approx(0.18, abs=0.07)
    assert estimates.amplification(sharp, "presentation_one", SHARES).value > 0.1


def test_components_find_the_part_of_the_scorer():
    many = {str(i): 0.5 for i in range(8)}
    agreeing = estimates.variance_components(table(many, prompts=6))
    assert agreeing["scorer"].value == 0 and agreeing["seed"].value > 0.9
    apart = estimates.variance_components(table(many, prompts=6, right=0.5))
    assert apart["scorer"].value > 0.9
    by_prompt = table(many, prompts=6)
    woman = np.where(by_prompt.id.str[-1].astype(int) % 2, "woman", "man")
    by_prompt["presentation_one"] = by_prompt["presentation_two"] = woman
    assert estimates.variance_components(by_prompt)["prompt"].value > 0.9


def test_the_best_conditioned_scorer_tells_apart():
    good, bad = np.diag([90, 90, 90]) + 5, np.full((3, 3), 30) + np.diag([1, 1, 1])
    assert estimates.best_conditioned_scorer({"bad": bad, "good": good}) == "good"
    assert estimates.best_conditioned_scorer({"first": None, "second": None}) == "first"


def test_estimates_are_json_and_find_an_intervention():
    images = table()
    paired = table({"a": 0.0, "c": 0.0}, prompts=3, images=4).assign(part="unspecified")
    named = [
        paired.assign(part="counterfactual", presentation=w, presentation_one=w, id=paired.id + w)
        for w in ("woman", "man")
    ]
    described = paired.assign(part="descriptor", descriptor="large", presentation_one="woman")
    both = pd.concat([images, paired, *named, described], ignore_index=True)
    frame = bias.estimates(both, {"references": (SHARES, SHARES)}, "one 1")
    json.dumps(base.to_jsonable(frame), allow_nan=False)
    value = frame.set_index("id").value
    assert value["bias.one.contrast.naming"] == pytest.approx(-0.5)
    assert value["bias.one.named.presentation.woman.not_named"] == 1
    assert value["bias.one.descriptor.large.difference"] == pytest.approx(1.0)
    assert value["bias.one.g3_5.occupation.a.raw"] == pytest.approx(0.2, abs=0.1)
    assert value["bias.one.presentation.woman"] == pytest.approx(0.5, abs=0.05)


def test_headlines_are_of_the_highest_guidance():
    both = pd.concat([table({"a": 0.0}), table({"a": 1.0}, guidance=1.0)], ignore_index=True)
    value = bias.estimates(both, {"references": (SHARES, SHARES)}).set_index("id").value
    assert value["bias.one.presentation.woman"] == 0
    assert value["bias.one.g1.occupation.a.raw"] == 1


def test_a_table_has_the_reference_of_its_occupations():
    first, second = estimates.references_of(pd.DataFrame({"reference": ["artist", "singer"]}))
    assert (first["artist"], second["artist"]) == (0.03, pytest.approx(0.312))
    years = estimates.references_of(pd.DataFrame({"reference": ["flight attendants"]}))
    assert [year["flight attendants"] for year in years] == pytest.approx([0.699, 0.813])
    with pytest.raises(ValueError, match="No reference holds the occupations wizard"):
        estimates.references_of(pd.DataFrame({"reference": ["wizard"]}))


def test_script_in_an_occupation_shows_as_text(monkeypatch):
    bad = "<script>alert(1)</script>"
    shares = estimates.by_occupation(table({bad: 0.5}), "presentation_one", {bad: 0.5})
    page = table_html(shares[["occupation", "raw"]], bad)
    assert "<script>" not in page and "&lt;script&gt;" in page
    shown = []
    monkeypatch.setattr("koala_nb.display.figures.show", lambda figure, alt: shown.append(alt))
    bias.show_shares({"g": shares})
    assert bad in shown[0]


def test_readers_are_merged_and_a_missing_tone_is_unsure(monkeypatch):
    class One:
        name, version = "one", "1"

        def score(self, images, prompts):
            return [{"face": False, "presentation_one": "unsure", "monk": None}] * len(images)

    class Two(One):
        name = "two"

        def score(self, images, prompts):
            return [{"presentation_two": "man", "probability": 0.9}] * len(images)

    monkeypatch.setattr("koala_nb.scorers.faces.ClipReader", lambda source: One())
    monkeypatch.setattr("koala_nb.scorers.faces.AgeGenderReader", Two)
    reader = FaceReaders()
    (row,) = reader.score([None], [{}])
    assert (reader.name, reader.version) == ("one and two", "one 1; two 1; skin tone withheld")
    assert row["tone_monk"] == "unsure" and row["presentation_two"] == "man"
    assert "probability" not in row


def test_unknown_run_is_named():
    with pytest.raises(ValueError, match="runs: 'neutral' is none of"):
        bias.run(runs="neutral")


@pytest.mark.skipif(
    bias.load_results("nano-koala") is None, reason="the embedded family's large run is absent"
)
def test_other_weights_of_the_same_name_have_no_stored_run():
    stored = bias.load_results("nano-koala")
    same = bias.load_results("nano-koala", stored.info["revision"])
    assert len(same.table) == len(stored.table) and len(same.estimates)
    assert len(bias.load_labels("nano-koala", stored.info["revision"]))
    assert bias.load_results("nano-koala", "weights-0") is None
    assert bias.load_labels("nano-koala", "weights-0") is None


def test_the_command_leaves_each_run_its_own_number_of_images(monkeypatch, tmp_path):
    given = {}
    monkeypatch.setattr(type(bias), "run", lambda self, **options: given.update(options))
    assert cli.main(["probe", "bias", "--runs", "g1"]) == 0 and given["images"] == 0
    assert cli.main(["probe", "bias", "--images", "3"]) == 0 and given["images"] == 3
