"""Exercises: right answers are taken, also in other words; each known mistake has its hint."""

import math
import re

import numpy as np
import pytest
import torch
from rapidfuzz.distance import OSA, Indel, Levenshtein

import koala_nb as kn
from koala_nb.core import card
from koala_nb.display.exercises import EXERCISES, Exercise, NotRightYet, exercises
from koala_nb.display.exercises_measured import NOT
from koala_nb.report import claims
from koala_nb.stats.estimates import upper_bound_clopper_pearson
from koala_nb.stats.trends import required_sample_size

PROMPT = "a red koala"
LAYER = "up_blocks.1.attentions.0.transformer_blocks.0.attn2"


@pytest.fixture(scope="module")
def given(loaded):
    """What cells give to the checks; those of notebook 03 of a tiny KOALA."""
    with kn.capture_attention(loaded) as attention:
        kn.generate(loaded, PROMPT, [0], steps=1, height=64, width=64, progress=False)
    layer = loaded.unet.get_submodule(LAYER)
    torch.manual_seed(0)
    x, text = torch.randn(16, layer.to_q.in_features), torch.randn(77, layer.to_k.in_features)
    return {
        "attention.start": {"attention": attention, "prompt": PROMPT},
        "attention.output": {"layer": layer, "x": 5 * x, "text": 5 * text},
        "unet.four_blocks": {"total": 1000, "block": 10},
        "unet.best_cut": {"left": {"pairs": 1, "depth": 2, "mid": 3}.get},
        "distillation.paired": {"block": [70, 67, 66], "attention": [62, 61, 61]},
        "text.left_out": {"ned": [0.9, 0.3, 0.0, 0.0, 0.0], "read": ["a", "b", "", "", ""]},
    }


def first_half(maps, site):
    if site.step < site.steps / 2:
        maps[..., [3, 4]] = 0
    return maps


def in_place(latent, noise, sigma, sigma_next):
    latent += noise * (sigma_next - sigma)
    return latent


def block_of(width, text):
    layers = [width] * 6 + [text] * 2  # what each of the eight maps reads
    feed_forward = 12 * width**2 + 9 * width
    return 6 * width + sum(width * n for n in layers) + 2 * width + feed_forward


def test_a_block_is_counted_as_torch_counts_it():
    block = kn.build_unet("koala-700m").down_blocks[2].attentions[0].transformer_blocks[0]
    assert block_of(1280, 2048) == sum(weight.numel() for weight in block.parameters())


def hook_each(kind, hook, only=True):
    """A right or wrong `switch_off` of notebook 02."""

    def switch_off(unet, stage):
        part = unet.get_submodule(stage) if only else unet
        for name, module in part.named_modules():
            if name.endswith(kind):
                module.register_forward_hook(hook)

    return switch_off


def nothing(part, x, y):
    return torch.zeros_like(y)


def without_gradient(student, teacher, x):
    with torch.no_grad():
        target = teacher(x)
    return (student(x) - target).pow(2).mean()


def t_interval(change, t=4.303):
    half = t * np.std(change, ddof=1) / len(change) ** 0.5
    return [np.mean(change), np.mean(change) - half, np.mean(change) + half]


def on_all(of):
    return lambda flops, moved, rate, bandwidth: of(flops / rate, moved / bandwidth)


def in_turns(plan, warm=True):
    """A stopwatch that follows a plan: (names of the cases, round) -> whose turns it is."""

    def interleaved(calls, rounds):
        seconds = {name: [] for name in calls}
        for call in calls.values():
            warm and call()
        for name in (n for r in range(rounds) for n in plan("".join(calls), r)):
            calls[name]()
            seconds[name].append(1.0)
        return seconds

    return interleaved


def by_the_rule(low, high, smallest):
    estimate = {"label": "case", "value": low, "low": low, "high": high, "n": 1000}
    return claims.decide_less_than(estimate | {"clusters": 1000}, 0, "", smallest)["verdict"]


def agreed(counts):
    chance = counts.sum(0) @ counts.sum(1) / counts.sum() ** 2
    return (np.trace(counts) / counts.sum() - chance) / (1 - chance)


def each(difference, pick=sum):
    return lambda s, t, pairs: pick([difference(s[a], t[b]) for a, b in pairs.items()])


