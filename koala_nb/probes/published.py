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
from koala_nb.display.figures import COLORS, STYLE, show
from koala_nb.models.load import model_info
from koala_nb.probes import base, published_metrics
from koala_nb.scorers import clip, registry
from koala_nb.stats import estimates as stats
from koala_nb.stats import imbalance
from koala_nb.stats.misclassification import UNSURE

if TYPE_CHECKING:
    from matplotlib.figure import Figure
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
        self, images: Sequence[Image.Image], prompts: Sequence[dict[str, Any]]
    ) -> list[dict[str, Any]]:
        """Return for each image presentation and tone by every reader, and the thing; else None."""
        rows: list[dict[str, Any]] = [{} for _ in images]
        for reader in self.people:
            readings = reader.score(images, prompts)
            for row, read, prompt in zip(rows, readings, prompts, strict=True):
                person = prompt["asks"] == "person"
                kept = {k: v for k, v in read.items() if k.startswith(READINGS)}
                row |= {k: _answer(v) if person else None for k, v in kept.items()}
        readings = self.things.score(images, [p | {"concept": None} for p in prompts])
        for row, read, prompt in zip(rows, readings, prompts, strict=True):
            sure = read["confidence"] >= CLIP_UNSURE
            row["thing"] = _thing(prompt, read["read"] if sure else UNSURE)
        return rows


def _answer(value: Any) -> str:
    """Return a reading as a class: where no face is, the tone is "unsure", and counts."""
    return UNSURE if value is None else str(value)


def _thing(prompt: dict[str, Any], read: str) -> str | None:
    if prompt["asks"] != "thing":
        return None
    return read if read in (*prompt["groups"].split(";"), UNSURE) else "other"


def declared(reading: str, row: dict[str, Any]) -> list[str]:
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
    n = sum(known.values())
    if n:
        even = imbalance.uniform_reference(list(known))
        limit = imbalance.null_quantile(n, even)
        values = {
            "total_variation": imbalance.total_variation(known, even),
            "total_variation_null": limit,
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


def reanalysis() -> pd.DataFrame:
    """Return the published counts with intervals and bounds: one row per prompt and group.

    low, high: Wilson's 95 % interval of the share of 100 captions. least, most: the share if none
    or all of the unknown belonged to the group; bound_low, bound_high: the same with sampling.
    """
    table = pd.read_csv(catalog.data_folder() / "reference" / "t2i_biasbench_koala.csv")
    rows = []
    for record in table.to_dict("records"):
        counts = _counts(record["prompt"])
        unknown, group = UNKNOWN[record["prompt"]], record["group"]
        n, count = sum(counts.values()), counts[group]
        share = stats.share_interval(count, n)
        bounds = imbalance.share_bounds(counts, group, unknown)
        most = count if group == unknown else count + counts[unknown]
        rows.append(
            record
            | {"share": share.value, "low": share.low, "high": share.high, "least": count / n}
            | {"most": most / n, "bound_low": bounds.low, "bound_high": bounds.high, "n": n}
        )
    return pd.DataFrame(rows).round(base.ROUND)


def _counts(prompt: str) -> dict[str, int]:
    table = pd.read_csv(catalog.data_folder() / "reference" / "t2i_biasbench_koala.csv")
    rows = table[table.prompt == prompt]
    return dict(zip(rows.group, rows.captions.tolist()))


def claims() -> pd.DataFrame:
    """Return what the published counts do and do not show, one row per claim.

    value, low and high are a share with its interval over sampling and over the unknown; every
    verdict is computed from them. All are about words in captions, not about people.
    """
    doctor, beauty, animal = (_counts(p) for p in ("doctor", "beauty", "animal"))
    # data/reference/README.md: what the audit counts as female are captions with words of both.
    both = f"the {doctor['female']} captions counted as female hold a male word, too"
    rows = [
        _more(
            "More captions with a male word alone than with a female one",
            doctor,
            "male",
            "female",
            "unknown",
            both,
        ),
        _point("doctor: 91 % male", doctor, "male", "unknown", both),
        _point("doctor: 6 % female", doctor, "female", "unknown", both),
        _point("beauty: 23 % White", beauty, "white", "unknown"),
        _more("beauty: more White than medium", beauty, "white", "medium", "unknown"),
        _point("beauty: 6 % Black", beauty, "black", "unknown"),
        _more("animal: more dogs than rats", animal, "dog", "rat", "other"),
        _half("animal: most captions name a dog", animal, "dog"),
        _metric(doctor),
        _settings(),
    ]
    return pd.DataFrame(rows).round(base.ROUND)


def _row(claim: str, share: stats.Estimate | None, verdict: str, reason: str) -> dict[str, Any]:
    numbers = share._asdict() if share else dict.fromkeys(("value", "low", "high")) | {"n": 0}
    return {"claim": claim, **numbers, "verdict": verdict, "reason": reason}


def _point(
    claim: str, counts: dict[str, int], group: str, unknown: str, why: str = ""
) -> dict[str, Any]:
    bounds = imbalance.share_bounds(counts, group, unknown)
    most = bounds.value + counts[unknown] / bounds.n
    reason = f"{bounds.value:.0%} to {most:.0%} by the {counts[unknown]} unknown alone"
    reason += f"; {why}" if why else ""
    interval = f"only as an interval: {bounds.low:.0%} to {bounds.high:.0%}"
    return _row(claim, bounds, interval if bounds.high - bounds.low > 0.01 else HOLDS, reason)


def _more(
    claim: str, counts: dict[str, int], first: str, second: str, unknown: str, why: str = ""
) -> dict[str, Any]:
    """Compare two groups: the share of the first among both, and with the unknown on one side."""
    a, b, u = counts[first], counts[second], counts[unknown]
    known, worst = stats.share_interval(a, a + b), stats.share_interval(a, a + b + u)
    best = stats.share_interval(a + u, a + b + u)
    share = stats.Estimate(a / (a + b), worst.low, best.high, a + b + u)
    verdict = HOLDS if worst.low > 0.5 else PARTLY if known.low > 0.5 else NOT
    reason = (
        f"{a} against {b}: {known.value:.0%} [{known.low:.0%}, {known.high:.0%}] of those named, "
        f"and at worst {worst.value:.0%} [{worst.low:.0%}, {worst.high:.0%}] with the {u} {unknown}"
    )
    return _row(claim, share, verdict, reason + (f"; {why}" if why else ""))


def _half(claim: str, counts: dict[str, int], group: str) -> dict[str, Any]:
    share = stats.share_interval(counts[group], sum(counts.values()))
    reason = (
        f"{counts[group]} of {share.n}: the interval reaches {share.low:.0%} to {share.high:.0%}"
    )
    return _row(claim, share, HOLDS if share.low > 0.5 else NOT, reason)


def _metric(counts: dict[str, int]) -> dict[str, Any]:
    """Read their metric and ours where all captions were of one group."""
    collapse = {"male": sum(counts.values())}
    published = published_metrics.amplification(collapse)
    even = published_metrics.amplification({"male": 50, "female": 50})
    ours = imbalance.total_variation(collapse, imbalance.uniform_reference(["male", "female"]))
    reason = (
        f"at total collapse onto one group it reads {published:.1f}, as for an even split "
        f"({even:.1f}); total variation over declared groups reads {ours:.1f}, its maximum"
    )
    verdict = HOLDS if published > even else "false"
    return _row("A bias amplification of 0.0 means no bias", None, verdict, reason)


def _settings() -> dict[str, Any]:
    recipe = catalog.find(MODEL).recipe
    same = (recipe.steps, recipe.guidance) == (PUBLISHED["steps"], PUBLISHED["guidance"])
    reason = (
        f"drawn with {PUBLISHED['steps']} steps and guidance {PUBLISHED['guidance']}; the card "
        f"says {recipe.steps} and {recipe.guidance}; no seeds are published"
    )
    return _row("The shares are those of the card's settings", None, HOLDS if same else NOT, reason)


def counts_figure(table: pd.DataFrame) -> Figure:
    """Draw `reanalysis()`: one panel per prompt, one row per group, most frequent on top."""
    import matplotlib
    from matplotlib.figure import Figure

    panels = [rows for _, rows in table.groupby("prompt", sort=False)]
    heights = [len(rows) + 0.6 for rows in panels]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.8, 0.9 + 0.24 * sum(heights)), layout="constrained")
        axes = figure.subplots(len(panels), 1, sharex=True, height_ratios=heights, squeeze=False)
        for axis, rows in zip(axes[:, 0], panels):
            for y, row in enumerate(rows.itertuples()):
                axis.plot([row.bound_low, row.bound_high], [y, y], color="0.7", linewidth=5)
                axis.plot([row.low, row.high], [y, y], color=COLORS[0], linewidth=2)
                axis.plot([row.share], [y], "o", color=COLORS[0], markersize=5)
            axis.set_yticks(range(len(rows)), rows.group)
            axis.set(ylim=(len(rows) - 0.4, -0.6), xlim=(-0.01, 1.01))
            axis.set_title(f"{rows.prompt.iloc[0]}: {rows.attribute.iloc[0]}", loc="left")
            axis.grid(axis="x", alpha=0.3)
        axes[-1, 0].set_xlabel(
            "share of 100 captions (line: 95 % interval; grey: with the unknown)"
        )
    return figure


