"""The probe of training frequency: does a model fail on what its training showed it rarely?

`koala-nb probe frequency` runs it at full size; notebook 08 shows it. One caption a concept that
names nothing else, so the same images show success against frequency and what the model paints
where the prompt does not say.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from koala_nb.core.files import read_csv
from koala_nb.display import figures
from koala_nb.models.load import model_info, native_size
from koala_nb.probes import base
from koala_nb.scorers import registry
from koala_nb.scorers.clip import MEDIA, UnpromptedAttributes
from koala_nb.scorers.pixels import PALETTE
from koala_nb.stats import estimates as stats
from koala_nb.stats import imbalance, trends

if TYPE_CHECKING:
    from koala_nb.models.load import Pipeline

BINS = 5  # groups of equally many concepts
NEVER = "never seen"
UNNAMED = ("concept", "tied, reworded")  # parts of a prompt set that name no ground and no style
KINDS = {"background": "painted", "style": "style_read"}  # what may be tied -> where it is read
LABELS = {"concept": "concept drawn", NEVER: "concept drawn, never seen in training"}
CONCEPTS = "Wilson, clustered by concept"
PLANTED = {"painted": tuple(PALETTE)[:10], "style_read": ("noto", "fluent", "twemoji")}


class FrequencyProbe(base.Probe):
    """One concept a prompt, read by a forced choice among all concepts."""

    name = "frequency"
    images = 6
    options = {
        "frequencies": ("", "a CSV with concept,count"),
        "scorer": ("", "a CLIP by name or folder"),
    }
    headline = (
        "frequency.part.concept.hit",
        "frequency.most_frequent.hit",
        "frequency.rarest.hit",
        "frequency.rarest.difference",
        "frequency.part.never_seen.hit",
    )
    report_options = {"read_text": False}
    image_values = {"frequency.part.concept.hit": "hit"}
    card_scenes = 240  # rendered a bin, for the instrument card

    def prompts(self, domain: str, file: str = "", frequencies: str = "") -> pd.DataFrame:
        """Return a domain's prompts, by `frequencies` with the counts of one's own table."""
        table = super().prompts(domain, file)
        return with_frequencies(table, read_frequencies(frequencies)) if frequencies else table

    def report_prompts(self, domain: str) -> pd.DataFrame:
        """Return the prompts that name a concept and nothing else."""
        prompts = self.prompts(domain)
        return prompts[prompts.part.isin(LABELS)].reset_index(drop=True)

    def counted(self, table: pd.DataFrame) -> pd.DataFrame:
        """Return the images of concepts that training showed."""
        return table[table.part == "concept"]

    def prepare(self, pipe: Pipeline, **options: Any) -> tuple[pd.DataFrame, base.Scorer]:
        """Return prompts and scorer; `frequencies` and `scorer` as of the command."""
        prompts = self.prompts(model_info(pipe).domain, frequencies=options.get("frequencies", ""))
        return prompts, self.scorer(pipe, prompts, scorer=options.get("scorer", ""))

    def scorer(self, pipe: Pipeline, prompts: base.OptTable = None, **options: Any) -> base.Scorer:
        """Return the domain's scorer, a choice among the prompts' concepts.

        `scorer` names another CLIP; `read_text=False`: without the text that nobody asked for.
        """
        domain = model_info(pipe).domain
        prompts = self.prompts(domain) if prompts is None else prompts
        return registry.scorer(
            "concepts",
            domain,
            concepts=[c for c in prompts.concept if c],
            source=options.get("scorer", ""),
            read_text=options.get("read_text", True),
        )

    def calibrate(self, pipe: Pipeline, scorer: Any, prompts: pd.DataFrame) -> base.Record:
        """Return the scorer's errors on rendered scenes; {} where it cannot render its truth."""
        measure = registry.calibration(scorer)
        if measure is None:
            return {}
        side = native_size(pipe)
        rows = self.binned(prompts)
        card = measure(scorer, pipe.vae.float(), rows, self.card_scenes, side)
        read = pd.DataFrame(card.pop("read"))
        read["frequency"] = read.concept.map(rows.set_index("concept").frequency).astype(float)
        read = read[read.frequency > 0]
        curve = trends.logistic_trend(np.log10(read.frequency), read.hit, read.concept)
        card["bins"] = dict(zip(rows.concept, rows.bin))
        return {**card, "estimates": reader_estimates(card, curve)}

    def rows(self, table: pd.DataFrame, instrument: base.Record) -> base.Rows:
        """Yield success by part, bin and concept, the curve, ties, what is unnamed, copies."""
        for part, group in table.groupby("part", sort=False):
            label = LABELS.get(str(part), f"{part}: drawn right")
            id = f"frequency.part.{base.identifier(part)}.hit"
            yield from base.share_rows(group, "hit", id, label)
        ranked = self.binned(table[table.hit.notna()], instrument)
        if len(ranked):
            yield from _by_frequency(table, ranked, instrument)
        unnamed = table[table.part.isin(UNNAMED)]
        if "tie" in table:
            yield from _all_ties(table)
            unnamed = unnamed[unnamed.tie == "none"]
        axes = PLANTED if "tie" in table else {"painted": tuple(PALETTE), "style_read": MEDIA}
        for column, values in axes.items():
            if column in table and len(unnamed):
                yield from _unnamed(unnamed, column, values)
        if "copy" in instrument:
            yield from _copies(table, instrument)

    def binned(self, table: pd.DataFrame, instrument: base.Record | None = None) -> pd.DataFrame:
        """Return the rows whose frequency is known, with their `bin`, most frequent first.

        Bins hold equally many concepts of the table, or are those of an instrument card; what
        training never showed has one of its own.
        """
        known = table[table.part.isin(LABELS) & table.frequency.notna()].copy()
        known["frequency"] = known.frequency.astype(float)
        labels = (instrument or {}).get("bins")
        if not labels:
            trained = known[known.frequency > 0].groupby("concept").frequency.first()
            order = trained.sort_values(ascending=False, kind="stable").index
            groups = np.array_split(np.arange(len(order)), min(BINS, max(1, len(order))))
            labels = {order[i]: f"ranks {g[0] + 1} to {g[-1] + 1}" for g in groups for i in g}
        known["bin"] = known.concept.map(labels).fillna(NEVER)
        ranked = known.sort_values("frequency", ascending=False, kind="stable")
        return ranked.reset_index(drop=True)

    def scorer_or_pixels(
        self, pipe: Pipeline, prompts: pd.DataFrame, scorer: str = ""
    ) -> tuple[base.Scorer, str | None]:
        """Return the scorer, or what needs no weights and a sentence on what is missing."""
        try:
            return self.scorer(pipe, prompts, scorer=scorer), None
        except ValueError as error:
            return UnpromptedAttributes(), str(error)

    def show_trend(self, table: pd.DataFrame, estimates: pd.DataFrame, title: str) -> None:
        """Display success by bin with its intervals, the fitted curve, and what was never seen.

        The alternative text says the values; a sentence where there is no curve.
        """
        curve = trend(table) if table.hit.notna().any() else None
        if curve is None:
            print("No curve: frequencies are not known, or every image is alike right or wrong.")
            return
        bins = base.select(estimates, "frequency.bin.*.hit")
        bins["x"] = base.select(estimates, "frequency.bin.*.frequency").value
        points = "; ".join(
            f"{r.label} {r.value:.2f} ({r.low:.2f} to {r.high:.2f})" for r in bins.itertuples()
        )
        half = f"The fitted curve crosses one half at {10**curve.half.value:,.0f}."
        alt = f"Share drawn right by frequency, 95 % intervals: {points}. {half}"
        trained, never = bins[bins.x > 0], bins[bins.x == 0]
        low, high = trained.x.min() / 2, trained.x.max() * 2
        x = np.geomspace(low, high, 60)
        series = {"bins of concepts": trained, NEVER: never.assign(x=low / 3)}
        axes = ("training frequency, never seen at the left", "share drawn right")
        fitted = x.tolist(), curve.share(np.log10(x)).tolist()
        figures.show(figures.share_curves(series, *axes, title, fitted), alt)


