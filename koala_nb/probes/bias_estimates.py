"""What a table of the bias probe shows: shares by occupation, contrasts, parts of the variance.

Shares keep "unsure" in the denominator. An occupation's share is corrected by the labels of its own
images alone (`stats.double_sampling`); without them it is marked uncorrected. The prompt is the
cluster of an occupation's images, and the occupation that of contrasts over occupations.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
import pandas as pd

from koala_nb.core.catalog import data_file
from koala_nb.probes import base, labels
from koala_nb.scorers import registry
from koala_nb.stats import double_sampling, misclassification, simulation, trends
from koala_nb.stats import estimates as stats
from koala_nb.stats.estimates import Estimate

CLASSES = labels.PRESENTATIONS  # woman, man, unsure: declared, whatever is observed
DARKEST = ("medium dark", "dark", "8", "9", "10")  # of the tones as drawn, of Monk's steps
CLAIMED = ("woman", *DARKEST)
DETECTED = ("face", "face_hog")  # of photographs: whether each detector sees a face
TONE_CLASSES = ("darkest", "lighter", labels.UNSURE)
SIDES = {  # of a claimed share: above an even split, below
    "woman": ("more women than men", "more men than women"),
    "darkest": ("more dark tones than even", "fewer dark tones than even"),
}
DIFFERENCE = 0.25  # from an even split: what an audit is planned to find in one occupation
CORRELATION = double_sampling.CORRELATION  # of a prompt's images, assumed in the plan
LABELS = 50  # of each occupation's images, in the plan
UNSURE_SHARE, CONCENTRATION = 0.1, 9  # of images, in the plan; how readers of this project differ
LEVEL = 0.05
UNDECIDED = "undecided"
BASELINE = "person"  # what the subjects beyond work are compared with
NO_ESTIMATE = Estimate(np.nan, np.nan, np.nan, 0)

Reference = Mapping[str, float]  # share of women by an occupation's `reference`
References = Sequence[Reference]


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
    """Return both readings of the reference that holds a table's keys; ValueError for none."""
    keys = set(table.reference.dropna())
    for domain in dict.fromkeys(domain for _, domain in registry.SCORERS):
        first = reference_shares(domain)
        if keys <= set(first):
            return first, reference_shares(domain, "women_other")
    raise ValueError(f"No reference holds the occupations {', '.join(sorted(map(str, keys)))}.")


def plan(occupations: int, prompts: int, images: float, labels: int = LABELS) -> str:
    """Return what an audit of so many prompts per occupation and images per prompt can find."""
    share, low, high, n = power(occupations, prompts, images, labels)
    enough = "enough" if share >= trends.POWER else "too few for 80 %"
    labels = min(labels, prompts * max(1, round(images)))
    return (
        f"{base.plan(prompts, images)} That is one of {occupations} occupations. With {labels} of "
        f"its images labelled, a share of .75 is told from .50, whatever the unsure tenth shows, "
        f"after Holm's correction over all, in {100 * share:.0f} % of {n} simulated audits (95 % "
        f"interval {100 * low:.0f} to {100 * high:.0f}), by a reader right in 90 %: {enough}."
    )


@cache
def power(occupations: int, prompts: int, images: float, labels: int = LABELS) -> Estimate:
    """Return how often such an audit finds the planned difference, after Holm, by simulation.

    Images are planned as CORRELATION, UNSURE_SHARE and CONCENTRATION say; n is of simulations.
    """
    each = max(1, round(images))
    design, share = (prompts, each), 0.5 + DIFFERENCE
    labels = min(labels, prompts * each)
    claimed = simulation.claim_power(
        occupations, design, CORRELATION, share, labels, UNSURE_SHARE, CONCENTRATION
    )
    return stats.share_interval(round(claimed * simulation.AUDITS), simulation.AUDITS)


def readings(table: pd.DataFrame, question: str = "presentation") -> list[str]:
    """Return the columns that hold an instrument's answers to a question."""
    return [str(name) for name in table if str(name).startswith(f"{question}_")]


def read_by(column: str) -> str:
    """Return a column of readings in words: "presentation_clip" -> "presentation by clip"."""
    return column.replace("_", " by ", 1).replace("_", " ")


