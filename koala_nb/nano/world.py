"""The emoji world: scenes whose truth is known, each a pure function of its seed.

A scene knows its sprites, places, attributes and caption. Lengths are in units of 1/64 of the
image's side, so that one scene can be drawn at 64 or 128 pixels.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache

import numpy as np

from koala_nb.core.catalog import data_folder
from koala_nb.core.files import Record

UNITS = 64
SIZES = {"large": 54, "medium": 42, "small": 27, "tiny": 22}
STYLES = ("noto", "fluent", "twemoji")
RELATIONS = ("left of", "right of", "above", "below")
COUNTS = {2: "two", 3: "three", 4: "four"}
BACKGROUNDS = {
    "red": (226, 61, 61),
    "orange": (255, 152, 46),
    "yellow": (255, 224, 77),
    "green": (84, 184, 92),
    "blue": (66, 133, 234),
    "purple": (146, 82, 196),
    "pink": (255, 170, 204),
    "brown": (134, 90, 58),
    "gray": (150, 150, 150),
    "white": (255, 255, 255),
}
KINDS = {
    "object": 0.30,
    "person": 0.36,
    "pair": 0.12,
    "count": 0.06,
    "shape": 0.04,
    "shapes": 0.05,
    "person and object": 0.03,
    "sign": 0.04,
}
SHAPE_COLORS = "red orange yellow green blue purple brown black white".split()
ALL_SHAPES = [(color, shape) for color in SHAPE_COLORS for shape in ("heart", "circle", "square")]
HELD_OUT_SEEDS = range(0, 1_000_000_000)  # training draws its seeds above these
PREFIXES = ("", "", "", "a drawing of ", "an emoji of ", "a picture of ")
BACKGROUND = ("on {} background", "on {} background", "in front of {}")
STYLE = (", {} style", ", {} style", " in {} style")
PRESENTATION_WORDS = {"woman": ("woman", "female"), "man": ("man", "male")}


@dataclass(frozen=True)
class Thing:
    """What a sprite shows: an object, a person, a coloured shape or a sign with a word."""

    kind: str
    name: str
    color: str | None = None
    presentation: str | None = None
    tone: str | None = None


@dataclass(frozen=True)
class Placed:
    """A thing on the canvas: its size class and its top left corner, in units."""

    thing: Thing
    size: str
    x: int
    y: int

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Left, top, right, bottom in units (right and bottom exclusive)."""
        side = SIZES[self.size]
        return self.x, self.y, self.x + side, self.y + side


@dataclass(frozen=True)
class Scene:
    """One image's whole truth; `named` holds the attributes that its caption states."""

    kind: str
    style: str
    background: str
    placed: tuple[Placed, ...]
    relation: str | None = None
    named: frozenset[str] = frozenset()
    caption: str = ""
    seed: int = field(default=-1, compare=False)


@cache
def load_json(name: str) -> Record:
    """Return a JSON file of `data/world/`."""
    path = data_folder() / "world" / name
    if not path.is_file():
        raise FileNotFoundError(f"The emoji world needs {path}, which is missing: restore it.")
    return json.loads(path.read_text(encoding="utf-8"))


