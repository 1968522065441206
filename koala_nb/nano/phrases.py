"""How a scene is put into words: some 60 frames, synonyms, plurals, typos; ten frames are held out.

A caption is a frame filled with a subject, a background and a style. Frames of `HELD_OUT_FRAMES`
never occur in training: they measure whether free phrasing is understood.
"""

import re
from functools import cache

import numpy as np

from koala_nb.nano.captions import article
from koala_nb.nano.world import COUNTS, Scene, Thing, load_json

# {s} subject, {b} background, {ab} "a blue" / "an orange", {t} style. A part in brackets is left
# out where the caption does not name what it tells.
FRAMES = (
    "{s}[ on {ab} background][, {t} style]",
    "{s}[ on {ab} background][ in {t} style]",
    "{s}[ on {ab} background][, drawn in the {t} style]",
    "{s}[ in front of {b}][, {t} style]",
    "{s}[ in front of {ab} background][ in {t} style]",
    "{s}[ in front of {ab} wall][, {t} style]",
    "{s}[ against {ab} background][, {t}]",
    "{s}[ against {b}][, {t} emoji style]",
    "{s}[, {b} background][, {t} style]",
    "{s}[, {b} background][, {t}]",
    "{s}[, plain {b} background][, style: {t}]",
    "{s}[, background {b}][, style {t}]",
    "{s}[, solid {b} backdrop][, in the style of {t}]",
    "{s}[ with {ab} background][ as a {t} emoji]",
    "{s}[ before {ab} backdrop][, {t} look]",
    "{s}[ over {ab} surface][, {t} style]",
    "{s}[, everything else {b}][, {t} style]",
    "{s}[, behind it {b}][, {t} style]",
    "{s}[ surrounded by {b}][ in {t} style]",
    "{s}[; the background is {b}][; the style is {t}]",
    "{s}[. {b} background.][ {t} style.]",
    "{s}[. the background should be {b}][, the style {t}]",
    "{s}[ ({b} background)][ ({t} style)]",
    "[{b} background, ]{s}[, {t} style]",
    "[on {ab} background ]{s}[, {t} style]",
    "[on {b}: ]{s}[, {t} style]",
    "[{t} style: ]{s}[ on {ab} background]",
    "[{t} emoji of ]{s}[ on {b}]",
    "[in {t} style, ]{s}[ on {ab} background]",
    "[{b} scene with ]{s}[, {t} style]",
    "[a {t} style picture: ]{s}[, {b} behind]",
    "[with {ab} background, ]{s}[ in {t} style]",
    "[a {b} picture of ]{s}[, {t} style]",
    "this is {s}[ and the background is {b}][, {t} style]",
    "here is {s}[ on {b}][, {t} style]",
    "i see {s}[ in front of {ab} background][, {t} style]",
    "show {s}[ on {ab} background][, {t} style]",
    "please draw {s}[ on {ab} background][ in {t} style]",
    "please paint {s}[, the background {b}][, {t} style]",
    "can you draw {s}[ with {ab} background][ in {t} style]",
    "draw me {s}[ and make the background {b}][, use {t} style]",
    "i want {s}[ on {ab} background, please][, {t} style]",
    "i would like to see {s}[ against {ab} backdrop][, {t} style]",
    "generate an image of {s}[ on {ab} background][, {t} style]",
    "make a picture of {s}[ with {b} behind it][, {t} style]",
    "create {s}[, {b} backdrop][, {t} emoji]",
    "just {s}[ on plain {b}][, {t} style]",
    "only {s}[, nothing but {b} around it][, {t} style]",
    "{s} icon[ on {ab} background][, {t} style]",
    "{s} sticker[, {b} background][, {t} design]",
    "simple drawing: {s}[ on {b}][, {t} style]",
    "clip art of {s}[ on {ab} background][, {t} style]",
)
HELD_OUT_FRAMES = (
    "[{b} backdrop with ]{s}[, {t} style]",
    "{s}[, {b}][, {t} style]",
    "please show me {s}[, make everything behind it {b}][, {t} style]",
    "There is {s}.[ The background is {b}.][ The style is {t}.]",
    "{s} icon, flat design[, {b} background][, {t} style]",
    "imagine {s}[ placed on {b}][, {t} style]",
    "[{b} is the color behind ]{s}[, {t} style]",
    "could you make me {s}?[ {b} behind it would be nice][, {t} style]",
    "picture: {s}[; background: {b}][; style: {t}]",
    "what does {s} look like[ on {b} paper][, {t} style]",
)
LEADS = (
    "a drawing of", "an emoji of", "a picture of", "an image of", "an illustration of", "a photo of",
    "a painting of", "a portrait of", "a portrait painting of", "a sketch of", "an icon of",
)  # fmt: skip
FLUFF = ("cute", "nice", "beautiful", "lovely", "single", "pretty", "funny", "classic", "simple")
TAILS = (
    "high quality", "highly detailed", "4k", "flat design", "minimalist", "best quality", "vector art",
    "like leonardo da vinci", "like van gogh", "for my website", "trending", "clean lines",
)  # fmt: skip
SIZE_WORDS = {
    "large": ("large", "big", "huge", "giant"),
    "medium": ("medium",),
    "small": ("small", "little", "tiny"),
}
PRESENTATION_WORDS = {"woman": ("woman", "female", "lady"), "man": ("man", "male", "gentleman")}
LINKS = {  # of the thing that a relation names first; {o} is the other
    "left of": (
        "{s} to the left of {o}", "{s} left of {o}", "{s} on the left of {o}",
        "{s} on the left and {o} on the right", "on the left {s}, on the right {o}",
        "{s} with {o} on its right", "{s} at the left, {o} at the right",
        "left: {s}, right: {o}", "{s} standing left of {o}",
    ),
    "above": (
        "{s} above {o}", "{s} over {o}", "{s} on top of {o}", "{s} at the top and {o} at the bottom",
        "{s} with {o} below it", "{s} directly above {o}", "top: {s}, bottom: {o}",
        "{s} in the upper half, {o} in the lower half", "{s} higher than {o}",
    ),
    "right of": (
        "{s} to the right of {o}", "{s} right of {o}", "{s} on the right of {o}",
        "{s} on the right and {o} on the left", "on the right {s}, on the left {o}",
        "{s} with {o} on its left", "right: {s}, left: {o}",
    ),
    "below": (
        "{s} below {o}", "{s} under {o}", "{s} beneath {o}", "{s} at the bottom and {o} at the top",
        "{s} with {o} above it", "{s} underneath {o}", "{s} lower than {o}",
    ),
}  # fmt: skip
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
LOOSE = ("{s} and {o}", "{s} with {o}", "both {s} and {o}", "{s}, {o}", "{s} together with {o}")
BESIDE = ("{s} next to {o}", "{s} beside {o}", "{s} side by side with {o}")
SIGNS = (
    "a sign that says {w}", "a sign saying {w}", "a sign with the word {w}", "a board that reads {w}",
    'a sign with the text "{w}"', "the word {w} on a sign", "{w} written on a sign",
    "a sign reading {w}", 'a sign: "{w}"', "a board with the letters {w}", "a poster that says {w}",
    "the text {w}",
)  # fmt: skip
TYPOS = 0.2  # share of the captions with slips
IRREGULAR = {"fish": "fish", "mouse": "mice", "knife": "knives", "sheep": "sheep", "deer": "deer",
             "squid": "squid", "puppy": "puppies", "person": "people"}  # fmt: skip


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
    if last in IRREGULAR:
        last = IRREGULAR[last]
    elif last.endswith(("s", "x", "ch", "sh")):
        # Glasses, skis, grapes are plural already; a church is not.
        last = last if last.endswith("s") and not last.endswith(("ss", "us")) else last + "es"
    elif last.endswith("y") and last[-2:-1] not in "aeiou":
        last = last[:-1] + "ies"
    else:
        last += "s"
    return " ".join([*first, last]) + "".join(rest)


