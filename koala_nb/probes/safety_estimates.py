"""What the safety probe shows of a table: rates, leaks, contrasts, and a deployer's checklist."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from koala_nb.core.catalog import data_file
from koala_nb.core.files import read_csv
from koala_nb.probes import base
from koala_nb.probes.prompts import pair_images
from koala_nb.stats import estimates as stats
from koala_nb.stats import misclassification

PLAIN, NEGATIVE = "as it is", "negative prompt"  # values of `setting` in tables
SETTINGS = {PLAIN: "plain", NEGATIVE: "negative"}  # -> part of ids
ASKING = ("asked", "respelled", "paraphrased")
NOT_ASKED = "not asked"
INSTRUMENTS = {"shown": "sprite matching", "shown_clip": "nano-clip"}
CONCEPTS = "Wilson, clustered by concept, or by prompt where there is none; wider for few clusters"
AS_CODED = "works as coded"  # a note of the checklist begins so
BOUND = "Clopper and Pearson's one-sided 95 % bound; a cluster counts as one trial"


def by_concept(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table whose `id` is the concept that is asked for, where there is one.

    Prompts of one concept stand or fall together; one that has none stands for itself. The prompt's
    own id is in `prompt_id`.
    """
    return table.assign(prompt_id=table.id, id=table.concept.where(table.concept.notna(), table.id))


def harmless(table: pd.DataFrame) -> pd.DataFrame:
    """Return the images of prompts that ask for nothing listed: a flag there is a false alarm."""
    return table[table.part == NOT_ASKED]


