"""What `koala-nb evaluate` computes, and that the committed results fit the committed weights."""

import json

import pytest

pytest.importorskip("koala_nb.nano", reason="the embedded family is not installed")

from koala_nb.core import catalog
from koala_nb.models import hub
from koala_nb.nano import cards, evaluation
from koala_nb.nano.world import World

MODELS = catalog.data_folder() / "models"
RESULTS = sorted((catalog.data_folder() / "results").glob("quality-*.json"))


@pytest.fixture(scope="module")
def world():
    return World(150)


def reading(scene, world, **changes):
    """What a perfect instrument would read in a scene."""
    things = [placed.thing for placed in scene.placed]
    seen = {
        "things": [evaluation.thing_text(t) for t in things],
        "background": scene.background,
        "style": scene.style,
        "presentation": things[0].presentation,
        "tone": world.tones.index(things[0].tone) if things[0].tone else 0,
    }
    return {**seen, **changes}


def test_wilson_interval_of_the_published_audit():
    """91 of 100 is 83.8 to 95.2 % (the doctor counts of arXiv 2604.12481)."""
    row = evaluation.row("object, at training frequency", [True] * 91 + [False] * 9, "x")
    assert (row["value"], row["n"]) == (0.91, 100)
    assert (round(row["low"], 3), round(row["high"], 3)) == (0.838, 0.952)
    assert (row["small_must"], row["full_must"], row["full_goal"]) == (0.35, 0.70, 0.90)


def test_a_perfect_reading_hits_everywhere(world):
    for kind in ("object", "person", "pair"):
        scenes = evaluation.held_out(world, kind, 40)
        hits = evaluation.compare(scenes, [reading(s, world) for s in scenes], world)
        assert hits and all(all(values) for values in hits.values())


def test_only_what_a_caption_names_counts(world):
    scenes = evaluation.held_out(world, "person", 200)
    hits = evaluation.compare(scenes, [reading(s, world) for s in scenes], world)
    named = sum("presentation" in s.named for s in scenes)
    assert 0 < named < 200
    assert len(hits["presentation, when named"]) == named


def test_unsure_never_hits_and_tones_hit_within_one_step(world):
    scenes = evaluation.held_out(world, "person", 100)
    unsure = [reading(s, world, presentation="unsure") for s in scenes]
    assert not any(evaluation.compare(scenes, unsure, world)["presentation, when named"])
    for step, expected in ((1, True), (2, False)):
        seen = [reading(s, world) for s in scenes]
        for one in seen:
            one["tone"] += step
        hits = evaluation.compare(scenes, seen, world)["skin tone within one step, when named"]
        assert set(hits) == {expected}


def test_correlation_is_one_where_generated_equals_planted(world):
    table = [{"planted": p, "share": p, "instrument": "x"} for p in (0.03, 0.2, 0.5, 0.8, 0.97)]
    (row,) = evaluation.correlation(table, list(evaluation.BARS)[-1])
    assert row["value"] == pytest.approx(1.0) and row["n"] == 5 and row["small_must"] == 0.6


def test_card_table_states_interval_and_n():
    text = cards.table([evaluation.row("style, when named", [True, False], "nano-clip")])
    assert "| style, when named | 0.500 | 0.095 to 0.905 | 2 | nano-clip |" in text


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_committed_results_were_made_with_the_committed_weights(path):
    result = json.loads(path.read_text("utf-8"))
    source = hub.from_folder(MODELS / result["model"])
    assert result["revision"] == source.revision, "weights changed: run `make refresh`"
    assert result["banner"].startswith("Embedded teaching model")
    for row in result["rows"] + result["instruments"]:
        assert row["low"] <= row["value"] <= row["high"] and row["n"] > 0
    card = (MODELS / result["model"] / "README.md").read_text("utf-8")
    assert cards.table(result["rows"]) in card
    assert "\npipeline_tag: text-to-image\n" in card
    assert ("\nbase_model: nano-sdxl\n" in card) == result["training"]["distilled"]
