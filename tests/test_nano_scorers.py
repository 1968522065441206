import dataclasses

import pytest
import torch

from koala_nb.core.catalog import data_folder

pytest.importorskip("koala_nb.nano.scorers", reason="koala_nb/nano is absent")
if not (data_folder() / "world" / "planted.json").is_file():
    pytest.skip("data/world is absent", allow_module_level=True)

from PIL import Image  # noqa: E402

from koala_nb.nano.models import build_vae  # noqa: E402
from koala_nb.nano.presets import SMALL  # noqa: E402
from koala_nb.nano.render import to_pixels  # noqa: E402
from koala_nb.nano.scorers import ClipScorer, SpriteMatcher, to_tensor  # noqa: E402
from koala_nb.nano.train_clip import Scorer, degrade, save_scorer, targets, text_bank, thing_text  # noqa: E402
from koala_nb.nano.world import BACKGROUNDS, World  # noqa: E402

WORLD = World(SMALL.n_objects, balanced=True)
SIZES = ("large", "medium", "small")
CLIP = {"patch": 16, "width": 32, "layers": 1, "heads": 2}
TINY = dataclasses.replace(SMALL, n_objects=10, clip=CLIP)


@pytest.fixture(scope="module")
def matcher():
    return SpriteMatcher(WORLD, 64)


@pytest.fixture(scope="module")
def scorer():
    torch.manual_seed(0)
    return Scorer(TINY).eval()


# --- sprite matching --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["object", "person"])
def test_the_matcher_finds_thing_style_size_and_place(matcher, kind):
    scenes = [WORLD.scene(seed, kind) for seed in range(60)]
    images = matcher.render(scenes)
    things = [thing for thing in WORLD.things() if thing.kind == kind]
    right = 0
    for scene, (match,) in zip(scenes, matcher.match(images, things, SIZES)):
        placed = scene.placed[0]
        right += (match.thing, match.style, match.size) == (placed.thing, scene.style, placed.size)
        assert abs(match.x - placed.x) <= 2 and abs(match.y - placed.y) <= 2
        assert 0.5 < match.explained <= 1.001
    assert right >= 57


def test_the_matcher_finds_both_objects_of_a_pair(matcher):
    scenes = [WORLD.scene(seed, "pair") for seed in range(30)]
    things = [thing for thing in WORLD.things() if thing.kind == "object"]
    found = matcher.match(matcher.render(scenes), things, ("small",), count=2)
    hits = [
        {match.thing for match in matches} == {placed.thing for placed in scene.placed}
        for scene, matches in zip(scenes, found)
    ]
    assert sum(hits) >= 27


def test_the_background_is_right_on_all(matcher):
    scenes = [WORLD.scene(seed) for seed in range(200)]
    assert {scene.background for scene in scenes} == set(BACKGROUNDS)
    assert matcher.background(matcher.render(scenes)) == [scene.background for scene in scenes]


def test_pictures_and_tensors_agree(matcher):
    images = matcher.render([WORLD.scene(seed) for seed in range(4)])
    pictures = [Image.fromarray(pixels) for pixels in to_pixels(images)]
    torch.testing.assert_close(to_tensor(pictures), images, rtol=0, atol=1 / 127.5)


# --- nano-clip --------------------------------------------------------------------------------


def test_every_text_of_the_bank_is_one_value():
    for n_objects in (SMALL.n_objects, None):
        world = World(n_objects, balanced=True)
        for name, texts in text_bank(world).items():
            assert len(set(texts)) == len(texts), name
        kinds = {}
        for thing in world.things():
            kinds.setdefault(thing_text(thing), set()).add((thing.kind, thing.color))
        assert all(len(found) == 1 for found in kinds.values())


def test_targets_are_the_truth_of_the_scene():
    scenes = [WORLD.scene(seed) for seed in range(300)]
    bank = text_bank(WORLD)
    wanted = targets(scenes, WORLD, bank)
    for row, scene in enumerate(scenes):
        told = {
            name: {bank[name][i]: float(v) for i, v in enumerate(rows[row]) if v}
            for name, rows in wanted.items()
        }
        things = [placed.thing for placed in scene.placed]
        assert told["background"] == {f"{scene.background} background": 1}
        assert told["style"] == {f"{scene.style} style": 1}
        assert set(told["thing"]) == {thing_text(thing) for thing in things}
        assert sum(told["thing"].values()) == pytest.approx(1)
        person = next((thing for thing in things if thing.kind == "person"), None)
        assert told["presentation"] == ({f"a {person.presentation}": 1} if person else {})
        assert told["tone"] == ({f"{person.tone} skin": 1} if person else {})


def test_degraded_images_stay_images(matcher):
    """Every second image passes an autoencoder; the others stay as they are."""
    torch.manual_seed(0)
    vae = build_vae(TINY)
    vae.register_to_config(latents_mean=[0.0] * 4, latents_std=[1.0] * 4)
    images = matcher.render([WORLD.scene(seed) for seed in range(12)])
    seen = degrade(images, vae)
    changed = (seen - images).abs().flatten(1).max(1).values > 0
    assert seen.shape == images.shape and float(seen.abs().max()) <= 1
    assert changed.tolist() == [True, False] * 6


def test_the_scorer_reads_the_same_from_its_folder(scorer, tmp_path):
    save_scorer(scorer, TINY, tmp_path / "nano-clip")
    loaded = ClipScorer(tmp_path / "nano-clip")
    images = torch.rand(3, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        expected = scorer(images)
    found = loaded.probabilities(images)
    assert found.keys() == expected.keys() == loaded.bank.keys()
    for name, logits in expected.items():
        torch.testing.assert_close(found[name], logits.softmax(1), rtol=1e-3, atol=1e-5)
        assert found[name].shape == (3, len(loaded.bank[name]))


def test_the_processor_prepares_images_as_the_training_did(scorer, tmp_path):
    from transformers import CLIPImageProcessorPil

    save_scorer(scorer, TINY, tmp_path)
    images = torch.rand(2, 3, 64, 64) * 2 - 1
    pictures = [Image.fromarray(pixels) for pixels in to_pixels(images)]
    prepared = CLIPImageProcessorPil.from_pretrained(tmp_path)(pictures, return_tensors="pt")
    torch.testing.assert_close(prepared.pixel_values, to_tensor(pictures), rtol=0, atol=1e-5)


def test_a_missing_scorer_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="koala-nb train --stage clip"):
        ClipScorer(tmp_path)
