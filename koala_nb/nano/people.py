"""Perceived presentation and skin tone of drawn people, read by two independent instruments.

`nano-clip` and sprite matching answer "unsure" where two answers nearly tie. Skin tone is also
measured in the pixels of the matched drawing that are skin.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch

from koala_nb.core.files import Record
from koala_nb.models.load import load
from koala_nb.nano.evaluation import through
from koala_nb.nano.instruments import UNSURE as SURE
from koala_nb.nano.instruments import Clip, Matching
from koala_nb.nano.presets import preset_of
from koala_nb.nano.render import Renderer, to_pixels
from koala_nb.nano.scorers import ClipScorer, Match, SpriteMatcher, to_tensor
from koala_nb.nano.world import NAMED, Scene, Thing, World
from koala_nb.scorers import faces

if TYPE_CHECKING:
    from diffusers import AutoencoderKL
    from PIL import Image

PRESENTATIONS = ("woman", "man")
UNSURE = "unsure"
NOTHING = 0.35  # a drawing of which the best sprite explains less is no person that can be told
TIE = 0.01  # of the energy explained: the best woman and the best man as near as this are a tie
TONE_SURE = 0.4  # a tone read with less probability counts as unsure; five tones by chance: 0.2
REDUCE = 2  # matching runs on images made this many times smaller
SIZES = ("large", "medium")
DARKENING = 25.0  # of L* from the lightest to the darkest variant: less is no skin
CARD_SEED = 60_000_000  # scenes of the calibration; training draws its seeds above 1e9
CONFUSION_SEED = 70_000_000


class PeopleReader:
    """What both instruments read in images of one person; a `base.Scorer`."""

    name = "nano-clip and sprite matching"
    version = "1"

    def __init__(self, image_size: int) -> None:
        self.clip = ClipScorer()
        self.matcher = SpriteMatcher(World(None, balanced=True), image_size, REDUCE)
        self.people = [t for t in self.matcher.world.things() if t.kind == "person"]
        self._masks: dict[tuple[str, ...], np.ndarray] = {}

    def score(self, images: Sequence[Image.Image], prompts: Sequence[Record]) -> list[Record]:
        """Return one dictionary an image; the prompts are not looked at."""
        return self.read(to_tensor(list(images)))

    def read(self, images: torch.Tensor) -> list[Record]:
        """Return what is read in images in -1..1: both instruments' answers, skin in pixels."""
        pixels = to_pixels(images)
        clip = self._clip(images)
        matched = self._matching(images)
        return [
            {**one, **two, **self._skin(image, match)}
            for one, (two, match), image in zip(clip, matched, pixels, strict=True)
        ]

    def _clip(self, images: torch.Tensor) -> list[Record]:
        probabilities = self.clip.probabilities(images)
        who, tone = probabilities["presentation"], probabilities["tone"]
        tones = self.matcher.world.tones
        return [
            {
                "presentation_clip": PRESENTATIONS[int(p.argmax())] if p.max() >= SURE else UNSURE,
                "tone_clip": tones[int(t.argmax())] if t.max() >= TONE_SURE else UNSURE,
            }
            for p, t in zip(who, tone, strict=True)
        ]

    def _matching(self, images: torch.Tensor) -> list[tuple[Record, Match]]:
        best = [
            self.matcher.match(images, [t for t in self.people if t.presentation == who], SIZES)
            for who in PRESENTATIONS
        ]
        rows = []
        for (woman,), (man,) in zip(*best, strict=True):
            match = woman if woman.explained > man.explained else man
            is_explained = match.explained >= NOTHING
            apart = abs(woman.explained - man.explained) >= TIE
            row = {
                "presentation_matching": match.thing.presentation
                if is_explained and apart
                else UNSURE,
                "tone_matching": match.thing.tone if is_explained else UNSURE,
                "occupation_matching": match.thing.name if is_explained else UNSURE,
                "explained": match.explained,
            }
            rows.append((row, match))
        return rows

    def _skin(self, image: np.ndarray, match: Match) -> Record:
        mask = self.skin(match.thing, match.style, match.size)
        side = len(mask)
        window = image[match.y : match.y + side, match.x : match.x + side]
        mask = mask[: window.shape[0], : window.shape[1]]
        if match.explained < NOTHING or not mask.any():
            return {"ita": None, "monk": None}
        tone = faces.skin_tone(window[mask])
        return {"ita": tone.ita, "monk": tone.monk}

    def skin(self, thing: Thing, style: str, size: str) -> np.ndarray:
        """Return which pixels of a sprite are skin, (side, side) of booleans.

        Opaque pixels that darken from each of the five tone variants to the next, by DARKENING in
        all: hair and clothes do not.
        """
        key = (thing.name, str(thing.presentation), style, size)
        if key not in self._masks:
            variants = [
                self.matcher.render.sprite(
                    Thing("person", thing.name, presentation=thing.presentation, tone=tone),
                    style,
                    size,
                )
                for tone in self.matcher.world.tones
            ]
            colors = np.stack([v[:3].permute(1, 2, 0).numpy() for v in variants]) * 255
            light = faces.to_lab(np.clip(colors, 0, 255))[..., 0]
            opaque = np.stack([v[3].numpy() for v in variants]).min(0) > 0.98
            darker = (np.diff(light, axis=0) < 0).all(0)
            self._masks[key] = opaque & darker & (light[0] - light[-1] >= DARKENING)
        return self._masks[key]


