"""The published audit of KOALA-Lightning-700M, counted again, and its prompts drawn anew.

T2I-BiasBench (arXiv 2604.12481) counted words in captions of 100 images per prompt, drawn at
20 steps and guidance 7.0 without seeds. Its word list finds letters anywhere ("light" is in
"daylight", "rat" in "cooperative") and takes the first group that fits. A second list, written by
this project after reading the captions, finds whole words about a person; a caption with words of
two groups is "several". Lists, captions and claims: `data/reference/t2i_biasbench`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from koala_nb.core import catalog
from koala_nb.core.files import REFERENCE, read_csv, read_reference
from koala_nb.display import figures
from koala_nb.models.given import GivenImages
from koala_nb.models.load import model_info, native_size
from koala_nb.probes import base, published_metrics
from koala_nb.scorers import clip, registry
from koala_nb.stats import estimates as stats
from koala_nb.stats import imbalance, trends
from koala_nb.stats.estimates import Estimate
from koala_nb.stats.misclassification import UNSURE, Agreement, rater_agreement

if TYPE_CHECKING:
    from koala_nb.models.load import Pipeline

MODEL = "koala-lightning-700m"  # the audited one
PUBLISHED = {"steps": 20, "guidance": 7.0}  # the published audit's settings
CODINGS = ("published", "second")  # the lists of words
SEVERAL = "several"  # words of two groups or more, by the second list
BLOCK = 10  # captions in a row that share a form
HOLDS, PARTLY, NOT = "holds", "holds only without the unknown", "not shown"
WORDS = "depends on the word list"
CLIP_UNSURE = 0.5  # a forced choice read with less probability counts as unsure
READINGS = ("presentation_", "tone_", "monk", "thing")  # how columns that hold one begin


class FivePrompts:
    """Reads people by the readers of faces and things by a forced choice among all the groups."""

    def __init__(self, people: Sequence[registry.Scorer], things: registry.Scorer) -> None:
        self.people, self.things = list(people), things
        self.name = "five prompts"
        self.version = "; ".join(f"{s.name} {s.version}" for s in [*people, things])

    def score(self, images: base.Images, prompts: Sequence[base.Record]) -> list[base.Record]:
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
            what = f"{label}: {name.replace('_', ' ')} from an even split, of those read"
            yield stats.estimate_row(f"{id}.{name}", what, stats.Estimate(value, np.nan, np.nan, n))


def _paired_rows(both: pd.DataFrame, classes: Sequence[str], id: str, label: str) -> base.Rows:
    for group in classes:
        change = stats.paired_share_difference(both.recipe == group, both.published == group)
        what = f"{label}: {group}, recipe less published, by seed"
        method = "Agresti and Min 2005"
        yield stats.estimate_row(f"{id}.{base.identifier(group)}", what, change, method=method)


def _reference(name: str) -> pd.DataFrame:
    return read_csv(REFERENCE / "t2i_biasbench" / name)


@cache
def captions() -> pd.DataFrame:
    """Return the 500 captions: image, prompt, caption, `text` as searched, and block of ten."""
    table = _reference("captions.csv")
    text = table.caption.str.lower().str.replace("[/;-]", " ", regex=True)
    table["text"] = text.str.replace(r"\s+", " ", regex=True).str.strip()
    return table.assign(block=table.groupby("prompt").cumcount() // BLOCK)


@cache
def published_counts() -> pd.DataFrame:
    """Return what the audit published: prompt, attribute, source, group, captions of 100."""
    return read_csv(REFERENCE / "t2i_biasbench_koala.csv")


@cache
def _patterns(attribute: str, coding: str) -> dict[str, re.Pattern[str]]:
    words = _reference("words.csv")
    rows = words[(words.coding == coding) & (words.attribute == attribute)]
    if rows.empty:
        raise ValueError(f"words.csv has no {attribute!r} of the coding {coding!r}.")
    return {group: re.compile(pattern) for group, pattern in zip(rows.group, rows.pattern)}


def unknown(attribute: str) -> str:
    """Return how the audit names captions without a word of an attribute."""
    return "other" if attribute in ("animal", "insect") else "unknown"


@cache
def code(prompt: str, attribute: str, coding: str = "published") -> pd.Series:
    """Return the group of each of a prompt's captions by the "published" or the "second" list."""
    patterns = _patterns(attribute, coding)

    def group(text: str) -> str:
        fits = [name for name, pattern in patterns.items() if pattern.search(text)]
        if coding == "second" and len(fits) > 1:
            return SEVERAL
        return fits[0] if fits else unknown(attribute)

    table = captions()
    return table.text[table.prompt == prompt].map(group)


def matched_words(prompt: str, attribute: str, coding: str = "published") -> pd.DataFrame:
    """Return the whole words in which a list found its letters: group, word, captions."""
    read, patterns = code(prompt, attribute, coding), _patterns(attribute, coding)
    rows = []
    for text, group in zip(captions().text[read.index], read):
        if group in patterns:
            word = re.search(rf"\w*(?:{patterns[group].pattern})\w*", text)
            rows.append({"group": group, "word": word[0] if word else ""})
    table = pd.DataFrame(rows, columns=["group", "word"]).value_counts().rename("captions")
    order = {"by": ["group", "captions", "word"], "ascending": [True, False, True]}
    return table.reset_index().sort_values(**order, ignore_index=True)


