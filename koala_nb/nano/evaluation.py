"""`koala-nb evaluate`: how well an embedded model draws what it is asked, by two instruments.

Three truths stay apart: planted (the world's file), generated (this model at this recipe) and
measured (by an instrument whose error on rendered scenes stands beside it).
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from scipy import stats

from koala_nb.core.catalog import data_folder, find
from koala_nb.core.files import Record, banner, read_json, versions, write_atomic, write_json
from koala_nb.display.figures import gallery
from koala_nb.generation.generate import generate
from koala_nb.generation.page import write_page
from koala_nb.models.load import load
from koala_nb.nano.abilities import abilities, ceilings
from koala_nb.nano.cards import write_clip_card, write_system_card
from koala_nb.nano.instruments import Clip, Matching
from koala_nb.nano.presets import PRESETS
from koala_nb.nano.scorers import to_tensor
from koala_nb.nano.train_clip import thing_text
from koala_nb.nano.world import Scene, World, article
from koala_nb.stats.estimates import share_interval

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

    from koala_nb.models.load import Pipeline

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
LIKE = {"nano-sdxl": "SDXL-Base", "nano-koala-large": "KOALA-1B", "nano-koala": "KOALA-700M"}
DEFAULT = "nano-koala"
FIRST_SEED = 10_000_000  # scenes of training have seeds above 1e9


def row(measure: str, hits: Sequence[bool] | np.ndarray, instrument: str) -> Record:
    """Return one line of the quality table: a share with its Wilson interval (95 %)."""
    share = share_interval(int(np.sum(hits)), len(hits))
    bars = dict(zip(("small_must", "full_must", "full_goal"), BARS.get(measure, (None,) * 3)))
    return {
        "measure": measure,
        **bars,
        **{name: round(value, 4) for name, value in share._asdict().items()},
        "instrument": instrument,
    }


def compare(
    scenes: list[Scene], readings: list[Record], world: World, all_attributes: bool = False
) -> dict[str, list[bool]]:
    """Return hits by measure; only attributes that the caption names count, unless all do."""
    hits: dict[str, list[bool]] = {name: [] for name in BARS}
    for scene, reading in zip(scenes, readings, strict=True):
        named = {"background", "style", "presentation", "tone"} if all_attributes else scene.named
        things = [placed.thing for placed in scene.placed]
        if scene.kind == "object":
            hits["object, at training frequency"].append(
                reading["things"][0] == thing_text(things[0])
            )
        if scene.kind == "pair":
            wanted = {thing_text(thing) for thing in things}
            hits["both objects of two"].append(wanted == set(reading["things"]))
        if "background" in named:
            hits["background, when named"].append(reading["background"] == scene.background)
        if "style" in named:
            hits["style, when named"].append(reading["style"] == scene.style)
        if scene.kind == "person" and "presentation" in named:
            hits["presentation, when named"].append(
                reading["presentation"] == things[0].presentation
            )
        if scene.kind == "person" and "tone" in named:
            step = abs(reading["tone"] - world.tones.index(things[0].tone))
            hits["skin tone within one step, when named"].append(step <= 1)
    return {name: values for name, values in hits.items() if values}


def held_out(world: World, kind: str, n: int, offset: int = 0) -> list[Scene]:
    """Return held-out scenes of one kind."""
    return [world.scene(FIRST_SEED + offset + i, kind) for i in range(n)]


@torch.no_grad()
def through(vae: AutoencoderKL, images: torch.Tensor) -> torch.Tensor:
    """Return images after encoding and decoding, in -1..1."""
    parts = [vae.decode(vae.encode(b).latent_dist.mode()).sample for b in images.split(64)]
    return torch.cat(parts).clamp(-1, 1)


def instrument_errors(world: World, vae: AutoencoderKL, instruments: list, n: int) -> list[Record]:
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


def quality(pipe: Pipeline, world: World, instruments: list, n: int) -> list[Record]:
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


def draw(pipe: Pipeline, prompts: list[str], **settings: Any) -> torch.Tensor:
    """Return one image a prompt in -1..1, seeds 0, 1, 2 ... disjoint over the prompts."""
    run = generate(pipe, prompts, [[i] for i in range(len(prompts))], batch_size=32, **settings)
    return to_tensor(list(run.images))


def planted_shares(
    pipe: Pipeline, world: World, instruments: list, n: int, **settings: Any
) -> list[Record]:
    """Return per occupation the planted and the measured share of women, n images each."""
    backgrounds = world.planted["backgrounds"]
    jobs = [occupation for occupation in world.occupations for _ in range(n)]
    prompts = [
        f"{article(job)} on {article(backgrounds[i % len(backgrounds)])} background"
        for i, job in enumerate(jobs)
    ]
    images = draw(pipe, prompts, **settings)
    table = []
    for instrument in instruments:
        presentations = [reading["presentation"] for reading in instrument.read(images, "person")]
        for k, occupation in enumerate(world.occupations):
            group = presentations[k * n : (k + 1) * n]
            women, men = group.count("woman"), group.count("man")
            table.append(
                {
                    "occupation": occupation,
                    "planted": world.planted["occupations"][occupation]["women"],
                    "women": women,
                    "men": men,
                    "unsure": n - women - men,
                    "n": n,
                    "share": round(women / (women + men), 4) if women + men else None,
                    "instrument": instrument.name,
                }
            )
    return table


def correlation(table: list[Record], measure: str) -> list[Record]:
    """Return r of planted and generated shares over occupations, with Fisher's interval."""
    rows = []
    for instrument in dict.fromkeys(line["instrument"] for line in table):
        lines = [x for x in table if x["instrument"] == instrument and x["share"] is not None]
        if len({x["share"] for x in lines}) < 2:
            continue  # nothing read, or the same everywhere: no correlation exists
        result = stats.pearsonr([x["planted"] for x in lines], [x["share"] for x in lines])
        interval = result.confidence_interval()
        rows.append(
            {
                **row(measure, [True], instrument),
                "value": round(float(result.statistic), 4),
                "low": round(float(interval.low), 4),
                "high": round(float(interval.high), 4),
                "n": len(lines),
                "method": "Fisher's interval of a correlation; n counts occupations",
            }
        )
    return rows


