"""Labels that someone gave by looking: which images, blind sheets, the label file, agreement.

A label file is a CSV with one row per image and pass: `guidance`, `id` (of the prompt) and `seed`
name the image, `file` is its place in the run's folder, then one column per question and `pass`. An
empty answer is one not given yet; "unsure" is an answer like the others.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from koala_nb.core import files
from koala_nb.core.catalog import SYSTEMS, data_folder
from koala_nb.display.page import encoded
from koala_nb.display.tables import format_interval
from koala_nb.generation import run_folder
from koala_nb.probes.prompts import prompt_file, read_prompts
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
    rng, drawn = np.random.default_rng(seed), []
    for one in [run] if isinstance(run, run_folder.Run) else run:
        if not 0 < n <= len(one.records):
            raise ValueError(f"sample: {n} of {len(one.records)} images cannot be drawn.")
        if ids and one.records.prompt_index.max() >= len(ids):
            raise ValueError(f"sample: {len(ids)} ids do not name all prompts of the run.")
        records = one.records.reset_index(drop=True)
        names = records.prompt_index.map(lambda k: str(ids[k]) if ids else str(k))
        chosen = rng.choice(len(records), n, replace=False)
        drawn.append((one.images, records.assign(id=names).loc[chosen]))
    return _shuffled(drawn, rng)


def _shuffled(
    drawn: list[tuple[Sequence[Image.Image], pd.DataFrame]], rng: np.random.Generator
) -> Sample:
    """Return records of images, whose index is their place, as one sample in random order."""
    table = pd.concat([records[[*IMAGE, "file"]] for _, records in drawn], ignore_index=True)
    places = [(images, int(place)) for images, records in drawn for place in records.index]
    order = rng.permutation(len(table))
    table = table.astype({"guidance": float, "seed": int}).iloc[order].reset_index(drop=True)
    if (twice := table.duplicated(IMAGE)).any():
        first = table[twice].iloc[0]
        raise ValueError(f"sample: two runs hold guidance, id, seed {tuple(first[IMAGE])}.")
    return Sample(table, tuple(places[i] for i in order))


def planned_sample(
    folders: Sequence[str | Path], each: int, probe: str = "demographics", seed: int = 0
) -> Sample:
    """Return `each` images of every occupation of a large run's folders, drawn at random.

    The ids are those of the probe's prompts, so that its commands find the images again. All
    images of an occupation that has fewer. ValueError for a run of other prompts.
    """
    rng, drawn = np.random.default_rng(seed), []
    for folder in folders:
        run = run_folder.open_run(folder)
        prompts = _prompts_of(run.records.prompt, probe, folder).loc[run.records.prompt]
        records = run.records.reset_index(drop=True).assign(id=prompts.id.to_numpy())
        records["file"] = f"{Path(folder).name}/" + records.file
        mixed = records.iloc[rng.permutation(len(records))]
        chosen = mixed.groupby(prompts.occupation.to_numpy()[mixed.index], sort=False).head(each)
        drawn.append((run.images, chosen))
    return _shuffled(drawn, rng)


def _prompts_of(drawn: pd.Series, probe: str, folder: str | Path) -> pd.DataFrame:
    """Return id and occupation by prompt, of the domain whose set holds all that were drawn."""
    for domain in dict.fromkeys(system.domain for system in SYSTEMS):
        known = read_prompts(prompt_file(probe, domain)).drop_duplicates("prompt")
        if set(drawn) <= set(known.prompt):
            return known.set_index("prompt")
    raise ValueError(
        f"{folder} holds prompts that are not the probe's: give a folder that "
        "`koala-nb probe bias` has drawn, such as runs/probe-demographics-..."
    )


def read(path: str | Path, questions: Questions = QUESTIONS) -> pd.DataFrame:
    """Read a label file; answers not given, and questions that it does not have, are None.

    ValueError, with the line, for a missing column, an unknown answer, a bad number, or an image
    that stands twice in one pass.
    """
    table = files.read_table(path, [*IMAGE, "file", "pass"], dtype=str)
    if not set(questions) & set(table):
        raise ValueError(f"{path} has no answers: it needs a column {' or '.join(questions)}.")
    for question in questions:
        table[question] = table.get(question, "")
    for column, kind in (("guidance", float), ("seed", int), ("pass", int)):
        table[column] = _numbers(path, table[column], kind)
    check_answers(path, table, questions)
    if (twice := table.duplicated([*IMAGE, "pass"])).any():
        raise ValueError(f"{path}, line {_line(twice)}: this image stands twice in its pass.")
    answered = table.astype(dict.fromkeys(questions, object))
    return answered.replace({question: {"": None} for question in questions})


def check_answers(path: str | Path, table: pd.DataFrame, questions: Questions) -> None:
    """Raise ValueError, with the line, for a text that is no answer to its question."""
    for question, answers in questions.items():
        bad = ~table[question].isin([*answers, ""])
        if bad.any():
            raise ValueError(
                f"{path}, line {_line(bad)}: {question} {table[question][bad].iloc[0]!r} is no "
                f"answer: use one of {', '.join(answers)}, or nothing."
            )


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
        raise ValueError(
            f"{path} holds no answer yet in its column 'presentation': fill it in, or "
            "its sheet, which `koala-nb label` takes in."
        )
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


def write_sheet(sample: Sample, path: Path, questions: Questions, number: int) -> Path:
    """Add a pass without answers to a label file, and write the sheet that its labeller gets.

    The sheet, beside the file, is a CSV of picture and questions with a page of the pictures:
    nothing in them tells prompt, model, settings, or what another labeller or a reader said.
    """
    if (sheet := _sheet(path, number)).exists():
        raise ValueError(f"{sheet} is there already: move it away, for it may hold answers.")
    blank = dict.fromkeys(questions, "")
    before = read(path, EVERY) if path.is_file() else pd.DataFrame()
    rows = pd.concat([before, sample.rows.assign(**blank, **{"pass": number})])
    write(path, rows.fillna(""), _asked(before, questions))
    tokens = _tokens(sample.rows)
    files.save_table(tokens.to_frame("picture").assign(**blank), sheet)
    lines = [f"<p>{name}: {', '.join(answers)}</p>" for name, answers in questions.items()]
    for index, token in enumerate(tokens):
        name, data = f"picture {token}", encoded(sample.image(index), 384, "JPEG", quality=88)
        source = f"data:image/jpeg;base64,{data}"
        lines.append(f'<p>{name}<br><img alt="{name}" src="{source}"></p>')
    head = '<!DOCTYPE html><html lang="en"><meta charset="utf-8"><title>Pictures to label</title>'
    page = f"{head}<h1>Pictures to label</h1>{''.join(lines)}</html>"
    files.write_atomic(sheet.with_suffix(".html"), page.encode())
    return sheet


def _sheet(path: Path, number: int) -> Path:
    return path.with_name(f"{path.stem}-{number}.csv")


def _tokens(rows: pd.DataFrame) -> pd.Series:
    """Return what names images on a sheet, which tells nothing of them."""
    names = [f"{row.guidance:g} {row.id} {row.seed}" for row in rows.itertuples()]
    return pd.Series([sha256(name.encode()).hexdigest()[:8] for name in names], rows.index)


def _asked(table: pd.DataFrame, questions: Questions) -> Questions:
    """Return the questions, and those that a table has answers to."""
    answered = set(table.columns[table.notna().any()])
    return {name: EVERY[name] for name in EVERY if name in {*questions, *answered}}


def take_answers(path: Path, questions: Questions) -> pd.DataFrame:
    """Put the answers of the sheets beside a label file into it; returns its labels.

    ValueError, with the line, for an unknown answer or picture, or one that stands twice.
    """
    stored = read(path, EVERY)
    questions = _asked(stored, questions)
    for number, rows in stored.groupby("pass"):
        if not (sheet := _sheet(path, number)).is_file():
            continue
        table, tokens = files.read_table(sheet, dtype=str), _tokens(rows)
        pictures = table.get("picture", pd.Series("", table.index))
        bad = ~pictures.isin(tokens) | pictures.duplicated()
        if bad.any():
            raise ValueError(f"{sheet}, line {_line(bad)}: no picture of {path}, or one twice.")
        present = {name: questions[name] for name in questions if name in table}
        check_answers(sheet, table, present)
        for name in present:
            given = tokens.map(table[table[name] != ""].set_index("picture")[name])
            stored.loc[rows.index, name] = given.combine_first(rows[name])
    write(path, stored, questions)
    return stored


def label_run(
    folders: Sequence[Path],
    each: int,
    out: Path,
    names: Sequence[str],
    number: int,
    seed: int = 0,
    widget: bool = False,
) -> str:
    """Start or go on labelling a planned sample; returns what is there and what comes next.

    widget: open JupyterLab; else a sheet and a page of its images are written. ValueError for an
    unknown question, or a run of other prompts.
    """
    if unknown := [name for name in names if name not in EVERY]:
        raise ValueError(f"questions: {unknown[0]!r} is none of {', '.join(EVERY)}.")
    questions = {name: EVERY[name] for name in names}
    sample = planned_sample(folders, each, seed=seed)
    if widget:
        return _open_widget([str(folder) for folder in folders], each, out, names, number, seed)
    stored = take_answers(out, questions) if out.is_file() else None
    again = f"`koala-nb probe bias --labels {out}` with the same model."
    if stored is None or number not in set(stored["pass"]):
        sheet = write_sheet(sample, out, questions, number)
        return (
            f"{len(sample)} pictures to label: hand on {sheet} and {sheet.stem}.html, which tell "
            f"no prompt, and keep {out}. When {', '.join(names)} is filled in there, call this "
            f"again, then {again}"
        )
    lines = []
    for name, rows in ((q, stored.dropna(subset=[q])) for q in names):
        counts = rows.groupby("pass").size().to_dict()
        answered = ", ".join(f"labeller {k}: {n} answers" for k, n in counts.items())
        lines.append(f"{name}: {answered or 'no answer yet'}")
        if len(counts) > 1:
            agreed = agreement(stored, name, questions[name]).same
            ends = format_interval(agreed.value, agreed.low, agreed.high)
            lines.append(f"{name}: labellers 1 and 2 agree in {ends} of {agreed.n} images")
    return "\n".join([*lines, f"Next: {again}"])


def _open_widget(
    folders: list[str], each: int, out: Path, names: Sequence[str], number: int, seed: int
) -> str:
    import nbformat

    source = (
        "from koala_nb.probes import labels\n"
        "from koala_nb.widgets import Labeller\n\n"
        f"sample = labels.planned_sample({folders!r}, {each}, seed={seed})\n"
        f"questions = {{name: labels.EVERY[name] for name in {list(names)!r}}}\n"
        f"Labeller(sample, {out.name!r}, questions, number={number})"
    )
    hidden = {"jupyter": {"source_hidden": True}}  # folders tell the model
    cell = nbformat.v4.new_code_cell(source, metadata=hidden)
    notebook = nbformat.v4.new_notebook(cells=[cell])
    path = out.with_name(f"{out.stem}-{number}.ipynb")
    nbformat.write(notebook, path)
    if subprocess.run([sys.executable, "-m", "jupyter", "lab", str(path)]).returncode:
        raise ValueError(f"JupyterLab did not start: install it, and open {path} there.")
    return f"The answers stand in {out}."
