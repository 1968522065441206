"""What a report measures: resumed, named where it lacks something, the same as the probes say."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hub_layout import tiny_pipeline

from koala_nb.core import catalog
from koala_nb.generation import run_folder
from koala_nb.models import load
from koala_nb.probes import base
from koala_nb.report import measures, model, results
from koala_nb.report import sweep as sweeps
from koala_nb.report.measures import PARTS, Part, images_of, measure_all, stored

BY_NAME = {part.name: part for part in PARTS}


class Bright:
    """Reads whether an image is brighter than a grey."""

    name, version = "brightness", "1"

    def __init__(self):
        self.read = 0

    def score(self, images, prompts):
        self.read += len(images)
        return [{"bright": bool(np.asarray(image).mean() > 127)} for image in images]


def part(reader, **changes):
    asked = pd.DataFrame({"id": list("abcd"), "prompt": ["a", "b", "c", "d"]})
    own = Part(
        "light", lambda domain: asked, None, lambda pipe, prompts: reader, lambda about: None,
        lambda table, domain: measures._share("bright", table.bright, table),
        {"bright": "bright"},
    )  # fmt: skip
    return replace(own, **changes)


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny") / "own"
    tiny_pipeline(folder.parent / "scratch").save_pretrained(folder, safe_serialization=True)
    return load.load(str(folder), device="cpu")


def test_an_interrupted_section_goes_on_where_it_stopped(pipe, tmp_path, monkeypatch):
    monkeypatch.setattr(measures, "PARTS", (part(scorer := Bright()),))
    how = {"steps": 1, "height": 64, "width": 64}
    first = measure_all(pipe, 8, tmp_path, 3, **how)["light"]
    assert first.n == 8 and first.images.seed.tolist() == list(range(3, 11))
    assert first.estimates[0]["n"] == 8 and first.estimates[0]["prompts"] == 4
    assert first.estimates[0]["instrument"] == "brightness 1"
    assert len(list((tmp_path / "light" / "images").glob("*.png"))) == 8
    again = measure_all(pipe, 8, tmp_path, 3, **how)["light"]
    assert scorer.read == 8, "images were read a second time"
    assert again.estimates == first.estimates


def test_what_the_machine_lacks_becomes_a_sentence_and_a_mistake_does_not(pipe, tmp_path):
    def lacking(pipe, prompts):
        raise ValueError("The reader is not installed: `pip install it`.\nmore")

    found = measures._measured(part(None, scorer=lacking), pipe, 4, tmp_path, 0, {})
    assert found.state == "not tested" and found.why.endswith("`pip install it`.")
    assert found.images is None and found.n == 0

    def wrong(images, prompts):
        raise ValueError("a mistake in the measurement")

    scorer = Bright()
    scorer.score = wrong
    how = {"steps": 1, "height": 64, "width": 64}
    with pytest.raises(ValueError, match="a mistake"):
        measures._measured(part(scorer), pipe, 4, tmp_path, 0, how)


def test_at_least_one_image(pipe, tmp_path):
    with pytest.raises(ValueError, match="n is 0"):
        measure_all(pipe, 0, tmp_path)


def about(**changes):
    system = catalog.find("nano-koala")
    file = results.results_file("probe-text", "nano-koala")
    revision = json.loads(file.read_text())["revision"]
    told = load.ModelInfo(
        system, "data/models/nano-koala", revision, None, "float32", "cpu", system.domain,
        system.recipe,
    )  # fmt: skip
    return replace(told, **changes)


def saved(probe):
    file = results.results_file(f"probe-{probe}", "nano-koala")
    return json.loads(file.read_text())["estimates"]


def same(estimate, told):
    return all(estimate[k] == pytest.approx(told[k], abs=1e-6) for k in ("value", "low", "high"))


def test_the_stored_run_says_what_the_probe_said():
    text = stored(BY_NAME["text"], about())
    (told,) = [row for row in saved("text") if row["id"] == "text.exact_folded"]
    assert same(text.best("text read as asked"), told) and text.state == "stored"
    frequency = stored(BY_NAME["frequency"], about())
    (told,) = [r for r in saved("frequency")["success by part"] if r["part"] == "concept"]
    assert same(frequency.best("concept drawn"), told)
    safety = stored(BY_NAME["safety"], about())
    assert same(safety.best("flagged by the checker"), saved("safety")["checker's false alarms"])
    people = stored(BY_NAME["demographics"], about())
    told = saved("demographics")["guidance 3.5"]["presentation_clip"]["beyond the reference"]
    assert same(people.best("further from even than the reference, by clip"), told)
    shares = [people.best(f"perceived presentation {a}, by clip") for a in
              ("woman", "man", "unsure")]  # fmt: skip
    assert sum(e["value"] for e in shares) == pytest.approx(1, abs=1e-5)
    single = stored(BY_NAME["composition"], about()).best("everything right, 1 atom")
    (told,) = [r for r in saved("composition")["by number of atoms"] if r["atoms"] == 1]
    assert same(single, told)


def test_other_weights_have_no_stored_run():
    for other in ({"revision": "weights-0"}, {"source": "a/b", "system": None}):
        found = stored(BY_NAME["text"], about(**other))
        assert found.stored == [] and found.file is None


def test_a_changed_recipe_has_no_stored_run(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(measures, "stored", lambda *a: asked.append(a))
    lacking = part(None, prompts=lambda domain: base.read_prompts("none.csv"))
    fake = type("Pipe", (), {"model_info": about()})()
    found = measures._measured(lacking, fake, 4, tmp_path, 0, {"steps": 3})
    assert not asked and "none.csv" in found.why


def test_the_paired_images_are_those_behind_the_key_figure():
    table = base.load_table("safety", "nano-koala").drop(columns=["shown", "shown_clip"])
    table = table[table.setting == "as it is"]
    safety = BY_NAME["safety"]
    (told,) = safety.estimates(table, "photographic")
    frame = images_of(safety, table)
    assert told["name"] == "flagged by the checker" and set(frame.measure) == {told["name"]}
    assert len(frame) == told["n"] < len(table) and frame.value.mean() == told["value"]


def test_the_images_of_two_runs_pair(tmp_path):
    table = base.load_table("demographics", "nano-koala").head(40)
    frame = images_of(BY_NAME["demographics"], table)
    assert len(frame) == 80 and set(frame.value) <= {0.0, 1.0}
    sections = {"people": results.Section("people", images=frame)}
    text = pd.concat([s.images for s in sections.values()]).to_csv(index=False)
    (tmp_path / sweeps.IMAGES).write_text(text)
    read = sweeps.read_images(tmp_path)
    (row, _) = sweeps.differences(read, read)
    assert row["value"] == 0 and row["n"] == 40 and row["measure"].endswith("by clip")


def test_an_image_is_timed_over_batches():
    found = model._an_image(run_folder.Drawn((8, 8, 8), (8.0, 16.0, 24.0)))
    assert found.value == 2 and found.n == 24
    assert found.high - 2 == pytest.approx(4.3027 / 3**0.5, rel=1e-3)  # Student's t, 2 degrees
    two = model._an_image(run_folder.Drawn((8, 8), (8.0, 16.0)))
    assert two.value == 1.5 and np.isnan(two.low) and np.isnan(two.high)


def test_a_correlation_has_fishers_interval():
    found = model.quality(type("Pipe", (), {"model_info": about()})())
    methods = {", r," in e["name"]: e["method"].split()[0] for e in found.stored}
    assert methods == {True: "Fisher's", False: "Wilson"}


def asked(atoms, right, images=2):
    """Images of prompts of so many atoms each, and whether everything is right in each image."""
    rows = [(f"p{i}", a, r, "yes") for i, (a, r) in enumerate(zip(atoms, right))] * images
    return pd.DataFrame(rows, columns=["id", "atoms", "all_right", "seen"])


def test_a_difference_counts_its_smaller_side_and_has_an_expectation():
    table = asked([1] * 4 + [3] * 10, [True, True, True, False] + [False] * 10)
    found = {e["name"]: e for e in measures._composition(table, "")}
    apart = found["complex prompts less simple ones"]
    assert (apart["n"], apart["prompts"]) == (8, 4) and "smaller side" in apart["method"]
    expected = found[f"{apart['name']}, {measures.EXPECTED}"]
    assert expected["value"] == pytest.approx(0.75**3 - 0.75) and expected["low"] is None


def test_the_images_of_a_measure_are_those_of_its_estimate():
    table = base.load_table("frequency", "nano-koala")
    (told,) = [e for e in BY_NAME["frequency"].estimates(table, "") if e["name"] == "concept drawn"]
    frame = images_of(BY_NAME["frequency"], table)
    assert len(frame) == told["n"] and frame.value.mean() == pytest.approx(told["value"], abs=1e-6)


def test_a_bounded_mean_stays_in_its_bounds_and_has_no_ends_without_spread():
    table = pd.DataFrame({"id": list("abc"), "value": [0.0, 0.0, 0.1]})
    (found,) = measures._mean("m", table.value, table)
    assert found["low"] == 0 and found["high"] < 0.2
    (alike,) = measures._mean("m", 0 * table.value, table)
    assert (alike["value"], alike["low"], alike["high"]) == (0, None, None)
