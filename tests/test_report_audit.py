"""The audit: what it measures, the files that it writes, and the page of notebook 11."""

import hashlib
import json
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hub_layout import tiny_pipeline
from test_probes_core import Bright

from koala_nb import probes
from koala_nb.core import catalog, files
from koala_nb.generation import run_folder
from koala_nb.models import hub, load, session
from koala_nb.models.load import ModelInfo
from koala_nb.probes import base
from koala_nb.report import audit as audits
from koala_nb.report import findings, handover, measures, render, run
from koala_nb.report import results as records
from koala_nb.report import sweep as sweeps
from koala_nb.report.measures import Section
from koala_nb.scorers import instruments
from koala_nb.stats.estimates import Estimate, estimate_row, estimates_frame

HOSTILE = '<script>alert(1)</script> | [a](http://b) *c* `d` "e" $x$\n# f'
ONE_LINE = HOSTILE.replace("\n", " ")


class Light(base.Probe):
    """A probe of one's own in a dozen lines: nothing in the report knows of it."""

    name, headline = "light", ("light.bright",)
    image_values = {"light.bright": "bright"}

    def __init__(self, reader=None):
        self.reader = reader or Bright()

    def prompts(self, domain, file=""):
        return pd.DataFrame({"id": list("abcd"), "prompt": ["a", "b", "c", "d"]})

    def scorer(self, pipe, prompts, **options):
        return self.reader

    def rows(self, table, instrument):
        yield from base.share_rows(table, "bright", "light.bright", "bright")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny") / "own"
    tiny_pipeline(folder.parent / "scratch").save_pretrained(folder, safe_serialization=True)
    pipe = load.load(str(folder), device="cpu")
    return session.wrap(pipe, seed=3, steps=1, size=64)


def test_an_interrupted_section_goes_on_where_it_stopped(tiny, tmp_path):
    probe = Light()
    first = measures.measured_section(probe, tiny, 8, tmp_path)
    assert first.n == 8 and first.images.seed.tolist() == list(range(3, 11))
    (row,) = first.estimates.to_dict("records")
    assert (row["n"], row["clusters"], row["scorer"]) == (8, 4, "brightness 1")
    assert set(first.images.measure) == {"light.bright"}
    again = measures.measured_section(probe, tiny, 8, tmp_path)
    assert probe.reader.shown == 8, "images were read a second time"
    assert again.estimates.equals(first.estimates)


def test_what_the_machine_lacks_becomes_a_sentence_and_a_mistake_does_not(tiny, tmp_path):
    class Lacking(Light):
        def scorer(self, pipe, prompts, **options):
            raise ValueError("The reader is not installed: `pip install it`.\nmore")

    section = measures.measured_section(Lacking(), tiny, 4, tmp_path)
    assert section.state == "not tested" and section.why.endswith("`pip install it`.")
    assert section.images is None and section.n == 0

    def wrong(images, prompts):
        raise ValueError("a mistake in the measurement")

    (probe := Light()).reader.score = wrong
    with pytest.raises(ValueError, match="a mistake"):
        measures.measured_section(probe, tiny, 4, tmp_path)
    with pytest.raises(ValueError, match="per probe. is 0"):
        audits.Audit(tiny, 0)


def info(name="nano-koala", **changes):
    system = catalog.find(name)
    path = catalog.data_folder() / "results" / "probe-text-nano-koala.json"
    revision = json.loads(path.read_text())["revision"]
    about = ModelInfo(system, name, revision, None, "float32", "cpu", system.domain, system.recipe)
    return replace(about, **changes)


@pytest.mark.parametrize("name", audits.reported_probes())
def test_the_stored_run_stands_beside_and_other_weights_have_none(name):
    probe = probes.get(name)
    section = measures.stored_section(probe, info())
    assert section.state == "stored" and section.best(section.stored.id[0])["is_stored"]
    assert measures.stored_section(probe, info(_revision="weights-0")).state == "not tested"
    own = info(source="a/b", system=None)
    assert measures.stored_section(probe, own).stored.empty


@pytest.mark.parametrize("name", ["text", "frequency", "safety"])
def test_the_images_of_a_measure_are_those_of_its_estimate(name):
    probe = probes.get(name)
    stored = probe.load_results("nano-koala")
    table = probe.report_table(stored.table, info())
    estimates = probe.estimates(table).set_index("id")
    for id, images in measures.images_of(probe, table).groupby("measure"):
        assert len(images) == estimates.n[id]
        assert images.value.mean() == pytest.approx(estimates.value[id], abs=1e-5)


def test_the_images_of_two_runs_pair(tmp_path):
    probe = probes.get("composition")
    frame = measures.images_of(probe, probe.load_results("nano-koala").table.head(40))
    files.save_table(frame, tmp_path / sweeps.IMAGES)
    read = sweeps.read_images(tmp_path)
    row, *_ = sweeps.differences(read, read)
    assert row["value"] == 0 and row["n"] == 40 and row["measure"].startswith("composition.")


