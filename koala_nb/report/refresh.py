"""Execute the committed notebooks in place, so that the same code gives the same bytes."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from koala_nb.report import run

WIDGET = "application/vnd.jupyter.widget-view+json"
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def refresh(notebooks: Iterable[str] = ()) -> None:
    """Execute notebooks (default: all) and write them back with their outputs.

    Neither times, versions of Python nor widget states are recorded. A notebook that fails raises
    nbclient's CellExecutionError and stays as it was. ValueError for an unknown name.
    """
    from tqdm import tqdm

    paths = [run.find(n) for n in notebooks] or sorted(run.NOTEBOOKS.glob("*.ipynb"))
    for path in (bar := tqdm(paths)):
        bar.set_description(path.stem)
        execute(path)


def execute(path: Path) -> None:
    """Execute one notebook in place; the file changes only when every cell has passed."""
    import nbformat
    from nbclient import NotebookClient

    nb: Any = nbformat.read(path, as_version=4)
    client = NotebookClient(
        nb,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,
        extra_arguments=run.KERNEL_ARGUMENTS,
        resources={"metadata": {"path": str(path.parent)}},
    )
    client.execute(env=run.QUIET | os.environ)
    nb.metadata = nbformat.from_dict(METADATA)
    for cell in nb.cells:
        for output in cell.get("outputs", ()):
            output.get("data", {}).pop(WIDGET, None)
    part = path.with_suffix(".part")
    nbformat.write(nb, part)
    os.replace(part, path)
