"""The published statements on KOALA, the rule that decides each, and the verdict of a report.

The statements and rules stand in `data/reference/claims.yaml`. A statement on images is decided for
the model of the report, by one estimate that its id names; what is counted of U-Nets is compared by
`models.unet.card_comparison`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING

from koala_nb.core import card
from koala_nb.core.files import Record, read_reference
from koala_nb.display.tables import format_interval, format_number
from koala_nb.report.findings import LEGIBLE, images_to_decide
from koala_nb.report.measures import DIFFERENCE, Section

if TYPE_CHECKING:
    import pandas as pd

    from koala_nb.models.load import ModelInfo

HOLDS, NOT = "holds", "does not hold"
UNDECIDED, UNTESTED = "undecided", "not tested"
LONG_TEXT, CEILING = "text.long.exact_folded", "text.reader.long.exact_folded"
COMPLEX, INDEPENDENT = "composition.complex.difference", "composition.complex.expected"
RAREST, SECONDS = "frequency.rarest.difference", "latency.image.seconds"
TIMED = 16  # images at least, for a verdict on latency
SLOWER = 1.1  # times the published seconds: up to here a latency is the published one
UNETS = ("KOALA-1B", "KOALA-700M")
FIGURES = {"value": None, "low": None, "high": None, "n": None}

Decide = Callable[["Evidence"], Record]  # returns a verdict, its figures and why


@dataclass(frozen=True)
class Evidence:
    """All that verdicts rest on."""

    sections: Mapping[str, Section]
    comparison: pd.DataFrame  # as `models.card_comparison` returns it
    info: ModelInfo
    size: int  # pixels per side
    device: str  # name of the device that drew the images
    settings: Mapping[str, object] = field(default_factory=dict)  # what the report changed


@dataclass(frozen=True)
class Claim:
    """A published statement, who states it, and the rule; on_images: of the report's model."""

    id: str
    claim: str
    source: str
    rule: str
    on_images: bool = False


def decide(evidence: Evidence) -> list[Record]:
    """Return each claim with its verdict, as `results.json` holds them."""
    name, embedded = evidence.info.label, evidence.info.domain != "photographic"
    rows = []
    for claim in claims():
        text = claim.claim
        if embedded and claim.id.startswith("limitation."):
            # KOALA's card speaks of KOALA: an embedded model was trained on other data.
            text = f"{text.partition(' (')[0]} (of {name}, by its own training data)"
        row = {"id": claim.id, "claim": text, "source": claim.source, "rule": claim.rule}
        model = name if claim.on_images else None
        rows.append(row | {"model": model} | DECISIONS[claim.id](evidence))
    return rows


def _untested(why: str, estimate: Record | None = None, verdict: str = UNTESTED) -> Record:
    figures = {key: estimate[key] for key in FIGURES} if estimate else FIGURES
    return {"verdict": verdict, **figures, "why": why}


def decide_less_than(
    estimate: Record | None, bar: float, missing: str, excluded: float | None = None
) -> Record:
    """Decide whether a share, or a difference of shares, lies below a bar.

    It holds where the whole interval does; it does not where the whole interval lies above
    `excluded` (default: the bar); else it is undecided. `missing` says why there is no estimate.
    """
    if estimate is None:
        return _untested(missing)
    if estimate["low"] is None:
        return _untested("too few prompts for an interval", estimate)
    refuted = estimate["low"] > (bar if excluded is None else excluded)
    why = f"{estimate['n']:,} of about {images_to_decide(estimate, DIFFERENCE):,} images like these"
    return _by_interval(estimate, estimate["high"] < bar, refuted, estimate["label"], why)


def _by_interval(estimate: Record, holds: bool, refuted: bool, why: str, undecided: str) -> Record:
    if not (holds or refuted):
        return _untested(undecided, estimate, UNDECIDED)
    figures = {key: estimate[key] for key in FIGURES}
    return {"verdict": HOLDS if holds else NOT, **figures, "why": why}


def _long_text(evidence: Evidence) -> Record:
    section = evidence.sections["text"]
    estimate, ceiling = section.best(LONG_TEXT), section.best(CEILING)
    if not (estimate and ceiling):
        missing = "no long texts, or no ceiling of the reader, here"
        return _untested(section.why or missing, estimate)
    if ceiling["low"] <= LEGIBLE:
        can = format_interval(*(ceiling[end] for end in ("value", "low", "high")))
        return _untested(f"the reader itself reads {can} of {ceiling['n']} such texts in a font")
    # A reader that misses some makes the model look worse, never better.
    return decide_less_than(estimate, LEGIBLE * ceiling["low"], "", LEGIBLE)


