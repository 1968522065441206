"""A run's images and records, in memory or in a folder that the same call resumes.

<run>/settings.json                  what determines the images; prompts and seeds
<run>/images/*.png                   in runs of more than 5,000: images/00000/*.png, 1,000 each
<run>/records.jsonl                  where one process drew the run
<run>/records/00000.parquet          where many did: one a chunk, written when its images are there
"""

import io
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from PIL import Image
from tqdm import tqdm

from koala_nb.core import files
from koala_nb.core.errors import first_line, require
from koala_nb.core.files import Record, read_json, short
from koala_nb.generation.plan import IMAGES, Plan, Request, slug

SETTINGS, RECORDS, CHUNK_RECORDS = "settings.json", "records.jsonl", "records"
IMAGE_FILE = rf"{IMAGES}/([0-9]+/)?[^/\\]+[.]png"
CHUNK = 1000  # images at most, so that a million makes about a thousand files
SCORED = 64  # images scored between two writes
CHUNKS = 256  # at least, where there are so many batches: enough for workers of unequal speed


class FolderImages(Sequence):
    """A folder's images, opened when asked for."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        path = self.paths[index]
        try:
            with Image.open(path) as image:
                image.load()
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise OSError(
                f"{path} cannot be read ({error}): call the same `generate` to draw it again."
            ) from None
        return image


class BatchTimes(NamedTuple):
    """The batches that a call drew, whole ones: images and seconds of each."""

    sizes: tuple[int, ...]
    times: tuple[float, ...]

    @property
    def images(self) -> int:
        """How many images were drawn, also those of a batch that were there."""
        return sum(self.sizes)


@dataclass
class Run:
    """Images and records of one `generate`, in the order of the requests.

    `records`: a row per image; `folder`: None in memory; `batches`: what this call drew, or None.
    """

    images: Sequence[Image.Image]
    records: pd.DataFrame
    folder: Path | None = None
    batches: BatchTimes | None = None

    @property
    def seconds_per_image(self) -> float | None:
        """The mean seconds of the images that this call drew; None where it drew none."""
        return sum(self.batches.times) / self.batches.images if self.batches else None

    def scores(
        self,
        kind: str,
        scorer: Record,
        score: Callable[[list[Image.Image], slice], list[Record]],
        progress: bool = False,
    ) -> list[Record]:
        """Return what `score` reads in all images, given with their places.

        A folder keeps it in `<kind>-<scorer>.jsonl`, from which the same call goes on. scorer: name
        and version, and whatever else is kept. ValueError where another one wrote that file.
        """
        name = next(iter(scorer.values()))
        file = self.folder / f"{kind}-{slug(name)}.jsonl" if self.folder else None
        rows: list[Record] = []
        if file and file.is_file():
            before, *rows = files.read_lines(file)
            if before != scorer:
                first, now = (" ".join(map(str, [*s.values()][:2])) for s in (before, scorer))
                raise ValueError(
                    f"{file} was written by {first}, and this is {now}: remove the file to score "
                    "the images again."
                )
        starts = range(len(rows), len(self.images), SCORED)
        for start in tqdm(starts, "scoring", disable=not (progress and sys.stderr.isatty())):
            places = slice(start, start + SCORED)
            rows += score(list(self.images[places]), places)
            if file:
                files.write_lines(file, [scorer, *rows])
        return rows


def folder_at(out: Any) -> Path:
    """The path of a run's folder. ValueError for what is no path."""
    return files.checked_path(out, "out must be the path of a folder")


@contextmanager
def open_folder(folder: Path, settings: Record, plan: Plan) -> Iterator[None]:
    """Prepare a run's folder, or take up one with the same settings, and hold its lock.

    ValueError naming the first setting that differs, for a folder of other things or in use;
    OSError where it cannot be written or its disk has too little space.
    """
    file, settings = folder / SETTINGS, {**settings, **plan.requested()}
    if file.is_file():
        _compare(folder, read_json(file), settings)
    else:
        _refuse_other_things(folder)
        check_space(folder, plan, len(plan.requests))
    with files.locked(folder):
        files.write_json(file, settings, exclusive=True)
        _compare(folder, read_json(file), settings)
        files.refuse_links(folder / IMAGES, folder / CHUNK_RECORDS, *folder.glob(f"{IMAGES}/*/"))
        files.make_folder(folder / IMAGES)
        clean(folder)
        yield


def batch_size_of(folder: Path) -> int | None:
    """The batch size of the run in a folder, which a call that names none goes on with."""
    file = folder / SETTINGS
    return read_json(file).get("batch_size") if file.is_file() else None


