"""Estimates of the composition probe: from a table of images to shares with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import permutations
from typing import Any

import numpy as np
import pandas as pd

from koala_nb.probes import base
from koala_nb.probes.atoms import ATOMS, MOST_ITEMS, TASKS
from koala_nb.stats import estimates as stats
from koala_nb.stats import misclassification, trends

OUTSIDE = "never in a caption"  # value of `seen` for forms that no training caption has
KINDS = {  # kind of atom -> its columns
    "object": [f"item_{i}" for i in range(1, MOST_ITEMS + 1)],
    "colour": [f"color_{i}" for i in range(1, MOST_ITEMS + 1)],
    **{a.removesuffix("_right"): [a] for a in ATOMS if a.endswith("_right")},
}
COMPARED = ("all_right", "correct", "missing", "extra", "quality")


def geneval(table: pd.DataFrame) -> dict[str, Any]:
    """Return GenEval's shares by task, and its score: the mean of the tasks' shares.

    The score's interval resamples prompts within their tasks (500 draws); its n is images.
    """
    asked = table[table.correct.notna()]
    rows = base.shares(asked, "correct", "task")
    tasks = [t for t in TASKS if t in set(asked.task)]
    means = [asked[asked.task == t].groupby("id").correct.mean().astype(float) for t in tasks]
    rng = np.random.default_rng(0)
    drawn = [rng.choice(m.to_numpy(), (500, len(m))).mean(1) for m in means]
    low, high = np.quantile(np.mean(drawn, axis=0), [0.025, 0.975])
    value = float(np.mean([m.mean() for m in means]))
    return {"tasks": rows, "score": stats.Estimate(value, float(low), float(high), len(asked))}


def atom_shares(table: pd.DataFrame, by: Sequence[str] = ()) -> pd.DataFrame:
    """Return the share right of each kind of atom; a row's n counts atoms, not images."""
    parts = []
    for kind, columns in KINDS.items():
        held = [c for c in columns if c in table]
        long = table.melt(["id", *by], held, value_name="holds").dropna(subset="holds")
        parts.append(long.assign(atom=kind))
    return base.shares(pd.concat(parts), "holds", ["atom", *by])


def by_atoms(table: pd.DataFrame) -> tuple[pd.DataFrame, trends.Trend | None]:
    """Return the share of images with every atom right by number of atoms, and its trend.

    Only forms of sentences that captions have: others would mix novelty with length.
    """
    known = table[table.seen != OUTSIDE]
    trend = trends.logistic_trend(known.atoms, known.all_right, known.id)
    return base.shares(known.sort_values("atoms"), "all_right", "atoms"), trend


def units(table: pd.DataFrame) -> pd.DataFrame:
    """Return whether each item of a prompt is there in its own colour, a column an item."""
    found = {}
    for i in range(1, MOST_ITEMS + 1):
        item, color = table[f"item_{i}"], table[f"color_{i}"]
        right = item.astype(float) * color.astype(float).fillna(1.0)
        found[f"unit_{i}"] = right.where(item.notna())
    return pd.DataFrame(found).astype(float)


def independence(table: pd.DataFrame) -> pd.DataFrame:
    """Return, by task, the joint success of a prompt's items beside the product of single ones.

    `expected` multiplies success rates of the *same prompt* on *different* images (all orders of
    its images), so that neither easy prompts nor a shared image can make it look dependent.
    `pooled` multiplies the task's overall rates. `difference` is joint less expected, with a t
    interval over prompts: below 0, items crowd each other out; above, they succeed together. It has
    no ends where all prompts differ alike.
    """
    rows = []
    for task, group in table.groupby("task", sort=False):
        single = units(group)
        k = int((single.notna().sum()).gt(0).sum())
        if k < 2:
            continue
        columns = [f"unit_{i}" for i in range(1, k + 1)]
        group = group[single[columns].notna().all(axis=1)]  # prompts that ask for all k
        single = single.loc[group.index]
        pairs = [_joint_and_product(single.loc[g.index, columns].to_numpy())
                 for _, g in group.groupby("id", sort=False) if len(g) >= k]  # fmt: skip
        if len(pairs) < 2:
            continue
        joint, product = np.array(pairs).T
        difference = stats.mean_interval(joint - product)
        if np.ptp(joint - product) == 0:  # such as all wrong: nothing is told of dependence
            difference = difference._replace(low=np.nan, high=np.nan)
        rows.append({
            "task": task, "items": k, "joint": joint.mean(), "expected": product.mean(),
            "pooled": float(single[columns].mean().prod()),
            "difference": difference.value, "low": difference.low, "high": difference.high,
            "n": len(group), "prompts": len(pairs),
        })  # fmt: skip
    return pd.DataFrame(rows).round(base.ROUND)


