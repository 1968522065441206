"""Sprite matching for the frequency probe: what it reads, how near a copy is, its instrument card.

The reader is a forced choice among the probe's concepts; its errors are measured on scenes that are
rendered, broken on purpose where they should fail, and passed through the model's autoencoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from PIL import Image

from koala_nb.core.files import Record
from koala_nb.nano.evaluation import through
from koala_nb.nano.presets import preset_of
from koala_nb.nano.render import to_pixels
from koala_nb.nano.scorers import Match, SpriteMatcher, to_tensor
from koala_nb.nano.world import BACKGROUNDS, Placed, Scene, Thing, World
from koala_nb.stats import estimates

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

SIZES = ("large", "medium", "small")
NOTHING = 0.15  # a best sprite that explains less of the foreground is no sighting: see the card
SHIFT = 2  # pixels by which the aligned sprite may be off: matching runs at half resolution
CARD_SEED = 50_000_000  # scenes of the card; `evaluate` uses other held-out seeds


class Vocabulary(World):
    """A balanced world of the given concepts or words only, for the scorer and its card."""

    def __init__(self, concepts: Sequence[str], kind: str = "object") -> None:
        super().__init__(None, balanced=True)
        unknown = [c for c in concepts if kind == "object" and c not in self.objects]
        if unknown:
            raise ValueError(f"The emoji world has no drawing of {unknown[0]!r}: name another.")
        self.kind = kind
        self.objects, self.words = (list(concepts),) * 2
        self.frequency = np.ones(len(self.objects)) / len(self.objects)

    def things(self) -> list[Thing]:
        """Return what is to be told apart, and nothing else."""
        return [Thing(self.kind, name) for name in self.objects]


class SpriteReader:
    """Which of a set of concepts (or words on signs) an image shows, and all else of its sprite."""

    name = "sprite matching"
    version = "1"

    def __init__(self, concepts: Sequence[str]) -> None:
        self.concepts = list(dict.fromkeys(concepts))
        self._matchers: dict[tuple[str, int], SpriteMatcher] = {}

    @cached_property
    def words(self) -> list[str]:
        """The words that a sign is compared with: all of training and all held out."""
        return World(None, balanced=True).words

    def matcher(self, kind: str, size: int) -> SpriteMatcher:
        """Return the matcher of objects or signs at an image size, made once."""
        if (kind, size) not in self._matchers:
            names = self.concepts if kind == "object" else self.words
            # Letters vanish at half resolution.
            reduce = 2 if kind == "object" else 1
            self._matchers[kind, size] = SpriteMatcher(Vocabulary(names, kind), size, reduce)
        return self._matchers[kind, size]

    def score(self, images: Sequence[Image.Image], prompts: Sequence[Record]) -> list[Record]:
        """Return what was read in each image, and whether it is what its prompt asked for."""
        pixels = to_tensor(list(images))
        kinds = np.array(["sign" if prompt.get("word") else "object" for prompt in prompts])
        rows: list[Record] = [{} for _ in prompts]
        for kind in np.unique(kinds):
            where = np.flatnonzero(kinds == kind)
            for i, reading in zip(where.tolist(), self.read(pixels[where], str(kind)), strict=True):
                prompt = prompts[i]
                target = prompt["word"] if kind == "sign" else prompt["concept"]
                rows[i] = {"hit": reading["read"] == target, **reading}
        return rows

    def read(self, images: torch.Tensor, kind: str = "object") -> list[Record]:
        """Return per image (-1..1) the sprite found, its look and place, and its distance.

        `read` is None where the best sprite explains less than NOTHING; x, y in pixels; `distance`
        in grey levels, as of `distance`.
        """
        matcher = self.matcher(kind, images.shape[-1])
        sizes = SIZES if kind == "object" else SIZES[:1]
        matches = matcher.match(images, matcher.world.things(), sizes)
        grounds = matcher.background(images)
        return [
            {
                "read": match.thing.name if match.explained >= NOTHING else None,
                "explained": match.explained,
                "painted": ground,
                "style_read": match.style,
                "size_read": match.size,
                "x": match.x,
                "y": match.y,
                "distance": distance(matcher, image, match, ground),
            }
            for image, (match,), ground in zip(images, matches, grounds, strict=True)
        ]


def distance(matcher: SpriteMatcher, image: torch.Tensor, match: Match, ground: str) -> float:
    """Return the root mean square difference of an image and a sprite on the sprite's pixels.

    In grey levels (0 to 255) over three channels, at the best of all shifts up to SHIFT pixels.
    """
    color = (torch.tensor(BACKGROUNDS[ground]) / 127.5 - 1)[:, None, None]
    sprite = matcher.render.sprite(match.thing, match.style, match.size)
    alpha = sprite[3:]
    drawn = 2 * sprite[:3] - 1 + (1 - alpha) * (color + 1)
    side, reach = drawn.shape[-1], 2 * SHIFT
    padded = F.pad(image - color, (SHIFT,) * 4) + color
    part = padded[:, match.y : match.y + side + reach, match.x : match.x + side + reach]
    windows = part.unfold(1, side, 1).unfold(2, side, 1)  # channel, shift, shift, row, column
    square = (windows - drawn[:, None, None]).square() * alpha[0]
    mean = square.sum((0, 3, 4)) / (3 * alpha.sum())
    return float(mean.min().sqrt() * 127.5)


def nearest(reader: SpriteReader, rows: Sequence[Record], size: int) -> list[Image.Image]:
    """Return the rendered sprites that were found in images, on the grounds that were read.

    `rows` as of `SpriteReader.read`, each an object that was recognised; these are the pictures
    that the distance compares with.
    """
    matcher = reader.matcher("object", size)
    units = size // 64
    recognised = [
        Scene(
            "object",
            row["style_read"],
            row["painted"],
            (
                Placed(
                    Thing("object", row["read"]),
                    row["size_read"],
                    row["x"] // units,
                    row["y"] // units,
                ),
            ),
        )
        for row in rows
    ]
    return [Image.fromarray(picture) for picture in to_pixels(matcher.render(recognised))]


def scenes(concepts: Sequence[str], n: int, first: int = CARD_SEED) -> list[Scene]:
    """Return n scenes of one object each, the concepts in turn, all else drawn evenly."""
    world = Vocabulary(concepts)
    return [
        _with(world.scene(first + i, "object"), Thing("object", concepts[i % len(concepts)]))
        for i in range(n)
    ]


def _with(scene: Scene, thing: Thing) -> Scene:
    return replace(scene, placed=(replace(scene.placed[0], thing=thing),))


def mixtures(matcher: SpriteMatcher, some: Sequence[Scene]) -> torch.Tensor:
    """Return images that no training ever showed: two sprites in one place.

    In turn blended half and half, and cut in the middle; the second sprite is the next scene's.
    """
    others = [_with(s, some[(i + 1) % len(some)].placed[0].thing) for i, s in enumerate(some)]
    one, two = matcher.render(list(some)), matcher.render(others)
    half = one.shape[-1] // 2
    cut = torch.cat([one[..., :half], two[..., half:]], dim=-1)
    return torch.where(torch.arange(len(one))[:, None, None, None] % 2 == 0, (one + two) / 2, cut)


def card(
    reader: SpriteReader, vae: AutoencoderKL, prompts: pd.DataFrame, per_bin: int, size: int
) -> Record:
    """Return the reader's instrument card, measured on images through a model's autoencoder.

    Ceiling: `per_bin` rendered scenes of each frequency bin. Floor: mixtures, noise and empty
    grounds. `copy` is the distance that best tells sprites from mixtures, chosen on one half of
    the scenes (Youden's index) and measured on the other. Counts are (right, of).
    """
    matcher = reader.matcher("object", size)
    parts = [
        _ceiling(reader, matcher, vae, str(name), group.concept.tolist(), per_bin, CARD_SEED + k)
        for k, (name, group) in enumerate(prompts.groupby("bin", sort=False))
    ]
    rows = pd.concat(parts, ignore_index=True)
    unlike = scenes(prompts.concept.tolist(), len(rows), CARD_SEED * 2)
    mixed = pd.DataFrame(reader.read(through(vae, mixtures(matcher, unlike))))
    copy = threshold(rows.distance[::2], mixed.distance[::2])
    bins = {str(b): _right(g.hit) for b, g in rows.groupby("bin", sort=False)}
    return {
        "scenes": f"{per_bin} rendered scenes a frequency bin, through the autoencoder",
        "sensitivity": bins,
        # An image of another concept must not be read as the one asked for.
        "specificity": _right(~rows.as_wrong),
        "background": _right(rows.ground_right),
        "style": _right(rows.style_right),
        "words": _words(reader, vae, size, per_bin),
        **_floor(reader, size, per_bin),
        "copy": {
            "distance": copy,
            "sensitivity": _right(rows.distance[1::2] <= copy),
            "specificity": _right(mixed.distance[1::2] > copy),
        },
        "read": rows[["concept", "hit"]].assign(hit=rows.hit.astype(int)).to_dict("list"),
    }


def _ceiling(
    reader: SpriteReader,
    matcher: SpriteMatcher,
    vae: AutoencoderKL,
    name: str,
    concepts: list[str],
    n: int,
    first: int,
) -> pd.DataFrame:
    some = scenes(concepts, n, first * 10)
    rows = pd.DataFrame(reader.read(through(vae, matcher.render(some))))
    drawn = [s.placed[0].thing.name for s in some]
    # The concept that the same image would be asked for if its caption belonged to the next one.
    wrong = [concepts[(concepts.index(c) + 1) % len(concepts)] for c in drawn]
    return rows.assign(
        bin=name,
        concept=drawn,
        hit=rows.read == drawn,
        as_wrong=rows.read == wrong,
        ground_right=rows.painted == [s.background for s in some],
        style_right=rows.style_read == [s.style for s in some],
    )


def _words(reader: SpriteReader, vae: AutoencoderKL, size: int, n: int) -> list[int]:
    matcher = reader.matcher("sign", size)
    world = Vocabulary(reader.words, "sign")
    drawn = [reader.words[i % len(reader.words)] for i in range(n)]
    some = [
        _with(world.scene(CARD_SEED * 3 + i, "sign"), Thing("sign", word))
        for i, word in enumerate(drawn)
    ]
    readings = reader.read(through(vae, matcher.render(some)), "sign")
    return _right([r["read"] == word for r, word in zip(readings, drawn, strict=True)])


def _floor(reader: SpriteReader, size: int, n: int) -> dict[str, list[int]]:
    """Return how often nothing is read where nothing is: in noise, and on empty named grounds."""
    rng = torch.Generator().manual_seed(0)
    noise = torch.rand(n, 3, size, size, generator=rng) * 2 - 1
    named = torch.tensor(list(BACKGROUNDS.values())) / 127.5 - 1
    empty = named[torch.arange(n) % len(named)][..., None, None] + 0.02 * noise
    blank = {"nothing read in noise": noise, "nothing read on an empty ground": empty}
    return {
        name: _right([row["read"] is None for row in reader.read(images)])
        for name, images in blank.items()
    }


def threshold(copies: Sequence[float], others: Sequence[float]) -> float:
    """Return the distance, in steps of half a grey level, that best tells copies from others."""
    grid = np.arange(0, 128, 0.5)
    near, far = (np.asarray(v)[:, None] <= grid for v in (copies, others))
    return float(grid[(near.mean(0) - far.mean(0)).argmax()])


def _right(hits: Any) -> list[int]:
    right = np.asarray(hits, dtype=bool)
    return [int(right.sum()), len(right)]


def training_pairs(
    system: str, n: int = 2000, seed: int = CARD_SEED * 4
) -> dict[str, estimates.Estimate]:
    """Return how alike two training scenes of one concept are: same ground, style, both.

    Scenes of one untied object each, in pairs, as the source of a system's training draws them.
    """
    world = World(preset_of(system).n_objects)
    tied = {*world.planted["tied_background"], *world.planted["tied_style"]}
    world.frequency = np.array([0.0 if o in tied else 1.0 for o in world.objects])
    world.frequency /= world.frequency.sum()
    drawn = [world.scene(seed + i, "object") for i in range(2 * n)]
    pairs = list(zip(drawn[::2], drawn[1::2], strict=True))
    ground = [a.background == b.background for a, b in pairs]
    style = [a.style == b.style for a, b in pairs]
    both = [g and s for g, s in zip(ground, style, strict=True)]
    alike = {"background": ground, "style": style, "both": both}
    return {name: estimates.share_interval(sum(v), n) for name, v in alike.items()}