@contextmanager
def open_given(folder: Path, settings: Record) -> Iterator[None]:
    """Hold a folder for the records of images as given; ValueError where it is of others."""
    file = folder / SETTINGS
    if not file.is_file():
        _refuse_other_things(folder)
    with files.locked(folder):
        files.write_json(file, settings, exclusive=True)
        _compare(folder, {"parts": {}, **read_json(file)}, {"parts": {}, **settings})
        yield


def clean(folder: Path) -> None:
    """Remove what interrupted writing left in a run's folder."""
    for place in (folder, folder / CHUNK_RECORDS, folder / IMAGES, *folder.glob(f"{IMAGES}/*/")):
        files.clean_temporary(place)


def _refuse_other_things(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file: name a folder for the run.")
    inside = folder.iterdir() if folder.exists() else ()
    others = [p.name for p in inside if not p.name.endswith(".tmp") and p.name != files.LOCK]
    if others:
        raise ValueError(f"{folder} holds other files (such as {others[0]}) and no run.")


def _compare(folder: Path, before: Record, now: Record) -> None:
    if "parts" not in before:
        raise ValueError(
            f"{folder} holds a run whose settings do not say what its pipeline consisted of: read "
            "it with `open_run`, and draw into another folder."
        )
    if difference := first_difference(before, now):
        key, old, new = difference
        raise ValueError(
            f"{folder} holds a run with other settings: {key} was {short(old)}, now "
            f"{short(new)}. Use another folder, or the same settings to resume."
        )


def first_difference(before: Record, now: Record) -> tuple[str, object, object] | None:
    """Return where two settings differ first, in the order of `now`, and both values; or None."""
    for key in now | before:
        old, new = before.get(key), now.get(key)
        if old == new:
            continue
        if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
            at = next(i for i, pair in enumerate(zip(old, new)) if pair[0] != pair[1])
            return f"{key}[{at}]", old[at], new[at]
        if isinstance(old, list) and isinstance(new, list):
            return f"the number of {key}", len(old), len(new)
        if isinstance(old, dict) and isinstance(new, dict):
            inner, old, new = first_difference(old, new) or ("", old, new)
            return f"{key}.{inner}", old, new
        return key, old, new
    return None


def missing(folder: Path, requests: Sequence[Request], settings: Record) -> set[Request]:
    """Requests without a whole image of these settings; ValueError for a folder in its place."""
    blocked = next((r.file for r in requests if (folder / r.file).is_dir()), None)
    if blocked:
        raise ValueError(f"{folder / blocked} is a folder where an image belongs: remove it.")
    expected = _in_records(settings)
    return {r for r in requests if not files.is_whole_png(folder / r.file, expected | _facts(r))}


def _in_records(settings: Record) -> Record:
    """What an image's record repeats of its folder's settings; its device has a number, too."""
    from koala_nb.models.fingerprint import summary

    repeated = {key: value for key, value in settings.items() if key != "device"}
    return repeated | {"parts": summary(settings["parts"])}


def _facts(request: Request) -> Record:
    return {"prompt": request.prompt, "seed": request.seed}


def check_space(folder: Path, plan: Plan, images: int) -> None:
    """Raise OSError where the disk has not even one byte a pixel for so many images."""
    there = next(place for place in (folder, *folder.absolute().parents) if place.is_dir())
    least, free = images * plan.height * plan.width, shutil.disk_usage(there).free
    if least > free:
        raise OSError(
            f"{folder} is on a disk with {free / 1e6:.3g} MB free and {images} images need at "
            f"least {least / 1e6:.3g}: free some space, or write to another folder."
        )


def close_folder(
    folder: Path, requests: Sequence[Request], batches: BatchTimes | None = None
) -> Run:
    """Gather the images' own records into records.jsonl, in order, and return the run."""
    records = [files.read_record(folder / r.file) for r in requests]
    files.write_lines(folder / RECORDS, records)
    return folder_run(folder, records, batches)


def folder_run(
    folder: Path, records: list[Record] | pd.DataFrame, batches: BatchTimes | None = None
) -> Run:
    """A run from a finished folder and its records; ValueError for an image outside of it."""
    table = pd.DataFrame(records)
    if "file" not in table:
        raise ValueError(f"{folder}: its records name no file: call the same `generate` again.")
    if len(outside := table.file[~table.file.astype(str).str.fullmatch(IMAGE_FILE)]):
        raise ValueError(
            f"{folder}: a record names {short(outside.iloc[0])}, which is no image of this run: "
            "remove its records and call the same `generate` again."
        )
    return Run(FolderImages([folder / file for file in table.file]), table, folder, batches)


def open_run(folder: str | Path) -> Run:
    """Open the folder of a finished run, of one process or many; ValueError for another."""
    records = read_records(folder)
    return folder_run(Path(folder), records)


def read_records(folder: str | Path, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """Read the records of a run's folder, one row per image in the order of the requests.

    `columns`: those wanted, all that Parquet then reads. ValueError for no, or an unfinished, run.
    """
    folder = files.checked_path(folder, "A run is the path of its folder")
    if not (folder / SETTINGS).is_file():
        raise ValueError(f"{folder} holds no run: give a folder that `generate` wrote.")
    total = planned_images(folder)
    lines = folder / RECORDS  # there also where one process finished what many began
    parquet = sorted((folder / CHUNK_RECORDS).glob("*.parquet"), key=lambda file: int(file.stem))
    if parquet and not lines.is_file():
        tables = [_read_chunk(file, columns) for file in parquet]
        # A column that is empty in one chunk has a type in another.
        table = extra("pyarrow").concat_tables(tables, promote_options="permissive").to_pandas()
    else:
        table = pd.DataFrame(files.read_lines(lines) if lines.is_file() else [])
    if len(table) != total:
        raise ValueError(
            f"{folder} holds records of {len(table)} of {total} images: call the same `generate` "
            "again to finish the run."
        )
    return table if columns is None else table[[*columns]]


def planned_images(folder: Path) -> int:
    """Return a whole run's images. OSError: damaged settings; ValueError: images as given."""
    settings = read_json(folder / SETTINGS)
    if "source" in settings and not {"seeds", "batch_size"} & settings.keys():
        raise ValueError(
            f"{folder} holds only the records of images as given: call generate(load(the images' "
            "folder), prompts) again, which draws nothing."
        )
    try:
        return sum(map(len, settings["seeds"]))
    except (KeyError, TypeError):
        raise OSError(f"{folder / SETTINGS} does not say the seeds of a run: restore it.") from None


def _read_chunk(file: Path, columns: Sequence[str] | None = None) -> Any:
    parquet, pyarrow = extra("pyarrow.parquet"), extra("pyarrow")
    try:
        return parquet.ParquetFile(file).read(columns)
    except (OSError, pyarrow.ArrowException) as error:
        raise ValueError(
            f"{file} is damaged ({first_line(error)}): call the same `generate` again to write it "
            "anew."
        ) from None


def split_plan(plan: Plan) -> list[Plan]:
    """Cut a plan into chunks of whole batches, by its length and batch size alone."""
    size, total = plan.batch_size, len(plan.requests)
    size *= max(1, min(CHUNK, total // CHUNKS) // size)
    return [replace(plan, requests=plan.requests[i : i + size]) for i in range(0, total, size)]


def unfinished_chunks(folder: Path, chunks: Sequence[Plan], settings: Record) -> list[int]:
    """Numbers of chunks that lack records or images, of which beginning and end are read."""
    expected = _in_records(settings)
    return [n for n, chunk in enumerate(chunks) if not _is_finished(folder, n, chunk, expected)]


def _is_finished(folder: Path, number: int, chunk: Plan, expected: Record) -> bool:
    file = _chunk_file(folder, number)
    try:
        whole = file.is_file() and _read_chunk(file, ["file"]).num_rows == len(chunk.requests)
    except ValueError:
        whole = False
    return whole and all(
        files.is_whole_png(folder / r.file, expected | _facts(r), decode=False)
        for r in chunk.requests
    )


def write_chunk(folder: Path, number: int, records: Sequence[Record]) -> Path:
    """Write the records of one chunk, whole or not at all; a key that one lacks is null there."""
    keys = dict.fromkeys(key for record in records for key in record)
    table = extra("pyarrow").table({key: [record.get(key) for record in records] for key in keys})
    extra("pyarrow.parquet").write_table(table, buffer := io.BytesIO())
    (folder / CHUNK_RECORDS).mkdir(exist_ok=True)
    if hasattr(os, "sync"):  # the images first: from now on the chunk counts as drawn
        os.sync()
    return files.write_atomic(_chunk_file(folder, number), buffer.getvalue(), sync=True)


def _chunk_file(folder: Path, number: int) -> Path:
    return folder / CHUNK_RECORDS / f"{number:05d}.parquet"


extra = partial(require, extra="cluster")  # imports what runs by many workers need
