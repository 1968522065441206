"""What a scorer reads in rendered scenes of people whose presentation is known."""

import torch

from koala_nb.core.files import Record
from koala_nb.models import load
from koala_nb.nano.evaluation import through
from koala_nb.nano.presets import preset_of
from koala_nb.nano.render import Renderer
from koala_nb.nano.scorers import ClipScorer
from koala_nb.nano.world import World

SCENES = 1000
FIRST_SEED = 70_000_000  # held out of training


def confusion(scenes: int = SCENES) -> Record:
    """Return presentations (woman, man) as `nano-clip` reads them in scenes through the VAE.

    `read`: counts, a row the rendered presentation, a column what was read.
    """
    preset = preset_of("nano-koala")
    world = World(preset.n_objects, balanced=True)
    drawn = [world.scene(FIRST_SEED + i, "person") for i in range(scenes)]
    vae = load.load("nano-koala", device="cpu", dtype="float32").vae
    people = [thing for thing in world.things() if thing.kind == "person"]
    clip, render = ClipScorer(), Renderer(preset.image_size, people)
    read = torch.zeros(2, 2, dtype=torch.long)
    for start in range(0, scenes, 64):
        some = drawn[start : start + 64]
        columns = clip.probabilities(through(vae, render(some)))["presentation"].argmax(1)
        for scene, column in zip(some, columns.tolist(), strict=True):
            read[int(scene.placed[0].thing.presentation == "man"), column] += 1
    return {"scorer": clip.name, "scenes": scenes, "read": read.tolist()}
