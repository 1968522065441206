"""Images that another tool has drawn, in the place of a pipeline: scored, and never drawn."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from koala_nb.core.catalog import Recipe
from koala_nb.core.files import read_csv, read_lines, short

TABLES = ("metadata.csv", "metadata.jsonl")  # as Hugging Face's ImageFolder calls them
PROMPTS = ("prompt", "text", "caption")


def is_given(folder: Path) -> bool:
    """Whether a folder holds images with their prompts, and no model."""
    has_table = any((folder / name).is_file() for name in TABLES)
    return has_table and not (folder / "model_index.json").exists()


def checked_folder(folder: str) -> str:
    """Return a folder of images with prompts; ValueError for what is none."""
    if not is_given(Path(folder)):
        raise ValueError(f"{folder} is no folder with a metadata.csv and images.")
    return folder


class NoImages(ValueError):
    """A folder holds no image of any of the prompts."""


class GivenImages:
    """A folder of images with prompts: `metadata.csv` (or `.jsonl`), `file_name` and `prompt`.

    It stands where a pipeline would: probes and reports take all its images of their prompts. A
    column `seed` is optional. `table`: file, prompt and seed of each image; `model_info.revision`
    is a hash of prompts and files. ValueError, naming the line, for what is missing or no image.
    """

    def __init__(self, folder: str | Path) -> None:
        from koala_nb.models.load import ModelInfo  # which imports this module

        self.folder = Path(folder)
        self.table = _read(self.folder)
        self.components: dict[str, object] = {}
        digest = hashlib.sha256()
        for row in self.table.itertuples():
            digest.update(json.dumps(row.prompt).encode() + row.file.read_bytes())
        prompts = self.table.prompt.nunique()
        notes = [f"{len(self.table)} images of {prompts} prompts, as given: nothing is drawn"]
        self.model_info = ModelInfo(
            system=None,
            source=self.folder.resolve().name,
            _revision=digest.hexdigest()[:16],
            variant=None,
            dtype="as given",
            device="cpu",
            domain="photographic",
            recipe=Recipe(),
            notes=notes,
        )

    @property
    def native_size(self) -> int:
        """Pixels of the longer side of the first image."""
        from PIL import Image

        with Image.open(self.table.file[0]) as image:
            return max(image.size)

    def prompts(self, n: int = 16) -> pd.DataFrame:
        """Return the first n prompts, as `id`, `prompt` and empty `factors`."""
        first = self.table.prompt.drop_duplicates().head(n).tolist()
        ids = [f"p{number:03d}" for number in range(len(first))]
        return pd.DataFrame({"id": ids, "prompt": first, "factors": ""})

    def select(self, prompts: Sequence[str]) -> pd.DataFrame:
        """Return the images of prompts: prompt_index, prompt, file, seed, height and width.

        Prompts are compared with their white space joined. A warning counts those without an
        image; NoImages where no prompt has one.
        """
        from PIL import Image

        wanted = pd.DataFrame({"prompt_index": range(len(prompts)), "prompt": prompts})
        wanted["key"] = wanted.prompt.map(_joined)
        there = self.table.assign(key=self.table.prompt.map(_joined)).drop(columns="prompt")
        rows = wanted.merge(there, on="key").drop(columns="key")
        if rows.empty:
            raise NoImages(
                f"{self.folder.name} holds no image of these prompts, such as {short(prompts[0])}: "
                "draw the prompts of `data/prompts`, word by word."
            )
        lacking = len(prompts) - rows.prompt_index.nunique()
        if lacking:
            warnings.warn(
                f"{lacking} of {len(prompts)} prompts have no image in {self.folder}: left out.",
                stacklevel=3,
            )
        sizes = []
        for file in rows.file:
            with Image.open(file) as image:
                sizes.append(image.size)
        rows[["width", "height"]] = sizes
        return rows


def _read(folder: Path) -> pd.DataFrame:
    from PIL import Image

    path = next(folder / name for name in TABLES if (folder / name).is_file())
    table = read_csv(path, dtype=str) if path.suffix == ".csv" else pd.DataFrame(read_lines(path))
    column = next((name for name in PROMPTS if name in table), None)
    if column is None or "file_name" not in table or table.empty:
        raise ValueError(f"{path} needs the columns file_name and prompt, and a line per image.")
    seeds = table.seed if "seed" in table else table.groupby(column).cumcount()
    files = []
    for line, (name, prompt) in enumerate(zip(table.file_name, table[column]), start=2):
        file = folder / str(name)
        try:
            if not str(prompt).strip() or not file.resolve().is_relative_to(folder.resolve()):
                raise ValueError("no prompt, or a file outside the folder")
            with Image.open(file) as image:
                image.verify()
        except (OSError, ValueError, SyntaxError) as error:
            raise ValueError(f"{path}, line {line}, {name}: {error}.") from None
        files.append(file)
    return pd.DataFrame({"file": files, "prompt": table[column], "seed": seeds.astype(int)})


def _joined(prompt: str) -> str:
    return " ".join(prompt.split())