def test_an_image_is_timed_over_batches():
    found = measures.seconds_an_image(run_folder.BatchTimes((8, 8, 8), (8.0, 16.0, 24.0)))
    assert found.value == 2 and found.n == 24
    assert found.high - 2 == pytest.approx(4.3027 / 3**0.5, rel=1e-3)  # Student's t, 2 degrees
    two = measures.seconds_an_image(run_folder.BatchTimes((8, 8), (8.0, 16.0)))
    assert two.value == 1.5 and np.isnan(two.low) and np.isnan(two.high)


def test_a_correlation_has_fishers_interval():
    stored = measures.quality(info()).stored
    methods = {", r," in e.label: e.method.split()[0] for e in stored.itertuples()}
    assert methods == {True: "Fisher's", False: "Wilson"}


def shares(n=400, *ends):
    shown = Estimate(*(ends or (0.25, 0.2, 0.3)), n)
    about = {"clusters": n, "method": "a test", "scorer": "reader 1"}
    row = estimate_row("text.exact_folded", "text read as asked", shown, **about)
    return estimates_frame([row])


CLAIM = {"id": "limitation.x", "claim": HOSTILE, "source": "s", "rule": "r", "verdict": "holds"}
CLAIM |= {"value": 0.1, "low": 0.0, "high": 0.2, "n": 9, "why": "w"}


def audit(tmp_path, **sections):
    """An audit whose sections, verdicts and images are made up for these tests."""
    name, first = "koala-lightning-700m", {"steps": 10, "guidance": 3.5, "width": 64, "height": 64}
    made = object.__new__(audits.Audit)
    session = SimpleNamespace(settings={}, seeds=range(2), loaded=None)
    about = info(name, source=f"etri-vilab/{name}", _revision="0" * 40, dtype="float16")
    prompts, records = pd.DataFrame({"id": ["a"], "prompt": [HOSTILE]}), pd.DataFrame([first])
    run = SimpleNamespace(images=[None] * 64, seconds_per_image=0.5, records=records)
    vars(made).update(session=session, n=24, compare="", labels=None, info=about, folder=tmp_path)
    vars(made).update(prompts=prompts, _sections=sections, run=run, verdicts=[CLAIM])
    return made


@pytest.fixture
def made(tmp_path, monkeypatch):
    monkeypatch.setattr(audits, "reported_probes", lambda: ("text", "safety"))
    frame = pd.DataFrame([["text", "m", "p", i, float(i)] for i in (0, 1)])
    frame.columns = measures.IMAGE_COLUMNS
    text = Section("text", shares(), n=400, file="text.csv", images=frame)
    others = {name: Section(name) for name in ("architecture", "latency", "quality")}
    return audit(tmp_path, text=text, safety=Section("safety", why=ONE_LINE), **others)


def test_good_results_are_written_whole_with_their_images_and_card(made, tmp_path):
    paths = made.save()
    assert [p.name for p in paths] == [
        *("results.json", "key_images.csv", "model_card.md", "MANIFEST.sha256")
    ]
    assert records.read(paths[0]) == made.results
    assert made.results.key_figures["text.exact_folded"].n == 400
    assert pd.read_csv(paths[1]).value.tolist() == [0, 1]


def test_a_report_stands_beside_another_by_prompt_and_seed(made, tmp_path, capsys):
    """Twelve prompts of two images: the other report reads every text, this one half of them."""
    keys = [("text", "text.exact_folded", f"p{i}", seed) for i in range(12) for seed in (0, 1)]
    images = pd.DataFrame([(*key, True) for key in keys], columns=measures.IMAGE_COLUMNS)
    made.section("text").images, other = images, tmp_path / "other"
    made.save()
    (made.folder / "other").mkdir()
    for name in ("results.json", "key_images.csv"):
        (made.folder / name).rename(other / name)
    for name in ("images", "compared", "results", "sentences"):
        vars(made).pop(name, None)
    made.section("text").images = images.assign(value=images.seed.eq(0))
    made.compare, made.session.settings = other, {"steps": 4}
    change = made.compared.changes["text.exact_folded"]
    assert (change.value, change.other, change.change, change.n) == (0.25, 0.25, -0.5, 24)
    assert change.change_low is None and change.p < 0.001  # all prompts differ alike
    differs = "1 of 1 paired figures differ after Holm's correction: text read as asked −0.50, n 24"
    assert any(differs in sentence for sentence in made.sentences)
    alike = handover.compare(made.key_figures, images, other)
    assert "no difference is tested: images that share" in handover.comparison_sentence(alike)
    made.save()
    assert records.read(tmp_path / "results.json").compared.model.system == made.info.name
    made.show("other report")
    assert "text read as asked" in (shown := capsys.readouterr().out)
    assert "differ in steps (4 here, the recipe there)." in shown
    figures = {"safety.filter.asked": made.key_figures["text.exact_folded"]}
    assert "safety.filter.asked" not in handover.compare(figures, images, other).changes


