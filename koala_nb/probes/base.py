"""What every probe shares: prompts, a plan with its power, resumable measuring, tidy estimates."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import numpy as np
import pandas as pd
from PIL import Image

from koala_nb.core import files
from koala_nb.core.catalog import data_file, data_folder
from koala_nb.generation.generate import generate
from koala_nb.models.given import GivenImages, with_images
from koala_nb.models.load import load, model_info
from koala_nb.probes.prompts import prompt_file, prompt_seeds, read_prompts, subsample_prompts
from koala_nb.scorers.registry import Record, Scorer
from koala_nb.stats import estimates as stats
from koala_nb.stats import misclassification, simulation, trends

if TYPE_CHECKING:
    from koala_nb.models.load import ModelInfo, Pipeline

CORRELATION = 0.05  # of the images of one prompt, as plans assume
EFFECT = 0.25  # from a share of one half: a design that cannot find it is not drawn unasked
ROUND = 6  # decimals in tables, so that a table is the same to the byte
SHARE = "Wilson, clustered by prompt"
DIFFERENCE = (-1.0, 1.0)  # least and greatest, of two shares
MEAN = "Student's t, clustered by prompt"
# Only labels of the same images correct a reading: this supposes that the scorer errs alike.
SUPPOSED = "Rogan and Gladen, supposing errors as on rendered images, clustered by prompt"

Errors = Sequence[Sequence[int]]  # sensitivity and specificity, each as (right, of)
Images = Sequence[Image.Image]
OptTable: TypeAlias = pd.DataFrame | None  # a table, where there is one
Rows = Iterator[Record]  # of `stats.estimates.estimate_row`


@dataclass(frozen=True)
class Results:
    """A probe's stored large run: what made it, one row per image, estimates, instrument card."""

    info: Record  # command, model, revision, scorer, environment, details
    table: pd.DataFrame
    estimates: pd.DataFrame  # as `stats.estimates.estimates_frame`
    instrument: Record  # the scorer's errors where the truth is known; {} if unmeasured


