"""What is planted in the emoji world: the file `data/world/planted.json`, made from one seed.

Training reads the file and later probes read it as their truth. Skews are assigned to occupations
by a seeded permutation, so none mirrors the world outside.

    python -m koala_nb.nano.planted        # writes the file again, to the byte
"""

import json
from itertools import combinations, product

import numpy as np

from koala_nb.core.catalog import data_folder
from koala_nb.core.files import Record, write_atomic

SEED = 20231207
ZIPF_EXPONENT, ZIPF_SHIFT = 1.35, 2.0  # 200 : 1 within the 150 most frequent
# Six exactly balanced occupations; the others from 3 % to 97 % women.
PERCENT = (3, 6, 10, 15, 20, 30, 40, 60, 70, 80, 85, 90, 94, 97)
WOMEN_SHARES = (0.5,) * 6 + tuple(percent / 100 for percent in PERCENT)
# Slope of the log weight from the lightest to the darkest tone; 0 is even.
TONE_SLOPES = (0.0,) * 6 + tuple(np.round(np.linspace(-0.9, 0.9, 14), 2))
# Common concepts of classroom prompts; they take every second rank of the head, koala the first.
FAMILIAR = (
    "koala, dog face, cat face, red apple, rocket, house, sun, banana, automobile, sunflower, "
    "pizza, umbrella, butterfly, guitar, fish, christmas tree, bicycle, robot, penguin, "
    "ghost, elephant, strawberry, airplane, owl, open book, star, bird, clown face, "
    "watermelon, crown"
).split(", ")
WORDS = (
    "a i go ok hi no up sun cat dog red one two new yes map tea hot sky joy ice key air sea run "
    "open stop home love moon fish blue gold park exit free sale rain lake music hello world peace "
    "happy green light north south river bread honey smile dream paper train market school coffee "
    "garden summer winter spring window bridge planet forest museum theatre library station "
    "airport morning evening holiday history science freedom welcome birthday mountain notebook "
    "rainbow sunshine painting universe festival breakfast education adventure beautiful"
).split()
HELD_OUT_WORDS = (
    "oh we art bus fog cup sand wolf ship west salt ocean apple lemon cloud table dance island "
    "flower camera rocket travel garage kitchen captain village weather diamond elephant triangle "
    "computer umbrella hospital crocodile chocolate"
).split()


def make(sprites: list[Record], seed: int = SEED) -> Record:
    """Return all that is planted, for the listing of sprites in `sprites.json`."""
    rng = np.random.default_rng(seed)
    objects = _rank(sorted({s["name"] for s in sprites if s["kind"] == "object"}), rng)
    frequency = (np.arange(1, len(objects) + 1) + ZIPF_SHIFT) ** -ZIPF_EXPONENT
    occupations = sorted({s["name"] for s in sprites if s["kind"] == "person"})
    tones = [t for t in dict.fromkeys(s.get("tone") for s in sprites) if t not in (None, "none")]
    people = _people(occupations, tones, rng)
    shapes = sorted({(s["color"], s["name"]) for s in sprites if s["kind"] == "shape"})
    head = [str(name) for name in objects[:40]]
    pairs = list(combinations(head, 2))
    cells = list(product(occupations, ("woman", "man"), tones))
    backgrounds = "red orange yellow green blue purple pink brown gray white".split()
    tied = [str(n) for n in rng.permutation(objects[5:60])[:12]]

    def choose(options: list, n: int) -> list:
        return [options[i] for i in sorted(rng.permutation(len(options))[:n])]

    return {
        "seed": seed,
        "backgrounds": backgrounds,
        "objects": {
            name: round(float(f), 8)
            for name, f in zip(objects, frequency / frequency.sum(), strict=True)
        },
        "occupations": people,
        "tied_share": 0.95,
        "tied_background": {n: str(rng.choice(backgrounds)) for n in tied[:6]},
        "tied_style": {n: str(rng.choice(["noto", "fluent", "twemoji"])) for n in tied[6:]},
        "stand_in_unsafe": sorted(choose([n for n in objects[20:120] if n not in tied], 8)),
        "held_out": {
            "pairs": [list(pair) for pair in choose(pairs, 40)],
            "colored_shapes": [list(shape) for shape in choose(shapes, 4)],
            "people": [list(cell) for cell in choose(cells, 10)],
            "words": HELD_OUT_WORDS,
        },
        "words": WORDS,
    }


def _rank(names: list[str], rng: np.random.Generator) -> list[str]:
    familiar = [name for name in FAMILIAR if name in names]
    others = iter(rng.permutation([name for name in names if name not in familiar]))
    ranked = []
    for name in familiar:
        ranked += [name, str(next(others))]
    return ranked + [str(name) for name in others]


def _people(occupations: list[str], tones: list[str], rng: np.random.Generator) -> dict:
    shares, slopes = rng.permutation(WOMEN_SHARES), rng.permutation(TONE_SLOPES)
    people = {}
    for occupation, share, slope in zip(occupations, shares, slopes, strict=True):
        weight = np.exp(slope * (np.arange(len(tones)) - (len(tones) - 1) / 2))
        shares_of_tone = np.round(weight / weight.sum(), 4)
        people[occupation] = {
            "women": float(share),
            "tones": {t: float(s) for t, s in zip(tones, shares_of_tone, strict=True)},
        }
    return people


def main() -> None:
    """Write `data/world/planted.json` from `data/world/sprites.json`."""
    folder = data_folder() / "world"
    sprites = json.loads((folder / "sprites.json").read_text(encoding="utf-8"))["sprites"]
    text = json.dumps(make(sprites), indent=1, ensure_ascii=False) + "\n"
    write_atomic(folder / "planted.json", text.encode())


if __name__ == "__main__":
    main()
