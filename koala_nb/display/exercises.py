"""The checks of exercises, by name: friendly before an answer, clear after a wrong one."""

import math
import reprlib
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from numbers import Integral, Real
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

# What an answer of the wrong kind may raise.
CANNOT_CHECK = ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError


class NotRightYet(AssertionError):
    """A wrong answer: shown in a notebook as one sentence, without a traceback."""

    def _render_traceback_(self) -> list[str]:
        # IPython calls this in place of its own traceback.
        return [f"Not right yet: {self}"]


@dataclass(frozen=True)
class Exercise:
    """An exercise's answers: values, or functions of what its cell gives to `check` by name.

    right: the answer, or a tuple of all. mistakes: a hint -> the answer that needs it. on: cases,
    each a tuple of arguments, where a function is to be built: all answers are then functions,
    compared by what they return. read: turns what was answered into what is compared.
    """

    right: object
    hint: str
    mistakes: Mapping[str, object] = field(default_factory=dict)
    on: Sequence[tuple] = ()
    read: Callable[..., object] = lambda answer: answer  # noqa: E731

    def value(self, known: object, given: Mapping[str, object]) -> object:
        """Return a known answer as it is compared."""
        if self.on:
            return self.returned(known)
        return known(**given) if callable(known) else known

    def returned(self, built: object) -> list[object]:
        """Return what a function makes of each case; TypeError where it returns nothing."""
        if not callable(built):
            raise TypeError("it is no function")
        made = [built(*deepcopy(case)) for case in self.on]
        if any(value is None for value in made):
            raise TypeError("the function returned nothing: return its result")
        return made


def check(
    answer: object, exercise: str | Callable[..., bool], hint: str = "", **given: object
) -> None:
    """Print what to do without an answer (None) and "Right." for a right one.

    exercise: a name in `exercises()`, checked with what is `given`; or a function that says whether
    an answer is right, with its hint. Counts are compared exactly, other numbers to 1 %, text
    without regard to case. NotRightYet with a hint, a known mistake's own where it is one.
    """
    if answer is None:
        print("Not yet: replace None by your answer and run this cell again.")
        return
    known = exercises().get(exercise) if isinstance(exercise, str) else None
    if isinstance(exercise, str) and known is None:
        raise ValueError(f"There is no exercise {exercise!r}: copy the cell's own name.")
    hint = known.hint if known else hint
    try:
        if known:
            right, hint = _judge(answer, known, given)
        elif callable(exercise):
            right = bool(exercise(answer))
    except CANNOT_CHECK as error:
        raise NotRightYet(f"{_short(answer)} cannot be checked ({error}). Hint: {hint}") from None
    if not right:
        raise NotRightYet(f"{_short(answer)} is not the answer. Hint: {hint}")
    print("Right.")


def exercises() -> dict[str, Exercise]:
    """Return every exercise by its name."""
    from koala_nb.display.exercises_measured import MEASURED  # which needs what is above

    return EXERCISES | MEASURED


def _judge(answer: object, exercise: Exercise, given: Mapping[str, object]) -> tuple[bool, str]:
    right = exercise.value(exercise.right, given)
    answer = exercise.returned(answer) if exercise.on else exercise.read(answer)
    accepted = right if isinstance(right, tuple) else (right,)
    if any(_same(answer, value) for value in accepted):
        return True, ""
    for hint, wrong in exercise.mistakes.items():
        if _same(answer, exercise.value(wrong, given)):
            return False, hint
    if isinstance(accepted[0], Real) and _same(answer, 100 * float(accepted[0])):
        return False, "give a share between 0 and 1, not per cent."
    return False, exercise.hint


def _same(answer: object, value: object) -> bool:
    if isinstance(value, list):  # of any kinds, one per case
        if not isinstance(answer, Sequence) or len(answer) != len(value):
            return False
        return all(_same(one, other) for one, other in zip(answer, value))
    if isinstance(value, str):
        return isinstance(answer, str) and answer.strip().casefold() == value.casefold()
    if isinstance(value, Real):
        if not isinstance(answer, Real) or isinstance(answer, bool):
            return False
        tolerance = 0 if isinstance(value, Integral) else 0.01
        return math.isclose(float(answer), float(value), rel_tol=tolerance, abs_tol=1e-9)
    expected, given = (
        np.asarray(x.detach().float().cpu() if hasattr(x, "detach") else x) for x in (value, answer)
    )
    return expected.shape == given.shape and np.allclose(expected, given, rtol=1e-3, atol=1e-4)


def _short(answer: object) -> str:
    shape = getattr(answer, "shape", None)
    return reprlib.repr(answer) if shape is None else f"An array of shape {tuple(shape)}"


