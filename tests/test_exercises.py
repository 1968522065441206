"""Exercises: right answers are taken, also in other words; each known mistake has its hint."""

import numpy as np
import pytest
import torch

import koala_nb as kn
from koala_nb.display.exercises import EXERCISES, Exercise, NotRightYet

PROMPT = "a red koala"
LAYER = "up_blocks.1.attentions.0.transformer_blocks.0.attn2"


@pytest.fixture(scope="module")
def given(loaded):
    """What the cells of notebook 03 give to the checks, of a tiny KOALA."""
    with kn.capture_attention(loaded) as attention:
        kn.generate(loaded, PROMPT, [0], steps=1, height=64, width=64, progress=False)
    layer = loaded.unet.get_submodule(LAYER)
    torch.manual_seed(0)
    x, text = torch.randn(16, layer.to_q.in_features), torch.randn(77, layer.to_k.in_features)
    return {
        "attention.numbers": {},
        "attention.start": {"attention": attention, "prompt": PROMPT},
        "attention.output": {"layer": layer, "x": 5 * x, "text": 5 * text},
        "attention.edit": {},
    }


def shares(attention, prompt):
    return {n: attention.words(prompt, layers=n)["[start]"].mean() for n in attention.layers()}


def first_half(maps, site):
    if site.step < site.steps / 2:
        maps[..., [3, 4]] = 0
    return maps


def answers(given):
    """By name: right answers, and five wrong ones with what their hint must say."""
    start, output = given["attention.start"], given["attention.output"]
    start_shares = shares(**start)
    layer, x, text = output["layer"], output["x"], output["text"]
    best = max(start_shares, key=start_shares.get)
    right = layer(x[None], text[None])[0]
    q, k, v = layer.to_q(x), layer.to_k(text), layer.to_v(text)
    one_head = layer.to_out[0]((q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v)
    q, k, v = (m.unflatten(-1, (2, -1)).transpose(0, 1) for m in (q, k, v))
    logits = q @ k.mT
    root = q.shape[-1] ** 0.5

    def merged(maps):
        return (maps @ v).transpose(0, 1).flatten(1)

    unscaled = layer.to_out[0](merged(logits.softmax(-1)))
    trailing = layer.to_out[0](merged((logits / root).softmax(-2)))
    return {
        "attention.numbers": (
            [4096, 4096.0, np.int64(4096)],
            [
                (2048, "you forgot the heads"), (1152, "padding tokens"), (576, "and that"),
                (512, "8 x 8"), (4097, "one row"), ("many", "one row"), (True, "one row"),
            ],
        ),
        "attention.start": (
            [best, best.removesuffix(".attn2"), f" {best.upper()}"],
            [
                (".".join(best.split(".")[:2]), "which layer of it"),
                (min(start_shares, key=start_shares.get), "smallest share"),
                ("mid_block", "compare"), (3, "compare"), ("", "compare"),
            ],
        ),
        "attention.output": (
            [right, right.detach().numpy()],
            [
                (unscaled, "square root"), (one_head, "forgot the heads"),
                (trailing, "not over the positions"),
                (merged((logits / root).softmax(-1)), "layer.to_out"),
                ((logits / root).softmax(-1), "softmax over the tokens"), (5, "softmax over"),
            ],
        ),
        "attention.edit": (
            [first_half, lambda maps, site: first_half(maps.clone(), site)],
            [
                (kn.attention.Reweight((3, 4), 0), "in all steps"),
                (lambda maps, site: maps, "set maps"),
                (lambda maps, site: None, "returned nothing"),
                (lambda maps, site: maps * 0, "set maps"),
                (lambda maps, site: maps[99], "cannot be checked"),
                (lambda maps: maps, "cannot be checked"),
            ],
        ),
    }  # fmt: skip


def in_place(latent, noise, sigma, sigma_next):
    latent += noise * (sigma_next - sigma)
    return latent


GENERATE = {  # of notebook 01, whose cells give nothing
    "generate.euler_step": (
        [
            in_place,
            lambda x, noise, a, b: (x - a * noise) + b * noise,
            lambda x, noise, a, b: torch.lerp(x - a * noise, x, b / a),
        ],
        [
            (lambda x, noise, a, b: x + noise * (a - b), "yours adds noise"),
            (lambda x, noise, a, b: x - a * noise, "all of the noise"),
            (lambda x, noise, a, b: x + b * noise, "not the next level"),
            (lambda x, noise, a, b: x - b * noise, "leaves the rest"),
            (lambda x, noise, a, b: x - noise, "of sigma 1"),
            (lambda x, noise, a, b: x, "at sigma the latent"),
            (lambda x, noise, a, b: (x + noise * (b - a)).mean(), "at sigma the latent"),
            (lambda x, noise, a, b: None, "returned nothing"),
            (lambda x, noise: x, "cannot be checked"),
            (3.0, "cannot be checked"),
        ],
    ),
    "generate.guidance": (
        [
            lambda text, other, g: g * text + (1 - g) * other,
            lambda text, other, g: text + (g - 1) * (text - other),
        ],
        [
            (lambda text, other, g: text + g * (text - other), "begin at against"),
            (lambda text, other, g: text + g * (other - text), "exchanged"),
            (lambda text, other, g: g * (text - other), "difference alone"),
            (lambda text, other, g: g * text, "against has no effect"),
            (lambda text, other, g: text, "guidance has no effect"),
            (lambda text, other, g: other + g * (text + other), "guidance times as far"),
            ("against + guidance * (asked - against)", "cannot be checked"),
        ],
    ),
    "generate.first_timestep": (
        [751, 751.0, np.float64(751)],
        [
            (750, "offset"), (999, "trailing"), (901, "ten steps"), (1, "last"),
            (1000, "counted from 0"), (751.5, "1000 / 4"), ("the last", "1000 / 4"),
        ],
    ),
    "generate.smallest_guidance": (
        [3, 3.0, np.float64(3)],
        [(2.5, "just not"), (3.5, "smaller"), (2.59, "steps of"), (1, "try"), (-3, "try")],
    ),
    "generate.unchanged_share": (
        [0.3, 0.29, 0.32],
        [
            (0.5, "example was made"), (0.7, "other kind"), (30, "not per cent"),
            (0.2, "when is it zero"), (0.35, "when is it zero"), ("30 %", "cannot be checked"),
        ],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", EXERCISES)
def test_right_answers_are_taken_and_five_wrong_ones_are_not(given, name, capsys):
    right, wrong = (answers(given) | GENERATE)[name]
    cell = given.get(name, {})
    kn.check(None, name, **cell)
    assert capsys.readouterr().out.startswith("Not yet")
    with torch.no_grad():
        for answer in right:
            kn.check(answer, name, **cell)
            assert capsys.readouterr().out == "Right.\n"
        assert len(wrong) >= 5
        for answer, hint in wrong:
            with pytest.raises(NotRightYet, match=hint) as caught:
                kn.check(answer, name, **cell)
            assert len(str(caught.value)) < 300


def test_per_cent_is_a_known_mistake(monkeypatch):
    share = Exercise(lambda: 0.25, "count")
    monkeypatch.setitem(EXERCISES, "share", share)
    kn.check(0.2501, "share")
    with pytest.raises(NotRightYet, match="not per cent"):
        kn.check(25, "share")
    with pytest.raises(NotRightYet, match="count"):
        kn.check(0.3, "share")