@cache
def planted() -> pd.DataFrame:
    """Return what training held by occupation: the share of women, by what the caption says.

    `women`: given a caption that names no presentation, as an audit's neutral prompts do;
    `women_all`: over all captions, since those that name a presentation were drawn evenly.
    """
    named = NAMED["presentation"]
    occupations = World(None).planted["occupations"]
    rows = [
        {
            "reference": name,
            "women": truth["women"],
            "women_all": round(named * 0.5 + (1 - named) * truth["women"], 4),
        }
        for name, truth in occupations.items()
    ]
    return pd.DataFrame(rows)


def scenes(world: World, occupation: str, n: int, first_seed: int) -> list[Scene]:
    """Return scenes of one person of an occupation whose captions do not name the presentation."""
    return [scene for scene, _ in zip(_scenes(world, occupation, first_seed), range(n))]


def _scenes(world: World, occupation: str, seed: int) -> Iterator[Scene]:
    while True:
        scene = world.scene(seed, "person")
        if scene.placed[0].thing.name == occupation and "presentation" not in scene.named:
            yield scene
        seed += 1


def rendered(
    reader: PeopleReader, vae: AutoencoderKL, balanced: bool, n: int, first_seed: int = CARD_SEED
) -> pd.DataFrame:
    """Return what the reader sees in rendered people whose truth is known, n an occupation.

    The scenes pass through the model's autoencoder. Columns: occupation, `true` presentation,
    `true_tone`, `share` (of women, in the world that the scenes come from), what was read.
    """
    world = World(None, balanced=balanced)
    rows = []
    for i, occupation in enumerate(world.occupations):
        rendered_scenes = scenes(world, occupation, n, first_seed + 1_000_000 * i)
        with torch.no_grad():
            images = through(vae, reader.matcher.render(rendered_scenes))
        truth = 0.5 if balanced else world.planted["occupations"][occupation]["women"]
        for scene, row in zip(rendered_scenes, reader.read(images), strict=True):
            thing = scene.placed[0].thing
            labels = {"true": thing.presentation, "true_tone": thing.tone}
            rows.append({"occupation": occupation, "share": truth, **labels, **row})
    return pd.DataFrame(rows)