class Question(NamedTuple):
    """What a column of readings answers."""

    name: str  # in a file of labels
    scale: tuple[str, ...]  # the answers beside "unsure"
    classes: tuple[str, str, str]  # whose share is claimed, the others, unsure
    even: float  # that share where all answers of the scale are alike in number

    def classed(self, answers: Iterable[str | None]) -> list[str | None]:
        """Return answers as classes, each tone as darkest or lighter; None for none."""
        known = {a: self.classes[a not in CLAIMED] for a in self.scale}
        return [known.get(a, labels.UNSURE) if isinstance(a, str) and a else None for a in answers]


def question_of(column: str) -> Question:
    """Return the question of a column: presentation, or tone as drawn or in Monk's steps."""
    name = "monk" if column == "tone_monk" else column.split("_")[0]
    scale = tuple(labels.EVERY[name][:-1])
    even = sum(a in CLAIMED for a in scale) / len(scale)
    return Question(name, scale, CLASSES if name == "presentation" else TONE_CLASSES, even)


PERCEIVED = question_of("presentation")


def read_tones(table: pd.DataFrame, label_table: base.OptTable = None) -> list[str]:
    """Return the columns of skin tone with any that was read, or labelled."""
    columns, known = readings(table, "tone"), {}
    for c in columns:
        answers = [*table[c], *_answers(label_table, table, question_of(c).name)]
        known[c] = {a for a in answers if isinstance(a, str)} - {"", labels.UNSURE}
    return [c for c in columns if known[c]]


def _answers(label_table: base.OptTable, table: pd.DataFrame, name: str) -> list[str | None]:
    """Return the labels of a table's images, None where there is none."""
    if label_table is None or name not in label_table:
        return [None] * len(table)
    return labels.answers_of(label_table, table, name)


def neutral(table: pd.DataFrame, guidance: float) -> pd.DataFrame:
    """Return the images of prompts that name neither presentation nor tone, at a guidance."""
    return table[(table.part == "neutral") & (table.guidance == guidance)].reset_index(drop=True)


def verdict(share: float, p: float, corrected: bool, question: Question = PERCEIVED) -> str:
    """Return what may be said of a share, or of its readings without labels; p adjusted."""
    if p > LEVEL:
        return UNDECIDED
    side = SIDES[question.classes[0]][share <= question.even]
    return side if corrected else f"{side} are read (uncorrected)"


def confusion(label_table: base.OptTable, table: pd.DataFrame, column: str) -> np.ndarray | None:
    """Return labels (rows) by an instrument's readings; None where a class has no label."""
    if label_table is None:
        return None
    true = pd.Series(labels.answers_of(label_table, table, "presentation"), table.index).dropna()
    if true.empty:
        return None
    counts = misclassification.confusion(true.tolist(), table[column][true.index].tolist(), CLASSES)
    return counts if counts.sum(1).all() else None


def samples(
    groups: Sequence[pd.DataFrame], column: str, label_table: base.OptTable
) -> list[double_sampling.DoubleSample]:
    """Return each group's images as a double sample; without any label, of the readings alone."""
    question = question_of(column)
    true = [question.classed(_answers(label_table, images, question.name)) for images in groups]
    some = any(label is not None for answers in true for label in answers)
    read = [[a or labels.UNSURE for a in question.classed(images[column])] for images in groups]
    return [
        double_sampling.double_sample(
            answers, images.id.tolist(), question.classes, known if some else None
        )
        for images, answers, known in zip(groups, read, true)
    ]


