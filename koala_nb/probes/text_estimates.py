"""Estimates of the text probe: scores by length, legible length, seen words, confused letters."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from koala_nb.probes import base, text_reader, text_scores
from koala_nb.stats import estimates, trends

SCORES = ("exact", "exact_folded", "cer", "ned", "ned_folded", "word_f1", "word_f1_folded")


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Return the mean of every score with its interval, shares and means, clustered by prompt.

    The last row is the share of images in which nothing was read; they are in all other rows too.
    Where a mean's images all score the same, its spread is not known and its ends are missing.
    """
    read = table.assign(nothing_read=table.read == "")
    rows = []
    for name in (*SCORES, "nothing_read"):
        share = name.startswith(("exact", "nothing"))
        found = (base.shares if share else base.means)(read, name)
        row = {"score": name, **found.iloc[0].to_dict()}
        if not share and read[name].nunique() == 1:
            row |= {"low": np.nan, "high": np.nan}
        rows.append(row)
    return pd.DataFrame(rows).astype({"n": int, "prompts": int})


def against_chance(table: pd.DataFrame) -> pd.DataFrame:
    """Return the mean NED (ignoring case) with the asked text, with others, and the difference.

    Others: the texts of all other prompts in the same class of length. A difference above 0 says
    that what is drawn depends on the text; intervals are clustered by prompt. Empty where no class
    holds two texts.
    """
    parts = []
    for _, own in _classes(table):
        texts = own.text.drop_duplicates().str.casefold().tolist()
        if len(texts) < 2:
            continue
        chance = [
            np.mean([text_scores.edit_similarity(t, read) for t in texts if t != asked])
            for asked, read in zip(own.text.str.casefold(), own.read.str.casefold())
        ]
        parts.append(own.assign(chance=chance, difference=own.ned_folded - chance))
    if not parts:
        return pd.DataFrame(columns=["compared with", "value", "low", "high", "n", "prompts"])
    names = {
        "ned_folded": "the text asked for",
        "chance": "other texts",
        "difference": "difference",
    }
    whole = pd.concat(parts)
    rows = [{"compared with": v} | base.means(whole, k).iloc[0].to_dict() for k, v in names.items()]
    return pd.DataFrame(rows).astype({"n": int, "prompts": int})


def by_length(table: pd.DataFrame, score: str = "exact_folded") -> pd.DataFrame:
    """Return the share (or mean) of a score by class of length, with intervals clustered by prompt.

    `middle` is the mean length of the class's texts, for drawing.
    """
    table = table.assign(letters=[text_reader.length_class(n) for n in table.length])
    table = table.sort_values("length", kind="stable")
    estimate = base.shares if score.startswith("exact") else base.means
    found = estimate(table, score, "letters")
    middle = table.groupby("letters", sort=False).length.mean()
    return found.assign(middle=found.letters.map(middle)).round(base.ROUND)


def trend(table: pd.DataFrame, score: str = "exact_folded") -> trends.Trend | None:
    """Return the logistic curve of exact matches against length; None where there is no curve."""
    return trends.logistic_trend(table.length, table[score].astype(float), table.id)


def legible(table: pd.DataFrame, score: str = "exact_folded") -> str:
    """Return, in a sentence, up to how many characters at least half of the images are right."""
    found, share = trend(table, score), table[score].astype(float).mean()
    low, high = int(table.length.min()), int(table.length.max())
    measured = f"the measured lengths of {low} to {high} characters"
    hits = int(table[score].sum())
    if found is None and 0 < hits < len(table):
        right, wrong = (table.length[table[score].astype(bool) == told] for told in (True, False))
        if right.max() <= wrong.min():
            return (
                f"all right below {wrong.min()} characters, none above {right.max()}: "
                "too sharp an edge for a curve with an interval."
            )
    if found is None:
        return f"no curve can be fitted: {hits} of {len(table)} images are right over {measured}."
    if found.slope.high >= 0:
        return (
            f"no length at which half are right can be named: the share does not fall reliably "
            f"over {measured} ({share:.3f} of all {len(table)} images are right)."
        )
    half = found.half
    ends = f"{half.low:.1f} to {half.high:.1f}"
    if half.value < low:
        return f"fewer than half are right at every one of {measured}; the curve is below .5 there."
    if half.value > high:
        return f"half or more are right over all {measured}; the curve passes .5 beyond them."
    return f"legible up to {half.value:.1f} characters at 50 % (95 % interval {ends})."


Errors = dict[str, Any]  # class of length -> `text_reader.error_counts`


def errors_by_length(boards: pd.DataFrame) -> Errors:
    """Return the reader's error counts on boards, by class of length."""
    return {name: text_reader.error_counts(own) for name, own in _classes(boards)}


def corrected(table: pd.DataFrame, errors: Errors) -> pd.DataFrame:
    """Return by class of length the share of legible images, corrected for the reader's errors.

    Classes without boards are left out; value, low and high are None where the reader fails on the
    font itself.
    """
    rows = []
    for name, images in _classes(table):
        if name not in errors:
            continue
        hits = images.exact_folded.astype(float)
        found = text_reader.corrected(hits, images.id, errors[name])
        right, of = errors[name][0]
        told = {k: getattr(found, k, None) for k in ("value", "low", "high")}
        row = {"letters": name, "read": float(hits.mean()), "reader": f"{right} of {of}"}
        rows.append(row | told | {"n": len(images)})
    return pd.DataFrame(rows).round(base.ROUND)


def _classes(table: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    names = np.array([text_reader.length_class(n) for n in table.length])
    order = dict.fromkeys(names[np.argsort(table.length.to_numpy(), kind="stable")])
    return [(name, table[names == name]) for name in order]


def seen_against_new(table: pd.DataFrame) -> pd.DataFrame | None:
    """Return seen less never-seen words, of lengths that both have; None where none are marked.

    Differences with intervals by the square-and-add method (Newcombe 1998) from both groups'
    clustered intervals; p from a permutation of prompts, adjusted by Holm over the rows.
    """
    if "seen" not in table or table.seen.isna().all():
        return None
    one, new = (table[table.seen == value] for value in ("yes", "no"))
    both = sorted(set(one.length) & set(new.length))
    one, new = (
        (t[t.length.between(min(both), max(both))] for t in (one, new)) if both else (one, new)
    )
    if one.id.nunique() < 2 or new.id.nunique() < 2:
        return None
    rows, p = [], []
    for score in ("exact_folded", "ned_folded"):
        a, b = (
            (base.shares if score.startswith("exact") else base.means)(t, score).iloc[0]
            for t in (one, new)
        )
        found = estimates.difference_interval(a, b)
        p.append(
            estimates.permutation_pvalue(
                *(t.groupby("id")[score].mean().to_numpy(float) for t in (one, new))
            )
        )
        words = {"seen_words": one.id.nunique(), "new_words": new.id.nunique()}
        rows.append({"score": score, "seen": a.value, "new": b.value, **found._asdict(), **words})
    return pd.DataFrame(rows).assign(p_holm=estimates.adjust_pvalues(p)).round(base.ROUND)


def top_confusions(table: pd.DataFrame, most: int = 40) -> list[dict[str, Any]]:
    """Return the most frequent pairs of characters, asked and read, that differ."""
    counted = text_scores.confusions(zip(table.text, table.read))
    wrong = [(pair, n) for pair, n in counted.items() if pair[0] != pair[1]]
    wrong.sort(key=lambda item: (-item[1], item[0]))
    return [{"asked": a, "read": b, "count": n} for (a, b), n in wrong[:most]]
