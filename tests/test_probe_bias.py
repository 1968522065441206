"""The bias probe: its prompts, estimates, verdicts and what it does without labels."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import koala_nb as kn
from koala_nb import cli
from koala_nb.display.tables import table_html
from koala_nb.probes import base, bias
from koala_nb.probes import bias_estimates as estimates
from koala_nb.probes.bias_probe import instrument_of
from koala_nb.report import findings
from koala_nb.report.run import ROOT
from koala_nb.scorers.faces import FaceReaders
from koala_nb.stats import trends

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
    parts = {*(p for s in bias.runs.values() for p in s.parts)}
    assert set(asked.part) == (parts if domain == "photographic" else parts - {"society"})
    pairs = asked[asked.part == "counterfactual"].groupby("occupation").presentation.value_counts()
    assert pairs.nunique() == 1, "as many prompts name a woman as a man"
    assert set(asked.reference.dropna()) == set(estimates.reference(domain).reference)
    society = asked[asked.part == "society"]
    assert set(society.groupby("occupation").size()) <= {20} and society.reference.isna().all()
    assert not len(society) or estimates.BASELINE in set(society.occupation)


def test_subjects_beyond_work_are_compared_with_a_person_by_template():
    """Of 20 templates x 4 seeds "criminal" is read as a man, "leader" as "person" is."""
    prompts = bias.prompts("photographic")
    prompts = prompts[(prompts.part == "society")].reset_index(drop=True)
    prompts = prompts[prompts.occupation.isin(["person", "leader", "criminal"])]
    images = prompts.loc[prompts.index.repeat(4)].assign(guidance=3.5)
    images["seed"] = np.tile(range(4), len(prompts))
    images["presentation_one"] = np.where(images.seed % 2, "woman", "man")
    criminal = images.occupation == "criminal"
    images.loc[criminal, "presentation_one"] = "man"
    images["tone_monk"] = np.where(criminal, "9", "2")
    rows = bias.estimates(images).set_index("id")
    women = rows.filter(regex=r"society\.women\.", axis=0).value
    assert women["bias.one.society.women.criminal.difference"] == -0.5
    assert women["bias.one.society.women.criminal.p"] < 0.01
    assert women["bias.one.society.women.leader.p"] == 1
    assert rows.value["bias.monk.society.darkest.criminal.difference"] == 1
    assert rows.value["bias.one.society.occupation.leader.raw"] == 0.5
    assert rows.low["bias.monk.society.darkest.criminal.difference"] < 1, "20 templates alike"


def test_the_images_that_the_notebook_names_are_those_of_the_runs():
    prompts = bias.prompts("photographic").part
    images = {n: int(prompts.isin(r.parts).sum()) * r.images for n, r in bias.runs.items()}
    del images["unspecified"]  # a part of "paired"
    text = (ROOT / "notebooks" / "09_audit_bias.ipynb").read_text("utf-8")
    for count in (sum(images.values()), images["g3.5"], images["society"]):
        assert f"{count:,}" in text


def test_a_withheld_skin_tone_is_no_share_of_none():
    images = table().assign(tone_monk="unsure")
    assert estimates.read_tones(images) == []
    estimated = bias.estimates(images, {"references": (SHARES, SHARES)})
    assert len(estimated) and not estimated.id.str.contains("tone").any()
    read = images.assign(tone_monk=np.where(images.occupation == "a", "9", "2"))
    known = {"references": (SHARES, SHARES), "labels": labelled(images).assign(monk="2")}
    rows, seen = (bias.estimates(t, known).set_index("id").value for t in (read, images))
    assert rows["bias.monk.tone.even"] == 0.3 and rows["bias.monk.tone.darkest"] > 0.3
    assert rows["bias.monk.g3_5.tone.corrected.darkest"] == 0, "every image is labelled light"
    assert seen["bias.monk.g3_5.tone.occupation.b.p"] < 0.001, "labels alone decide"


def test_a_run_without_prompts_in_a_domain_is_refused(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="runs: emoji-world has no such prompts"):
        bias.run(runs="society", images=1)


def test_raw_shares_and_verdicts():
    result = estimates.by_occupation(table(), "presentation_one", SHARES).set_index("occupation")
    assert result.loc["a", "raw"] == pytest.approx(0.2, abs=0.1)
    assert result.loc["a", "verdict"] == "more men than women are read (uncorrected)"
    assert result.loc["b", "verdict"] == "undecided"
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
    some = labelled(images).iloc[::3]
    result = estimates.by_occupation(images, "presentation_one", {}, some)
    assert result.raw.mean() < 0.75 and result.corrected.mean() == pytest.approx(0.85, abs=0.06)
    assert result.verdict.eq("more women than men").all() and set(result.labelled) == {33, 34}


def test_a_verdict_needs_evidence_and_no_more():
    few = estimates.by_occupation(table(prompts=1, images=3), "presentation_one", SHARES)
    assert few.verdict.eq("undecided").all()
    assert estimates.verdict(0.99, 0.001, True) == "more women than men"
    assert estimates.verdict(0.99, 0.06, True) == "undecided"
    collapsed = table(dict.fromkeys("abcdefgh", 0.0), prompts=6)
    result = estimates.by_occupation(collapsed, "presentation_one", {})
    assert result.verdict.eq("more men than women are read (uncorrected)").all()
    result = estimates.by_occupation(collapsed, "presentation_one", {}, labelled(collapsed))
    assert result.verdict.eq("more men than women").all()


def test_an_occupations_own_labels_decide():
    """The reader takes its men for women; in the others it does not err."""
    images = table(dict.fromkeys("abcd", 0.95))
    known = labelled(images).iloc[::3]
    known.loc[known.id.str.startswith("a"), "presentation"] = "man"
    result = estimates.by_occupation(images, "presentation_one", {}, known)
    assert result.verdict.tolist() == ["more men than women", *["more women than men"] * 3]


def test_labels_of_some_occupations_leave_the_others_open():
    images = table(dict.fromkeys("abcd", 0.95))
    known = labelled(images[images.occupation != "a"])
    result = estimates.by_occupation(images, "presentation_one", {}, known)
    assert result.verdict[0] == "undecided" and result.corrected_high[0] > 0.9
    no_unsure = estimates.by_occupation(images, "presentation_one", {}, known.head(0))
    assert no_unsure.corrected.isna().all(), "no label of these images: as read"


def test_a_plan_is_enough_only_where_the_claim_itself_has_the_power():
    assert "too few for 80 %" in estimates.plan(20, 10, 10, labels=10)
    assert ": enough." in estimates.plan(20, 20, 10)
    assert "With 4 of its images labelled" in estimates.plan(20, 2, 2)
    assert estimates.power(20, 20, 10, 40).low > estimates.power(20, 20, 10, 10).high
    assert estimates.power(20, 20, 10).value < 1, "readers differ, a tenth is unsure"


def test_unsure_stays_in_the_denominator():
    images = table({"a": 0.0})
    images.loc[images.index[::2], "presentation_one"] = "unsure"
    (row,) = estimates.by_occupation(images, "presentation_one", {}).to_dict("records")
    assert row["unsure"] == 0.5 and row["raw"] == 0 and row["bounds_high"] > 0.5
    assert row["p"] > 0.05, "all unsure images might show women"


@pytest.mark.parametrize("truth", [1.0, 1.5])
def test_a_mirror_reads_as_one_by_a_reader_that_errs(truth):
    """A reader right in .85 reads .7 of the slope; its labels give it back."""
    planted = {str(i): x for i, x in enumerate(np.linspace(0.2, 0.8, 12))}
    drawn = {k: 0.5 + truth * (x - 0.5) for k, x in planted.items()}
    held = []
    for seed in range(6):
        images = table(drawn, right=0.85, seed=seed)
        known = labelled(images).sample(frac=0.4, random_state=seed)
        corrected = estimates.by_occupation(images, "presentation_one", planted, known)
        found = estimates.slope(corrected)
        held.append((found.low <= truth <= found.high, found.value))
        as_read = estimates.by_occupation(images, "presentation_one", planted)
        assert estimates.slope(as_read).value < 0.85 * truth
    covered, values = zip(*held)
    assert sum(covered) >= 5 and np.mean(values) == pytest.approx(truth, abs=0.08)


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


def test_notebook_and_report_rest_on_the_same_instrument():
    stored = bias.load_results("nano-koala")
    images, known = estimates.neutral(stored.table, 3.5), bias.load_labels("nano-koala")
    column = estimates.most_precise(images, estimates.readings(images), known)
    chosen = findings.select(stored.estimates, bias.name, 3.5)
    ids = base.select(chosen, "bias.*.g3_5.corrected.woman").id.tolist()
    assert ids == [f"bias.{instrument_of(column)}.g3_5.corrected.woman"]


def test_without_any_interval_the_first_instrument_counts():
    frame = pd.DataFrame({"id": ["a", "b"], "low": np.nan, "high": [0.5, np.nan]})
    assert base.shortest(frame) == "a"
    assert base.shortest(frame.assign(low=[0.1, 0.2], high=[0.6, 0.5])) == "b"


def test_naming_changes_nothing_in_a_fair_model_on_average():
    """All wordings share their seeds, which lean alike; what is named is drawn."""
    rng = np.random.default_rng(0)
    names, values = {f"o{i}": 0.5 for i in range(20)}, []
    images = table(names, prompts=3, images=4).assign(part="unspecified")
    images["template"], images["seed"] = images.id.str[-1], images.seed % 4
    parts = [images]
    parts += [
        images.assign(part="counterfactual", presentation=who, presentation_one=who)
        for who in ("woman", "man")
    ]
    for _ in range(60):
        of_seed = rng.random((20, 1, 4)) < 0.5
        alike = np.where(rng.random((20, 3, 4)) < 0.7, of_seed, rng.random((20, 3, 4)) < 0.5)
        images["presentation_one"] = np.where(alike.ravel(), "woman", "man")
        values.append(estimates.intervention(pd.concat(parts), "presentation_one").value)
    error = np.std(values) / np.sqrt(len(values))
    assert abs(np.mean(values)) < 3 * error < 0.06


def test_estimates_are_json_and_find_an_intervention():
    images = table()
    paired = table({"a": 0.0, "c": 0.0}, prompts=3, images=4).assign(part="unspecified")
    paired["template"] = "t0" + paired.id.str[-1]
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
    reader, image = FaceReaders(), Image.new("RGB", (64, 64))
    (row,) = reader.score([image], [{}])
    assert reader.name == "one and two"
    assert re.fullmatch("one 1; two 1; face, HOG dlib .*; skin tone withheld", reader.version)
    assert (
        row["face_hog"] is False
        and row["tone_monk"] == "unsure"
        and row["presentation_two"] == "man"
    )
    assert "probability" not in row


def test_two_detectors_agree_as_counted():
    faces = pd.DataFrame({"id": [*"aabbccddee"], "face": [True] * 8 + [False] * 2})
    faces["face_hog"] = [True] * 6 + [False] * 4
    rows = {row["id"]: row for row in estimates.instrument_rows(faces, "b")}
    assert set(rows) == {f"b.faces.agreement.{name}" for name in ("kappa", "asymptotic", "same")}
    assert rows["b.faces.agreement.same"]["value"] == 0.8
    # Both .8, by chance .8 x .6 + .2 x .4 = .56
    assert rows["b.faces.agreement.kappa"]["value"] == pytest.approx((0.8 - 0.56) / 0.44)


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


def test_what_would_give_no_verdict_is_not_drawn_unasked(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"claimed in \d+ % of simulated audits, .* --anyway"):
        bias.run(runs="g3.5", images=1, prompts=40)
    assert not Path("runs").exists()


@pytest.mark.long
@pytest.mark.parametrize("domain", ["photographic", "emoji-world"])
def test_the_defaults_of_each_domain_can_decide(domain):
    neutral = bias.report_prompts(domain)
    sizes = neutral.groupby("occupation").size()
    power = estimates.power(len(sizes), int(sizes.min()), bias.runs["g3.5"].images)
    assert power.value >= trends.POWER
    for name in ("text", "composition", "frequency", "safety"):
        probe = kn.probes.get(name)
        assert probe.detectable(len(probe.prompts(domain)), probe.images) < 0.1


def test_the_command_prints_corrected_shares_and_leaves_each_run_its_images(monkeypatch, capsys):
    given = {}
    results = bias.results_file("nano-koala")
    monkeypatch.setattr(type(bias), "run", lambda self, **more: given.update(more) or results)
    assert cli.main(["probe", "bias", "--runs", "g1"]) == 0 and given["images"] == 0
    assert cli.main(["probe", "bias", "--images", "3"]) == 0 and given["images"] == 3
    printed = capsys.readouterr().out
    assert "woman, corrected: 0." in printed and "by clip" not in printed
    assert "Next: `koala-nb report -p model=nano-koala`" in printed
