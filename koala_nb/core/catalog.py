"""One record per system: the only place where a model's facts stand.

A value that no source of ours states is None. Sources are named beside the values.
"""

import difflib
import json
import os
import struct
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from koala_nb.core.card import CARD, CARD_SOURCE, FIGURE_SOURCE, LATENCY_FIGURE, LATENCY_GPUS
from koala_nb.core.files import short

if TYPE_CHECKING:
    import pandas as pd


# SDXL-Base's U-Net; every other SDXL-like system is given by its differences from this.
SDXL_UNET: dict[str, Any] = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 2,
    "transformer_layers_per_block": [1, 2, 10],
    "cross_attention_dim": 2048,
    "attention_head_dim": [5, 10, 20],
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
_KOALA_1B = {"layers_per_block": 1, "transformer_layers_per_block": [1, 2, 6]}
_KOALA_700M = {
    "layers_per_block": 1,
    "transformer_layers_per_block": [1, 2, 5],
    "mid_block_type": None,
}
_SSD_1B = {
    "mid_block_type": "UNetMidBlock2D",
    "transformer_layers_per_block": [1, [2, 2], [4, 4]],
    "reverse_transformer_layers_per_block": [[4, 4, 10], [2, 1, 1], 1],
}
_VEGA = {"mid_block_type": "UNetMidBlock2D", "transformer_layers_per_block": [1, 1, 2]}
_SD_V2 = {
    "sample_size": 96,
    "block_out_channels": (320, 640, 1280, 1280),
    "down_block_types": (*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"),
    "up_block_types": ("UpBlock2D", *["CrossAttnUpBlock2D"] * 3),
    "transformer_layers_per_block": 1,
    "cross_attention_dim": 1024,
    "attention_head_dim": [5, 10, 20, 20],
    "addition_embed_type": None,
    "addition_time_embed_dim": None,
    "projection_class_embeddings_input_dim": None,
}
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
    unet: dict[str, Any] = field(default_factory=dict)
    parameters: int | None = None
    variant: str | None = "fp16"  # asked for first; an older revision may lack it
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
    def published(self) -> dict[str, Any]:
        """Published latency (s) and peak memory (GB) per GPU, with the source; empty if none."""
        row = LATENCY_FIGURE.get(self.title)
        return {"source": FIGURE_SOURCE, **dict(zip(LATENCY_GPUS, row))} if row else {}

    @property
    def unet_config(self) -> dict[str, Any]:
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


_NEGATIVE = "worst quality, low quality, illustration, low resolution"
_EULER = "EulerDiscreteScheduler"
_LIGHTNING = Recipe(_EULER, "trailing", 10, 3.5, 1024, 1024, _NEGATIVE, source=CARD_SOURCE)
_KOALA = Recipe(None, None, 25, 7.5, 1024, 1024, source="25 steps, guidance 7.5: the authors")
_PROTOCOL = f"25 steps at this size: {CARD_SOURCE}; guidance: default of the diffusers pipeline"
_SDXL = Recipe(None, None, 25, None, 1024, 1024, source=_PROTOCOL)
_SDXL_LIGHTNING = Recipe(
    _EULER, "trailing", 4, 0.0, 1024, 1024, source="model card of ByteDance/SDXL-Lightning"
)
EMOJI_RECIPE = Recipe(
    _EULER,
    "trailing",
    10,
    3.5,
    prompt="a koala on a blue background, noto style",
    source="as KOALA-Lightning's, at the folder's own size",
)


def _koala(name: str, title: str, big: bool, recipe: Recipe, note: str = "") -> System:
    return System(
        name,
        title,
        f"etri-vilab/{name}",
        recipe,
        _KOALA_1B if big else _KOALA_700M,
        1_161_184_324 if big else 782_822_724,
        licence=CARD.licence,
        note=note,
    )


def _turbo(name: str, title: str, big: bool) -> System:
    note = "Published figures only: no repository with its weights was found."
    recipe = Recipe(height=512, width=512, source=FIGURE_SOURCE)
    return replace(_koala(name, title, big, recipe, note), repository=None, licence=None)


def _nano(name: str, title: str, unet: dict[str, Any]) -> System:
    note = "Trained by this project on the emoji world; the folder's own configuration counts."
    where, licence = f"data/models/{name}", "Apache-2.0; sprites Apache-2.0, MIT, CC-BY-4.0"
    return System(name, title, where, EMOJI_RECIPE, unet, None, None, licence, "emoji-world", note)


_FP16_NOTE = "fp16 U-Net files since 2024-10-17; older revisions load without the variant."
_BASE = "stabilityai/stable-diffusion-xl-base-1.0"
SYSTEMS: tuple[System, ...] = (
    _koala("koala-lightning-700m", "KOALA-Lightning-700M", False, _LIGHTNING, _FP16_NOTE),
    _koala("koala-lightning-1b", "KOALA-Lightning-1B", True, _LIGHTNING, _FP16_NOTE),
    _koala("koala-700m", "KOALA-700M", False, _KOALA),
    _koala("koala-1b", "KOALA-1B", True, _KOALA),
    _koala("koala-700m-llava-cap", "KOALA-700M-LLaVA-Cap", False, _KOALA),
    _koala("koala-1b-llava-cap", "KOALA-1B-LLaVA-Cap", True, _KOALA),
    _turbo("koala-turbo-700m", "KOALA-Turbo-700M", False),
    _turbo("koala-turbo-1b", "KOALA-Turbo-1B", True),
    System("sdxl-base", "SDXL-Base-1.0", _BASE, _SDXL, {}, 2_567_463_684),
    System(
        "sdxl-turbo",
        "SDXL-Turbo",
        "stabilityai/sdxl-turbo",
        Recipe(None, "trailing", 1, 0.0, 512, 512, source="diffusers documentation: SDXL Turbo"),
        {},
        2_567_463_684,
        licence="sai-nc-community",
        note="1 to 4 steps, no guidance; the repository's own scheduler class.",
    ),
    System(
        "sdxl-lightning",
        "SDXL-Lightning",
        "ByteDance/SDXL-Lightning",
        _SDXL_LIGHTNING,
        {},
        2_567_463_684,
        licence="openrail++",
        note="The 4-step U-Net; text encoders and VAE from SDXL-Base. Other steps: other files.",
        unet_file="sdxl_lightning_4step_unet.safetensors",
        parts=_BASE,
    ),
    System(
        "sdm-v2.0",
        "SDM-v2.0",
        "stabilityai/stable-diffusion-2",
        Recipe(None, None, 25, None, 768, 768, source=_PROTOCOL),
        _SD_V2,
        865_910_724,
        licence="openrail++",
        note="A StableDiffusionPipeline with one text encoder.",
    ),
    System(
        "ssd-1b",
        "SSD-1B",
        "segmind/SSD-1B",
        Recipe(None, None, 25, 9.0, 1024, 1024, source="guidance: model card of segmind/SSD-1B"),
        _SSD_1B,
        1_331_334_404,
    ),
    System("segmind-vega", "Segmind-Vega", "segmind/Segmind-Vega", _SDXL, _VEGA, 745_225_604),
    _nano("nano-sdxl", "Nano-SDXL", {}),
    _nano("nano-koala-large", "Nano-KOALA-Large", _KOALA_1B),
    _nano("nano-koala", "Nano-KOALA", _KOALA_700M),
)


def data_folder() -> Path:
    """The data folder: environment variable KOALA_NB_DATA, else `data/` beside the package."""
    given = os.environ.get("KOALA_NB_DATA")
    return Path(given) if given else Path(__file__).resolve().parents[2] / "data"


def find(name: str) -> System:
    """The record of a system. Raises ValueError naming the nearest name and listing all."""
    names = [s.name for s in SYSTEMS]
    for system in SYSTEMS:
        if system.name == name:
            return system
    near = difflib.get_close_matches(str(name).lower(), names, n=1, cutoff=0.4)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"Unknown system {short(name)}.{hint} Known: {', '.join(names)}.")


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
    # A safetensors file opens with its header's length and the header, which names every shape.
    with open(file, "rb") as weights:
        header = json.loads(weights.read(struct.unpack("<Q", weights.read(8))[0]))
    return sum(prod(entry["shape"]) for key, entry in header.items() if key != "__metadata__")


def systems() -> "pd.DataFrame":
    """All systems, one row each; sizes in pixels, download in GB, None where unknown."""
    import pandas as pd

    rows = [_row(system) for system in SYSTEMS]
    whole = dict.fromkeys(("unet_parameters", "steps", "height", "width"), "Int64")
    return pd.DataFrame(rows).astype(whole)


def _row(system: System) -> dict[str, Any]:
    recipe = ("scheduler", "timestep_spacing", "steps", "guidance", "height", "width")
    return {
        **{key: getattr(system, key) for key in ("name", "domain", "repository")},
        "unet_parameters": unet_parameters(system),
        **{key: getattr(system.recipe, key) for key in recipe},
        "download_gb": system.download_gb,
        "licence": system.licence,
        "installed": installed(system),
        "note": system.note,
    }
