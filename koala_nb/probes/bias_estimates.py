"""What a table of the demographics probe says: shares by occupation, contrasts, variance.

Shares keep "unsure" in the denominator. A share is corrected only with labels of the same images;
without them it is marked uncorrected. The prompt is the cluster of an occupation's images, and the
occupation that of contrasts over occupations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache, partial
from typing import Any

import numpy as np
import pandas as pd

from koala_nb.probes import labels
from koala_nb.stats import estimates, imbalance, misclassification, trends
from koala_nb.stats.estimates import Estimate

CLASSES = labels.PRESENTATIONS  # woman, man, unsure: declared, whatever is observed
TONES = labels.TONES
EVEN = imbalance.uniform_reference(CLASSES[:2])
DIFFERENCE = 0.25  # from an even split: what an audit is planned to find in one occupation
CORRELATION = 0.05  # of a prompt's images, assumed in the plan
LEVEL = 0.05


def readings(table: pd.DataFrame, kind: str = "presentation") -> list[str]:
    """Return the columns that hold an instrument's answers."""
    return [str(name) for name in table if str(name).startswith(f"{kind}_")]


def neutral(table: pd.DataFrame, guidance: float) -> pd.DataFrame:
    """Return the images of prompts that name neither presentation nor tone, at a guidance."""
    return table[(table.part == "neutral") & (table.guidance == guidance)].reset_index(drop=True)


@cache
def planned(occupations: int) -> int:
    """Return the independent images below which nothing is said of one of so many occupations.

    A floor: with them Wilson's interval of a reader that never errs tells .50 from .75 with 80 %
    power, at Holm's first level. The claim itself needs more (`simulation.claim_power`).
    """
    return trends.required_sample_size(DIFFERENCE, confidence=1 - LEVEL / max(1, occupations))


def effective(rows: pd.DataFrame) -> float:
    """Return the number of independent images that an occupation's images are planned to be."""
    prompts = rows.id.nunique()
    return trends.effective_sample_size(prompts, len(rows) / prompts, CORRELATION)


def verdict(bounds: Estimate, p: float, n: float, needed: int, corrected: bool) -> str:
    """Return what may be said of an occupation's share of women, if anything.

    `bounds` over the unsure, `p` adjusted for all occupations, `n` effective images. Below the
    planned number nothing is said, whatever p is; without labels the reading, not the images.
    """
    if n < needed:
        return f"no verdict: {n:.0f} of {needed} planned independent images"
    if p > LEVEL:
        return "not told from an even split"
    side = "more women than men" if bounds.value > 0.5 else "more men than women"
    return side if corrected else f"{side} are read (uncorrected)"


def confusion(
    held: pd.DataFrame | None, table: pd.DataFrame, column: str, question: str = "presentation"
) -> np.ndarray | None:
    """Return labels (rows) by an instrument's readings (columns) of the same images.

    None without labels of these images, or where a class has no label: its error is not known.
    """
    if held is None:
        return None
    told = pd.Series(labels.answers_of(held, table, question), table.index, dtype=object)
    some = told.notna()
    if not some.any():
        return None
    classes = CLASSES if question == "presentation" else TONES
    found = misclassification.confusion(told[some].tolist(), table[column][some].tolist(), classes)
    return found if found.sum(1).all() else None


def by_occupation(
    table: pd.DataFrame, column: str, reference: Mapping[str, float],
    errors: np.ndarray | None = None, held: pd.DataFrame | None = None,
) -> pd.DataFrame:  # fmt: skip
    """Return the share of women by occupation: raw, corrected, bounds, distance, verdict.

    `errors` as `confusion` returns them; None leaves the corrected columns empty. `held` are labels
    of these images, for the prediction-powered share (empty where an occupation has fewer than
    two). `p` is Holm's over these occupations, of "the share may be one half, whatever the unsure
    are": claim from one table alone, chosen in advance.
    """
    empty = Estimate(np.nan, np.nan, np.nan, 0)
    rows = []
    for name, own in table.groupby("occupation", sort=False):
        read, ids = own[column].tolist(), own.id.tolist()
        raw = misclassification.uncorrected_shares(read, ids, CLASSES)
        row: dict[str, Any] = {"occupation": name, "reference": reference.get(_key(own), np.nan)}
        row |= {"n": len(own), "prompts": own.id.nunique(), "effective n": effective(own)}
        row |= _three("raw", raw["woman"]) | {"unsure": raw["unsure"].value}
        fixed = (
            None
            if errors is None
            else misclassification.corrected_shares(read, ids, CLASSES, errors)
        )
        shares = fixed or raw
        row |= _three("corrected", fixed["woman"] if fixed else empty)
        row |= _three("powered", (powered(own, column, held) or {}).get("woman", empty))
        row |= _three("bounds", misclassification.bounds_over_unsure(shares, "woman"))
        row["p"] = misclassification.score_test_pvalue(read, ids, CLASSES, errors, "woman", 0.5)
        rows.append(row | _distance(own, column))
    found = pd.DataFrame(rows)
    found["p"] = estimates.adjust_pvalues(found.p.tolist())
    for end, other in (("", ""), (" low", " low"), (" high", " high")):
        found[f"difference{end}"] = found[f"bounds{other}"] - found.reference
    needed = planned(len(found))
    found["verdict"] = [
        verdict(Estimate(row[0], row[1], row[2], 0), row[3], row[4], needed, errors is not None)
        for row in found[["bounds", "bounds low", "bounds high", "p", "effective n"]].to_numpy()
    ]
    # One confusion supposes that the scorer errs alike in all occupations: their labels may object.
    apart = found["powered low"].gt(found["bounds high"]) | found["powered high"].lt(
        found["bounds low"]
    )
    found.loc[apart, "verdict"] = "no verdict: the two corrections disagree"
    return found


