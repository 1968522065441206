"""What every probe shares: prompt sets, a plan with its power, resumable runs, clustered estimates.

A probe names its prompts, scorer and estimates; see `Probe`. Real and embedded models are alike.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pandas as pd

from koala_nb.core.catalog import data_folder
from koala_nb.core.files import (
    banner,
    environment,
    read_lines,
    write_atomic,
    write_json,
    write_lines,
)
from koala_nb.core.options import probe_parser
from koala_nb.generation import run_folder
from koala_nb.generation.generate import generate
from koala_nb.generation.plan import slug
from koala_nb.models.load import load, model_info
from koala_nb.stats import estimates as stats
from koala_nb.stats import simulation, trends

if TYPE_CHECKING:
    from PIL import Image

    from koala_nb.models.load import Pipeline

CHUNK = 64  # images scored between two writes
ROUND = 6  # decimals in tables, so that a table is the same to the byte


class Scorer(Protocol):
    """Reads images; `name` and `version` tell apart what it wrote from what another one would."""

    name: str
    version: str

    def score(
        self, images: Sequence[Image.Image], prompts: Sequence[dict[str, Any]]
    ) -> list[dict[str, Any]]:
        """Return one dictionary an image, the same keys in each, of JSON's plain values.

        `prompts` holds the row of the prompt set that each image was drawn for.
        """


@dataclass(frozen=True)
class Probe:
    """One probe: how the parts that differ are made."""

    name: str
    prompts: Callable[[str], pd.DataFrame]  # domain -> prompt set
    scorer: Callable[[Any], Scorer]  # pipeline -> scorer
    estimates: Callable[[pd.DataFrame], dict[str, Any]]  # table -> what `results.json` holds
    images: int = 4  # a prompt


def prompt_file(probe: str, domain: str) -> Path:
    """Return the prompt set that a probe uses for a domain."""
    return data_folder() / "prompts" / f"{probe}_{domain}.csv"


def read_csv(path: str | Path, **how: Any) -> pd.DataFrame:
    """Read a CSV with a header by pandas; ValueError, naming it, where it is absent or none."""
    try:
        return pd.read_csv(path, keep_default_na=False, **how)
    except FileNotFoundError:
        raise ValueError(f"There is no file {path}.") from None
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        said = str(error).strip().splitlines()[0]
        raise ValueError(f"{path} is not a CSV with a header: {said}.") from None


def read_prompts(path: str | Path) -> pd.DataFrame:
    """Read a prompt set: a CSV with `id`, `prompt` and any number of columns of factors.

    Empty factors are None. ValueError for a missing column, file or prompt, or two equal ids.
    """
    table = read_csv(path, dtype={"id": str, "prompt": str}, na_values=[""])
    if table.empty:
        raise ValueError(f"{path} holds no prompts: write one a line.")
    for column in ("id", "prompt"):
        if column not in table:
            raise ValueError(f"{path} has no column {column!r}: it needs id, prompt and factors.")
        if table[column].isna().any():
            row = int(table[column].isna().to_numpy().argmax()) + 2
            raise ValueError(f"{path}, line {row}: {column} is empty.")
    if twice := table.id[table.id.duplicated()].tolist():
        raise ValueError(f"{path}: the id {twice[0]!r} stands twice.")
    return table.astype(object).where(table.notna(), None)


def some(prompts: pd.DataFrame, n: int, by: str | None = None) -> pd.DataFrame:
    """Return about n prompts spread evenly over the set, or over each value of a factor; 0: all."""
    if not 0 < n < len(prompts):
        return prompts
    groups = [g for _, g in prompts.groupby(by, sort=False)] if by else [prompts]
    each = max(1, round(n / len(groups)))
    picked = [
        g.iloc[np.unique(np.linspace(0, len(g) - 1, each).round().astype(int))] for g in groups
    ]
    return pd.concat(picked).sort_index().reset_index(drop=True)


def own_seeds(prompts: int, images: int, first: int = 0) -> list[list[int]]:
    """Return seeds of every prompt's own: common noise would correlate the images of prompts."""
    return [list(range(first + i * images, first + (i + 1) * images)) for i in range(prompts)]


