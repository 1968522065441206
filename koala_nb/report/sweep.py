"""Sweeps: a notebook over a grid of parameters, failures isolated, resumed where it stopped.

The index page holds all runs, their key figures, and paired comparisons of the models.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations, product
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from tqdm import tqdm

from koala_nb.core import catalog, files
from koala_nb.core.files import Record, short
from koala_nb.display.tables import format_number
from koala_nb.report import run as reports
from koala_nb.report.page import TEMPLATES, fill_template
from koala_nb.report.run import Value, Values
from koala_nb.stats import estimates as stats

SHAPE = (
    "A sweep has `grid: {name: [values]}`, `runs: [{name: value}]`, or both; `parameters: "
    "{name: value}`, the same in all runs; and `workers: 1`, runs at a time."
)
IMAGES = "key_images.csv"  # of a run: one row per image and measure
PAIR = ["section", "measure", "prompt", "seed"]  # what two runs' images are paired by
DOMAINS = {system.name: system.domain for system in catalog.SYSTEMS}
MAX_RUNS = 10_000
RESAMPLES = 29_999  # so that Holm over some hundreds of tests can still find something


class SweepFile(BaseModel):
    """What a sweep's file may hold."""

    model_config = ConfigDict(extra="forbid", strict=True)

    parameters: Record = {}
    grid: dict[str, list[Value]] = {}
    runs: list[Record] = []
    workers: int = Field(1, ge=1)


def run_sweep(
    notebook: str | Path,
    file: str | Path,
    given: Mapping[str, Value] | None = None,
    *,
    out: str | Path = "reports",
) -> tuple[Path, int]:
    """Run a notebook once for each combination of a YAML file; returns (index page, failed runs).

    The file holds `parameters` (name: value, the same in all runs), `grid` (name: [values], all
    combinations), `runs` (a list of combinations of their own) and `workers` (runs at a time,
    default 1). `given` adds to `parameters`. Each run is a process of its own. Runs that are done
    are kept, so the same call goes on after any interruption. The index is
    `<out>/<file's name>-<hash>/index.html`, with `sweep.json` beside it, written after every run.
    ValueError before anything runs for what the file or a combination of it has wrong.
    """
    path, file, out = reports.find(notebook).resolve(), Path(file), Path(out).resolve()
    chosen, workers = read(path, file, given or {})
    folders = [reports.folder_of(path, values, out) for values in chosen]
    index = out / _name(path, file, chosen)
    files.make_folder(index)
    states = [reports.status(folder) for folder in folders]
    todo = [i for i, state in enumerate(states) if state["state"] != "done"]
    for i in todo:
        states[i] = {"state": "waiting"}
    sweep = Sweep(index, path, chosen, folders, states)
    page = sweep.write()
    with ThreadPoolExecutor(workers) as pool:
        futures = {pool.submit(_run_one, path, chosen[i], folders[i]): i for i in todo}
        try:
            for future in tqdm(as_completed(futures), "runs", len(todo)):
                states[futures[future]] = future.result()
                sweep.write()
        finally:
            pool.shutdown(cancel_futures=True)  # what has not begun, where this was interrupted
    return page, sum(state["state"] == "failed" for state in states)


def _run_one(path: Path, values: Values, folder: Path) -> Record:
    """Run one combination as `koala-nb report` in a process of its own; returns its status."""
    command = [sys.executable, "-m", "koala_nb", "report", str(path), "--out", str(folder.parent)]
    command.append("--keep-done")  # by a process that outlived another sweep
    for name, value in values.items():
        command += ["-p", f"{name}={value}"]
    while True:
        # A process that outlived its sweep runs it, or takes the folder while this one loads.
        while reports.status(folder)["state"] == "running":
            time.sleep(1)
        code, lines = _call(command)
        state = reports.status(folder)
        if code != 2 or state["state"] != "running":
            break
    if state["state"] != "done" and (code == 2 or state["state"] != "failed"):  # no cell reached
        error = lines[-1].removeprefix("koala-nb: ")
        return {"state": "failed", "cell": "no cell of its own", "error": error}
    return state


def _call(command: Sequence[str]) -> tuple[int, list[str]]:
    """Run a command to its end; returns its exit code and the lines that it printed."""
    # A file, not a pipe: a run outlives a sweep that is killed, and writes to it until its end.
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
        code = subprocess.call(command, stdout=output, stderr=output)
        output.seek(0)
        return code, output.read().strip().splitlines() or [f"exit code {code}"]


