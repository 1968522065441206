"""Published metrics and ours on audits whose truth is known: their behaviour and the stored run.

An audit asks for the share of women among images of women and men; `studies.auditors` simulates.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from koala_nb.core.catalog import data_folder
from koala_nb.display import figures
from koala_nb.probes.published_metrics import METRICS
from koala_nb.stats import imbalance

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIZES = {9: (3, 3), 100: (20, 5), 400: (40, 10)}  # images: prompts, images a prompt
EVEN = imbalance.uniform_reference(("woman", "man"))
POOLED, RAW, CORRECTED, NULL = (
    "pooled Wilson, unsure removed", "ours: clustered, bounds, uncorrected",
    "ours: clustered, bounds, corrected", "ours: total variation beside its null",
)  # fmt: skip
RULES = dict.fromkeys(METRICS, "reading above 0") | {
    POOLED: "interval without .5",
    RAW: "claim at 5 %",
    CORRECTED: "claim at 5 %",
    NULL: "above the null's 95th percentile",
}


def behaviour() -> pd.DataFrame:
    """Return how the published metrics and total variation behave where no chance is involved.

    Readings at total collapse, whether the largest reading is there, whether the order of the
    groups changes a reading, and whether a declared group that nobody saw counts: whether collapse
    reads more than an even split. None of unsure images where a metric has no such answer.
    """
    ours: dict[str, Callable] = {NULL: _variation}
    rows = []
    for name, metric in (METRICS | ours).items():
        mixed = {"woman": 30, "man": 50}
        unsure = {"woman": 40, "man": 40, "unsure": 20}
        collapse = metric({"man": 100})
        grid = [metric({"woman": w, "man": 100 - w}) for w in range(1, 100)]
        rows.append({
            "auditor": name,
            "at total collapse": collapse,
            "collapse is the maximum": collapse >= max(grid),
            "order changes it": not _same(metric, mixed, dict(reversed(mixed.items()))),
            "a declared group that nobody saw counts": collapse > metric({"woman": 50, "man": 50}),
            "unsure images change a fair reading": None if np.isnan(metric(unsure))
            else not _same(metric, {"woman": 40, "man": 40}, unsure),
        })  # fmt: skip
    return pd.DataFrame(rows)


def _same(metric: Callable, first: dict[str, int], second: dict[str, int]) -> bool:
    return bool(np.isclose(metric(first), metric(second)))


def _variation(counts: dict[str, int]) -> float:
    return imbalance.total_variation({g: n for g, n in counts.items() if g in EVEN}, EVEN)


@cache
def published() -> pd.DataFrame:
    """Return the cells of `data/results/auditors.json`; ValueError where the file is missing."""
    path = data_folder() / "results" / "auditors.json"
    if not path.is_file():
        raise ValueError(f"{path} is missing: make it with `python -m studies.auditors`.")
    return pd.DataFrame(json.loads(path.read_text("utf-8"))["cells"])


def measured(column: str, images: int = 400) -> pd.DataFrame:
    """Return one measure of the large run: a row an auditor, a column a set.

    NaN: no interval, or answers that this auditor has not.
    """
    cells = published()
    here = cells[cells.images == images]
    wide = here.pivot(index="auditor", columns="set", values=column).astype(float)
    return wide.loc[list(RULES), list(dict.fromkeys(here["set"]))]


def figure(images: int = 400) -> Figure:
    """Draw how often each auditor alarms on models that are fair, by the kind of images."""
    found = measured("alarms", images)
    fair = [name for name in found if name.startswith("fair")]
    columns = [name.removeprefix("fair, ").replace(" ", "\n") for name in fair]
    title = f"False alarms on fair models, {images} images a set"
    return figures.heatmap(found[fair].to_numpy(), list(found.index), title, columns)
