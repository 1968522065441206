"""A run's images and records, in memory or in a folder that the same call resumes."""

import os
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from koala_nb.core import files
from koala_nb.core.files import short
from koala_nb.generation.plan import IMAGES, Plan, Request
from koala_nb.models.hub import read_json

if TYPE_CHECKING:
    import pandas as pd
    from PIL import Image

SETTINGS, RECORDS = "settings.json", "records.jsonl"


class _FolderImages(Sequence):
    """A folder's images, opened when asked for."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [_open(p) for p in self.paths[index]]
        return _open(self.paths[index])

    def __iter__(self) -> Iterator[Any]:
        return map(_open, self.paths)


class Drawn(NamedTuple):
    """The batches that a call drew, whole ones: images and seconds of each."""

    sizes: tuple[int, ...]
    times: tuple[float, ...]

    @property
    def images(self) -> int:
        """How many images were drawn, also those of a batch that were there."""
        return sum(self.sizes)

    @property
    def seconds(self) -> float:
        """In which time."""
        return sum(self.times)


class Clock:
    """Times the batches of a call, from when it is made."""

    def __init__(self) -> None:
        self.last = time.perf_counter()
        self.laps: list[tuple[int, float]] = []

    def lap(self, images: int) -> None:
        """Note that a batch of so many images is done."""
        now = time.perf_counter()
        self.laps.append((images, now - self.last))
        self.last = now

    def drawn(self) -> Drawn | None:
        """Return what was drawn, None for nothing."""
        return Drawn(*zip(*self.laps)) if self.laps else None


@dataclass
class Run:
    """Images and records of one `generate`, in the order of the requests.

    `records` has one row an image; `folder` is None for a run in memory; `drawn` counts what this
    call drew, None for nothing: less than there is where a folder was resumed.
    """

    images: "Sequence[Image.Image]"
    records: "pd.DataFrame"
    folder: Path | None
    drawn: Drawn | None

    @property
    def seconds_per_image(self) -> float | None:
        """The mean seconds of the images that this call drew; None where it drew none."""
        return self.drawn.seconds / self.drawn.images if self.drawn else None


def folder_at(out: Any) -> Path:
    """The path of a run's folder. ValueError for what is no path."""
    if not isinstance(out, str | os.PathLike) or "\0" in str(out):
        raise ValueError(f"out must be the path of a folder, not {short(out)}.")
    return Path(out)


def open_folder(folder: Path, settings: dict[str, Any], plan: Plan) -> None:
    """Prepare a run's folder, or take up one with the same settings.

    Raises ValueError naming the first setting that differs, or for a folder of other things, and
    OSError where it cannot be written or its disk has too little space.
    """
    try:
        _open_folder(folder, {**settings, **plan.asked()}, plan)
    except OSError as error:
        if not error.strerror:  # a sentence of our own
            raise
        raise OSError(
            f"{folder} cannot hold a run ({error.strerror}): choose a folder that you can write to."
        ) from error


def _open_folder(folder: Path, settings: dict[str, Any], plan: Plan) -> None:
    file = folder / SETTINGS
    if file.is_file():
        _compare(folder, read_json(file), settings)
    else:
        _refuse_other_things(folder)
        check_space(folder, plan, len(plan.requests))
        folder.mkdir(parents=True, exist_ok=True)
        files.write_json(file, settings)
    (folder / IMAGES).mkdir(exist_ok=True)
    clean(folder)


def clean(folder: Path) -> None:
    """Remove what interrupted writing left in a run's folder."""
    for place in (folder, *folder.glob("*/"), *folder.glob(f"{IMAGES}/*/")):
        files.clean_temporary(place)


def _refuse_other_things(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file: name a folder for the run.")
    found = folder.iterdir() if folder.exists() else ()
    held = [p.name for p in found if not p.name.endswith(".tmp")]
    if held:
        raise ValueError(f"{folder} holds other files (such as {held[0]}) and no run.")


def _compare(folder: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    for key in now | before:
        old, new = before.get(key), now.get(key)
        if old == new:
            continue
        if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
            at = next(i for i, pair in enumerate(zip(old, new)) if pair[0] != pair[1])
            key, old, new = f"{key}[{at}]", old[at], new[at]
        elif isinstance(old, list) and isinstance(new, list):
            key, old, new = f"the number of {key}", len(old), len(new)
        raise ValueError(
            f"{folder} holds a run with other settings: {key} was {short(old)}, now "
            f"{short(new)}. Use another folder, or the same settings to resume."
        )


def missing(folder: Path, requests: Sequence[Request]) -> set[Request]:
    """Requests whose image is not there, or not whole. ValueError for a folder in its place."""
    blocked = next((r.file for r in requests if (folder / r.file).is_dir()), None)
    if blocked:
        raise ValueError(f"{folder / blocked} is a folder where an image belongs: remove it.")
    return {r for r in requests if not files.is_whole_png(folder / r.file)}


def check_space(folder: Path, plan: Plan, images: int) -> None:
    """Raise OSError where the disk has not even one byte a pixel for so many images."""
    there = next(place for place in (folder, *folder.absolute().parents) if place.is_dir())
    needed, free = images * plan.height * plan.width, shutil.disk_usage(there).free
    if needed > free:
        raise OSError(
            f"{folder} is on a disk with {free / 1e6:.1f} MB free and {images} images need at "
            f"least {needed / 1e6:.1f}: free some space, or write to another folder."
        )


def close_folder(folder: Path, requests: Sequence[Request]) -> "list[dict[str, Any]]":
    """Gather the images' own records into records.jsonl, in order, and return them."""
    records = [files.read_record(folder / r.file) for r in requests]
    files.write_lines(folder / RECORDS, records)
    return records


def folder_run(folder: Path, records: list[dict[str, Any]], drawn: Drawn | None = None) -> Run:
    """A run from a finished folder's records."""
    return table_run(folder, _frame(records), drawn)


def table_run(folder: Path, records: "pd.DataFrame", drawn: Drawn | None = None) -> Run:
    """A run from a finished folder's records as a table."""
    return Run(_FolderImages([folder / f for f in records.file]), records, folder, drawn)


def memory_run(
    images: "list[Image.Image]", records: list[dict[str, Any]], drawn: Drawn | None
) -> Run:
    """A run that was kept in memory."""
    return Run(images, _frame(records), None, drawn)


def _open(path: Path) -> "Image.Image":
    from PIL import Image

    with Image.open(path) as image:
        image.load()
    return image


def _frame(records: list[dict[str, Any]]) -> "pd.DataFrame":
    import pandas as pd

    return pd.DataFrame(records)
