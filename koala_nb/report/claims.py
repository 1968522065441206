"""The published statements on KOALA, the rule that decides each, and the verdict of a report.

The rules stand here as code and in words, before any result. A statement on images is decided for
the model of the report, by one estimate that its id names.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from koala_nb.core import card
from koala_nb.report.measures import (
    CORRELATION,
    DIFFERENCE,
    Section,
    effective_sample_size,
    required_sample_size,
)

if TYPE_CHECKING:
    import pandas as pd

    from koala_nb.models.load import ModelInfo

HOLDS, NOT, UNTESTED = "holds", "does not hold", "not tested"
LONG_TEXT, CEILING = "text.long.exact_folded", "text.reader.long.exact_folded"
COMPLEX, INDEPENDENT = "composition.complex.difference", "composition.complex.expected"
RAREST, SECONDS = "frequency.rarest.difference", "latency.image.seconds"
LEGIBLE = 0.5  # share of long texts from which a model writes them
TIMED = 16  # images at least, for a verdict on latency
SLOWER = 1.1  # times the published seconds: up to here a latency is the published one
UNETS = ("KOALA-1B", "KOALA-700M")
FIGURES = {"value": None, "low": None, "high": None, "n": None}

Decision = dict[str, Any]
Decide = Callable[["Evidence"], Decision]


@dataclass(frozen=True)
class Evidence:
    """All that verdicts rest on."""

    sections: Mapping[str, Section]
    comparison: pd.DataFrame  # as `models.card_comparison` returns it
    info: ModelInfo
    size: int  # pixels per side
    device: str  # name of the device that drew the images
    settings: Mapping[str, Any] = field(default_factory=dict)  # what the report changed


@dataclass(frozen=True)
class Claim:
    """A published statement, who states it, and the rule; on_images: of the report's model."""

    id: str
    claim: str
    source: str
    rule: str
    decide: Decide
    on_images: bool = False
    is_limitation: bool = False


def decide(evidence: Evidence) -> list[dict[str, Any]]:
    """Return each claim with its verdict, as `results.json` holds them."""
    name, embedded = evidence.info.name, evidence.info.domain != "photographic"
    rows = []
    for claim in claims():
        # KOALA's card speaks of KOALA: an embedded model was trained on other data.
        of_model = f" (of {name}, by its own training data)"
        text = claim.claim + (of_model if claim.is_limitation and embedded else "")
        model = name if claim.on_images else None
        row = {"id": claim.id, "claim": text, "source": claim.source, "rule": claim.rule}
        rows.append(row | {"model": model} | claim.decide(evidence))
    return rows


def _untested(why: str, estimate: Mapping[str, Any] | None = None) -> Decision:
    figures = {key: estimate[key] for key in FIGURES} if estimate else FIGURES
    return {"verdict": UNTESTED, **figures, "why": why}


def decide_less_than(
    estimate: Mapping[str, Any] | None, bar: float, missing: str, excluded: float | None = None
) -> Decision:
    """Decide whether a share, or a difference of shares, lies below a bar.

    It holds where the whole interval does; it does not where the whole interval lies above
    `excluded` (default: the bar). Else, and below the planned number of images, nothing is said;
    `missing` says why there is no estimate.
    """
    if estimate is None:
        return _untested(missing)
    size, required = effective_sample_size(estimate), required_sample_size()
    if size < required:
        few = f"as good as {size:.0f} of {required} planned independent images"
        return _untested(f"not tested at this n: {few}", estimate)
    figures = {key: estimate[key] for key in FIGURES} | {"why": estimate["label"]}
    if estimate["high"] < bar:
        return {"verdict": HOLDS, **figures}
    if estimate["low"] > (bar if excluded is None else excluded):
        return {"verdict": NOT, **figures}
    return _untested("the interval does not decide", estimate)


def _long_text(evidence: Evidence) -> Decision:
    section = evidence.sections["text"]
    estimate, ceiling = section.best(LONG_TEXT), section.best(CEILING)
    if not (estimate and ceiling):
        missing = "no long texts, or no ceiling of the reader, here"
        return _untested(section.why or missing, estimate)
    if ceiling["low"] <= LEGIBLE:
        can = f"{ceiling['value']:.3f} ({ceiling['low']:.3f} to {ceiling['high']:.3f})"
        return _untested(f"the reader itself reads {can} of {ceiling['n']} such texts in a font")
    # A reader that misses some makes the model look worse, never better.
    return decide_less_than(estimate, LEGIBLE * ceiling["low"], "", LEGIBLE)


def _difference(section: str, id: str, missing: str, beside: str = "") -> Decide:
    """Decide that a difference lies below 0; `beside`: an estimate that is told beside it."""

    def decided(evidence: Evidence) -> Decision:
        part = evidence.sections[section]
        decision = decide_less_than(part.best(id), 0, part.why or missing, -DIFFERENCE)
        if other := part.best(beside):
            decision["why"] += f"; {other['label']}: {other['value']:.3f}"
        return decision

    return decided


def _counted(quantity: str) -> Decide:
    def decided(evidence: Evidence) -> Decision:
        table = evidence.comparison
        rows = table[(table.quantity == quantity) & table.system.isin(UNETS)]
        why = "; ".join(f"{r.system}: {_text(r.computed)}" for r in rows.itertuples())
        verdict = HOLDS if (rows.verdict == HOLDS).all() else NOT
        return {"verdict": verdict, **FIGURES, "n": len(rows), "why": why}

    return decided


def _text(value: Any) -> str:
    return {True: "yes", False: "none"}[value] if isinstance(value, bool) else str(value)