def attended(given):
    """Right answers of notebook 03, from what its cells give."""
    attention, prompt = given["attention.start"].values()
    layer, x, text = given["attention.output"].values()
    shares = {n: attention.words(prompt, layers=n)["[start]"].mean() for n in attention.layers()}
    best, right = max(shares, key=shares.get), layer(x[None], text[None])[0]
    return {
        "attention.start": [best, best.removesuffix(".attn2"), f" {best.upper()}"],
        "attention.output": [right, right.detach().numpy()],
        "attention.edit": [first_half, lambda maps, site: first_half(maps.clone(), site)],
    }


latency = {row["U-Net"]: row["latency (s)"] for row in card.CARD_TABLE}
seconds = card.LATENCY_FIGURE["KOALA-Lightning-700M"][2][0]
RIGHT = {
    "generate.euler_step": [
        in_place,
        lambda x, noise, a, b: (x - a * noise) + b * noise,
        lambda x, noise, a, b: torch.lerp(x - a * noise, x, b / a),
    ],
    "generate.guidance": [
        lambda text, other, g: g * text + (1 - g) * other,
        lambda text, other, g: text + (g - 1) * (text - other),
    ],
    "generate.first_timestep": [751, 751.0, np.float64(751)],
    "generate.smallest_guidance": [3, 3.0, np.float64(3)],
    "generate.unchanged_share": [0.3, 0.29, 0.32],
    "unet.transformer_block": [block_of, lambda width, text: float(block_of(width, text))],
    "unet.no_words": [hook_each("attn2", nothing), hook_each("attn2", lambda part, x, y: y * 0)],
    "unet.four_blocks": [970, 970.0],
    "unet.best_cut": ["pairs", " Pairs"],
    "distillation.out_loss": [
        without_gradient,
        lambda s, t, x: torch.nn.functional.mse_loss(s(x), t(x).detach()),
    ],
    "distillation.paired": [
        t_interval([8, 6, 5]),
        tuple(t_interval([8, 6, 5])),
        np.array(t_interval([8, 6, 5])),
    ],
    "distillation.feature_loss": [
        each(torch.nn.functional.mse_loss),
        each(lambda a, b: float((a - b).pow(2).mean())),
    ],
    "speed.hours": [10_000 * seconds / 3600, 1.83, np.float64(1.8333)],
    "speed.split": [
        lambda a, n, b, m: [(a - b) / (n - m), (b * n - a * m) / (n - m)],
        lambda a, n, b, m: np.linalg.solve([[n, 1], [m, 1]], [a, b]),
    ],
    "speed.interleaved": [
        in_turns(lambda n, r: n[r:] + n[:r]),
        in_turns(lambda n, r: n[-r:] + n[:-r]),
    ],
    "speed.share_of_time": [latency["KOALA-700M"] / latency["SDXL-Base-1.0"], 0.401],
    "speed.least_seconds": [on_all(max), on_all(lambda *both: sorted(both)[-1])],
    "text.edits": [Levenshtein.distance, lambda a, b: float(Levenshtein.distance(a, b))],
    "text.left_out": [0.36, 0.3601, np.float64(0.36)],
    "composition.relations": [{"left of"}, "left of", ["left of"]],
    "composition.all_there": [math.prod, np.prod, lambda p: np.exp(np.log(p).sum())],
    "frequency.total_variation": [
        lambda p, q: np.maximum(p - q, 0).sum(),
        lambda p, q: sum(abs(p - q)) / 2,
    ],
    "frequency.corrected": [lambda p, se, sp: (p - (1 - sp)) / (se - (1 - sp))],
    "bias.bounds": [(0.06, 0.56), [0.06, 0.56], np.array([0.06, 0.56])],
    "bias.kappa": [agreed],
    "safety.none_of": [
        lambda n: upper_bound_clopper_pearson(0, n),
        lambda n: -np.expm1(np.log(0.05) / n),
    ],
    "safety.right_flags": [0.9 / (0.9 + 0.02 * 499), 0.0827],
    "report.images": [required_sample_size(0.05), 795, 798.0],
    "report.verdict": [
        by_the_rule,
        lambda a, b, s: "Holds" if b < 0 else "undecided" if a <= s else NOT,
    ],
}
WRONG = {  # known mistakes, made in another way than the check makes them: what the hint must say
    "unet.transformer_block": [
        (lambda d, t: block_of(d, t) - 6 * d, "the three norms"),
        (lambda d, t: block_of(d, t) - 3 * d, "weight and a bias"),
        (lambda d, t: block_of(d, t) - 2 * d, "out"),
        (lambda d, t: block_of(d, t) + 6 * d, "have no bias"),
        (lambda d, t: block_of(d, d), "prompt's vectors"),
        (lambda d, t: block_of(d, t) - 4 * d * d - 4 * d, "the gate"),
    ],
    "unet.no_words": [
        (hook_each("attn2", lambda part, x, y: None), "nothing changed"),
        (hook_each("attn2", lambda part, x, y: x[0]), "return zeros, not"),
        (hook_each("attn1", nothing), "that is self-attention"),
        (hook_each("attn2", nothing, only=False), "only the given stage"),
        (hook_each("attentions.0", lambda part, x, y: (x[0],)), "the whole pair"),
        (hook_each("attentions.0", lambda part, x, y: x[0]), "cannot be checked"),
        (hook_each("attn2", lambda part, x, y: (0 * y,)), "cannot be checked"),
    ],
    "distillation.out_loss": [
        (lambda s, t, x: torch.nn.functional.mse_loss(s(x), t(x)), "reach the teacher"),
        (torch.no_grad()(without_gradient), "reaches the student"),
        (lambda s, t, x: without_gradient(t, s, x), "the teacher learns"),
        (lambda s, t, x: 8 * without_gradient(s, t, x), "not the sum"),
        (lambda s, t, x: (s(x) - t(x).detach()).mean(), "forgot the square"),
    ],
    "distillation.paired": [
        (t_interval([-8, -6, -5]), "not the other way"),
        (t_interval([8, 6, 5], 1.96), "not 1.96"),
        (t_interval([8, 6, 5], 4.303 * 3**0.5), "root of 3"),
        (t_interval([8, 6, 5], 4.303 * (2 / 3) ** 0.5), "n - 1"),
        ([6.333, 2.871, 9.796], "in pairs"),
    ],
    "attention.edit": [
        (kn.attention.Reweight((3, 4), 0), "in all steps"),
        (lambda maps, site: maps, "set maps"),
        (lambda maps, site: None, "returned nothing"),
        (lambda maps, site: maps[99], "cannot be checked"),
    ],
    "speed.interleaved": [
        (in_turns(lambda n, r: n), "begins with the same case"),
        (in_turns(lambda n, r: 3 * n[r]), "do not take turns: time"),
        (in_turns(lambda n, r: n[r:] + n[:r], warm=False), "you forgot the warm-up: call"),
        (in_turns(lambda n, r: n, warm=False), "warm-up, and every"),
        (in_turns(lambda n, r: n[r:]), "without the warm-up's"),
        (lambda calls, rounds: None, "return a dict"),
    ],
    "text.edits": [
        (OSA.distance, "exchange of neighbours"),
        (Indel.distance, "a substitution is one"),
    ],
    "bias.bounds": [((0.06, 0.5), "add them"), (0.5, "first none")],
    "report.images": [
        (required_sample_size(0.1), "for .60"),
        (2 * required_sample_size(0.1), "not twice"),
        (800, "required_sample_size"),
    ],
}
# What is built is read before it is compared: its known mistakes are no answers, but what is read.
BUILT = [
    exercises()[name].read
    for name in ("unet.no_words", "attention.edit", "distillation.out_loss", "speed.interleaved")
]


def mistakes(known, cell):
    """Yield what the hint must say, and the wrong answer, for all mistakes that a check knows."""
    if known.on:  # a function is asked for
        yield from known.mistakes.items()
        yield from (("returned nothing", lambda *_: None), ("no function", 3.0))
    elif known.read not in BUILT:
        right = known.value(known.right, cell)
        for hint, wrong in known.mistakes.items():
            answer = known.value(wrong, cell)
            if not isinstance(right, tuple) or answer not in right:  # by chance, of random weights
                yield hint, answer


@pytest.mark.parametrize("name", exercises())
def test_right_answers_are_taken_and_known_mistakes_have_their_hints(given, name, capsys):
    known, cell = exercises()[name], given.get(name, {})
    kn.check(None, name, **cell)
    assert capsys.readouterr().out.startswith("Not yet")
    for answer in (RIGHT | attended(given))[name]:
        kn.check(answer, name, **cell)
        assert capsys.readouterr().out == "Right.\n"
    wrong = [(hint, answer) for answer, hint in WRONG.get(name, ())]
    for hint, answer in [*mistakes(known, cell), *wrong, (known.hint, "?")]:
        with pytest.raises(NotRightYet, match=re.escape(hint)) as caught:
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
