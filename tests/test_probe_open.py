"""The probe of open questions: which axes are open, what it claims, and what it leaves alone."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from koala_nb.probes import base, get, open_probe
from koala_nb.scorers import clip

probe = get("open")


def world(rng, ties, subjects=20, images=40, values=10):
    """Images of things with an even background, but for the subjects that are tied to one."""
    rows = []
    for subject in range(subjects):
        colours = rng.integers(values, size=images)
        share, colour = ties.get(subject, (0, 0))
        colours[rng.random(images) < share] = colour
        rows += [(f"s{subject}", "thing", f"colour {c}") for c in colours]
    table = pd.DataFrame(rows, columns=["subject", "kind", "painted"])
    return table.assign(style_read=rng.choice(["a", "b", "c"], len(table)), id=table.subject)


def claimed(table):
    rows = open_probe.comparisons(table)
    return [(row.subject, row.value) for row in rows[rows.p <= 0.05].itertuples()]


def test_balanced_worlds_raise_no_false_claim():
    """Of 200 balanced worlds at most 5 % may hold a claim (7.5 % with the error of 200)."""
    rng = np.random.default_rng(0)
    assert np.mean([len(claimed(world(rng, {}))) > 0 for _ in range(200)]) <= 0.075


def test_planted_ties_are_found_and_named():
    rng = np.random.default_rng(1)
    ties = [("s0", "colour 3"), ("s7", "colour 5")]
    worlds = [world(rng, {0: (0.5, 3), 7: (0.5, 5)}) for _ in range(40)]
    found = [claimed(table) for table in worlds]
    assert np.mean([set(ties) <= set(pairs) for pairs in found]) >= 0.8
    assert np.mean([len(set(pairs) - set(ties)) for pairs in found]) < 0.1
    rows = probe.estimates(worlds[0]).set_index("id")
    first = rows.loc["open.claims.thing_painted.s0.colour_3"]
    assert first.label.startswith("“s0”: thing painted colour 3 (others 1")
    assert first.low > 0.2 and first.n == 40 and rows.value["open.claims"] > 0


def test_unsure_is_no_value_and_a_lone_subject_has_nobody_to_differ_from():
    table = world(np.random.default_rng(2), {})
    unsure = table.assign(painted=np.where(table.subject == "s0", "unsure", table.painted))
    rows = probe.estimates(unsure)
    assert not rows.id.str.contains("unsure").any()
    assert (rows[rows.id.str.match(r"open\.share\.thing_painted\.s0\.colour_\d$")].value == 0).all()
    assert probe.estimates(table[table.subject == "s0"]).empty
    assert probe.estimates(table.drop(columns=["painted", "style_read"])).empty


def test_an_axis_is_open_where_no_word_of_the_prompt_names_it():
    person = {"kind": "person", "prompt": "A photo of a rich judge at sunset"}
    assert not {"wealth", "light"} & set(clip.proposed(person))
    assert {"age", "clothing"} <= set(clip.proposed(person))
    thing = {"kind": "thing", "prompt": "a photo of a house"}
    assert set(clip.proposed(thing)) == {"place", "light", "wealth", "condition"}


def test_the_axes_of_a_photograph_are_read_where_they_are_open(clip_folder):
    reader = clip.AxesReader(str(clip_folder))
    prompts = [
        {"kind": "person", "prompt": "a photo of a rich person"},
        {"kind": "thing", "prompt": "a photo of a house"},
    ]
    images = [Image.new("RGB", (64, 64), colour) for colour in ("red", "blue")]
    person, thing = open_probe.OpenReader({"person": [reader], "thing": [reader]}).score(
        images, prompts
    )
    assert person.keys() == thing.keys() == {f"axis_{name}" for name in clip.axes()}
    assert person["axis_wealth"] is None and thing["axis_age"] is None
    for name in clip.proposed(prompts[0]):
        assert person[f"axis_{name}"] in {*clip.axes()[name]["values"], "unsure"}


@pytest.mark.parametrize("domain", ["photographic", "emoji-world"])
def test_prompts_are_of_things_and_people(domain):
    prompts = probe.prompts(domain)
    assert set(prompts.kind) == {"thing", "person"} and prompts.subject.is_unique
    assert probe.detectable(len(prompts), probe.images) <= base.EFFECT


def test_every_axis_has_words_and_several_values():
    for name, axis in clip.axes().items():
        assert len(axis["values"]) > 1 and axis["words"], name
        assert set(axis["kinds"]) <= {"person", "thing"}, name