def plan(prompts: int, images: int, correlation: float = 0.05) -> str:
    """Return, in a sentence, what prompts x images a prompt can find, before anything is drawn."""
    n = trends.effective_sample_size(prompts, images, correlation)
    found = trends.detectable_difference(prompts, images, correlation=correlation)
    finds = f"a share of .50 told from {0.5 + found:.2f}" if found == found else "nothing reliably"
    return (
        f"{prompts} prompts x {images} images = {prompts * images} images, worth {n:.0f} "
        f"independent ones at an intra-class correlation of {correlation:g}: {finds} with 80 % "
        "power (5 % level)."
    )


def measure(
    pipe: Pipeline,
    prompts: pd.DataFrame,
    scorer: Scorer,
    *,
    images: int = 4,
    first_seed: int = 0,
    same_seeds: bool = False,
    out: str | Path | None = None,
    progress: bool = True,
    **recipe: Any,
) -> pd.DataFrame:
    """Draw and score a prompt set; returns one row an image: factors, seed, what was read.

    Each prompt has seeds of its own; `same_seeds` gives all the same, for paired contrasts only.
    With `out`, a folder, the same call goes on after an interruption. `recipe` goes to `generate`.
    """
    seeds = own_seeds(1 if same_seeds else len(prompts), images, first_seed)
    seeds *= len(prompts) if same_seeds else 1
    run = generate(pipe, prompts.prompt.tolist(), seeds, out=out, progress=progress, **recipe)
    asked = prompts.to_dict("records")
    rows = [asked[i] for i in run.records.prompt_index]
    read = _read_all(run, rows, scorer, progress)
    table = pd.concat([pd.DataFrame(rows), run.records[["seed"]], pd.DataFrame(read)], axis=1)
    return table.round(ROUND)


def _read_all(
    run: run_folder.Run, rows: list[dict[str, Any]], scorer: Scorer, progress: bool
) -> list[dict[str, Any]]:
    """Return what the scorer reads in all images; takes up what a run's folder already holds."""
    from tqdm import tqdm

    file = run.folder / f"scores-{slug(scorer.name)}.jsonl" if run.folder else None
    told = {"scorer": scorer.name, "version": scorer.version}
    found: list[dict[str, Any]] = []
    if file and file.is_file():
        head, *found = read_lines(file)
        if head != told:
            raise ValueError(
                f"{file} was written by {head.get('scorer')} {head.get('version')}, and this is "
                f"{scorer.name} {scorer.version}: remove the file to read the images again."
            )
    starts = range(len(found), len(rows), CHUNK)
    for start in tqdm(starts, "scoring", disable=not (progress and sys.stderr.isatty())):
        here = slice(start, start + CHUNK)
        found += scorer.score(list(run.images[here]), rows[here])
        if file:
            write_lines(file, [told, *found])
    return found


def shares(table: pd.DataFrame, column: str, by: str | Sequence[str] = ()) -> pd.DataFrame:
    """Return the share of images where a column is true, by factors, with clustered intervals.

    Columns: the factors, value, low, high, n (images) and prompts. Rows in which the column is
    empty (not asked) are left out; an image in which nothing was read must hold False.
    """
    return _by(table, column, by, stats.clustered_share)


def means(table: pd.DataFrame, column: str, by: str | Sequence[str] = ()) -> pd.DataFrame:
    """Return the mean of a column, by factors, with t intervals clustered by prompt."""
    return _by(table, column, by, stats.clustered_mean)


