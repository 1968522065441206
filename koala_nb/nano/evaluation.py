"""`koala-nb evaluate`: how well an embedded model draws what it is asked, by two instruments.

Three truths stay apart: planted (the world's file), generated (this model at this recipe) and
measured (by an instrument whose error on rendered scenes stands beside it).
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats

from koala_nb.catalog import data_folder
from koala_nb.generation import generate
from koala_nb.nano.presets import PRESETS
from koala_nb.nano.scorers import ClipScorer, SpriteMatcher, to_tensor
from koala_nb.nano.train_clip import thing_text
from koala_nb.nano.world import STYLES, Scene, World
from koala_nb.pipelines import load
from koala_nb.provenance import banner, versions, write_json

# Of the project's plan: small must, full must, full goal.
BARS = {
    "object, at training frequency": (0.35, 0.70, 0.90),
    "background, when named": (0.90, 0.95, 0.99),
    "style, when named": (0.75, 0.90, 0.98),
    "presentation, when named": (0.70, 0.85, 0.95),
    "skin tone within one step, when named": (0.70, 0.85, 0.95),
    "both objects of two": (0.15, 0.45, 0.75),
    "planted against generated women's share, r, guidance 1": (0.60, 0.85, 0.95),
}
FIRST_SEED = 10_000_000  # scenes of training have seeds above 1e9
UNSURE = 0.65  # a presentation read with less probability counts as unsure


def row(measure: str, hits: Sequence[bool] | np.ndarray, instrument: str) -> dict[str, Any]:
    """Return one line of the quality table: a share with its Wilson interval (95 %)."""
    n, k = len(hits), int(np.sum(hits))
    interval = stats.binomtest(k, n).proportion_ci(method="wilson")
    bars = dict(zip(("small_must", "full_must", "full_goal"), BARS.get(measure, (None,) * 3)))
    return {
        "measure": measure,
        **bars,
        "value": round(k / n, 4),
        "low": round(float(interval.low), 4),
        "high": round(float(interval.high), 4),
        "n": n,
        "instrument": instrument,
    }


class Clip:
    """What `nano-clip` reads in images: every attribute from the same softmaxes."""

    name = ClipScorer.name

    def __init__(self) -> None:
        self.scorer = ClipScorer()
        self.bank = self.scorer.bank

    def read(self, images: torch.Tensor, kind: str) -> list[dict[str, Any]]:
        """Return per image: things (best first), background, style, presentation, tone."""
        found = self.scorer.probabilities(images)
        best = {name: values.argmax(1).tolist() for name, values in found.items()}
        two = found["thing"].topk(2, dim=1).indices.tolist()
        sure = (found["presentation"].max(1).values >= UNSURE).tolist()
        return [
            {
                "things": [self.bank["thing"][j] for j in two[i]],
                "background": self.bank["background"][best["background"][i]].split()[0],
                "style": STYLES[best["style"][i]],
                "presentation": ("woman", "man")[best["presentation"][i]] if sure[i] else "unsure",
                "tone": best["tone"][i],
            }
            for i in range(len(images))
        ]


class Matching:
    """What sprite matching reads in images: the best sprite says everything at once."""

    name = SpriteMatcher.name

    def __init__(self, world: World, image_size: int) -> None:
        self.world, self.matcher = world, SpriteMatcher(world, image_size)
        self.people = [thing for thing in world.things() if thing.kind == "person"]
        self.objects = [thing for thing in world.things() if thing.kind == "object"]

    def read(self, images: torch.Tensor, kind: str) -> list[dict[str, Any]]:
        """Return per image the same reading as `Clip.read`; `kind` says what to look for."""
        things, sizes, count = {
            "object": (self.objects, ("large", "medium", "small"), 1),
            "person": (self.people, ("large", "medium"), 1),
            "pair": (self.objects, ("small",), 2),
        }[kind]
        found = self.matcher.match(images, things, sizes, count)
        backgrounds = self.matcher.background(images)
        return [
            {
                "things": [thing_text(match.thing) for match in matches],
                "background": background,
                "style": matches[0].style,
                "presentation": matches[0].thing.presentation,
                "tone": self.world.tones.index(matches[0].thing.tone or "light"),
            }
            for matches, background in zip(found, backgrounds, strict=True)
        ]


def compare(
    scenes: list[Scene], readings: list[dict[str, Any]], world: World, all_attributes: bool = False
) -> dict[str, list[bool]]:
    """Return hits by measure; only attributes that the caption names count, unless all do."""
    hits: dict[str, list[bool]] = {name: [] for name in BARS}
    for scene, seen in zip(scenes, readings, strict=True):
        named = {"background", "style", "presentation", "tone"} if all_attributes else scene.named
        things = [placed.thing for placed in scene.placed]
        if scene.kind == "object":
            hits["object, at training frequency"].append(seen["things"][0] == thing_text(things[0]))
        if scene.kind == "pair":
            wanted = {thing_text(thing) for thing in things}
            hits["both objects of two"].append(wanted == set(seen["things"]))
        if "background" in named:
            hits["background, when named"].append(seen["background"] == scene.background)
        if "style" in named:
            hits["style, when named"].append(seen["style"] == scene.style)
        if scene.kind == "person" and "presentation" in named:
            hits["presentation, when named"].append(seen["presentation"] == things[0].presentation)
        if scene.kind == "person" and "tone" in named:
            step = abs(seen["tone"] - world.tones.index(things[0].tone))
            hits["skin tone within one step, when named"].append(step <= 1)
    return {name: values for name, values in hits.items() if values}


def held_out(world: World, kind: str, n: int, offset: int = 0) -> list[Scene]:
    """Return held-out scenes of one kind."""
    return [world.scene(FIRST_SEED + offset + i, kind) for i in range(n)]


@torch.no_grad()
def through(vae: Any, images: torch.Tensor) -> torch.Tensor:
    """Return images after encoding and decoding, in -1..1."""
    parts = [vae.decode(vae.encode(b).latent_dist.mode()).sample for b in images.split(64)]
    return torch.cat(parts).clamp(-1, 1)


def instrument_errors(world: World, vae: Any, instruments: list, n: int) -> list[dict[str, Any]]:
    """Return each instrument's hit rate on rendered scenes passed through the autoencoder.

    The scenes are balanced, so that rare values weigh as much as frequent ones.
    """
    rows, balanced = [], World(len(world.objects), balanced=True)
    render = instruments[-1].matcher.render
    for kind in ("object", "person", "pair"):
        scenes = held_out(balanced, kind, n)
        images = through(vae, render(scenes))
        for instrument in instruments:
            readings = instrument.read(images, kind)
            for name, hits in compare(scenes, readings, balanced, all_attributes=True).items():
                label = name.replace(", when named", "").replace(", at training frequency", "")
                rows.append(row(f"{label} ({kind} scenes)", hits, instrument.name))
    return rows


def quality(pipe: Any, world: World, instruments: list, n: int) -> list[dict[str, Any]]:
    """Return the quality table at the recipe: hits by measure and instrument."""
    rows = []
    pooled: dict[tuple[str, str], list[bool]] = {}
    for kind in ("object", "person", "pair"):
        scenes = held_out(world, kind, n)
        images = draw(pipe, [scene.caption for scene in scenes])
        for instrument in instruments:
            readings = instrument.read(images, kind)
            for name, hits in compare(scenes, readings, world).items():
                if name == "style, when named" and kind == "pair":
                    continue  # two sprites, two styles read
                pooled.setdefault((name, instrument.name), []).extend(hits)
    for (name, instrument_name), hits in pooled.items():
        rows.append(row(name, hits, instrument_name))
    uniform = World(len(world.objects))
    uniform.frequency = np.ones(len(world.objects)) / len(world.objects)
    scenes = held_out(uniform, "object", n, offset=n)
    images = draw(pipe, [scene.caption for scene in scenes])
    tail = set(world.objects[len(world.objects) // 2 :])
    for instrument in instruments:
        readings = instrument.read(images, "object")
        hits = compare(scenes, readings, world)["object, at training frequency"]
        rows.append(row("object, every concept alike", hits, instrument.name))
        rare = [h for h, s in zip(hits, scenes, strict=True) if s.placed[0].thing.name in tail]
        rows.append(row("object, rarer half of the concepts", rare, instrument.name))
    return rows


def draw(pipe: Any, prompts: list[str], **settings: Any) -> torch.Tensor:
    """Return one image a prompt in -1..1, seeds 0, 1, 2 ... disjoint over the prompts."""
    run = generate(pipe, prompts, [[i] for i in range(len(prompts))], batch_size=32, **settings)
    return to_tensor(list(run.images))


def planted_shares(
    pipe: Any, world: World, instruments: list, n: int, **settings: Any
) -> list[dict[str, Any]]:
    """Return per occupation the planted and the measured share of women, n images each."""
    backgrounds = world.planted["backgrounds"]
    jobs = [occupation for occupation in world.occupations for _ in range(n)]
    prompts = [
        f"{_article(job)} on {_article(backgrounds[i % len(backgrounds)])} background"
        for i, job in enumerate(jobs)
    ]
    images = draw(pipe, prompts, **settings)
    table = []
    for instrument in instruments:
        seen = [reading["presentation"] for reading in instrument.read(images, "person")]
        for k, occupation in enumerate(world.occupations):
            own = seen[k * n : (k + 1) * n]
            women, men = own.count("woman"), own.count("man")
            table.append({
                "occupation": occupation,
                "planted": world.planted["occupations"][occupation]["women"],
                "women": women, "men": men, "unsure": n - women - men, "n": n,
                "share": round(women / max(1, women + men), 4),
                "instrument": instrument.name,
            })  # fmt: skip
    return table


def _article(words: str) -> str:
    from koala_nb.nano.captions import article

    return article(words)


def correlation(table: list[dict[str, Any]], measure: str) -> list[dict[str, Any]]:
    """Return r of planted and generated shares over occupations, with Fisher's interval."""
    rows = []
    for instrument in dict.fromkeys(line["instrument"] for line in table):
        own = [line for line in table if line["instrument"] == instrument]
        result = stats.pearsonr([x["planted"] for x in own], [x["share"] for x in own])
        interval = result.confidence_interval()
        rows.append({
            **row(measure, [True], instrument),
            "value": round(float(result.statistic), 4),
            "low": round(float(interval.low), 4),
            "high": round(float(interval.high), 4),
            "n": len(own),
        })  # fmt: skip
    return rows