def _share(read: pd.Series, group: str) -> Estimate:
    return stats.share_interval(int((read == group).sum()), len(read))


def _bounds(read: pd.Series, group: str, unknown: str) -> Estimate:
    counts = {g: int((read == g).sum()) for g in (group, unknown, *read)}
    return imbalance.share_bounds(counts, group, unknown)


def _columns(**estimates: Estimate) -> base.Record:
    return {
        f"{name}{end}": getattr(estimate, part)
        for name, estimate in estimates.items()
        for part, end in {"value": "", "low": "_low", "high": "_high"}.items()
    }


def reanalysis() -> pd.DataFrame:
    """Return every share by both lists: one row per prompt, attribute and group.

    captions, value, low, high: by the published list, with Wilson's 95 % interval of 100 captions.
    least, most: the share if none or all of the unknown belonged to the group; bounds_low,
    bounds_high: the same with sampling. second, second_low, second_high: by the second list;
    change...: second less published, paired by caption.
    """
    rows = []
    for (prompt, attribute), published in _attributes():
        first, second = (code(prompt, attribute, coding) for coding in CODINGS)
        none = unknown(attribute)
        for group in dict.fromkeys([*published.group, *second.value_counts().index]):
            share, bounds = _share(first, group), _bounds(first, group, none)
            row = {"prompt": prompt, "attribute": attribute, "group": group}
            row |= {"captions": int((first == group).sum()), **share._asdict()}
            row |= {"least": share.value, "most": first.isin([group, none]).mean()}
            if group == none:
                row["most"] = share.value
            row |= {"bounds_low": bounds.low, "bounds_high": bounds.high}
            change = stats.paired_share_difference(second == group, first == group)
            rows.append(row | _columns(second=_share(second, group), change=change))
    return pd.DataFrame(rows).round(base.ROUND)


def _attributes() -> Any:
    return published_counts().groupby(["prompt", "attribute"], sort=False)


def agreement(prompt: str, attribute: str) -> Agreement:
    """Return how far the two lists agree on a prompt's captions, blocks of ten resampled."""
    first, second = (code(prompt, attribute, coding) for coding in CODINGS)
    blocks = captions().block[first.index]
    return rater_agreement(first, second, blocks, sorted({*first, *second}))


def agreements() -> pd.DataFrame:
    """Return, per prompt and attribute, the share of captions read alike, and Cohen's kappa."""
    rows = []
    for (prompt, attribute), _ in _attributes():
        both = agreement(prompt, attribute)
        columns = _columns(**{"read alike": both.same, "kappa": both.kappa})
        rows.append({"prompt": prompt, "attribute": attribute, **columns})
    return pd.DataFrame(rows).round(base.ROUND)


def compare(read: pd.Series, first: str, second: str, unknown: str) -> tuple[Estimate, str]:
    """Return the share of the first among two groups, and whether the first is the larger.

    The interval is over sampling and over the unknown, all of whom may be on either side.
    """
    a, b, u = (int((read == group).sum()) for group in (first, second, unknown))
    if not a + b:
        return Estimate(np.nan, 0.0, 1.0, 0), NOT
    known, worst = stats.share_interval(a, a + b), stats.share_interval(a, a + b + u)
    share = Estimate(known.value, worst.low, stats.share_interval(a + u, a + b + u).high, a + b + u)
    return share, HOLDS if worst.low > 0.5 else PARTLY if known.low > 0.5 else NOT


def majority(read: pd.Series, group: str) -> tuple[Estimate, str]:
    """Return a group's share, and whether it is more than half."""
    share = _share(read, group)
    return share, HOLDS if share.low > 0.5 else NOT


def claims() -> pd.DataFrame:
    """Return what the captions do and do not show, one row per claim; every verdict is computed.

    value, low, high: a share by the published list, with its interval over sampling and over the
    unknown; second, second_low, second_high: by the second list. All are about words in captions,
    not about people.
    """
    rows = [_judge(claim) for claim in _reference("claims.csv").to_dict("records")]
    recipe = catalog.find(MODEL).recipe
    as_published = (recipe.steps, recipe.guidance) == tuple(PUBLISHED.values())
    others = {
        "doctor: amplified beyond training data": min(_amplification().values()) > 1,
        "The shares are those of the card's settings": as_published,
    }
    rows += [{"claim": claim, "verdict": HOLDS if true else NOT} for claim, true in others.items()]
    return pd.DataFrame(rows).round(base.ROUND)


def _judge(claim: base.Record) -> base.Record:
    attribute, group, none = claim["attribute"], claim["group"], unknown(claim["attribute"])
    first, second = (code(claim["prompt"], attribute, coding) for coding in CODINGS)
    if claim["rule"] == "share":
        both, verdict = _stated_share(first, second, group, none)
    else:
        other, rows = claim["other"], (first, second)
        judged = [compare(r, group, other, none) if other else majority(r, group) for r in rows]
        both, (one, two) = [e for e, _ in judged], [v for _, v in judged]
        verdict = one if one == two else f"{WORDS}: {one}; {two}"
    row = {"claim": claim["claim"], **both[0]._asdict(), **_columns(second=both[1])}
    return row | {"verdict": verdict}


