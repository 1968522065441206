"""Exercises: right answers are taken, also in other words; each known mistake has its hint."""

import math

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
    """What the cells of notebook 03 give to the checks, of a tiny KOALA."""
    with kn.capture_attention(loaded) as attention:
        kn.generate(loaded, PROMPT, [0], steps=1, height=64, width=64, progress=False)
    layer = loaded.unet.get_submodule(LAYER)
    torch.manual_seed(0)
    x, text = torch.randn(16, layer.to_q.in_features), torch.randn(77, layer.to_k.in_features)
    return {
        "unet.four_blocks": UNET_GIVEN,
        "unet.best_cut": {"left": {"pairs": 1, "depth": 2, "mid": 3}.get},
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


UNET_GIVEN = {"total": 1000, "block": 10}
UNET = {  # of notebook 02
    "unet.transformer_block": (
        [block_of, lambda width, text: float(block_of(width, text))],
        [
            (lambda d, t: block_of(d, t) - 6 * d, "the three norms"),
            (lambda d, t: block_of(d, t) - 3 * d, "weight and a bias"),
            (lambda d, t: block_of(d, t) - 2 * d, "out"),
            (lambda d, t: block_of(d, t) + 6 * d, "have no bias"),
            (lambda d, t: block_of(d, d), "prompt's vectors"),
            (lambda d, t: block_of(d, t) - 4 * d * d - 4 * d, "the gate"),
            (lambda d, t: 34_755_840, "three norms, two"), (34_755_840, "cannot be checked"),
            (lambda d, t: None, "cannot be checked"),
        ],
    ),
    "unet.no_words": (
        [hook_each("attn2", nothing), hook_each("attn2", lambda part, x, y: y * 0)],
        [
            (hook_each("attn2", lambda part, x, y: None), "nothing changed"),
            (hook_each("attn2", lambda part, x, y: x[0]), "return zeros, not"),
            (hook_each("attn1", nothing), "that is self-attention"),
            (hook_each("attn2", nothing, only=False), "only the given stage"),
            (hook_each("attentions.0", lambda part, x, y: (x[0],)), "the whole pair"),
            (hook_each("attentions.0", lambda part, x, y: x[0]), "cannot be checked"),
            (hook_each("attn2", lambda part, x, y: (0 * y,)), "cannot be checked"),
            (lambda unet: None, "cannot be checked"), (7, "cannot be checked"),
        ],
    ),
    "unet.four_blocks": (
        [970, 970.0],
        [
            (980, "one pair more"), (990, "more than one pair"), (30, "what is left"),
            (940, "one, two or three"), (1030, "not added"), (971, "count the pairs"),
        ],
    ),
    "unet.best_cut": (
        ["pairs", " Pairs"],
        [
            ("mid", "leaves the most"), ("depth", "most parameters"), (3, "compare"),
            ("width", "compare"), ("", "compare"),
        ],
    ),
}  # fmt: skip


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


def on_all(of):
    return lambda flops, moved, rate, bandwidth: of(flops / rate, moved / bandwidth)


latency = {row["U-Net"]: row["latency (s)"] for row in card.CARD_TABLE}
seconds = card.LATENCY_FIGURE["KOALA-Lightning-700M"][2][0]


def by_the_rule(low, high, smallest):
    estimate = {"label": "case", "value": low, "low": low, "high": high, "n": 1000}
    return claims.decide_less_than(estimate | {"clusters": 1000}, 0, "", smallest)["verdict"]


MEASURED = {  # of notebooks 05 to 11
    "speed.hours": (
        [10_000 * seconds / 3600, 1.83, np.float64(1.8333)],
        [
            (110, "minutes"), (6600, "those are seconds"), (2.194, "1B"), (8, "3060"),
            (23.06, "GB for seconds"), (3.49, "25 steps"), (2, "over the seconds"), ("1 h", "over"),
        ],
    ),
    "speed.share_of_time": (
        [latency["KOALA-700M"] / latency["SDXL-Base-1.0"], 0.401],
        [
            (2.49, "turn it round"), (0.305, "parameters"), (0.599, "saved"), (0.512, "KOALA-1B"),
            (0.204, "authors' figure"), (40.1, "not per cent"), (0.5, "one latency"),
        ],
    ),
    "speed.least_seconds": (
        [on_all(max), on_all(lambda *both: sorted(both)[-1])],
        [
            (on_all(lambda a, b: a + b), "not the sum"), (on_all(min), "not the faster"),
            (on_all(lambda a, b: a), "forgot the bytes"), (on_all(lambda a, b: b), "operations"),
            (on_all(lambda a, b: max(1 / a, 1 / b)), "rate over work"),
            (on_all(lambda a, b: None), "returned nothing"), (0.008, "no function"),
        ],
    ),
    "text.edits": (
        [Levenshtein.distance, lambda a, b: float(Levenshtein.distance(a, b))],
        [
            (OSA.distance, "exchange of neighbours"), (Indel.distance, "a substitution is one"),
            (lambda a, b: sum(x != y for x, y in zip(a.ljust(9), b.ljust(9))), "place by place"),
            (lambda a, b: abs(len(a) - len(b)), "length alone"),
            (lambda a, b: Levenshtein.distance(a, b) / max(1, len(a)), "divides it later"),
            (lambda a, b: a == b, "last letters"), (2, "no function"),
        ],
    ),
    "text.left_out": (
        [0.25, 0.2501, np.float64(0.25)],
        [
            (0.5, "mean over readable"), (-0.25, "turn the difference"), (0.75, "small"),
            (2.0, "ratio"), (25, "not per cent"), ("a quarter", "small"),
        ],
    ),
    "composition.relations": (
        [{"left of"}, "left of", ["left of"]],
        [
            ({"left of", "above"}, "above is too weak"), ({"above"}, "weaker part"),
            ("right of", "seen from the first"), (["right of", "below"], "the other is too weak"),
            (set(), "not zero"), ({"below"}, "take 0.06"), (3, "cannot be checked"),
        ],
    ),
    "composition.all_there": (
        [math.prod, np.prod, lambda p: np.exp(np.log(p).sum())],
        [
            (np.mean, "the mean"), (min, "weakest object"), (sum, "can exceed 1"),
            (lambda p: 1 - np.prod(1 - np.array(p)), "at least one"),
            (lambda p: np.prod(1 - np.array(p)), "none is there"), (lambda p: 0.4096, "multiply"),
            (lambda p: print(end=""), "returned nothing"),
        ],
    ),
    "frequency.total_variation": (
        [lambda p, q: np.maximum(p - q, 0).sum(), lambda p, q: sum(abs(p - q)) / 2],
        [
            (lambda p, q: abs(p - q).sum(), "take half"), (lambda p, q: (p - q).sum(), "cancel"),
            (lambda p, q: ((p - q) ** 2).sum() / 2, "not their squares"),
            (lambda p, q: abs(p - q).max(), "largest"), (lambda p, q: abs(p - q).mean(), "mean"),
            (lambda p, q: p.std(), "half of the sum"), (0.6, "no function"),
        ],
    ),
    "frequency.corrected": (
        [lambda p, se, sp: (p - (1 - sp)) / (se - (1 - sp))],
        [
            (lambda p, se, sp: p / se, "falsely found in others"),
            (lambda p, se, sp: (p - (1 - sp)) / se, "divide by Se"),
            (lambda p, se, sp: p - 1 + sp, "numerator"),
            (lambda p, se, sp: p * se + (1 - p) * (1 - sp), "would measure"),
            (lambda p, se, sp: (p + se - 1) / (se + sp - 1), "exchanged"),
            (lambda p, se, sp: p, "solve for true"), (0.4118, "no function"),
        ],
    ),
    "bias.bounds": (
        [(0.06, 0.56), [0.06, 0.56], np.array([0.06, 0.56])],
        [
            ((0.06, 0.5), "add them"), ((0.12, 0.12), "like the others"), ((0.56, 0.06), "first"),
            ((0.06, 0.06), "may be Black"), ((6, 56), "per cent"), ((0.06, 1), "another word"),
            (0.5, "first none"), ("6 to 56", "first none"),
        ],
    ),
    "bias.kappa": (
        [
            lambda c: (np.trace(c) / c.sum() - c.sum(0) @ c.sum(1) / c.sum() ** 2)
            / (1 - c.sum(0) @ c.sum(1) / c.sum() ** 2),
        ],
        [
            (lambda c: np.trace(c) / c.sum(), "agreement itself"),
            (lambda c: 2 * np.trace(c) / c.sum() - 1, "not one half"),
            (lambda c: np.trace(c) / c.sum() - c.sum(0) @ c.sum(1) / c.sum() ** 2, "above chance"),
            (lambda c: c.sum(0) @ c.sum(1) / c.sum() ** 2, "chance alone"),
            (lambda c: 0.0, "observed agreement"), ((0.82, 0), "no function"),
        ],
    ),
    "safety.none_of": (
        [lambda n: upper_bound_clopper_pearson(0, n), lambda n: -np.expm1(np.log(0.05) / n)],
        [
            (lambda n: 3 / n, "rule of three"), (lambda n: 1 - 0.025 ** (1 / n), "one-sided"),
            (lambda n: 0, "no proof"), (lambda n: 1 / n, "one of n"),
            (lambda n: 0.05 ** (1 / n), "what is left"), (lambda n: 0.05, "solve"),
            (0.015, "no function"),
        ],
    ),
    "safety.right_flags": (
        [0.9 / (0.9 + 0.02 * 499), 0.0827],
        [
            (0.9, "turn the question"), (0.917, "false flags"), (0.0902, "all flags"),
            (0.978, "weigh"), (0.002, "before the checker"), (8.27, "not per cent"), (0.1, "over"),
        ],
    ),
    "report.images": (
        [required_sample_size(0.05), 795, 798.0],
        [
            (required_sample_size(0.1), "for .60"), (2 * required_sample_size(0.1), "not twice"),
            (99, "not fewer"), (4 * required_sample_size(0.1), "rule of thumb"),
            (800, "required_sample_size"), (3184, "too many"), ("many", "takes"),
        ],
    ),
    "report.verdict": (
        [by_the_rule, lambda a, b, s: "Holds" if b < 0 else "undecided" if a <= s else NOT],
        [
            (lambda a, b, s: "holds" if b < 0 else NOT, "decides nothing"),
            (lambda a, b, s: "holds" if a + b < 0 else NOT, "not its middle"),
            (lambda a, b, s: "holds" if b < 0 else NOT if a > 0 else "undecided", "above 0"),
            (lambda a, b, s: "holds" if a < 0 else NOT, "upper end"),
            (lambda a, b, s: "undecided", "wholly below"), (lambda a, b, s: None, "nothing"),
            ("undecided", "no function"),
        ],
    ),
}  # fmt: skip


def each(difference, pick=sum):
    return lambda s, t, pairs: pick([difference(s[a], t[b]) for a, b in pairs.items()])


def asked_without_gradient(student, teacher, x):
    with torch.no_grad():
        target = teacher(x)
    return (student(x) - target).pow(2).mean()


def t_interval(change, t=4.303):
    half = t * np.std(change, ddof=1) / len(change) ** 0.5
    return [np.mean(change), np.mean(change) - half, np.mean(change) + half]


DISTILLATION = {  # of notebook 04
    "distillation.out_loss": (
        [asked_without_gradient, lambda s, t, x: torch.nn.functional.mse_loss(s(x), t(x).detach())],
        [
            (lambda s, t, x: torch.nn.functional.mse_loss(s(x), t(x)), "reach the teacher"),
            (torch.no_grad()(asked_without_gradient), "reaches the student"),
            (lambda s, t, x: asked_without_gradient(t, s, x), "the teacher learns"),
            (lambda s, t, x: 8 * asked_without_gradient(s, t, x), "not the sum"),
            (lambda s, t, x: (s(x) - t(x).detach()).mean(), "forgot the square"),
            (lambda s, t, x: None, "cannot be checked"), (0.1, "cannot be checked"),
        ],
    ),
    "distillation.paired": (
        [t_interval([8, 6, 5]), tuple(t_interval([8, 6, 5])), np.array(t_interval([8, 6, 5]))],
        [
            (t_interval([-8, -6, -5]), "not the other way"),
            (t_interval([8, 6, 5], 1.96), "not 1.96"),
            (t_interval([8, 6, 5], 4.303 * 3**0.5), "root of 3"),
            (t_interval([8, 6, 5], 4.303 * (2 / 3) ** 0.5), "n - 1"),
            ([6.333, 2.871, 9.796], "in pairs"), ([6.3], "seed by seed"),
            (6.3, "cannot be checked"),
        ],
    ),
    "distillation.feature_loss": (
        [
            each(torch.nn.functional.mse_loss),
            each(lambda a, b: float((a - b).pow(2).mean())),
        ],
        [
            (each(torch.nn.functional.mse_loss, lambda x: sum(x) / len(x)), "their mean"),
            (lambda s, t, p: sum(((s[n] - t[n]) ** 2).mean() for n in p), "another name"),
            (each(torch.nn.functional.l1_loss), "forgot to square"),
            (each(lambda a, b: (a - b).mean()), "cancel"),
            (each(lambda a, b: ((a - b) ** 2).sum()), "not the sum"),
            (each(lambda a, b: ((a - b) ** 2).mean() ** 0.5), "square root"),
            (lambda s, t, p: None, "returned nothing"),
            (lambda s, t: 0, "cannot be checked"), (0.3, "cannot be checked"),
        ],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", exercises())
def test_right_answers_are_taken_and_five_wrong_ones_are_not(given, name, capsys):
    built = GENERATE | UNET | MEASURED | DISTILLATION
    right, wrong = (answers(given) | built)[name]
    cell = given.get(name, {})
    if name == "distillation.paired":
        cell = {"block": [70, 67, 66], "attention": [62, 61, 61]}
    if name == "text.left_out":
        cell = {"ned": [1.0, 0.0, 0.0, 0.0], "read": ["a", "b", "", ""]}
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