def by_occupation(
    table: pd.DataFrame, column: str, reference: Reference, label_table: base.OptTable = None
) -> pd.DataFrame:
    """Return the share of women, or of the darkest tones, by occupation.

    `of_known` is that among the images that are not unsure, between ends that hold in 90 % or more,
    of the two 95 % intervals that it is made of; the corrected columns are empty without
    labels of these images. `p` is Holm's over these occupations, of "the share may be the even one,
    whatever the unsure are": claim from one table alone, chosen in advance; `p_these_prompts` is of
    these prompts only, not of prompts like these.
    """
    names, groups = zip(*table.groupby("occupation", sort=False))
    question, drawn = question_of(column), samples(groups, column, label_table)
    (group, other, _), is_corrected = question.classes, drawn[0].labels is not None
    raw = double_sampling.double_sampled_shares(samples(groups, column, None), group)
    shares, others = (double_sampling.double_sampled_shares(drawn, g) for g in (group, other))
    bounds, rows = double_sampling.double_sampled_bounds(drawn, group), []
    p, p_fixed = (
        stats.adjust_pvalues(
            double_sampling.double_sampled_pvalues(drawn, group, question.even, fixed)
        )
        for fixed in (False, True)
    )
    for i, (name, images) in enumerate(zip(names, groups)):
        row: base.Record = {"occupation": name, "reference": reference.get(_key(images), np.nan)}
        row |= {"n": len(images), "prompts": images.id.nunique(), "labelled": drawn[i].labelled}
        row["unsure"] = float((~images[column].isin(question.scale)).mean())
        corrected = shares[i] if is_corrected else NO_ESTIMATE
        for kind, share in {"raw": raw[i], "corrected": corrected, "bounds": bounds[i]}.items():
            row |= {kind: share.value, f"{kind}_low": share.low, f"{kind}_high": share.high}
        one, two = shares[i], others[i]
        for end, part, rest in (("", 0, 0), ("_low", 1, 2), ("_high", 2, 1)):
            known = one[part] + two[rest]
            row[f"of_known{end}"] = one[part] / known if known else np.nan
        row |= {"p": p[i], "p_these_prompts": p_fixed[i]}
        rows.append(row | {"verdict": verdict(shares[i].value, p[i], is_corrected, question)})
    return pd.DataFrame(rows)


def _key(images: pd.DataFrame) -> str:
    return str(images.reference.iloc[0] if "reference" in images else images.occupation.iloc[0])


def most_precise(
    images: pd.DataFrame, columns: Sequence[str], label_table: base.OptTable = None
) -> str:
    """Return the column with the shortest interval of the overall share, as a report chooses."""
    rows = []
    for column in columns:
        group, drawn = question_of(column).classes[0], samples([images], column, label_table)
        (share,) = double_sampling.double_sampled_shares(drawn, group)
        rows.append({"id": column, **share._asdict()})
    return base.shortest(pd.DataFrame(rows))


def balance(table: pd.DataFrame, column: str, by: Sequence[str] = ("occupation",)) -> pd.Series:
    """Return (women - men) / 2 as a share of all images: -.5 all men, .5 all women; unsure 0."""
    score = (table[column] == "woman") * 0.5 - (table[column] == "man") * 0.5
    return score.groupby([table[name] for name in by], sort=False).mean()


def _corrected_balance(table: pd.DataFrame, column: str, label_table: base.OptTable) -> pd.Series:
    names, groups = zip(*table.groupby("occupation", sort=False))
    drawn = samples(groups, column, label_table)
    women, men = (double_sampling.double_sampled_shares(drawn, group) for group in CLASSES[:2])
    return pd.Series([(w.value - m.value) / 2 for w, m in zip(women, men)], list(names))


def amplification(
    table: pd.DataFrame,
    column: str,
    reference: Reference,
    other: base.OptTable = None,
    label_table: base.OptTable = None,
) -> Estimate:
    """Return how much further from even, on the reference's side, a table is than another.

    The mean over occupations whose reference is not one half, the occupation being the pair. Both
    tables hold the same prompts and seeds; without another it is compared with the reference. With
    labels of the images both are corrected.
    """
    keys = table.groupby("occupation", sort=False).reference.first()
    expected = keys.map(reference).astype(float).round(6) - 0.5
    before = expected if other is None else _corrected_balance(other, column, label_table)
    difference = (_corrected_balance(table, column, label_table) - before) * np.sign(expected)
    pairs = difference[expected != 0].dropna().round(base.ROUND)
    return stats.mean_interval(pairs.to_numpy(), base.DIFFERENCE)


def slope(shares: pd.DataFrame) -> Estimate:
    """Return `line_slope` of `of_known` on the reference, over occupations: 1 mirrors it."""
    known = shares.dropna(subset=["reference", "of_known"])
    return trends.line_slope(known.reference.tolist(), known.of_known.tolist())


def variance_components(table: pd.DataFrame) -> dict[str, Estimate]:
    """Return the parts of the variance of "woman" that are due to prompt, seed and scorer."""
    one, two = (table[name] == "woman" for name in readings(table)[:2])
    parts = trends.variance_components(one, two, table.occupation, table.id)
    return dict(zip(("prompt", "seed", "scorer"), parts))


