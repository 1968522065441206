"""How a scene is put into words: 52 frames, synonyms, plurals, typos; ten more frames are held out.

A caption is a frame filled with a subject, a background and a style. `data/world/phrases.json`
holds the words: {s} is the subject, {b} a background, {ab} the same with its article, {t} a style;
a part in brackets is left out where the caption does not name what it tells. Held-out frames never
occur in training: they measure whether free phrasing is understood.
"""

import re
from collections.abc import Collection, Sequence
from functools import cache

import numpy as np

from koala_nb.nano.world import COUNTS, Scene, Thing, article, load_json

PHRASES = load_json("phrases.json")
FRAMES: tuple[str, ...] = tuple(PHRASES["frames"])
HELD_OUT_FRAMES: tuple[str, ...] = tuple(PHRASES["held_out_frames"])
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
FILLED = 0.25  # share of the captions with words that tell nothing
TYPOS = 0.2  # share of the captions with slips


@cache
def synonyms() -> dict[str, tuple[str, ...]]:
    """Return the other names of each object and occupation (`data/world/synonyms.json`)."""
    table = load_json("synonyms.json")
    return {
        name: (*words["cldr"], *words["own"])
        for part in ("objects", "occupations")
        for name, words in table[part].items()
    }


def plural(words: str) -> str:
    """Return a noun phrase in the plural: its head's last word changes."""
    head, *rest = re.split("( (?:with|in|of|over|without|done|and|that)\\b.*)", words, maxsplit=1)
    *first, last = head.split(" ")
    if last in PHRASES["irregular_plurals"]:
        last = PHRASES["irregular_plurals"][last]
    elif last.endswith(("s", "x", "ch", "sh")):
        # Glasses, skis, grapes are plural already; a church is not.
        last = last if last.endswith("s") and not last.endswith(("ss", "us")) else last + "es"
    elif last.endswith("y") and last[-2:-1] not in "aeiou":
        last = last[:-1] + "ies"
    else:
        last += "s"
    return " ".join([*first, last]) + "".join(rest)


def pick(options: Sequence[str], rng: np.random.Generator) -> str:
    """Return one of the options, each alike."""
    return options[int(rng.integers(len(options)))]


