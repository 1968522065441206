"""The family's training at 128 px: words, curriculum, lessons, encoded scenes, U-Nets."""

import dataclasses
import json
import re
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from koala_nb.core.catalog import data_folder

pytest.importorskip("koala_nb.nano.world", reason="koala_nb/nano is absent")
if not (data_folder() / "world" / "planted.json").is_file():
    pytest.skip("data/world is absent", allow_module_level=True)

from koala_nb.distillation.loop import Stage  # noqa: E402
from koala_nb.nano import latents, phrases, render, train_family, train_text  # noqa: E402
from koala_nb.nano.curriculum import LAYOUT, MIXTURE, Curriculum, swapped  # noqa: E402
from koala_nb.nano.models import build_unet, build_vae  # noqa: E402
from koala_nb.nano.phrases import Phrasing  # noqa: E402
from koala_nb.nano.presets import FAMILY  # noqa: E402
from koala_nb.nano.world import HELD_OUT_SEEDS, Thing, World, load_json  # noqa: E402

STAGES = {name: Stage(samples=8, batch=4, rate=1e-4, warmup=1) for name in FAMILY.stages}
WIDTHS = {"vae_channels": (8, 8, 8), "widths": (32, 32, 32), "text_widths": (32, 32)}
TINY = dataclasses.replace(
    FAMILY, image_size=64, n_objects=10, text_layers=2, stages=STAGES, **WIDTHS
)
CURRICULUM = Curriculum(150)


