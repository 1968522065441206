"""What is asked of `generate`, checked: the plan of a run, request by request."""

import operator
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from enum import Enum
from itertools import groupby, islice
from math import lcm
from typing import Any

from koala_nb.core.devices import free_gigabytes, plan_batch
from koala_nb.core.errors import real_number, whole_number
from koala_nb.core.files import Record, short
from koala_nb.models import load

SPACINGS = ("leading", "trailing", "linspace")


class _Default(Enum):
    """Stands for what is not given; unlike an object, the same in another process."""

    RECIPE = "as the recipe says"


RECIPE: Any = _Default.RECIPE  # of a negative prompt, since None is one of its own
IMAGES = "images"
FLAT, PER_PART = 5000, 1000  # a run of more than FLAT images has sub-folders of PER_PART


@dataclass(frozen=True)
class Settings:
    """How images are drawn, unchecked; None: as the recipe says, else the pipeline's own call."""

    negative_prompt: str | None = RECIPE
    steps: int | None = None
    guidance: float | None = None
    height: int | None = None
    width: int | None = None
    batch_size: int | None = None
    timestep_spacing: str | None = None


@dataclass(frozen=True)
class Request:
    """One image to draw."""

    index: int  # of the prompt
    prompt: str
    seed: int
    part: int | None = None  # sub-folder

    @property
    def folder(self) -> str:
        """Where its image goes, inside the run's folder."""
        return IMAGES if self.part is None else f"{IMAGES}/{self.part:05d}"

    @property
    def file(self) -> str:
        """Path inside the run's folder."""
        return f"{self.folder}/{self.index:05d}-{slug(self.prompt)}-{self.seed}.png"


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

    def requested(self) -> Record:
        """Prompts, the seeds of each, and the batch size, for a run's settings."""
        each = [list(group) for _, group in groupby(self.requests, operator.attrgetter("index"))]
        return {
            "batch_size": self.batch_size,
            "prompts": [group[0].prompt for group in each],
            "seeds": [[request.seed for request in group] for group in each],
        }


def make_plan(
    pipe: load.Pipeline,
    prompts: str | Sequence[str],
    seeds: Sequence[int] | Sequence[Sequence[int]],
    settings: Settings,
) -> Plan:
    """Check what is asked of `generate` and fill in the recipe. Raises ValueError."""
    load.check_pipeline(pipe)
    info = load.model_info(pipe)

    def pick(name: str, argument: str) -> Any:
        for value in (getattr(settings, name), getattr(info.recipe, name)):
            if value is not None:
                return value
        return load.call_default(pipe, argument)

    default = load.native_size(pipe)
    height, width = pick("height", "height"), pick("width", "width")
    height = _size(pipe, "height", default if height is None else height)
    width = _size(pipe, "width", default if width is None else width)
    negative = settings.negative_prompt
    negative = info.recipe.negative_prompt if negative is RECIPE else negative
    if negative is not None:
        _check_prompt("negative_prompt", negative)
    steps = whole_number("steps", pick("steps", "num_inference_steps"), 1, load.MOST["steps"])
    guidance = pick("guidance", "guidance_scale")
    guidance = real_number("guidance", guidance, 0, load.MOST["guidance"])
    batch = settings.batch_size
    if batch is None:
        batch = _batch_size(pipe, height, width)
    batch = whole_number("batch_size", batch, 1, load.MOST["batch_size"])
    spacing = settings.timestep_spacing
    if spacing is not None and spacing not in SPACINGS:
        raise ValueError(
            f"timestep_spacing must be one of {', '.join(SPACINGS)}, not {short(spacing)}."
        )
    requests = _requests(prompts, seeds)
    return Plan(requests, negative, steps, guidance, height, width, batch, spacing)


