"""The files of a report: described by their schema, fit for receipts, escaped for Markdown."""

import json
from types import SimpleNamespace

import jsonschema
import pandas as pd
import pytest

from koala_nb.core import catalog
from koala_nb.models.load import ModelInfo
from koala_nb.report import receipts, view
from koala_nb.report import results as report_results
from koala_nb.report import summary as report_summary
from koala_nb.report.results import Section, check, collect, row
from koala_nb.stats.estimates import Estimate

HOSTILE = "<script>x</script> | [a](http://b) *c* `d` $e$\n# f"


def section(name="text", **more):
    shares = row("text read as asked", Estimate(0.25, 0.2, 0.3, 400), "a test", 400, "reader 1, x")
    images = pd.DataFrame(
        {"section": name, "measure": "m", "prompt": "p", "seed": [0, 1], "value": [0.0, 1.0]}
    )
    return Section(name, [shares], n=400, file="text.csv", images=images, **more)


@pytest.fixture
def results():
    system = catalog.find("koala-lightning-700m")
    about = ModelInfo(
        system, system.repository, "0" * 40, "fp16", "float16", "cuda", system.domain,
        system.recipe,
    )  # fmt: skip
    sections = {"text": section(), "safety": Section("safety", why=HOSTILE)}
    claims = [
        {"claim": HOSTILE, "source": "s", "rule": "r", "verdict": "holds", "value": 0.1,
         "low": 0.0, "high": 0.2, "n": 9, "why": "w"}
    ]  # fmt: skip
    summary = report_summary.sentences("m", "10 steps", sections, claims, 64)
    run = SimpleNamespace(images=[None] * 64, seconds_per_image=0.5)
    prompts = pd.DataFrame({"id": ["a"], "prompt": [HOSTILE]})
    found = collect(
        SimpleNamespace(model_info=about), run, prompts, {"seeds": range(2)}, 24, sections, claims,
        summary,
    )  # fmt: skip
    return found | {"environment": dict.fromkeys(receipts.NAMED, "x")}


def test_the_schema_is_one_and_describes_every_field():
    schema = json.loads(report_results.SCHEMA.read_text())
    jsonschema.Draft202012Validator.check_schema(schema)

    def bare(part, where):
        for name, own in part.get("properties", {}).items():
            known = {"description", "$ref", "const", "items", "properties"} & set(own)
            if not known and "type" not in own:
                yield f"{where}.{name}"
            yield from bare(own, f"{where}.{name}")

    assert not list(bare(schema, "$"))


def test_good_results_pass_and_are_a_receipt(results, tmp_path):
    check(results)
    (file := tmp_path / "results.json").write_text(json.dumps(results))
    assert receipts.problems(file) == []


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("model.domain", "cartoon", r"\$.model.domain"),
        ("claims.0.verdict", "probably", "probably"),
        ("sections.text.estimates.0.n", 0, "less than the minimum"),
        ("key_figures.text read as asked.value", "0.2", "key_figures"),
        ("sections.text.state", "invented", "invented"),
        ("surprise", 1, "surprise"),
        ("seconds_per_image", -1, "seconds_per_image"),
    ],
)
def test_bad_results_are_refused_and_nothing_is_written(results, tmp_path, path, value, words):
    *parents, last = path.split(".")
    part = results
    for name in parents:
        part = part[int(name)] if isinstance(part, list) else part[name]
    part[last] = value
    with pytest.raises(ValueError, match=words):
        report_results.write(results, {"text": section()}, tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_images_are_written_beside(results, tmp_path):
    paths = report_results.write(results, {"text": section()}, tmp_path)
    assert [path.name for path in paths] == ["results.json", "key_images.csv"]
    assert pd.read_csv(paths[1]).value.tolist() == [0, 1]


def test_a_number_that_json_lacks_becomes_none():
    found = row("a", Estimate(0.5, float("-inf"), float("nan"), 3), "m")
    assert (found["low"], found["high"], found["value"]) == (None, None, 0.5)


def test_the_summary_follows_the_results(results):
    (line,) = [s for s in results["summary"] if s.startswith("Text rendering")]
    assert "25.0 %" in line and "20.0 to 30.0 %" in line and "n 400" in line and "reader 1" in line
    assert "too few" not in line and results["summary"][0].startswith("m drew 464 images")
    assert any("1 holds" in s for s in results["summary"])
    assert any(s.startswith("Not tested: safety.") for s in results["summary"])
    other = section()
    other.estimates[0] |= {"value": 0.5, "high": 0.9, "n": 5, "prompts": 5}
    (_, line, *_) = report_summary.sentences("m", "r", {"text": other}, [], 1)
    assert "50.0 %" in line and "90.0 %" in line and "too few for a verdict" in line


def test_the_larger_run_is_told_and_named_as_stored():
    stored = row("text read as asked", Estimate(0.75, 0.7, 0.8, 4000), "a", 4000, "reader")
    (_, line, *_) = report_summary.sentences("m", "r", {"text": section(stored=[stored])}, [], 1)
    assert "75.0 %" in line and "a stored run of the same weights" in line


def test_markdown_shows_hostile_texts_as_they_are(results):
    text = report_summary.model_card(results)
    assert "<script>" not in text.replace("\\<script\\>", "") and "](" not in text
    assert "\n# f" not in text and "http:" not in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert {len(line.replace("\\|", "").split("|")) for line in rows} == {7}


def test_html_shows_hostile_texts_as_they_are(results):
    found = view.estimates(Section("safety", why=HOSTILE), "c").data
    found += view.summary([HOSTILE]).data + view.claims_table(results["claims"]).data
    assert "<script>" not in found and found.count("&lt;script&gt;") == 3


def test_what_all_rows_share_stands_in_the_caption():
    found = view.estimates(section(), "Text").data
    assert "Instrument: reader 1, x" in found and ">instrument<" not in found
    assert "stored run" not in found, "an empty column"
