"""The probe of text rendering: does the model write what it is asked to write?

`koala-nb probe text` runs it at full size; notebook 06 shows it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from koala_nb.display import figures
from koala_nb.display.figures import COLORS, MARKERS, STYLE
from koala_nb.models.load import model_info
from koala_nb.probes import base
from koala_nb.probes import text_reader as reading
from koala_nb.scorers import registry
from koala_nb.scorers.ocr import Reader
from koala_nb.stats import estimates, trends

if TYPE_CHECKING:
    from PIL import Image

    from koala_nb.models.load import Pipeline

LONG = 16  # characters: from here on a text is long
SCORES = {  # id -> label; shares are those of yes and no
    "exact": "text read exactly as asked",
    "exact_folded": "text read as asked",
    "cer": "character error rate",
    "ned": "similarity of the text (NED), with its case",
    "ned_folded": "similarity of the text (NED)",
    "word_f1": "F1 of words, with their case",
    "word_f1_folded": "F1 of words",
    "nothing_read": "nothing read",
}
SHARES = ("exact", "exact_folded", "nothing_read")


class TextScorer:
    """Reads each image and scores it against the text of its prompt."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self.name, self.version = reader.name, reader.version

    def score(
        self, images: Sequence[Image.Image], prompts: Sequence[base.Record]
    ) -> list[base.Record]:
        """Return per image: read, lines, confidence and `text_reader.text_scores`."""
        return [
            {"read": read.text, "lines": len(read.boxes)}
            | {"confidence": round(read.confidence, base.ROUND)}
            | reading.text_scores(prompt["text"], read.text)
            for read, prompt in zip(self.reader.read(images), prompts)
        ]


