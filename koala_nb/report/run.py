"""Run a notebook as a report: strict parameters, a status file, one HTML page that stands alone.

Also `refresh`, which executes the committed notebooks in place.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partialmethod
from importlib import import_module
from math import inf
from pathlib import Path
from typing import IO, Any, TextIO

from koala_nb.core import files
from koala_nb.core.errors import nearest, require, unknown_name
from koala_nb.core.files import Record, read_json
from koala_nb.models.session import check_model, check_parameters
from koala_nb.report.page import render_page

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = ROOT / "notebooks"
Value = str | int | float | bool  # of a notebook's parameter
Values = dict[str, Value]
TYPES: dict[str, type] = {"str": str, "int": int, "float": float, "bool": bool}
CHOICES = {  # a parameter that names one of what a module lists
    "reader": ("koala_nb.scorers.ocr", "READERS"),
    "feature": ("koala_nb.distillation.losses", "FEATURES"),
}
RUN_FOLDER = "KOALA_NB_RUN_FOLDER"  # how the notebook's kernel learns where its run stands
KERNEL_ARGUMENTS = ["--IPKernelApp.log_level=40"]  # else a notice on its transport at each start
STATUS, UNFINISHED = "status.json", "unfinished"  # in a run's folder; what is not done is there
WIDGET = "application/vnd.jupyter.widget-view+json"
METADATA = {  # of a committed notebook
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
QUIET = {
    "TRANSFORMERS_VERBOSITY": "error",
    "DIFFUSERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "PYDEVD_DISABLE_FILE_VALIDATION": "1",
}


class ReportFailed(RuntimeError):
    """The notebook stopped at a cell, or its kernel died."""


def find(notebook: str | Path) -> Path:
    """Find a notebook by path, by name, or by the start of its name ("11").

    ValueError, with the nearest name, where there is none.
    """
    path = files.checked_path(notebook, "Give a notebook's path, name or number")
    if path.suffix == ".ipynb" and path.is_file():
        return path
    name = path.name.removesuffix(".ipynb")
    known = [p.stem for p in _notebooks()]
    matches = [k for k in known if k == name] or [k for k in known if k.startswith(f"{name}_")]
    if len(matches) == 1:
        return NOTEBOOKS / f"{matches[0]}.ipynb"
    raise ValueError(f"No notebook {name!r} in {NOTEBOOKS}.{_known(name, known)}")


def _notebooks() -> list[Path]:
    paths = sorted(NOTEBOOKS.glob("*.ipynb"))
    if not paths:
        raise ValueError(
            f"There are no notebooks in {NOTEBOOKS}: they come with a checkout of the project: "
            "install that by `pip install -e .`, or give a notebook's path."
        )
    return paths


def parameters_of(path: Path) -> dict[str, tuple[type, Value]]:
    """Read a notebook's parameters: name -> (type, default).

    From the cell tagged `parameters`. ValueError for a file that is no notebook, or where a
    parameter is not `name: type = value` with a type of str, int, float or bool.
    """
    nbformat = require("nbformat", "notebooks")

    try:
        cells = nbformat.read(path, as_version=4).cells
    except OSError:
        raise
    except Exception as error:  # nbformat has errors of its own, and plain TypeErrors
        first = f"{error}.".splitlines()[0]
        raise ValueError(f"{path} is not a notebook ({first[:200]}): restore it.") from None
    tagged = [c.source for c in cells if "parameters" in c.metadata.get("tags", ())]
    try:
        lines = ast.parse(tagged[0]).body if tagged else []
    except SyntaxError as bad:
        raise ValueError(f"{path.name}, parameters cell, line {bad.lineno}: {bad.msg}.") from None
    return dict(_parameter(path, line) for line in lines)


def _parameter(path: Path, line: ast.stmt) -> tuple[str, tuple[type, Value]]:
    if isinstance(line, ast.AnnAssign) and line.value is not None:
        declared = TYPES.get(ast.unparse(line.annotation))
        value: Value | None = None
        with suppress(ValueError):
            value = ast.literal_eval(line.value)
        if value is not None and type(value) is declared:
            return ast.unparse(line.target), (declared, value)
    raise ValueError(
        f"{path.name}, parameters cell: {ast.unparse(line)!r} is not typed by "
        f"{', '.join(TYPES)}: write it as `name: int = 0`."
    )


def check(path: Path, given: Mapping[str, Value], *, text: bool = False) -> Values:
    """Check parameters against a notebook's and return all of them, defaults included.

    `text=True` reads the values from command-line text. ValueError for an unknown name (with the
    nearest), a value of another type or a model that the catalogue lacks.
    """
    known = parameters_of(path)
    values = {name: default for name, (_, default) in known.items()}
    for name, value in given.items():
        if name not in known:
            message = f"{path.stem} has no parameter {files.short(name)}."
            raise ValueError(message + _known(name, known))
        declared, default = known[name]
        value = _from_text(str(value), declared) if text else value
        if declared is float and type(value) is int:
            value = float(value)
        if type(value) is not declared or value != value or value in (inf, -inf):
            raise ValueError(
                f"{path.stem}: parameter {name!r} is {files.short(given[name])}: "
                f"give a value of type {declared.__name__}, such as {default!r}."
            )
        values[name] = value
    if isinstance(model := values.get("model"), str):  # what is wrong need not start a kernel
        check_model(model)
    if path.absolute().parent == NOTEBOOKS:
        check_parameters(values)
        for name in CHOICES.keys() & values.keys():
            module, choices = CHOICES[name]
            if values[name] not in (listed := getattr(import_module(module), choices)):
                raise unknown_name(name, values[name], listed)
    return values


def _from_text(value: str, declared: type) -> Value:
    if declared is bool:
        return {"true": True, "false": False}.get(value.lower(), value)
    try:
        return declared(value)
    except ValueError:
        return value


def _known(name: str, known: Iterable[str]) -> str:
    return f"{nearest(name, known)} Known: {', '.join(known)}."


def run_report(
    notebook: str | Path,
    parameters: Mapping[str, Value] | None = None,
    *,
    out: str | Path = "reports",
    text: bool = False,
    keep_done: bool = False,
    **values: Value,
) -> Path:
    """Execute a notebook with parameters and write `<out>/<run>/index.html`; returns its path.

    `<run>` is the notebook, the model and a hash of all parameters: the same call finds the same
    folder, takes up what an interrupted run left there, and starts a finished one afresh, or leaves
    it alone with `keep_done`. A run works in `<run>/unfinished`; only when it is done does it take
    the place of the one before it, and files that no run wrote stay. Beside the page stand the
    executed notebook, `results.json` and `status.json`. ValueError before anything runs for a bad
    name or parameter, or where another process runs it; ReportFailed where a cell fails or the
    kernel dies.
    """
    path = find(notebook)
    if not isinstance(parameters or {}, Mapping):
        raise ValueError(f"parameters are {files.short(parameters)}: give values by their names.")
    values = check(path, {**(parameters or {}), **values}, text=text)
    folder = folder_of(path, values, out)
    with files.locked(folder):
        before = _take_up(folder)
        if before.get("state") != "done" or not keep_done:
            _run(path, folder, values, before.get("files", []))
    return folder / "index.html"


def _take_up(folder: Path) -> Record:
    """Finish what a killed process began to publish; returns the state of the run that is there."""
    state = read_json(folder / STATUS) if (folder / STATUS).is_file() else {}
    if state.get("state") == "publishing":
        _publish(folder, state)
    return state


def _run(path: Path, folder: Path, values: Values, before: list[str]) -> None:
    """Run a notebook in a folder that is locked; `before`: files of the finished run in it."""
    build = folder / UNFINISHED
    files.refuse_links(build)
    files.make_folder(build)
    files.clean_temporary(build)  # of a run that was killed
    for name in ("index.html", "results.json"):
        (build / name).unlink(missing_ok=True)
    state: Record = {
        "state": "running",
        "notebook": path.stem,
        "parameters": values,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "files": before,
    }
    _write_status(folder, state)
    begin = time.monotonic()
    try:
        _execute(path, build, values)
        files.write_atomic(build / "index.html", render_page(build / path.name).encode())
    except BaseException as error:
        state |= {"state": "failed"} | _explain(error, injected=bool(values))
        message = f"{path.stem} failed at {state['cell']}: {state['error']} (see {build})"
        raise (ReportFailed(message) if isinstance(error, Exception) else error) from error
    else:
        written = {p.relative_to(build).as_posix() for p in build.rglob("*") if not p.is_dir()}
        outdated = [name for name in before if name not in written]
        state |= {"state": "publishing", "files": sorted(written), "outdated": outdated}
    finally:
        state["seconds"] = round(time.monotonic() - begin, 1)
        _write_status(folder, state)
    _publish(folder, state)


def _write_status(folder: Path, state: Record) -> None:
    given = places_of(state["parameters"])
    files.write_json(folder / STATUS, json.loads(hide_places(json.dumps(state), folder, *given)))


def places_of(values: Mapping[str, Value]) -> list[str]:
    """Return the absolute paths among a notebook's parameters."""
    return [v for v in values.values() if isinstance(v, str) and os.path.isabs(v)]


