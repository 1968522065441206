"""The probe of text rendering: does the model write what it is asked to write?

`koala-nb probe text` runs it at full size; notebook 06 shows it. Estimates: `TextProbe.rows`;
scores of a reading and the reader's own errors: `text_reader`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from koala_nb.core.files import read_csv
from koala_nb.display import figures
from koala_nb.models.load import model_info
from koala_nb.probes import base
from koala_nb.probes import text_reader as reading
from koala_nb.scorers import registry
from koala_nb.scorers.ocr import Reader
from koala_nb.stats import estimates, trends

if TYPE_CHECKING:
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

    def score(self, images: base.Images, prompts: Sequence[base.Record]) -> list[base.Record]:
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
        table["text"] = read_csv(path, ("text",), dtype=str)["text"]
        for r in table.itertuples():
            if not r.text.strip() or r.text not in r.prompt:
                raise ValueError(f"{path}: the prompt {r.id!r} does not hold its text {r.text!r}.")
        return table.assign(length=table.text.str.len())

    def scorer(self, pipe: Pipeline, prompts: base.OptTable = None, **options: Any) -> TextScorer:
        """Return the scorer; `reader`: the name of a reader of `scorers.ocr`, default rapidocr."""
        name = options.get("reader") or "rapidocr"
        return TextScorer(registry.scorer("text", model_info(pipe).domain, name=name))

    def rows(self, table: pd.DataFrame, instrument: base.Record) -> base.Rows:
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
                if (boards.kind == kind).any()  # images as given come without a VAE
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
        if curve is None:
            right, wrong = table.length[hits], table.length[~hits]
            if len(right) and len(wrong) and right.max() <= wrong.min():
                return (
                    f"all right below {wrong.min()} characters, none above {right.max()}: "
                    "too sharp an edge for a curve with an interval."
                )
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
        """Display shares by class of length, with an alternative text that says the values.

        `series`: name -> estimates of one `*.length.<class>.*` pattern, as of `base.select`.
        ValueError where there is nothing to draw.
        """
        placed = {}
        for name, points in series.items():
            ends = points.id.str.extract(r"\.length\.(?:over_)?(\d+)(?:_(\d+))?").astype(float)
            placed[name] = points.assign(x=ends.mean(axis=1))
        values = "; ".join(
            f"{name}: " + ", ".join(f"{row.label} {row.value:.2f}" for row in points.itertuples())
            for name, points in series.items()
        )
        alt = f"Share read as asked, ignoring case, against length. {values}."
        axes = ("characters asked for", "share read as asked")
        figures.show(figures.share_curves(placed, *axes, title), alt)

    def show_confusions(self, pairs: Sequence[base.Record], title: str) -> None:
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
        texts = prompts.text[prompts.length >= LONG].drop_duplicates()
        render = reading.text_renderer(model_info(pipe).domain)
        images = render(texts.tolist(), reading.image_size(pipe))
        read = scorer.score(images, [{"text": text} for text in texts])
        ceiling = estimates.clustered_share([row["exact_folded"] for row in read], texts)
        id, label = "text.reader.long.exact_folded", "reader's ceiling on long texts"
        method = "Wilson; n counts texts drawn by a font"
        yield base.row(texts.to_frame("id"), id, label, ceiling, method)


PROBE = TextProbe()


def _score(table: pd.DataFrame, score: str, id: str, label: str, by: str = "") -> base.Rows:
    if score in SHARES:
        return base.share_rows(table, score, id, label, by)
    return base.mean_rows(table, score, id, label, by, (0, np.inf if score == "cer" else 1))


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
        "asked": ("ned_folded", "NED with the text asked for", (0, 1)),
        "others": ("chance", "NED with other texts of that length", (0, 1)),
        "difference": ("difference", "NED with the text asked for less with others", (-1, 1)),
    }
    images = pd.concat(parts)
    for id, (column, label, limits) in measures.items():
        yield from base.mean_rows(images, column, f"text.chance.{id}", label, limits=limits)


def _length_class(images: pd.DataFrame, name: str, errors: base.Errors | None) -> base.Rows:
    """Yield the share read as asked in a class of length, and that supposing errors as on a font.

    The supposed share has no value where the reader fails on the font itself.
    """
    id = f"text.length.{base.identifier(name)}"
    label = f"text of {name} characters read as asked"
    yield from base.share_rows(images, "exact_folded", f"{id}.exact_folded", label)
    if errors is not None:
        share = reading.corrected(images.exact_folded, images.id, errors)
        share = (share or estimates.Estimate(np.nan, np.nan, np.nan, 0))._replace(n=len(images))
        label = f"legible text of {name} characters, if read as a font is"
        yield base.row(images, f"{id}.supposed", label, share, base.SUPPOSED)


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
    shared = sorted(set.intersection(*(set(group.length) for group in groups.values())))
    if shared:
        groups = {k: g[g.length.between(shared[0], shared[-1])] for k, g in groups.items()}
    if min(group.id.nunique() for group in groups.values()) < 2:
        return
    both, ps, scores = pd.concat(groups.values()), [], ("exact_folded", "ned_folded")
    words = {"seen": "seen in training", "new": "never seen"}
    for score in scores:
        sides = []
        for name, group in groups.items():
            label = f"{SCORES[score]}, words {words[name]}"
            (row,) = _score(group, score, f"text.seen.{score}.{name}", label)
            low, high = (row["value"] if np.isnan(row[k]) else row[k] for k in ("low", "high"))
            sides.append(estimates.Estimate(row["value"], low, high, row["n"]))
            yield row
        means = [g.groupby("id")[score].mean().to_numpy(float) for g in groups.values()]
        ps.append(estimates.permutation_pvalue(*means))
        id, label = f"text.seen.{score}.difference", f"{SCORES[score]}, seen less never-seen words"
        gap = estimates.difference_interval(*sides)
        yield base.row(both, id, label, gap, "square-and-add (Newcombe 1998)")
    for score, p in zip(scores, estimates.adjust_pvalues(ps)):
        id, label = f"text.seen.{score}.p", f"{SCORES[score]}, seen less never-seen words: p"
        yield base.point_row(both, id, label, float(p), "permutation of prompts, Holm")