def _latency(evidence: Evidence) -> Decision:
    info = evidence.info
    title = info.system.title if info.system else info.name
    published = dict(zip(card.LATENCY_GPUS, card.LATENCY_FIGURE.get(title, ())))
    seconds = evidence.sections["latency"].best(SECONDS)
    side = 512 if "Turbo" in title else 1024
    if evidence.settings.keys() & {"steps", "guidance"}:
        return _untested("drawn with other steps or guidance than the published figures")
    for gpu, figure in published.items():
        same = is_gpu(evidence.device, gpu) and evidence.size == side
        if figure and seconds and same and info.dtype == "float16":
            return _not_slower(seconds, SLOWER * figure[0], f"published: {figure[0]} s on {gpu}")
    return _untested(f"this report ran {info.name} on {evidence.device}")


def _not_slower(seconds: Mapping[str, Any], bar: float, why: str) -> Decision:
    if seconds["n"] < TIMED:
        return _untested(f"fewer than {TIMED} images were timed", seconds)
    if seconds["low"] is None:
        return _untested("too few batches for an interval", seconds)
    figures = {key: seconds[key] for key in FIGURES} | {"why": why}
    if seconds["high"] <= bar:
        return {"verdict": HOLDS, **figures}
    if seconds["low"] > bar:
        return {"verdict": NOT, **figures}
    return _untested(f"the interval does not decide ({why})", seconds)


def is_gpu(device: str, published: str) -> bool:
    """Return whether a device's name is that of a published GPU, not of a cut-down one."""
    model = published.split()[1].replace("Ti", " ?Ti")  # "RTX 3060Ti 8GB": the middle names it
    return bool(re.search(rf"\b{model}\b(?! ?(Ti|D|Super|Laptop)\b)", device, re.I))


def _never(why: str) -> Decide:
    return lambda evidence: _untested(why)


def claims() -> list[Claim]:
    """Return the statements of the model card, and of the authors' figure, with their rules."""
    facts, source = card.CARD, card.CARD_SOURCE
    lines = {str(line["U-Net"]): line for line in card.CARD_TABLE}
    long_text, complex_prompts, dependence = facts.limitations
    planned = (
        f"from images that count for {required_sample_size()} independent ones or more, at an "
        f"assumed correlation of {CORRELATION:g} between a prompt's"
    )
    less = f"does not where it lies above -{DIFFERENCE}; {planned}, on either side"
    seconds, *_ = card.LATENCY_FIGURE["KOALA-Lightning-700M"][2] or (None,)

    def stated(quantity: str) -> str:
        return ", ".join(f"{name} {_text(lines[name][quantity])}" for name in UNETS)

    def counted(id: str, quantity: str, text: str, rule: str) -> Claim:
        return Claim(f"card.{id}", f"{quantity}: {text}", source, rule, _counted(quantity))

    def limitation(id: str, text: str, rule: str, decided: Decide) -> Claim:
        claim = f"limitation: {text}"
        return Claim(f"limitation.{id}", claim, source, rule, decided, True, True)

    return [
        counted(
            "parameters",
            "parameters",
            stated("parameters"),
            "built from its configuration, each U-Net has so many millions, rounded or cut",
        ),
        counted(
            "reduction",
            "reduction",
            facts.compression,
            "parameters are fewer than SDXL-Base's by this per cent, cut to a whole one",
        ),
        counted(
            "checkpoint",
            "checkpoint",
            stated("checkpoint"),
            "parameters x 2 or 4 bytes, in GB or GiB, give the size",
        ),
        counted(
            "transformer_blocks",
            "transformer blocks",
            stated("transformer blocks"),
            "the depths of the down stages, built, are the stated ones",
        ),
        counted(
            "mid_block",
            "mid block",
            stated("mid block"),
            "each U-Net, built, has one or none as stated",
        ),
        limitation(
            "long_text",
            long_text,
            "the share of images that show a long text (of 16 or more characters) as asked: holds "
            "where its interval lies below half of what the reader surely reads of such texts in a "
            f"font (the low end of its ceiling), does not where above {LEGIBLE}; {planned}; that "
            f"low end must be above {LEGIBLE}",
            _long_text,
        ),
        limitation(
            "complex_prompts",
            complex_prompts,
            "images with everything right, prompts of 3 or more atoms less those of 1: holds where "
            f"the interval lies below 0, {less}. It tells nothing of what binds an attribute to "
            "its object: more atoms can fail, also independently",
            _difference("composition", COMPLEX, "no prompts of both kinds here", INDEPENDENT),
        ),
        limitation(
            "data_dependence",
            dependence,
            "concepts drawn right, the fifth that training showed most rarely less the most "
            f"frequent one: holds where the interval lies below 0, {less}",
            _difference(
                "frequency",
                RAREST,
                "the frequencies in this model's training data are not known: give a table of them",
            ),
        ),
        Claim(
            "figure.latency",
            f"latency: KOALA-Lightning-700M {seconds} s on an RTX 4090, and others",
            card.FIGURE_SOURCE,
            "a system, recipe, size and GPU of that figure, in float16: holds where the interval "
            f"of an image's seconds, over batches of {TIMED} or more images in all, ends at "
            f"{SLOWER} times the published ones or before, does not where it begins above",
            _latency,
            True,
        ),
        Claim(
            "card.training",
            f"training: {facts.training}",
            source,
            "none: images cannot tell how it was trained",
            _never("the training code is not public"),
        ),
        Claim(
            "card.out_of_scope",
            f"out of scope: {facts.out_of_scope}",
            source,
            "none: it is about what is said of a picture",
            _never("no image can decide this"),
        ),
    ]
