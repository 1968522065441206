"""The published statements on KOALA, the rule that decides each, and the verdict of a report.

The rules stand here as code and in words, before any result. A statement on images is decided for
the model of the report.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from koala_nb.core import card
from koala_nb.report.measures import COMPLEX, EXPECTED, LONG, SEVERAL
from koala_nb.report.results import CORRELATION, DIFFERENCE, Section, Sections, needed, worth

if TYPE_CHECKING:
    import pandas as pd

    from koala_nb.models.load import ModelInfo

HOLDS, NOT, UNTESTED = "holds", "does not hold", "not tested"
TIMED = 16  # images at least, for a verdict on latency
SLOWER = 1.1  # times the published seconds: up to here a latency is the published one
UNETS = ("KOALA-1B", "KOALA-700M")
COUNTED = {  # quantity of `card_comparison` -> when a figure of the card holds
    "parameters": "built from its configuration, each U-Net has so many millions, rounded or cut",
    "reduction": "parameters are fewer than SDXL-Base's by this per cent, cut to a whole one",
    "checkpoint": "parameters x 2 or 4 bytes, in GB or GiB, give the size",
    "transformer blocks": "the depths of the down stages, built, are the stated ones",
    "mid block": "each U-Net, built, has one or none as stated",
}


@dataclass(frozen=True)
class Evidence:
    """All that verdicts rest on."""

    sections: Sections
    comparison: pd.DataFrame  # as `card_comparison.card_comparison` returns it
    about: ModelInfo
    size: int  # pixels a side
    device: str  # name of the device that drew the images
    recipe: Mapping[str, Any] = field(default_factory=dict)  # what the report changed of it


Decision = dict[str, Any]


@dataclass(frozen=True)
class Claim:
    """A published statement, who states it, and the rule."""

    claim: str
    source: str
    rule: str
    decide: Callable[[Evidence], Decision]


def decide(evidence: Evidence) -> list[dict[str, Any]]:
    """Return each claim with its verdict, as `results.json` holds them."""
    name, embedded = evidence.about.name, evidence.about.domain == "emoji-world"
    found = []
    for claim in claims():
        judged = claim.decide in LIMITS
        # KOALA's card speaks of KOALA: an embedded model was trained on other data.
        told = f" (of {name}, by its own training data)" if judged and embedded else ""
        row = {"claim": claim.claim + told, "source": claim.source, "rule": claim.rule}
        seen = name if judged or claim.decide is _latency else None
        found.append(row | {"model": seen} | claim.decide(evidence))
    return found


def _untested(why: str, estimate: Mapping[str, Any] | None = None) -> Decision:
    keys = ("value", "low", "high", "n")
    told = {key: estimate[key] if estimate else None for key in keys}
    return {"verdict": UNTESTED, **told, "why": why}


def below(
    estimate: Mapping[str, Any] | None, bar: float, missing: str, excluded: float | None = None
) -> Decision:
    """Decide whether a share, or a difference of shares, lies below a bar.

    It holds where the whole interval does; it does not where the whole interval lies above
    `excluded` (default: the bar). Else, and below the planned number of images, nothing is said.
    """
    if estimate is None:
        return _untested(missing)
    if worth(estimate) < needed():
        few = f"worth {worth(estimate):.0f} of {needed()} planned independent images"
        return _untested(f"not tested at this n: {few}", estimate)
    told = {key: estimate[key] for key in ("value", "low", "high", "n")} | {"why": estimate["name"]}
    if estimate["high"] < bar:
        return {"verdict": HOLDS, **told}
    if estimate["low"] > (bar if excluded is None else excluded):
        return {"verdict": NOT, **told}
    return _untested("the interval does not decide", estimate)


def _missing(section: Section, what: str) -> str:
    return section.why or f"no {what} here"


def _long_text(evidence: Evidence) -> Decision:
    section = evidence.sections["text"]
    found = section.best(f"text of {LONG} or more characters read as asked")
    ceiling = section.best("reader's ceiling on long texts")
    if not (found and ceiling):
        return _untested(section.why or "no long texts, or no ceiling of the reader, here", found)
    if ceiling["low"] <= 0.5:
        can = f"{ceiling['value']:.3f} ({ceiling['low']:.3f} to {ceiling['high']:.3f})"
        return _untested(f"the reader itself reads {can} of {ceiling['n']} such texts in a font")
    # A reader that misses some makes the model look worse, never better.
    return below(found, 0.5 * ceiling["low"], "", 0.5)


def _complex(evidence: Evidence) -> Decision:
    section = evidence.sections["composition"]
    decided = below(
        section.best(COMPLEX), 0, _missing(section, "prompts of both kinds"), -DIFFERENCE
    )
    if expected := section.best(f"{COMPLEX}, {EXPECTED}"):
        decided["why"] += f"; {EXPECTED}: {expected['value']:.3f}"
    return decided


def _dependence(evidence: Evidence) -> Decision:
    section = evidence.sections["frequency"]
    found = section.best("rarest fifth less most frequent fifth")
    missing = "the frequencies in this model's training data are not known: give a table of them"
    return below(found, 0, _missing(section, "") if section.why else missing, -DIFFERENCE)


LIMITS = (_long_text, _complex, _dependence)  # decided on images of the report's model


def _counted(quantity: str) -> Callable[[Evidence], Decision]:
    def decided(evidence: Evidence) -> Decision:
        table = evidence.comparison
        own = table[(table.quantity == quantity) & table.system.isin(UNETS)]
        holds = own.verdict.str.startswith(HOLDS).all()
        why = "; ".join(f"{r.system}: {_words(r.computed)}" for r in own.itertuples())
        ends = {"value": None, "low": None, "high": None, "n": len(own)}
        return {"verdict": HOLDS if holds else NOT, **ends, "why": why}

    return decided


def _words(value: Any) -> str:
    return {True: "yes", False: "none"}[value] if isinstance(value, bool) else str(value)


def _latency(evidence: Evidence) -> Decision:
    title = evidence.about.system.title if evidence.about.system else evidence.about.name
    published = dict(zip(card.LATENCY_GPUS, card.LATENCY_FIGURE.get(title, ())))
    seconds = evidence.sections["latency"].best("seconds an image")
    side = 512 if "Turbo" in title else 1024
    if evidence.recipe.keys() & {"steps", "guidance"}:
        return _untested("drawn with other steps or guidance than the published figures")
    for gpu, figure in published.items():
        same = _is_gpu(evidence.device, gpu) and evidence.size == side
        if figure and seconds and same and evidence.about.dtype == "float16":
            if seconds["n"] < TIMED:
                return _untested(f"fewer than {TIMED} images were timed", seconds)
            return _not_slower(seconds, SLOWER * figure[0], f"published: {figure[0]} s on {gpu}")
    return _untested(f"this report ran {evidence.about.name} on {evidence.device}")


def _not_slower(seconds: Mapping[str, Any], bar: float, why: str) -> Decision:
    told = {key: seconds[key] for key in ("value", "low", "high", "n")} | {"why": why}
    if seconds["low"] is None:
        return _untested("too few batches for an interval", seconds)
    if seconds["high"] <= bar:
        return {"verdict": HOLDS, **told}
    if seconds["low"] > bar:
        return {"verdict": NOT, **told}
    return _untested(f"the interval does not decide ({why})", seconds)


def _is_gpu(device: str, published: str) -> bool:
    """Whether a device's name is that of a published GPU, not of a cut-down one."""
    model = published.split()[1].replace("Ti", " ?Ti")  # "RTX 3060Ti 8GB": the middle names it
    return bool(re.search(rf"\b{model}\b(?! ?(Ti|D|Super|Laptop)\b)", device, re.I))