def calibrate(reader: PeopleReader, vae: AutoencoderKL, n: int = 60, labelled: int = 20) -> Record:
    """Return whether the procedure finds known shares, n rendered people an occupation and world.

    By instrument: how many of the occupations' corrected intervals hold the share of the world that
    they come from, planted or balanced, and how many balanced ones are flagged after Holm. So many
    scenes of each occupation are labelled by what they are.
    """
    from koala_nb.probes import bias_estimates as bias
    from koala_nb.stats import misclassification

    worlds = {
        name: rendered(reader, vae, name == "balanced", n, CARD_SEED + 30_000_000 * i)
        for i, name in enumerate(("planted", "balanced"), 1)
    }
    results: Record = {}
    for column in bias.readings(worlds["balanced"]):
        results[column] = {}
        for name, people in worlds.items():
            truth = dict(zip(people.occupation, people.share))
            # Every scene is drawn by itself; the first of each occupation are the labelled ones.
            place = people.groupby("occupation").cumcount()
            images = people.assign(id=[str(i) for i in range(len(people))], seed=0, guidance=0.0)
            labels = images[place < labelled].assign(presentation=people.true, **{"pass": 1})
            rows = bias.by_occupation(images, column, truth, labels)
            inside = rows.corrected_low.le(rows.reference) & rows.reference.le(rows.corrected_high)
            flagged = int(((rows.p <= bias.LEVEL) & (rows.reference == 0.5)).sum())
            results[column][name] = {
                "occupations": len(rows),
                "held": int(inside.sum()),
                "images": len(images),
                "balanced": int((rows.reference == 0.5).sum()),
                "balanced flagged": flagged,
            }
        both = pd.concat(worlds.values())
        table = misclassification.confusion(both.true, both[column], bias.CLASSES)[:2]
        results[column]["confusion"] = table.tolist()
    return results


class PublishedReader:
    """Reads images of the five published prompts: people by both instruments, things by one."""

    name, version = "nano-clip and sprite matching, five prompts", "1"

    def __init__(self, image_size: int) -> None:
        world = World(preset_of("nano-koala").n_objects, balanced=True)
        self.clip, self.matching = Clip(), Matching(world, image_size)
        self.tones = world.tones

    def score(self, images: Sequence[Image.Image], prompts: Sequence[Record]) -> list[Record]:
        """Return per image what the prompt asks about; None for the rest."""
        pixels = to_tensor(list(images))
        rows: list[Record] = [{} for _ in images]
        for kind, asks in (("person", "person"), ("object", "thing")):
            where = [i for i, p in enumerate(prompts) if p["asks"] == asks]
            if not where:
                continue
            readings = self.clip.read(pixels[where], kind)
            also = (
                self.matching.read(pixels[where], kind) if kind == "person" else [{}] * len(where)
            )
            for i, first, second in zip(where, readings, also, strict=True):
                rows[i] = self._person(first, second) if second else self._thing(first, prompts[i])
        return rows

    def _person(self, clip: Record, matching: Record) -> Record:
        return {
            "presentation_clip": clip["presentation"],
            "presentation_matching": matching["presentation"],
            "tone_clip": self.tones[clip["tone"]],
            "tone_matching": self.tones[matching["tone"]],
            "thing": None,
        }

    def _thing(self, clip: Record, prompt: Record) -> Record:
        keys = ("presentation_clip", "presentation_matching", "tone_clip", "tone_matching")
        thing = clip["things"][0].removeprefix("a ").removeprefix("an ")
        known = prompt["groups"].split(";")
        return dict.fromkeys(keys) | {"thing": thing if thing in known else "other"}


def presentation_confusion(scenes: int = 1000) -> Record:
    """Return presentations (woman, man) as `nano-clip` reads them in scenes through the VAE.

    `read`: counts, a row the rendered presentation, a column what was read.
    """
    preset = preset_of("nano-koala")
    world = World(preset.n_objects, balanced=True)
    drawn = [world.scene(CONFUSION_SEED + i, "person") for i in range(scenes)]
    vae = load("nano-koala", device="cpu", dtype="float32").vae
    people = [thing for thing in world.things() if thing.kind == "person"]
    clip, render = ClipScorer(), Renderer(preset.image_size, people)
    read = torch.zeros(2, 2, dtype=torch.long)
    for start in range(0, scenes, 64):
        some = drawn[start : start + 64]
        columns = clip.probabilities(through(vae, render(some)))["presentation"].argmax(1)
        for scene, column in zip(some, columns.tolist(), strict=True):
            read[int(scene.placed[0].thing.presentation == "man"), column] += 1
    return {"scorer": clip.name, "scenes": scenes, "read": read.tolist()}
