"""The probe of open questions: which axes are open, what it claims, and what it leaves alone."""

import numpy as np
import pytest
from PIL import Image

from koala_nb.probes import base, get, open_probe
from koala_nb.scorers import clip
from studies import open_worlds

probe = get("open")
AXES = ("painted", "style_read")


def test_planted_ties_are_found_and_balanced_worlds_raise_no_claim():
    """Some worlds of the study `studies.open_worlds`; 40 allow 5 % two standard errors."""
    balanced, *others = open_worlds.cells(40, probe.images)
    assert balanced["value"] <= 0.125 and balanced["n"] == 40
    assert [cell["measure"] for cell in others] == 2 * list(open_worlds.AXES)
    assert all(cell["value"] >= 0.8 for cell in others[4:]), "at the planted strength"


def test_a_claim_has_its_share_beside_that_of_others():
    shares = {"painted": {f"s{i}": dict.fromkeys("abcde", 0.2) for i in range(20)}}
    shares["painted"]["s0"] = dict(zip("abcde", (0.8, 0.05, 0.05, 0.05, 0.05)))
    table = open_worlds.world(np.random.default_rng(1), shares, 1.0, 40)
    rows = probe.estimates(table).set_index("id")
    first = rows.loc["open.claims.thing_painted.s0.a"]
    assert first.label.startswith("“s0”: thing painted a (others ") and first.low > 0.4
    assert first.n == 40 and rows.value["open.claims"] == 0.01


def test_unsure_is_no_value_and_a_lone_subject_has_nobody_to_differ_from():
    axes = {axis: {f"s{i}": dict.fromkeys("abc", 1 / 3) for i in range(9)} for axis in AXES}
    table = open_worlds.world(np.random.default_rng(2), axes, 0.0, 40)
    unsure = table.assign(painted=np.where(table.subject == "s0", "unsure", table.painted))
    rows = probe.estimates(unsure)
    assert not rows.id.str.contains("unsure").any()
    assert (rows[rows.id.str.match(r"open\.share\.thing_painted\.s0\.[abc]$")].value == 0).all()
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