def hide_places(text: str, *places: str | Path) -> str:
    """Return JSON's text in which these paths, and those of this user, are their last names."""
    home = str(Path.home())
    known = {home, *map(str, (*places, ROOT, Path.cwd(), sys.prefix))} - {os.sep}
    for place in sorted(known, key=len, reverse=True):
        if name := "~" if place == home else Path(place).name:
            quoted = re.escape(json.dumps(place)[1:-1])
            text = re.sub(rf"(?<![\w.~+-]){quoted}(?![\w-])", name, text)
    return text


def _publish(folder: Path, state: Record) -> None:
    """Put a finished run in the place of the one before it; called again, it goes on."""
    for name in state["files"]:
        if (folder / UNFINISHED / name).exists():
            target = _inside(folder, name)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(folder / UNFINISHED / name, target)
    for name in state.pop("outdated"):
        file = _inside(folder, name)
        file.unlink(missing_ok=True)
        with suppress(OSError):  # it is not empty
            os.removedirs(file.parent)
    shutil.rmtree(folder / UNFINISHED, ignore_errors=True)
    state |= {"state": "done", "page": "index.html"}
    _write_status(folder, state)


def _inside(folder: Path, name: str) -> Path:
    """Return a file of a run's folder. ValueError for one that lies elsewhere."""
    if not (folder / name).parent.resolve().is_relative_to(folder):
        raise ValueError(f"{folder / STATUS} names {files.short(name)}, outside: delete it.")
    return folder / name