def test_a_folder_without_a_report_is_refused_before_anything_is_drawn(tiny, tmp_path):
    with pytest.raises(ValueError, match="No report to compare with in .*results.json"):
        audits.Audit(tiny, 4, compare=tmp_path)
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(ValueError, match="No report to compare with in .*schema_version"):
        audits.Audit(tiny, 4, compare=tmp_path)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("model.domain", "cartoon"),
        ("claims.0.verdict", "probably"),
        ("sections.text.estimates.0.n", 0),
        ("key_figures.text#exact_folded.value", "0.2"),
        ("sections.text.state", "invented"),
        ("surprise", 1),
        ("seconds_per_image", -1),
    ],
)
def test_bad_results_are_refused_by_the_name_of_their_field(made, path, value):
    content = made.results.to_json()
    *parents, last = path.split(".")
    part = content
    for name in parents:
        part = part[int(name)] if isinstance(part, list) else part[name.replace("#", ".")]
    part[last] = value
    with pytest.raises(ValueError, match=re.escape(path.replace("#", "."))):
        records.check(content)


def test_the_schema_in_the_repository_is_that_of_the_classes():
    file = run.ROOT / "koala_nb" / "report" / "templates" / "results.schema.json"
    assert json.loads(file.read_text()) == records.Results.model_json_schema()


def test_the_summary_follows_the_results(made):
    first, count, *others = made.sentences
    assert first.startswith("koala-lightning-700m drew 464 images")
    assert count == "3 questions: 1 high severity, 2 not tested."
    assert "We found that 25 % of the images show their text as it was asked for" in others[0]
    assert "(95 % interval 20 to 30 %, n 400 images of 400 prompts; readings, not" in others[0]
    assert "; this run)" in others[0] and others[0] in made.results.summary
    assert "\n- high severity: We found that 25 %" in render.model_card(made.results)
    assert any("1 holds" in s for s in others)
    assert any(s.startswith("Not tested: safety.") for s in others)


def test_what_decides_a_finding_stands_in_its_section(made, capsys):
    values = {"demographics": "0.35 (0.30 to 0.40)", "safety": "0.01 (0.0008 to 0.22)"}
    for name, value in values.items():
        made._sections[name] = measures.stored_section(probes.get(name), info())
        made.show(name)
        shown = capsys.readouterr().out
        assert "what decides a finding, stored run" in shown and value in shown
        assert ("readings that no labels correct" in shown) == (name == "demographics")


def test_every_instrument_shows_its_card_and_what_was_measured(made, capsys):
    made.info = info()
    made.show("instruments")
    shown = " ".join(capsys.readouterr().out.split())
    assert "1,440" in shown and "0.98 (0.97 to 0.98)" in shown, "sensitivity, all bins together"
    assert "none cited" in shown and "made for this project" in shown and "BSD-2-Clause" in shown
    made.info = info("koala-lightning-700m")
    made.show("instruments")
    shown = capsys.readouterr().out
    assert "97.3 % right on LFW" in shown and "not measured for this model" in shown
    assert instruments.CARDS["clip"]["revision"] in shown


def test_the_crosswalk_claims_nothing_that_was_not_measured(made, capsys):
    made.show("crosswalk")
    assert "Safety [not tested here]" in (shown := capsys.readouterr().out)
    assert "Text rendering [" not in shown and "authors state [" not in shown
    made.info = info()
    made.show("crosswalk")
    of = "What the authors state [of koala-lightning-700m, not of nano-koala]"
    assert of in capsys.readouterr().out


def test_a_bar_is_reached_by_the_whole_interval():
    ends = [(0.6, 0.7), (0.4, 0.45), (0.4, 0.6)]
    reached = [render._reached({"low": a, "high": b}, 0.5) for a, b in ends]
    assert reached == ["yes", "no", "undecided"]


def test_the_rules_are_known_before_and_the_evidence_after(made, tmp_path, capsys):
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.png").write_bytes(b"an image")
    made.save()
    lines = (tmp_path / "MANIFEST.sha256").read_text().splitlines()
    hashes = dict(reversed(line.split("  ")) for line in lines)
    assert hashes["text/a.png"] == hashlib.sha256(b"an image").hexdigest()
    assert {"results.json", "model_card.md", "key_images.csv"} <= set(hashes)
    assert made.results.rules == findings.rules_hash() and len(made.results.rules) == 64
    made.info, made._sections["demographics"] = info(), Section("demographics", stored=shares())
    listed = [f"{path.parent.name}/{path.name}" for path in handover.stored_files(made)]
    assert "labels/demographics_nano-koala.csv" in listed
    vars(made).pop("results", None)
    made.show("evidence")
    assert f"{len(listed)}: listed" in (shown := capsys.readouterr().out)
    assert f"{len(lines)}: sha256sum" in shown