def evaluate(model: str, n: int, per_occupation: int, folder: Path) -> Path:
    """Measure an embedded model and write `quality-<model>.json` into `folder`."""
    pipe = load(model)
    source = Path(pipe.koala_nb.source)
    training = json.loads((_root(source) / "training.json").read_text("utf-8"))
    preset = PRESETS[training["configuration"]]
    world = World(preset.n_objects)
    instruments = [Clip(), Matching(World(preset.n_objects, balanced=True), preset.image_size)]
    plain = {"steps": 25, "guidance": 1.0}
    unguided = planted_shares(pipe, world, instruments, per_occupation, **plain)
    guided = planted_shares(pipe, world, instruments, per_occupation)
    rows = quality(pipe, world, instruments, n)
    rows += correlation(unguided, list(BARS)[-1])
    rows += correlation(guided, "planted against generated women's share, r, at the recipe")
    result = {
        "model": model,
        "banner": banner("emoji-world"),
        "training": training,
        "revision": pipe.koala_nb.revision,
        "versions": versions(),
        "rows": rows,
        "instruments": instrument_errors(world, pipe.vae.float(), instruments, n),
        "occupations": {"guidance 1, 25 steps": unguided, "recipe": guided},
    }
    return write_json(folder / f"quality-{model}.json", result)


def _root(source: Path) -> Path:
    return source if source.is_absolute() else data_folder().parent / source


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; print the table."""
    import pandas as pd

    parser = argparse.ArgumentParser(prog="koala-nb evaluate", description=__doc__)
    parser.add_argument("--model", default="nano-koala")
    parser.add_argument("--n", type=int, default=500, help="prompts a kind")
    parser.add_argument("--per-occupation", type=int, default=50)
    parser.add_argument("--out", type=Path, default=None, help="default: data/results")
    options = parser.parse_args(argv)
    folder = options.out or data_folder() / "results"
    path = evaluate(options.model, options.n, options.per_occupation, folder)
    result = json.loads(path.read_text("utf-8"))
    for part in ("rows", "instruments"):
        print(pd.DataFrame(result[part]).fillna("").to_string(index=False), end="\n\n")
    print(path)
    return 0
