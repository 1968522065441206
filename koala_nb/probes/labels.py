"""Labels that someone gave by looking: which images to label, the label file, how far two agree.

A label file is a CSV with one row per image and pass: `guidance`, `id` (of the prompt) and `seed`
name the image, `file` is its place in the run's folder, then one column per question and `pass`. An
empty answer is one not given yet; "unsure" is an answer like the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from koala_nb.core import files
from koala_nb.core.catalog import data_folder
from koala_nb.generation import run_folder
from koala_nb.stats.misclassification import UNSURE, Agreement, rater_agreement

if TYPE_CHECKING:
    from PIL import Image

PRESENTATIONS = ("woman", "man", UNSURE)
TONES = ("light", "medium light", "medium", "medium dark", "dark", UNSURE)  # as drawn
MONK = (*map(str, range(1, 11)), UNSURE)  # the Monk skin tone scale, of photographs
QUESTIONS = {"presentation": PRESENTATIONS, "tone": TONES}
EVERY = QUESTIONS | {"monk": MONK}  # that a file may answer
IMAGE = ["guidance", "id", "seed"]  # what names an image, among the runs of one label file
Questions = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Sample:
    """Images to label: `rows` says which (guidance, id, seed, file), `image` opens one."""

    rows: pd.DataFrame
    places: tuple[tuple[Sequence[Image.Image], int], ...]

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.places)

    def image(self, number: int) -> Image.Image:
        """Return the image of a row, opened from its folder where the run has one."""
        images, index = self.places[number]
        return images[index]


def sample(
    run: run_folder.Run | Sequence[run_folder.Run], n: int, seed: int = 0, ids: Sequence[str] = ()
) -> Sample:
    """Return n images of each run, drawn at random without replacement, in random order.

    `ids` are those of the prompts, in the order of the prompts; without them an id is the prompt's
    number. ValueError where a run has fewer images or prompts have no id.
    """
    rng = np.random.default_rng(seed)
    rows, places = [], []
    for one in [run] if isinstance(run, run_folder.Run) else run:
        if not 0 < n <= len(one.records):
            raise ValueError(f"sample: {n} of {len(one.records)} images cannot be drawn.")
        if ids and one.records.prompt_index.max() >= len(ids):
            raise ValueError(f"sample: {len(ids)} ids do not name all prompts of the run.")
        for index in rng.choice(len(one.records), n, replace=False):
            record = one.records.iloc[index]
            number = int(record.prompt_index)
            name = str(ids[number]) if ids else str(number)
            rows.append([float(record.guidance), name, int(record.seed), record.file])
            places.append((one.images, int(index)))
    order = rng.permutation(len(rows))
    table = pd.DataFrame([rows[i] for i in order], columns=[*IMAGE, "file"])
    if (twice := table.duplicated(IMAGE)).any():
        first = table[twice].iloc[0]
        raise ValueError(f"sample: two runs hold guidance, id, seed {tuple(first[IMAGE])}.")
    return Sample(table, tuple(places[i] for i in order))


def read(path: str | Path, questions: Questions = QUESTIONS) -> pd.DataFrame:
    """Read a label file; answers not given, and questions that it does not have, are None.

    ValueError, with the line, for a missing column, an unknown answer, a bad number, or an image
    that stands twice in one pass.
    """
    table = files.read_table(path, dtype=str)
    for column in [*IMAGE, "file", "pass"]:
        if column not in table:
            raise ValueError(
                f"{path} has no column {column!r}: it needs {', '.join(columns(questions))}."
            )
    if not set(questions) & set(table):
        raise ValueError(f"{path} has no answers: it needs a column {' or '.join(questions)}.")
    for question in questions:
        table[question] = table.get(question, "")
    for column, kind in (("guidance", float), ("seed", int), ("pass", int)):
        table[column] = _numbers(path, table[column], kind)
    for question, answers in questions.items():
        bad = ~table[question].isin([*answers, ""])
        if bad.any():
            raise ValueError(
                f"{path}, line {_line(bad)}: {question} {table[question][bad].iloc[0]!r} is no "
                f"answer: use one of {', '.join(answers)}, or nothing."
            )
    if (twice := table.duplicated([*IMAGE, "pass"])).any():
        raise ValueError(f"{path}, line {_line(twice)}: this image stands twice in its pass.")
    answered = table.astype(dict.fromkeys(questions, object))
    return answered.replace({question: {"": None} for question in questions})


def read_for(path: str | Path, prompts: pd.DataFrame) -> pd.DataFrame:
    """Read a file of labels of a probe's images, before anything is drawn.

    ValueError where it is none, holds no answer, or its ids are not those of the prompts.
    """
    table = read(path, EVERY)
    if unknown := sorted(set(table.id) - set(prompts.id)):
        raise ValueError(
            f"{path}: {unknown[0]!r} is no prompt of this probe: label images that it has drawn, "
            "by `koala-nb label FOLDER`."
        )
    if table.presentation.isna().all():
        raise ValueError(f"{path} holds no answer yet in its column 'presentation': fill it in.")
    return table


def load_labels(probe: str, model: str, questions: Questions = QUESTIONS) -> pd.DataFrame | None:
    """Return the labels that come with the project for a probe and model, or None."""
    path = data_folder() / "labels" / f"{probe}_{model}.csv"
    return read(path, questions) if path.is_file() else None


def columns(questions: Questions = QUESTIONS) -> list[str]:
    """Return the columns of a label file, in order."""
    return [*IMAGE, "file", *questions, "pass"]


def write(path: str | Path, table: pd.DataFrame, questions: Questions = QUESTIONS) -> Path:
    """Write a label file, whole or not at all."""
    return files.save_table(table[columns(questions)], path, sync=True)


def _numbers(path: str | Path, texts: pd.Series, kind: type) -> pd.Series:
    numbers = pd.to_numeric(texts, errors="coerce")
    bad = numbers.isna() | (numbers < 0) | ((numbers % 1 != 0) if kind is int else False)
    if bad.any():
        what = f"{'a whole' if kind is int else 'a'} number of at least 0"
        value = texts[bad].iloc[0]
        raise ValueError(f"{path}, line {_line(bad)}: {texts.name} {value!r} is not {what}.")
    return numbers.astype(kind)


def _line(bad: pd.Series) -> int:
    return int(bad.to_numpy().argmax()) + 2  # the header is line 1


def answers_of(
    labels: pd.DataFrame, table: pd.DataFrame, question: str, number: int = 1
) -> list[str | None]:
    """Return the answer to a question for each row of a table of images, None where there is none.

    `table` has the columns guidance, id and seed; `number` is the pass.
    """
    kinds = {"guidance": float, "id": str, "seed": int}
    rows = labels[labels["pass"] == number].astype(kinds)
    answers = dict(zip(zip(*(rows[c] for c in IMAGE)), rows[question]))
    images = table[IMAGE].astype(kinds)
    return [answers.get(key) for key in zip(*(images[c] for c in IMAGE))]


def agreement(
    labels: pd.DataFrame, question: str, answers: Sequence[str], passes: tuple[int, int] = (1, 2)
) -> Agreement:
    """Return how far two passes over the same images agree on a question, "unsure" counting.

    ValueError for fewer than two images, or images of a single prompt, in both passes.
    """
    first = labels[labels["pass"] == passes[0]]
    both = first.assign(
        one=first[question], two=answers_of(labels, first, question, passes[1])
    ).dropna(subset=["one", "two"])
    if both.id.nunique() < 2:
        raise ValueError(
            f"agreement: {len(both)} images of {both.id.nunique()} prompts were labelled in both "
            f"passes {passes}: label images of two or more prompts twice."
        )
    return rater_agreement(both.one, both.two, both.id, answers)