class World:
    """A seeded source of scenes; `n_objects` keeps the most frequent concepts only.

    With `balanced=True` every attribute is drawn evenly and nothing is held out: the world of the
    scorers, which must not share the skews that they measure.
    """

    def __init__(self, n_objects: int | None = None, balanced: bool = False) -> None:
        planted = load_json("planted.json")
        self.planted = planted
        self.balanced = balanced
        self.objects = list(planted["objects"])[:n_objects]
        weight = np.array([planted["objects"][name] for name in self.objects])
        self.frequency = np.ones_like(weight) / len(weight) if balanced else weight / weight.sum()
        self.occupations = list(planted["occupations"])
        self.tones = list(next(iter(planted["occupations"].values()))["tones"])
        held_out = planted["held_out"]
        self.colored_shapes = [
            s for s in ALL_SHAPES if balanced or list(s) not in held_out["colored_shapes"]
        ]
        self.words = planted["words"] + (held_out["words"] if balanced else [])
        self.held_out = (
            set()
            if balanced
            else {
                *(frozenset(pair) for pair in held_out["pairs"]),
                *(tuple(cell) for cell in held_out["people"]),
            }
        )

    def things(self) -> list[Thing]:
        """Return all that this world can show, for a renderer."""
        people = [
            Thing("person", occupation, presentation=presentation, tone=tone)
            for occupation in self.occupations
            for presentation in ("woman", "man")
            for tone in self.tones
        ]
        shapes = [Thing("shape", shape, color=color) for color, shape in ALL_SHAPES]
        signs = [Thing("sign", word) for word in self.words]
        return [*(Thing("object", name) for name in self.objects), *people, *shapes, *signs]

    def scene(self, seed: int, kind: str | None = None) -> Scene:
        """Return the scene of a seed; `kind` (a key of KINDS) fixes what it is about."""
        if kind is not None and kind not in KINDS:
            raise ValueError(f"Unknown scene kind {kind!r}: choose one of {', '.join(KINDS)}.")
        rng = np.random.default_rng(seed)
        kind = kind or str(rng.choice(list(KINDS), p=list(KINDS.values())))
        named = {a for a, p in NAMED.items() if rng.random() < p}
        things, relation = self._things(kind, named, rng)
        style, background = self._setting(things, rng)
        placed = _place(things, kind, relation, rng)
        if kind not in ("object", "shape", "person") or placed[0].size == "medium":
            named.discard("size")
        if not any(thing.kind == "person" for thing in things):
            named -= {"presentation", "tone"}
        scene = Scene(kind, style, background, placed, relation, frozenset(named), "", seed)
        return Scene(**{**scene.__dict__, "caption": caption(scene, rng)})

    def _things(
        self, kind: str, named: set[str], rng: np.random.Generator
    ) -> tuple[list[Thing], str | None]:
        relation = RELATIONS[rng.integers(4)]
        if kind == "object":
            return [self._object(rng)], None
        if kind == "person":
            return [self._person(named, rng)], None
        if kind == "count":
            return [self._object(rng)] * int(rng.integers(2, 5)), None
        if kind == "shape":
            return [self._shape(rng)], None
        if kind == "sign":
            return [Thing("sign", str(rng.choice(self.words)))], None
        if kind == "shapes":
            return self._two(lambda: self._shape(rng)), relation
        if kind == "pair":
            return self._two(lambda: self._object(rng)), relation
        things = [self._person(named, rng), self._object(rng)]
        return things if rng.random() < 0.5 else things[::-1], relation

    def _two(self, draw: Callable[[], Thing]) -> list[Thing]:
        while True:
            first, second = draw(), draw()
            if first != second and frozenset((first.name, second.name)) not in self.held_out:
                return [first, second]

    def _object(self, rng: np.random.Generator) -> Thing:
        return Thing("object", self.objects[rng.choice(len(self.objects), p=self.frequency)])

    def _shape(self, rng: np.random.Generator) -> Thing:
        color, shape = self.colored_shapes[rng.integers(len(self.colored_shapes))]
        return Thing("shape", shape, color=color)

    def _person(self, named: set[str], rng: np.random.Generator) -> Thing:
        occupation = self.occupations[rng.integers(len(self.occupations))]
        truth = self.planted["occupations"][occupation]
        even = self.balanced or "presentation" in named
        woman = rng.random() < (0.5 if even else truth["women"])
        presentation = "woman" if woman else "man"
        tones = None if self.balanced or "tone" in named else list(truth["tones"].values())
        if tones is not None:
            tones = np.array(tones) / np.sum(tones)
        while True:
            tone = self.tones[rng.choice(len(self.tones), p=tones)]
            if (occupation, presentation, tone) not in self.held_out:
                return Thing("person", occupation, presentation=presentation, tone=tone)

    def _setting(self, things: list[Thing], rng: np.random.Generator) -> tuple[str, str]:
        style, background = STYLES[rng.integers(3)], list(BACKGROUNDS)[rng.integers(10)]
        planted, name = self.planted, things[0].name
        if not self.balanced and rng.random() < planted["tied_share"]:
            style = planted["tied_style"].get(name, style)
            background = planted["tied_background"].get(name, background)
        same = any(t.kind == "shape" and t.color == background for t in things)
        # A red heart on red would not be seen.
        return style, "pink" if same else background