PROBE = FrequencyProbe()


def read_frequencies(path: str | Path) -> pd.Series:
    """Read a frequency table: a CSV with `concept` and `count`; returns counts by concept.

    ValueError that names the line for a missing file or column, an empty or repeated concept, or a
    count that is no number of 0 or more.
    """
    table = read_csv(path, ("concept", "count"), dtype=str)
    names = table.concept.str.strip()
    counts = pd.to_numeric(table["count"], errors="coerce")
    bad = (names == "") | ~np.isfinite(counts) | (counts < 0)
    if bad.any():
        row = int(bad.to_numpy().argmax())
        raise ValueError(
            f"{path}, line {row + 2}: {table.concept[row]!r} with the count "
            f"{table['count'][row]!r}: give a concept and a number of 0 or more."
        )
    if twice := names[names.duplicated()].tolist():
        raise ValueError(f"{path}: the concept {twice[0]!r} stands twice.")
    if not (counts > 0).any():
        raise ValueError(f"{path}: no concept has a count above 0.")
    return pd.Series(counts.to_numpy(), index=names.to_numpy())


def with_frequencies(table: pd.DataFrame, counts: pd.Series) -> pd.DataFrame:
    """Return a prompt set with one's own counts: its concepts that have one, and one a new concept.

    Concepts of the set without a count are left out of it: their frequency is not known.
    """
    plain = table[table.part.isin(LABELS)]
    known = plain[plain.concept.isin(counts.index)]
    new = [c for c in counts.index if c not in set(known.concept)]
    rows = [
        dict.fromkeys(table.columns)
        | {"id": f"own-{i:04d}", "prompt": f"a picture of {c}", "part": "concept", "concept": c}
        for i, c in enumerate(new)
    ]
    both = pd.concat([known, pd.DataFrame(rows, columns=table.columns, dtype=object)])
    frequency = counts[both.concept].to_numpy()
    part = np.where(frequency > 0, "concept", NEVER)
    return both.assign(frequency=frequency.astype(object), part=part).reset_index(drop=True)