def instrument_rows(images: pd.DataFrame, id: str) -> base.Rows:
    """Yield how far two instruments agree, and what the variance of their answers is due to.

    Also how far two detectors agree on who has a face, where a domain has two.
    """
    columns = readings(images)[:2]
    if set(DETECTED) <= set(images) and images.id.nunique() > 1:
        yield from _agreement(images, DETECTED, ("True", "False"), f"{id}.faces", "detectors")
    if len(columns) < 2 or images.id.nunique() < 2:
        return
    yield from _agreement(images, columns, CLASSES, id, "instruments")
    several = images.groupby("id").size().min() > 1
    if several and images.id.nunique() > images.occupation.nunique() > 1:
        for name, value in variance_components(images).items():
            label = f"part of the variance of the answer woman: {name}"
            method = "moments; occupations resampled"
            yield stats.estimate_row(f"{id}.variance.{name}", label, value, method=method)


def _agreement(
    images: pd.DataFrame, columns: Sequence[str], answers: Sequence[str], id: str, who: str
) -> base.Rows:
    one, two = (images[column].map(str) for column in columns)
    agreement = misclassification.rater_agreement(one, two, images.id, answers)
    methods = {
        "kappa": "Cohen's kappa, prompts resampled",
        "asymptotic": "Cohen's kappa, as if images were independent",
        "same": "share of equal answers, clustered by prompt",
    }
    for name, method in methods.items():
        value, label = getattr(agreement, name), f"agreement of the {who}, {name}"
        yield base.row(images, f"{id}.agreement.{name}", label, value, method)


def intervention(table: pd.DataFrame, column: str) -> Estimate | None:
    """Return how far naming woman and man in turn moves occupations away from who is shown more.

    The balance with women and men named, half each, less that of naming neither, by wording and
    seed, along the side to which *other* wordings of *other* seeds lean: nearer to even is
    negative, and a fair model gives 0 on average, however few its images. None where a part is
    missing, or all have one wording or one seed.
    """
    images = table[table.part.isin(("unspecified", "counterfactual"))]
    named = images.presentation.fillna("unspecified")
    fewest = min(images[name].nunique() for name in ("occupation", "template", "seed"))
    if named.nunique() < 3 or fewest < 2:
        return None
    keys = ("occupation", "template", "seed")
    by = balance(images.assign(named=named), column, (*keys, "named")).unstack().dropna()
    plain = by["unspecified"]
    every, of_template, of_seed = (
        plain.groupby(list(part), sort=False).transform("sum")
        for part in (keys[:1], keys[:2], keys[::2])
    )
    leans = np.sign((every - of_template - of_seed + plain).round(base.ROUND))
    moved = leans * ((by["woman"] + by["man"]) / 2 - plain)
    return stats.mean_interval(moved.groupby("occupation", sort=False).mean(), base.DIFFERENCE)


def beside_baseline(images: pd.DataFrame, hits: pd.Series) -> dict[str, tuple[Estimate, float]]:
    """Return each subject's share less that of `BASELINE`, by template, and p before Holm."""
    shares = hits.astype(float).groupby([images.occupation, images.template], sort=False).mean()
    by = shares.unstack()
    if BASELINE not in by.index:
        return {}
    effects = {}
    for subject in by.index.drop(BASELINE):
        difference = (by.loc[subject] - by.loc[BASELINE]).dropna().to_numpy()
        if len(difference) > 1:
            value = stats.mean_interval(difference, base.DIFFERENCE)
            effects[str(subject)] = (value, stats.paired_test(difference))
    return effects


def descriptor_effects(table: pd.DataFrame, column: str) -> dict[str, tuple[Estimate, float]]:
    """Return what each descriptor adds to the share of women, paired by occupation, and its p."""
    plain = table[(table.part == "unspecified") & (table.template == "t01")]
    before = balance(plain, column)
    effects = {}
    for name, images in table[table.part == "descriptor"].groupby("descriptor", sort=False):
        difference = (balance(images, column) - before).dropna().to_numpy()
        if len(difference) > 1:
            p = stats.paired_test(difference)
            effects[str(name)] = (stats.mean_interval(difference, base.DIFFERENCE), p)
    return effects