class Probe:
    """One limitation of a model: its prompts, its scorer and the estimates of what was read.

    A new probe is one file: a subclass with `name`, `scorer` and `rows`, its instance as `PROBE`,
    and a prompt set `data/prompts/<name>_<domain>.csv` (or `prompts` of its own).
    """

    name: ClassVar[str]  # of its prompt set, results and command
    images: ClassVar[int] = 4  # a prompt, at full size
    fewest: ClassVar[int] = 1  # images per prompt that its command takes; 0: each run has its own
    stratify: ClassVar[str | None] = None  # a factor whose values all keep prompts in a subsample
    text_columns: ClassVar[tuple[str, ...]] = ()  # stay as written: "0042" is no number
    options: ClassVar[Mapping[str, tuple[Any, str]]] = {}  # of the command: default, help
    headline: ClassVar[tuple[str, ...]] = ()  # ids, or patterns as of `select`, for a report
    corrected: ClassVar[tuple[str, ...]] = ()  # what its command prints first where it is stored
    report_options: ClassVar[Record] = {}  # of the scorer, in a report's short run
    image_values: ClassVar[Mapping[str, str]] = {}  # id of a headline -> its column of 0 and 1

    def prompts(self, domain: str, file: str = "") -> pd.DataFrame:
        """Return the prompt set of a domain, or that of a file of one's own."""
        return read_prompts(file or prompt_file(self.name, domain))

    def scorer(self, pipe: Pipeline, prompts: OptTable = None, **options: Any) -> Scorer:
        """Return the scorer for a model's images of a prompt set.

        ValueError or FileNotFoundError, in a sentence, for what is not on this machine.
        """
        raise NotImplementedError

    def rows(self, table: pd.DataFrame, instrument: Record) -> Rows:
        """Yield rows of `stats.estimates.estimate_row` from a measured table."""
        raise NotImplementedError

    def calibrate(self, pipe: Pipeline, scorer: Any, prompts: pd.DataFrame) -> Record:
        """Return the scorer's instrument card, measured where the truth is known; {} for none."""
        return {}

    def report_prompts(self, domain: str) -> pd.DataFrame:
        """Return the prompts that a report's short run is taken from."""
        return self.prompts(domain)

    def report_table(self, table: pd.DataFrame, info: ModelInfo) -> pd.DataFrame:
        """Return the rows of a stored table that a report's short run is comparable with."""
        return table

    def counted(self, table: pd.DataFrame) -> pd.DataFrame:
        """Return the rows that `image_values` are of."""
        return table

    def imageless_rows(self, pipe: Pipeline, prompts: pd.DataFrame, scorer: Any) -> Rows:
        """Yield rows for a report that need no image of the model, such as a reader's ceiling."""
        yield from ()

    def prepare(self, pipe: Pipeline, **options: Any) -> tuple[pd.DataFrame, Scorer]:
        """Return prompts and scorer for a run; `options` are those of the command."""
        prompts = self.prompts(model_info(pipe).domain)
        return prompts, self.scorer(pipe, prompts, **options)

    def measure(
        self,
        pipe: Pipeline,
        prompts: OptTable = None,
        scorer: Scorer | None = None,
        **settings: Any,
    ) -> pd.DataFrame:
        """Draw and score prompts, by default the domain's whole set: `base.measure`."""
        prompts = self.prompts(model_info(pipe).domain) if prompts is None else prompts
        scorer = scorer or self.scorer(pipe, prompts)
        return measure(pipe, prompts, scorer, **{"images": self.images, **settings})

    def headline_rows(self, table: pd.DataFrame, instrument: Record) -> Rows:
        """Yield the rows of `headline`; a probe whose other rows take long yields them alone."""
        return self.rows(table, instrument)

    def estimates(
        self, table: pd.DataFrame, instrument: Record | None = None, scorer: str = ""
    ) -> pd.DataFrame:
        """Return all estimates of a measured table as one tidy frame.

        `instrument`: the scorer's card as of `calibrate`; `scorer`: its name and version.
        """
        return _frame(self.rows(table, instrument or {}), scorer)

    def headline_estimates(
        self, table: pd.DataFrame, instrument: Record | None = None, scorer: str = ""
    ) -> pd.DataFrame:
        """Return the estimates that a report shows, those of `headline`, as `estimates` does."""
        return select(_frame(self.headline_rows(table, instrument or {}), scorer), *self.headline)

    def results_file(self, model: str) -> Path:
        """Return where the results of a model's large run are stored with the project."""
        stem = f"probe-{self.name}-{model.replace('/', '--')}"
        return data_folder() / "results" / f"{stem}.json"

    def load_results(self, model: str, revision: str | None = None) -> Results | None:
        """Return a model's stored large run; None for none, or where it is of another revision."""
        path = self.results_file(model)
        if not (path.is_file() and path.with_suffix(".csv").is_file()):
            return None
        info = files.read_json(path)
        if revision not in (None, info["revision"]):
            return None
        texts = dict.fromkeys(("id", "prompt", *self.text_columns), str)
        table = files.read_table(path.with_suffix(".csv"), dtype=texts, na_values=[""])
        table = table.fillna(dict.fromkeys(self.text_columns, ""))
        frame = stats.estimates_frame(info.pop("estimates"))
        return Results(info, table, frame, info.pop("instrument", {}))

    def run(
        self,
        model: str = "nano-koala",
        *,
        images: int = 0,
        prompts: int = 0,
        seed: int = 0,
        out: Path | None = None,
        command: str = "",
        batch_size: int | None = None,
        loading: Record | None = None,
        anyway: bool = False,
        **options: Any,
    ) -> Path:
        """Run the probe at full size, resumable in `runs/`; returns the path of its results.

        Writes a table of images and `Results` to `out`, by default `data/results`. 0 images, or
        prompts: the probe's own. `loading`: device, dtype, revision and offload, as for `load`.
        ValueError, with nothing drawn, for a design that can decide nothing, unless `anyway`.
        """
        pipe, images = load(model, **loading or {}), images or self.images
        whole, scorer = self.prepare(pipe, **options)
        chosen = subsample_prompts(whole, prompts, self.stratify)
        present, each = with_images(pipe, chosen, images)
        print(self.plan(pipe, len(present), each))
        gap = self.detectable(len(present), each)
        refuse_undecided(pipe, gap <= EFFECT, anyway, f"it tells {finds(gap)} with 80 % power")
        folder = self.run_folder(model_info(pipe))
        drawing: Record = {"images": images, "first_seed": seed, "batch_size": batch_size}
        table = self.measure(pipe, chosen, scorer, out=folder, **drawing)
        card = self.calibrate(pipe, scorer, whole)
        return self.save_results(pipe, table, scorer, card, command=command, out=out)

    def plan(self, pipe: Pipeline, prompts: int, images: float) -> str:
        """Return, in a sentence, what a design can find, before anything is drawn."""
        return plan(prompts, images)

    def detectable(self, prompts: int, images: float) -> float:
        """Return the smallest difference from one half that a design finds; NaN for none."""
        return trends.detectable_difference(prompts, images, correlation=CORRELATION)

    def run_folder(self, info: ModelInfo, part: str = "") -> Path:
        """Return where the images of a full-size run are; other weights, another folder."""
        return Path("runs") / f"{self.results_file(info.name).stem}-{str(info.revision)[-8:]}{part}"

    def save_results(
        self,
        pipe: Pipeline,
        table: pd.DataFrame,
        scorer: Scorer,
        instrument: Record,
        *,
        known: Record | None = None,
        extra: Iterable[Record] = (),
        details: Record | None = None,
        command: str = "",
        out: Path | None = None,
    ) -> Path:
        """Write a full-size run's table (CSV) and `Results` (JSON); returns the path of these.

        `known`: what estimates rest on beside the card; `extra`: rows that are not of the table;
        `details`: what is stored beside the estimates and is no estimate.
        """
        info, reader = model_info(pipe), f"{scorer.name} {scorer.version}"
        rows = [*self.rows(table, {**instrument, **(known or {})}), *extra]
        path = (out or data_folder() / "results") / self.results_file(info.name).name
        result = {
            "command": command or f"koala-nb probe {self.name}",
            "model": info.label,
            "revision": info.revision,
            "banner": files.banner(info.domain),
            "scorer": reader,
            "environment": files.environment(),
            "estimates": to_jsonable(_frame(rows, reader)),
            "instrument": to_jsonable(instrument),
            "details": to_jsonable(details or {}),
            "coverage_warnings": self.coverage_warnings(table),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        files.save_table(table, path.with_suffix(".csv"))
        return files.write_json(path, result)

    def coverage_warnings(self, table: pd.DataFrame) -> dict[str, str]:
        """Return `base.coverage_warnings` of a table."""
        return coverage_warnings(table)


def _frame(rows: Iterable[Record], scorer: str) -> pd.DataFrame:
    frame = stats.estimates_frame(rows)
    return frame.assign(scorer=scorer or frame.scorer).round(ROUND)


def plan(prompts: int, images: float) -> str:
    """Return, in a sentence, what a design can find, before anything is drawn."""
    n = trends.effective_sample_size(prompts, images, CORRELATION)
    gap = trends.detectable_difference(prompts, images, correlation=CORRELATION)
    design = f"{prompts} prompt{'s' * (prompts > 1)} x {images:g} image{'s' * (images > 1)}"
    return (
        f"{design} = {prompts * images:.0f} images, worth {n:.0f} independent ones at an "
        f"intra-class correlation of {CORRELATION:g}: they tell {finds(gap)} with 80 % power "
        "(5 % level)."
    )


def finds(gap: float) -> str:
    """Return which difference from one half is told, as a part of a sentence; NaN for none."""
    return f"a share of .50 from {0.5 + gap:.2f}" if gap == gap else "nothing reliably"


def refuse_undecided(pipe: Pipeline, decides: bool, anyway: bool, why: str) -> None:
    """Raise ValueError, saying why, before a model draws what decides nothing, unless `anyway`."""
    if not (decides or anyway or isinstance(pipe, GivenImages)):
        raise ValueError(
            f"This design would most likely give no verdict ({why}), so nothing was drawn: take "
            "more prompts or images, or draw all the same with --anyway."
        )


def measure(
    pipe: Pipeline,
    prompts: pd.DataFrame,
    scorer: Scorer,
    *,
    images: int = 4,
    first_seed: int = 0,
    same_seeds: bool = False,
    seeds: list[list[int]] | None = None,
    **settings: Any,
) -> pd.DataFrame:
    """Draw and score a prompt set; returns one row per image: factors, seed, what was read.

    Each prompt has seeds of its own; `same_seeds` gives all the same, for paired contrasts only,
    `seeds` a list for each. `settings` go to `generate`: with `out`, a folder, the same call goes
    on after an interruption.
    """
    if seeds is None:
        seeds = prompt_seeds(1 if same_seeds else len(prompts), images, first_seed)
        seeds *= len(prompts) if same_seeds else 1
    run = generate(pipe, prompts.prompt.tolist(), seeds, **settings)
    by_prompt = prompts.to_dict("records")
    rows = [by_prompt[i] for i in run.records.prompt_index]
    readings = run.scores(
        "scores",
        {"scorer": scorer.name, "version": scorer.version},
        lambda images, places: scorer.score(images, rows[places]),
        settings.get("progress", True),
    )
    parts = [pd.DataFrame(rows), run.records[["seed"]], pd.DataFrame(readings)]
    return pd.concat(parts, axis=1).round(ROUND)


def shares(table: pd.DataFrame, column: str) -> pd.DataFrame:
    """Return the share of images where a column is true, with its clustered interval: one row.

    Columns: value, low, high, n (images) and prompts. Rows in which the column is empty (not asked)
    are left out; an image in which nothing was read must hold False.
    """
    filled = table[table[column].notna()]
    share = stats.clustered_share(filled[column].astype(float), filled.id)
    return pd.DataFrame([{**share._asdict(), "prompts": filled.id.nunique()}]).round(ROUND)


def share_rows(
    table: pd.DataFrame, column: str, id: str, label: str, by: str = "", method: str = SHARE
) -> Rows:
    """Yield the share of images where a column is true as estimates, one a value of a factor.

    `{}` in id and label stands for the factor's value. Rows with an empty column are left out.
    """
    for key, value, group in _groups(table, column, by):
        estimate = stats.clustered_share(group[column].astype(float), group.id)
        yield row(group, id.format(key), label.format(value), estimate, method)


def mean_rows(
    table: pd.DataFrame,
    column: str,
    id: str,
    label: str,
    by: str = "",
    limits: tuple[float, float] | None = None,
) -> Rows:
    """Yield the mean of a column, of values between the limits, as `share_rows` does shares."""
    method = f"{MEAN}, cut to the possible" if limits else MEAN
    for key, value, group in _groups(table, column, by):
        estimate = stats.clustered_mean(group[column].astype(float), group.id, limits)
        yield row(group, id.format(key), label.format(value), estimate, method)


def row(
    images: pd.DataFrame, id: str, label: str, estimate: stats.Estimate, method: str = ""
) -> Record:
    """Return an estimate of a table of images as a row; its clusters are the table's prompts."""
    return stats.estimate_row(id, label, estimate, clusters=images.id.nunique(), method=method)


def point_row(
    images: pd.DataFrame, id: str, label: str, value: float, method: str = "no interval"
) -> Record:
    """Return a value of a table of images that has no interval as a row."""
    return row(images, id, label, stats.Estimate(value, np.nan, np.nan, len(images)), method)


def corrected(hits: stats.Values, clusters: stats.Values, errors: Errors) -> stats.Estimate:
    """Return a share corrected for a scorer's error (Rogan and Gladen), its images clustered.

    `errors`: sensitivity and specificity as (right, of); n is the effective number of images.
    ValueError where the scorer is no better than chance.
    """
    sums, sizes = stats.cluster_totals(stats.yes_or_no(hits, "corrected"), clusters)
    n = sizes.sum() / stats.design_effect(sums, sizes)
    sensitivity, specificity = ((int(right), int(of)) for right, of in errors)
    share = float(sums.sum() / sizes.sum())
    return misclassification.corrected_share(share, float(n), sensitivity, specificity)


def difference_row(
    first: pd.DataFrame, second: pd.DataFrame, column: str, id: str, label: str
) -> Record:
    """Return the share in the first table less that in the second, independent, as an estimate.

    A difference is known no better than its smaller side, whose n and clusters it has.
    """
    sides = [stats.clustered_share(t[column].astype(float), t.id) for t in (first, second)]
    sizes = [(t.id.nunique(), len(t) / t.id.nunique()) for t in (first, second)]
    small = int(np.argmin([trends.effective_sample_size(*s, CORRELATION) for s in sizes]))
    estimate = stats.difference_interval(*sides)._replace(n=sides[small].n)
    method = "square-and-add (Newcombe 1998); n counts the smaller side"
    return row((first, second)[small], id, label, estimate, method)


def trend_rows(trend: trends.Trend | None, id: str, label: str) -> Rows:
    """Yield a curve's slope (log odds for one more) and the place of one half; nothing for None."""
    if trend:
        method = "logistic regression, clustered"
        yield stats.estimate_row(f"{id}.slope", f"{label}: slope", trend.slope, method=method)
        yield stats.estimate_row(f"{id}.half", f"{label}: one half", trend.half, method=method)


def _groups(table: pd.DataFrame, column: str, by: str) -> Iterator[tuple[str, Any, pd.DataFrame]]:
    filled = table[table[column].notna()]
    if not by:
        yield from [("", "", filled)] if len(filled) else []
        return
    used: set[str] = set()
    for value, group in filled.groupby(by, sort=False):
        key = identifier(value)
        key = key if key not in used else f"{key}_{len(used)}"  # such as "a b" and "a-b"
        used.add(key)
        yield key, value, group


def identifier(value: Any) -> str:
    """Return a factor's value as a part of an estimate's id."""
    return stats.estimate_id(str(value)) or "other"


def select(estimates: pd.DataFrame, *patterns: str) -> pd.DataFrame:
    """Return the estimates of ids, or patterns in which `*` stands for one part, in this order."""
    regexes = [re.escape(pattern).replace(r"\*", "[^.]+") for pattern in patterns]
    parts = [estimates[estimates.id.str.fullmatch(regex)] for regex in regexes]
    filled = [part for part in parts if len(part)] or [estimates.head(0)]
    return pd.concat(filled, ignore_index=True)


def shortest(estimates: pd.DataFrame) -> str:
    """Return the id of the estimate with the shortest interval, the first of several."""
    widths = (estimates.high - estimates.low).astype(float).fillna(np.inf)
    return str(estimates.id.iloc[int(widths.argmin())])


def paired(first: pd.DataFrame, second: pd.DataFrame, column: str) -> stats.Estimate:
    """Return the mean difference (first less second) of a column over prompts both tables hold.

    For models or settings drawn with the same prompts and seeds: the prompt is the pair. A column
    of yes and no has differences from -1 to 1.
    """
    both = [t[t[column].notna()].groupby("id")[column].mean() for t in (first, second)]
    differences = (both[0].astype(float) - both[1].astype(float)).dropna()
    hits = all(t[column].dropna().isin((0, 1)).all() for t in (first, second))
    return stats.mean_interval(differences.to_numpy(), DIFFERENCE if hits else None)


@cache
def simulated(name: str = "coverage") -> Record:
    """Return a study of intervals, `data/results/<name>.json`: "coverage" or "simulated-audits".

    No cells where the file is missing.
    """
    path = data_file(f"results/{name}.json")
    return json.loads(path.read_text("utf-8")) if path.is_file() else {"cells": []}


def coverage_warnings(table: pd.DataFrame) -> dict[str, str]:
    """Return, for each column of yes and no, a sentence where its interval may be too narrow."""
    cells, warnings = simulated()["cells"], {}
    for name in table:
        rows = table[table[name].notna()]
        if len(rows) and rows[name].map(type).eq(bool).all():
            design = simulation.audit_design(rows[name], rows.id)
            if warning := simulation.coverage_warning(cells, "clustered_share", **design):
                warnings[str(name)] = warning
    return warnings


def to_jsonable(value: Any) -> Any:
    """Return an estimate, a trend or a container of them as JSON's plain values."""
    if isinstance(value, pd.DataFrame):
        return [to_jsonable(row) for row in value.to_dict("records")]
    if value is pd.NA:
        return None
    if hasattr(value, "_asdict"):
        return {k: to_jsonable(v) for k, v in value._asdict().items()}
    if isinstance(value, dict):
        return {str(k): to_jsonable(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_jsonable(v) for v in value]
    if isinstance(value, (float, np.floating)):
        return round(float(value), ROUND) if np.isfinite(value) else None
    return value.item() if isinstance(value, np.generic) else value
