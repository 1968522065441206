"""Attention edited: what is changed, where, and that nothing else is."""

import math

import numpy as np
import pytest
import torch

import koala_nb as kn
from koala_nb.attention.capture import CannotCapture
from koala_nb.attention.edits import Move, Replace, Reweight

PROMPT = "a red koala"
ALL_AXES = ("layer", "head", "step")
LAYER = "up_blocks.1.attentions.0.transformer_blocks.0.attn2"


def draw(pipe, prompt=PROMPT, *, steps=3, guidance=3.5, **more):
    more |= {"num_inference_steps": steps, "guidance_scale": guidance, "output_type": "latent"}
    noise = [torch.Generator().manual_seed(n) for n in range(more.pop("seeds", 1))]
    prompts = [prompt] * len(noise)
    return pipe(prompts, generator=noise, height=64, width=64, **more).images


def capture(pipe, edit=(), drawing=None, **options):
    with kn.capture_attention(pipe, edit=edit, **options) as attention:
        return attention, draw(pipe, **drawing or {})


def tokens(pipe, phrase, prompt=PROMPT):
    return kn.attention.tokens_of(pipe.tokenizer, prompt, phrase)


class ByHand:
    """A processor of its own: softmax, the conditional half's maps doubled for tokens, A V."""

    def __init__(self, doubled):
        self.doubled = list(doubled)

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, **_):
        text = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = (
            project(x).unflatten(-1, (attn.heads, -1)).transpose(1, 2).double()
            for project, x in ((attn.to_q, hidden_states), (attn.to_k, text), (attn.to_v, text))
        )
        maps = (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1)
        maps[len(maps) // 2 :, ..., self.doubled] *= 2
        return attn.to_out[0]((maps @ v).transpose(1, 2).flatten(2).float())


def test_a_reweighted_word_is_what_hand_written_attention_draws(fresh):
    plain = draw(fresh, seeds=2)
    red = tokens(fresh, "red")
    _, edited = capture(fresh, Reweight(red, 2), {"seeds": 2})
    for name, module in fresh.unet.named_modules():
        if name.endswith("attn2"):
            module.set_processor(ByHand(red))
    assert torch.allclose(edited, draw(fresh, seeds=2), atol=1e-4)
    assert (edited - plain).abs().max() > 20 * (edited - draw(fresh, seeds=2)).abs().max()


def test_an_edit_that_changes_nothing_changes_no_bit(loaded):
    before = draw(loaded)
    plain, _ = capture(loaded)
    for edit in (lambda maps, site: maps, Reweight(tokens(loaded, "red"), 1), [], Move((1,))):
        attention, after = capture(loaded, edit)
        assert torch.equal(before, after)
        assert attention.maps() == pytest.approx(plain.maps(), abs=1e-6)


def one_layer(pipe, edit, **more):
    """The maps of one layer in one step, before anything else can have changed."""
    attention, _ = capture(pipe, edit, {"steps": 1}, layers=LAYER, keep_axes=("layer", "head"))
    return attention.arrays()[f"cross/{LAYER}"][0, 0, 0]  # heads, rows, columns, tokens


def test_the_edited_maps_are_captured(loaded):
    koala = list(tokens(loaded, "koala"))
    plain, others = one_layer(loaded, ()), [t for t in range(77) if t not in koala]
    doubled = one_layer(loaded, Reweight(koala, 2))
    assert doubled[..., koala] == pytest.approx(2 * plain[..., koala], abs=1e-6)
    assert doubled[..., others] == pytest.approx(plain[..., others], abs=1e-6)
    moved = one_layer(loaded, Move(koala, down=0.25, right=-0.5))
    expected = np.roll(plain[..., koala], (1, -2), (1, 2))
    assert moved[..., koala] == pytest.approx(expected, abs=1e-6)
    both = one_layer(loaded, [Reweight(koala, 2), lambda maps, site: maps + 1])
    assert both == pytest.approx(doubled + 1, abs=1e-6)
    merged, _ = capture(loaded, Reweight(koala, 2), {"steps": 1}, layers=LAYER)
    assert merged.maps() == pytest.approx(doubled.mean(0), abs=1e-6)


def test_maps_of_another_prompt_take_the_place_of_a_words_own(loaded):
    source, _ = capture(loaded, (), {"prompt": "a dim koala", "seeds": 2}, keep_axes=ALL_AXES)
    edit = Replace(source)
    attention, held = capture(loaded, edit, {"seeds": 2}, keep_axes=ALL_AXES)
    for image in (0, 1):
        assert attention.maps(image) == pytest.approx(source.maps(image), abs=1e-6)
    free = draw(loaded, seeds=2)
    assert not torch.equal(held, free)
    red, dim = (tokens(loaded, w, p)[0] for w, p in (("red", PROMPT), ("dim", "a dim koala")))
    one, _ = capture(loaded, Replace(source, {red: dim}), {"seeds": 2}, keep_axes=ALL_AXES)
    chosen = {"layers": LAYER, "head": 1, "step": 2}
    assert one.maps(1, **chosen)[..., red] == pytest.approx(source.maps(1, **chosen)[..., dim])
    half, _ = capture(loaded, Replace(source, until=0.5), {"seeds": 2}, keep_axes=ALL_AXES)
    close = [np.allclose(half.maps(step=s), source.maps(step=s), atol=1e-6) for s in range(3)]
    assert close == [True, True, False]
    assert torch.equal(free, capture(loaded, Replace(source, until=0), {"seeds": 2})[1])


def test_the_maps_of_the_same_image_draw_it_again(loaded):
    source, before = capture(loaded, keep_axes=ALL_AXES)
    assert torch.allclose(capture(loaded, Replace(source))[1], before, atol=1e-4)


def test_an_edit_knows_where_it_is(loaded):
    sites, shapes = [], set()

    def note(maps, site):
        sites.append(site)
        shapes.add(tuple(maps.shape))
        return maps

    with kn.capture_attention(loaded, layers="up_blocks.1", edit=note):
        draw(loaded, seeds=2)
        draw(loaded, steps=1)
    assert {site.layer.split(".attn")[0].rsplit(".", 2)[0] for site in sites} == {
        "up_blocks.1.attentions.0", "up_blocks.1.attentions.1"
    }  # fmt: skip
    assert [(s.step, s.steps, s.images) for s in sites if s.layer == LAYER] == [
        (0, 3, range(2)), (1, 3, range(2)), (2, 3, range(2)), (0, 1, range(2, 3))
    ]  # fmt: skip
    assert shapes == {(2, 1, 4, 4, 77), (1, 1, 4, 4, 77)} or shapes == {
        (2, 2, 4, 4, 77), (1, 2, 4, 4, 77)
    }  # fmt: skip


def test_the_branch_that_is_captured_is_edited(loaded):
    loud, drawing = Reweight(range(77), 2), {"negative_prompt": ["a dog"]}
    outputs = [
        capture(loaded, loud, drawing, guidance_branch=branch)[1]
        for branch in ("conditional", "unconditional", "both")
    ]
    assert len({tuple(o.flatten().tolist()) for o in [draw(loaded, **drawing), *outputs]}) == 4
    without = capture(loaded, loud, {"guidance": 1.0})[1]
    assert not torch.equal(without, draw(loaded, guidance=1.0))


def test_self_attention_stays_as_it_is(loaded):
    with kn.capture_attention(
        loaded, self_grid=2, edit=lambda maps, site: maps * (0 if "attn1" in site.layer else 1)
    ):
        after = draw(loaded)
    assert torch.equal(after, draw(loaded))


@pytest.mark.parametrize("how", ["compiled", "fused", "bfloat16"])
def test_other_ways_to_compute_the_same(fresh, how):
    edit = Reweight(tokens(fresh, "koala"), 3)
    if how == "bfloat16":
        fresh.to(torch.bfloat16)
        assert capture(fresh, edit)[1].dtype == torch.bfloat16
        return
    expected, plain = capture(fresh, edit)[1], draw(fresh)
    if how == "compiled":
        torch._dynamo.reset()
        fresh.unet.compile_repeated_blocks(fullgraph=True)
    else:
        fresh.fuse_qkv_projections()
    attention, after = capture(fresh, edit)
    assert torch.allclose(after, expected, atol=1e-4)
    assert (after - plain).abs().max() > 1e-3
    assert attention.images == 1
    torch._dynamo.reset()


@pytest.mark.parametrize(
    "edit, message",
    [
        ("loud", "edit='l': give a function"),
        (3, "edit=3: give a function"),
        (
            lambda maps, site: maps[..., :5],
            r"returned \(1, 2, 4, 4, 5\) in .*: return maps of the s",
        ),
        (lambda maps, site: None, "returned NoneType in down_blocks"),
    ],
)
def test_what_is_no_edit_is_refused(loaded, edit, message):
    before = dict(loaded.unet.attn_processors)
    with pytest.raises(ValueError, match=message):
        capture(loaded, edit)
    assert loaded.unet.attn_processors == before


def test_maps_that_were_not_kept_cannot_replace_others(loaded):
    source, _ = capture(loaded)
    with pytest.raises(ValueError, match="step=0: 0 steps were kept"):
        capture(loaded, Replace(source))
    source, _ = capture(loaded, keep_axes=ALL_AXES)
    with pytest.raises(ValueError, match="image=1: 1 images were captured"):
        capture(loaded, Replace(source), {"seeds": 2})


def test_an_edited_image_is_of_another_run(loaded, tmp_path):
    settings = {"steps": 1, "height": 64, "width": 64, "progress": False, "out": tmp_path}
    red = tokens(loaded, "red")

    def generate(edit):
        for path in sorted(tmp_path.rglob("*.png"))[:1]:
            path.unlink()  # else nothing would be drawn
        with kn.capture_attention(loaded, edit=edit):
            return kn.generate(loaded, PROMPT, [0, 1], **settings)

    generate(Reweight(red, 2))
    assert len(generate(Reweight(red, 2)).images) == 2
    for other in (Reweight(red, 3), [Reweight(red, 2), Move(red)], ()):
        with pytest.raises(ValueError, match="holds a run with other settings: parts"):
            generate(other)


def test_tokens_of_a_phrase(loaded):
    assert tokens(loaded, "red koala") == tuple(range(2, 10))
    assert tokens(loaded, "[start]") == (0,)
    with pytest.raises(ValueError, match="'kola' is not in the prompt. Did you mean 'koala'"):
        tokens(loaded, "kola")
    with pytest.raises(CannotCapture):
        capture(loaded, edit=None)
