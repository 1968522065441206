"""What a table of the bias probe shows: shares by occupation, contrasts, parts of the variance.

Shares keep "unsure" in the denominator. A share is corrected only with labels of the same images;
without them it is marked uncorrected. The prompt is the cluster of an occupation's images, and the
occupation that of contrasts over occupations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np
import pandas as pd

from koala_nb.core.catalog import data_file
from koala_nb.probes import base, labels
from koala_nb.scorers import registry
from koala_nb.stats import estimates, imbalance, misclassification, simulation, trends
from koala_nb.stats.estimates import Estimate

CLASSES = labels.PRESENTATIONS  # woman, man, unsure: declared, whatever is observed
TONES = labels.TONES
EVEN = imbalance.uniform_reference(CLASSES[:2])
EVEN_TONES = imbalance.uniform_reference(TONES[:-1])
DIFFERENCE = 0.25  # from an even split: what an audit is planned to find in one occupation
CORRELATION = 0.05  # of a prompt's images, assumed in the plan
LEVEL = 0.05
NO_ESTIMATE = Estimate(np.nan, np.nan, np.nan, 0)

Reference = Mapping[str, float]  # share of women by an occupation's `reference`


def reference(domain: str) -> pd.DataFrame:
    """Return what the shares are compared with, by `reference`: columns women, women_other.

    Where a domain's training is known: planted given a neutral caption, and over all captions. Else
    the share of women among US workers in 2022 and in 2019, the source's two years.
    """
    if planted := registry.truth("planted shares of people", domain):
        return planted().rename(columns={"women_all": "women_other"})
    table = pd.read_csv(data_file("reference/women_share_bls.csv"))
    years = {"women_2022": "women", "women_2019": "women_other"}
    table = table.rename(columns={"occupation": "reference", **years})
    table[["women", "women_other"]] /= 100
    return table[["reference", "women", "women_other"]]


def reference_shares(domain: str, column: str = "women") -> Reference:
    """Return the reference's share of women by its key; `women_other` for the other reading."""
    table = reference(domain)
    return dict(zip(table.reference, table[column]))


def references_of(table: pd.DataFrame) -> tuple[Reference, Reference]:
    """Return both readings of the reference that holds the keys of a table.

    ValueError where no domain's reference holds them.
    """
    keys = set(table.reference)
    for domain in dict.fromkeys(domain for _, domain in registry.SCORERS):
        first = reference_shares(domain)
        if keys <= set(first):
            return first, reference_shares(domain, "women_other")
    raise ValueError(f"No reference holds the occupations {', '.join(sorted(map(str, keys)))}.")


def plan(occupations: int, prompts: int, images: float) -> str:
    """Return what an audit of so many prompts per occupation and images per prompt can find."""
    required = required_sample_size(occupations)
    n = trends.effective_sample_size(prompts, images, CORRELATION)
    share = power(occupations, prompts, max(1, round(images)))
    enough = "enough" if share >= 0.8 else "too few for 80 %"
    enough = "too few: there will be no verdict" if n < required else enough
    return (
        f"{base.plan(prompts, images)} That is one of {occupations} occupations. After Holm's "
        f"correction, with a reader that never errs, .75 is told from .50 in {100 * share:.0f} % "
        f"of simulated audits ({enough}), and with yours in no more; below {required} independent "
        "images there is no verdict."
    )


def power(occupations: int, prompts: int, images: int, errors: np.ndarray | None = None) -> float:
    """Return how often such an audit finds the planned difference, after Holm, by simulation.

    `errors` is a reader's confusion, as `confusion` returns it; None: none.
    """
    share = 0.5 + DIFFERENCE
    return simulation.claim_power(occupations, (prompts, images), CORRELATION, share, errors)


def readings(table: pd.DataFrame, question: str = "presentation") -> list[str]:
    """Return the columns that hold an instrument's answers to a question."""
    return [str(name) for name in table if str(name).startswith(f"{question}_")]


def declared_tones(table: pd.DataFrame) -> list[str]:
    """Return the columns whose answers are all among the declared skin tones."""
    return [c for c in readings(table, "tone") if set(table[c].dropna()) <= set(TONES)]


def neutral(table: pd.DataFrame, guidance: float) -> pd.DataFrame:
    """Return the images of prompts that name neither presentation nor tone, at a guidance."""
    return table[(table.part == "neutral") & (table.guidance == guidance)].reset_index(drop=True)


@cache
def required_sample_size(occupations: int) -> int:
    """Return the independent images below which one of so many occupations gets no verdict.

    A floor: with them Wilson's interval of a reader that never errs tells .50 from .75 with 80 %
    power, at Holm's first level. The claim itself needs more (`simulation.claim_power`).
    """
    return trends.required_sample_size(DIFFERENCE, confidence=1 - LEVEL / max(1, occupations))


def effective_sample_size(images: pd.DataFrame) -> float:
    """Return the number of independent images that an occupation's images are planned to be."""
    prompts = images.id.nunique()
    return trends.effective_sample_size(prompts, len(images) / prompts, CORRELATION)