# --- 01 Generate images -------------------------------------------------------------------------


def latents_and(*numbers: float) -> list[tuple]:
    """Return one case of two random latents, (1, 4, 4, 4), and these numbers."""
    pair = torch.randn((2, 1, 4, 4, 4), generator=torch.Generator().manual_seed(0))
    return [(*pair, *numbers)]


# --- 02 Inspect the U-Net -----------------------------------------------------------------------

BLOCK_SIZES = (1280, 2048), (640, 2048), (128, 192)  # width, numbers per token of the prompt


def transformer_block(
    width: int, text: int, norms: float = 3, out_bias: int = 1, narrow: bool = False, gate: int = 2
) -> int:
    """Return a transformer block's parameters; the keywords make the known mistakes."""
    source = width if narrow else text
    attentions = 6 * width * width + 2 * width * source + 2 * out_bias * width
    inner = 4 * width
    feed_forward = width * gate * inner + gate * inner + inner * width + width
    return int(2 * norms * width) + attentions + feed_forward


def drawn_without(switch_off: Callable[[nn.Module, str], object]) -> np.ndarray:
    """Return what a small U-Net with random weights answers after `switch_off(unet, stage)`."""
    from diffusers import UNet2DConditionModel

    shape: dict[str, Any] = {"block_out_channels": (8, 16), "norm_num_groups": 4}
    shape |= {"down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "layers_per_block": 1}
    shape |= {"up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"), "cross_attention_dim": 8}
    unet = UNet2DConditionModel(**shape, attention_head_dim=4, mid_block_type=None)
    with torch.no_grad():
        for weight in unet.parameters():
            weight.copy_(torch.linspace(0.1, 30, weight.numel()).sin().view_as(weight) / 3)
        switch_off(unet, "up_blocks.0")
        x, text = torch.linspace(-1, 1, 256).view(1, 4, 8, 8), torch.eye(8)[None]
        return unet(x, 500, encoder_hidden_states=text).sample.numpy()


def hooked(kind: str, hook: Callable[..., object], stage: str = "up_blocks.0") -> Callable:
    """Return a function of what the U-Net of `drawn_without` answers with a hook on each `kind`."""

    def switch_off(unet: nn.Module, _: str) -> None:
        for name, module in unet.named_modules():
            if name.startswith(stage) and name.endswith(kind):
                module.register_forward_hook(hook)

    return partial(drawn_without, switch_off)


Features = Mapping[str, Tensor]  # outputs of modules, by name
CUTS = "pairs", "depth", "mid"


# --- 03 See attention ---------------------------------------------------------------------------


def attend(
    layer: nn.Module,
    x: Tensor,
    text: Tensor,
    scaled: bool = True,
    heads: int | None = None,
    over: int = -1,
    projected: bool = True,
) -> Tensor:
    """Return a layer's output, (positions, channels); the switches make the known mistakes."""
    parts = [layer.to_q(x), layer.to_k(text), layer.to_v(text)]
    q, k, v = (part.unflatten(-1, (heads or layer.heads, -1)).transpose(0, 1) for part in parts)
    logits = q @ k.mT / (math.sqrt(q.shape[-1]) if scaled else 1)  # heads, positions, tokens
    merged = (logits.softmax(over) @ v).transpose(0, 1).flatten(1)  # positions, channels
    return layer.to_out[0](merged) if projected else merged


def layer_of_start(attention: Any, prompt: str, of: Callable[[np.ndarray], float] = np.mean) -> str:
    """Return the layer of captured attention with the largest share of "[start]"."""
    shares = {n: of(attention.words(prompt, layers=n)["[start]"]) for n in attention.layers()}
    return max(shares, key=lambda name: shares[name])


def stage_of(layer: str) -> str:
    """Return the stage of a layer, such as "up_blocks.0"."""
    return ".".join(layer.split(".")[:2])


TOKENS, EDITED_STEPS, HALF = (3, 4), 10, 5


def apply_by_step(edit: Callable[..., Tensor]) -> np.ndarray:
    """Return what an edit makes of ones in ten steps, (steps, tokens); TypeError for no maps."""
    rows = []
    for step in range(EDITED_STEPS):
        site = SimpleNamespace(step=step, steps=EDITED_STEPS, layer="up_blocks.1", images=range(1))
        maps = edit(torch.ones(1, 2, 4, 4, 8), site)
        if maps is None:
            raise TypeError("the edit returned nothing: return maps")
        rows.append(np.asarray(maps)[0, 0, 0, 0])
    return np.stack(rows)


