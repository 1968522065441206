"""Sections of the audit report (notebook 11): one call each, returning something to display."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from koala_nb.core import card, catalog, files
from koala_nb.models import load
from koala_nb.models.session import generation_settings as settings  # noqa: F401
from koala_nb.report import run as reports

if TYPE_CHECKING:
    import pandas as pd
    from IPython.display import HTML

PROMPTS_A_FIGURE = 4  # so that no figure is taller than a printed page
QUALITY = {  # column of the table -> key in data/results/quality-<model>.json
    "measure": "measure",
    "small must": "small_must",
    "full must": "full_must",
    "full goal": "full_goal",
    "value": "value",
    "95 % from": "low",
    "to": "high",
    "n": "n",
    "instrument": "instrument",
}
RECORD_COLUMNS = ("prompt", "seed", "steps", "guidance", "width", "height", "file")


def read_prompts(domain: str, file: str = "") -> pd.DataFrame:
    """Read the prompts of a report: the domain's sixteen, or a CSV file of one's own.

    Columns `id`, `prompt`, `factors`; in a file of one's own only `prompt` must be there.
    ValueError where it is not, where there are no prompts or one is empty.
    """
    from koala_nb.probes.base import read_csv

    path = Path(file) if file else catalog.data_folder() / f"prompts/first_look_{domain}.csv"
    if not path.is_file():
        raise ValueError(f"No prompts file {path}: give the path of a CSV with a column `prompt`.")
    frame = read_csv(path, dtype=str)
    if "prompt" not in frame:
        raise ValueError(f"{path} has no column `prompt` in its first line: name it.")
    empty = frame.index[frame["prompt"].str.strip() == ""]
    if frame.empty or len(empty):
        where = f"line {empty[0] + 2}" if len(empty) else "the file"
        raise ValueError(f"{path}: {where} holds no prompt: write one.")
    return frame


def title(pipe: Any) -> HTML:
    """The heading of the report, with the banner under it where the model is embedded."""
    from koala_nb.display.figures import BANNER_STYLE

    about = load.model_info(pipe)
    text = files.banner(about.domain)
    banner = f'<p class="banner" role="note" style="{BANNER_STYLE}">{escape(text or "")}.</p>'
    return _html(f"<h1>Audit report: {escape(about.name)}</h1>{banner if text else ''}")


def model_table(pipe: Any, chosen: Mapping[str, Any]) -> HTML:
    """What drew the images: system, source, revision, precision, device, recipe and changes."""
    about = load.model_info(pipe)
    recipe = about.recipe
    changed = {k: v for k, v in chosen.items() if k != "seeds"}
    rows = {
        "system": about.system.title if about.system else about.name,
        "source": about.source,
        "revision": about.revision,
        "licence": about.system.licence if about.system else None,
        "precision": about.dtype,
        "device": files.device_name(about.device),
        "scheduler": type(pipe.scheduler).__name__,
        "timestep spacing": pipe.scheduler.config.get("timestep_spacing"),
        "recipe": f"{recipe.steps} steps, guidance {recipe.guidance}; source: {recipe.source}",
        "changed in this report": ", ".join(f"{k} {v}" for k, v in changed.items()) or "nothing",
        "seeds": f"{chosen['seeds'][0]} to {chosen['seeds'][-1]}",
        "notes": "; ".join(about.notes) or "none",
    }
    return table(("property", "value"), rows.items(), "The model of this report and its settings")


def environment_table() -> HTML:
    """Versions of Python and the libraries; `results.json` adds platform and commit."""
    return table(("part", "version"), files.versions().items(), "Software of this report")


def card_facts() -> HTML:
    """What the model card of KOALA-Lightning-700M states, with its source."""
    facts = card.CARD
    rows = {
        "What it is": facts.what,
        "Compression": facts.compression,
        "Training": facts.training,
        "Steps": facts.steps_note,
        "Intended uses": "; ".join(facts.uses),
        "Out of scope": facts.out_of_scope,
        "Limitations": "; ".join(facts.limitations),
        "Licence": facts.licence,
        "Citation": facts.citation,
    }
    caption = f"KOALA-Lightning-700M, in our words. Source: {facts.source}"
    return table(("topic", "statement"), rows.items(), caption)


def card_table() -> HTML:
    """The card's table of U-Nets, beside the parameters counted from their configurations."""
    counted = {system.title: system.parameters for system in catalog.SYSTEMS}
    header = (*card.CARD_TABLE[0], "parameters counted")
    rows = [(*row.values(), f"{counted[str(row['U-Net'])]:,}") for row in card.CARD_TABLE]
    caption = f"U-Nets. Source: {card.CARD_SOURCE}. Latency: {card.CARD_TABLE_CONDITIONS}"
    return table(header, rows, caption)


