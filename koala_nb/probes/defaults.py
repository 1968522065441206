"""What a model paints when the prompt does not say: grounds, styles, bars, and how alike seeds are.

Everything here is read from pixels or from a scored table, so it needs no training frequencies.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from koala_nb.scorers.clip import MEDIA
from koala_nb.scorers.pixels import PALETTE
from koala_nb.stats import estimates

EMBEDDED = {"painted": tuple(PALETTE)[:10], "style_read": ("noto", "fluent", "twemoji")}
NOT_NAMED = ("concept", "tied, reworded")  # parts of a prompt set that name no ground and no style


def looks(table: pd.DataFrame) -> dict[str, tuple[str, ...]]:
    """Return the values of each look, fixed in advance: those of the set that the table is of."""
    return EMBEDDED if "tie" in table else {"painted": tuple(PALETTE), "style_read": MEDIA}


def distribution(
    table: pd.DataFrame, column: str, values: Sequence[str], clusters: str = "id"
) -> dict[str, Any]:
    """Return the share of each of fixed values, and their total variation from an even spread.

    `null`: the total variation that 95 % of samples of this effective size stay below when the
    truth is even. A distance below it is no finding.
    """
    seen = [table[column] == value for value in values]
    rows = [estimates.clustered_share(hit, table[clusters])._asdict() for hit in seen]
    shares = pd.DataFrame(rows).assign(value_of=list(values))
    effects = [
        estimates.design_effect(*estimates.cluster_totals(hit, table[clusters]))
        for hit in seen
        if hit.any()
    ]
    n = max(1, round(len(table) / float(np.mean(effects)))) if effects else len(table)
    even = np.full(len(values), 1 / len(values))
    return {
        "shares": shares.rename(columns={"value": "share", "value_of": "painted"}),
        "total variation": variation(list(shares.value), list(even)),
        "null": null(list(even), n),
        "effective n": n,
    }


def variation(shares: Sequence[float], reference: Sequence[float]) -> float:
    """Return half the sum of absolute differences, 0 to 1; what has no value counts as another."""
    first, second = np.asarray(shares, dtype=float), np.asarray(reference, dtype=float)
    rest = abs((1 - first.sum()) - (1 - second.sum()))
    return float((np.abs(first - second).sum() + rest) / 2)


def null(reference: Sequence[float], n: int, draws: int = 4000, seed: int = 0) -> float:
    """Return the 95 % quantile of the total variation of n independent draws from a reference."""
    shares = np.asarray(reference, dtype=float)
    drawn = np.random.default_rng(seed).multinomial(n, shares, draws) / n
    return float(np.quantile(np.abs(drawn - shares).sum(1) / 2, 0.95))


def ties(table: pd.DataFrame, kind: str, column: str) -> pd.DataFrame:
    """Return how strongly a planted tie holds: shares with intervals clustered by concept.

    `kind`: "background" or "style", `column` what was read. Untied objects are read on the same
    values, each weighing alike.
    """
    plain = table[table.part.isin(NOT_NAMED)]
    tied, free = plain[plain.tie == kind], plain[plain.tie == "none"]
    named = table[table.part == f"{kind} named"]
    mine, other = named[named.tie == kind], named[named.tie == "none"]
    values = tied.groupby("concept", sort=False).tied_to.first().tolist()
    cases = {
        f"tied, no {kind} named: the tied one": (tied[column] == tied.tied_to, tied),
        f"tied, another {kind} named: the named one": (mine[column] == mine[kind], mine),
        f"tied, another {kind} named: the tied one": (mine[column] == mine.tied_to, mine),
        f"untied, a {kind} named: the named one": (other[column] == other[kind], other),
    }
    rows = [
        {"case": case, **estimates.clustered_share(hit, rows.concept)._asdict()}
        for case, (hit, rows) in cases.items()
        if len(rows)
    ]
    if len(free) and values:
        even = [float(np.mean([value == seen for value in values])) for seen in free[column]]
        found = estimates.clustered_mean(even, free.concept)
        label = f"untied, no {kind} named: the same ones"
        rows.insert(1, {"case": label, **found._asdict()})
    return pd.DataFrame(rows)


def tie_test(table: pd.DataFrame, kind: str, column: str) -> float:
    """Return the p of "tied objects get their look no more often than untied ones get the same".

    Two-sided, by flipping the signs of the tied concepts' differences (`estimates.paired_test`);
    with six concepts it cannot fall below 2 / 2**6. NaN where nothing is tied.
    """
    plain = table[table.part.isin(NOT_NAMED)]
    tied, free = plain[plain.tie == kind], plain[plain.tie == "none"]
    apart = [
        float((own[column] == own.tied_to).mean() - (free[column] == own.tied_to.iloc[0]).mean())
        for _, own in tied.groupby("concept", sort=False)
    ]
    return estimates.paired_test(apart) if apart and len(free) else float("nan")


def agreement(table: pd.DataFrame, columns: Sequence[str]) -> estimates.Estimate:
    """Return the share of pairs of a prompt's images that agree in all columns, over prompts.

    1 where every seed gives the same. The prompt is the unit. ValueError for fewer than two
    prompts of two images.
    """
    shares = []
    for _, group in table.groupby("id", sort=False):
        n = len(group)
        if n > 1:
            same = group.groupby(list(columns), dropna=False).size()
            shares.append((same * (same - 1)).sum() / (n * (n - 1)))
    if len(shares) < 2:
        raise ValueError("agreement: give two or more prompts with two or more images each.")
    return estimates.mean_interval(shares)
