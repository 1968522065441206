"""Sweeps: a notebook over a grid of parameters, failures isolated, resumed where it stopped."""

from __future__ import annotations

import hashlib
import json
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from itertools import product
from pathlib import Path
from typing import Any

from tqdm import tqdm

from koala_nb.core import files
from koala_nb.core.files import short
from koala_nb.report import run as reports
from koala_nb.report import sweep_page
from koala_nb.report.status import is_here

KEYS = ("parameters", "grid", "runs", "workers")
ENDED = ("done", "failed")


def run(
    notebook: str | Path,
    file: str | Path,
    given: Mapping[str, Any] | None = None,
    *,
    out: str | Path = "reports",
    client: Any = None,
) -> tuple[Path, int]:
    """Run a notebook once for each combination of a YAML file; returns (index page, failed runs).

    The file holds `parameters` (name: value, the same in all runs), `grid` (name: [values], all
    combinations), `runs` (a list of combinations of their own) and `workers` (runs at a time,
    default 1). `given` adds to `parameters`. Each run is a process of its own, or one on the
    workers of `client` (`dask.distributed.Client`; they must see the folder `out`). Runs that are
    done are kept, so the same call goes on after any interruption. The index is
    `<out>/<file's name>-<hash>/index.html`, with `sweep.json` beside it, written after every run.
    ValueError before anything runs for what the file or a combination of it has wrong.
    """
    path, file, out = reports.find(notebook).resolve(), Path(file), Path(out).resolve()
    combinations, workers = read(path, file, given or {})
    folders = [reports.folder_of(path, values, out) for values in combinations]
    index = out / _name(path, file, combinations)
    files.make_folder(index)
    states = [reports.status(folder) for folder in folders]
    sweep = sweep_page.Sweep(index, path, combinations, folders, states)
    todo = [i for i, state in enumerate(states) if state["state"] != "done"]
    for i in todo:
        states[i] = {"state": "waiting"}
    page = sweep.write()
    pool = client.get_executor(pure=False) if client else ThreadPoolExecutor(workers)
    futures = {pool.submit(_run_one, path, combinations[i], folders[i]): i for i in todo}
    try:
        for future in tqdm(as_completed(futures), "runs", len(todo)):
            states[futures[future]] = _outcome(future)
            sweep.write()
    finally:
        for future in futures:  # what has not begun, where this was interrupted
            future.cancel()
        pool.shutdown()
    return page, sum(state["state"] == "failed" for state in states)


def _outcome(future: Future) -> dict[str, Any]:
    try:
        return future.result()
    except Exception as error:  # a worker died too often, or cannot start a process
        return _failed(f"{type(error).__name__}: {error}")


def _failed(error: str) -> dict[str, Any]:
    return {"state": "failed", "cell": "no cell of its own", "error": error}


def _run_one(path: Path, values: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Run one combination as `koala-nb report` in a process of its own; returns its status."""
    if reports.folder_of(path, values, folder.parent).name != folder.name:
        return _failed(
            f"{socket.gethostname()} has another notebook or other versions of libraries than the "
            "client: install the same on all machines."
        )
    _wait(folder)
    if (state := reports.status(folder))["state"] == "done":
        return state
    command = [sys.executable, "-m", "koala_nb", "report", str(path), "--out", str(folder.parent)]
    command.append("--keep-done")  # by another machine since
    for name, value in values.items():
        command += ["-p", f"{name}={value}"]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
    state = reports.status(folder)
    if done.returncode == 2 and state["state"] in ("running", "done"):  # another call has it
        _wait(folder)
        if (state := reports.status(folder))["state"] == "running":
            return _failed(f"It is under way on {state.get('host')}: call again when it has ended.")
        return state
    if done.returncode == 2 or state["state"] not in ENDED:  # it never came to the notebook
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        return _failed(said[-1].removeprefix("koala-nb: "))
    return state


def _wait(folder: Path, seconds: float = 1.0) -> None:
    # The process of a run may outlive the sweep, or the worker, that was killed over it.
    while (state := reports.status(folder))["state"] == "running" and is_here(state):
        time.sleep(seconds)


def read(path: Path, file: Path, given: Mapping[str, Any]) -> tuple[list[dict[str, Any]], int]:
    """Read a sweep's file; returns the parameters of all its runs, defaults included, and workers.

    ValueError, naming the file and the combination, for what is wrong or there twice.
    """
    content = _content(file)
    given = {n: reports.check(path, {n: v}, text=isinstance(v, str))[n] for n, v in given.items()}
    workers = content.get("workers", 1)
    if type(workers) is not int or workers < 1:
        raise ValueError(f"{file}: workers is {short(workers)}: give a whole number, 1 or more.")
    grid, fixed = content.get("grid", {}), content.get("parameters", {}) | given
    for name in grid:
        if not isinstance(grid[name], list) or not grid[name]:
            raise ValueError(f"{file}: grid, {name}: give a list of values, such as [1, 2].")
        if name in fixed:
            raise ValueError(f"{file}: {name} has one value for all runs and a list in the grid.")
    chosen = [dict(zip(grid, values)) for values in product(*grid.values())] if grid else []
    chosen += content.get("runs", [])
    if not chosen:
        raise ValueError(f"{file} asks for no run: give a `grid` or a list of `runs`.")
    found: list[dict[str, Any]] = []
    for number, combination in enumerate(chosen, start=1):
        said = ", ".join(f"{name} {short(value)}" for name, value in combination.items())
        where = f"{file}, run {number} ({said})"
        if twice := given.keys() & combination.keys():
            raise ValueError(f"{where}: {', '.join(twice)} is set with -p for all runs, too.")
        try:
            values = reports.check(path, fixed | combination)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        if values in found:
            raise ValueError(f"{where} is the same as run {found.index(values) + 1}: remove one.")
        found.append(values)
    return found, workers


def _content(file: Path) -> dict[str, Any]:
    import yaml

    if not file.is_file():
        raise ValueError(f"No sweep file {file}: give the path of a YAML file with a `grid`.")
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}," if mark else ""
        problem = str(getattr(error, "problem", None) or error).splitlines()[0]
        raise ValueError(f"{file}{line} is not YAML: {problem}.") from None
    kinds: dict[str, type] = {"parameters": dict, "grid": dict, "runs": list}
    if not isinstance(content, dict) or (unknown := content.keys() - set(KEYS)):
        extra = f", not {', '.join(map(short, unknown))}" if isinstance(content, dict) else ""
        raise ValueError(f"{file}: give {', '.join(KEYS[:-1])} or {KEYS[-1]}{extra}.")
    for name, kind in kinds.items():
        part = content.get(name, kind())
        rows = part if isinstance(part, list) else [part]
        each = all(isinstance(c, dict) and all(isinstance(n, str) for n in c) for c in rows)
        if not isinstance(part, kind) or not each:
            shape = "name: value" if kind is dict else "- {name: value}"
            raise ValueError(f"{file}: {name} is {short(part)}: write `{shape}` lines under it.")
    return content


def _name(path: Path, file: Path, combinations: Sequence[Mapping[str, Any]]) -> str:
    content = json.dumps([path.stem, combinations], sort_keys=True)
    plain = "".join(c if c.isalnum() or c in ".-_" else "-" for c in file.stem).strip("-.")
    return f"{plain or 'sweep'}-{hashlib.sha256(content.encode()).hexdigest()[:8]}"