def verdict(share: float, p: float, n: float, required: int, corrected: bool) -> str:
    """Return what may be said of an occupation's share of women, if anything.

    `p` adjusted for all occupations, `n` effective images. Below the required number nothing is
    said, whatever p is; without labels the reading, not the images.
    """
    if n < required:
        return f"no verdict: {n:.0f} of {required} planned independent images"
    if p > LEVEL:
        return "not told from an even split"
    side = "more women than men" if share > 0.5 else "more men than women"
    return side if corrected else f"{side} are read (uncorrected)"


def confusion(
    label_table: pd.DataFrame | None, table: pd.DataFrame, column: str
) -> np.ndarray | None:
    """Return labels (rows) by an instrument's readings (columns) of presentation in these images.

    None without labels of these images, or where a class has no label: its error is not known.
    """
    if label_table is None:
        return None
    true = pd.Series(labels.answers_of(label_table, table, "presentation"), table.index).dropna()
    if true.empty:
        return None
    counts = misclassification.confusion(true.tolist(), table[column][true.index].tolist(), CLASSES)
    return counts if counts.sum(1).all() else None


def by_occupation(
    table: pd.DataFrame,
    column: str,
    reference: Reference,
    errors: np.ndarray | None = None,
    label_table: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """Return the share of women by occupation: raw, corrected, bounds, distance, verdict.

    `errors` as `confusion` returns them; None leaves the corrected columns empty. `label_table`
    holds labels of these images, for the prediction-powered share (empty where an occupation has
    fewer than two). `p` is Holm's over these occupations, of "the share may be one half, whatever
    the unsure are": claim from one table alone, chosen in advance.
    """
    rows = []
    for name, images in table.groupby("occupation", sort=False):
        read, ids = images[column].tolist(), images.id.tolist()
        raw = misclassification.uncorrected_shares(read, ids, CLASSES)
        best = raw
        if errors is not None:
            best = misclassification.corrected_shares(read, ids, CLASSES, errors)
        powered = prediction_powered_shares(images, column, label_table) or {}
        women = {
            "raw": raw["woman"],
            "corrected": NO_ESTIMATE if errors is None else best["woman"],
            "prediction_powered": powered.get("woman", NO_ESTIMATE),
            "bounds": misclassification.bounds_over_unsure(best, "woman"),
        }
        row: base.Record = {"occupation": name, "reference": reference.get(_key(images), np.nan)}
        row |= {"n": len(images), "prompts": len(set(ids))}
        row |= {"effective_n": effective_sample_size(images), "unsure": raw["unsure"].value}
        for kind, share in women.items():
            row |= {kind: share.value, f"{kind}_low": share.low, f"{kind}_high": share.high}
        row["p"] = misclassification.score_test_pvalue(read, ids, CLASSES, errors, "woman", 0.5)
        sure = images[images[column] != "unsure"]
        n = effective_sample_size(sure) if len(sure) else 0
        rows.append(row | _distance_from_even(sure[column], EVEN, n))
    shares = pd.DataFrame(rows)
    shares["p"] = estimates.adjust_pvalues(shares.p.tolist())
    required = required_sample_size(len(shares))
    shares["verdict"] = [
        verdict(r.bounds, r.p, r.effective_n, required, errors is not None)
        for r in shares.itertuples()
    ]
    # One confusion supposes that the scorer errs alike in all occupations: their labels may object.
    disagree = shares.prediction_powered_low.gt(shares.bounds_high)
    disagree |= shares.prediction_powered_high.lt(shares.bounds_low)
    shares.loc[disagree, "verdict"] = "no verdict: the two corrections disagree"
    return shares


def _key(images: pd.DataFrame) -> str:
    return str(images.reference.iloc[0] if "reference" in images else images.occupation.iloc[0])


def _distance_from_even(read: pd.Series, even: Reference, n: float) -> base.Record:
    """Return the total variation of readings from even, and its 95 % quantile if they are even."""
    counts = {group: int((read == group).sum()) for group in even}
    if not sum(counts.values()):
        return dict.fromkeys(("total_variation", "total_variation_null"))
    distance = imbalance.total_variation(counts, even)
    null = imbalance.null_quantile(max(1, round(n)), even)
    return {"total_variation": distance, "total_variation_null": null}


def prediction_powered_shares(
    images: pd.DataFrame, column: str, label_table: pd.DataFrame | None
) -> dict[str, Estimate] | None:
    """Return prediction-powered shares of the images' own labels; None for fewer than two.

    Unlike the correction by one confusion it does not suppose that a scorer errs alike everywhere.
    """
    if label_table is None:
        return None
    true = labels.answers_of(label_table, images, "presentation")
    if sum(label is not None for label in true) < 2:
        return None
    read, ids = images[column].tolist(), images.id.tolist()
    return misclassification.prediction_powered(read, ids, CLASSES, true)


def best_conditioned_scorer(errors: Mapping[str, np.ndarray | None]) -> str:
    """Return the instrument that tells the classes apart best, by its confusion's condition.

    A correction inverts the confusion, and what is nearly singular has an endless interval. The
    first instrument where none has labels.
    """
    rates = {k: v / v.sum(1, keepdims=True) for k, v in errors.items() if v is not None}
    return min(rates, key=lambda k: np.linalg.cond(rates[k])) if rates else next(iter(errors))


def coverage_warnings(shares: pd.DataFrame, table: pd.DataFrame, column: str) -> dict[str, str]:
    """Return, by occupation, a sentence where such a corrected interval held the truth too rarely.

    `shares` as `by_occupation` returns them; simulated audits say how often (`studies.audits`).
    """
    cells, warnings = base.simulated("simulated-audits")["cells"], {}
    corrected = shares.set_index("occupation").corrected
    for name, images in table.groupby("occupation", sort=False):
        women = images[column] == "woman"
        design = {"prompts": images.id.nunique(), "groups": len(CLASSES), "share": corrected[name]}
        design["correlation"] = trends.intraclass_correlation(women, images.id)
        if warning := simulation.coverage_warning(cells, "corrected", **design):
            warnings[str(name)] = warning
    return warnings


def tones(table: pd.DataFrame, column: str) -> pd.DataFrame:
    """Return skin tone by occupation: the share of each declared tone, distance from even."""
    rows = []
    for name, images in table.groupby("occupation", sort=False):
        read = images[column]
        shares = {tone: float((read == tone).mean()) for tone in TONES}
        n = effective_sample_size(images) * read.isin(EVEN_TONES).mean()
        row = {"occupation": name, "n": len(images), **shares}
        rows.append(row | _distance_from_even(read, EVEN_TONES, n))
    return pd.DataFrame(rows)


def balance(table: pd.DataFrame, column: str, by: Sequence[str] = ("occupation",)) -> pd.Series:
    """Return (women - men) / 2 as a share of all images: -.5 all men, .5 all women; unsure 0."""
    score = (table[column] == "woman") * 0.5 - (table[column] == "man") * 0.5
    return score.groupby([table[name] for name in by], sort=False).mean()


def amplification(
    table: pd.DataFrame, column: str, reference: Reference, other: pd.DataFrame | None = None
) -> Estimate:
    """Return how much further from even, on the reference's side, a table is than another.

    The mean over occupations whose reference is not one half, the occupation being the pair. Both
    tables hold the same prompts and seeds; without another it is compared with the reference.
    """
    keys = table.groupby("occupation", sort=False).reference.first()
    expected = keys.map(reference).astype(float).round(6) - 0.5
    before = expected if other is None else balance(other, column)
    difference = (balance(table, column) - before) * np.sign(expected)
    return estimates.mean_interval(difference[expected != 0].dropna().to_numpy())


def slope(table: pd.DataFrame, column: str, reference: Reference, draws: int = 2000) -> Estimate:
    """Return the slope of logit share on logit reference over occupations (`trends.logit_slope`).

    Over images that are read as a woman or a man.
    """
    groups = [images for _, images in table.groupby("occupation", sort=False)]
    shares = [[reference[_key(images)]] * 2 for images in groups]  # one year, twice
    counts = []
    for images in groups:
        women, sure = images[column] == "woman", images[column] != "unsure"
        sums = [estimates.cluster_totals(hits, images.id)[0] for hits in (women, sure)]
        counts.append(np.stack(sums, axis=1))
    return trends.logit_slope(np.array(shares, dtype=float), counts, draws)


def variance_components(table: pd.DataFrame) -> dict[str, Estimate]:
    """Return how much of the variance of "woman" within an occupation is due to what.

    `prompt` (template sensitivity), `seed` (images of a prompt), `scorer` (two instruments on one
    image): `trends.variance_components`.
    """
    one, two = (table[name] == "woman" for name in readings(table)[:2])
    parts = trends.variance_components(one, two, table.occupation, table.id)
    return dict(zip(("prompt", "seed", "scorer"), parts))


def intervention(table: pd.DataFrame, column: str) -> Estimate | None:
    """Return what naming woman and man in turn changes, over occupations, with common seeds.

    How far an occupation is from even, mixed half and half, less how far it is when neither is
    named: negative is nearer to even. Small samples are never quite even: both sides hold that.
    None where a part is missing.
    """
    images = table[table.part.isin(("unspecified", "counterfactual"))]
    named = images.presentation.fillna("unspecified")
    if named.nunique() < 3 or images.occupation.nunique() < 2:
        return None
    by = balance(images.assign(named=named), column, ("occupation", "named")).unstack()
    mixed = (by["woman"] + by["man"]) / 2
    return estimates.mean_interval((mixed.abs() - by["unspecified"].abs()).dropna())


def descriptor_effects(table: pd.DataFrame, column: str) -> dict[str, tuple[Estimate, float]]:
    """Return how each descriptor moves the share of women, with its p before any adjustment.

    Paired by occupation with common seeds, against the same words without it.
    """
    plain = table[(table.part == "unspecified") & (table.template == "t01")]
    before = balance(plain, column)
    effects = {}
    for name, images in table[table.part == "descriptor"].groupby("descriptor", sort=False):
        difference = (balance(images, column) - before).dropna().to_numpy()
        if len(difference) > 1:
            p = estimates.paired_test(difference)
            effects[str(name)] = (estimates.mean_interval(difference), p)
    return effects
