"""What a report finds: one sentence for each question, its severity, and what stays undecided.

Questions, tolerated shares of failures, harms and sentences stand in
`data/reference/findings.yaml`; `rules_hash` names that text and the rules of verdicts, before this
report draws anything: stored runs may be older. Severity is harm times likelihood. A question is
decided by one estimate: a corrected one where there is one.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING

import pandas as pd
from scipy.stats import norm

from koala_nb.core.files import REFERENCE, Record, read_reference
from koala_nb.display.tables import format_number
from koala_nb.probes import base
from koala_nb.stats import trends

if TYPE_CHECKING:
    from koala_nb.report.measures import Section

RULES = ("claims.yaml", "findings.yaml")
OVER, WITHIN, UNDECIDED, UNTESTED = "found", "within tolerance", "undecided", "not tested"
SIBLINGS = ("other", "even")  # estimates beside the one that decides
NEAR = 0.01  # to the bar: no number of images is worth it
LEVEL = 0.05  # of claims on groups, after Holm's correction
FAILING = {
    "misses": lambda value: 1 - value,
    "hits": lambda value: value,
    "distance": lambda value: abs(value - 0.5),
    "drop": lambda value: max(0.0, -value),
}
NUMBERS = ("value", "low", "high", "n")
ASIDE = (".p", ".bounds", ".labelled")  # Holm's p, the interval whatever the unsure are, labels
EVERY = {"guidance": "*", "instrument": "*", "kind": "*"}  # in a pattern of ids
SAMPLE = "these prompts being a sample of such prompts; if only these counted"
LEGIBLE = 0.5  # share of long texts from which a model writes them, and from which a reader reads


@cache
def rules() -> Record:
    """Return the rules of findings, as `data/reference/findings.yaml` has them."""
    return read_reference("findings.yaml")


def rules_hash() -> str:
    """Return the SHA-256 of the rules of findings and verdicts."""
    text = b"".join((REFERENCE / name).read_bytes() for name in RULES)
    return hashlib.sha256(text.replace(b"\r\n", b"\n")).hexdigest()


def select(frame: pd.DataFrame, section: str, guidance: float) -> pd.DataFrame:
    """Return the estimates that a section's findings and groups are made of.

    Of several instruments the one with the shortest interval of the first question counts.
    """
    entries = [e for e in rules()["findings"] if e["section"] == section]
    groups = rules()["groups"].get(section, [])
    if frame.empty or not (entries or groups):
        return frame.head(0)
    names: Record = {"guidance": base.identifier(f"g{guidance:g}"), "instrument": "*", "kind": "*"}
    if not frame.id.str.contains(f".{names['guidance']}.", regex=False).any():
        names["guidance"] = "*"  # a pipeline of one's own has no recipe
    first = [base.select(frame, id.format(**names)) for id in entries[0]["estimates"]]
    filled = next((part for part in first if len(part)), frame.head(0))
    if len(filled):
        names["instrument"] = base.shortest(filled).split(".")[1]
        names["kind"] = "corrected" if filled is first[0] else "raw"
    ids = [id for e in entries for id in (*e["estimates"], *_beside(e))]
    parts = [_of_instrument(frame, id, names) for id in (*ids, *groups)]
    claims = [id for e in entries for id in e["estimates"] if e["failing"] == "claims"]
    parts += [base.select(frame, id.format(**names | {"instrument": "*"})) for id in claims]
    return pd.concat(parts).drop_duplicates("id")


def _beside(entry: Record) -> list[str]:
    """Return the ids, beside its estimates, that a finding needs."""
    places = [id.rpartition(".")[0] for id in entry["estimates"]]
    ends = [entry[key] for key in SIBLINGS if key in entry]
    more = [entry[key] for key in ("shares", "fixed") if key in entry]
    more += [entry["shares"].replace(".{kind}", end) for end in ASIDE if "shares" in entry]
    return [*more, *(f"{place}.{end}" for place in places for end in ends)]


def _of_instrument(frame: pd.DataFrame, id: str, names: Record) -> pd.DataFrame:
    """Return the estimates of an id, by another instrument where this one does not answer it."""
    rows = base.select(frame, id.format(**names))
    return rows if len(rows) else base.select(frame, id.format(**names | {"instrument": "*"}))


def groups(section: Section) -> pd.DataFrame:
    """Return a section's estimates by group, with what ASIDE holds of them; empty for none."""
    patterns = [id.format(**EVERY) for id in rules()["groups"].get(section.name, [])]
    frame = section.details
    chosen = base.select(frame, *patterns) if patterns else frame.head(0)
    chosen = chosen[~chosen.id.str.endswith(ASIDE)]
    rows = frame.set_index("id")
    p, bounds, labelled = (chosen.id.str.replace("[.][^.]*$", end, regex=True) for end in ASIDE)
    if bounds.isin(rows.index).any():
        ends = {f"bounds_{end}": bounds.map(rows[end]) for end in ("low", "high")}
        chosen = chosen.assign(**ends, labelled=labelled.map(rows.value))
    if p.isin(rows.index).any():
        chosen = chosen.assign(p_holm=p.map(rows.value), claimed=p.map(rows.value) <= LEVEL)
    return chosen.assign(label=chosen.label.str.replace("_", " "))