def _requests(prompts: Any, seeds: Any) -> tuple[Request, ...]:
    if isinstance(prompts, bytes | Mapping | Set) or not hasattr(prompts, "__iter__"):
        raise ValueError(f"prompts must be a text or a list of texts, not {short(prompts)}.")
    texts = [prompts] if isinstance(prompts, str) else _listed(prompts)
    if not texts:
        raise ValueError("prompts is empty: give at least one prompt.")
    lists = _listed(seeds) if hasattr(seeds, "__iter__") else [seeds]
    if not lists:
        raise ValueError("seeds is empty: give at least one seed.")
    nested = [hasattr(s, "__iter__") for s in lists]
    if any(nested) and not all(nested):
        raise ValueError("seeds mixes numbers and lists: give numbers, or one list a prompt.")
    lists = [_listed(numbers) for numbers in lists] if any(nested) else [lists] * len(texts)
    if len(lists) != len(texts):
        raise ValueError(f"seeds holds {len(lists)} lists for {len(texts)} prompts: give one each.")
    if sum(map(len, lists)) > load.MAX_IMAGES:
        raise ValueError(
            f"One run holds at most {load.MAX_IMAGES:,} images: give fewer prompts or seeds, or "
            "make several runs."
        )
    for number, text in enumerate(texts):
        _check_prompt(f"prompt {number}", text)
    requests = []
    for index, (text, values) in enumerate(zip(texts, lists)):
        name, most = f"seed of prompt {index}", load.MOST["seed"]
        numbers = [whole_number(name, seed, 0, most) for seed in values]
        if not numbers:
            raise ValueError(f"Prompt {index} has no seeds: give at least one.")
        if len(set(numbers)) < len(numbers):
            twice = next(n for n, count in Counter(numbers).items() if count > 1)
            raise ValueError(f"Seed {twice} stands twice for prompt {index}: it gives one image.")
        requests += [Request(index, text, n) for n in numbers]
    if len(requests) > FLAT:
        requests = [replace(r, part=at // PER_PART) for at, r in enumerate(requests)]
    return tuple(requests)


def _listed(values: Iterable[Any]) -> list[Any]:
    """The values as a list, cut where an iterator would never end."""
    return list(islice(values, load.MAX_IMAGES + 1))


def _check_prompt(what: str, text: Any) -> None:
    if not isinstance(text, str):
        raise ValueError(f"{what} must be a text, not {type(text).__name__} {short(text)}.")
    if "\0" in text:
        raise ValueError(f"{what} holds a NUL character: remove it.")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError(f"{what} is not valid Unicode (lone surrogate): {short(text)}.") from None


def _size(pipe: load.Pipeline, what: str, value: Any) -> int:
    factor = lcm(8, pipe.vae_scale_factor)  # diffusers asks for 8 in any case
    size = whole_number(what, value, factor, load.MOST["size"])
    if size % factor:
        near = max(factor, round(size / factor) * factor)
        raise ValueError(f"{what} must be a multiple of {factor}, not {size}: try {near}.")
    return size


def _batch_size(pipe: load.Pipeline, height: int, width: int) -> int:
    """Images per batch; on a GPU that holds the whole pipeline, as many as its memory allows."""
    device = pipe.unet.device  # of an offloaded one: not the GPU
    usual = default_batch_size(max(height, width) // pipe.vae_scale_factor, device.type)
    if device.type != "cuda":
        return usual
    area = height * width / 1024**2 * pipe.unet.dtype.itemsize / 2
    return max(usual, plan_batch(free_gigabytes(device), area))


def default_batch_size(latent: int, device: str) -> int:
    """Images a batch: 16 for latents up to 32, 4 up to 64, else 1."""
    return 16 if latent <= 32 else 4 if latent <= 64 and device != "cpu" else 1


def slug(prompt: str, length: int = 40) -> str:
    """A short ASCII file name from a prompt: letters, digits and single hyphens, never empty."""
    plain = unicodedata.normalize("NFKD", prompt).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain)[:length].strip("-") or "prompt"