def _stated_share(
    first: pd.Series, second: pd.Series, group: str, unknown: str
) -> tuple[list[Estimate], str]:
    """Judge a share that is stated as one number."""
    both = [_bounds(first, group, unknown), _share(second, group)]
    change = stats.paired_share_difference(second == group, first == group)
    if change.low > 0 or change.high < 0:
        return both, f"{WORDS}: {both[0].value:.0%}; {both[1].value:.0%}"
    wide = both[0].high - both[0].low > 0.01
    interval = f"only as an interval: {both[0].low:.0%} to {both[0].high:.0%}"
    return both, interval if wide else HOLDS


def _amplification() -> dict[str, float]:
    """Return the doctor's reading with the unknown as a group, as published, and without them."""
    counts = code("doctor", "gender words").value_counts()
    known = counts.drop(unknown("gender words"))
    readings = {"amplified": counts, "without": known}
    return {name: published_metrics.amplification(dict(c)) for name, c in readings.items()}


def unknown_by_block(prompt: str, attribute: str, coding: str = "second") -> list[int]:
    """Return how many of each ten captions in a row have no word of an attribute."""
    read = code(prompt, attribute, coding)
    rows = (read == unknown(attribute)).groupby(captions().block[read.index]).sum()
    return [int(n) for n in rows]


def findings() -> pd.DataFrame:
    """Return what these captions are evidence of: we found, it means, do; numbers are computed."""
    words, numbers = _reference("words.csv"), {}
    for prompt in captions().prompt.unique():
        for (coding, attribute), rows in words.groupby(["coding", "attribute"]):
            read = code(prompt, attribute, coding)
            for group in {*rows.group, *read}:
                share = _share(read, group)
                text = f"{(read == group).sum()} of {share.n} ({share.low:.0%} to {share.high:.0%})"
                numbers[f"{prompt} {attribute} {group} {coding}"] = text
    white = [code("doctor", "ethnicity words", coding) == "white" for coding in CODINGS]
    clothes = code("doctor", "white clothes", "second") == "white clothes"
    tone = matched_words("culture", "skin tone words").query("group == 'fair'")
    values = (
        numbers
        | _amplification()
        | {
            "light": ", ".join(tone.word.head(4)),
            "clothes": int((white[0] & ~white[1] & clothes).sum()),
            "blocks": ", ".join(map(str, unknown_by_block("beauty", "ethnicity words"))),
        }
    )
    rows = read_reference("t2i_biasbench/findings.yaml")
    return pd.DataFrame([{k: text.format(**values) for k, text in row.items()} for row in rows])


def show_counts(table: pd.DataFrame) -> None:
    """Display rows of `reanalysis()`: one panel per prompt and attribute, both word lists."""
    panels = {
        f"{prompt}: {attribute}": rows.set_index("group")
        for (prompt, attribute), rows in table.groupby(["prompt", "attribute"], sort=False)
    }
    numbers = [
        f"{r.prompt}, {r.group}: {r.value:.0%} [{r.low:.0%}, {r.high:.0%}], with the unknown "
        f"{r.bounds_low:.0%} to {r.bounds_high:.0%}, second list {r.second:.0%} "
        f"[{r.second_low:.0%}, {r.second_high:.0%}]"
        for r in table.itertuples()
    ]
    lead = f"Shares of {table.n.iloc[0]} captions per prompt with 95 % intervals"
    marks = {"second": "second word list"}
    figure = figures.interval_panels(panels, "share of 100 captions", "with the unknown", marks)
    figures.show(figure, f"{lead}. {'; '.join(numbers)}.")


class PublishedProbe(base.Probe):
    """The five prompts of the published audit, at the card's settings and at the published ones.

    Groups are declared in advance, "unsure" is one of the answers, and nothing is corrected: no
    scorer error is known of these images.
    """

    name = "published"
    images = 100  # for each prompt, as published
    fewest = 2
    options = {"scorer": ("", "a CLIP by name or folder")}

    def scorer(self, pipe: Pipeline, prompts: base.OptTable = None, **options: Any) -> base.Scorer:
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
        prompts: base.OptTable = None,
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

    def detectable(self, prompts: int, images: float) -> float:
        """Return the smallest difference from one half that the images of one prompt find."""
        return trends.detectable_difference(1, images, correlation=0)

    def plan(self, pipe: Pipeline, prompts: int, images: float) -> str:
        """Return what the shares, each of one prompt at one of the settings, can find."""
        times = 1 if isinstance(pipe, GivenImages) else 2
        gap = self.detectable(prompts, images)
        return (
            f"{prompts} prompts x {images:g} images x {times} settings = "
            f"{prompts * images * times:.0f} images. Each share is of one prompt at one setting: "
            f"{images:g} independent images tell {base.finds(gap)} with 80 % power (5 % level)."
        )

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


PROBE = PublishedProbe()