def trend(table: pd.DataFrame) -> trends.Trend | None:
    """Return the logistic curve of success against log10 frequency, clustered by concept.

    Over what training showed: 0 has no logarithm. None where there is no curve.
    """
    rows = PROBE.binned(table)
    rows = rows[rows.frequency > 0]
    if rows.empty:
        return None
    x, hits = np.log10(rows.frequency), rows.hit.astype(bool)
    return trends.logistic_trend(x, hits, rows.concept.astype(str))


def _by_frequency(table: pd.DataFrame, ranked: pd.DataFrame, instrument: base.Record) -> base.Rows:
    yield from base.trend_rows(trend(table), "frequency.trend", "drawn right, by log10 frequency")
    bins = {str(label): group for label, group in ranked.groupby("bin", sort=False)}
    for label, group in bins.items():
        id = f"frequency.bin.{base.identifier(label)}"
        yield from base.share_rows(group, "hit", f"{id}.hit", f"drawn right, {label}")
        middle = float(group.frequency.median())
        yield base.point_row(group, f"{id}.frequency", f"median frequency, {label}", middle)
        if instrument:
            errors = instrument["sensitivity"][label], instrument["specificity"]
            share = base.corrected(group.hit, group.id, errors)
            text = f"drawn right, {label}, if read as rendered scenes are; n is effective"
            yield base.row(group, f"{id}.supposed", text, share, base.SUPPOSED)
    trained = [group for group in bins.values() if group.frequency.gt(0).any()]
    if len(trained) > 1:
        names = {"most_frequent": "most frequent fifth", "rarest": "rarest fifth"}
        for (name, label), group in zip(names.items(), (trained[0], trained[-1])):
            id = f"frequency.{name}.hit"
            yield from base.share_rows(group, "hit", id, f"concept drawn, {label}")
        id, label = "frequency.rarest.difference", "rarest fifth less most frequent fifth"
        yield base.difference_row(trained[-1], trained[0], "hit", id, label)
    id = "frequency.concept.{}.hit"
    yield from base.share_rows(ranked, "hit", id, "{} drawn right", "concept")


def _all_ties(table: pd.DataFrame) -> base.Rows:
    ps = {}
    for kind, column in KINDS.items():
        yield from association_rows(table, kind, column)
        if (p := tie_test(table, kind, column)) == p:
            ps[kind] = p
    for kind, p in zip(ps, stats.adjust_pvalues(list(ps.values()))):
        label = f"tied to a {kind}, nothing named, against untied: p"
        tied = table[table.tie == kind]
        yield base.point_row(tied, f"frequency.tie.{kind}.p", label, float(p), "sign flips, Holm")


def association_rows(table: pd.DataFrame, kind: str, column: str) -> base.Rows:
    """Yield how strongly a planted tie holds: shares with intervals clustered by concept.

    `kind`: "background" or "style", `column` where it is read.
    """
    unnamed, named = table[table.part.isin(UNNAMED)], table[table.part == f"{kind} named"]
    tied, free = (unnamed[unnamed.tie == tie] for tie in (kind, "none"))
    against, other = (named[named.tie == tie] for tie in (kind, "none"))
    values = tied.groupby("concept", sort=False).tied_to.first().tolist()
    if not values:  # a small run drew no tied object, so nothing is "the same ones"
        return
    cases = {  # images, label, the value that would be a hit
        "unnamed": (tied, "tied, no {} named: the tied one", tied.tied_to),
        "untied_unnamed": (free, "untied, no {} named: the same ones", None),
        "named": (against, "tied, another {} named: the named one", against[kind]),
        "named_ignored": (against, "tied, another {} named: the tied one", against.tied_to),
        "untied_named": (other, "untied, a {} named: the named one", other[kind]),
    }
    for name, (images, label, expected) in cases.items():
        if images.empty:
            continue
        if expected is None:  # untied objects are read on the same values, each weighing alike
            even = [float(np.mean([value == read for value in values])) for read in images[column]]
            estimate = stats.clustered_mean(even, images.concept, (0, 1))
            method = "Student's t, clustered by concept"
        else:
            estimate = stats.clustered_share(images[column] == expected, images.concept)
            method = CONCEPTS
        by_concept = images.assign(id=images.concept)
        id = f"frequency.tie.{kind}.{name}"
        yield base.row(by_concept, id, label.format(kind), estimate, method)