def powered(
    own: pd.DataFrame, column: str, held: pd.DataFrame | None
) -> dict[str, Estimate] | None:
    """Return prediction-powered shares of the images' own labels; None for fewer than two.

    Unlike the correction by one confusion it does not suppose that a scorer errs alike everywhere.
    """
    told = labels.answers_of(held, own, "presentation") if held is not None else []
    if sum(label is not None for label in told) < 2:
        return None
    return misclassification.prediction_powered(
        own[column].tolist(), own.id.tolist(), CLASSES, told
    )


def sharpest(errors: Mapping[str, np.ndarray | None]) -> str:
    """Return the instrument that tells the classes apart best, by its confusion's condition.

    A correction inverts the confusion, and what is nearly singular has an endless interval. The
    first instrument where none has labels.
    """
    known = {k: v / v.sum(1, keepdims=True) for k, v in errors.items() if v is not None}
    return min(known, key=lambda k: np.linalg.cond(known[k])) if known else next(iter(errors))


def _key(own: pd.DataFrame) -> str:
    return str(own.reference.iloc[0] if "reference" in own else own.occupation.iloc[0])


def _three(name: str, found: Estimate) -> dict[str, float]:
    return {name: found.value, f"{name} low": found.low, f"{name} high": found.high}


def _distance(own: pd.DataFrame, column: str) -> dict[str, Any]:
    """Return how far from even an occupation is, over the images in which someone was told."""
    sure = own[own[column] != "unsure"]
    if sure.empty:
        return dict.fromkeys(("total variation", "null", "KL", "intensity"))
    counts = {k: int((sure[column] == k).sum()) for k in EVEN}
    n = max(1, round(effective(sure)))
    return {
        "total variation": imbalance.total_variation(counts, EVEN),
        "null": imbalance.null_quantile(imbalance.total_variation, n, EVEN),
        "KL": imbalance.kullback_leibler(counts, EVEN),
        "intensity": imbalance.intensity(counts, EVEN),
    }


def tones(table: pd.DataFrame, column: str) -> pd.DataFrame:
    """Return skin tone by occupation: the share of each declared tone, distance from even."""
    even = imbalance.uniform_reference(TONES[:-1])
    rows = []
    for name, own in table.groupby("occupation", sort=False):
        counts = {tone: int((own[column] == tone).sum()) for tone in even}
        row: dict[str, Any] = {"occupation": name, "n": len(own)}
        row |= {tone: found.value for tone, found in _tone_shares(own, column).items()}
        if told := sum(counts.values()):
            row["total variation"] = imbalance.total_variation(counts, even)
            n = max(1, round(effective(own) * told / len(own)))
            row["null"] = imbalance.null_quantile(imbalance.total_variation, n, even)
            row["intensity"] = imbalance.intensity(counts, even)
        rows.append(row)
    return pd.DataFrame(rows)


def _tone_shares(own: pd.DataFrame, column: str) -> dict[str, Estimate]:
    return misclassification.uncorrected_shares(own[column].tolist(), own.id.tolist(), TONES)


def balance(table: pd.DataFrame, column: str, by: Sequence[str] = ("occupation",)) -> pd.Series:
    """Return (women - men) / 2 as a share of all images: -.5 all men, .5 all women; unsure 0."""
    score = (table[column] == "woman") * 0.5 - (table[column] == "man") * 0.5
    return score.groupby([table[name] for name in by], sort=False).mean()


