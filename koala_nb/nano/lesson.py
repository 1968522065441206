"""A small distillation to run inside a notebook: an embedded student, its teacher, fixed scenes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from koala_nb.core.catalog import data_folder
from koala_nb.core.files import Record
from koala_nb.generation.generate import generate
from koala_nb.models import load
from koala_nb.nano.presets import preset_of
from koala_nb.nano.render import Renderer, to_pixels
from koala_nb.nano.study import held_out_losses
from koala_nb.nano.train_unet import Batches, Denoiser, distiller_of
from koala_nb.nano.world import World

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Batch:
    """Noisy latents with what a U-Net is given: `unet(**inputs).sample` is the predicted noise.

    `noise`, (n, 4, h, w), is what was added; `weight`, (n,), what each picture weighs in L_task.
    """

    inputs: Record
    noise: torch.Tensor
    weight: torch.Tensor


class Lesson:
    """A student cut from an embedded teacher, with all that a training loop needs.

    `unet` is the student's U-Net in float32, `teacher` the teacher's frozen one, `pairs` the
    modules whose outputs are compared. FileNotFoundError where the teacher is not there.
    """

    def __init__(
        self, system: str, teacher: str = "nano-sdxl", feature: str = "self-attention"
    ) -> None:
        folder = data_folder() / "models" / teacher
        if not (folder / "training.json").is_file():
            raise FileNotFoundError(
                f"The teacher {teacher} is not at {folder}: restore the folder."
            )
        self.preset = preset_of(teacher)
        self.pipe = load.load(teacher, device="cpu", dtype="float32")
        self.module = Denoiser(self.preset, system, self.pipe.tokenizer).eval()
        self.distiller = distiller_of(self.module, folder, "cpu", feature)
        self.unet, self.teacher = self.module.unet, self.distiller.teacher
        self.pairs = self.distiller.pairs
        self.batches = Batches(self.preset, self.pipe.tokenizer, self.pipe.vae)

    def batch(self, number: int, size: int) -> Batch:
        """Return a batch of noisy scenes, a pure function of its number."""
        raw = self.batches(number, size)
        with torch.no_grad():
            inputs = self.module.conditions(raw["ids"], raw["zeroed"])
        inputs |= {"sample": raw["noisy"], "timestep": raw["timesteps"]}
        return Batch(inputs, raw["noise"], raw["weight"])

    def loss(self, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return L_task + L_out + L_feat on a batch, and its three parts, by the library's code."""
        return self.distiller.losses(
            lambda: self.unet(**batch.inputs).sample, batch.inputs, batch.noise, batch.weight
        )

    def held_out(self, batches: int = 2) -> dict[str, float]:
        """Return L_task and L_out on batches of 64 scenes that no training sees."""
        return held_out_losses(self.distiller, self.module, self.batches, batches)

    def draw(self, prompts: Sequence[str], seed: int = 0) -> list["Image"]:
        """Draw prompts with the student as it is now, at the recipe."""
        teacher, self.pipe.unet = self.pipe.unet, self.unet
        try:
            return list(generate(self.pipe, prompts, [seed], progress=False).images)
        finally:
            self.pipe.unet = teacher


def scenes(
    count: int, system: str = "nano-koala", kind: str | None = None
) -> tuple[list["Image"], list[str]]:
    """Return pictures of held-out scenes at an embedded system's size, and their captions."""
    from PIL import Image

    preset = preset_of(system)
    world = World(preset.n_objects)
    drawn = [world.scene(seed, kind) for seed in range(count)]
    pixels = to_pixels(Renderer(preset.image_size, world.things())(drawn))
    return [Image.fromarray(picture) for picture in pixels], [scene.caption for scene in drawn]
