"""A run of many images: cut into chunks, their records in Parquet; and any run's folder read back.

<run>/settings.json                  what determines the images; prompts and seeds
<run>/images/00000/*.png             1,000 images a sub-folder, in runs of more than 5,000
<run>/records/00000.parquet          one a chunk, written when the chunk's images are there
<run>/records.jsonl                  instead of records/ where one process drew the run
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from koala_nb.core import files as provenance
from koala_nb.generation import run_folder
from koala_nb.generation.plan import IMAGES, Plan
from koala_nb.generation.run_folder import Run
from koala_nb.models.hub import read_json

if TYPE_CHECKING:
    import pandas as pd

FOLDER = "records"
CHUNK = 1000  # images at most, so that a million makes about a thousand files
CHUNKS = 256  # at least, where there are so many batches: enough for workers of unequal speed
INSTALL = 'run `pip install -e ".[cluster]"`'


def split(plan: Plan) -> list[Plan]:
    """Cut a plan into chunks of whole batches, by its length and batch size alone."""
    size, total = plan.batch_size, len(plan.requests)
    size *= max(1, min(CHUNK, total // CHUNKS) // size)
    return [replace(plan, requests=plan.requests[i : i + size]) for i in range(0, total, size)]


def unfinished(folder: Path, chunks: Sequence[Plan]) -> list[int]:
    """Numbers of the chunks whose records, or any of whose images, a run's folder lacks.

    Looks for names only; remove a chunk's Parquet file to have its images read and checked.
    """
    here: set[str] = set()
    for place, _, names in os.walk(folder / IMAGES):
        inside = Path(place).relative_to(folder).as_posix()
        here.update(f"{inside}/{name}" for name in names)

    def is_done(number: int, chunk: Plan) -> bool:
        return _file(folder, number).is_file() and all(r.file in here for r in chunk.requests)

    return [number for number, chunk in enumerate(chunks) if not is_done(number, chunk)]


def write(folder: Path, number: int, records: Sequence[dict[str, Any]]) -> Path:
    """Write the records of one chunk, whole or not at all; a key that one lacks is null there."""
    pyarrow = _pyarrow()
    keys = dict.fromkeys(key for record in records for key in record)
    table = pyarrow.table({key: [record.get(key) for record in records] for key in keys})
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(table, buffer)
    (folder / FOLDER).mkdir(exist_ok=True)
    if hasattr(os, "sync"):  # the images first: from now on the chunk counts as drawn
        os.sync()
    return provenance.write_atomic(_file(folder, number), buffer.getvalue(), sync=True)


def read(folder: str | Path, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """Read the records of a run's folder, one row an image in the order of the requests.

    `columns` names those that are wanted; from Parquet nothing else is then read. ValueError for a
    folder that holds no run, or fewer records than the run has images.
    """
    folder = Path(folder)
    if not (folder / run_folder.SETTINGS).is_file():
        raise ValueError(f"{folder} holds no run: give a folder that `generate` wrote.")
    total = sum(map(len, read_json(folder / run_folder.SETTINGS)["seeds"]))
    files = sorted((folder / FOLDER).glob("*.parquet"), key=lambda file: int(file.stem))
    lines = (
        folder / run_folder.RECORDS
    ).is_file()  # also where one process finished what many began
    table = _from_lines(folder, columns) if lines or not files else _from_parquet(files, columns)
    if len(table) != total:
        raise ValueError(
            f"{folder} holds records of {len(table)} of {total} images: call the same `generate` "
            "again to finish the run."
        )
    return table


def open_run(folder: str | Path) -> Run:
    """Open a finished run's folder, whether one process drew it or many. ValueError as `read`."""
    return run_folder.table_run(Path(folder), read(folder))


def _file(folder: Path, number: int) -> Path:
    return folder / FOLDER / f"{number:05d}.parquet"


def _from_lines(folder: Path, columns: Sequence[str] | None) -> pd.DataFrame:
    import pandas as pd

    file = folder / run_folder.RECORDS
    table = pd.DataFrame(provenance.read_lines(file) if file.is_file() else [])
    return table if columns is None or table.empty else table[[*columns]]


def _from_parquet(files: Sequence[Path], columns: Sequence[str] | None) -> pd.DataFrame:
    pyarrow = _pyarrow()
    tables = [pyarrow.parquet.ParquetFile(file).read(columns) for file in files]
    # A column that is empty in one chunk has a type in another.
    table = pyarrow.concat_tables(tables, promote_options="permissive").to_pandas()
    return table if columns is None else table[[*columns]]


def _pyarrow() -> Any:
    try:
        import pyarrow.parquet
    except ImportError:
        raise ValueError(f"Records in Parquet need pyarrow, which is missing: {INSTALL}.") from None
    return pyarrow
