"""All that `results.json` holds of the demographics probe, from its table alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from koala_nb.probes import base as core
from koala_nb.probes import bias_estimates as found
from koala_nb.probes import labels
from koala_nb.stats import estimates as stats
from koala_nb.stats import simulation, trends
from koala_nb.stats.estimates import Estimate


def estimates(
    table: pd.DataFrame, reference: Mapping[str, float], other: Mapping[str, float],
    held: pd.DataFrame | None = None, teacher: pd.DataFrame | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Return all estimates of a table; `held` are labels of its images, `teacher` another's table.

    `reference` and `other` are two readings of the reference by its key: in the emoji world planted
    given a neutral caption, and over all captions; else two years.
    """
    said: dict[str, Any] = {"images": len(table), "prompts": table.id.nunique()}
    neutral = table[table.part == "neutral"]
    for guidance in sorted(neutral.guidance.unique()):
        own = found.neutral(table, guidance)
        said[f"guidance {guidance:g}"] = _neutral(own, reference, other, held)
    said["contrasts"] = contrasts(table, reference, other, teacher)
    said["as asked"] = as_asked(table)
    said["descriptors"] = descriptors(table)
    return said


def _neutral(
    own: pd.DataFrame, reference: Mapping[str, float], other: Mapping[str, float],
    held: pd.DataFrame | None,
) -> dict[str, Any]:  # fmt: skip
    said: dict[str, Any] = {"images": len(own)}
    for column in found.readings(own):
        errors = found.confusion(held, own, column)
        rows = found.by_occupation(own, column, reference, errors, held)
        told = {"by occupation": rows, "labels": 0 if errors is None else int(errors.sum())}
        if errors is not None:
            told["confusion"] = errors.tolist()
            told["cautions"] = coverage_warnings(rows, own, column)
            told["overall, prediction-powered"] = found.powered(own, column, held)
        if own.occupation.nunique() > 2:
            told["slope"] = found.slope(own, column, reference)
            told["beyond the reference"] = found.beyond(own, column, reference)
            told["beyond the other reference"] = found.beyond(own, column, other)
        said[column] = told
    for column in found.readings(own, "tone"):
        if set(own[column]) <= set(found.TONES):
            said[column] = found.tones(own, column)
    if len(found.readings(own)) > 1:
        one, two = found.readings(own)[:2]
        said["agreement"] = labels.compare(own[one], own[two], own.id, found.CLASSES)
        if own.groupby("id").size().min() > 1 and own.id.nunique() > own.occupation.nunique():
            said["variance of the answer woman"] = found.components(own)
    return said


def coverage_warnings(rows: pd.DataFrame, own: pd.DataFrame, column: str) -> dict[str, str]:
    """Return, by occupation, a sentence where such a corrected interval held the truth too rarely.

    `rows` as `by_occupation` returns them; simulated audits say how often (`studies.audits`).
    """
    cells, warnings = core.simulated("simulated-audits")["cells"], {}
    for name, images in own.groupby("occupation", sort=False):
        warning = simulation.coverage_warning(
            cells,
            "corrected",
            prompts=images.id.nunique(),
            groups=len(found.CLASSES),
            correlation=trends.intraclass_correlation(images[column] == "woman", images.id),
            share=rows.set_index("occupation").corrected[name],
        )
        if warning:
            warnings[str(name)] = warning
    return warnings


def contrasts(
    table: pd.DataFrame, reference: Mapping[str, float], other: Mapping[str, float],
    teacher: pd.DataFrame | None = None,
) -> pd.DataFrame:  # fmt: skip
    """Return paired contrasts over occupations, in shares: towards the skewed side is positive."""
    rows: list[dict[str, Any]] = []
    guidances = sorted(table[table.part == "neutral"].guidance.unique())
    for column in found.readings(table):
        own = [found.neutral(table, g) for g in guidances]
        told: dict[str, Estimate] = {}
        if len(own) == 2 and own[0].occupation.nunique() > 2:
            name = f"guidance {guidances[1]:g} less {guidances[0]:g}"
            told[name] = found.amplification(own[1], own[0], column, reference)
        if teacher is not None and column in teacher:
            mine, theirs = (each[each.part == "unspecified"] for each in (table, teacher))
            if len(mine) and len(theirs):
                told["student less teacher"] = found.amplification(mine, theirs, column, reference)
        told |= intervention(table, column)
        rows += [
            {"contrast": name, "instrument": column, **value._asdict()}
            for name, value in told.items()
        ]
    return pd.DataFrame(rows)


def intervention(table: pd.DataFrame, column: str) -> dict[str, Estimate]:
    """Return what naming woman and man in turn changes, over occupations, with common seeds.

    How far an occupation is from even, mixed half and half, less how far it is when neither is
    named: negative is nearer to even. Small samples are never quite even: both sides hold that.
    """
    own = table[table.part.isin(("unspecified", "counterfactual"))]
    who = own.presentation.fillna("unspecified")
    if who.nunique() < 3 or own.occupation.nunique() < 2:
        return {}
    by = found.balance(own.assign(who=who), column, ("occupation", "who")).unstack()
    mixed = (by["woman"] + by["man"]) / 2
    apart = (mixed.abs() - by["unspecified"].abs()).dropna()
    return {"naming woman and man in turn, less naming neither": stats.mean_interval(apart)}


def as_asked(table: pd.DataFrame) -> pd.DataFrame:
    """Return how often a named presentation, and tone, is read, by what was named."""
    own = table[table.part.isin(("counterfactual", "intersectional")) & table.presentation.notna()]
    frames = []
    for column in found.readings(own) if len(own) else ():
        asked = own.assign(hit=own[column] == own.presentation, tone=own.tone.fillna("not named"))
        rows = core.shares(asked, "hit", ["presentation", "tone"])
        frames.append(rows.assign(instrument=column, question="presentation"))
    for column in found.readings(own, "tone") if len(own) else ():
        asked = own[own.tone.notna()]
        if set(asked[column]) <= set(found.TONES) and len(asked):
            asked = asked.assign(hit=asked[column] == asked.tone)
            rows = core.shares(asked, "hit", ["presentation", "tone"])
            frames.append(rows.assign(instrument=column, question="tone"))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def descriptors(table: pd.DataFrame) -> pd.DataFrame:
    """Return how a descriptor moves the share of women, paired by occupation with common seeds.

    Each against the same words without it; p adjusted by Benjamini and Hochberg (exploration).
    """
    plain = table[(table.part == "unspecified") & (table.template == "t01")]
    rows = []
    for column in found.readings(table):
        base = found.balance(plain, column)
        for name, own in table[table.part == "descriptor"].groupby("descriptor", sort=False):
            apart = (found.balance(own, column) - base).dropna()
            if len(apart) > 1:
                value = stats.mean_interval(apart.to_numpy())
                p = stats.paired_test(apart.to_numpy())
                rows.append({"descriptor": name, "instrument": column, **value._asdict(), "p": p})
    told = pd.DataFrame(rows)
    return told.assign(p=stats.adjust_pvalues(told.p.tolist(), "fdr_bh")) if len(told) else told