def without_tokens(steps: range = range(HALF), keep: bool = False) -> np.ndarray:
    """Return what is right for `apply_by_step`, or for other steps, or all tokens but those."""
    expected = np.ones((EDITED_STEPS, 8))
    chosen = np.isin(np.arange(8), TOKENS) != keep
    expected[np.ix_(np.array(steps), np.flatnonzero(chosen))] = 0
    return expected


# --- 04 Distill self-attention ------------------------------------------------------------------


def features_and_pairs() -> list[tuple]:
    """Return random features of a student and its teacher, of two sizes, and their pairs."""
    generator = torch.Generator().manual_seed(0)
    small, large, unused = (
        torch.randn(shape, generator=generator) for shape in [(2, 4, 3), (2, 9, 5), (2, 9, 5)]
    )
    pairs = {"down": "down", "up.1": "up.2"}
    student = {"down": small, "up.1": large}
    return [(student, {"down": 2 * small, "up.1": unused, "up.2": 4 * large}, pairs)]


def over_pairs(
    difference: Callable[..., Tensor], mean: bool = False, paired: bool = True
) -> Callable[..., Tensor]:
    """Return a feature loss: the sum (or mean) of a difference over pairs (or equal names)."""

    def loss(student: Features, teacher: Features, pairs: Mapping[str, str]) -> Tensor:
        names = pairs if paired else dict(zip(pairs, pairs))
        parts = [difference(student[n] - teacher[other]) for n, other in names.items()]
        return sum(parts[1:], parts[0]) / (len(parts) if mean else 1)

    return loss


