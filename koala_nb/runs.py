"""What is asked for, checked; and a run's images and records, in memory or in a folder."""

import operator
import os
import re
import shutil
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf, lcm
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

from koala_nb import provenance
from koala_nb.hub import read_json
from koala_nb.pipelines import Loaded, call_default
from koala_nb.provenance import short

if TYPE_CHECKING:
    import pandas as pd
    from PIL import Image

SPACINGS = ("leading", "trailing", "linspace")
RECIPE: Any = object()  # "as the recipe says", since None is a negative prompt of its own
MAX_SEED = 2**63 - 1
MAX_GUIDANCE = 1000  # far above use; much more overflows and draws nothing
SETTINGS, RECORDS, IMAGES = "settings.json", "records.jsonl", "images"


@dataclass(frozen=True)
class Request:
    """One image to draw."""

    index: int  # of the prompt
    prompt: str
    seed: int

    @property
    def file(self) -> str:
        """Path inside the run's folder."""
        return f"{IMAGES}/{self.index:05d}-{slug(self.prompt)}-{self.seed}.png"


@dataclass(frozen=True)
class Plan:
    """Everything that determines a run's images, checked."""

    requests: tuple[Request, ...]
    negative_prompt: str | None
    steps: int
    guidance: float
    height: int
    width: int
    batch_size: int
    timestep_spacing: str | None

    def batches(self) -> Iterator[tuple[Request, ...]]:
        """Always the same requests in the same batch: resuming must not change a pixel."""
        for start in range(0, len(self.requests), self.batch_size):
            yield self.requests[start : start + self.batch_size]

    def asked(self) -> dict[str, Any]:
        """Prompts, the seeds of each, and the batch size, for a run's settings."""
        prompts = {r.index: r.prompt for r in self.requests}
        seeds: dict[int, list[int]] = {index: [] for index in prompts}
        for r in self.requests:
            seeds[r.index].append(r.seed)
        return {
            "batch_size": self.batch_size,
            "prompts": [*prompts.values()],
            "seeds": [*seeds.values()],
        }


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


@dataclass
class Run:
    """Images and records of one `generate`, in the order of the requests.

    `records` has one row an image; `folder` is None for a run in memory; `seconds_per_image`
    counts only what this call drew and is None where it drew nothing.
    """

    images: "Sequence[Image.Image]"
    records: "pd.DataFrame"
    folder: Path | None
    seconds_per_image: float | None


def slug(prompt: str, length: int = 40) -> str:
    """A short ASCII file name from a prompt: letters, digits and single hyphens, never empty."""
    plain = unicodedata.normalize("NFKD", prompt).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain)[:length].strip("-") or "prompt"


def folder_at(out: Any) -> Path:
    """The path of a run's folder. ValueError for what is no path."""
    if not isinstance(out, str | os.PathLike) or "\0" in str(out):
        raise ValueError(f"out must be the path of a folder, not {short(out)}.")
    return Path(out)


def open_folder(folder: Path, settings: dict[str, Any]) -> None:
    """Prepare a run's folder, or take up one with the same settings.

    Raises ValueError naming the first setting that differs, or for a folder of other things, and
    OSError where it cannot be written.
    """
    try:
        _open_folder(folder, settings)
    except OSError as error:
        if not error.strerror:  # a sentence of our own
            raise
        raise OSError(
            f"{folder} cannot hold a run ({error.strerror}): choose a folder that you can write to."
        ) from error


def _open_folder(folder: Path, settings: dict[str, Any]) -> None:
    file = folder / SETTINGS
    if file.is_file():
        _compare(folder, read_json(file), settings)
    else:
        _refuse_other_things(folder)
        folder.mkdir(parents=True, exist_ok=True)
        provenance.write_json(file, settings)
    (folder / IMAGES).mkdir(exist_ok=True)
    for place in (folder, folder / IMAGES):
        provenance.clean_temporary(place)


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
    return {r for r in requests if not provenance.is_whole_png(folder / r.file)}


def check_space(folder: Path, plan: Plan, images: int) -> None:
    """Raise OSError where the disk has not even one byte a pixel for so many images."""
    needed, free = images * plan.height * plan.width, shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(
            f"{folder} is on a disk with {free / 1e6:.1f} MB free and {images} images need at "
            f"least {needed / 1e6:.1f}: free some space, or write to another folder."
        )


def close_folder(folder: Path, requests: Sequence[Request]) -> "list[dict[str, Any]]":
    """Gather the images' own records into records.jsonl, in order, and return them."""
    records = [provenance.read_record(folder / r.file) for r in requests]
    provenance.write_lines(folder / RECORDS, records)
    return records


def folder_run(folder: Path, records: list[dict[str, Any]], seconds: float | None = None) -> Run:
    """A run from a finished folder's records."""
    return Run(
        _FolderImages([folder / r["file"] for r in records]), _frame(records), folder, seconds
    )


def memory_run(
    images: "list[Image.Image]", records: list[dict[str, Any]], seconds: float | None
) -> Run:
    """A run that was kept in memory."""
    return Run(images, _frame(records), None, seconds)


