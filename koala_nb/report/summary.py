"""The audit report in sentences, and as a section of a model card; all from its results."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from koala_nb.report.claims import HOLDS, NOT, UNTESTED
from koala_nb.report.results import Section, Sections, needed, worth

TITLES = {
    "architecture": "Architecture",
    "text": "Text rendering",
    "composition": "Complex prompts",
    "frequency": "Dataset dependence",
    "demographics": "Bias",
    "safety": "Safety",
    "latency": "Latency and memory",
    "quality": "Measured quality",
}
HEADLINES = {  # section -> an estimate, a few words on it, and the end of its sentence
    "text": ("text read as asked", "text as asked", "of the images show the text asked for"),
    "composition": (
        "everything right", "everything right", "of the images hold everything that was asked for",
    ),
    "frequency": (
        "concept drawn", "concept drawn",
        "of the images whose prompt names a single concept show it",
    ),
    "demographics": (
        "perceived presentation woman", "read as women",
        "of the images of people at work, presentation not named, are read as women, uncorrected",
    ),
    "safety": (
        "flagged by the checker", "falsely flagged",
        "of the images of harmless prompts are flagged as unsafe: false alarms only, misses on "
        "unsafe images are not measured",
    ),
}  # fmt: skip
LIMITATION = "limitation"  # begins the claims that are about what images show
CEILINGS = {"text": ("reader's ceiling on long texts", "of long texts drawn by a font")}


def number(value: float | None) -> str:
    """Write a number as the report shows it: a share or seconds to 3 decimals, a count whole."""
    if value is None:
        return "unknown"
    text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3f}"
    return text.replace("-", "\N{MINUS SIGN}")


def interval(estimate: Mapping[str, Any] | None) -> str:
    """Write an estimate's value with its interval, if it has one."""
    if estimate is None:
        return ""
    if estimate["low"] is None or estimate["high"] is None:
        return number(estimate["value"])
    ends = f"{number(estimate['low'])} to {number(estimate['high'])}"
    return f"{number(estimate['value'])} ({ends})"


def sentences(
    name: str, recipe: str, sections: Sections, claims: Sequence[Mapping[str, Any]], images: int
) -> list[str]:
    """Return the executive summary: what was measured, what it decides, what was not tested.

    `recipe` says how the images were drawn; `images` are those at first sight.
    """
    drawn = images + sum(section.n for section in sections.values())
    said = [f"{name} drew {drawn:,} images for this report: {recipe}."]
    said += [_headline(sections[s], one) for s, one in headlines(sections)]
    said += _verdicts(name, claims)
    lacking = [s for s in sections.values() if s.name in HEADLINES and s.state == UNTESTED]
    said += [f"Not tested: {TITLES[s.name].lower()}. {s.why.rstrip('.')}." for s in lacking]
    return said


def headlines(sections: Sections) -> list[tuple[str, dict[str, Any]]]:
    """Return (section, estimate) of each section's first question, of the larger run."""
    found = []
    for section in sections.values():
        start = HEADLINES.get(section.name, ("",))[0]
        names = dict.fromkeys(e["name"] for e in (*section.estimates, *section.stored))
        for name in names:
            if start and (name == start or name.startswith(f"{start}, by")):
                best = section.best(name)
                found += [(section.name, best)] if best else []
    return found


def _headline(section: Section, best: Mapping[str, Any]) -> str:
    _, by, reader = best["name"].rpartition(", by ")
    where = "a stored run of the same weights" if section.is_stored(best) else "this run"
    few = "" if worth(best) >= needed() else "; too few for a verdict"
    return (
        f"{TITLES[section.name]}: {percent(best['value'])} % {HEADLINES[section.name][2]} "
        f"({_ends(best)}, {where}, read by "
        f"{reader if by else best['instrument'].partition(',')[0]}{few}){_ceiling(section)}."
    )


def _ceiling(section: Section) -> str:
    """How much the reader reads of what is surely there, where that was measured."""
    name, what = CEILINGS.get(section.name, ("", ""))
    found = section.best(name)
    share = f"{percent(found['value'])} % ({_ends(found)})" if found else ""
    return f"; {what} at this size it reads {share}" if found else ""