class Phrasing:
    """Captions of scenes, drawn with a random generator.

    `frames`: those that may be used. `plain=True` leaves out synonyms, fluff and typos.
    """

    def __init__(self, frames: tuple[str, ...] = FRAMES, plain: bool = False) -> None:
        self.frames, self.plain = frames, plain

    def caption(
        self, scene: Scene, rng: np.random.Generator, named: frozenset[str] | None = None
    ) -> tuple[str, str | None]:
        """Return a caption of a scene and the relation that it states, None where it states none.

        `named`: the attributes to state, of background, style, size, presentation and tone.
        """
        named = scene.named if named is None else named
        subject, relation = self._subject(scene, named, rng)
        if not self.plain and rng.random() < 0.35 and scene.kind != "count":
            subject = f"{pick(PHRASES['leads'], rng)} {subject}"
        frame = pick(self.frames, rng)
        if " icon" in frame and (scene.relation or scene.kind == "sign"):
            frame = frame.replace(" icon", "")
        text = _fill(frame, subject, scene, named)
        if not self.plain:
            if rng.random() < 0.12:
                text = f"{text.rstrip('.')}, {pick(PHRASES['tails'], rng)}"
            if rng.random() < FILLED and scene.kind != "sign":
                text = fill_in(text, rng)
            if rng.random() < TYPOS:
                text = slip(text, rng, keep={p.thing.name for p in scene.placed})
        return text, relation

    def _subject(
        self, scene: Scene, named: frozenset[str], rng: np.random.Generator
    ) -> tuple[str, str | None]:
        first = scene.placed[0].thing
        if scene.kind == "count":
            return self._count(first, len(scene.placed), rng), None
        if scene.relation is None:
            size = scene.placed[0].size if "size" in named else ""
            return self._phrase(first, named, rng, size), None
        one, other = (self._phrase(placed.thing, named, rng) for placed in scene.placed)
        chance = 0.0 if self.plain else rng.random()
        if chance > 0.9 and scene.relation.endswith("of"):
            return pick(PHRASES["beside"], rng).format(s=one, o=other), "beside"
        if chance > 0.75:
            return pick(PHRASES["loose"], rng).format(s=one, o=other), None
        relation = scene.relation
        if rng.random() < 0.3:  # the same scene, told from the other thing
            one, other, relation = other, one, OPPOSITE[relation]
        return pick(PHRASES["relations"][relation], rng).format(s=one, o=other), scene.relation

    def _count(self, thing: Thing, number: int, rng: np.random.Generator) -> str:
        name = self._name(thing, rng)
        many, word = plural(name), COUNTS[number]
        if self.plain:
            return f"{word} {name} emoji"
        form = pick(PHRASES["counts"], rng)
        fluff = pick(PHRASES["fluff"], rng)
        return form.format(word=word, name=name, many=many, number=number, fluff=fluff)

    def _name(self, thing: Thing, rng: np.random.Generator) -> str:
        others = synonyms().get(thing.name, ())
        if self.plain or not others or rng.random() < 0.55:
            return thing.name
        return pick(others, rng)

    def _phrase(
        self, thing: Thing, named: frozenset[str], rng: np.random.Generator, size: str = ""
    ) -> str:
        if thing.kind == "sign":
            forms = PHRASES["signs"]
            return (forms[0] if self.plain else pick(forms, rng)).format(w=thing.name)
        words = self._name(thing, rng)
        if thing.kind == "shape":
            return self._shape(thing, size, rng)
        skin, who = "", ""
        if thing.tone and "tone" in named:
            skin = pick(PHRASES["skin"], rng)
        if thing.presentation and "presentation" in named:
            who = pick(PHRASES["presentations"][thing.presentation][: 2 if self.plain else 3], rng)
        words = f"{who} {words}".strip()
        if size:
            words = f"{size if self.plain else pick(PHRASES['sizes'][size], rng)} {words}"
        elif not self.plain and rng.random() < 0.12:
            words = f"{pick(PHRASES['fluff'], rng)} {words}"
        if not self.plain and rng.random() < 0.08:
            return words + skin.format(thing.tone)  # without an article
        return article(words) + skin.format(thing.tone)

    def _shape(self, thing: Thing, size: str, rng: np.random.Generator) -> str:
        size = size and (size if self.plain else pick(PHRASES["sizes"][size], rng))
        if self.plain or rng.random() < 0.7:
            return article(f"{size} {thing.color} {thing.name}".strip())
        return article(
            pick(PHRASES["shapes"], rng).format(f"{size} {thing.name}".strip(), thing.color)
        )


def _fill(frame: str, subject: str, scene: Scene, named: frozenset[str]) -> str:
    """Return a frame with its fields filled; bracketed parts of what is not named are left out."""

    def part(match: re.Match[str]) -> str:
        text = match[1]
        if "{t}" in text:
            return text if "style" in named else ""
        return text if "background" in named else ""

    text = re.sub(r"\[([^\]]*)\]", part, frame)
    color = scene.background
    return text.format(s=subject, b=color, ab=article(color), t=scene.style)


def fill_in(text: str, rng: np.random.Generator) -> str:
    """Return a text with one to three words before or after it that tell nothing."""
    words = " ".join(pick(PHRASES["fillers"], rng) for _ in range(int(rng.integers(1, 4))))
    forms = (f"{words} {text}", f"{words}: {text}", f"{text} {words}", f"{text}, {words}")
    return pick(forms, rng)


def slip(text: str, rng: np.random.Generator, keep: Collection[str] = ()) -> str:
    """Return a text with one or two slips of the finger in words of four letters or more.

    A letter is doubled, dropped, replaced or exchanged with the next. Words of signs (`keep`) stay.
    """
    words = text.split(" ")
    places = [i for i, w in enumerate(words) if len(w) >= 4 and w.isalpha() and w not in keep]
    for i in rng.permutation(places)[: 1 + int(rng.random() < 0.4)] if places else ():
        word = words[int(i)]
        at = int(rng.integers(1, len(word) - 1))
        letter = "abcdefghijklmnopqrstuvwxyz"[int(rng.integers(26))]
        words[int(i)] = (
            word[:at] + word[at] + word[at:],
            word[:at] + word[at + 1 :],
            word[:at] + letter + word[at + 1 :],
            word[:at] + word[at + 1] + word[at] + word[at + 2 :],
        )[int(rng.integers(4))]
    return " ".join(words)