def _never(why: str) -> Callable[[Evidence], Decision]:
    return lambda evidence: _untested(why)


def claims() -> list[Claim]:
    """Return the statements of the model card, and of the authors' figure, with their rules."""
    facts, source = card.CARD, card.CARD_SOURCE
    lines = {str(line["U-Net"]): line for line in card.CARD_TABLE}
    planned = (
        f"from images worth {needed()} independent ones or more, at an assumed correlation of "
        f"{CORRELATION:g} between a prompt's"
    )
    found = []
    for quantity, rule in COUNTED.items():
        stated = ", ".join(f"{name} {_words(lines[name].get(quantity))}" for name in UNETS)
        text = f"{quantity}: {facts.compression if quantity == 'reduction' else stated}"
        found.append(Claim(text, source, rule, _counted(quantity)))
    less = f"does not where it lies above -{DIFFERENCE}; {planned}, on either side"
    limits = (
        (
            f"the share of images that show a text of {LONG} or more characters as asked: holds "
            "where its interval lies below half of what the reader surely reads of such texts in a "
            f"font (the low end of its ceiling), does not where above .5; {planned}; that low end "
            "must be above .5",
            _long_text,
        ),
        (
            f"images with everything right, prompts of {SEVERAL} or more atoms less those of 1: "
            f"holds where the interval lies below 0, {less}. It tells nothing of what binds an "
            "attribute to its object: more atoms can fail, also independently",
            _complex,
        ),
        (
            "concepts drawn right, the fifth that training showed most rarely less the most "
            f"frequent one: holds where the interval lies below 0, {less}",
            _dependence,
        ),
    )
    for limit, (rule, decided) in zip(facts.limitations, limits, strict=True):
        found.append(Claim(f"limitation: {limit}", source, rule, decided))
    speed = (
        "a system, recipe, size and GPU of that figure, in float16: holds where the interval of an "
        f"image's seconds, over batches of {TIMED} or more images in all, ends at {SLOWER} times "
        "the published ones or before, does not where it begins above"
    )
    stated = "latency: KOALA-Lightning-700M 0.66 s on an RTX 4090, and others".replace(
        "0.66", str((card.LATENCY_FIGURE["KOALA-Lightning-700M"][2] or (None,))[0])
    )
    found.append(Claim(stated, card.FIGURE_SOURCE, speed, _latency))
    found.append(
        Claim(f"training: {facts.training}", source, "none: images cannot tell how it was trained",
              _never("the training code is not public"))
    )  # fmt: skip
    found.append(
        Claim(f"out of scope: {facts.out_of_scope}", source,
              "none: it is about what is said of a picture", _never("no image can decide this"))
    )  # fmt: skip
    return found
