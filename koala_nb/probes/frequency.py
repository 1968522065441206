"""`koala-nb probe frequency`: does a model fail on what its training showed it rarely?

One caption a concept that names nothing else, so the same images show success against frequency
and what the model paints unasked.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from koala_nb.display import figures
from koala_nb.models.load import model_info
from koala_nb.probes import base, defaults
from koala_nb.stats import estimates as stats
from koala_nb.stats import misclassification, trends

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME = "frequency"
IMAGES = 6  # a prompt
BINS = 5  # groups of equally many concepts
NEVER = "never seen"
LOOKS = {
    "background": ["painted"],
    "style": ["style_read"],
    "both": ["painted", "style_read"],
}
CARD = 240  # rendered scenes a bin, for the instrument card


def prompts(domain: str, frequencies: str = "") -> pd.DataFrame:
    """Return the prompt set of a domain, with the frequencies of a table of one's own if given."""
    found = base.read_prompts(base.prompt_file(NAME, domain))
    return with_frequencies(found, read_frequencies(frequencies)) if frequencies else found


def read_frequencies(path: str | Path) -> pd.Series:
    """Read a frequency table: a CSV with `concept` and `count`; returns counts by concept.

    ValueError that names the line for a missing file or column, an empty or repeated concept, or a
    count that is no number of 0 or more.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"There is no frequency table {path}: give a CSV with concept,count.")
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a CSV with the header concept,count: {error}.") from None
    for column in ("concept", "count"):
        if column not in table:
            raise ValueError(f"{path} has no column {column!r}: its first line is concept,count.")
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
    plain = table[table.part.isin(("concept", NEVER))]
    known = plain[plain.concept.isin(counts.index)]
    new = [c for c in counts.index if c not in set(known.concept)]
    own = [
        dict.fromkeys(table.columns)
        | {"id": f"own-{i:04d}", "prompt": f"a picture of {c}", "part": "concept", "concept": c}
        for i, c in enumerate(new)
    ]
    both = pd.concat([known, pd.DataFrame(own, columns=table.columns, dtype=object)])
    frequency = counts[both.concept].to_numpy()
    part = np.where(frequency > 0, "concept", NEVER)
    return both.assign(frequency=frequency.astype(object), part=part).reset_index(drop=True)


def binned(table: pd.DataFrame, card: dict[str, Any] | None = None) -> pd.DataFrame:
    """Return the rows whose frequency is known, with their frequency `bin`, most frequent first.

    Bins hold equally many concepts of the table, or are those of a card; what training never
    showed has one of its own.
    """
    asked = table[table.part.isin(("concept", NEVER)) & table.frequency.notna()].copy()
    asked["frequency"] = asked.frequency.astype(float)
    label = (card or {}).get("bins") or _labels(asked)
    asked["bin"] = asked.concept.map(label).fillna(NEVER)
    ranked = asked.sort_values("frequency", ascending=False, kind="stable")
    return ranked.reset_index(drop=True)


def _labels(asked: pd.DataFrame) -> dict[str, str]:
    seen = asked[asked.frequency > 0].groupby("concept").frequency.first()
    order = seen.sort_values(ascending=False, kind="stable").index
    groups = np.array_split(np.arange(len(order)), min(BINS, max(1, len(order))))
    return {order[i]: f"ranks {g[0] + 1} to {g[-1] + 1}" for g in groups for i in g}


def trend(table: pd.DataFrame) -> trends.Trend | None:
    """Return the logistic curve of success against log10 frequency, clustered by concept.

    Over what training showed: 0 has no logarithm. None where there is no curve.
    """
    rows = binned(table)
    rows = rows[rows.frequency > 0]
    if rows.empty:
        return None
    return trends.logistic_trend(
        np.log10(rows.frequency), rows.hit.astype(bool), rows.concept.astype(str)
    )


def by_bin(table: pd.DataFrame, card: dict[str, Any] | None = None) -> pd.DataFrame:
    """Return success by frequency bin; with a card also corrected for the scorer's error there."""
    rows = binned(table, card)
    found = base.shares(rows, "hit", "bin")
    middle = rows.groupby("bin", sort=False).frequency.median()
    found.insert(1, "frequency", found.bin.map(middle))
    if not card:
        return found
    for i, row in found.iterrows():
        own = rows[rows.bin == row.bin]
        fixed = corrected(own.hit, own.id, card["sensitivity"][row.bin], card["specificity"])
        for column in ("value", "low", "high"):
            found.loc[i, f"corrected {column}"] = round(getattr(fixed, column), base.ROUND)
    return found


