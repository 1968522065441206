"""The composition probe: rules of atoms, detectors, estimates, calibration, resumption."""

import numpy as np
import pandas as pd
import pytest
from composition_rows import box, row
from PIL import Image

from koala_nb.probes import atoms, base, composition, get
from koala_nb.probes.composition_probe import OUTSIDE, CompositionScorer, _by_atoms
from koala_nb.scorers.detection import Detection, items_of


def test_items():
    assert items_of("1 circle [red]; 2 red apple") == [(1, "circle", "red"), (2, "red apple", None)]
    with pytest.raises(ValueError, match="1 to 4 entries"):
        items_of("a koala")


def test_relations_follow_geneval():
    swap = {"left of": "right of", "above": "below"}
    for place, expected in {
        (0.6, 0.1): {"left of"},
        (0.1, 0.6): {"above"},
        (0.6, 0.6): {"left of", "above"},
        (0.14, 0.1): set(),  # nearer than a tenth of both sides
    }.items():
        assert atoms.relations(box(0.1, 0.1), box(*place)) == expected
        assert atoms.relations(box(*place), box(0.1, 0.1)) == {swap[name] for name in expected}


def test_a_right_and_a_swapped_pair():
    asked = row("color_attr", "1 circle [red]; 1 square [blue]", relation="left of")
    places = (("circle", 0.9, box(0.1, 0.3)), ("square", 0.8, box(0.6, 0.3)))
    right, swapped = (
        [Detection(*place, color) for place, color in zip(places, colors)]
        for colors in (("red", "blue"), ("blue", "red"))
    )
    read = atoms.score_atoms(asked, right)
    assert read["all_right"] and read["correct"] and read["leak"] is False
    assert read["right"] == 5 and read["missing"] == read["extra"] == 0
    read = atoms.score_atoms(asked, swapped)
    assert read["item_1"] and not read["color_1"] and not read["correct"] and read["leak"]
    assert read["relation_right"] and read["right"] == 3


def test_counts_missing_extra_and_absent():
    three = [Detection("koala", 1, box(0.1, y)) for y in (0, 0.3, 0.6)]
    read = atoms.score_atoms(row("counting", "2 koala"), three)
    assert read["item_1"] and read["count_right"] is False and read["correct"] is False
    assert (read["missing"], read["extra"]) == (0, 1)
    asked = row("negation", "1 koala", absent="sun")
    read = atoms.score_atoms(asked, [Detection("sun", 1, box(0, 0))])
    assert read["absent_right"] is False and (read["missing"], read["extra"]) == (1, 1)
    assert read["correct"] is None, "negation is no task of GenEval"


def test_nothing_found_is_wrong_not_left_out():
    asked = row("position", "1 koala; 1 sun", relation="above", size="small", style="noto")
    read = atoms.score_atoms(asked, [])
    assert read["correct"] is False and read["right"] == 0 and read["missing"] == 2
    assert all(read[f"{name}_right"] is False for name in ("relation", "size", "style"))
    assert read["background_right"] is None


@pytest.mark.parametrize("domain", ["emoji-world", "photographic"])
def test_prompt_sets_say_how_many_atoms_they_have(domain):
    prompts = composition.prompts(domain)
    assert set(atoms.TASKS) < set(prompts.task)
    for asked in prompts.to_dict("records"):
        read = atoms.score_atoms(asked, [])
        assert sum(read[a] is not None for a in atoms.ATOMS) == asked["atoms"], asked["id"]


def test_seen_and_held_out_are_as_planted():
    from koala_nb.nano.world import load_json

    held = load_json("planted.json")["held_out"]
    pairs = {frozenset(p) for p in held["pairs"]}
    shapes = {tuple(s) for s in held["colored_shapes"]}
    for asked in composition.prompts("emoji-world").to_dict("records"):
        items = items_of(asked["asks"])
        new = any((i.color, i.label) in shapes for i in items)
        new |= len(items) == 2 and frozenset(i.label for i in items) in pairs
        assert (asked["seen"] == "no") == new or asked["seen"] == OUTSIDE, asked["id"]