class TextProbe(base.Probe):
    """Texts of 1 to 40 characters on signs, read by OCR whose own errors are measured."""

    name = "text"
    text_columns = ("text", "read")
    options = {"reader": ("rapidocr", "rapidocr, or tesseract where it is installed")}
    headline = ("text.exact_folded", "text.long.exact_folded", "text.ned_folded")
    image_values = {"text.exact_folded": "exact_folded", "text.ned_folded": "ned_folded"}

    def prompts(self, domain: str, file: str = "") -> pd.DataFrame:
        """Return the prompt set of a domain, or one of your own: id, prompt, text and factors.

        `text` is what the image should say; `length` is counted from it. ValueError where it is
        missing or empty, or a prompt does not hold it.
        """
        path = file or base.prompt_file(self.name, domain)
        table = base.read_prompts(path)
        if "text" not in table:
            raise ValueError(f"{path} has no column 'text': it says what each image should say.")
        table["text"] = pd.read_csv(path, dtype=str, keep_default_na=False)["text"]
        for row in table.itertuples():
            if not row.text.strip() or row.text not in row.prompt:
                raise ValueError(
                    f"{path}: the prompt {row.id!r} does not hold its text {row.text!r}."
                )
        return table.assign(length=table.text.str.len())

    def scorer(
        self, pipe: Pipeline, prompts: pd.DataFrame | None = None, **options: Any
    ) -> TextScorer:
        """Return the scorer; `reader`: the name of a reader of `scorers.ocr`, default rapidocr."""
        name = options.get("reader") or "rapidocr"
        return TextScorer(registry.scorer("text", model_info(pipe).domain, name=name))

    def rows(self, table: pd.DataFrame, instrument: Mapping[str, Any]) -> base.Rows:
        """Yield scores, chance, scores by length, group and phrasing, the curve, seen words."""
        table = table.assign(nothing_read=table.read == "")
        for score, label in SCORES.items():
            yield from _score(table, score, f"text.{score}", label)
        long = table[table.length >= LONG]
        label = f"text of {LONG} or more characters read as asked"
        yield from base.share_rows(long, "exact_folded", "text.long.exact_folded", label)
        yield from _against_chance(table)
        errors = instrument.get("errors_by_length", {})
        for name, part in reading.by_class(table).items():
            yield from _length_class(part, name, errors.get(name))
        for factor, score in {"group": "exact_folded", "phrasing": "ned_folded"}.items():
            if factor in table:
                label = f"{SCORES[score]}, {factor} {{}}"
                yield from _score(table, score, f"text.{factor}.{{}}.{score}", label, factor)
        yield from base.trend_rows(trend(table), "text.trend", "read as asked, by length")
        yield from _seen_against_new(table)

    def details(self, table: pd.DataFrame) -> base.Record:
        """Return the most frequently confused characters."""
        return {"confusions": reading.top_confusions(table)}

    def calibrate(self, pipe: Pipeline, scorer: TextScorer, prompts: pd.DataFrame) -> base.Record:
        """Return the reader's errors on these texts, drawn by a font at the model's size."""
        texts, size = list(dict.fromkeys(prompts.text)), reading.image_size(pipe)
        render = reading.text_renderer(model_info(pipe).domain)
        boards = reading.read_boards(scorer.reader, texts, size, render, pipe)
        short = [text for text in texts if 3 <= len(text) <= 9]
        return {
            "size": size,
            "estimates": reading.reader_accuracy(boards),
            "legible": {
                kind: self.legible(boards[boards.kind == kind])
                for kind in (reading.FONT, reading.VAE)
            },
            "vae_confusions": reading.top_confusions(boards[boards.kind == reading.VAE]),
            "errors_by_length": reading.errors_by_length(boards),
            "calibration": reading.calibration(scorer.reader, short, size, render),
        }

    def legible(self, table: pd.DataFrame) -> str:
        """Return, in a sentence, up to how many characters at least half the images are right."""
        curve, hits = trend(table), table.exact_folded.astype(bool)
        low, high = int(table.length.min()), int(table.length.max())
        measured = f"the measured lengths of {low} to {high} characters"
        if curve is None and 0 < hits.sum() < len(table):
            right, wrong = table.length[hits], table.length[~hits]
            if right.max() <= wrong.min():
                return (
                    f"all right below {wrong.min()} characters, none above {right.max()}: "
                    "too sharp an edge for a curve with an interval."
                )
        if curve is None:
            share = f"{hits.sum()} of {len(table)}"
            return f"no curve can be fitted: {share} images are right over {measured}."
        if curve.slope.high >= 0:
            return (
                f"no length at which half are right can be named: the share does not fall reliably "
                f"over {measured} ({hits.mean():.3f} of all {len(table)} images are right)."
            )
        half = curve.half
        if half.value < low:
            return f"fewer than half are right at each of {measured}; the curve is below .5 there."
        if half.value > high:
            return f"half or more are right over all {measured}; the curve passes .5 beyond them."
        ends = f"{half.low:.1f} to {half.high:.1f}"
        return f"legible up to {half.value:.1f} characters at 50 % (95 % interval {ends})."

    def show_lengths(self, series: Mapping[str, pd.DataFrame], title: str) -> None:
        """Display `length_figure` with an alternative text that says its values."""
        values = "; ".join(
            f"{name}: " + ", ".join(f"{row.label} {row.value:.2f}" for row in points.itertuples())
            for name, points in series.items()
        )
        alt = f"Share read as asked, ignoring case, against length. {values}."
        figures.show(length_figure(series, title), alt)

    def show_confusions(self, pairs: Sequence[Mapping[str, Any]], title: str) -> None:
        """Display how often the characters that go wrong most were read as which others.

        `pairs` as of `text_reader.top_confusions`; a sentence where there are none.
        """
        if not pairs:
            print("No pairs: nothing was read, or everything as asked.")
            return
        frame = pd.DataFrame(pairs).replace({" ": "space"})
        counts = frame.pivot_table("count", "asked", "read", aggfunc="sum", fill_value=0)
        most = [counts.sum(axis=axis).sort_values(ascending=False).index[:10] for axis in (1, 0)]
        figures.show_heatmap(counts.loc[*most], f"{title}; asked down, read across", ".0f")

    def imageless_rows(
        self, pipe: Pipeline, prompts: pd.DataFrame, scorer: TextScorer
    ) -> base.Rows:
        """Yield how often the reader reads the long texts where a font has drawn them."""
        texts = prompts.text[prompts.length >= LONG].drop_duplicates().tolist()
        render = reading.text_renderer(model_info(pipe).domain)
        images = render(texts, reading.image_size(pipe))
        read = [result.text for result in scorer.reader.read(images)]
        hits = [float(reading.text_scores(t, r)["exact_folded"]) for t, r in zip(texts, read)]
        yield estimates.estimate_row(
            "text.reader.long.exact_folded",
            "reader's ceiling on long texts",
            estimates.clustered_share(hits, texts),
            clusters=len(texts),
            method="Wilson; n counts texts drawn by a font",
        )


PROBE = TextProbe()


def _score(table: pd.DataFrame, score: str, id: str, label: str, by: str = "") -> base.Rows:
    if score in SHARES:
        return base.share_rows(table, score, id, label, by)
    return base.mean_rows(table, score, id, label, by, cut=score != "cer")


def _against_chance(table: pd.DataFrame) -> base.Rows:
    """Yield the mean NED (ignoring case) with the asked text, with others, and the difference.

    Others: the texts of all other prompts in the same class of length. A difference above 0 says
    that what is drawn depends on the text. Nothing where no class holds two texts.
    """
    parts = []
    for group in reading.by_class(table).values():
        texts = group.text.drop_duplicates().str.casefold().tolist()
        if len(texts) < 2:
            continue
        chance = [
            np.mean([reading.edit_similarity(t, read) for t in texts if t != target])
            for target, read in zip(group.text.str.casefold(), group.read.str.casefold())
        ]
        parts.append(group.assign(chance=chance, difference=group.ned_folded - chance))
    if not parts:
        return
    measures = {
        "asked": ("ned_folded", "NED with the text asked for"),
        "others": ("chance", "NED with other texts of that length"),
        "difference": ("difference", "NED with the text asked for less with others"),
    }
    for id, (column, label) in measures.items():
        yield from base.mean_rows(pd.concat(parts), column, f"text.chance.{id}", label)