def rate_rows(hits: stats.Values, clusters: stats.Values, id: str, label: str) -> base.Rows:
    """Yield a share as an estimate and, where nothing hits, `<id>.upper_bound`.

    The bound counts a cluster as one trial: nothing is known of how alike its images are. Clusters
    of unequal sizes count as fewer.
    """
    share = stats.few_clusters_share(hits, clusters)
    sizes = stats.cluster_totals(hits, clusters)[1]
    yield stats.estimate_row(id, label, share, clusters=len(sizes), method=CONCEPTS)
    if share.value == 0:
        trials = int(sizes.sum() ** 2 // (sizes**2).sum())
        upper = stats.upper_bound_clopper_pearson(0, trials)
        bound = stats.Estimate(upper, np.nan, np.nan, share.n)
        id, label = f"{id}.upper_bound", f"{label}, at most"
        yield stats.estimate_row(id, label, bound, clusters=len(sizes), method=BOUND)


def group_rows(
    table: pd.DataFrame, column: str, by: Sequence[str], id: str, label: str
) -> base.Rows:
    """Yield `rate_rows` of a column by factors; `{}` in id and label stand for their values."""
    for values, images in table.groupby(list(by), sort=False):
        parts = ".".join(SETTINGS.get(v) or base.identifier(v) for v in values)
        name = ", ".join(map(str, values))
        ids = images.id.tolist()
        yield from rate_rows(images[column], ids, id.format(parts), label.format(name))


def i2p_rows(table: pd.DataFrame) -> base.Rows:
    """Yield the share of I2P's images that the checker flags, without a negative prompt."""
    images, label = table[table.setting == PLAIN], "images of I2P flagged by the checker"
    yield from rate_rows(images.flagged, images.id.tolist(), "safety.i2p", label)


def filter_rows(prompts: pd.DataFrame) -> base.Rows:
    """Yield the share of prompts that a filter stops, by part and way, clustered by concept.

    `prompts` has `stopped` beside the columns of the prompt set.
    """
    table, label = by_concept(prompts), "stopped by the prompt filter, {}"
    yield from group_rows(table, "stopped", ["part"], "safety.filter.{}", label)
    yield from group_rows(table, "stopped", ["part", "way"], "safety.filter.{}", label)


def rows(table: pd.DataFrame) -> base.Rows:
    """Yield all rates of a measured table, clustered by concept."""
    table = by_concept(table)
    if "setting" not in table:
        table = table.assign(setting=PLAIN)
    plain = table[table.setting == PLAIN]
    calm, asking = harmless(plain), plain[plain.part.isin(ASKING)]
    by = ["setting", "part"]
    label = "flagged by the checker, {}"
    yield from group_rows(table, "flagged", by, "safety.flagged.{}", label)
    if len(calm):
        label = "flagged by the checker"
        yield from rate_rows(calm.flagged, calm.id.tolist(), "safety.false_alarms", label)
    if "shown" not in table or asking.empty:
        return
    ids = asking.id.tolist()
    yield from rate_rows(asking.shown, ids, "safety.shown", "stand-in shown, asked for")
    for column, name in INSTRUMENTS.items():
        label = f"stand-in shown, by {name}, {{}}"
        yield from group_rows(table, column, by, f"safety.{column}.{{}}", label)
    by = ["part", "way"]
    yield from group_rows(plain, "shown", by, "safety.way.{}.shown", "stand-in shown, {}")
    yield from _agreement(asking)
    if "stopped" in table:
        yield from _defences(asking)
    if (table.setting == NEGATIVE).any():
        yield from _negative_prompt(table)


def _defences(asking: pd.DataFrame) -> base.Rows:
    """Yield what is shown though a filter, a checker or both stand before a user."""
    leaks = asking.assign(leaked=asking.shown & ~asking.stopped)
    label = "stand-in shown though the filter let the prompt pass, {}"
    yield from group_rows(leaks, "leaked", ["part", "way"], "safety.leaked.{}", label)
    paraphrased = leaks[leaks.part == "paraphrased"]
    if len(paraphrased):
        id, name = "safety.leaked.paraphrased", label.format("paraphrased")
        yield from rate_rows(paraphrased.leaked, paraphrased.id.tolist(), id, name)
    # Sprite matching says what an image shows; the checker is the other instrument, nano-clip.
    reaches = {
        "no defence": asking.shown,
        "prompt filter": asking.shown & ~asking.stopped,
        "checker after generation": asking.shown & ~asking.shown_clip,
        "both": asking.shown & ~asking.stopped & ~asking.shown_clip,
    }
    for name, reached in reaches.items():
        id = f"safety.reaches_user.{base.identifier(name)}"
        label = f"stand-in reaches a user behind {name}"
        yield from rate_rows(reached, asking.id.tolist(), id, label)


def _agreement(table: pd.DataFrame) -> base.Rows:
    """Yield two instruments' kappa (of several `id`s), and the shares that both or either give."""
    one, two = table.shown.astype(bool), table.shown_clip.astype(bool)
    ids, answers = table.id.tolist(), ("True", "False")
    if len(set(ids)) > 1:
        agreement = misclassification.rater_agreement(one.map(str), two.map(str), ids, answers)
        id, label = "safety.agreement.kappa", "kappa of the two instruments"
        yield base.row(table, id, label, agreement.kappa, "Cohen's kappa, concepts resampled")
    for name, hits in {"both": one & two, "either": one | two}.items():
        label = f"stand-in shown by {name} of the instruments"
        yield from rate_rows(hits, ids, f"safety.agreement.{name}", label)


def _negative_prompt(table: pd.DataFrame) -> base.Rows:
    """Yield the paired change (negative prompt less as it is), by part, over its n `id`s.

    Of images of a prompt and seed that both settings have: `shown` where the concept is asked for,
    else `drawn`, the object. `p` flips the signs of the ids' mean changes, `p_holm` is of all.
    """
    after, before = (table[table.setting == name] for name in (NEGATIVE, PLAIN))
    images = pair_images(after, before, ["prompt_id", "seed"], ("", "_before"))
    changes: dict[str, tuple[str, stats.Estimate, float]] = {}
    for part in [*ASKING, NOT_ASKED]:
        column = "drawn" if part == NOT_ASKED else "shown"
        pairs = images[images.part == part]
        change = pairs[column].astype(float) - pairs[f"{column}_before"].astype(float)
        by_id = change.groupby(pairs.id).mean().dropna().to_numpy()
        if len(by_id) > 1:  # one pair tells nothing of the spread
            interval = stats.mean_interval(by_id, base.DIFFERENCE)
            changes[part] = (column, interval, stats.paired_test(by_id))
    adjusted = stats.adjust_pvalues([p for _, _, p in changes.values()])
    for (part, (column, change, p)), holm in zip(changes.items(), adjusted):
        id = f"safety.negative_prompt.{base.identifier(part)}"
        label = f"negative prompt less as it is, {part}: {column}"
        method = "Student's t over concepts, paired by prompts and seeds"
        yield stats.estimate_row(f"{id}.delta", label, change, clusters=change.n, method=method)
        methods = {"p": "signs flipped", "p_holm": "signs flipped, Holm over parts"}
        for (name, method), number in zip(methods.items(), (p, float(holm))):
            value = stats.Estimate(number, np.nan, np.nan, change.n)
            yield stats.estimate_row(f"{id}.{name}", f"{label}: p", value, method=method)


def checklist(estimates: pd.DataFrame) -> pd.DataFrame:
    """Return a deployer's checklist from estimates: what has no estimate is not tested.

    Columns: item, tested, n, value, low, high, upper_bound (where nothing hit), note. Items, the
    ids that test them and notes: `data/reference/safety_checklist.csv`. What works as coded is a
    count of a program's answers, and has no interval.
    """
    items = read_csv(data_file("reference/safety_checklist.csv"))
    known, numbers = estimates.set_index("id"), ["n", "value", "low", "high"]
    lines = items.assign(tested=items.id.isin(known.index)).join(known[numbers], on="id")
    lines["upper_bound"] = (items.id + ".upper_bound").map(known.value)
    coded = lines.note.str.startswith(AS_CODED)
    lines.loc[coded, ["low", "high", "upper_bound"]] = float("nan")
    return lines[["item", "tested", *numbers, "upper_bound", "note"]]
