"""The index of a sweep: all runs, their key figures, and paired comparisons of the models."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from koala_nb.core import files
from koala_nb.report.page import TEMPLATES
from koala_nb.stats import estimates as stats

IMAGES = "key_images.csv"  # of a run: one row an image and measure
PAIR = ["section", "measure", "prompt", "seed"]  # what two runs' images are paired by
NOTE = (
    "Each difference is the first model less the second over images of the same prompt and seed, "
    "at the same other parameters. The 95 % interval is Student's t over prompts; p is of a sign "
    "flip test over prompts (over seeds where there is one prompt), and adjusted by Holm's method "
    "for all comparisons of this sweep. n counts pairs of images."
)
RESAMPLES = 29_999  # so that Holm over some hundreds of tests can still find something


@dataclass
class Sweep:
    """A sweep's runs, in the order of its file, and what is known of them."""

    index: Path  # folder of the index page
    notebook: Path
    parameters: Sequence[Mapping[str, Any]]
    folders: Sequence[Path]
    states: list[dict[str, Any]]  # as `run.status` returns them, or {"state": "waiting"}
    compared: dict[tuple[int, int], list[dict[str, Any]]] = field(default_factory=dict)

    def write(self) -> Path:
        """Write `sweep.json` and `index.html`, each whole or not at all; returns the page."""
        content = self.content()
        files.write_json(self.index / "sweep.json", content)
        return files.write_atomic(self.index / "index.html", html(content).encode())

    def content(self) -> dict[str, Any]:
        """Return all that the page shows, as plain values for JSON."""
        first = self.parameters[0]
        varying = [n for n in first if any(p[n] != first[n] for p in self.parameters)]
        rows = [self._run(i, varying) for i in range(len(self.parameters))]
        return {
            "notebook": self.notebook.stem,
            "banners": sorted({row["banner"] for row in rows if row["banner"]}),
            "counts": {
                s: sum(r["state"] == s for r in rows) for s in ("done", "failed", "waiting")
            },
            "varying": varying,
            "same": {name: value for name, value in first.items() if name not in varying},
            "runs": rows,
            "comparisons": self._comparisons(varying),
            "note": NOTE,
        }

    def _run(self, i: int, varying: Sequence[str]) -> dict[str, Any]:
        state, folder = self.states[i], self.folders[i]
        done = state["state"] == "done"
        own = "the notebook's own choice" if varying else "the only run"
        results = _results(folder) if done else {}
        return {
            "number": i + 1,
            "state": state["state"],
            "parameters": dict(self.parameters[i]),
            "label": _said(self.parameters[i], varying) or own,
            "folder": f"../{folder.name}",
            "page": f"../{folder.name}/index.html" if done else None,
            "seconds": state.get("seconds"),
            "failed_at": state.get("cell"),
            "error": state.get("error"),
            "banner": results.get("banner") or self._banner(i),
            "key_figures": results.get("key_figures", {}),
        }

    def _banner(self, i: int) -> str | None:
        from koala_nb.core import catalog

        name = self.parameters[i].get("model")
        known = {system.name: system.domain for system in catalog.SYSTEMS}
        return files.banner(known.get(str(name), ""))

    def _comparisons(self, varying: Sequence[str]) -> list[dict[str, Any]]:
        found = []
        for i, j in self._pairs():
            one, other = self.parameters[i], self.parameters[j]
            same = _said(one, [n for n in varying if n != "model"])
            told = {"first": one["model"], "second": other["model"], "settings": same}
            found += [told | row for row in self._differences(i, j)]
        tested = [row for row in found if row.get("p") is not None]
        for row, p in zip(tested, stats.adjust_pvalues([row["p"] for row in tested])):
            row["p_holm"] = float(p)
        return found

    def _pairs(self) -> Iterator[tuple[int, int]]:
        for i, j in combinations(range(len(self.parameters)), 2):
            one, other = ({**self.parameters[k], "model": None} for k in (i, j))
            if "model" in self.parameters[i] and one == other:
                yield i, j

    def _differences(self, i: int, j: int) -> list[dict[str, Any]]:
        for k in (i, j):
            if (state := self.states[k]["state"]) != "done":
                return [{"n": 0, "why": f"no pairs: run {k + 1} is {state}"}]
        if (i, j) not in self.compared:  # a run that is done changes no more
            try:
                self.compared[i, j] = differences(*(read_images(self.folders[k]) for k in (i, j)))
            except ValueError as error:
                self.compared[i, j] = [{"n": 0, "why": f"no pairs: {error}"}]
        return self.compared[i, j]


def _said(values: Mapping[str, Any], names: Sequence[str]) -> str:
    """Parameters in words; an empty text is the notebook's own choice and is left out."""
    return ", ".join(f"{name} {values[name]}" for name in names if values[name] != "")


def _results(folder: Path) -> dict[str, Any]:
    """What a run's `results.json` holds for the index; any notebook may have written it."""
    try:
        found = json.loads(
            (folder / "results.json").read_text("utf-8"), parse_constant=lambda _: None
        )
    except (OSError, ValueError):
        found = {}
    found = found if isinstance(found, dict) else {}
    figures = found.get("key_figures")
    named = figures.items() if isinstance(figures, dict) else ()
    kept = {name: one for name, one in named if isinstance(one, dict)}
    return found | {"key_figures": kept}