def _length_class(images: pd.DataFrame, name: str, errors: Any) -> base.Rows:
    """Yield the share read as asked in a class of length, and corrected for the reader's errors.

    The corrected share has no value where the reader fails on the font itself.
    """
    id = f"text.length.{base.identifier(name)}"
    label = f"text of {name} characters read as asked"
    yield from base.share_rows(images, "exact_folded", f"{id}.exact_folded", label)
    if errors is None:
        return
    share = reading.corrected(images.exact_folded.astype(float), images.id, errors)
    nothing = estimates.Estimate(np.nan, np.nan, np.nan, len(images))
    yield estimates.estimate_row(
        f"{id}.corrected",
        f"legible text of {name} characters, corrected",
        nothing if share is None else share._replace(n=len(images)),
        clusters=images.id.nunique(),
        method="Rogan and Gladen, clustered by prompt",
    )


def trend(table: pd.DataFrame) -> trends.Trend | None:
    """Return the logistic curve of exact matches against length; None where there is no curve."""
    return trends.logistic_trend(table.length, table.exact_folded.astype(float), table.id)


def _seen_against_new(table: pd.DataFrame) -> base.Rows:
    """Yield seen and never-seen words of lengths that both have, and their difference with its p.

    Differences by the square-and-add method from both groups' clustered intervals; p from a
    permutation of prompts, adjusted by Holm over the scores. Nothing where no words are marked.
    """
    if "seen" not in table or table.seen.isna().all():
        return
    groups = {name: table[table.seen == value] for name, value in (("seen", "yes"), ("new", "no"))}
    both = sorted(set.intersection(*(set(group.length) for group in groups.values())))
    if both:
        groups = {k: g[g.length.between(min(both), max(both))] for k, g in groups.items()}
    if min(group.id.nunique() for group in groups.values()) < 2:
        return
    scores = ("exact_folded", "ned_folded")
    ps = []
    for score in scores:
        sides = []
        for name, group in groups.items():
            words = "seen in training" if name == "seen" else "never seen"
            label = f"{SCORES[score]}, words {words}"
            (row,) = _score(group, score, f"text.seen.{score}.{name}", label)
            low, high = (row["value"] if np.isnan(row[k]) else row[k] for k in ("low", "high"))
            sides.append(estimates.Estimate(row["value"], low, high, row["n"]))
            yield row
        means = [g.groupby("id")[score].mean().to_numpy(float) for g in groups.values()]
        ps.append(estimates.permutation_pvalue(*means))
        yield estimates.estimate_row(
            f"text.seen.{score}.difference",
            f"{SCORES[score]}, seen less never-seen words",
            estimates.difference_interval(*sides),
            clusters=sum(map(len, means)),
            method="square-and-add (Newcombe 1998)",
        )
    for score, p in zip(scores, estimates.adjust_pvalues(ps)):
        id, label = f"text.seen.{score}.p", f"{SCORES[score]}, seen less never-seen words: p"
        both = pd.concat(groups.values())
        yield base.point_row(both, id, label, float(p), "permutation of prompts, Holm")


def length_figure(series: Mapping[str, pd.DataFrame], title: str = "") -> Figure:
    """Draw shares by class of length with their intervals.

    `series`: name -> estimates of one `*.length.<class>.*` pattern, as of `base.select`.
    ValueError where there is nothing to draw.
    """
    if not series or not all(map(len, series.values())):
        raise ValueError("length_figure: give at least one series with at least one length.")
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.4, 3.6), layout="constrained")
        axis = figure.subplots()
        for i, (name, points) in enumerate(series.items()):
            classes = points.id.str.extract(r"\.length\.(?:over_)?(\d+)(?:_(\d+))?").astype(float)
            x = classes.mean(axis=1).to_numpy() * (1 + 0.02 * (i - 1))  # so that bars stay apart
            value, low, high = points[["value", "low", "high"]].to_numpy(float).T
            bars = np.clip(np.stack([value - low, high - value]), 0, 1)
            axis.errorbar(
                x,
                value,
                bars,
                label=name,
                color=COLORS[i],
                marker=MARKERS[i],
                markersize=5,
                capsize=2,
                linewidth=1.4,
            )
        axis.axhline(0.5, color="0.5", linestyle=":", linewidth=1)
        axis.set_xscale("log")
        ticks = [1, 2, 3, 5, 8, 12, 20, 30, 40]
        axis.set_xticks(ticks, [str(n) for n in ticks])
        axis.minorticks_off()
        axis.set_ylim(-0.03, 1.03)
        axis.set_xlabel("characters asked for (logarithmic)")
        axis.set_ylabel("share read as asked")
        axis.grid(alpha=0.3)
        axis.set_title(title)
        figure.legend(loc="outside right upper", frameon=False)
    return figure
