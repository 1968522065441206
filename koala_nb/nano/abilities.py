"""What an embedded model can do beyond one thing on a background: phrasing, places, counts, signs.

Each share is of generated images, read by an instrument whose own share on rendered scenes passed
through the autoencoder stands beside it (`ceilings`).
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from PIL import Image

from koala_nb.nano.curriculum import LETTERS, with_thing
from koala_nb.nano.instruments import Clip, Matching
from koala_nb.nano.phrases import FRAMES, HELD_OUT_FRAMES, Phrasing
from koala_nb.nano.render import Renderer, to_pixels
from koala_nb.nano.train_clip import thing_text
from koala_nb.nano.world import Scene, Thing, World
from koala_nb.scorers.ocr import RapidReader
from koala_nb.stats.estimates import (
    Estimate,
    estimate_row,
    estimates_frame,
    paired_share_difference,
    share_interval,
)

FIRST_SEED = 20_000_000  # apart from the scenes of `evaluation`; those of training lie above 1e9
AXES = {"left of": "horizontal", "right of": "horizontal", "above": "vertical", "below": "vertical"}
Instruments = Sequence[Clip | Matching]
Draw = Callable[[Sequence[str]], torch.Tensor]  # prompts to images in -1..1, (n, 3, h, w)


def _share(hits: Sequence[bool]) -> Estimate:
    return share_interval(int(np.sum(hits)), len(hits))


def _tell(scenes: list[Scene], frames: Sequence[str]) -> list[str]:
    phrasing = Phrasing(tuple(frames), plain=True)
    return [phrasing.caption(s, np.random.default_rng([s.seed, 5]))[0] for s in scenes]


def sign_scenes(world: World, n: int) -> list[Scene]:
    """Return signs of 1 to 4 letters: every second one a word that training has seen."""
    words = [word for word in world.words if len(word) <= 4]
    scenes = []
    for i in range(n):
        rng = np.random.default_rng([FIRST_SEED, i])
        letters = "".join(rng.choice(list(LETTERS), 1 + i % 4))
        text = letters if i % 2 else words[int(rng.integers(len(words)))]
        scenes.append(with_thing(world.scene(FIRST_SEED + i, "sign"), Thing("sign", text)))
    return [replace(scene, caption=f"a sign that says {_text(scene)}") for scene in scenes]


def _text(scene: Scene) -> str:
    return scene.placed[0].thing.name


def expected_order(scene: Scene) -> list[str]:
    """Return the two things of a relation, the one on the left or at the top first."""
    things = [thing_text(placed.thing) for placed in scene.placed]
    return things if scene.relation in ("left of", "above") else things[::-1]


def phrasing(draw: Draw, world: World, instruments: Instruments, n: int) -> list[dict]:
    """Return shares of right objects under training's and held-out frames, and their difference."""
    scenes = [world.scene(FIRST_SEED + i, "object") for i in range(n)]
    images = {
        "training": draw(_tell(scenes, FRAMES)),
        "held_out": draw(_tell(scenes, HELD_OUT_FRAMES)),
    }
    rows = []
    for instrument in instruments:
        hits = {
            name: [
                reading["things"][0] == thing_text(scene.placed[0].thing)
                for reading, scene in zip(instrument.read(drawn, "object"), scenes, strict=True)
            ]
            for name, drawn in images.items()
        }
        key = f"object.phrasing.{{}}.{instrument.name.replace(' ', '_').replace('-', '_')}"
        for name, values in hits.items():
            label = f"object right, {name.replace('_', '-')} frames"
            rows.append(
                estimate_row(key.format(name), label, _share(values), scorer=instrument.name)
            )
        difference = paired_share_difference(
            np.array(hits["held_out"], float), np.array(hits["training"], float)
        )
        label = "object right, held-out less training frames"
        rows.append(
            estimate_row(key.format("difference"), label, difference, scorer=instrument.name)
        )
    return rows