NAMED = {"background": 0.75, "style": 0.5, "size": 0.6, "presentation": 0.6, "tone": 0.5}


def _place(
    things: list[Thing], kind: str, relation: str | None, rng: np.random.Generator
) -> tuple[Placed, ...]:
    """Put things on the canvas: alone, in a relation, or in rows of two."""

    def near(center: float, side: int, jitter: int) -> int:
        corner = round(center - side / 2 + rng.uniform(-jitter, jitter))
        return int(np.clip(corner, 0, UNITS - side))

    def put(thing: Thing, size: str, cx: float, cy: float, jitter: int) -> Placed:
        side = SIZES[size]
        return Placed(thing, size, near(cx, side, jitter), near(cy, side, jitter))

    if kind == "sign":
        return (put(things[0], "large", 32, 32, 3),)
    if len(things) == 1:
        sizes = ("large", "medium") if kind == "person" else ("large", "medium", "small")
        size = str(rng.choice(sizes))
        return (put(things[0], size, 32, 32, {"large": 4, "medium": 5, "small": 6}[size]),)
    if relation is not None:
        centers = [(17, 32), (47, 32)] if relation.endswith("of") else [(32, 17), (32, 47)]
        centers = centers if relation in ("left of", "above") else centers[::-1]
        return tuple(put(t, "small", *center, 2) for t, center in zip(things, centers, strict=True))
    spots = {
        2: [(18, 32), (46, 32)],
        3: [(18, 18), (46, 18), (32, 46)],
        4: [(18, 18), (46, 18), (18, 46), (46, 46)],
    }[len(things)]
    return tuple(put(t, "tiny", *spot, 2) for t, spot in zip(things, spots, strict=True))


def article(words: str) -> str:
    """Return the words with their indefinite article; plurals (grapes, scissors) take none."""
    head = re.split(" (?:with|in|over|holding) ", words)[0]  # "face with horns" is one face
    if head.endswith("s") and not head.endswith(("ss", "us", "rhinoceros")):
        return words
    like_a_vowel = words.startswith(("a", "e", "i", "o", "u", "hour"))
    like_a_consonant = words.startswith(("one ", "euro", "unicorn"))
    return ("an " if like_a_vowel and not like_a_consonant else "a ") + words


def phrase(thing: Thing, named: frozenset[str], rng: np.random.Generator, size: str = "") -> str:
    """Return the noun phrase of a thing, naming only the attributes in `named`."""
    words = thing.name
    if thing.kind == "sign":
        return f"a sign that says {thing.name}"
    if thing.kind == "shape":
        words = f"{thing.color} {thing.name}"
    if thing.presentation and "presentation" in named:
        words = f"{rng.choice(PRESENTATION_WORDS[thing.presentation])} {words}"
    words = article(f"{size} {words}".strip())
    if thing.tone and "tone" in named:
        words += f" with {thing.tone} skin"
    return words


def subject(scene: Scene, rng: np.random.Generator) -> str:
    """Return what the scene shows, without its background and style."""
    first = scene.placed[0]
    if scene.kind == "count":
        return f"{COUNTS[len(scene.placed)]} {first.thing.name} emoji"
    if scene.relation:
        link = {"left of": "to the left of", "right of": "to the right of"}.get(
            scene.relation, scene.relation
        )
        one, other = (phrase(p.thing, scene.named, rng) for p in scene.placed)
        return f"{one} {link} {other}"
    return phrase(first.thing, scene.named, rng, first.size if "size" in scene.named else "")


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """Return one paraphrase of a scene's caption, drawn with `rng`."""
    words = str(rng.choice(PREFIXES)) if scene.kind != "count" else ""
    words += subject(scene, rng)
    if "background" in scene.named:
        place, color = str(rng.choice(BACKGROUND)), scene.background
        words += " " + place.format(article(color) if place.startswith("on") else color)
    if "style" in scene.named:
        words += str(rng.choice(STYLE)).format(scene.style)
    return words
