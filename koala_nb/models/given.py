"""Images that another tool has drawn, in the place of a pipeline: scored, and never drawn."""

import hashlib
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import pandas as pd

from koala_nb.core.catalog import Recipe
from koala_nb.core.files import checked_path, read_csv, read_lines, short

if TYPE_CHECKING:
    from koala_nb.models.load import Pipeline

TABLES = ("metadata.csv", "metadata.jsonl")  # as Hugging Face's ImageFolder calls them
PROMPTS = ("prompt", "text", "caption")
MODES = ("RGB", "RGBA", "L", "P")  # 16 bits would be read as white


def is_given(folder: Path) -> bool:
    """Whether a folder holds images with their prompts, and no model."""
    try:
        has_table = any((folder / name).is_file() for name in TABLES)
        return has_table and not (folder / "model_index.json").exists()
    except (OSError, ValueError):  # too long for a path, or none
        return False


def checked_folder(folder: str, changed: Sequence[str] = ()) -> str:
    """Return a folder of images with prompts; ValueError for none, or options of drawing."""
    if changed:
        option = changed[0].replace("_", "-")
        raise ValueError(f"--images-from {folder}: nothing is drawn: leave out --{option}.")
    if not is_given(Path(folder)):
        raise ValueError(f"{folder} is no folder with a metadata.csv and images.")
    return folder


class NoImages(ValueError):
    """A folder holds no image of any of the prompts."""


class NoModel(ValueError, AttributeError):
    """What only a model has is wanted of images as given."""


class GivenImages:
    """A folder of images with prompts: `metadata.csv` (or `.jsonl`), `file_name` and `prompt`.

    It stands where a pipeline would: probes and reports take all its images of their prompts, each
    once, whatever seeds are asked for. A column `seed` is optional. `table`: file, prompt, seed,
    width and height of each image; `model_info` is named by the folder and a hash of prompts and
    files. ValueError, naming the line, for what is missing, twice there or no picture.
    """

    def __init__(self, folder: str | Path) -> None:
        from koala_nb.models.load import ModelInfo  # which imports this module

        self.folder = checked_path(folder, "Give the folder of the images")
        self.table = _read(self.folder)
        self.components: dict[str, object] = {}
        digest = hashlib.sha256()
        for row in self.table.itertuples():
            digest.update(json.dumps(row.prompt).encode() + row.file.read_bytes())
        prompts = self.table.prompt.nunique()
        notes = [f"{len(self.table)} images of {prompts} prompts, as given: nothing is drawn"]
        name, revision = self.folder.resolve().name, digest.hexdigest()[:16]
        identity = None, f"{name}-{revision[:8]}", revision, None
        self.model_info = ModelInfo(*identity, "as given", "cpu", "photographic", Recipe(), notes)

    def __getattr__(self, name: str) -> NoReturn:
        folder = vars(self).get("folder", "A folder")
        raise NoModel(f"{folder} holds images as given: no model draws there; it has no {name}.")

    @property
    def native_size(self) -> int:
        """Pixels of the longer side of the first image."""
        return int(max(self.table.width[0], self.table.height[0]))

    def prompts(self, n: int = 16) -> pd.DataFrame:
        """Return the first n prompts, as `id`, `prompt` and empty `factors`."""
        first = self.table.prompt.drop_duplicates().head(n).tolist()
        ids = [f"p{number:03d}" for number in range(len(first))]
        return pd.DataFrame({"id": ids, "prompt": first, "factors": ""})

    def select(self, prompts: Sequence[str]) -> pd.DataFrame:
        """Return the images of prompts: prompt_index, prompt, file, seed, height and width.

        White space is joined. A warning counts prompts without an image; NoImages where none has.
        """
        if not hasattr(prompts, "__iter__") or not all(isinstance(p, str) for p in prompts):
            raise ValueError("Give a prompt, or a list of prompts, as texts.")
        wanted = pd.DataFrame({"prompt_index": range(len(prompts)), "prompt": prompts})
        wanted["key"] = wanted.prompt.map(_joined)
        there = self.table.assign(key=self.table.prompt.map(_joined)).drop(columns="prompt")
        # A prompt that is asked for twice gets its images in turn: none counts twice.
        for table in (wanted, there):
            table["turn"] = table.groupby("key").cumcount()
        there["turn"] %= there.key.map(wanted.key.value_counts()).fillna(1).astype(int)
        rows = wanted.merge(there, on=["key", "turn"]).drop(columns=["key", "turn"])
        if rows.empty:
            example = short(prompts[0]) if len(prompts) else "none"
            raise NoImages(
                f"{self.folder.name} holds no image of these prompts, such as {example}: "
                "draw the prompts of `data/prompts`, word by word."
            )
        lacking = len(prompts) - rows.prompt_index.nunique()
        if lacking:
            warnings.warn(
                f"{lacking} of {len(prompts)} prompts have no image in {self.folder}: left out.",
                stacklevel=3,
            )
        return rows