def read_places(
    images: torch.Tensor, scenes: list[Scene], instrument: Clip | Matching
) -> tuple[list[bool], list[bool]]:
    """Return for each pair whether both things were read, and of those whether each is in place."""
    readings = instrument.read(images, "pair")
    both = [set(r["things"]) == set(expected_order(s)) for r, s in zip(readings, scenes)]
    placed = [
        reading["order"] == expected_order(scene) and reading["axis"] == AXES[scene.relation or ""]
        for reading, scene, read in zip(readings, scenes, both)
        if read
    ]
    return both, placed


def read_counts(
    images: torch.Tensor, scenes: list[Scene], instrument: Clip | Matching
) -> list[bool]:
    """Return for each scene of several alike whether their number was read."""
    readings = instrument.read(images, "count")
    return [r["number"] == len(s.placed) for r, s in zip(readings, scenes, strict=True)]


def read_signs(images: torch.Tensor, scenes: list[Scene], reader: RapidReader) -> list[bool]:
    """Return for each sign whether it was read exactly, upper case and spaces aside."""
    pictures = [Image.fromarray(pixels) for pixels in to_pixels(images)]
    readings = reader.read(pictures)
    return [
        reading.text.lower().replace(" ", "") == _text(scene)
        for reading, scene in zip(readings, scenes, strict=True)
    ]


def layout_and_signs(
    draw_scenes: Callable[[list[Scene]], torch.Tensor],
    world: World,
    instruments: Instruments,
    n: int,
    suffix: str = "",
) -> list[dict]:
    """Return shares of both things read, right places given both, right counts and signs read."""
    rows = []
    pairs = [world.scene(FIRST_SEED + i, "pair") for i in range(n)]
    counts = [world.scene(FIRST_SEED + i, "count") for i in range(n)]
    drawn = draw_scenes(pairs), draw_scenes(counts)
    for instrument in instruments:
        both, placed = read_places(drawn[0], pairs, instrument)
        shares = {"pair.both": ("both things of two", both)}
        if placed:
            shares["pair.place"] = ("right place, given both", placed)
        shares["count"] = ("counts of 2 to 4", read_counts(drawn[1], counts, instrument))
        name = instrument.name.replace(" ", "_").replace("-", "_")
        rows += [
            estimate_row(f"{key}{suffix}.{name}", label, _share(hits), scorer=instrument.name)
            for key, (label, hits) in shares.items()
        ]
    signs, reader = sign_scenes(world, n), RapidReader()
    hits = read_signs(draw_scenes(signs), signs, reader)
    label = "signs of 1 to 4 letters read exactly"
    return [*rows, estimate_row(f"sign.exact{suffix}", label, _share(hits), scorer=reader.name)]


def abilities(draw: Draw, world: World, instruments: Instruments, n: int) -> pd.DataFrame:
    """Return the estimates of a model that `draw` draws with, n prompts per kind."""

    def draw_scenes(scenes: list[Scene]) -> torch.Tensor:
        return draw([scene.caption for scene in scenes])

    rows = phrasing(draw, world, instruments, n)
    return estimates_frame([*rows, *layout_and_signs(draw_scenes, world, instruments, n)])


def ceilings(
    roundtrip: Callable[[torch.Tensor], torch.Tensor],
    world: World,
    instruments: Instruments,
    image_size: int,
    n: int,
) -> pd.DataFrame:
    """Return the same shares for rendered scenes that `roundtrip`, the autoencoder, has passed."""
    render = Renderer(image_size, [t for t in world.things() if t.kind != "sign"])

    def draw_scenes(scenes: list[Scene]) -> torch.Tensor:
        return torch.cat([roundtrip(render(scenes[i : i + 64])) for i in range(0, len(scenes), 64)])

    return estimates_frame(layout_and_signs(draw_scenes, world, instruments, n, suffix=".rendered"))
