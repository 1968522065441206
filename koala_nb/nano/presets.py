"""The configurations of the embedded family; nothing outside this file knows a size."""

import json
from dataclasses import dataclass, field, replace

from koala_nb.core.catalog import data_folder
from koala_nb.core.errors import unknown_name
from koala_nb.core.files import Record
from koala_nb.distillation.loop import Stage

FACTOR = 4  # pixels per latent
START_SIZE = 64  # pixels: the smallest that the world draws
SYSTEMS: dict[str, Record] = {
    "nano-sdxl": {"layers_per_block": 2, "transformer_layers_per_block": [1, 2, 10]},
    "nano-koala-large": {"layers_per_block": 1, "transformer_layers_per_block": [1, 2, 6]},
    "nano-koala": {
        "layers_per_block": 1,
        "transformer_layers_per_block": [1, 2, 5],
        "mid_block_type": None,
    },
}


@dataclass(frozen=True)
class Preset:
    """One configuration: what is drawn, how wide the models are, how long each stage trains."""

    name: str
    image_size: int
    n_objects: int | None
    max_length: int
    vae_channels: tuple[int, ...]
    crop: int
    stages: dict[str, Stage]
    widths: tuple[int, ...] = (32, 64, 128)
    vocabulary: int = 3000
    text_widths: tuple[int, int] = (64, 128)
    text_layers: int = 3
    scenes: int = 0
    start_scenes: int = 0  # of START_SIZE, on which the U-Nets begin
    clip: dict[str, int] = field(default_factory=dict)

    def for_start(self) -> "Preset":
        """Return the configuration of the stage `start`: smaller images, fewer scenes."""
        return replace(self, image_size=START_SIZE, scenes=self.start_scenes)

    @property
    def latent_size(self) -> int:
        """Side of the latents in cells."""
        return self.image_size // FACTOR


SMALL = Preset(
    name="small",
    image_size=64,
    n_objects=150,
    max_length=32,
    vae_channels=(24, 48, 64),
    crop=32,
    clip={"patch": 8, "width": 128, "layers": 4, "heads": 4},
    stages={
        "vae": Stage(samples=120_000, batch=128, rate=2e-3, warmup=50),
        "decoder": Stage(samples=45_000, batch=128, rate=1e-3, warmup=50),
        "clip": Stage(samples=700_000, batch=128, rate=1e-3, warmup=200),
        "direct": Stage(samples=416_000, batch=64, rate=1e-3),
        "teacher": Stage(samples=240_000, batch=64, rate=8e-4),
        "student": Stage(samples=200_000, batch=64, rate=5e-4),
    },
)
FAMILY = Preset(
    name="family",
    image_size=128,
    n_objects=150,
    max_length=48,
    vae_channels=(24, 48, 64),
    crop=64,
    vocabulary=4000,
    text_widths=(96, 160),
    text_layers=4,
    scenes=100_000,
    start_scenes=100_000,
    clip={"patch": 16, "width": 128, "layers": 4, "heads": 4},
    stages={
        "vae": Stage(samples=150_000, batch=64, rate=1e-3, warmup=100),
        "decoder": Stage(samples=200_000, batch=64, rate=5e-4, warmup=50),
        "clip": Stage(samples=700_000, batch=128, rate=1e-3, warmup=200),
        "text": Stage(samples=192_000, batch=64, rate=1e-3, warmup=300),
        "start": Stage(samples=100_000, batch=64, rate=1e-3, decay=0.2, beta2=0.99),
        "teacher": Stage(samples=200_000, batch=64, rate=6e-4, beta2=0.99),
        "student": Stage(samples=100_000, batch=64, rate=5e-4, beta2=0.99),
        "control": Stage(samples=100_000, batch=64, rate=5e-4, beta2=0.99),
    },
)
# The same for a GPU: more scenes in larger batches.
FULL = replace(
    FAMILY,
    name="full",
    scenes=800_000,
    stages={
        **FAMILY.stages,
        "teacher": replace(FAMILY.stages["teacher"], samples=1_500_000, batch=512, rate=1.5e-3),
        "student": replace(FAMILY.stages["student"], samples=800_000, batch=512, rate=1e-3),
        "control": replace(FAMILY.stages["control"], samples=800_000, batch=512, rate=1.5e-3),
    },
)
PRESETS = {preset.name: preset for preset in (SMALL, FAMILY, FULL)}


def find_preset(name: str) -> Preset:
    """Return a configuration by its name; ValueError, with the nearest one, for another name."""
    if name not in PRESETS:
        raise unknown_name("configuration", name, PRESETS)
    return PRESETS[name]


def preset_of(system: str) -> Preset:
    """Return the configuration that the embedded system's weights were trained at."""
    record = data_folder() / "models" / system / "training.json"
    return PRESETS[json.loads(record.read_text("utf-8"))["configuration"]]


def training_record(preset: Preset, stage: str) -> Record:
    """Return how a stage trains, for `training.json` beside the weights and for model cards."""
    import torch

    plan = preset.stages[stage]
    return {
        "configuration": preset.name,
        "stage": stage,
        "image_size": preset.image_size,
        "objects": preset.n_objects or "all",
        "samples": plan.samples,
        "batch": plan.batch,
        "rate": plan.rate,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "a CPU",
        "distilled": stage == "student",
    }
