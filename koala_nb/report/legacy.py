"""Probes that are not yet a `probes.base.Probe`, as the report measures them: to go."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from koala_nb.core.catalog import data_folder
from koala_nb.core.files import read_json
from koala_nb.models.load import ModelInfo
from koala_nb.probes import base, composition, frequency
from koala_nb.probes.composition_estimates import OUTSIDE
from koala_nb.stats import estimates as stats
from koala_nb.stats import trends

SEVERAL = 3  # atoms: from here on a prompt is complex
COMPLEX = "complex prompts less simple ones"
EXPECTED = "expected of independent atoms"
POWER = "none: a single atom's share to the power of each prompt's atoms"
SHARE = "Wilson, clustered by prompt"
CONCEPTS = "Wilson, clustered by concept, or by prompt where there is none"
APART = "of a difference: square-and-add (Newcombe 1998); n counts the smaller side"
OCCUPATIONS = "Student's t; n counts occupations"
IDS = {  # label -> id, where it is not made from the label
    COMPLEX: "composition.complex.difference",
    f"{COMPLEX}, {EXPECTED}": "composition.complex.expected",
    "rarest fifth less most frequent fifth": "frequency.rarest.difference",
}

Rows = Iterator[dict[str, Any]]


def row(name: str, estimate: Any, method: str, prompts: int = 0, scorer: str = "") -> dict:
    """Return an estimate without the first part of its id, which is the probe's name."""
    id = IDS.get(name) or stats.estimate_id("probe", name)
    return stats.estimate_row(
        id, name, estimate, clusters=prompts or int(estimate.n), method=method, scorer=scorer
    )


def worth(estimate: Mapping[str, Any]) -> float:
    """Return how many independent images an estimate's count for."""
    prompts = estimate["clusters"]
    return trends.effective_sample_size(prompts, estimate["n"] / prompts, 0.05)


@dataclass(frozen=True)
class PartProbe:
    """What the report needs of a probe."""

    name: str
    report_prompts: Callable[[str], pd.DataFrame]
    stratify: str | None
    scorer: Callable[[Any, pd.DataFrame], base.Scorer]
    rows: Callable[[pd.DataFrame], Rows]
    image_values: Mapping[str, str]
    compared: Callable[[pd.DataFrame, ModelInfo], pd.DataFrame] = lambda table, info: table
    also: Callable[[Any, pd.DataFrame, Any], Rows] | None = None
    counted: Callable[[pd.DataFrame], pd.DataFrame] = lambda table: table
    headline: tuple[str, ...] = ("*.*", "*.*.*")

    def headline_estimates(
        self, table: pd.DataFrame, instrument: Any = None, scorer: str = ""
    ) -> Any:
        """Return the headline estimates as a tidy frame."""
        return self._frame(self.rows(table), scorer)

    estimates = headline_estimates

    def _frame(self, rows: Rows, scorer: str) -> pd.DataFrame:
        named = [r | {"id": r["id"].replace("probe.", f"{self.name}.", 1)} for r in rows]
        frame = stats.estimates_frame(named)
        return frame.assign(scorer=frame.scorer.where(frame.scorer != "", scorer)).round(6)

    def imageless_rows(self, pipe: Any, prompts: pd.DataFrame, scorer: Any) -> Rows:
        """Yield rows that need no image."""
        for r in self.also(pipe, prompts, scorer) if self.also else ():
            yield r | {"id": r["id"].replace("probe.", f"{self.name}.", 1)}

    def results_file(self, model: str) -> Path:
        """Return where the stored run is."""
        return data_folder() / "results" / f"probe-{self.name}-{model.replace('/', '--')}.json"

    def report_table(self, table: pd.DataFrame, info: ModelInfo) -> pd.DataFrame:
        """Return the comparable rows."""
        return self.compared(table, info)

    def load_results(self, model: str, revision: str | None = None) -> base.Results | None:
        """Return the stored run of these weights."""
        path = self.results_file(model)
        table = base.load_table(self.name, model)
        info = read_json(path) if path.is_file() and table is not None else {}
        if table is None or not info or revision not in (None, info["revision"]):
            return None
        checker = info.get("checker", {})
        info["scorer"] = info.get("scorer") or f"{checker['checker']} {checker['version']}"
        return base.Results(info, table, stats.estimates_frame([]), {})


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
        yield row(name, found, APART, small["clusters"])


def _composition(table: pd.DataFrame) -> Rows:
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


def _frequency(table: pd.DataFrame) -> Rows:
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


def _concepts(domain: str) -> pd.DataFrame:
    prompts = frequency.prompts(domain)
    return prompts[prompts.part.isin(("concept", frequency.NEVER))].reset_index(drop=True)


PARTS = {
    part.name: part
    for part in (
        PartProbe(
            "composition", composition.read_prompts, "task",
            lambda pipe, prompts: composition.scorer(pipe, quality=False), _composition,
            {"composition.everything_right": "all_right"},
        ),
        PartProbe(
            "frequency", _concepts, None,
            lambda pipe, prompts: frequency.make_scorer(pipe, prompts, ocr=False), _frequency,
            {"frequency.concept_drawn": "hit"}, counted=_single,
        ),
    )
}  # fmt: skip