def _joint_and_product(right: np.ndarray) -> tuple[float, float]:
    """Return the mean product within images, and over all choices of different images."""
    n, k = right.shape
    orders = np.array(list(permutations(range(n), k)))
    return float(right.prod(1).mean()), float(right[orders, np.arange(k)].prod(1).mean())


def relation_given_both(table: pd.DataFrame) -> pd.DataFrame:
    """Return the share of images in the right relation among those that show both items.

    Of two things put side by side without regard to who is where, half would be right by chance.
    """
    both = (units(table)[["unit_1", "unit_2"]] == 1).all(axis=1)
    asked = table[both & table.relation_right.notna()]
    return base.shares(asked, "relation_right") if len(asked) else pd.DataFrame()


def gap(table: pd.DataFrame) -> pd.DataFrame:
    """Return success on seen and held-out compositions and their difference, by group of tasks.

    Pairs of objects: both there; coloured shapes: object and colour. The interval is Welch's over
    prompts' means; its ends are missing where no image of either kind differs from another.
    """
    rows = []
    for name, tasks in {
        "pairs of objects": ("two_object", "position"),
        "a coloured shape": ("colors",),
        "two coloured shapes": ("color_attr",),
    }.items():
        own = table[table.task.isin(tasks)]
        right = units(own).min(axis=1)
        sides = [right[own.seen == s].groupby(own.id).mean().to_numpy() for s in ("yes", "no")]
        if min(map(len, sides)) < 2:
            continue
        rows.append({"composition": name, "seen": sides[0].mean(), "held out": sides[1].mean()}
                    | stats.welch_interval(*sides)._asdict() | {"n": len(own)})  # fmt: skip
    return pd.DataFrame(rows).round(base.ROUND)


def compared(first: pd.DataFrame, second: pd.DataFrame) -> pd.DataFrame:
    """Return first less second for images of the same prompt and seed, with Holm's p values.

    Only prompts and seeds that both tables hold are compared; the prompt is the pair.
    """
    keys = ["id", "seed"]
    both = first[keys].merge(second[keys])
    one, other = (t.merge(both).sort_values(keys).reset_index(drop=True) for t in (first, second))
    rows, ps = [], []
    for column in COMPARED:
        values = [pd.to_numeric(t[column].astype(float)) for t in (one, other)]
        if values[0].notna().sum() < 2 or values[1].notna().sum() < 2:
            continue
        means = pd.DataFrame({"id": one.id, "a": values[0], "b": values[1]}).dropna()
        means = means.groupby("id").mean()
        if len(means) < 2:
            continue
        estimate = stats.mean_interval((means.a - means.b).to_numpy())
        ps.append(stats.paired_test((means.a - means.b).to_numpy()))
        rows.append({"measure": column, "first": means.a.mean(), "second": means.b.mean(),
                     "difference": estimate.value, "low": estimate.low, "high": estimate.high,
                     "prompts": len(means), "images": len(both)})  # fmt: skip
    return pd.DataFrame(rows).assign(p=stats.adjust_pvalues(ps)).round(base.ROUND)


def single_corrected(table: pd.DataFrame, card: Mapping[str, Any]) -> stats.Estimate:
    """Return the single-object share corrected for the detector's error (Rogan and Gladen).

    `card` holds `single object` with sensitivity and specificity as (right, of).
    """
    own = table[table.task == "single_object"]
    hits, sizes = stats.cluster_totals(own.correct.astype(float), own.id)
    error = card["single object"]
    n = sizes.sum() / stats.design_effect(hits, sizes)
    return misclassification.corrected_share(
        hits.sum() / sizes.sum(), n, tuple(error["sensitivity"]), tuple(error["specificity"])
    )


def estimates(table: pd.DataFrame, card: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return all that the probe reports of a table; `card` is the instruments' card."""
    shares, trend = by_atoms(table)
    found: dict[str, Any] = {
        "geneval": geneval(table),
        "all atoms right": base.shares(table, "all_right", "task"),
        "atoms": atom_shares(table),
        "by number of atoms": shares,
        "trend": trend,
        "independence": independence(table),
        "relation, both there": relation_given_both(table),
        "generalisation gap": gap(table),
        "missing": base.means(table, "missing", "task"),
        "extra": base.means(table, "extra", "task"),
    }
    if table.leak.notna().any():
        found["leakage"] = base.shares(table, "leak")
    if table.quality.notna().any():
        found["quality"] = base.means(table, "quality", "all_right")
    if card:
        found["single object, corrected"] = single_corrected(table, card)
        found["instrument card"] = dict(card)
    return found