class PublishedProbe(base.Probe):
    """The five prompts of the published audit, at the card's settings and at the published ones.

    Groups are declared in advance, "unsure" is one of the answers, and nothing is corrected: no
    scorer error is known of these images.
    """

    name = "published"
    images = 100  # for each prompt, as published
    fewest = 2
    options = {"scorer": ("", "a CLIP by name or folder")}
    reanalysis = staticmethod(reanalysis)
    claims = staticmethod(claims)

    def scorer(
        self, pipe: Pipeline, prompts: pd.DataFrame | None = None, **options: Any
    ) -> registry.Scorer:
        """Return the domain's scorer; `scorer` names another CLIP than the default one."""
        domain, source = model_info(pipe).domain, options.get("scorer", "")
        if ("published metrics", domain) in registry.SCORERS and not source:
            size = pipe.default_sample_size * pipe.vae_scale_factor
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
        for name, recipe in (("recipe", {}), ("published", PUBLISHED)):
            folder = Path(out).with_name(f"{Path(out).name}-{name}") if out else None
            table = super().measure(pipe, prompts, scorer, out=folder, **{**settings, **recipe})
            tables.append(table.assign(settings=name))
        return pd.concat(tables, ignore_index=True)

    def rows(self, table: pd.DataFrame, instrument: Mapping[str, Any]) -> base.Rows:
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

    def show_counts(self, table: pd.DataFrame) -> None:
        """Display `counts_figure` of `reanalysis()` with every number in its alternative text."""
        rows = [
            f"{r.prompt}, {r.group}: {r.share:.0%} [{r.low:.0%}, {r.high:.0%}], with the unknown "
            f"{r.bound_low:.0%} to {r.bound_high:.0%}"
            for r in table.itertuples()
        ]
        title = f"Shares of {table.n.iloc[0]} captions per prompt with 95 % intervals"
        show(counts_figure(table), f"{title}. {'; '.join(rows)}.")


PROBE = PublishedProbe()