@pytest.fixture(scope="module", autouse=True)
def quick():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(render, "read_sheet", cache(render.read_sheet))
        patch.setattr(latents, "SHARD", 16)
        patch.setattr(latents, "HELD_OUT", 64)
        patch.setattr(train_family, "PREVIEW_PROMPTS", ["a koala"])
        patch.setenv("KOALA_NB_COMPILE", "0")
        yield


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder of the tiny configuration with text encoders, an autoencoder and scenes."""
    root = tmp_path_factory.mktemp("family")
    assert train_text.train_text(TINY, root / "text", "cpu", None)
    vae = build_vae(TINY)
    vae.register_to_config(latents_mean=[0.0] * 4, latents_std=[1.0] * 4)
    vae.save_pretrained(root / "vae" / "vae")
    text = train_family.TextEncoders(root / "text", TINY)
    tokenizer = latents.padded(text.tokenizer, TINY.max_length)
    encoder = latents.Encoder(TINY, tokenizer, vae)
    latents.encode_scenes(encoder, root / "scenes", range(2))
    encoder = latents.Encoder(TINY.for_start(), tokenizer, vae)
    latents.encode_scenes(encoder, root / "start-scenes", range(1))
    return root


@pytest.fixture(scope="module")
def scenes(root):
    text = train_family.TextEncoders(root / "text", TINY)
    read = latents.read_scenes(root / "scenes")
    return train_family.NoisyScenes(read, text, TINY.max_length, "cpu")


# --- words --------------------------------------------------------------------------------------


def test_synonyms_name_one_thing_each():
    names = [other for others in phrases.synonyms().values() for other in others]
    assert len(names) == len(set(names)) and not set(names) & set(phrases.synonyms())
    world = CURRICULUM.world
    assert {*world.objects, *world.occupations} == set(phrases.synonyms())


def test_held_out_frames_are_held_out():
    assert len(phrases.FRAMES) >= 40 and len(phrases.HELD_OUT_FRAMES) == 10
    assert not set(phrases.FRAMES) & set(phrases.HELD_OUT_FRAMES)


@example(20009, phrases.FRAMES[0])  # a sign that says "red" on red
@given(st.integers(0, 2**40), st.sampled_from([*phrases.FRAMES, *phrases.HELD_OUT_FRAMES]))
def test_a_caption_states_what_is_named_and_nothing_else(seed, frame):
    scene = CURRICULUM.scene(seed)
    rng = np.random.default_rng(seed)
    text, relation = Phrasing((frame,), plain=True).caption(scene, rng)
    assert "{" not in text and "[" not in text and relation in (None, scene.relation)
    rest = text
    for name in {placed.thing.name for placed in scene.placed}:  # a sign may say "y", or "red"
        rest = re.sub(rf"\b{re.escape(name)}\b", "", rest, count=1)
    assert (scene.style in rest) == ("style" in scene.named)
    if "background" in scene.named:
        assert scene.background in rest
    for name in ("woman", "female", "man", "male"):
        assert "presentation" in scene.named or not re.search(rf"\b{name}\b", rest)


def test_neutral_captions_leak_no_presentation_or_tone():
    words = {w for forms in load_json("phrases.json")["presentations"].values() for w in forms}
    for seed in range(400):
        scene = CURRICULUM.scene(seed, "person")
        text, _ = CURRICULUM.phrasing.caption(scene, np.random.default_rng(seed), frozenset())
        assert not words & set(re.findall(r"[a-z]+", text)) and "skin" not in text


def test_a_relation_told_from_the_other_side_is_the_same_scene():
    scene = dataclasses.replace(
        CURRICULUM.scene(5, "pair"), relation="left of", named=frozenset(), style="noto"
    )
    one, other = (p.thing.name for p in scene.placed)
    plain = Phrasing(("{s}",), plain=True)
    texts = {plain.caption(scene, np.random.default_rng(i))[0] for i in range(200)}
    first = [t for t in texts if t.index(one) < t.index(other)]
    assert first and len(first) < len(texts)
    assert all("right" not in t or "left" in t or "on its right" in t for t in first)
    others = set(texts) - set(first)
    assert all("left" not in t or "right" in t or "on its left" in t for t in others)


def test_plurals():
    words = ("koala", "church", "mouse trap", "kitchen knife", "fish", "lorry", "face with monocle")
    assert [phrases.plural(w) for w in words] == [
        "koalas", "churches", "mouse traps", "kitchen knives", "fish", "lorries",
        "faces with monocle",
    ]  # fmt: skip
    assert phrases.plural("glasses") == "glasses" and phrases.plural("skis") == "skis"


@given(st.integers(0, 2**32))
def test_slips_spare_short_words_and_signs(seed):
    text = "a sign that says bridge on a red wall"
    changed = phrases.slip(text, np.random.default_rng(seed), keep={"bridge"})
    assert "bridge" in changed and len(changed.split()) == len(text.split())
    assert all(a == b for a, b in zip(text.split(), changed.split()) if len(a) < 4)


# --- the curriculum -----------------------------------------------------------------------------


def test_the_mixture_and_the_frequencies_are_as_planned():
    kinds = [CURRICULUM.scene(seed).kind for seed in range(3000)]
    for kind, share in MIXTURE.items():
        assert abs(kinds.count(kind) / 3000 - share) < 0.03
    frequency = CURRICULUM.world.frequency
    assert abs(frequency.sum() - 1) < 1e-9 and 45 < frequency[0] / frequency[-1] < 55


def test_signs_hold_letters_and_words():
    words = [CURRICULUM.scene(s, "sign").placed[0].thing.name for s in range(600)]
    known = {*CURRICULUM.world.words}
    assert 0.6 < sum(w not in known for w in words) / 600 < 0.8
    assert not set(words) & set(CURRICULUM.world.planted["held_out"]["words"])


@given(st.integers(0, 2**40))
def test_the_nearest_other_scene_differs_or_repeats_its_kind(seed):
    scene = CURRICULUM.scene(seed)
    other = swapped(scene, np.random.default_rng(seed), CURRICULUM.world)
    assert other.kind == scene.kind
    if scene.relation:
        assert [p.thing for p in other.placed] == [p.thing for p in scene.placed][::-1]


def test_a_sign_without_a_sheet_is_drawn_like_one_with():
    world = World(3)
    sign = dataclasses.replace(CURRICULUM.scene(3, "sign"), background="white")
    first = sign.placed[0]
    word = dataclasses.replace(first, thing=Thing("sign", "hello"))
    scene = dataclasses.replace(sign, placed=(word,))
    objects = [t for t in world.things() if t.kind == "object"]
    sheet = render.Renderer(64, [*objects, Thing("sign", "hello")])([scene])
    assert torch.equal(render.Renderer(64, objects)([scene]), sheet)
    with pytest.raises(KeyError, match="rocket"):
        strange = dataclasses.replace(word, thing=Thing("object", "rocket"))
        render.Renderer(64, objects)([dataclasses.replace(scene, placed=(strange,))])


# --- lessons ------------------------------------------------------------------------------------


def test_targets_say_which_thing_is_left_or_top():
    targets = train_text.Targets(CURRICULUM.world)
    scene = CURRICULUM.scene(8, "pair")
    for relation, turned in (("left of", False), ("right of", True), ("above", False)):
        one, other = (targets.row(p.thing) for p in scene.placed)
        row = targets(dataclasses.replace(scene, relation=relation), relation)
        assert (row["first"], row["second"]) == ((other, one) if turned else (one, other))


def test_neutral_captions_have_no_target_for_presentation_and_tone():
    targets = train_text.Targets(CURRICULUM.world)
    scene = dataclasses.replace(CURRICULUM.scene(8, "person"), named=frozenset())
    row = targets(scene, None)
    assert row["presentation"] == row["tone"] == train_text.IGNORED
    assert row["background"] == len(CURRICULUM.world.planted["backgrounds"])


def test_lessons_are_learnt_and_measured(root):
    rows = [json.loads(line) for line in (root / "text" / "read.jsonl").read_text().splitlines()]
    assert set(rows[-1]) == {"training frames", "held-out frames", "plain"}
    assert 0 <= rows[-1]["plain"]["first"] <= 1


# --- encoded scenes -----------------------------------------------------------------------------


def test_shards_are_a_function_of_their_number(root, tmp_path):
    text = train_family.TextEncoders(root / "text", TINY)
    vae = build_vae(TINY).from_pretrained(root / "vae" / "vae")
    tokenizer = latents.padded(text.tokenizer, TINY.max_length)
    encoder = latents.Encoder(TINY, tokenizer, vae)
    latents.encode_scenes(encoder, tmp_path, range(2), rank=1, of=2)
    path = latents.shard_path(tmp_path, 1)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    again, first = (latents.load_file(p) for p in (path, latents.shard_path(root / "scenes", 1)))
    assert all(torch.equal(again[name], first[name]) for name in first)
    seed = HELD_OUT_SEEDS.stop + latents.SHARD
    curriculum = Curriculum(TINY.n_objects)
    kinds = [curriculum.scene(seed + i).kind in LAYOUT for i in range(latents.SHARD)]
    assert first["layout"].tolist() == kinds
    ids = text.tokenizer(curriculum.scene(seed).caption).input_ids
    assert first["ids"][0, 0, : len(ids)].tolist() == ids


def test_missing_scenes_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="--stage latents"):
        latents.read_scenes(tmp_path)


def test_a_batch_is_a_function_of_its_number(scenes):
    one, two, other = scenes(3, 8), scenes(3, 8), scenes(4, 8)
    assert torch.equal(one["noisy"], two["noisy"]) and not torch.equal(one["noisy"], other["noisy"])
    assert torch.equal(one["encoder_hidden_states"], two["encoder_hidden_states"])


def test_noise_dropped_captions_and_high_noise(scenes):
    batches = [scenes(number, 32) for number in range(40)]
    timesteps = torch.stack([b["timesteps"] for b in batches])
    layout = scenes.scenes["layout"]
    late = (timesteps > train_family.HIGH_NOISE).float().mean(0)
    assert late[layout].mean() > 0.5 > 0.3 > late[~layout].mean()
    zeroed = torch.stack([b["encoder_hidden_states"].abs().sum((1, 2)) == 0 for b in batches])
    assert 0.02 < zeroed.float().mean() < 0.09
    one = batches[0]
    alpha = scenes.alphas[one["timesteps"]][:, None, None, None]
    clean = (one["noisy"] - (1 - alpha).sqrt() * one["noise"]) / alpha.sqrt()
    assert torch.allclose(clean, scenes.scenes["latents"][:32].float(), atol=2e-2)


def test_the_encoders_read_as_the_pipeline_does(root, scenes):
    vae = build_vae(TINY).from_pretrained(root / "vae" / "vae")
    pipe = train_family.assemble(build_unet(TINY, "nano-koala"), scenes.text, vae)
    states, _, pooled, _ = pipe.encode_prompt(["a koala"], do_classifier_free_guidance=False)
    ids = pipe.tokenizer(["a koala"], padding="max_length", return_tensors="pt").input_ids
    mine = scenes.text(ids, torch.tensor([False]))
    assert torch.equal(mine["encoder_hidden_states"], states)
    assert torch.equal(mine["added_cond_kwargs"]["text_embeds"], pooled)


# --- U-Nets -------------------------------------------------------------------------------------


def test_a_grown_teacher_starts_as_the_small_model(scenes):
    small, large = (train_family.prepare(build_unet(TINY, n)) for n in ("nano-koala", "nano-sdxl"))
    train_family.grow(large, small)
    batch = scenes(0, 4)
    with torch.no_grad():
        one, other = (train_family.predict(unet, batch) for unet in (small, large))
    assert torch.allclose(one, other, atol=1e-4)


def test_a_student_that_is_its_teacher_has_nothing_to_learn(scenes):
    module = train_family.UNets(TINY, ["nano-koala"])
    teacher = train_family.prepare(build_unet(TINY, "nano-koala"))
    teacher.load_state_dict(module.unets["nano-koala"].state_dict())
    shared = train_family.SharedTeacher(module, teacher.requires_grad_(False), "self-attention")
    total, parts = shared(module, scenes(0, 4))
    assert parts["nano-koala out"] == 0 and parts["nano-koala feat"] == 0
    total.backward()
    assert torch.allclose(total, parts["nano-koala task"])


def test_a_start_keeps_the_weights_that_fit():
    trained, unet = (build_unet(p, "nano-koala") for p in (replaced_text(64), replaced_text(32)))
    new = train_family.begin_with(unet, trained)
    assert new and all(".attn2.to_" in name or "add_embedding" in name for name in new)
    copied, source = unet.state_dict(), trained.state_dict()
    assert all(torch.equal(copied[name], source[name]) for name in copied if name not in new)


def replaced_text(width):
    return dataclasses.replace(TINY, text_widths=(width, width))


def test_every_stage_trains_and_writes_what_loads(root):
    import koala_nb as kn

    for stage, systems in (
        ("start", ["nano-koala"]),
        ("teacher", ["nano-sdxl"]),
        ("student", ["nano-koala-large", "nano-koala"]),
        ("control", ["nano-koala-large", "nano-koala"]),
    ):
        assert train_family.train_family(TINY, root / stage, stage, "cpu", None)
        for system in systems:
            pipe = kn.load(root / stage / system, device="cpu")
            assert kn.generate(pipe, ["a koala"], [0], steps=1).images[0].size == (64, 64)
        rows = (root / stage / "held-out.jsonl").read_text().splitlines()
        assert set(json.loads(rows[-1])) == {"step", *systems}


# --- abilities ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def matching():
    from koala_nb.nano.instruments import Matching

    return Matching(World(150, balanced=True), 64)


def test_rendered_scenes_are_read_by_place_number_and_letters(matching):
    from koala_nb.nano import abilities

    frame = abilities.ceilings(lambda images: images, World(150), [matching], 64, 12)
    values = frame.set_index("id")["value"]
    assert values["pair.both.rendered.sprite_matching"] > 0.8
    assert values["pair.place.rendered.sprite_matching"] == 1
    assert values["count.rendered.sprite_matching"] > 0.8
    assert values["sign.exact.rendered"] > 0.5


def test_swapped_places_and_wrong_numbers_are_no_hits(matching):
    from koala_nb.nano import abilities

    world, draw = World(150), render.Renderer(64, World(150).things())
    pairs = [world.scene(seed, "pair") for seed in range(100, 108)]
    turned = [swapped(s, np.random.default_rng(0), world) for s in pairs]
    both, placed = abilities.read_places(draw(turned), pairs, matching)
    assert any(both) and not any(placed)
    counts = [world.scene(seed, "count") for seed in range(100, 108)]
    others = [dataclasses.replace(s, placed=s.placed[:-1]) for s in counts]
    assert not any(abilities.read_counts(draw(others), counts, matching))


def test_phrasing_is_compared_on_the_same_scenes(matching):
    from koala_nb.nano import abilities

    world, prompts = World(150), []
    draw = render.Renderer(64, world.things())

    def rendered(texts):
        prompts.append(texts)
        return draw([world.scene(abilities.FIRST_SEED + i, "object") for i in range(len(texts))])

    rows = abilities.phrasing(rendered, world, [matching], 8)
    assert [row["id"].split(".")[2] for row in rows] == ["training", "held_out", "difference"]
    assert rows[0]["value"] > 0.8 and rows[2]["value"] == 0
    assert len(prompts) == 2 and prompts[0] != prompts[1]