def folder_of(path: Path, values: Mapping[str, Value], out: str | Path = "reports") -> Path:
    """Return the folder of a run: the notebook, the model and a hash of all that makes the run.

    That is its parameters, the notebook's cells and the versions of the libraries.
    """
    import nbformat

    cells = [cell.source for cell in nbformat.read(path, as_version=4).cells]
    made = [values, cells, files.versions()]
    digest = hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()[:8]
    model = str(values.get("model", ""))
    model = Path(model).name if os.path.isdir(model) else model  # not where it lies
    model = "".join(c if c.isalnum() or c in ".-" else "-" for c in model)
    name = "-".join(part for part in (path.stem, model.strip("-.")[-60:], digest) if part)
    return (Path(out) / name).resolve()


def _execute(path: Path, folder: Path, values: Mapping[str, Value]) -> None:
    import papermill
    from nbclient.exceptions import DeadKernelError

    before = dict(os.environ)  # the kernel inherits what is set here
    os.environ |= QUIET | before | {RUN_FOLDER: str(folder)}
    papermill.engines.papermill_engines.register("koala-nb", _engine())
    errors = tempfile.TemporaryFile("w+", errors="replace")
    try:
        papermill.execute_notebook(
            str(path),
            str(folder / path.name),
            parameters=dict(values),
            engine_name="koala-nb",
            kernel_name="python3",
            language="python",
            progress_bar={"desc": path.stem, "unit": "cell", "file": _Listener(sys.stderr)},
            extra_arguments=KERNEL_ARGUMENTS,
            kernel_manager_class=_kernel_manager(errors),
        )
    except DeadKernelError:
        errors.seek(0)
        sys.stderr.write(errors.read()[-2000:])
        raise
    finally:
        errors.close()
        if (executed := folder / path.name).is_file():
            text = executed.read_text("utf-8")
            text = hide_places(text, folder, path.absolute().parent, *places_of(values))
            files.write_atomic(executed, text.encode())
        for name in set(os.environ) - set(before):
            del os.environ[name]
        os.environ |= before


class _Listener:
    """A stream that may close while a run goes on: tqdm would keep its lock, and wait for it."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> None:
        with suppress(OSError, ValueError):
            self.stream.write(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            self.stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def _kernel_manager(errors: IO[str]) -> type:
    """jupyter_client's; what a kernel prints as it closes its sockets goes to a file."""
    from jupyter_client.manager import AsyncKernelManager

    class Manager(AsyncKernelManager):
        start_kernel = partialmethod(AsyncKernelManager.start_kernel, stderr=errors)

    return Manager


