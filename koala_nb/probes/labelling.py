"""Labelling of a large run's images: the planned sample, a sheet or the widget, what comes next."""

from __future__ import annotations

import base64
import io
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from koala_nb.core import files
from koala_nb.core.catalog import SYSTEMS
from koala_nb.display.tables import format_interval
from koala_nb.generation import run_folder
from koala_nb.probes import labels
from koala_nb.probes.prompts import prompt_file, read_prompts


def planned_sample(
    folders: Sequence[str | Path], each: int, probe: str = "demographics", seed: int = 0
) -> labels.Sample:
    """Return `each` images of every occupation of a large run's folders, drawn at random.

    The ids are those of the probe's prompts, so that its commands find the images again. All
    images of an occupation that has fewer. ValueError for a run of other prompts.
    """
    rng, rows, places = np.random.default_rng(seed), [], []
    for folder in folders:
        run = run_folder.open_run(folder)
        prompts = _prompts_of(run.records.prompt, probe, folder)
        known = run.records.prompt.map(prompts.id), run.records.prompt.map(prompts.occupation)
        records = run.records.assign(id=known[0], occupation=known[1]).reset_index(drop=True)
        for _, images in records.groupby("occupation", sort=False):
            for index in rng.permutation(images.index)[:each]:
                record = records.loc[index]
                file = Path(folder).name + "/" + str(record.file)
                rows.append([float(record.guidance), record.id, int(record.seed), file])
                places.append((run.images, int(index)))
    order = rng.permutation(len(rows))
    table = pd.DataFrame([rows[i] for i in order], columns=[*labels.IMAGE, "file"])
    return labels.Sample(table, tuple(places[i] for i in order))


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


def write_sheet(
    sample: labels.Sample, path: Path, questions: labels.Questions, number: int
) -> Path:
    """Write a label file to fill in, without answers, and beside it a page of its images."""
    blank = dict.fromkeys(questions, "") | {"pass": number}
    before = files.read_table(path, dtype=str) if path.is_file() else pd.DataFrame()
    labels.write(path, pd.concat([before, sample.rows.assign(**blank)]).fillna(""), questions)
    page = path.with_suffix(".html")
    title, lines = f"Images of {path.name}", []
    for line in range(len(sample)):
        image = sample.image(line).convert("RGB")
        image.thumbnail((384, 384))
        image.save(buffer := io.BytesIO(), format="JPEG", quality=88)
        data = base64.b64encode(buffer.getvalue()).decode("ascii")
        at = len(before) + line + 2
        source = f"data:image/jpeg;base64,{data}"
        lines.append(f'<p>line {at}<br><img alt="image of line {at}" src="{source}"></p>')
    head = f'<!DOCTYPE html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
    files.write_atomic(page, f"{head}<h1>{title}</h1>{''.join(lines)}</html>".encode())
    return page


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
    if unknown := [name for name in names if name not in labels.EVERY]:
        raise ValueError(f"questions: {unknown[0]!r} is none of {', '.join(labels.EVERY)}.")
    questions = {name: labels.EVERY[name] for name in names}
    sample = planned_sample(folders, each, seed=seed)
    stored = labels.read(out, questions) if out.is_file() else None
    if widget:
        return _open_widget([str(folder) for folder in folders], each, out, names, number, seed)
    if stored is None or number not in set(stored["pass"]):
        page = write_sheet(sample, out, questions, number)
        return (
            f"{len(sample)} images to label stand in {out}, and in {page.name} by its lines: fill "
            f"in {', '.join(names)}, then `koala-nb probe bias --labels {out}` with the same model."
        )
    lines = []
    for name, rows in ((q, stored.dropna(subset=[q])) for q in names):
        counts = rows.groupby("pass").size().to_dict()
        answered = ", ".join(f"labeller {k}: {n} answers" for k, n in counts.items())
        lines.append(f"{name}: {answered or 'no answer yet'}")
        if len(counts) > 1:
            agreed = labels.agreement(stored, name, questions[name]).same
            ends = format_interval(agreed.value, agreed.low, agreed.high)
            lines.append(f"{name}: labellers 1 and 2 agree in {ends} of {agreed.n} images")
    return "\n".join([*lines, f"Next: `koala-nb probe bias --labels {out}` with the same model."])


def _open_widget(
    folders: list[str], each: int, out: Path, names: Sequence[str], number: int, seed: int
) -> str:
    import nbformat

    source = (
        "from koala_nb.probes import labelling, labels\n"
        "from koala_nb.widgets import Labeller\n\n"
        f"sample = labelling.planned_sample({folders!r}, {each}, seed={seed})\n"
        f"questions = {{name: labels.EVERY[name] for name in {list(names)!r}}}\n"
        f"Labeller(sample, {out.name!r}, questions, number={number})"
    )
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    path = out.with_name(f"{out.stem}-{number}.ipynb")
    nbformat.write(notebook, path)
    if subprocess.run([sys.executable, "-m", "jupyter", "lab", str(path)]).returncode:
        raise ValueError(f"JupyterLab did not start: install it, and open {path} there.")
    return f"The answers stand in {out}."
