"""Run a notebook as a report: strict parameters, a status file, one HTML page that stands alone.

Also `refresh`, which executes the committed notebooks in place.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import shutil
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partialmethod
from math import inf
from pathlib import Path
from typing import IO, Any, TextIO

from koala_nb.core import catalog, files
from koala_nb.core.errors import nearest
from koala_nb.core.files import Record, read_json
from koala_nb.report.page import render_page

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = ROOT / "notebooks"
Value = str | int | float | bool  # of a notebook's parameter
Values = dict[str, Value]
TYPES: dict[str, type] = {"str": str, "int": int, "float": float, "bool": bool}
RUN_FOLDER = "KOALA_NB_RUN_FOLDER"  # how the notebook's kernel learns where its run stands
KERNEL_ARGUMENTS = ["--IPKernelApp.log_level=40"]  # else a notice on its transport at each start
STATES = ("running", "done", "failed")
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
    path = Path(notebook)
    if path.suffix == ".ipynb" and path.is_file():
        return path
    name = path.name.removesuffix(".ipynb")
    known = sorted(p.stem for p in NOTEBOOKS.glob("*.ipynb"))
    matches = [k for k in known if k == name] or [k for k in known if k.startswith(f"{name}_")]
    if len(matches) == 1:
        return NOTEBOOKS / f"{matches[0]}.ipynb"
    if not known:
        raise ValueError(f"No notebooks in {NOTEBOOKS}: install from a clone: pip install -e .")
    raise ValueError(f"No notebook {name!r} in {NOTEBOOKS}.{_known(name, known)}")


def parameters_of(path: Path) -> dict[str, tuple[type, Value]]:
    """Read a notebook's parameters: name -> (type, default).

    From the cell tagged `parameters`. ValueError for a file that is no notebook, or where a
    parameter is not `name: type = value` with a type of str, int, float or bool.
    """
    import nbformat

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
    except SyntaxError as error:
        raise ValueError(
            f"{path.name}, parameters cell, line {error.lineno}: {error.msg}."
        ) from None
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
    model = values.get("model")
    # A folder or a hub id is for the notebook to find; a wrong name need not start a kernel.
    if isinstance(model, str) and not {"/", "\\"} & set(model) and not os.path.exists(model):
        catalog.find(model)
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
    it alone with `keep_done`. Beside the page stand the executed notebook, `results.json` and
    `status.json`. ValueError before anything runs for a bad name or parameter; ReportFailed where
    a cell fails or the kernel dies.
    """
    path = find(notebook)
    values = check(path, {**(parameters or {}), **values}, text=text)
    folder = folder_of(path, values, out)
    if not _open_folder(folder, keep_done):
        return folder / "index.html"
    state: Record = {
        "state": "running",
        "notebook": path.stem,
        "parameters": values,
        **process_identity(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    files.write_json(folder / "status.json", state)
    begin = time.monotonic()
    try:
        _execute(path, folder, values)
        page = folder / "index.html"
        files.write_atomic(page, render_page(folder / path.name).encode())
    except BaseException as error:
        state |= {"state": "failed"} | _explain(error, injected=bool(values))
        message = f"{path.stem} failed at {state['cell']}: {state['error']} (see {folder})"
        raise (ReportFailed(message) if isinstance(error, Exception) else error) from error
    else:
        state |= {"state": "done", "page": page.name}
    finally:
        state["seconds"] = round(time.monotonic() - begin, 1)
        files.write_json(folder / "status.json", state)
    return page


def folder_of(path: Path, values: Mapping[str, Value], out: str | Path = "reports") -> Path:
    """Return the folder of a run: the notebook, the model and a hash of all that makes the run.

    That is its parameters, the notebook's cells and the versions of the libraries.
    """
    import nbformat

    cells = [cell.source for cell in nbformat.read(path, as_version=4).cells]
    made = [values, cells, files.versions()]
    digest = hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()[:8]
    model = "".join(c if c.isalnum() or c in ".-" else "-" for c in str(values.get("model", "")))
    name = "-".join(part for part in (path.stem, model.strip("-.")[-60:], digest) if part)
    return (Path(out) / name).resolve()


def _open_folder(folder: Path, keep_done: bool) -> bool:
    """Prepare a run's folder; False where a finished run stays in it."""
    before = status(folder)["state"]
    if before == "running":
        raise ValueError(f"A run is under way in {folder}: wait, or delete the folder if not.")
    if before == "done":
        if keep_done:
            return False
        shutil.rmtree(folder)
    files.make_folder(folder)
    files.clean_temporary(folder)  # of a run that was killed
    for name in ("index.html", "results.json"):
        (folder / name).unlink(missing_ok=True)
    return True


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
    """jupyter_client's, whose kernel prints into a file what no cell of the notebook printed.

    A kernel that is told to end may close its sockets before its last message, and says so.
    """
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


def process_identity() -> Record:
    """What tells this process from all others: number, start in seconds, and machine."""
    import psutil

    started = psutil.Process().create_time()
    return {"pid": os.getpid(), "process_start": started, "host": socket.gethostname()}


def status(folder: str | Path) -> Record:
    """Read what became of a run: its `status.json` with the state `running`, `done` or `failed`.

    `absent` where there is no run; a run that was killed, so that its process on this machine is
    gone, reads as `failed`. OSError for a damaged file.
    """
    file = Path(folder) / "status.json"
    if not file.is_file():
        return {"state": "absent"}
    state = read_json(file)
    if state.get("state") not in STATES or state["state"] == "running" and not _is_alive(state):
        state |= {"state": "failed", "cell": "an unknown cell", "error": "The run was killed."}
    return state


def _is_alive(state: Record) -> bool:
    """Whether the process that began a run is there: a later one may have its number."""
    import psutil

    try:
        if state["host"] != socket.gethostname():
            return True  # nobody here can tell
        process = psutil.Process(state["pid"])
        is_same = abs(process.create_time() - state["process_start"]) < 2
        return is_same and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.Error, KeyError, TypeError, ValueError):
        return False


def in_report() -> bool:
    """Whether this kernel was started by `run`."""
    return RUN_FOLDER in os.environ


def run_folder() -> Path:
    """Say where a notebook puts its files: the folder of its run, or a fresh temporary one."""
    return Path(os.environ.get(RUN_FOLDER) or tempfile.mkdtemp(prefix="koala-nb-"))


def refresh(notebooks: Iterable[str] = ()) -> None:
    """Execute notebooks (default: all) and write them back with their outputs.

    Neither times, versions of Python nor widget states are recorded. A notebook that fails raises
    nbclient's CellExecutionError and stays as it was. ValueError for an unknown name.
    """
    from tqdm import tqdm

    paths = [find(n) for n in notebooks] or sorted(NOTEBOOKS.glob("*.ipynb"))
    for path in (bar := tqdm(paths)):
        bar.set_description(path.stem)
        execute_in_place(path)


def execute_in_place(path: Path) -> None:
    """Execute one notebook in place; the file changes only when every cell has passed."""
    import nbformat
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