def read_images(folder: Path) -> pd.DataFrame:
    """Read a run's `key_images.csv`: section, measure, prompt, seed and value, a row an image.

    Yes and no are 1 and 0; a row without a value (not asked) is left out. ValueError where the file
    is missing, lacks a column, or holds another value.
    """
    file = folder / IMAGES
    if not file.is_file():
        raise ValueError(f"{folder.name} has no {IMAGES}")
    table = pd.read_csv(file, dtype=str, keep_default_na=False)
    if lacking := [name for name in (*PAIR, "value") if name not in table]:
        raise ValueError(f"{folder.name}/{IMAGES} has no column {lacking[0]}")
    table = table[table.value != ""].drop_duplicates(PAIR)
    try:
        values = table.value.replace({"True": "1", "False": "0"}).astype(float)
    except ValueError as error:
        raise ValueError(f"{folder.name}/{IMAGES}: {error}") from None
    if not np.isfinite(values).all():
        raise ValueError(f"{folder.name}/{IMAGES}: a value is not finite")
    return table[PAIR].assign(value=values)


def differences(first: pd.DataFrame, second: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the paired differences, first less second, of each section and measure.

    Both as `read_images` returns them. Rows hold value, low, high, n (pairs of images), prompts and
    p; where no image pairs, n is 0 and `why` says so. Without any spread there is no interval.
    """
    both = first.merge(second, on=PAIR, suffixes=("_first", "_second"))
    both["difference"] = both.value_first - both.value_second
    keys = pd.concat([first, second])[["section", "measure"]].drop_duplicates()
    groups = dict(iter(both.groupby(["section", "measure"], sort=False)))
    rows = []
    for key in keys.itertuples(index=False, name=None):
        told = {"section": key[0], "measure": key[1]}
        group = groups.get(key)
        rows.append(told | (_difference(group) if group is not None else _without_pairs()))
    return rows


def _without_pairs() -> dict[str, Any]:
    return {"n": 0, "why": "no pairs: no prompt and seed in both runs"}


def _difference(pairs: pd.DataFrame) -> dict[str, Any]:
    apart, prompts = pairs.difference.to_numpy(), pairs.prompt.to_numpy()
    names = np.unique(prompts)
    units = [apart[prompts == name].mean() for name in names] if len(names) > 1 else apart
    found = stats.clustered_mean(apart, prompts)._asdict() | {"prompts": len(names)}
    if np.ptp(units) == 0:  # nothing is known of how they spread
        found |= {"low": None, "high": None, "why": "all pairs alike"}
    tested = len(units) > 1 and np.any(units)
    return found | {"p": stats.paired_test(units, RESAMPLES) if tested else None}


def html(content: Mapping[str, Any]) -> str:
    """Render a sweep's content as one page that needs no script and no network."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(TEMPLATES)
    jinja = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    jinja.filters |= {"number": _number, "groups": _groups}
    page: str = jinja.get_template("sweep.html.j2").render(
        content, figures=_figures(content["runs"]), ranges=_ranges, styles=_styles()
    )
    return page


def _styles() -> str:
    from markupsafe import Markup

    return Markup((TEMPLATES / "report" / "report.css").read_text("utf-8"))


def _figures(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[Any, Any]]]:
    """Return each key figure's (run, estimate) of the runs that have it."""
    names = dict.fromkeys(name for row in rows for name in row["key_figures"])
    return {
        name: [(r, r["key_figures"][name]) for r in rows if name in r["key_figures"]]
        for name in names
    }


def _groups(comparisons: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[Any]]]:
    """Return (heading, rows) of each pair of models at the same settings."""
    found: dict[str, list[Any]] = {}
    for row in comparisons:
        at = f", at {row['settings']}" if row["settings"] else ""
        found.setdefault(f"{row['first']} less {row['second']}{at}", []).append(row)
    return list(found.items())


def _ranges(estimates: Sequence[Mapping[str, Any]]) -> list[list[float] | None]:
    """Return (low, value, high) of each on a common scale of 0 to 100; None without an interval."""
    ends: list[Any] = [[e.get(k) for k in ("low", "value", "high")] for e in estimates]
    whole = [e if all(isinstance(v, int | float) for v in e) else None for e in ends]
    known = [v for e in whole if e for v in e]
    low, span = (min(known), max(known) - min(known) or 1) if known else (0, 1)
    return [e and [round(4 + 92 * (v - low) / span, 1) for v in e] for e in whole]


def _number(value: Any, digits: int = 3) -> str:
    """Write a value as the tables show it: None is "unknown", and a number has three decimals."""
    if isinstance(value, bool) or value is None:
        return {None: "unknown", True: "yes", False: "no"}[value]
    if not isinstance(value, float):
        return str(value)
    text = f"{value:,.{digits}f}"
    return text.replace("-", "\N{MINUS SIGN}")
