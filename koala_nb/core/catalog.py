"""One record per system, of `data/reference/systems.yaml`: the only place of a model's facts."""

import json
import os
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from koala_nb.core.card import FIGURE_SOURCE, LATENCY_FIGURE, LATENCY_GPUS
from koala_nb.core.errors import unknown_name
from koala_nb.core.files import ROOT, WHEEL_DATA, Record, read_reference

if TYPE_CHECKING:
    import pandas as pd


_catalogue: Record = read_reference("systems.yaml")
# SDXL-Base's U-Net; every other SDXL-like system is given by its differences from this.
SDXL_UNET: Record = _catalogue["sdxl_unet"]
# Parameters of the parts that SDXL-like systems share: VAE, CLIP-L, OpenCLIP-bigG.
SHARED_PARAMETERS = {"vae": 83_653_863, "text_encoder": 123_060_480, "text_encoder_2": 694_659_840}


@dataclass(frozen=True)
class Recipe:
    """How a system is meant to be sampled; None: the pipeline's or the repository's own value."""

    scheduler: str | None = None
    timestep_spacing: str | None = None
    steps: int | None = None
    guidance: float | None = None
    height: int | None = None
    width: int | None = None
    negative_prompt: str | None = None
    prompt: str = "A portrait painting of a Golden Retriever like Leonard da Vinci"
    source: str = "defaults of the diffusers pipeline"


@dataclass(frozen=True)
class System:
    """What is known of one system; sizes in pixels, parameters of the U-Net."""

    name: str
    title: str
    repository: str | None
    recipe: Recipe
    unet: Record = field(default_factory=dict)
    parameters: int | None = None
    licence: str | None = None
    domain: str = "photographic"
    note: str = ""
    unet_file: str | None = None  # U-Net weights alone; the other parts from `parts`
    parts: str | None = None

    @property
    def embedded(self) -> bool:
        """Whether the weights come with the project."""
        return (self.repository or "").startswith("data/models/")

    @property
    def published(self) -> Record:
        """Published latency (s) and peak memory (GB) per GPU, with the source; empty if none."""
        row = LATENCY_FIGURE.get(self.title)
        return {"source": FIGURE_SOURCE, **dict(zip(LATENCY_GPUS, row))} if row else {}

    @property
    def unet_config(self) -> Record:
        """The U-Net's full configuration; an embedded system's is read from its folder."""
        file = data_folder() / "models" / self.name / "unet" / "config.json"
        if self.embedded and file.is_file():
            return json.loads(file.read_text("utf-8"))
        return {**SDXL_UNET, **self.unet}

    @property
    def download_gb(self) -> float | None:
        """About how many GB a load downloads (half precision, SDXL's shared parts), or None."""
        if self.repository is None or self.embedded or self.name == "sdm-v2.0":
            return None
        return round(((self.parameters or 0) + sum(SHARED_PARAMETERS.values())) * 2 / 1e9, 1)


SYSTEMS: tuple[System, ...] = tuple(
    System(**{**record, "recipe": Recipe(**record["recipe"])}) for record in _catalogue["systems"]
)
NAMES = {system.name: system for system in SYSTEMS}
EMOJI_RECIPE = next(s.recipe for s in SYSTEMS if s.domain == "emoji-world")


def data_folder() -> Path:
    """The data folder: KOALA_NB_DATA, else `data/` of the checkout that this package runs from.

    Where the package is installed without a checkout: `data/` in the working folder.
    """
    beside = Path("data").absolute() if WHEEL_DATA.is_dir() else ROOT / "data"
    return Path(os.environ.get("KOALA_NB_DATA") or beside)


def data_file(name: str) -> Path:
    """A file of the data folder; where that lacks it, the one that a wheel holds."""
    path, shipped = data_folder() / name, WHEEL_DATA / name
    return shipped if shipped.is_file() and not path.is_file() else path


def stored_results(pattern: str) -> Record:
    """Return what lies in `data/results/<pattern>.json`, by name without its ending."""
    paths = sorted((data_folder() / "results").glob(f"{pattern}.json"))
    return {path.stem: json.loads(path.read_text("utf-8")) for path in paths}


def find(name: str) -> System:
    """The record of a system. Raises ValueError naming the nearest name and listing all."""
    if system := NAMES.get(str(name)):
        return system
    raise unknown_name("system", name, NAMES)


def installed(system: System) -> bool:
    """Whether U-Net weights lie in the system's folder or in the hub's cache; no network."""
    if system.repository is None:
        return False
    if system.embedded:
        return any((data_folder() / "models" / system.name / "unet").glob("*.safetensors"))
    from huggingface_hub.constants import HF_HUB_CACHE

    cached = Path(HF_HUB_CACHE) / f"models--{system.repository.replace('/', '--')}" / "snapshots"
    return any(cached.glob(f"*/{system.unet_file or 'unet/*.safetensors'}"))


def unet_parameters(system: System) -> int | None:
    """Parameters of the U-Net; an embedded system's are summed from its weights' header."""
    if not system.embedded:
        return system.parameters
    files = list((data_folder() / "models" / system.name / "unet").glob("*.safetensors"))
    return sum(map(_count, files)) if files else None


def _count(file: Path) -> int:
    from safetensors import safe_open

    with safe_open(file, framework="np") as weights:
        return sum(prod(weights.get_slice(key).get_shape()) for key in weights.keys())


def systems() -> "pd.DataFrame":
    """All systems, one row each; sizes in pixels, download in GB, None where unknown."""
    import pandas as pd

    recipe = ("scheduler", "timestep_spacing", "steps", "guidance", "height", "width")
    rows = [
        {
            **{key: getattr(system, key) for key in ("name", "domain", "repository")},
            "unet_parameters": unet_parameters(system),
            **{key: getattr(system.recipe, key) for key in recipe},
            **{key: getattr(system, key) for key in ("download_gb", "licence")},
            "installed": installed(system),
            "note": system.note,
        }
        for system in SYSTEMS
    ]
    whole = dict.fromkeys(("unet_parameters", "steps", "height", "width"), "Int64")
    return pd.DataFrame(rows).astype(whole)
