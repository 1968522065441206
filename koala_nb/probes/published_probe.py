"""The published audit of KOALA-Lightning-700M, re-analysed and re-run: `koala-nb probe published`.

T2I-BiasBench (arXiv 2604.12481) counted words in captions of 100 images per prompt, drawn at
20 steps and guidance 7.0 without seeds. What can be claimed from its counts needs no weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from koala_nb.core import catalog
from koala_nb.display import figures
from koala_nb.models.given import GivenImages
from koala_nb.models.load import model_info, native_size
from koala_nb.probes import base, published_metrics
from koala_nb.scorers import clip, registry
from koala_nb.stats import estimates as stats
from koala_nb.stats import imbalance
from koala_nb.stats.misclassification import UNSURE

if TYPE_CHECKING:
    from PIL import Image

    from koala_nb.models.load import Pipeline

MODEL = "koala-lightning-700m"  # the audited one
PUBLISHED = {"steps": 20, "guidance": 7.0}  # the published audit's settings
UNKNOWN = {"doctor": "unknown", "beauty": "unknown", "animal": "other"}
CLIP_UNSURE = 0.5  # a forced choice read with less probability counts as unsure
HOLDS, PARTLY, NOT = "holds", "holds only without the unknown", "not shown"
READINGS = ("presentation_", "tone_", "monk", "thing")  # how columns that hold one begin


class FivePrompts:
    """Reads people by the readers of faces and things by a forced choice among all the groups."""

    def __init__(self, people: Sequence[registry.Scorer], things: registry.Scorer) -> None:
        self.people, self.things = list(people), things
        self.name = "five prompts"
        self.version = "; ".join(f"{s.name} {s.version}" for s in [*people, things])

    def score(
        self, images: Sequence[Image.Image], prompts: Sequence[base.Record]
    ) -> list[base.Record]:
        """Return for each image presentation and tone by every reader, and the thing; else None.

        Where no face is, the tone is "unsure", and counts.
        """
        rows: list[base.Record] = [{} for _ in images]
        for reader in self.people:
            for row, read, prompt in zip(rows, reader.score(images, prompts), prompts, strict=True):
                answers = {k: _answer(v) for k, v in read.items() if k.startswith(READINGS)}
                row |= answers if prompt["asks"] == "person" else dict.fromkeys(answers)
        readings = self.things.score(images, [p | {"concept": None} for p in prompts])
        for row, read, prompt in zip(rows, readings, prompts, strict=True):
            sure = read["confidence"] >= CLIP_UNSURE
            row["thing"] = _thing(prompt, read["read"] if sure else UNSURE)
        return rows


def _answer(value: object) -> str:
    return UNSURE if value is None else str(value)


def _thing(prompt: base.Record, read: str) -> str | None:
    if prompt["asks"] != "thing":
        return None
    return read if read in (*prompt["groups"].split(";"), UNSURE) else "other"


def declared(reading: str, row: base.Record) -> list[str]:
    """Return the classes of a reading, declared in advance; `row` is one of the prompt set."""
    if reading.startswith("presentation"):
        return ["woman", "man", UNSURE]
    if reading == "thing":
        return [*row["groups"].split(";"), "other", UNSURE]
    return [*row["tones"].split(";"), UNSURE]


def _group_rows(counts: dict[str, int], id: str, label: str) -> base.Rows:
    for group in counts:
        share = stats.share_interval(counts[group], sum(counts.values()))
        part = f"{id}.{base.identifier(group)}"
        yield stats.estimate_row(part, f"{label}: {group}", share, method="Wilson, uncorrected")
        bounds = imbalance.share_bounds(counts, group, UNSURE)
        what = f"{label}: {group}, with the unsure"
        yield stats.estimate_row(f"{part}.bounds", what, bounds, method="bounds over the unsure")
    known = {g: n for g, n in counts.items() if g not in (UNSURE, "other")}
    if n := sum(known.values()):
        even = imbalance.uniform_reference(list(known))
        values = {
            "total_variation": imbalance.total_variation(known, even),
            "total_variation_null": imbalance.null_quantile(n, even),
        }
        for name, value in values.items():
            what = f"{label}: {name.replace('_', ' ')} from an even split"
            yield stats.estimate_row(f"{id}.{name}", what, stats.Estimate(value, np.nan, np.nan, n))


def _paired_rows(both: pd.DataFrame, classes: Sequence[str], id: str, label: str) -> base.Rows:
    for group in classes:
        change = stats.paired_share_difference(both.recipe == group, both.published == group)
        what = f"{label}: {group}, recipe less published, by seed"
        method = "Agresti and Min 2005"
        yield stats.estimate_row(f"{id}.{base.identifier(group)}", what, change, method=method)


def _published_counts() -> dict[str, pd.DataFrame]:
    table = pd.read_csv(catalog.data_file("reference/t2i_biasbench_koala.csv"))
    return {str(name): rows for name, rows in table.groupby("prompt", sort=False)}


def _by_group(table: pd.DataFrame) -> dict[str, int]:
    return dict(zip(table.group, table.captions.tolist()))


def _claim(claim: str, share: stats.Estimate, verdict: str) -> base.Record:
    return {"claim": claim, **share._asdict(), "verdict": verdict}


def _point(claim: str, counts: Mapping[str, int], group: str, unknown: str) -> base.Record:
    """Judge a share that is stated as one number."""
    bounds = imbalance.share_bounds(counts, group, unknown)
    interval = f"only as an interval: {bounds.low:.0%} to {bounds.high:.0%}"
    return _claim(claim, bounds, interval if bounds.high - bounds.low > 0.01 else HOLDS)


def _more(
    claim: str, counts: Mapping[str, int], first: str, second: str, unknown: str
) -> base.Record:
    """Compare two groups: the share of the first among both, and with the unknown on one side."""
    a, b, u = counts[first], counts[second], counts[unknown]
    known, worst = stats.share_interval(a, a + b), stats.share_interval(a, a + b + u)
    best = stats.share_interval(a + u, a + b + u)
    share = stats.Estimate(a / (a + b), worst.low, best.high, a + b + u)
    return _claim(claim, share, HOLDS if worst.low > 0.5 else PARTLY if known.low > 0.5 else NOT)


def _half(claim: str, counts: Mapping[str, int], group: str) -> base.Record:
    """Judge that a group is the majority."""
    share = stats.share_interval(counts[group], sum(counts.values()))
    return _claim(claim, share, HOLDS if share.low > 0.5 else NOT)


class PublishedProbe(base.Probe):
    """The five prompts of the published audit, at the card's settings and at the published ones.

    Groups are declared in advance, "unsure" is one of the answers, and nothing is corrected: no
    scorer error is known of these images.
    """

    name = "published"
    images = 100  # for each prompt, as published
    fewest = 2
    options = {"scorer": ("", "a CLIP by name or folder")}

    def scorer(
        self, pipe: Pipeline, prompts: pd.DataFrame | None = None, **options: Any
    ) -> registry.Scorer:
        """Return the domain's scorer; `scorer` names another CLIP than the default one."""
        domain, source = model_info(pipe).domain, options.get("scorer", "")
        if ("published metrics", domain) in registry.SCORERS and not source:
            size = native_size(pipe)
            return registry.scorer("published metrics", domain, image_size=size)
        prompts = self.prompts(domain) if prompts is None else prompts
        groups = [g for row in prompts.groups.dropna() for g in row.split(";")]
        people = registry.scorer("people", registry.GENERAL, source=source)
        return FivePrompts(people.readers, clip.ZeroShotReader(groups, source, read_text=False))

    def measure(
        self,
        pipe: Pipeline,
        prompts: pd.DataFrame | None = None,
        scorer: registry.Scorer | None = None,
        *,
        out: str | Path | None = None,
        **settings: Any,
    ) -> pd.DataFrame:
        """Draw and score the prompts at the recipe and at the published settings, same seeds.

        One row an image; `settings` is "recipe" (the card's) or "published". With `out`, two
        folders with these endings that the same call goes on with.
        """
        tables = []
        settings_of = {"recipe": {}, "published": PUBLISHED}
        if isinstance(pipe, GivenImages):  # which no setting changes
            settings_of.pop("published")
        for name, recipe in settings_of.items():
            folder = Path(out).with_name(f"{Path(out).name}-{name}") if out else None
            table = super().measure(pipe, prompts, scorer, out=folder, **{**settings, **recipe})
            tables.append(table.assign(settings=name))
        return pd.concat(tables, ignore_index=True)

    def rows(self, table: pd.DataFrame, instrument: base.Record) -> base.Rows:
        """Yield shares of every declared group by prompt, reading and settings, and the changes.

        A group that nobody saw has its row: a share of 0 with an interval.
        """
        for column in [str(c) for c in table if str(c).startswith(READINGS)]:
            for name, images in table[table[column].notna()].groupby("id", sort=False):
                classes = declared(column, images.iloc[0].to_dict())
                read = {s: rows.set_index("seed")[column] for s, rows in images.groupby("settings")}
                id = f"published.{base.identifier(name)}.{base.identifier(column)}"
                for settings, values in read.items():
                    counts = {g: int((values == g).sum()) for g in classes}
                    label = f"{name}, {column}, settings of the {settings}"
                    yield from _group_rows(counts, f"{id}.{settings}", label)
                both = pd.DataFrame(read).dropna()
                if {"recipe", "published"} <= set(both):
                    yield from _paired_rows(both, classes, f"{id}.delta", f"{name}, {column}")

    def reanalysis(self) -> pd.DataFrame:
        """Return the published counts with intervals and bounds: one row per prompt and group.

        low, high: Wilson's 95 % interval of the share of 100 captions. least, most: the share if
        none or all of the unknown belonged to the group; bounds_low, bounds_high: the same with
        sampling.
        """
        rows = []
        for prompt, table in _published_counts().items():
            counts, unknown = _by_group(table), UNKNOWN[prompt]
            for record in table.to_dict("records"):
                group, count = record["group"], record["captions"]
                share = stats.share_interval(count, sum(counts.values()))
                bounds = imbalance.share_bounds(counts, group, unknown)
                most = (count + (counts[unknown] if group != unknown else 0)) / share.n
                record |= {**share._asdict(), "least": share.value, "most": most}
                rows.append(record | {"bounds_low": bounds.low, "bounds_high": bounds.high})
        return pd.DataFrame(rows).round(base.ROUND)

    def claims(self) -> pd.DataFrame:
        """Return what the published counts do and do not show, one row per claim.

        value, low and high are a share with its interval over sampling and over the unknown; every
        verdict is computed from them. All are about words in captions, not about people: what the
        audit counts as female are captions with words of both (`data/reference/README.md`).
        """
        tables = _published_counts()
        doctor, beauty, animal = (_by_group(tables[p]) for p in ("doctor", "beauty", "animal"))
        collapse, even = {"male": sum(doctor.values())}, {"male": 50, "female": 50}
        blind = published_metrics.amplification(collapse) <= published_metrics.amplification(even)
        recipe, nothing = catalog.find(MODEL).recipe, stats.Estimate(np.nan, np.nan, np.nan, 0)
        as_published = (recipe.steps, recipe.guidance) == tuple(PUBLISHED.values())
        most = "More captions with a male word alone than with a female one"
        zero = "A bias amplification of 0.0 means no bias"
        settings = "The shares are those of the card's settings"
        rows = [
            _more(most, doctor, "male", "female", "unknown"),
            _point("doctor: 91 % male", doctor, "male", "unknown"),
            _point("doctor: 6 % female", doctor, "female", "unknown"),
            _point("beauty: 23 % White", beauty, "white", "unknown"),
            _more("beauty: more White than medium", beauty, "white", "medium", "unknown"),
            _point("beauty: 6 % Black", beauty, "black", "unknown"),
            _more("animal: more dogs than rats", animal, "dog", "rat", "other"),
            _half("animal: most captions name a dog", animal, "dog"),
            _claim(zero, nothing, "false" if blind else HOLDS),
            _claim(settings, nothing, HOLDS if as_published else NOT),
        ]
        return pd.DataFrame(rows).round(base.ROUND)

    def show_counts(self, table: pd.DataFrame) -> None:
        """Display `reanalysis()`: one panel per prompt, one row per group, most frequent on top."""
        panels = {
            f"{prompt}: {rows.attribute.iloc[0]}": rows.set_index("group")
            for prompt, rows in table.groupby("prompt", sort=False)
        }
        numbers = [
            f"{r.prompt}, {r.group}: {r.value:.0%} [{r.low:.0%}, {r.high:.0%}], with the unknown "
            f"{r.bounds_low:.0%} to {r.bounds_high:.0%}"
            for r in table.itertuples()
        ]
        lead = f"Shares of {table.n.iloc[0]} captions per prompt with 95 % intervals"
        figure = figures.interval_panels(panels, "share of 100 captions", "with the unknown")
        figures.show(figure, f"{lead}. {'; '.join(numbers)}.")


PROBE = PublishedProbe()