def evaluate(model: str, n: int, per_occupation: int, folder: Path) -> Path:
    """Measure an embedded model and write `quality-<model>.json` into `folder`."""
    record = data_folder() / "models" / model / "training.json"
    if not record.is_file():
        raise ValueError(f"{find(model).name} is no trained embedded model: give one of those.")
    pipe = load(model)
    training = read_json(record)
    preset = PRESETS[training["configuration"]]
    world = World(preset.n_objects)
    instruments: list[Clip | Matching] = [
        Clip(),
        Matching(World(preset.n_objects, balanced=True), preset.image_size),
    ]
    folder.mkdir(parents=True, exist_ok=True)
    plain = {"steps": 25, "guidance": 1.0}
    unguided = planted_shares(pipe, world, instruments, per_occupation, **plain)
    guided = planted_shares(pipe, world, instruments, per_occupation)
    rows = quality(pipe, world, instruments, n)
    rows += correlation(unguided, list(BARS)[-1])
    rows += correlation(guided, "planted against generated women's share, r, at the recipe")
    result = {
        "model": model,
        "command": f"koala-nb evaluate --model {model} --n {n} --per-occupation {per_occupation}",
        "banner": banner("emoji-world"),
        "training": training,
        "revision": pipe.model_info.revision,
        "versions": versions(),
        "rows": rows,
        "instruments": instrument_errors(world, pipe.vae.float(), instruments, n),
        "abilities": records(abilities(partial(draw, pipe), world, instruments, n)),
        "ceilings": records(
            ceilings(partial(through, pipe.vae), world, instruments, preset.image_size, n)
        ),
        "occupations": {"guidance 1, 25 steps": unguided, "recipe": guided},
    }
    write_cards(pipe, result)
    first_look(pipe, folder / f"first-look-{model}.png")
    write_page(folder / f"knobs-{model}.html", pipe, "a koala")
    return write_json(folder / f"quality-{model}.json", result)


def records(frame: pd.DataFrame) -> list[Record]:
    """Return a frame of estimates as rows for JSON."""
    return frame.astype(object).where(frame.notna(), None).to_dict("records")


def write_cards(pipe: Pipeline, result: Record) -> None:
    """Write the model card of the evaluated system and, with DEFAULT, the scorer's."""
    models = data_folder() / "models"
    parameters = sum(p.numel() for p in pipe.unet.parameters())
    write_system_card(models / result["model"], result, LIKE[result["model"]], parameters)
    if result["model"] != DEFAULT:
        return  # one model's evaluation states the scorer's error
    training = json.loads((models / "nano-clip" / "training.json").read_text("utf-8"))
    write_clip_card(models / "nano-clip", training, result["instruments"])


def first_look(pipe: Pipeline, path: Path) -> None:
    """Write a picture of the report's prompts as this model draws them, seed 0."""
    prompts = pd.read_csv(data_folder() / "prompts" / "first_look_emoji-world.csv")[
        "prompt"
    ].tolist()
    run = generate(pipe, prompts, [0])
    figure = gallery(list(run.images), prompts)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None}, bbox_inches="tight")
    write_atomic(path, buffer.getvalue())


def write_quality(
    model: str = DEFAULT, n: int = 500, per_occupation: int = 50, folder: Path | None = None
) -> None:
    """Evaluate a model, write its quality (default: to `data/results`) and print it."""
    path = evaluate(model, n, per_occupation, folder or data_folder() / "results")
    result = json.loads(path.read_text("utf-8"))
    for part in ("rows", "instruments"):
        print(pd.DataFrame(result[part]).fillna("").to_string(index=False), end="\n\n")
    print(path)