def read(path: Path, file: Path, given: Mapping[str, Value]) -> tuple[list[Values], int]:
    """Read a sweep's file; returns the parameters of all its runs, defaults included, and workers.

    ValueError, naming the file and the combination, for what is wrong or there twice.
    """
    content = _content(file)
    given = {n: reports.check(path, {n: v}, text=isinstance(v, str))[n] for n, v in given.items()}
    fixed = content.parameters | given
    if twice := fixed.keys() & content.grid.keys():
        names = ", ".join(sorted(twice))
        raise ValueError(f"{file}: {names} has one value for all runs and a list in the grid.")
    if empty := [name for name, values in content.grid.items() if not values]:
        raise ValueError(f"{file}: the list of {empty[0]} in the grid is empty: give values.")
    count = len(content.runs) + (prod(map(len, content.grid.values())) if content.grid else 0)
    if count > MAX_RUNS:
        raise ValueError(f"{file} asks for {count:,} runs: at most {MAX_RUNS:,} make a sweep.")
    grid = product(*content.grid.values()) if content.grid else ()
    chosen = [dict(zip(content.grid, values)) for values in grid] + content.runs
    if not chosen:
        raise ValueError(f"{file} asks for no run. {SHAPE}")
    runs: list[Values] = []
    numbers: dict[tuple[tuple[str, Value], ...], int] = {}
    for number, combination in enumerate(chosen, start=1):
        setting = ", ".join(f"{name} {short(value)}" for name, value in combination.items())
        where = f"{file}, run {number} ({setting})"
        if twice := given.keys() & combination.keys():
            raise ValueError(f"{where}: {', '.join(twice)} is set with -p for all runs, too.")
        try:
            values = reports.check(path, fixed | combination)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        if (first := numbers.setdefault(tuple(values.items()), number)) != number:
            raise ValueError(f"{where} is the same as run {first}: remove one.")
        runs.append(values)
    return runs, content.workers


def _content(file: Path) -> SweepFile:
    import yaml

    if not file.is_file():
        raise ValueError(f"No sweep file {file}: give the path of a YAML file with a `grid`.")
    try:
        return SweepFile.model_validate(yaml.safe_load(file.read_text(encoding="utf-8")))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}," if mark else ""
        problem = str(getattr(error, "problem", None) or error).splitlines()[0]
        raise ValueError(f"{file}{line} is not YAML: {problem}.") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ", ".join(map(str, first["loc"])) or "the file"
        problem = f"{where} is {short(first['input'])}: {first['msg']}."
        raise ValueError(f"{file}: {problem} {SHAPE}") from None


def _name(path: Path, file: Path, combinations: Sequence[Values]) -> str:
    content = json.dumps([path.stem, combinations], sort_keys=True)
    plain = "".join(c if c.isalnum() or c in ".-_" else "-" for c in file.stem).strip("-.")
    return f"{plain or 'sweep'}-{hashlib.sha256(content.encode()).hexdigest()[:8]}"


@dataclass
class Sweep:
    """A sweep's runs, in the order of its file, and what is known of them."""

    index: Path  # folder of the index page
    notebook: Path
    parameters: Sequence[Values]
    folders: Sequence[Path]
    states: list[Record]  # as `run.status` returns them, or {"state": "waiting"}
    compared: dict[tuple[int, int], list[Record]] = field(default_factory=dict)

    def write(self) -> Path:
        """Write `sweep.json` and `index.html`, each whole or not at all; returns the page."""
        places = [place for values in self.parameters for place in reports.places_of(values)]
        content = json.loads(reports.hide_places(json.dumps(self.content()), *places))
        files.write_json(self.index / "sweep.json", content)
        return files.write_atomic(self.index / "index.html", html(content).encode())

    def content(self) -> Record:
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
        }

    def _run(self, i: int, varying: Sequence[str]) -> Record:
        values, state, folder = self.parameters[i], self.states[i], self.folders[i]
        done = state["state"] == "done"
        domain = DOMAINS.get(str(values.get("model")), "")
        default = "the notebook's own choice" if varying else "the only run"
        results = _results(folder) if done else {}
        return {
            "number": i + 1,
            "state": state["state"],
            "parameters": values,
            "label": _setting(values, varying) or default,
            "folder": f"../{folder.name}",
            "page": f"../{folder.name}/index.html" if done else None,
            "seconds": state.get("seconds"),
            "failed_at": state.get("cell"),
            "error": state.get("error"),
            "banner": results.get("banner") or files.banner(domain),
            "key_figures": results.get("key_figures", {}),
        }

    def _comparisons(self, varying: Sequence[str]) -> list[Record]:
        """Return the paired differences of each two runs that differ in the model alone."""
        rows = []
        for i, j in combinations(range(len(self.parameters)), 2):
            one, other = self.parameters[i], self.parameters[j]
            if "model" in one and {**one, "model": None} == {**other, "model": None}:
                same = _setting(one, [name for name in varying if name != "model"])
                pair = {"first": one["model"], "second": other["model"], "settings": same}
                rows += [pair | row for row in self._differences(i, j)]
        tested = [row for row in rows if row.get("p") is not None]
        for row, p in zip(tested, stats.adjust_pvalues([row["p"] for row in tested])):
            row["p_holm"] = float(p)
        return rows

    def _differences(self, i: int, j: int) -> list[Record]:
        for k in (i, j):
            if (state := self.states[k]["state"]) != "done":
                return [{"n": 0, "why": f"no pairs: run {k + 1} is {state}"}]
        if (i, j) not in self.compared:  # a run that is done changes no more
            try:
                self.compared[i, j] = differences(*(read_images(self.folders[k]) for k in (i, j)))
            except ValueError as error:
                self.compared[i, j] = [{"n": 0, "why": f"no pairs: {error}"}]
        return self.compared[i, j]


