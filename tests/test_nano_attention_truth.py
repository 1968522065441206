"""Maps against masks: the measures, and the stored result."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from koala_nb.core.catalog import data_folder
from koala_nb.models.load import load
from koala_nb.nano import attention_truth as truth
from koala_nb.nano.presets import preset_of
from koala_nb.nano.render import Renderer
from koala_nb.nano.world import World


@given(st.integers(0, 10_000))
def test_roc_area_is_the_chance_that_inside_beats_outside(seed):
    rng = np.random.default_rng(seed)
    maps = rng.integers(0, 5, (2, 4, 4)).astype(float)  # with ties
    masks = rng.random((2, 4, 4)) < 0.4
    masks[:, 0, 0], masks[:, 0, 1] = True, False
    for found, values, mask in zip(truth.roc_area(maps, masks), maps, masks):
        inside, outside = values[mask][:, None], values[~mask][None]
        expected = np.mean((inside > outside) + 0.5 * (inside == outside))
        assert found == pytest.approx(expected)


def test_measures_of_a_known_map():
    mask = np.zeros((2, 4, 4), bool)
    mask[:, :2, :2] = True
    maps = np.where(mask, 1.0, 0.2)
    maps[0, 0, 2] = 0.9  # one pixel beside the mask
    maps[1, 3, 3] = 1.5  # the largest value elsewhere
    found = truth.measures(maps, mask, threshold=0.5)
    assert found["IoU"] == pytest.approx([4 / 5, 4 / 5])
    assert found["pointing game"].tolist() == [1, 0]
    assert found["ROC area"] == pytest.approx([1, 11 / 12])
    assert truth.best_threshold(np.where(mask, 1.0, 0.62), mask) > 0.62


def test_daam_is_the_mean_over_all_heads():
    rng = np.random.default_rng(0)
    maps = {
        "a/0": rng.random((3, 2, 2)), "a/1": rng.random((3, 2, 2)), "b/0": rng.random((3, 4, 4)),
    }  # fmt: skip
    large = [
        torch.nn.functional.interpolate(torch.tensor(m)[:, None], (8, 8), mode="bicubic")
        for m in maps.values()
    ]
    expected = torch.stack(large).clamp(min=0).mean(0)[:, 0].numpy()
    assert truth.combine(maps, list(maps), 8) == pytest.approx(expected, abs=1e-6)
    assert truth.finest(maps) == ["b/0"]


def test_heads_that_show_the_mask_are_chosen():
    rng = np.random.default_rng(0)
    masks = np.zeros((30, 8, 8), bool)
    for mask in masks:
        x, y = rng.integers(0, 5, 2)
        mask[y : y + 3, x : x + 3] = True
    good = masks + 0.3 * rng.random(masks.shape)
    maps = {f"noise/{i}": rng.random(masks.shape) for i in range(5)} | {"good/0": good}
    assert truth.choose_heads(maps, masks) == ["good/0"]


@pytest.fixture(scope="module")
def pipe():
    return load("nano-koala", device="cpu")


def test_targets_are_what_captions_name_once(pipe):
    preset = preset_of("nano-koala")
    world = World(preset.n_objects)
    render = Renderer(preset.image_size, world.things())
    scenes = truth.make_scenes(world, 60, 0)
    targets = truth.find_targets(scenes, render, pipe.tokenizer)
    assert {scenes[t.scene].kind for t in targets} == set(truth.KINDS)
    for target in targets:
        scene = scenes[target.scene]
        ids = pipe.tokenizer(scene.caption).input_ids
        phrase = pipe.tokenizer.decode([ids[t] for t in target.tokens]).strip()
        things = [p for p in scene.placed if phrase in f"{p.thing.color} {p.thing.name}"]
        left, top, right, bottom = (render.scale * v for v in things[0].box)
        assert len(things) == 1 and scene.caption.count(f"{phrase}s") == 0
        assert target.mask[top:bottom, left:right].sum() == target.mask.sum() > 0


def test_a_small_evaluation(pipe, monkeypatch):
    found = truth.evaluate("nano-koala", tuning=9, count=12)
    heads = {row["head"] for row in found["heads"]}
    assert len(found["heads"]) == len(heads) * (len(truth.TIMESTEPS) + 1) and len(heads) > 21
    rows = {(r["timestep"], r["method"], r["measure"]): r for r in found["rows"]}
    gain = rows["all", "selected heads - DAAM", "IoU"]
    parts = [rows["all", method, "IoU"]["value"] for method in ("selected heads", "DAAM")]
    assert gain["value"] == pytest.approx(parts[0] - parts[1], abs=2e-4)
    assert all(r["low"] <= r["value"] <= r["high"] and r["n"] == 12 for r in rows.values())


def test_a_word_removed_changes_its_own_thing(pipe):
    """Scenes of two things with known masks, drawn again without the word of one of them."""
    rows = truth.evaluate_edits("nano-koala", 6)
    value = {(row["factor"], row["region"]): row["value"] for row in rows}
    assert all(row["n"] == 6 and row["low"] <= row["value"] <= row["high"] for row in rows)
    assert value[0.0, "own"] > 2 * value[0.0, "other"] > 0
    assert value[0.0, "own"] > 3 * value[0.0, "background"]
    gain = value[0.0, "own"] - value[0.0, "other"]
    assert value[0.0, "own - other"] == pytest.approx(gain, abs=2e-4)


def test_examples_are_scored_as_the_evaluation_scores(pipe):
    thresholds = {"DAAM": 0.5, "finest layers": 0.3}
    for example in truth.examples(pipe, thresholds, 3):
        assert example.picture.size == example.mask.shape[::-1] and example.mask.any()
        assert list(example.maps) == list(thresholds) and example.name.islower()
        for method, values in example.maps.items():
            score = truth.overlap(values[None], example.mask[None], thresholds[method])[0]
            assert example.scores[method] == pytest.approx(score)


@pytest.mark.parametrize("model", truth.MODELS)
def test_removing_a_word_is_local_in_the_stored_result(stored, model):
    (result,) = [m for m in stored["models"] if m["model"] == model]
    (gain,) = [r for r in result["edits"] if (r["factor"], r["region"]) == (0, "own - other")]
    assert gain["low"] > 0 and gain["n"] == stored["edited"]["scenes"] >= 50


@pytest.fixture(scope="module")
def stored():
    return json.loads((data_folder() / "results" / "attention-truth.json").read_text("utf-8"))


def test_the_stored_result_is_of_these_weights(stored):
    assert stored["scored_scenes"] >= 300
    for model in stored["models"]:
        assert model["revision"] == load(model["model"], device="cpu").model_info.revision


@pytest.mark.parametrize("model", truth.MODELS)
def test_selected_heads_beat_daam(stored, model):
    (found,) = [m for m in stored["models"] if m["model"] == model]
    (gain,) = [
        row for row in found["rows"]
        if row["method"] == "selected heads - DAAM"
        and (row["timestep"], row["measure"]) == ("all", "IoU")
    ]  # fmt: skip
    assert gain["low"] > 0 and gain["n"] >= 300