def _open(path: Path) -> "Image.Image":
    from PIL import Image

    with Image.open(path) as image:
        image.load()
    return image


def _frame(records: list[dict[str, Any]]) -> "pd.DataFrame":
    import pandas as pd

    return pd.DataFrame(records)


def make_plan(pipe: Any, told: Loaded, given: dict[str, Any]) -> Plan:
    """Check the arguments of `generate` and fill in the recipe. Raises ValueError."""
    recipe = told.recipe

    def pick(name: str, argument: str) -> Any:
        for value in (given[name], getattr(recipe, name)):
            if value is not None:
                return value
        return call_default(pipe, argument)

    own = pipe.unet.config.sample_size * pipe.vae_scale_factor
    height, width = pick("height", "height"), pick("width", "width")
    height = _size(pipe, "height", own if height is None else height)
    width = _size(pipe, "width", own if width is None else width)
    negative = given["negative_prompt"]
    negative = recipe.negative_prompt if negative is RECIPE else negative
    if negative is not None:
        _check_prompt("negative_prompt", negative)
    steps = _whole("steps", pick("steps", "num_inference_steps"), 1, 1000)
    guidance = pick("guidance", "guidance_scale")
    number = float(guidance) if isinstance(guidance, Real) else -1.0
    if isinstance(guidance, bool) or not 0 <= number < inf:
        raise ValueError(f"guidance must be a number of at least 0, not {short(guidance)}.")
    if number > MAX_GUIDANCE:
        raise ValueError(f"guidance must be at most {MAX_GUIDANCE}, not {short(guidance)}.")
    batch = given["batch_size"]
    if batch is None:
        batch = default_batch_size(max(height, width) // pipe.vae_scale_factor, told.device)
    batch = _whole("batch_size", batch, 1, 4096)
    spacing = given["timestep_spacing"]
    if spacing is not None and spacing not in SPACINGS:
        raise ValueError(
            f"timestep_spacing must be one of {', '.join(SPACINGS)}, not {short(spacing)}."
        )
    requests = _requests(given["prompts"], given["seeds"])
    return Plan(requests, negative, steps, number, height, width, batch, spacing)


def _requests(prompts: Any, seeds: Any) -> tuple[Request, ...]:
    if isinstance(prompts, bytes | Mapping) or not hasattr(prompts, "__iter__"):
        raise ValueError(f"prompts must be a text or a list of texts, not {short(prompts)}.")
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    if not texts:
        raise ValueError("prompts is empty: give at least one prompt.")
    for number, text in enumerate(texts):
        _check_prompt(f"prompt {number}", text)
    lists = list(seeds) if hasattr(seeds, "__iter__") else [seeds]
    if not lists:
        raise ValueError("seeds is empty: give at least one seed.")
    nested = [hasattr(s, "__iter__") for s in lists]
    if any(nested) and not all(nested):
        raise ValueError("seeds mixes numbers and lists: give numbers, or one list a prompt.")
    if not any(nested):
        lists = [lists] * len(texts)
    if len(lists) != len(texts):
        raise ValueError(f"seeds holds {len(lists)} lists for {len(texts)} prompts: give one each.")
    requests = []
    for index, (text, own) in enumerate(zip(texts, lists)):
        numbers = [_whole(f"seed of prompt {index}", s, 0, MAX_SEED) for s in own]
        if not numbers:
            raise ValueError(f"Prompt {index} has no seeds: give at least one.")
        if len(set(numbers)) < len(numbers):
            twice = next(n for n in numbers if numbers.count(n) > 1)
            raise ValueError(f"Seed {twice} stands twice for prompt {index}: it gives one image.")
        requests += [Request(index, text, n) for n in numbers]
    return tuple(requests)


def _check_prompt(what: str, text: Any) -> None:
    if not isinstance(text, str):
        raise ValueError(f"{what} must be a text, not {type(text).__name__} {short(text)}.")
    if "\0" in text:
        raise ValueError(f"{what} holds a NUL character: remove it.")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError(
            f"{what} is not valid Unicode (a lone surrogate): {short(text)}."
        ) from None


def _whole(what: str, value: Any, low: int, high: int) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        number = low - 1
    if isinstance(value, bool) or not low <= number <= high:
        raise ValueError(f"{what} must be a whole number from {low} to {high}, not {short(value)}.")
    return number


def _size(pipe: Any, what: str, value: Any) -> int:
    factor = lcm(8, pipe.vae_scale_factor)  # diffusers asks for 8 in any case
    size = _whole(what, value, factor, 4096)
    if size % factor:
        near = max(factor, round(size / factor) * factor)
        raise ValueError(f"{what} must be a multiple of {factor}, not {size}: try {near}.")
    return size


def default_batch_size(latent: int, device: str) -> int:
    """Images a batch: 16 for latents up to 32, 4 up to 64, else 1."""
    return 16 if latent <= 32 else 4 if latent <= 64 and device != "cpu" else 1