def _engine() -> type:
    from papermill.engines import NBClientEngine

    class Engine(NBClientEngine):
        """papermill's, whose progress bar also counts the images that a long cell has drawn."""

        @classmethod
        def execute_managed_notebook(cls, nb_man: Any, kernel_name: str, **settings: Any) -> Any:
            folder = Path(os.environ[RUN_FOLDER])
            with _every(1.0, lambda: nb_man.pbar.set_postfix_str(images_drawn(folder))):
                return super().execute_managed_notebook(nb_man, kernel_name, **settings)

    return Engine


def images_drawn(folder: Path) -> str:
    """Return how many images the newest generation in a run's folder has drawn, of how many."""
    runs = sorted(folder.glob("**/settings.json"), key=lambda file: file.stat().st_mtime)
    if not runs:
        return ""
    settings = read_json(runs[-1])
    planned = sum(len(seeds) for seeds in settings["seeds"])
    done = sum(1 for _ in (runs[-1].parent / "images").glob("**/*.png"))
    return f"{runs[-1].parent.name}: {done} of {planned} images"


@contextmanager
def _every(seconds: float, action: Callable[[], object]) -> Iterator[None]:
    """Call an action now and then while the block runs; what it cannot do is left for later."""
    ended = threading.Event()

    def repeat() -> None:
        while not ended.wait(seconds):
            with suppress(OSError, ValueError, KeyError, TypeError):
                action()

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _explain(error: BaseException, injected: bool) -> dict[str, str]:
    from nbclient.exceptions import DeadKernelError

    # The executed notebook is no witness: after the death of a kernel it says that all is well.
    cell = getattr(error, "cell_index", None)
    if cell is not None:
        message = f"{getattr(error, 'ename', '')}: {getattr(error, 'evalue', '')}"
        number = cell + 1 - injected  # as in the notebook itself, without papermill's own cell
        return {"cell": f"cell {number}", "error": message}
    if isinstance(error, DeadKernelError):
        return {"cell": "an unknown cell", "error": "The kernel died (out of memory, or killed)."}
    return {"cell": "no cell of its own", "error": f"{type(error).__name__}: {error}"}


def status(folder: str | Path) -> Record:
    """Read what became of a run: its `status.json` with the state `running`, `done` or `failed`.

    `absent` where there is no run; a run whose process is gone, so that nobody has the folder's
    lock, reads as `failed`. OSError for a damaged file.
    """
    folder = Path(folder)
    if not (folder / STATUS).is_file():
        return {"state": "absent"}
    before = files.is_locked(folder)
    state = read_json(folder / STATUS)
    if state.get("state") not in ("done", "failed"):
        alive = "state" in state and (before or files.is_locked(folder))
        killed = {"state": "failed", "cell": "an unknown cell", "error": "The run was killed."}
        state |= {"state": "running"} if alive else killed
    return state


def in_report() -> bool:
    """Whether this kernel was started by `run`."""
    return RUN_FOLDER in os.environ


def run_folder() -> Path:
    """Say where a notebook puts its files: the folder of its run, or a fresh temporary one."""
    return Path(os.environ.get(RUN_FOLDER) or tempfile.mkdtemp(prefix="koala-nb-"))


def refresh(notebooks: Iterable[str] = ()) -> None:
    """Execute notebooks (default: all) and write them back with their outputs.

    Neither times, versions of Python nor widget states are recorded. A notebook that fails raises
    nbclient's CellExecutionError and stays as it was. ValueError for an unknown name, or for none.
    """
    from tqdm import tqdm

    paths = [find(n) for n in notebooks] or _notebooks()
    for path in (bar := tqdm(paths)):
        bar.set_description(path.stem)
        execute_in_place(path)


def execute_in_place(path: Path) -> None:
    """Execute one notebook in place; the file changes only when every cell has passed."""
    nbformat = require("nbformat", "notebooks")
    from nbclient import NotebookClient

    nb = nbformat.read(path, as_version=4)
    client = NotebookClient(
        nb,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,
        extra_arguments=KERNEL_ARGUMENTS,
        resources={"metadata": {"path": str(path.parent)}},
    )
    client.execute(env=QUIET | os.environ)
    nb.metadata = nbformat.from_dict(METADATA)
    for cell in nb.cells:
        for output in cell.get("outputs", ()):
            output.get("data", {}).pop(WIDGET, None)
    part = path.with_suffix(".part")
    nbformat.write(nb, part)
    os.replace(part, path)
