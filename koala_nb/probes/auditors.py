"""`koala-nb evaluate auditors`: published metrics and ours on audits whose truth is known.

An audit asks for the share of women among images of women and men. Sets of images are simulated;
where the embedded family is there, one scorer's errors are those measured on rendered scenes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from koala_nb.core.catalog import data_folder
from koala_nb.core.files import versions, write_json
from koala_nb.core.options import at_least, writable
from koala_nb.display import figures
from koala_nb.probes import published_metrics
from koala_nb.probes.published_metrics import METRICS
from koala_nb.stats import estimates, imbalance, misclassification
from koala_nb.stats.auditors_sets import CASES, CLASSES, LABELS, Case, draw, labelled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIZES = {9: (3, 3), 100: (20, 5), 400: (40, 10)}  # images: prompts, images a prompt
LEVEL = 0.05
EVEN = imbalance.uniform_reference(CLASSES[:2])
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


class Verdict(NamedTuple):
    """What an auditor says of one set: a reading, its interval or None, and whether it alarms."""

    reading: float
    interval: tuple[float, float] | None
    alarm: bool


def verdicts(
    read: np.ndarray, clusters: np.ndarray, classes: list[str], table: np.ndarray,
    rng: np.random.Generator,
) -> dict[str, Verdict]:  # fmt: skip
    """Return what every auditor says of one set of images."""
    counts = {name: int((read == name).sum()) for name in classes}
    said = {}
    for name, metric in METRICS.items():
        interval = (
            published_metrics.amplification_interval(counts, rng) if "Bench" in name else None
        )
        said[name] = Verdict(value := metric(counts), interval, value > 1e-9)
    known = counts["woman"] + counts["man"]
    if known:
        pooled = estimates.share_interval(counts["woman"], known)
        said[POOLED] = Verdict(pooled.value, pooled[1:3], not pooled.low <= 0.5 <= pooled.high)
    shares = {
        RAW: misclassification.uncorrected_shares(read, clusters, classes),
        CORRECTED: misclassification.corrected_shares(read, clusters, classes, table),
    }
    for name, found in shares.items():
        mine = misclassification.bounds_over_unsure(found, "woman")
        known_error = table if name == CORRECTED else None
        p = misclassification.score_test_pvalue(read, clusters, classes, known_error, "woman", 0.5)
        said[name] = Verdict(mine.value, (mine.low, mine.high), p < LEVEL)
    if known:
        apart = _distance(counts["woman"], counts["man"])
        n = known / estimates.design_effect(*estimates.cluster_totals(read == "woman", clusters))
        said[NULL] = Verdict(apart, None, apart > _null(max(1, round(n))))
    return said


@cache
def _null(n: int) -> float:
    return imbalance.null_quantile(lambda counts, _: _distance(*counts.values()), n, EVEN)


@cache  # few pairs of counts come up again and again
def _distance(women: int, men: int) -> float:
    return imbalance.total_variation({"woman": women, "man": men}, EVEN)


def truths(women: float) -> dict[str, float]:
    """Return what every auditor should read where this is the true share of women.

    For a published metric: its own formula on the true shares of the declared groups.
    """
    apart = abs(women - 0.5)
    shares = np.array([s for s in (women, 1 - women) if s])
    intensity = float(1 + (shares * np.log(shares)).sum() / np.log(2))
    return {
        "HEIM imbalance": apart,
        "T2I-BiasBench amplification": 2 * apart,
        "OpenBias intensity": intensity,
        "DALL-Eval MAD": apart,
        POOLED: women,
        RAW: women,
        CORRECTED: women,
        NULL: apart,
    }


def simulate(case: Case, images: int, sets: int, seed: int) -> list[dict[str, Any]]:
    """Return, for every auditor, its mean reading, bias, coverage and alarms over so many sets.

    An auditor that cannot read the answers of a case has no row.
    """
    rng = np.random.default_rng(seed)
    said: dict[str, list[Verdict]] = {name: [] for name in RULES}
    for _ in range(sets):
        read, clusters = draw(rng, case, *SIZES[images])
        for name, verdict in verdicts(read, clusters, *labelled(rng, case), rng).items():
            if verdict.reading == verdict.reading:
                said[name].append(verdict)
    truth = truths(case.women)
    return [{"auditor": n, **_summary(found, truth[n])} for n, found in said.items() if found]


def _summary(found: list[Verdict], truth: float) -> dict[str, Any]:
    reading = float(np.mean([v.reading for v in found]))
    held = [v.interval[0] - 1e-9 <= truth <= v.interval[1] + 1e-9 for v in found if v.interval]
    return {
        "sets": len(found),
        "truth": round(truth, 6),
        "reading": round(reading, 6),
        "bias": round(reading - truth, 6),
        "coverage": round(float(np.mean(held)), 6) if held else None,
        "alarms": round(float(np.mean([v.alarm for v in found])), 6),
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
        raise ValueError(f"{path} is missing: make it with `koala-nb evaluate auditors`.")
    return pd.DataFrame(json.loads(path.read_text("utf-8"))["cells"])


def table(images: int = 400) -> pd.DataFrame:
    """Return the citable table: a row an auditor, from the large run, at so many images a set.

    Bias is the mean reading less the truth (ours reads the low end of its bounds where images are
    unsure), coverage the lowest over the sets of the 95 % interval's, a false alarm one
    on a fair model by the auditor's `rule`; nan where it cannot read the answers. ValueError for a
    number that was not simulated.
    """
    if images not in SIZES:
        raise ValueError(
            f"table: {images} images were not simulated: {', '.join(map(str, SIZES))}."
        )
    cells = published()
    here = cells[cells.images == images].set_index(["auditor", "set"])
    fair = [name for name in here.index.unique("set") if name.startswith("fair")]
    rows = []
    for name in RULES:
        own = here.loc[name]
        row = {"auditor": name, "rule": RULES[name]}
        row |= {"at total collapse": own.reading["total collapse"]}
        biased = ("skewed", "fair, unsure", "fair, scorer error")
        row |= {f"bias: {s}": own.bias.get(s) for s in biased}
        held = own.coverage.dropna()
        row["coverage, lowest"] = f"{held.min():.1%}" if len(held) else "no interval"
        rows.append(row | {f"false alarms: {s}": own.alarms.get(s) for s in fair})
    return pd.DataFrame(rows)


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


def main(argv: Sequence[str] | None = None) -> int:
    """Simulate every cell and write `data/results/auditors.json`."""
    from tqdm import tqdm

    parser = argparse.ArgumentParser(prog="koala-nb evaluate auditors", description=__doc__)
    parser.add_argument("--sets", type=at_least(1), default=2000, help="simulated sets a cell")
    parser.add_argument("--out", type=writable, default=None, help="default: data/results")
    options = parser.parse_args(argv)
    cases, about = dict(CASES), None
    if (data_folder() / "models" / "nano-koala").is_dir():
        from koala_nb.nano.rendered_people import confusion

        about = confusion()
        rates = np.array(about["read"]) / np.sum(about["read"], axis=1, keepdims=True)
        woman, man = np.pad(rates, ((0, 0), (0, 1))).tolist()  # never unsure
        cases["fair, rendered"] = Case(0.5, woman, man)
    rows = []
    work = [(name, n) for name in cases for n in SIZES]
    for seed, (name, n) in enumerate(tqdm(work)):
        told = {"set": name, "images": n, "prompts": SIZES[n][0]}
        rows += [told | row for row in simulate(cases[name], n, options.sets, seed)]
    result = {
        "command": f"koala-nb evaluate auditors --sets {options.sets}",
        "versions": versions(),
        "labels a class": LABELS,
        "rules": RULES,
        "rendered": about,
        "cells": rows,
    }
    folder = options.out or data_folder() / "results"
    folder.mkdir(parents=True, exist_ok=True)
    print(write_json(folder / "auditors.json", result))
    return 0