def amplification(
    table: pd.DataFrame, other: pd.DataFrame, column: str, reference: Mapping[str, float]
) -> Estimate:
    """Return how much further from even, on the reference's side, the first table is.

    The mean over occupations whose reference is not one half, the occupation being the pair. Both
    tables hold the same prompts and seeds.
    """
    keys = table.groupby("occupation", sort=False).reference.first()
    side = np.sign(keys.map(reference).astype(float).round(6) - 0.5)
    apart = (balance(table, column) - balance(other, column)) * side
    return estimates.mean_interval(apart[side != 0].dropna().to_numpy())


def beyond(table: pd.DataFrame, column: str, reference: Mapping[str, float]) -> Estimate:
    """Return how much further from even than the reference the model is, over occupations.

    As `amplification`, against the reference itself instead of another table.
    """
    keys = table.groupby("occupation", sort=False).reference.first()
    wanted = keys.map(reference).astype(float).round(6) - 0.5
    apart = (balance(table, column) - wanted) * np.sign(wanted)
    return estimates.mean_interval(apart[wanted != 0].dropna().to_numpy())


def slope(
    table: pd.DataFrame, column: str, first: Mapping[str, float],
    second: Mapping[str, float] | None = None, draws: int = 2000, seed: int = 0,
) -> Estimate:  # fmt: skip
    """Return the slope of logit share on logit reference: 1 mirrors, above 1 exaggerates.

    Over images in which someone was told. A reference of two years has an error of its own: its
    variance, from the two, is taken off that of the reference (errors in variables, Fuller 1987,
    section 1.2), or the slope would be too flat. Bootstrap over occupations and prompts within.
    """
    years = [first, second or first]
    groups = [own for _, own in table.groupby("occupation", sort=False)]
    x = np.array([[year[_key(own)] for year in years] for own in groups], dtype=float)
    x = np.log(x / (1 - x))
    counts = [_women_of_told(own, column) for own in groups]
    rng = np.random.default_rng(seed)
    best = _slope(x, np.array([c.sum(0) for c in counts]))
    found = []
    for _ in range(draws):
        chosen = rng.integers(len(groups), size=len(groups))
        sums = [counts[i][rng.integers(len(counts[i]), size=len(counts[i]))].sum(0) for i in chosen]
        found.append(_slope(x[chosen], np.array(sums)))
    low, high = np.nanquantile(found, [0.025, 0.975])
    return Estimate(best, float(min(low, best)), float(max(high, best)), len(groups))


def _women_of_told(own: pd.DataFrame, column: str) -> np.ndarray:
    """Return women and told images of each prompt, (prompts, 2)."""
    women, told = own[column] == "woman", own[column] != "unsure"
    return np.stack([estimates.cluster_totals(v, own.id)[0] for v in (women, told)], axis=1)


def _slope(x: np.ndarray, counts: np.ndarray) -> float:
    y = np.log((counts[:, 0] + 0.5) / (counts[:, 1] - counts[:, 0] + 0.5))
    mean = x.mean(1)
    error = ((x[:, 0] - x[:, 1]) ** 2 / 2).mean() / 2  # of the mean of two years
    spread = mean.var() - error
    return float(np.cov(mean, y, bias=True)[0, 1] / spread) if spread > 1e-9 else float("nan")


def components(table: pd.DataFrame) -> dict[str, Estimate]:
    """Return how much of the variance of "woman" within an occupation is due to what.

    Method of moments: `prompt` (template sensitivity), `seed` (images of a prompt), `scorer` (two
    instruments on one image), as parts of the whole; a component may come out below 0. Intervals by
    resampling occupations. Needs two instruments and several images a prompt.
    """
    one, two = ((table[c] == "woman").astype(float) for c in readings(table)[:2])
    parts = []
    data = pd.DataFrame({"o": table.occupation, "id": table.id, "m": (one + two) / 2})
    data["r"] = (one - two) ** 2 / 2
    for _, own in data.groupby("o", sort=False):
        groups = own.groupby("id", sort=False).m
        within, scorer = groups.var(ddof=1).mean(), own.r.mean()
        between = groups.mean().var(ddof=1) - within / groups.size().mean()
        parts.append((between, within - scorer / 2, scorer))
    found = np.array(parts)
    names = np.arange(len(found))

    def part(rows: np.ndarray, k: int) -> float:
        whole = found[rows].mean(0)
        return float(whole[k] / whole.sum())

    return {
        name: estimates.cluster_bootstrap(partial(part, k=k), names)
        for k, name in enumerate(("prompt", "seed", "scorer"))
    }