def _setting(values: Values, names: Sequence[str]) -> str:
    """Parameters in words; an empty text is the notebook's own choice and is left out."""
    return ", ".join(f"{name} {values[name]}" for name in names if values[name] != "")


def _results(folder: Path) -> Record:
    """What a run's `results.json` holds for the index; any notebook may have written it."""
    file = folder / "results.json"
    try:
        results = json.loads(file.read_text("utf-8"), parse_constant=lambda _: None)
    except (OSError, ValueError):
        results = {}
    results = results if isinstance(results, dict) else {}
    figures = results.get("key_figures")
    named = figures.items() if isinstance(figures, dict) else ()
    return results | {"key_figures": {k: one for k, one in named if isinstance(one, dict)}}


def read_images(folder: Path) -> pd.DataFrame:
    """Read a run's `key_images.csv`: section, measure, prompt, seed and value, one row per image.

    Yes and no are 1 and 0; a row without a value (not asked) is left out. ValueError where the file
    is missing, lacks a column, or holds another value.
    """
    file = folder / IMAGES
    if not file.is_file():
        raise ValueError(f"{folder.name} has no {IMAGES}")
    table = files.read_table(file, dtype=str)
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


def differences(first: pd.DataFrame, second: pd.DataFrame) -> list[Record]:
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
        group = groups.get(key)
        row = {"n": 0, "why": "no pairs: no prompt and seed in both runs"}
        row = row if group is None else _difference(group)
        rows.append({"section": key[0], "measure": key[1]} | row)
    return rows


def _difference(pairs: pd.DataFrame) -> Record:
    values, prompts = pairs.difference.to_numpy(), pairs.prompt.to_numpy()
    names = np.unique(prompts)
    units = [values[prompts == name].mean() for name in names] if len(names) > 1 else values
    row = stats.clustered_mean(values, prompts)._asdict() | {"prompts": len(names)}
    if np.ptp(units) == 0:  # nothing is known of how they spread
        row |= {"low": None, "high": None, "why": "all pairs alike"}
    tested = len(units) > 1 and np.any(units)
    return row | {"p": stats.paired_test(units, RESAMPLES) if tested else None}


def html(content: Record) -> str:
    """Render a sweep's content as one page that needs no script and no network."""
    from markupsafe import Markup

    styles = Markup((TEMPLATES / "report" / "report.css").read_text("utf-8"))
    return fill_template(
        "sweep.html.j2",
        **content,
        figures=_figures(content["runs"]),
        groups=_groups(content["comparisons"]),
        ranges=_ranges,
        number=partial(format_number, digits=3),
        styles=styles,
    )


def _figures(rows: Sequence[Record]) -> dict[str, list[tuple[Record, Record]]]:
    """Return each key figure's (run, estimate) of the runs that have it."""
    names = dict.fromkeys(name for row in rows for name in row["key_figures"])
    return {
        name: [(r, r["key_figures"][name]) for r in rows if name in r["key_figures"]]
        for name in names
    }


def _groups(comparisons: Sequence[Record]) -> list[tuple[str, list[Record]]]:
    """Return (heading, rows) of each pair of models at the same settings."""
    groups: dict[str, list[Record]] = {}
    for row in comparisons:
        at = f", at {row['settings']}" if row["settings"] else ""
        groups.setdefault(f"{row['first']} less {row['second']}{at}", []).append(row)
    return list(groups.items())


def _ranges(estimates: Sequence[Record]) -> list[list[float] | None]:
    """Return (low, value, high) of each on a common scale of 0 to 100; None without an interval."""
    ends: list[Any] = [[e.get(k) for k in ("low", "value", "high")] for e in estimates]
    whole = [e if all(isinstance(v, int | float) for v in e) else None for e in ends]
    known = [v for e in whole if e for v in e]
    low, span = (min(known), max(known) - min(known) or 1) if known else (0, 1)
    return [e and [round(4 + 92 * (v - low) / span, 1) for v in e] for e in whole]