def latency_table() -> HTML:
    """Published latency (s) and peak memory (GB) per GPU."""
    rows = [
        (name, *("out of memory" if v is None else f"{v[0]:.2f} s, {v[1]:.1f} GB" for v in values))
        for name, values in card.LATENCY_FIGURE.items()
    ]
    caption = f"Latency, peak memory. Source: {card.FIGURE_SOURCE}; {card.LATENCY_CONDITIONS}"
    return table(("system", *card.LATENCY_GPUS), rows, caption)


def image_grids(run: Any, prompts: Sequence[str], seeds: Sequence[int]) -> None:
    """Show all images of a run, a row a prompt and a column a seed, four prompts a figure.

    The alternative text lists each row's prompt and its images' mean brightness (0 to 1).
    """
    from koala_nb.display import figures

    for start in range(0, len(prompts), PROMPTS_A_FIGURE):
        rows = list(prompts[start : start + PROMPTS_A_FIGURE])
        images = run.images[start * len(seeds) : (start + len(rows)) * len(seeds)]
        labels = [f"seed {seed}" for seed in seeds]
        light = [
            _brightness(images[i * len(seeds) : (i + 1) * len(seeds)]) for i in range(len(rows))
        ]
        said = "; ".join(f"{p} (mean brightness {b:.1f})" for p, b in zip(rows, light))
        alt = f"{len(rows)} prompts x {len(seeds)} seeds, one row a prompt: {said}."
        colours = 256 if images[0].width <= 256 else None  # photographs need more
        figures.show(figures.image_grid(images, rows, labels), alt, colours=colours)


def _brightness(images: Sequence[Any]) -> float:
    import numpy as np

    return float(np.mean([np.asarray(image.convert("L")).mean() / 255 for image in images]))


def quality_table(pipe: Any) -> HTML:
    """The measured quality of these weights, or the sentence that it is not measured.

    Read from `data/results/quality-<model>.json`, which `koala-nb evaluate` writes.
    """
    about = load.model_info(pipe)
    path = catalog.data_folder() / "results" / f"quality-{about.name}.json"
    known = "/" not in about.name and "\\" not in about.name and path.is_file()
    measured = json.loads(path.read_text("utf-8")) if known else {}
    if not measured or measured.get("revision") != about.revision:
        return _html(
            f"<p>Not measured for these weights ({escape(about.name)}, revision "
            f"{escape(str(about.revision))}): the instruments of this version know the embedded "
            "models only. For one of them run <code>koala-nb evaluate</code>.</p>"
        )
    rows = [[_number(row.get(key)) for key in QUALITY.values()] for row in measured["rows"]]
    caption = f"Measured quality of {about.name}; empty: no bar was set. Source: {path.name}"
    return table(tuple(QUALITY), rows, caption)


def _number(value: Any) -> Any:
    return "" if value is None else f"{value:.3f}" if isinstance(value, float) else value


def records_table(run: Any, first: int = 6) -> HTML:
    """The first records of a run; the caption says where all of them are."""
    columns = [name for name in RECORD_COLUMNS if name in run.records]
    rows = run.records[columns].head(first).itertuples(index=False)
    caption = (
        f"The first {min(first, len(run.records))} of {len(run.records)} records. All of them, "
        "with every setting, stand in generated/records.jsonl beside this page and inside each PNG"
    )
    return table(columns, rows, caption)


def drawn_with(run: Any) -> str:
    """Say with which steps, guidance and size a run's images were drawn."""
    first = run.records.iloc[0]
    size = f"{first.width} x {first.height} pixels"
    return f"{first.steps} steps, guidance {first.guidance:g}, {size}"


def timing(run: Any) -> HTML:
    """The measured seconds an image, in a report only: a committed notebook stays the same."""
    if not reports.in_report():
        return _html("<p>The time an image took is measured where this runs as a report.</p>")
    if not run.drawn:
        return _html("<p>All images were there from an interrupted run: no time was measured.</p>")
    return _html(f"<p>One image took {run.seconds_per_image:.2f} s on this machine.</p>")


def table(header: Sequence[str], rows: Iterable[Sequence[Any]], caption: str) -> HTML:
    """An HTML table with a caption and scoped headers; every text is escaped.

    The first column names the row. None reads "unknown", True and False "yes" and "no".
    """
    head = "".join(f'<th scope="col">{escape(str(name))}</th>' for name in header)
    body = "".join(
        f'<tr><th scope="row">{_text(first)}</th>'
        + "".join(f"<td>{_text(value)}</td>" for value in others)
        + "</tr>"
        for first, *others in rows
    )
    caption = f"<caption>{escape(caption)}.</caption>"
    return _html(f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>")


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "unknown" if value is None else escape(str(value))


def _html(text: str) -> HTML:
    from IPython.display import HTML

    return HTML(text)
