"""Captions of the emoji world: several paraphrases a kind, each attribute named only sometimes."""

import re

import numpy as np

from koala_nb.nano.world import COUNTS, Scene, Thing

PREFIXES = ("", "", "", "a drawing of ", "an emoji of ", "a picture of ")
BACKGROUND = ("on {} background", "on {} background", "in front of {}")
STYLE = (", {} style", ", {} style", " in {} style")
PRESENTATION_WORDS = {"woman": ("woman", "female"), "man": ("man", "male")}


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