def injected(share, n=150, images=4, seed=0):
    """Rendered pairs, `images` a prompt, of which a known share has one object left out."""
    from dataclasses import replace

    from koala_nb.nano.detector_card import scenes_of
    from koala_nb.nano.world import World

    rng = np.random.default_rng(seed)
    scenes = scenes_of(World(150, balanced=True), "pair", n, seed=60_000_000 + seed)
    asked = [
        row("two_object", "; ".join(f"1 {p.thing.name}" for p in s.placed))
        | {"id": str(i // images)}
        for i, s in enumerate(scenes)
    ]
    fails = rng.permutation(n) < round(share * n)
    drawn = [replace(s, placed=s.placed[:1]) if f else s for s, f in zip(scenes, fails)]
    return drawn, asked, fails.mean()


@pytest.mark.parametrize("share", [0.1, 0.3, 0.6])
def test_the_interval_covers_the_injected_failures(share, instruments):
    from koala_nb.nano.render import to_pixels

    scenes, asked, truth = injected(share, n=100, seed=int(100 * share))
    images = [Image.fromarray(p) for p in to_pixels(instruments[0].matcher.render(scenes))]
    table = pd.DataFrame(CompositionScorer(instruments[0]).score(images, asked))
    table["id"] = [a["id"] for a in asked]
    failed = table.assign(failed=~table.correct.astype(bool))
    (result,) = base.shares(failed, "failed").to_dict("records")
    assert result["low"] <= truth <= result["high"], (result, truth)
    assert result["high"] - result["low"] < 0.35


def simulated(n=40, images=4, shared=0.0, seed=0):
    """A table of two-object prompts; with `shared` both items fail together more often."""
    rng = np.random.default_rng(seed)
    rows = []
    for prompt in range(n):
        rates = rng.uniform(0.3, 0.9, 2)
        fixed = dict.fromkeys((*atoms.ATOMS, "leak", "quality", "relation")) | {"extra": 0}
        fixed |= {"id": f"p{prompt}", "task": "two_object", "atoms": 2, "asks": "1 koala; 1 apple"}
        fixed["seen"] = "yes" if prompt % 2 else "no"
        for image in range(images):
            coin = rng.random()
            draws = np.where(rng.random(2) < shared, coin, rng.random(2))
            one, two = (bool(right) for right in draws < rates)
            read = {"item_1": one, "item_2": two, "correct": one and two, "all_right": one and two}
            read |= {"seed": prompt * images + image, "missing": 2 - one - two}
            rows.append(fixed | read)
    return pd.DataFrame(rows)


def values(table):
    """The probe's estimates by id."""
    return composition.estimates(table).set_index("id")


def test_independent_and_joined_failures_are_told_apart():
    free = values(simulated(200))
    dependence = free.loc["composition.task.two_object.dependence"]
    assert dependence.low <= 0 <= dependence.high
    assert free.value["composition.task.two_object.joint"] < 0.6
    joined = values(simulated(200, shared=1.0))
    assert joined.low["composition.task.two_object.dependence"] > 0


def test_the_gap_and_the_comparison_find_what_is_there():
    one, other = simulated(60, seed=1), simulated(60, seed=1)
    worse = (other.seen == "no") & (other.index % 4 < 3)
    other.loc[worse, ["item_1", "correct", "all_right"]] = False
    gap = values(other)
    assert gap.low["composition.gap.pairs.difference"] > 0
    seen, held_out = (gap.value[f"composition.gap.pairs.{k}"] for k in ("seen", "held_out"))
    assert seen > held_out
    result = composition.compare(one, other).set_index("id")
    assert result.low["composition.compare.all_right.difference"] > 0
    assert result.value["composition.compare.all_right.p"] < 0.01
    assert result.value["composition.compare.extra.difference"] == 0
    unjudged = one.assign(correct=one.correct.where(one.index % 4 == 0))
    counted = composition.compare(unjudged, other).set_index("id").n
    judged = int(unjudged.correct.notna().sum())
    assert set(counted.filter(like=".correct.")) == {judged} and judged < len(one)
    same = composition.compare(one, one)
    assert (base.select(same, "composition.compare.*.difference").value == 0).all()
    assert (base.select(same, "composition.compare.*.p").value == 1).all()


def test_estimates_of_a_model_that_draws_nothing():
    table = simulated(12)
    table[["item_1", "item_2", "correct", "all_right"]] = False
    result = values(table)
    assert result.value["composition.geneval"] == 0
    assert "composition.trend.slope" not in result.index
    assert np.isnan(result.low["composition.gap.pairs.difference"])


def test_a_difference_counts_its_smaller_side_and_has_an_expectation():
    right = [True, True, True, False] + [False] * 10
    prompts = pd.DataFrame({"id": [f"p{i}" for i in range(14)], "atoms": [1] * 4 + [3] * 10})
    rows = _by_atoms(pd.concat([prompts.assign(all_right=right, seen="yes")] * 2))
    result = {row["id"]: row for row in rows}
    difference = result["composition.complex.difference"]
    assert (difference["n"], difference["clusters"]) == (8, 4)
    assert "smaller side" in difference["method"]
    expected = result["composition.complex.expected"]
    assert expected["value"] == pytest.approx(0.75**3 - 0.75) and np.isnan(expected["low"])


def test_a_paired_run_has_the_other_tables_prompts_and_seeds(pipe, instruments):
    prompts = composition.prompts("emoji-world").iloc[[0, 20, 120]].reset_index(drop=True)
    read = CompositionScorer(*instruments)
    table = base.measure(pipe, prompts, read, images=2, steps=2, progress=False)
    paired = composition.measure_paired(pipe, table, prompts, read, steps=2, progress=False)
    pd.testing.assert_frame_equal(paired, table)
    with pytest.raises(ValueError, match="has no"):
        composition.measure_paired(pipe, table, prompts[1:], read)


@pytest.mark.parametrize("name", ["text", "composition", "frequency"])
def test_stored_estimates_follow_from_their_table(name):
    """Of all probes with a stored run; what a reader of the notebooks sees is from these."""
    probe = get(name)
    for model in ("nano-koala", "nano-sdxl")[: 1 if name == "text" else 2]:
        stored = probe.load_results(model)
        assert stored is not None and len(stored.table) >= 400
        assert probe.load_results(model, "other weights") is None
        again = probe.estimates(stored.table, stored.instrument, stored.info["scorer"])
        pd.testing.assert_frame_equal(again, stored.estimates, atol=1e-4, check_dtype=False)
        assert set(probe.headline) <= set(again.id) and len(again) > 40