def test_hostile_texts_are_shown_as_they_are(made, monkeypatch):
    text = render.model_card(made.results)
    assert "<script>" not in text.replace("\\<script\\>", "") and "](" not in text
    assert "\n# f" not in text and "http:" not in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert {len(line.replace("\\|", "").split("|")) for line in rows} == {7}
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda d, **how: shown.append(d["text/html"]))
    made.show("safety")
    made.claims()
    render.show_html(f"<p>{render.escape(HOSTILE)}</p>")
    assert all("<script>" not in html and "&lt;script&gt;" in html for html in shown)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A data folder whose nano-koala has random weights, with two prompts and a measurement."""
    folder = tmp_path_factory.mktemp("data")
    model = folder / "models" / "nano-koala"
    tiny_pipeline(folder / "scratch").save_pretrained(model, safe_serialization=True)
    (folder / "prompts").mkdir()
    prompts = pd.DataFrame({"id": list("ab"), "prompt": ["a koala on a blue background", ONE_LINE]})
    prompts.to_csv(folder / "prompts" / "first_look_emoji-world.csv", index=False)
    row = {"measure": "background <colour>", "small_must": 0.9, "value": 0.8125, "n": 16}
    row |= {"full_must": None, "full_goal": None, "low": 0.57, "high": 0.93, "instrument": "r"}
    measured = {"rows": [row], "revision": hub.from_folder(model).revision}
    (folder / "results").mkdir()
    (folder / "results" / "quality-nano-koala.json").write_text(json.dumps(measured))
    return folder


@pytest.fixture(scope="module")
def page(data, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KOALA_NB_DATA", str(data))
        out = tmp_path_factory.mktemp("out")
        return run.run_report("11", seeds=2, steps=2, size=64, out=out)


def test_results_hold_what_a_program_wants(page):
    results = records.read(page.parent / "results.json").to_json()
    assert results["model"]["system"] == "nano-koala" and results["banner"]
    assert results["model"]["revision"].startswith("weights-")
    settings = {"seeds": [0, 1], "steps": 2, "height": 64, "width": 64, "n": 24}
    assert results["settings"] == settings
    assert results["images"] == 4 and results["seconds_per_image"] > 0
    assert [p["prompt"] for p in results["prompts"]] == ["a koala on a blue background", ONE_LINE]
    assert len(list((page.parent / results["files"]["images"]).glob("*.png"))) == 4
    assert len(files.read_lines(page.parent / results["files"]["records"])) == 4
    assert results["sections"]["latency"]["state"] == "measured"
    assert results["key_figures"]["latency.vae.milliseconds"]["low"] > 0
    card = (page.parent / "model_card.md").read_text("utf-8")
    assert files.EMBEDDED_BANNER in card and "](" not in card and "http" not in card


def test_the_page_is_accessible_and_shows_hostile_prompts_as_text(page):
    text = page.read_text("utf-8")
    assert text.index("<h1>") < text.index(files.EMBEDDED_BANNER) < text.index("<h2")
    assert '<html lang="en">' in text and text.count("<h1") == 1
    heads = re.findall(r"<th\b[^>]*>", text)
    assert heads and all('scope="' in head for head in heads)
    images = re.findall(r"<img[^>]*>", text)
    assert len(images) >= 2 and all(re.search(r"alt=.[^\"']{20}", image) for image in images)
    assert sum("prompts x 2 seeds" in image for image in images) == 1
    assert len(re.findall("<table", text)) == len(re.findall("<caption", text))
    targets = re.findall(r'href="#([^"]+)"', text)
    assert len(targets) >= 15
    assert set(targets) == set(re.findall(r'<h2[^>]* id="([^"]+)"', text))
    assert "<script" not in text and text.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 2
    assert "background &lt;colour&gt;" in text
    assert "will learn" not in text and "import koala_nb" not in text
    assert "782,822,724" in text and "2.88 s, 6.8 GB" in text and "out of memory" in text
    assert "0.81 (0.57 to 0.93)" in text, "three decimals at n = 16"


def test_a_section_that_lacks_its_prompts_says_so_and_the_rest_goes_on(page):
    results = json.loads((page.parent / "results.json").read_text())
    for name in audits.reported_probes():
        section = results["sections"][name]
        assert section["state"] == "not tested" and "There is no file" in section["why"]
        assert any(section["why"][:20] in line for line in results["summary"])
    assert page.read_text("utf-8").count("<strong>Not tested.</strong>") == 5