def _difference(section: str, id: str, missing: str, beside: str = "") -> Decide:
    """Decide that a difference lies below 0; `beside`: an estimate that is told beside it."""

    def decided(evidence: Evidence) -> Record:
        part = evidence.sections[section]
        decision = decide_less_than(part.best(id), 0, part.why or missing, -DIFFERENCE)
        if other := part.best(beside):
            decision["why"] += f"; {other['label']}: {format_number(other['value'])}"
        return decision

    return decided


def _counted(quantity: str) -> Decide:
    def decided(evidence: Evidence) -> Record:
        table = evidence.comparison
        rows = table[(table.quantity == quantity) & table.system.isin(UNETS)]
        why = "; ".join(f"{r.system}: {_text(r.computed)}" for r in rows.itertuples())
        others = table[(table.quantity == quantity) & (table.verdict == NOT)]
        if unlike := sorted(set(others.system) - set(UNETS)):
            why += f" (of {', '.join(unlike)}, no KOALA, the card's line does not hold)"
        verdict = HOLDS if (rows.verdict == HOLDS).all() else NOT
        return {"verdict": verdict, **FIGURES, "n": len(rows), "why": why}

    return decided


def _text(value: object) -> str:
    return {True: "yes", False: "none"}[value] if isinstance(value, bool) else str(value)


def _latency(evidence: Evidence) -> Record:
    info = evidence.info
    title = info.system.title if info.system else info.label
    published = dict(zip(card.LATENCY_GPUS, card.LATENCY_FIGURE.get(title, ())))
    seconds = evidence.sections["latency"].best(SECONDS)
    if evidence.settings.keys() & {"steps", "guidance"}:
        return _untested("drawn with other steps or guidance than the published figures")
    gpu = next((gpu for gpu in published if is_gpu(evidence.device, gpu)), "")
    figure = published.get(gpu)
    if not (figure and seconds and evidence.size == info.recipe.height and info.dtype == "float16"):
        return _untested(f"this report ran {info.label} on {evidence.device}")
    if seconds["n"] < TIMED:
        return _untested(f"{seconds['n']} of {TIMED} images were timed", seconds, UNDECIDED)
    if seconds["low"] is None:
        return _untested("too few batches for an interval", seconds)
    bar, why = SLOWER * figure[0], f"published: {figure[0]} s on {gpu}"
    holds, fails = seconds["high"] <= bar, seconds["low"] > bar
    return _by_interval(seconds, holds, fails, why, f"the interval holds the bar ({why})")


def is_gpu(device: str, published: str) -> bool:
    """Return whether a device's name is that of a published GPU, not of a cut-down one."""
    model = published.split()[1].replace("Ti", " ?Ti")  # "RTX 3060Ti 8GB": the middle names it
    return bool(re.search(rf"\b{model}\b(?! ?(Ti|D|Super|Laptop)\b)", device, re.I))


DECISIONS: dict[str, Decide] = {
    "card.parameters": _counted("parameters"),
    "card.reduction": _counted("reduction"),
    "card.checkpoint": _counted("checkpoint"),
    "card.transformer_blocks": _counted("transformer blocks"),
    "card.mid_block": _counted("mid block"),
    "limitation.long_text": _long_text,
    "limitation.complex_prompts": _difference(
        "composition", COMPLEX, "no prompts of both kinds here", INDEPENDENT
    ),
    "limitation.data_dependence": _difference(
        "frequency",
        RAREST,
        "the frequencies in this model's training data are not known: give a table of them",
    ),
    "figure.latency": _latency,
    "card.training": lambda evidence: _untested("the training code is not public"),
    "card.out_of_scope": lambda evidence: _untested("no image can decide this"),
}


@cache
def claims() -> list[Claim]:
    """Return the statements of the model card, and of the authors' figure, with their rules."""
    lines = {str(line["U-Net"]): line for line in card.CARD_TABLE}
    words = vars(card.CARD) | {
        quantity.replace(" ", "_"): ", ".join(f"{u} {_text(lines[u][quantity])}" for u in UNETS)
        for quantity in ("parameters", "checkpoint", "transformer blocks", "mid block")
    }
    words |= {"legible": LEGIBLE, "timed": TIMED, "slower": SLOWER}
    words["not_less"] = f"does not where it lies above -{DIFFERENCE}"
    words["seconds"], *_ = card.LATENCY_FIGURE["KOALA-Lightning-700M"][2] or (None,)
    sources = {"card": card.CARD_SOURCE, "figure": card.FIGURE_SOURCE}
    rows = read_reference("claims.yaml")
    return [
        Claim(
            row["id"],
            row["claim"].format(**words),
            sources[row["source"]],
            row["rule"].format(**words),
            row.get("on_images", False),
        )
        for row in rows
    ]
