"""What the five prompts show at the card's settings and at the published ones, side by side.

Groups are declared in advance, "unsure" is one of the answers, and nothing is corrected: no scorer
error is known of these images.
"""

from __future__ import annotations

from typing import Any

import pandas as pd

from koala_nb.probes import base
from koala_nb.stats import estimates as stats
from koala_nb.stats import imbalance
from koala_nb.stats.misclassification import UNSURE

READINGS = ("presentation_", "tone_", "monk", "thing")  # how columns that hold one begin


def declared(reading: str, row: dict[str, Any]) -> list[str]:
    """Return the classes of a reading, declared in advance; `row` is one of the prompt set."""
    if reading.startswith("presentation"):
        return ["woman", "man", UNSURE]
    if reading == "thing":
        return [*row["groups"].split(";"), "other", UNSURE]
    return [*row["tones"].split(";"), UNSURE]


def estimates(table: pd.DataFrame) -> dict[str, Any]:
    """Return shares of every declared group by prompt, reading and settings, and what moved them.

    A group that nobody saw has its row: a share of 0 with an interval.
    """
    rows, apart, moved = [], [], []
    for column in [str(c) for c in table if str(c).startswith(READINGS)]:
        for name, some in table[table[column].notna()].groupby("id", sort=False):
            classes = declared(column, some.iloc[0].to_dict())
            read = {s: own.set_index("seed")[column] for s, own in some.groupby("settings")}
            told = {"id": name, "reading": column}
            for settings, values in read.items():
                counts = {g: int((values == g).sum()) for g in classes}
                here = told | {"settings": settings}
                rows += [here | {"group": g} | _share(counts, g) for g in classes]
                apart.append(here | _variation(counts))
            both = pd.DataFrame(read).dropna()
            if {"recipe", "published"} <= set(both):
                hits = [(g, both.recipe == g, both.published == g) for g in classes]
                moved += [
                    told | {"group": g} | stats.paired_share_difference(a, b)._asdict()
                    for g, a, b in hits
                ]
    return {
        "uncorrected": "no scorer error was measured on these images",
        "shares": pd.DataFrame(rows).round(base.ROUND),
        "total variation from an even split": pd.DataFrame(apart).round(base.ROUND),
        "recipe less published, by seed": pd.DataFrame(moved).round(base.ROUND),
    }


def _share(counts: dict[str, int], group: str) -> dict[str, Any]:
    found = stats.share_interval(counts[group], sum(counts.values()))
    outer = imbalance.share_bounds(counts, group, UNSURE)
    return found._asdict() | {"bound_low": outer.low, "bound_high": outer.high}


def _variation(counts: dict[str, int]) -> dict[str, Any]:
    """Return the distance from an even split of the images whose group was read, and its null."""
    known = {g: n for g, n in counts.items() if g not in (UNSURE, "other")}
    n = sum(known.values())
    if not n:
        return {"value": None, "null": None, "n": 0}
    even = imbalance.uniform_reference(list(known))
    limit = imbalance.null_quantile(imbalance.total_variation, n, even)
    return {"value": imbalance.total_variation(known, even), "null": limit, "n": n}