def _ends(estimate: Mapping[str, Any]) -> str:
    ends = f"{percent(estimate['low'])} to {percent(estimate['high'])} %"
    return f"95 % interval {ends}, n {estimate['n']:,}"


def percent(share: float) -> str:
    """Write a share as per cent, to one decimal."""
    return f"{100 * share:.1f}"


def _verdicts(name: str, claims: Sequence[Mapping[str, Any]]) -> list[str]:
    said = []
    limits = [c for c in claims if c["claim"].startswith(LIMITATION)]
    others = [c for c in claims if c not in limits]
    for part, what in (
        (others, "published statements on the models themselves"),
        (limits, f"limitations on the card, judged on images of {name} only"),
    ):
        counts = [(v, sum(c["verdict"] == v for c in part)) for v in (HOLDS, NOT, UNTESTED)]
        told = ", ".join(f"{n} {_verb(v, n)}" for v, n in counts if n)
        said += [f"Of {len(part)} {what}, {told}."] if part else []
    groups = {v: [c["claim"] for c in claims if c["verdict"] == v] for v in (HOLDS, NOT, UNTESTED)}
    for verdict, found in groups.items():
        label = UNTESTED if verdict == UNTESTED else _verb(verdict, len(found))
        texts = found if verdict == NOT else [_short(claim) for claim in found]
        said += [f"{label.capitalize()}: {'; '.join(texts)}."] if found else []
    return said


def _short(claim: str) -> str:
    return claim if claim.startswith(LIMITATION) else claim.partition(":")[0]


def _verb(verdict: str, count: int) -> str:
    one = {HOLDS: "holds", NOT: "does not hold", UNTESTED: "was not tested"}
    many = {HOLDS: "hold", NOT: "do not hold", UNTESTED: "were not tested"}
    return (one if count == 1 else many)[verdict]


def model_card(results: Mapping[str, Any]) -> str:
    """Return Markdown for a model's page on the hub, from a report's results, without any link."""
    model = results["model"]
    drawn = "; ".join(
        f"{name} {value}" for name, value in results["settings"].items() if name != "seeds"
    )
    parts = [
        f"> **{escaped(results['banner'])}.**" if results["banner"] else "",
        "## Evaluation",
        f"Model: {escaped(model['system'])}, revision {escaped(model['revision'])}, "
        f"{escaped(model['dtype'])}. Settings: {escaped(drawn)}; all else as the recipe has it. "
        "Intervals are of 95 %. Shares are 0 to 1.",
        *(f"- {escaped(sentence)}" for sentence in results["summary"][:1]),
    ]
    for name in ("text", "composition", "frequency", "quality", "latency"):
        parts += _card_section(name, results["sections"])
    parts += ["## Bias, Risks, and Limitations"]
    for name in ("demographics", "safety"):
        parts += _card_section(name, results["sections"])
    verdicts = [
        (c["claim"], c["verdict"], interval(c) if c["value"] is not None else "", c["n"] or "",
         c.get("why", ""))
        for c in results["claims"]
    ]  # fmt: skip
    header = ("published statement", "verdict", "value (95 % interval)", "n", "why")
    parts += ["### Published statements", markdown_table(header, verdicts)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _card_section(name: str, sections: Mapping[str, Any]) -> list[str]:
    found = sections.get(name)
    if found is None:
        return []
    rows = [
        (e["name"], interval(e), f"{e['n']:,}", which, e["instrument"])
        for which in ("estimates", "stored") for e in found.get(which, ())
    ]  # fmt: skip
    rows = [(*row[:3], {"estimates": "this run"}.get(row[3], "stored run"), row[4]) for row in rows]
    header = ("measure", "value (95 % interval)", "n", "run", "instrument")
    why = escaped(f"Not tested. {found.get('why', '')}".strip())
    return [f"### {TITLES[name]}", markdown_table(header, rows) if rows else why]


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return a Markdown table; every text is escaped."""
    lines = [header, ["---"] * len(header)]
    texts = [[escaped(value) for value in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in [*lines, *texts])


def escaped(text: Any) -> str:
    """Return a text that Markdown shows as it is: no markup, no link, no second line."""
    plain = " ".join(str(text).split())
    marked = re.sub(r"([\\`*_{}\[\]<>()#|!~$&])", r"\\\1", plain)
    return re.sub(r"(https?):", r"\1\:", marked)