def _by(
    table: pd.DataFrame, column: str, by: str | Sequence[str], estimate: Callable
) -> pd.DataFrame:
    names = [by] if isinstance(by, str) else list(by)
    asked = table[table[column].notna()]
    groups: Iterable = asked.groupby(names, sort=False) if names else [((), asked)]
    rows = []
    for values, group in groups:
        found = estimate(group[column].astype(float), group.id)
        row = dict(zip(names, values if isinstance(values, tuple) else (values,)))
        rows.append(row | found._asdict() | {"prompts": group.id.nunique()})
    return pd.DataFrame(rows).round(ROUND)


def paired(first: pd.DataFrame, second: pd.DataFrame, column: str) -> stats.Estimate:
    """Return the mean difference (first less second) of a column over prompts both tables hold.

    For models or settings drawn with the same prompts and seeds: the prompt is the pair.
    """
    both = [t[t[column].notna()].groupby("id")[column].mean() for t in (first, second)]
    differences = (both[0].astype(float) - both[1].astype(float)).dropna()
    return stats.mean_interval(differences.to_numpy())


@cache
def simulated(name: str = "coverage") -> dict[str, Any]:
    """Return a study of intervals, `data/results/<name>.json`: "coverage" or "simulated-audits".

    No cells where the file is missing.
    """
    path = data_folder() / "results" / f"{name}.json"
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


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return a table's rows for JSON: None for what is missing or not finite."""
    finite = table.replace([np.inf, -np.inf], np.nan).astype(object)
    return finite.where(finite.notna(), None).to_dict("records")


def plain(value: Any) -> Any:
    """Return an estimate, a trend or a container of them as JSON's plain values."""
    if isinstance(value, pd.DataFrame):
        return records(value)
    if hasattr(value, "_asdict"):
        return {k: plain(v) for k, v in value._asdict().items()}
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, (float, np.floating)):
        return round(float(value), ROUND) if np.isfinite(value) else None
    return value.item() if isinstance(value, np.generic) else value


def save_table(table: pd.DataFrame, path: str | Path) -> Path:
    """Write a table as CSV, atomically."""
    return write_atomic(path, table.to_csv(index=False, lineterminator="\n").encode())


def saved(probe: str, model: str, texts: Sequence[str] = ()) -> pd.DataFrame | None:
    """Return the table of a probe's large run, or None; `texts` are columns kept as written."""
    path = data_folder() / "results" / f"probe-{probe}-{model}.csv"
    kinds = dict.fromkeys(("id", *texts), str)
    if not path.is_file():
        return None
    return pd.read_csv(path, dtype=kinds, keep_default_na=False, na_values=[""])


def main(probe: Probe, argv: Sequence[str] | None = None, own: Sequence[str] = ()) -> int:
    """Run a probe at its full size: `koala-nb probe <name>`; resumable in `runs/`.

    `own`: arguments that the probe has read itself, to be told in the results.

    Writes `probe-<name>-<model>.csv` (one row an image) and `.json` (estimates, provenance).
    """
    given = list(sys.argv[1:] if argv is None else argv)
    options = probe_parser(probe.name, probe.images).parse_args(given)
    pipe = load(options.model)
    about = model_info(pipe)
    prompts = some(probe.prompts(about.domain), options.prompts)
    print(plan(len(prompts), options.images))
    stem = f"probe-{probe.name}-{about.name.replace('/', '--')}"
    folder = Path("runs") / f"{stem}-{str(about.revision)[-8:]}"  # other weights, another run
    scorer = probe.scorer(pipe)
    table = measure(
        pipe, prompts, scorer, images=options.images, first_seed=options.seed, out=folder
    )
    result = {
        "command": " ".join([f"koala-nb probe {probe.name}", *given, *own]),
        "model": about.name,
        "revision": about.revision,
        "banner": banner(about.domain),
        "scorer": f"{scorer.name} {scorer.version}",
        "environment": environment(),
        "estimates": plain(probe.estimates(table)),
        "cautions": coverage_warnings(table),
    }
    place = options.out or data_folder() / "results"
    place.mkdir(parents=True, exist_ok=True)
    save_table(table, place / f"{stem}.csv")
    print(write_json(place / f"{stem}.json", result))
    return 0