def corrected(
    hits: Sequence[Any], clusters: Sequence[Any], sensitivity: Sequence[int],
    specificity: Sequence[int],
) -> stats.Estimate:  # fmt: skip
    """Return a share corrected for a scorer's error (Rogan and Gladen), its images clustered.

    `sensitivity` and `specificity` as (right, of); n is the effective number of images.
    """
    sums, sizes = stats.cluster_totals([bool(hit) for hit in hits], clusters)
    n = sizes.sum() / stats.design_effect(sums, sizes)
    (a, b), (c, d) = sensitivity, specificity
    return misclassification.corrected_share(sums.sum() / sizes.sum(), float(n), (a, b), (c, d))


def by_concept(table: pd.DataFrame) -> pd.DataFrame:
    """Return success of every concept, the rarest last; one prompt's images are independent."""
    found = base.shares(binned(table), "hit", ["concept", "frequency", "bin"])
    return found.drop(columns="prompts")


def estimates(table: pd.DataFrame, card: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return all that the probe says of a table: JSON's `estimates`."""
    plain = table[table.part.isin(defaults.NOT_NAMED)]
    said: dict[str, Any] = {"images": len(table), "prompts": table.id.nunique()}
    said["success by part"] = base.shares(table[table.hit.notna()], "hit", "part")
    if len(binned(table[table.hit.notna()])):
        said["trend over log10 frequency"] = trend(table)
        said["success by bin"] = by_bin(table, card)
        said["success by concept"] = by_concept(table)
    if "tie" in table:
        said["ties to a background"] = defaults.ties(table, "background", "painted")
        said["ties to a style"] = defaults.ties(table, "style", "style_read")
        columns = {"background": "painted", "style": "style_read"}
        found = {kind: defaults.tie_test(table, kind, c) for kind, c in columns.items()}
        told = {kind: p for kind, p in found.items() if p == p}  # two claims, so Holm's
        said["ties, p by Holm"] = dict(
            zip(told, map(float, stats.adjust_pvalues(list(told.values()))))
        )
        plain = plain[plain.tie == "none"]
    for column, values in defaults.looks(table).items():
        if column in table and len(plain):
            said[f"unasked: {column}"] = defaults.distribution(plain, column, values)
    if card and "copy" in card:
        said["instrument"] = {k: v for k, v in card.items() if k not in ("read", "bins")}
        if "read" in card:  # a card from JSON holds no single scenes
            said["instrument's own trend"] = instrument_trend(card)
        said |= copies(table, card)
    return said


def instrument_trend(card: dict[str, Any]) -> trends.Trend | None:
    """Return the trend of the scorer's own success on rendered scenes; None where it never errs."""
    read = pd.DataFrame(card["read"])
    read = read[read.frequency > 0]
    return trends.logistic_trend(np.log10(read.frequency), read.hit, read.concept)


def copies(table: pd.DataFrame, card: dict[str, Any]) -> dict[str, Any]:
    """Return the share of images that are copies of a training drawing, and how alike seeds are.

    A copy is nearer to its best sprite than the card's distance. Pairs are those of one prompt's
    images, over untied concepts.
    """
    asked = table[table.part.isin(("concept", NEVER))]
    rows = binned(asked.assign(copied=asked.distance <= card["copy"]["distance"]), card)
    seen = rows[rows.frequency > 0]
    right = card["copy"]["sensitivity"], card["copy"]["specificity"]
    said: dict[str, Any] = {
        "copies by bin": base.shares(rows, "copied", "bin"),
        "copies, all that training showed": base.shares(seen, "copied"),
        "copies, corrected": corrected(seen.copied, seen.id, *right),
    }
    free = seen[seen.tie == "none"]
    if free.groupby("id").size().gt(1).sum() > 1:
        said["pairs of seeds alike"] = {
            name: defaults.agreement(free, columns) for name, columns in LOOKS.items()
        }
    return said


def trend_figure(bins: pd.DataFrame, curve: trends.Trend, title: str) -> Figure:
    """Draw success by bin with its intervals, the fitted curve, and what was never seen apart."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(figures.STYLE):
        figure = Figure(figsize=(6.4, 3.2), layout="constrained")
        axis = figure.subplots()
        seen = bins[bins.frequency > 0]
        low, high = seen.frequency.min() / 2, seen.frequency.max() * 2
        x = np.geomspace(low, high, 60)
        axis.plot(x, curve.share(np.log10(x)), color=figures.COLORS[1], label="logistic curve")
        never = bins[bins.frequency == 0].assign(frequency=low / 3)
        for rows, marker, label in ((seen, "o", "bins of concepts"), (never, "s", NEVER)):
            apart = np.abs(rows[["low", "high"]].T.to_numpy() - rows.value.to_numpy())
            axis.errorbar(
                rows.frequency, rows.value, apart, fmt=marker, label=label, color=figures.COLORS[0]
            )
        axis.set(xscale="log", ylim=(-0.03, 1.03), title=title, ylabel="share drawn right",
                 xlabel="training frequency (logarithmic; never seen at the left)")  # fmt: skip
        axis.grid(alpha=0.3)
        figure.legend(loc="outside right upper", frameon=False)
    return figure


def make_scorer(pipe: Any, asked: pd.DataFrame, scorer: str = "", ocr: bool = True) -> base.Scorer:
    """Return the domain's default scorer for a prompt set; `scorer` names another CLIP.

    Emoji world: sprite matching. Photographic: zero-shot CLIP and, with `ocr`, a text reader.
    """
    if model_info(pipe).domain == "emoji-world" and not scorer:
        from koala_nb.nano.memorisation import SpriteReader

        return SpriteReader([c for c in asked.concept if c])
    from koala_nb.scorers.clip import ZeroShotReader

    return ZeroShotReader([c for c in asked.concept if c], scorer, read_text=ocr)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the probe at its full size, with `--frequencies` a table and `--scorer` a CLIP."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--frequencies", default="", help="CSV with concept,count")
    parser.add_argument("--scorer", default="", help="a CLIP by name or folder")
    own, rest = parser.parse_known_args(argv)
    kept: dict[str, Any] = {}

    def asked(domain: str) -> pd.DataFrame:
        kept["prompts"] = prompts(domain, own.frequencies)
        return kept["prompts"]

    def scorer(pipe: Any) -> base.Scorer:
        kept["pipe"], kept["scorer"] = pipe, make_scorer(pipe, kept["prompts"], own.scorer)
        return kept["scorer"]

    def found(table: pd.DataFrame) -> dict[str, Any]:
        return estimates(table, make_card(kept["pipe"], kept["scorer"], kept["prompts"]))

    told = [f"--{name}={value}" for name, value in vars(own).items() if value]
    return base.legacy_main(base.LegacyProbe(NAME, asked, scorer, found, IMAGES), rest, told)


def make_card(
    pipe: Any, scorer: base.Scorer, asked: pd.DataFrame, per_bin: int = 0
) -> dict[str, Any] | None:
    """Return the instrument card of a scorer that can render its truth, or None of another.

    `per_bin` rendered scenes a frequency bin; 0: as many as the large run's.
    """
    if not hasattr(scorer, "matcher"):
        return None
    from koala_nb.nano.memorisation import card

    side = pipe.default_sample_size * pipe.vae_scale_factor
    rows = binned(asked)
    made = card(scorer, pipe.vae.float(), rows, per_bin or CARD, side)  # type: ignore[arg-type]
    frequency = rows.set_index("concept").frequency
    made["read"]["frequency"] = [float(frequency[c]) for c in made["read"]["concept"]]
    return made | {"bins": dict(zip(rows.concept, rows.bin))}
