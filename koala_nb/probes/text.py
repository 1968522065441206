"""The probe of text rendering: does the model write what it is asked to write?

`koala-nb probe text` runs it at full size; notebook 06 shows it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from koala_nb.core.catalog import data_folder
from koala_nb.models.hub import read_json
from koala_nb.models.load import model_info
from koala_nb.probes import base, text_estimates, text_reader, text_scores
from koala_nb.scorers import ocr

if TYPE_CHECKING:
    from PIL import Image

NAME = "text"


def prompts(domain: str, file: str = "") -> pd.DataFrame:
    """Return the probe's prompt set of a domain, or one of your own: id, prompt, text and factors.

    `text` is what the image should say; `length` is counted from it. ValueError where it is missing
    or empty, or a prompt does not hold it.
    """
    path = file or base.prompt_file(NAME, domain)
    table = base.read_prompts(path)
    if "text" not in table:
        raise ValueError(f"{path} has no column 'text': it says what each image should say.")
    table["text"] = pd.read_csv(path, dtype=str, keep_default_na=False)["text"]
    for row in table.itertuples():
        if not row.text.strip() or row.text not in row.prompt:
            raise ValueError(f"{path}: the prompt {row.id!r} does not hold its text {row.text!r}.")
    return table.assign(length=table.text.str.len())


class Scorer:
    """Reads each image and scores it against the text of its prompt."""

    def __init__(self, reader: ocr.Reader | None = None) -> None:
        self.reader = reader or ocr.reader()
        self.name, self.version = self.reader.name, self.reader.version

    def score(
        self, images: Sequence[Image.Image], prompts: Sequence[dict[str, Any]]
    ) -> list[dict[str, Any]]:
        """Return per image: read, lines, confidence and `text_scores.scores`."""
        return [
            {"read": found.text, "lines": len(found.boxes)}
            | {"confidence": round(found.confidence, base.ROUND)}
            | text_scores.scores(asked["text"], found.text)
            for found, asked in zip(self.reader.read(images), prompts)
        ]


def saved(model: str) -> pd.DataFrame | None:
    """Return the table of the large run, or None; nothing read is an empty text."""
    table = base.saved(NAME, model, ("text", "read"))  # "0042" is no number
    return None if table is None else table.assign(read=table.read.fillna(""))


def saved_estimates(model: str) -> dict[str, Any]:
    """Return the estimates of the large run, the instrument card among them; {} for none."""
    path = data_folder() / "results" / f"probe-{NAME}-{model}.json"
    return read_json(path)["estimates"] if path.is_file() else {}


class FullRun:
    """The probe at full size: it keeps the pipeline, since the card is measured at its size."""

    pipe: Any = None
    scorer: Scorer

    def make_scorer(self, pipe: Any) -> Scorer:
        """Return the default scorer; the pipeline is kept for `estimates`."""
        self.pipe, self.scorer = pipe, Scorer()
        return self.scorer

    def estimates(self, table: pd.DataFrame) -> dict[str, Any]:
        """Return the estimates of a table and, beside them, the reader's instrument card."""
        texts, size = list(dict.fromkeys(table.text)), size_of(self.pipe)
        draw, reader = text_reader.drawer(model_info(self.pipe).domain), self.scorer.reader
        boards = text_reader.read_boards(reader, texts, size, draw, self.pipe)
        short = [text for text in texts if 3 <= len(text) <= 9]
        return self._of_model(table, boards) | {
            "instrument": {
                "size": size,
                "card": text_reader.card(boards),
                "card_by_length": [
                    {"kind": kind, **row}
                    for kind, own in boards.groupby("kind", sort=False)
                    for row in base.records(text_estimates.by_length(own))
                ],
                "legible": {
                    kind: text_estimates.legible(boards[boards.kind == kind])
                    for kind in (text_reader.FONT, text_reader.VAE)
                },
                "vae_confusions": text_estimates.top_confusions(
                    boards[boards.kind == text_reader.VAE]
                ),
                "errors_by_length": text_estimates.errors_by_length(boards),
                "calibration": text_reader.calibration(reader, short, size, draw),
            }
        }

    def _of_model(self, table: pd.DataFrame, boards: pd.DataFrame) -> dict[str, Any]:
        return {
            "summary": text_estimates.summary(table),
            "against_chance": text_estimates.against_chance(table),
            "by_length": text_estimates.by_length(table),
            "by_group": base.shares(table, "exact_folded", "group"),
            "by_phrasing": base.means(table, "ned_folded", "phrasing"),
            "trend": text_estimates.trend(table),
            "legible": text_estimates.legible(table),
            "corrected": text_estimates.corrected(table, text_estimates.errors_by_length(boards)),
            "seen_against_new": text_estimates.seen_against_new(table),
            "confusions": text_estimates.top_confusions(table),
        }


def size_of(pipe: Any) -> int:
    """Return the side in pixels of the images that a pipeline draws at its recipe."""
    own = pipe.default_sample_size * pipe.vae_scale_factor
    return int(model_info(pipe).recipe.height or own)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the probe at full size: `koala-nb probe text`."""
    run = FullRun()
    return base.main(base.Probe(NAME, prompts, run.make_scorer, run.estimates), argv)