EXERCISES = {
    "generate.euler_step": Exercise(
        lambda x, noise, sigma, after: x + noise * (after - sigma),
        "at sigma the latent is clean + sigma * noise; at sigma_next it is to be "
        "clean + sigma_next * noise.",
        {
            "the noise level falls, so sigma_next - sigma is negative; yours adds noise.": (
                lambda x, noise, sigma, after: x + noise * (sigma - after)
            ),
            "you removed all of the noise: that is the clean latent which the network expects.": (
                lambda x, noise, sigma, after: x - noise * sigma
            ),
            "the step is the difference of the two levels, not the next level.": (
                lambda x, noise, sigma, after: x + noise * after
            ),
            "that removes a noise of sigma_next and leaves the rest.": (
                lambda x, noise, sigma, after: x - noise * after
            ),
            "the noise is that of sigma 1: multiply it by the difference of the levels.": (
                lambda x, noise, sigma, after: x - noise
            ),
        },
        on=latents_and(14.0, 5.0),
    ),
    "generate.guidance": Exercise(
        lambda text, other, g: other + g * (text - other),
        "go from unconditional towards conditional, guidance times as far.",
        {
            "begin at unconditional: at guidance 1 the result must be conditional itself.": (
                lambda text, other, g: text + g * (text - other)
            ),
            "conditional and unconditional are exchanged: yours moves away from the prompt.": (
                lambda text, other, g: text + g * (other - text)
            ),
            "that is the difference alone: it is to be added to unconditional.": (
                lambda text, other, g: g * (text - other)
            ),
            "unconditional has no effect in yours.": (lambda text, other, g: g * text),
            "guidance has no effect in yours.": (lambda text, other, g: text),
        },
        on=latents_and(3.5),
    ),
    "generate.first_timestep": Exercise(
        751,
        "1000 / 4 is the distance between timesteps, the offset is 1, and counting starts at 0.",
        {
            "you forgot the offset: steps_offset is 1 in KOALA's scheduler file.": 750,
            "that is where trailing starts.": 999,
            "that is where ten steps start; here there are four.": 901,
            "that is the last of the four.": 1,
            "timesteps are counted from 0, and leading stops before the end.": 1000,
        },
    ),
    "generate.smallest_guidance": Exercise(
        3.0,
        "try generated_share(2.0) and go up by one half.",
        {
            "just not: the share is still above .10 there.": 2.5,
            "the share is below .10 there, but at a smaller guidance as well.": 3.5,
            "go up in steps of one half.": 2.59,
        },
    ),
    "generate.unchanged_share": Exercise(
        0.30,
        "look at `conditional - unconditional` in the formula: when is it zero?",
        {
            "with that the example was made: .30 becomes .05.": 0.50,
            "that is the share of the other kind.": 0.70,
        },
        read=lambda share: 0.30 if abs(share - 0.30) <= 0.0201 else share,
    ),
    "unet.transformer_block": Exercise(
        transformer_block,
        "three norms, two attentions, one feed-forward network; mind which maps have a bias.",
        {
            "you forgot the three norms.": partial(transformer_block, norms=0),
            "a norm has a weight and a bias.": partial(transformer_block, norms=1.5),
            "the map *out* of each attention has a bias.": partial(transformer_block, out_bias=0),
            "query, key and value have no bias.": partial(transformer_block, out_bias=4),
            "key and value of cross-attention start from the prompt's vectors.": partial(
                transformer_block, narrow=True
            ),
            "the feed-forward network goes to 8 widths: half of them are the gate.": partial(
                transformer_block, gate=1
            ),
        },
        BLOCK_SIZES,
    ),
    "unet.four_blocks": Exercise(
        lambda total, block: total - 3 * block,
        "count the pairs of down_blocks.2 and up_blocks.0, and use the answer to exercise 2.",
        {
            "each pair loses a block, and an up stage has one pair more than a down stage.": (
                lambda total, block: total - 2 * block
            ),
            "more than one pair is that deep.": lambda total, block: total - block,
            "that is what is removed; what is left?": lambda total, block: 3 * block,
            "these stages have one, two or three pairs; only those of five blocks lose one.": (
                lambda total, block: total - 6 * block
            ),
            "blocks are removed, not added.": lambda total, block: total + 3 * block,
        },
    ),
    "unet.best_cut": Exercise(
        lambda left: min(CUTS, key=left),
        'compare operations("pairs"), operations("depth") and operations("mid").',
        {
            "that leaves the most operations.": lambda left: max(CUTS, key=left),
            "that removes the most parameters, but not the most operations.": lambda left: sorted(
                CUTS, key=left
            )[1],
        },
    ),
    "unet.no_words": Exercise(
        hooked("attn2", lambda part, x, y: 0 * y),
        "hook each module of the stage whose name ends with attn2; it is added: let it answer 0.",
        {
            "nothing changed: return what takes the output's place.": hooked(
                "attn2", lambda *_: None
            ),
            "attn2's answer is added to its input: return zeros, not the input.": hooked(
                "attn2", lambda part, x, y: x[0]
            ),
            "that is self-attention (attn1).": hooked("attn1", lambda part, x, y: 0 * y),
            "only the given stage may change.": hooked("attn2", lambda part, x, y: 0 * y, ""),
            "that is the whole pair.": hooked("attentions.0", lambda part, x, y: x),
        },
        read=drawn_without,
    ),
    "attention.start": Exercise(
        lambda attention, prompt: (
            layer_of_start(attention, prompt),
            layer_of_start(attention, prompt).removesuffix(".attn2"),
        ),
        "compare attention.words(prompt, layers=name)['[start]'].mean() over attention.layers().",
        {
            "that is its stage; which layer of it?": lambda attention, prompt: stage_of(
                layer_of_start(attention, prompt)
            ),
            "that layer has the largest single value; take the mean over positions.": (
                lambda attention, prompt: layer_of_start(attention, prompt, np.max)
            ),
            "that layer has the smallest share.": lambda attention, prompt: layer_of_start(
                attention, prompt, lambda values: -float(values.mean())
            ),
        },
    ),
    "attention.output": Exercise(
        attend,
        "softmax over the tokens, times the values, heads side by side, then layer.to_out[0].",
        {
            "you forgot to divide by the square root of d.": partial(attend, scaled=False),
            "you forgot the heads: each has its own softmax.": partial(attend, heads=1),
            "softmax over the tokens (the last axis), not over the positions.": partial(
                attend, over=-2
            ),
            "one step is missing: layer.to_out[0].": partial(attend, projected=False),
        },
    ),
    "attention.edit": Exercise(
        without_tokens(),
        "set maps[..., list(tokens)] to 0 where site.step < site.steps / 2, and return maps.",
        {
            "that removes the word in all steps.": without_tokens(range(EDITED_STEPS)),
            "that is the second half of the steps.": without_tokens(range(HALF, EDITED_STEPS)),
            "that is one step too many: the first step is 0.": without_tokens(range(HALF + 1)),
            "that keeps the word and removes all others.": without_tokens(keep=True),
        },
        read=apply_by_step,
    ),
    "distillation.feature_loss": Exercise(
        over_pairs(lambda d: d.square().mean()),
        "for each pair, the mean of the squared differences; then the sum over pairs.",
        {
            "L_feat is the sum over pairs; yours is their mean.": over_pairs(
                lambda d: d.square().mean(), mean=True
            ),
            "look the teacher's module up in pairs: it may have another name.": over_pairs(
                lambda d: d.square().mean(), paired=False
            ),
            "you forgot to square the differences.": over_pairs(lambda d: d.abs().mean()),
            "positive and negative differences cancel: square them first.": over_pairs(torch.mean),
            "within a pair take the mean, not the sum.": over_pairs(lambda d: d.square().sum()),
            "no square root: L_feat sums mean squared differences.": over_pairs(
                lambda d: d.square().mean().sqrt()
            ),
        },
        on=features_and_pairs(),
    ),
}