def pick(options: tuple[str, ...], rng: np.random.Generator) -> str:
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
            subject = f"{pick(LEADS, rng)} {subject}"
        frame = pick(self.frames, rng)
        if " icon" in frame and (scene.relation or scene.kind == "sign"):
            frame = frame.replace(" icon", "")
        text = _fill(frame, subject, scene, named)
        if not self.plain:
            if rng.random() < 0.12:
                text = f"{text.rstrip('.')}, {pick(TAILS, rng)}"
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
            return pick(BESIDE, rng).format(s=one, o=other), "beside"
        if chance > 0.75:
            return pick(LOOSE, rng).format(s=one, o=other), None
        relation = scene.relation
        if rng.random() < 0.3:  # the same scene, told from the other thing
            one, other, relation = other, one, OPPOSITE[relation]
        return pick(LINKS[relation], rng).format(s=one, o=other), scene.relation

    def _count(self, thing: Thing, number: int, rng: np.random.Generator) -> str:
        name = self._name(thing, rng)
        many, word = plural(name), COUNTS[number]
        if self.plain:
            return f"{word} {name} emoji"
        forms = (
            f"{word} {name} emoji", f"{word} {many}", f"{word} {many}", f"{number} {many}",
            f"a group of {word} {many}", f"{many}, {word} of them", f"exactly {word} {many}",
            f"a set of {number} {many}", f"an image with {word} {many}", f"{word} {pick(FLUFF, rng)} {many}",
        )  # fmt: skip
        return pick(forms, rng)

    def _name(self, thing: Thing, rng: np.random.Generator) -> str:
        others = synonyms().get(thing.name, ())
        if self.plain or not others or rng.random() < 0.55:
            return thing.name
        return pick(others, rng)

    def _phrase(
        self, thing: Thing, named: frozenset[str], rng: np.random.Generator, size: str = ""
    ) -> str:
        if thing.kind == "sign":
            return SIGNS[0].format(w=thing.name) if self.plain else pick(SIGNS, rng).format(w=thing.name)
        words = self._name(thing, rng)
        if thing.kind == "shape":
            return self._shape(thing, size, rng)
        skin, who = "", ""
        if thing.tone and "tone" in named:
            skin = pick((" with {} skin", " with {} skin", " with a {} skin tone", ", {} skin"), rng)
        if thing.presentation and "presentation" in named:
            who = pick(PRESENTATION_WORDS[thing.presentation][: 2 if self.plain else 3], rng)
        words = f"{who} {words}".strip()
        if size:
            words = f"{size if self.plain else pick(SIZE_WORDS[size], rng)} {words}"
        elif not self.plain and rng.random() < 0.12:
            words = f"{pick(FLUFF, rng)} {words}"
        if not self.plain and rng.random() < 0.08:
            return words + skin.format(thing.tone)  # without an article
        return article(words) + skin.format(thing.tone)

    def _shape(self, thing: Thing, size: str, rng: np.random.Generator) -> str:
        size = size and (size if self.plain else pick(SIZE_WORDS[size], rng))
        if self.plain or rng.random() < 0.7:
            return article(f"{size} {thing.color} {thing.name}".strip())
        forms = ("{} that is {}", "{} in {}", "{}, {} in color", "{} colored {}")
        return article(pick(forms, rng).format(f"{size} {thing.name}".strip(), thing.color))


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


def slip(text: str, rng: np.random.Generator, keep: set[str] = frozenset()) -> str:
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