def with_images(
    pipe: "Pipeline | GivenImages", prompts: pd.DataFrame, images: int
) -> tuple[pd.DataFrame, float]:
    """Return the prompts that a run has images of, and how many of each in the mean."""
    if not isinstance(pipe, GivenImages):
        return prompts, images
    with warnings.catch_warnings(action="ignore"):  # a run itself counts those without an image
        rows = pipe.select(prompts.prompt.tolist())
    there = prompts.iloc[rows.prompt_index.unique()]
    return there, len(rows) / len(there)


def _read(folder: Path) -> pd.DataFrame:
    path = next((folder / name for name in TABLES if (folder / name).is_file()), None)
    if path is None:
        raise ValueError(f"{folder} holds no {' or '.join(TABLES)}: write one beside its images.")
    table = read_csv(path, dtype=str) if path.suffix == ".csv" else pd.DataFrame(read_lines(path))
    column = next((name for name in PROMPTS if name in table), None)
    if column is None or "file_name" not in table or table.empty:
        raise ValueError(f"{path} needs the columns file_name and prompt, and a line per image.")
    seeds = table.seed if "seed" in table else table.groupby(column, dropna=False).cumcount()
    first, rows = 2 if path.suffix == ".csv" else 1, []
    for line, (name, prompt, seed) in enumerate(zip(table.file_name, table[column], seeds), first):
        try:
            rows.append(_image(folder, name, prompt, seed))
        except (OSError, ValueError) as error:
            raise ValueError(f"{path}, line {line}, {short(name)}: {error}.") from None
    images = pd.DataFrame(rows, columns=["file", "prompt", "seed", "width", "height"])
    for columns, what in ((["file"], "file"), (["prompt", "seed"], "prompt and seed")):
        if images.duplicated(columns).any():
            line = int(images.duplicated(columns).to_numpy().argmax()) + first
            raise ValueError(f"{path}, line {line}: its {what} stands there twice.")
    return images


def _image(folder: Path, name: object, prompt: object, seed: object) -> tuple:
    from PIL import Image

    if not isinstance(name, str) or not isinstance(prompt, str) or not prompt.strip():
        raise ValueError("it has no file_name, or no prompt")
    if not str(seed).isdigit() or len(str(seed)) > 18:
        raise ValueError(f"its seed is {short(seed)}: give a whole number, or no column seed")
    file = folder / name
    if not file.resolve().is_relative_to(folder.resolve()):
        raise ValueError("the file is outside the folder")
    try:
        with Image.open(file) as image:
            image.load()
            clear = image.has_transparency_data and min(image.convert("RGBA").getdata(3)) < 255
            if image.mode not in MODES or clear:
                raise ValueError(f"a picture of mode {image.mode} or transparent: save it as RGB")
    except (SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(str(error)) from None
    return file, prompt, int(str(seed)), *image.size


def _joined(prompt: str) -> str:
    return " ".join(prompt.split())
