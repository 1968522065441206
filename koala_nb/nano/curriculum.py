"""What the family trains on: the mixture of scenes, their captions, and which noise they meet."""

from dataclasses import replace

import numpy as np

from koala_nb.core.files import Record
from koala_nb.nano.phrases import Phrasing, pick
from koala_nb.nano.world import STYLES, Placed, Scene, Thing, World

MIXTURE = {
    "object": 0.24,
    "person": 0.22,
    "pair": 0.16,
    "count": 0.11,
    "shape": 0.03,
    "shapes": 0.07,
    "person and object": 0.03,
    "sign": 0.14,
}
LAYOUT = ("pair", "count", "shapes", "person and object", "sign")  # half of them at high noise
SPELLED = 0.7  # share of the signs with random letters; the others hold a word
LETTERS = "abcdefghijklmnopqrstuvwxyz"
FREQUENCY_SHIFT = 2.0  # share proportional to 1 / (rank + 2): 50 : 1 within 150


class Curriculum:
    """Training scenes, each with its caption a pure function of its seed."""

    def __init__(self, n_objects: int | None) -> None:
        self.world = World(n_objects)
        weight = 1 / (np.arange(1, len(self.world.objects) + 1) + FREQUENCY_SHIFT)
        self.world.frequency = weight / weight.sum()
        self.phrasing = Phrasing()

    def scene(self, seed: int, kind: str | None = None) -> Scene:
        """Return the scene of a seed, its caption in training's many forms."""
        rng = np.random.default_rng([seed, 1])
        kind = kind or str(rng.choice(list(MIXTURE), p=list(MIXTURE.values())))
        scene = self.world.scene(seed, kind)
        if kind == "sign" and rng.random() < SPELLED:
            word = "".join(rng.choice(list(LETTERS), int(rng.integers(1, 5))))
            if word not in self.world.planted["held_out"]["words"]:  # else the sign keeps its word
                scene = with_thing(scene, Thing("sign", word))
        text, _ = self.phrasing.caption(scene, rng)
        return replace(scene, caption=text)


def with_thing(scene: Scene, thing: Thing) -> Scene:
    """Return the scene with another thing in its first place."""
    first = scene.placed[0]
    return replace(scene, placed=(Placed(thing, first.size, first.x, first.y), *scene.placed[1:]))


def swapped(scene: Scene, rng: np.random.Generator, world: World) -> Scene:
    """Return the nearest other scene: two things exchanged, else one attribute or thing changed."""
    placed = list(scene.placed)
    if scene.relation:
        one, other = placed
        placed = [replace(one, thing=other.thing), replace(other, thing=one.thing)]
        return replace(scene, placed=tuple(placed))
    changes = [name for name in ("background", "style") if name in scene.named]
    if changes and rng.random() < 0.3:
        name = pick(changes, rng)
        options = [*(STYLES if name == "style" else world.planted["backgrounds"])]
        options.remove(getattr(scene, name))
        change: Record = {name: pick(options, rng)}
        return replace(scene, **change)
    if scene.kind == "count":
        number = int(rng.choice([n for n in (2, 3, 4) if n != len(placed)]))
        return replace(scene, placed=tuple((placed * 2)[:number]))
    thing = placed[0].thing
    if thing.kind == "sign":
        at = int(rng.integers(len(thing.name)))
        return with_thing(
            scene, replace(thing, name=thing.name[:at] + pick(LETTERS, rng) + thing.name[at + 1 :])
        )
    if thing.kind == "object":
        return with_thing(scene, replace(thing, name=pick(world.objects, rng)))
    if thing.kind == "shape":
        color, shape = world.colored_shapes[int(rng.integers(len(world.colored_shapes)))]
        return with_thing(scene, Thing("shape", shape, color=color))
    return with_thing(scene, replace(thing, name=pick(world.occupations, rng)))