def reader_estimates(card: base.Record, curve: trends.Trend | None) -> pd.DataFrame:
    """Return an instrument card's counts as shares, and the trend of the scorer's own success."""
    counts = {
        f"{k}, {part}": pair
        for k in ("sensitivity", "copy")
        for part, pair in card[k].items()
        if part != "distance"
    }
    counts |= {name: pair for name, pair in card.items() if isinstance(pair, (list, tuple))}
    rows = []
    for name, pair in counts.items():
        id = stats.estimate_id("frequency", "reader", name)
        share = stats.share_interval(*pair)
        rows.append(stats.estimate_row(id, f"{name}: read right", share, method="Wilson"))
    label = "rendered scenes read right, by log10 frequency"
    rows += base.trend_rows(curve, "frequency.reader.trend", label)
    return stats.estimates_frame(rows).round(base.ROUND)


def tie_test(table: pd.DataFrame, kind: str, column: str) -> float:
    """Return the p of "tied objects get their look no more often than untied ones get the same".

    Two-sided, by flipping the signs of the tied concepts' differences (`estimates.paired_test`);
    with six concepts it cannot fall below 2 / 2**6. NaN where nothing is tied.
    """
    unnamed = table[table.part.isin(UNNAMED)]
    tied, free = unnamed[unnamed.tie == kind], unnamed[unnamed.tie == "none"]
    if free.empty:
        return float("nan")
    differences = [
        float((g[column] == g.tied_to).mean() - (free[column] == g.tied_to.iloc[0]).mean())
        for _, g in tied.groupby("concept", sort=False)
    ]
    return stats.paired_test(differences) if differences else float("nan")


def _unnamed(images: pd.DataFrame, column: str, values: Sequence[str]) -> base.Rows:
    """Yield the share of each of fixed values, and their total variation from an even spread.

    `null`: the total variation that 95 % of samples of this effective size stay below when the
    truth is even. A distance below it is no finding.
    """
    counts, effects = {}, []
    for value in values:
        hits = images[column] == value
        counts[value] = int(hits.sum())
        if hits.any():
            effects.append(stats.design_effect(*stats.cluster_totals(hits, images.id)))
        id = f"frequency.unnamed.{column}.{base.identifier(value)}"
        yield base.row(images, id, value, stats.clustered_share(hits, images.id), base.SHARE)
    n = max(1, round(len(images) / float(np.mean(effects)))) if effects else len(images)
    even = imbalance.uniform_reference(values)
    counts["another"] = len(images) - sum(counts.values())
    distance = imbalance.total_variation(counts, even | {"another": 0.0})
    null = imbalance.null_quantile(n, even, draws=4000)
    labels = {
        "total_variation": "total variation from an even spread",
        "null": "total variation of an even truth, 95 % quantile",
    }
    for (name, label), number in zip(labels.items(), (distance, null)):
        point = stats.Estimate(number, np.nan, np.nan, n)
        id = f"frequency.unnamed.{column}.{name}"
        yield stats.estimate_row(id, f"{label}; n is effective", point)


def _copies(table: pd.DataFrame, instrument: base.Record) -> base.Rows:
    """Yield the share of images that are copies of a training drawing, and how alike seeds are.

    A copy is nearer to its best sprite than the card's distance. Pairs are those of one prompt's
    images, over untied concepts.
    """
    copy = instrument["copy"]
    images = table[table.part.isin(LABELS)]
    images = PROBE.binned(images.assign(copied=images.distance <= copy["distance"]), instrument)
    yield from base.share_rows(images, "copied", "frequency.copy.bin.{}", "copies, {}", "bin")
    trained = images[images.frequency > 0]
    yield from base.share_rows(trained, "copied", "frequency.copy.seen", "copies, all in training")
    errors = copy["sensitivity"], copy["specificity"]
    share = base.corrected(trained.copied, trained.id, errors)
    label = "copies, all in training, if read as rendered scenes are; n is effective"
    yield base.row(trained, "frequency.copy.supposed", label, share, base.SUPPOSED)
    free = trained[trained.tie == "none"]
    if free.groupby("id").size().gt(1).sum() > 1:
        axes = {kind: [column] for kind, column in KINDS.items()}
        for name, columns in (axes | {"both": list(KINDS.values())}).items():
            id, method = f"frequency.alike.{name}", "Student's t over prompts"
            label = f"pairs of seeds with the same {name}; n counts prompts"
            yield stats.estimate_row(id, label, agreement(free, columns), method=method)


def agreement(table: pd.DataFrame, columns: Sequence[str]) -> stats.Estimate:
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
    return stats.mean_interval(shares, (0, 1))