def deciding(section: Section) -> pd.DataFrame:
    """Return the estimates that decide findings and stand neither in a run's rows nor by group."""
    shown = [frame.id for frame in (section.estimates, section.stored, groups(section))]
    rows = section.details[~section.details.id.isin(pd.concat(shown))]
    return rows[~rows.id.str.endswith(ASIDE)]


def decide(sections: Mapping[str, Section], model: str) -> list[Record]:
    """Return the findings of all sections, the most severe first, as `results.json` has them."""
    entries = [e for e in rules()["findings"] if e["section"] in sections]
    rows = [_finding(entry, sections[entry["section"]], model) for entry in entries]
    order = (OVER, UNDECIDED, WITHIN, UNTESTED)
    return sorted(rows, key=lambda row: (order.index(row["state"]), -(row["score"] or 0)))


def _finding(entry: Record, section: Section, model: str) -> Record:
    count = entry["failing"] == "claims"
    estimate = (_claimed if count else _estimate)(entry, section)
    fixed = section.best(ids[0]) if (ids := _ids(section, entry.get("fixed", ""))) else None
    common = {"id": entry["id"], "section": entry["section"], "harm": entry["harm"]}
    common["affected"] = entry["affected"]
    if estimate is None:
        why = section.why or entry.get("untested", "no image here answers this question")
        nothing = dict.fromkeys((*NUMBERS, "likelihood", "score", "severity")) | {"graded": ""}
        question = entry["undecided"].partition(":")[0]
        words = question.format(**_tolerated(entry))
        words = f"Not tested: {words}: {why}"
        return common | nothing | {"state": UNTESTED, "sentence": f"{words.rstrip('.')}."}
    estimate |= {"labels": section.labels, "fixed": fixed}
    failing = sorted(round(share, base.ROUND) for share in _failing(entry, estimate))
    state = UNDECIDED
    if failing[0] > entry["tolerated"]:
        state = OVER
    elif failing[-1] <= entry["tolerated"] and not count:
        state = WITHIN
    graded = failing[-1] if state == UNDECIDED else failing[len(failing) // 2]
    likelihood = 1 + sum(graded > limit for limit in (0.05, 0.25))
    score = entry["harm"] * likelihood
    numbers = {name: estimate[name] for name in NUMBERS}
    run = "stored run" if estimate.get("is_stored") else "this run"
    evidence = f"{_evidence(entry, estimate)}; {_reader(estimate)}; {run}"
    return common | numbers | {
        "state": state,
        "likelihood": likelihood,
        "graded": f"{100 * graded:.0f} {rules()['graded'][entry['failing']]}",
        "score": score,
        "severity": [k for k, least in rules()["severity"].items() if score >= least][-1],
        "evidence": evidence,
        "sentence": _sentence(entry, estimate, state, model, evidence),
    }  # fmt: skip


def by_row(frame: pd.DataFrame) -> pd.DataFrame:
    """Return estimates with the instrument that read each row, and none on what works as coded."""
    frame = frame.copy()
    for start, name in rules()["instruments"].items():
        frame.loc[[_is_of(id, start) for id in frame.id], "scorer"] = name
    coded = is_coded(frame)
    frame.loc[coded, ["low", "high"]] = float("nan")
    frame.loc[coded, "method"] = "strings compared: works as coded"
    return frame[~(coded & frame.id.str.endswith(".upper_bound"))].reset_index(drop=True)


def is_coded(frame: pd.DataFrame) -> pd.Series:
    """Return which rows compare strings alone: they work as coded, and nothing is measured."""
    return frame.id.str.startswith(tuple(f"{start}." for start in rules()["as_coded"]))


def _estimate(entry: Record, section: Section) -> Record | None:
    """Return the estimate of the first id that the section has."""
    for pattern in entry["estimates"]:
        if ids := _ids(section, pattern):
            best = section.best(ids[0])
            place = ids[0].rpartition(".")[0]
            beside = {k: section.best(f"{place}.{entry[k]}") for k in SIBLINGS if k in entry}
            best = best and best | beside
            if best and "unread" in entry:
                best["unread"] = _unread(section, best, **entry["unread"])
            return best if best and best["value"] is not None else None
    return None


def _ids(section: Section, pattern: str) -> list[str]:
    frames = (section.details, section.stored, section.estimates)
    return [id for f in frames for id in base.select(f, pattern.format(**EVERY)).id]


def _unread(section: Section, whole: Record, part: str, reader: str) -> int:
    """Return how many images of an estimate the reader could not read if they were right."""
    images, ceiling = section.best(part), section.best(reader)
    if not images or (ceiling and (ceiling["low"] or 0) > LEGIBLE):
        return 0
    return images["n"] if images["is_stored"] == whole["is_stored"] else 0


def _claimed(entry: Record, section: Section) -> Record | None:
    """Return how many groups are claimed: p after Holm's correction at LEVEL or below."""
    every = base.select(groups(section), entry["shares"].format(**EVERY))
    if "p_holm" not in every or every.p_holm.isna().all():
        return None
    rows = base.to_jsonable(every[every.claimed])
    claimed = {row["id"].split(".")[-2].replace("_", " "): row for row in rows}
    evens = [id for pattern in entry.get("evens", ()) for id in _ids(section, pattern)]
    even = section.best(evens[0]) if evens else None
    return {
        "value": round(len(claimed) / len(every), base.ROUND),
        **{"low": None, "high": None, "n": len(every), "id": every.id.iloc[0]},
        **{"claimed": claimed, "is_stored": len(section.stored) > 0},
        "even_at": even["value"] if even else 0.5,
        "others": _others(entry, section, every.id.iloc[0].split(".")[1]),
    }


def _others(entry: Record, section: Section, instrument: str) -> dict[str, list[str]]:
    """Return the groups that each of the other instruments would claim, by its id."""
    p = base.select(section.details, *(id.format(**EVERY) for id in entry["estimates"]))
    claims: dict[str, list[str]] = {}
    for id, value in zip(p.id, p.value):
        _, name, *_, group, _ = id.split(".")
        if name != instrument:
            claims.setdefault(name, []).extend([group.replace("_", " ")] * bool(value <= LEVEL))
    return claims


def _failing(entry: Record, estimate: Record) -> list[float]:
    """Return the share of failures and the ends of its interval."""
    if entry["failing"] == "claims":
        return [estimate["value"]]
    share = FAILING[entry["failing"]]
    ends = [estimate[k] for k in ("value", "low", "high") if estimate[k] is not None]
    if other := estimate.get("other"):
        ends[1:] = [estimate["low"], max(estimate["high"], 1 - other["low"])]
    if "even" in entry:
        ends = [end - estimate["even"]["value"] + 0.5 for end in ends]
    if unread := estimate.get("unread", 0):  # each of them may be right
        ends[::2] = [min(1.0, end + unread / estimate["n"]) for end in ends[::2]]
    shares = [share(end) for end in ends]
    if len(ends) == 1:
        return [0.0, *shares, 1.0]  # no interval decides nothing
    inside = entry["failing"] == "distance" and ends[1] <= 0.5 <= ends[2]
    return [0.0 if inside else min(shares), shares[0], max(shares)]


def _sentence(entry: Record, estimate: Record, state: str, model: str, evidence: str) -> str:
    claimed = list(estimate.get("claimed", ()))
    words = _tolerated(entry) | {
        "name": model,
        "percent": f"{100 * estimate['value']:.0f} %",
        "other": f"{100 * other['value']:.0f} %" if (other := estimate.get("other")) else "",
        "even": f"{100 * even['value']:.0f} %" if (even := estimate.get("even")) else "",
        "points": format_number(100 * abs(estimate["value"]), 0),
        "n": estimate["n"],
        "hits": len(claimed),
        "open": estimate["n"] - len(claimed),
        "sides": _sides(entry, estimate),
        "are": "is" if len(claimed) == 1 else "are",
    }
    result = f"We found that {entry['found'].format(**words)} ({evidence})"
    if state == UNDECIDED:
        question = f"Undecided: {entry['undecided'].format(**words)}."
        has_result = claimed or entry["failing"] != "claims"
        return f"{question} {result}; {_advice(entry, estimate)}." if has_result else question
    key, then = ("over", "do") if state == OVER else ("within", "keep")
    return f"{result}; it means that {entry[key].format(**words)}; {entry[then].format(**words)}."


def _reader(estimate: Record) -> str:
    """Return what read the images of an estimate, and which labels correct it."""
    read = f"read by {name}" if (name := _instrument(estimate["id"])) else "readings"
    if "corrected" not in estimate["id"].split("."):
        return f"{read}, not corrected by labels"
    each = "each by its own of the " if "claimed" in estimate else "by "
    return f"{read}, corrected {each}{estimate['labels']}"


def _instrument(id: str) -> str:
    """Return the name of what read an estimate, "" where no rule names it."""
    known = rules()["instruments"].items()
    return next((who for start, who in known if _is_of(id, start)), "")


def _sides(entry: Record, estimate: Record) -> str:
    """Return the claimed groups by the side of an even share on which each lies."""
    rows = {name: row for name, row in estimate.get("claimed", {}).items() if row}
    parts = []
    for is_more, words in zip((True, False), entry.get("sides", ())):
        names = [k for k, row in rows.items() if (row["value"] > estimate["even_at"]) == is_more]
        parts += [f"{', '.join(names)} ({words})"] if names else []
    return "; ".join(parts)


def _is_of(id: str, start: str) -> bool:
    return id == start or id.startswith(f"{start}.")


def _tolerated(entry: Record) -> dict[str, str]:
    """Return what is tolerated in words, as a share and as a distance of two shares."""
    points = f"{100 * entry['tolerated']:g}"
    return {"tolerated": f"{points} %", "margin": f"{points} percentage points"}


def _advice(entry: Record, estimate: Record) -> str:
    """Return what would decide; more images do not where the unsure ones alone leave it open."""
    if other := estimate.get("other"):
        exact = estimate | {"low": estimate["value"], "high": estimate["value"]}
        least, _, most = _failing(entry, exact | {"other": other | {"low": other["value"]}})
        if least <= entry["tolerated"] < most:
            unsure = 100 * (1 - estimate["value"] - other["value"])
            return f"more images do not decide it while {unsure:.0f} % are unsure"
    label = "and label " * (".corrected." in estimate["id"])
    more = f"draw {label}more {entry.get('unit', 'prompts')}"
    gap = abs(_failing(entry, estimate)[1] - entry["tolerated"])
    if estimate["low"] is None or gap < NEAR:
        return more
    return f"{more} ({estimate['n']:,} of about {images_to_decide(estimate, gap):,} images)"


def images_to_decide(estimate: Record, difference: float) -> int:
    """Return how many images of such prompts tell a difference with 80 % power.

    The half width falls with the root of n, and must be 1.96 / (1.96 + 0.84) of the difference.
    """
    z, z_power = norm.ppf([0.975, trends.POWER])
    wanted = difference * z / (z + z_power)
    return math.ceil(estimate["n"] * ((estimate["high"] - estimate["low"]) / 2 / wanted) ** 2)


def _evidence(entry: Record, estimate: Record) -> str:
    """Return the interval, or those of the claimed groups, with how many images they are of."""
    if "claimed" in estimate:
        return _claims(entry, estimate)
    n = f"n {estimate['n']:,}"
    if estimate.get("clusters"):
        n += f" images of {estimate['clusters']:,} {entry.get('unit', 'prompts')}"
    n += " on the smaller side" if entry["failing"] == "drop" else ""
    if unread := estimate.get("unread"):
        n += f", {unread:,} of which tell nothing: {entry['why_unread']}"
    if estimate["low"] is None:
        return f"{n}, no interval"
    if entry["failing"] == "drop":
        return f"95 % interval {_range(estimate, -1)} points, {n}"
    if fixed := estimate["fixed"]:
        n += f", {SAMPLE}, {_range(fixed)} %"
    if (other := estimate.get("other")) and other["low"] is not None:
        return f"95 % intervals {_range(estimate)} % and {_range(other)} %, {n}"
    return f"95 % interval {_range(estimate)} %, {n}"


def _claims(entry: Record, estimate: Record) -> str:
    """Return the claimed groups' bounds, labels and p, and what other ways would claim."""
    shares = [
        f"{name} {100 * row['value']:.0f} % ({_range(row, key='bounds_')} %), n {row['n']:,}, "
        f"{row['labelled'] or 0:.0f} labelled, p {format_number(row['p_holm'], 3)}"
        for name, row in estimate["claimed"].items()
        if row.get("bounds_low") is not None
    ]
    holm = f"Holm's correction over all {estimate['n']}, 5 % level"
    if fixed := estimate["fixed"]:
        count = round(fixed["value"] * fixed["n"])
        holm += f", {SAMPLE}, {count} would be claimed"
    for name, others in estimate["others"].items():
        reader = _instrument(f"bias.{name}") or name
        holm += f"; by another instrument, {reader}, {len(others)} would be"
        lost = [group for group in estimate["claimed"] if group not in others]
        holm += f", not {', '.join(lost)}" if lost else ""
    bounds = "95 % bounds whatever the unsure images show"
    return f"{entry['shares_of']}, {bounds}: {'; '.join(shares)}; {holm}" if shares else holm


def _range(row: Record, sign: int = 1, key: str = "") -> str:
    low, high = sorted(100 * sign * row[f"{key}{end}"] for end in ("low", "high"))
    return f"{low:.0f} to {high:.0f}"
