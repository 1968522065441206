"""`koala-nb evaluate attention`: do words land on their objects? Maps scored against known masks.

Rendered scenes are noised, the U-Net reads them with their captions, and each named thing's map is
compared with the pixels that it covers. DAAM's aggregation (Tang et al., arXiv 2210.04885: the sum
over steps, bicubic, negative values to 0, the mean over all heads of all layers) is the baseline.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy import stats
from torch.nn import functional

from koala_nb.attention.capture import capture_attention
from koala_nb.attention.edits import Site
from koala_nb.attention.maps import words_of
from koala_nb.core.catalog import data_folder
from koala_nb.core.files import Record, banner, versions, write_json
from koala_nb.distillation.similarity import noisy_inputs
from koala_nb.models.load import load, silence_logging
from koala_nb.nano.evaluation import FIRST_SEED
from koala_nb.nano.lesson import preset_of
from koala_nb.nano.render import Renderer, to_pixels
from koala_nb.nano.world import Scene, World

if TYPE_CHECKING:
    from PIL.Image import Image

    from koala_nb.models.load import Pipeline

KINDS = ("object", "pair", "shapes")
TIMESTEPS = (200, 500, 800)  # of 1000
TUNING = 100  # scenes on which heads and thresholds are chosen
SCENES = 400  # others, on which all is scored
HEADS = (1, 2, 4, 8, 16)  # how many of the best heads are tried
THRESHOLDS = np.linspace(0.1, 0.9, 17)  # of a map's largest value
BATCH = 50
EDITED = 100  # scenes of two things, whose words are re-weighted one at a time
FACTORS = (0.0, 3.0)  # a word removed, a word made louder
STRENGTH = 0.6  # share of the steps: the noise that the scenes begin with
RECIPE = {"num_inference_steps": 10, "guidance_scale": 3.5, "strength": STRENGTH}
MODELS = ("nano-koala", "nano-sdxl")


@dataclass(frozen=True)
class Target:
    """A thing that a scene's caption names: the tokens of its name, the pixels that it covers."""

    scene: int
    tokens: tuple[int, ...]
    mask: np.ndarray


def make_scenes(world: World, count: int, first: int) -> list[Scene]:
    """Return held-out scenes of one or two things, kinds in turn."""
    return [world.scene(FIRST_SEED + first + i, KINDS[i % len(KINDS)]) for i in range(count)]


def find_targets(scenes: list[Scene], render: Renderer, tokenizer: Any) -> list[Target]:
    """Return the things that their captions name exactly once and that cover some pixels."""
    targets = []
    for number, scene in enumerate(scenes):
        words = words_of(tokenizer, scene.caption)
        masks = render.masks(scene).cpu().numpy() > 0.5
        for placed, mask in zip(scene.placed, masks, strict=True):
            thing = placed.thing
            name = f"{thing.color} {thing.name}" if thing.kind == "shape" else thing.name
            phrase = [word.text for word in words_of(tokenizer, name)]
            phrase = phrase[: phrase.index("[start]")]
            runs = [words[i : i + len(phrase)] for i in range(len(words))]
            same = [run for run in runs if [word.text for word in run] == phrase]
            if len(same) == 1 and mask.any():
                targets.append(Target(number, tuple(t for w in same[0] for t in w.tokens), mask))
    return targets


def head_maps(
    pipe: Pipeline, scenes: list[Scene], targets: list[Target], render: Renderer, timestep: int
) -> dict[str, np.ndarray]:
    """Return per "layer/head" the maps of all targets, (targets, rows, columns)."""
    from PIL.Image import fromarray

    maps_by_head: dict[str, list[np.ndarray]] = {}
    for start in range(0, len(scenes), BATCH):
        some = scenes[start : start + BATCH]
        images = [fromarray(pixels) for pixels in to_pixels(render(some))]
        captions = [scene.caption for scene in some]
        inputs = noisy_inputs(pipe, images, captions, timestep, seed=timestep + start)
        with torch.no_grad(), capture_attention(pipe, keep_axes=("layer", "head")) as attention:
            pipe.unet(**inputs)
        batch_targets = [t for t in targets if start <= t.scene < start + BATCH]
        for name, value in attention.arrays().items():
            layer = name.removeprefix("cross/")
            for head in range(value.shape[3]):
                maps = [
                    value[t.scene - start, 0, 0, head][..., list(t.tokens)] for t in batch_targets
                ]
                maps_by_head.setdefault(f"{layer}/{head}", []).extend(m.sum(-1) for m in maps)
    return {name: np.stack(values) for name, values in maps_by_head.items()}


def enlarge(maps: np.ndarray, size: int) -> np.ndarray:
    """Enlarge maps, (n, rows, columns), to pixels as DAAM does: bicubic, then nothing below 0."""
    planes = torch.from_numpy(np.ascontiguousarray(maps))[:, None].float()
    large = functional.interpolate(planes, (size, size), mode="bicubic", align_corners=False)
    return large[:, 0].clamp(min=0).numpy()


def combine(maps: dict[str, np.ndarray], names: Sequence[str], size: int) -> np.ndarray:
    """Return the mean of some heads' maps at pixel size, (targets, size, size).

    With all heads of all layers this is DAAM's map, each head of each layer of equal weight.
    """
    total = np.zeros(())
    for name in names:  # one at a time: all heads together would take gigabytes
        total = total + enlarge(maps[name], size)
    return total / len(names)


def finest(maps: dict[str, np.ndarray]) -> list[str]:
    """Return the heads of the layers of the largest resolution."""
    return [name for name in maps if maps[name][0].size == max(m[0].size for m in maps.values())]


def overlap(maps: np.ndarray, masks: np.ndarray, threshold: float) -> np.ndarray:
    """Return each map's intersection over union with its mask, above a share of its maximum."""
    shown = maps >= threshold * maps.max((1, 2), keepdims=True)
    return (shown & masks).sum((1, 2)) / (shown | masks).sum((1, 2))


def best_threshold(maps: np.ndarray, masks: np.ndarray) -> float:
    """Return the threshold of the largest mean overlap."""
    return float(max(THRESHOLDS, key=lambda t: overlap(maps, masks, t).mean()))


def roc_area(maps: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Return each map's area under the ROC curve, from its pixels' ranks; ties count half."""
    flat, inside = maps.reshape(len(maps), -1), masks.reshape(len(masks), -1)
    ranks = stats.rankdata(flat, axis=1)
    positive = inside.sum(1)
    negative = inside.shape[1] - positive
    return ((ranks * inside).sum(1) - positive * (positive + 1) / 2) / (positive * negative)


def measures(maps: np.ndarray, masks: np.ndarray, threshold: float) -> dict[str, np.ndarray]:
    """Return overlap, pointing game (is the largest value on the mask?) and ROC area per target."""
    flat = maps.reshape(len(maps), -1)
    hit = np.take_along_axis(masks.reshape(len(masks), -1), flat.argmax(1)[:, None], 1)[:, 0]
    return {
        "IoU": overlap(maps, masks, threshold),
        "pointing game": hit.astype(float),
        "ROC area": roc_area(maps, masks),
    }


def choose_heads(maps: dict[str, np.ndarray], masks: np.ndarray) -> list[str]:
    """Return the heads that work best together: ranked by their own mean ROC area, as many as
    give the largest mean overlap.
    """
    size = masks.shape[-1]
    area = {
        name: roc_area(enlarge(head_maps, size), masks).mean() for name, head_maps in maps.items()
    }
    ranked = sorted(area, key=lambda name: -area[name])

    def quality(names: list[str]) -> float:
        merged = combine(maps, names, size)
        return float(overlap(merged, masks, best_threshold(merged, masks)).mean())

    return max((ranked[:count] for count in HEADS), key=quality)


def clustered(values: np.ndarray, targets: list[Target]) -> dict[str, float]:
    """Return the mean over scenes of their targets' mean, with a bootstrap interval over scenes."""
    scenes: dict[int, list[float]] = {}
    for value, target in zip(values, targets, strict=True):
        scenes.setdefault(target.scene, []).append(float(value))
    means = [float(np.mean(v)) for v in scenes.values()]
    interval = stats.bootstrap(
        (means,), np.mean, n_resamples=2000, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    estimate = {"value": np.mean(means), "low": interval.low, "high": interval.high}
    return {**{name: round(float(v), 4) for name, v in estimate.items()}, "n": len(means)}


def evaluate(model: str, tuning: int = TUNING, count: int = SCENES) -> Record:
    """Score one embedded model; returns rows by timestep, method and measure, and heads."""
    pipe = load(model, device="cpu", dtype="float32")
    preset = preset_of(model)
    world = World(preset.n_objects)
    render = Renderer(preset.image_size, world.things())
    parts, size = {}, preset.image_size
    for part, number, first in (("tuning", tuning, 0), ("scored", count, tuning)):
        scenes = make_scenes(world, number, first)
        targets = find_targets(scenes, render, pipe.tokenizer)
        maps = [head_maps(pipe, scenes, targets, render, t) for t in TIMESTEPS]
        maps.append({name: np.sum([m[name] for m in maps], axis=0) for name in maps[0]})
        parts[part] = targets, np.stack([t.mask for t in targets]), maps
    heads = choose_heads(parts["tuning"][2][-1], parts["tuning"][1])
    every = list(parts["tuning"][2][0])
    fine = finest(parts["tuning"][2][0])
    methods = {
        "DAAM": lambda maps: combine(maps, every, size),
        "finest layers": lambda maps: combine(maps, fine, size),
        "selected heads": lambda maps: combine(maps, heads, size),
    }
    rows, per_target = [], {}
    targets, masks, _ = parts["scored"]
    for method, merge in methods.items():
        for step, label in enumerate((*TIMESTEPS, "all")):
            pick = {part: merge(parts[part][2][step]) for part in parts}
            threshold = best_threshold(pick["tuning"], parts["tuning"][1])
            for measure, values in measures(pick["scored"], masks, threshold).items():
                labels = {"timestep": label, "method": method, "measure": measure}
                rows.append({**labels, "threshold": threshold, **clustered(values, targets)})
                per_target[method, label, measure] = values
    for (method, label, measure), values in per_target.items():
        if method != "selected heads":
            gain = per_target["selected heads", label, measure] - values
            labels = {"timestep": label, "method": f"selected heads - {method}", "measure": measure}
            rows.append({**labels, "threshold": None, **clustered(gain, targets)})
    return {
        "model": model,
        "revision": pipe.model_info.revision,
        "targets": len(targets),
        "selected_heads": heads,
        "rows": rows,
        "heads": table_of_heads(parts["scored"][2], masks),
    }


@dataclass(frozen=True)
class Example:
    """A scored scene: its picture, one thing's name and mask, and by method its map and IoU."""

    picture: Image
    name: str
    mask: np.ndarray
    maps: dict[str, np.ndarray]
    scores: dict[str, float]


def examples(pipe: Pipeline, thresholds: Mapping[str, float], count: int) -> list[Example]:
    """Return the first scored scenes with one thing each; thresholds: "DAAM", "finest layers"."""
    from PIL.Image import fromarray

    preset = preset_of(pipe.model_info.name)
    world = World(preset.n_objects)
    render = Renderer(preset.image_size, world.things())
    scenes = make_scenes(world, count, TUNING)
    firsts = {t.scene: t for t in reversed(find_targets(scenes, render, pipe.tokenizer))}
    targets = [firsts[number] for number in sorted(firsts)]
    levels = [head_maps(pipe, scenes, targets, render, t) for t in TIMESTEPS]
    maps = {name: np.sum([level[name] for level in levels], axis=0) for name in levels[0]}
    masks = np.stack([target.mask for target in targets])
    merged = {
        method: combine(maps, heads, preset.image_size)
        for method, heads in {"DAAM": list(maps), "finest layers": finest(maps)}.items()
    }
    scores = {name: overlap(merged[name], masks, thresholds[name]) for name in merged}
    pixels = to_pixels(render(scenes))
    results = []
    for row, target in enumerate(targets):
        ids = pipe.tokenizer(scenes[target.scene].caption).input_ids
        results.append(
            Example(
                fromarray(pixels[target.scene]),
                pipe.tokenizer.decode([ids[t] for t in target.tokens]).strip(),
                target.mask,
                {name: values[row] for name, values in merged.items()},
                {name: float(values[row]) for name, values in scores.items()},
            )
        )
    return results


def evaluate_edits(model: str, count: int = EDITED) -> list[Record]:
    """Re-weight one word of scenes drawn again from their noised pictures; what changes where.

    Returns rows by factor and region (the word's own thing, the other thing, the background): the
    mean change of a pixel, 0 to 255, with an interval over scenes.
    """
    pipe = load(model, device="cpu", dtype="float32")
    preset = preset_of(model)
    world = World(preset.n_objects)
    render = Renderer(preset.image_size, world.things())
    scenes = make_scenes(world, 4 * count, TUNING + SCENES)
    targets = find_targets(scenes, render, pipe.tokenizer)
    pairs = [[t for t in targets if t.scene == number] for number in range(len(scenes))]
    pairs = [pair for pair in pairs if len(pair) == 2][:count]
    drawn = [scenes[first.scene] for first, _ in pairs]
    before = redraw(pipe, drawn, render)
    changes: dict[tuple[float, str], list[tuple[Target, float]]] = {}
    for factor in FACTORS:
        for word in (0, 1):
            tokens = [pair[word].tokens for pair in pairs]
            after = redraw(pipe, drawn, render, tokens, factor)
            for number, pair in enumerate(pairs):
                here, other = pair[word].mask, pair[1 - word].mask
                regions = {"own": here, "other": other & ~here, "background": ~(here | other)}
                change = abs(after[number] - before[number]).mean(-1)
                for region, mask in regions.items():
                    place = changes.setdefault((factor, region), [])
                    place.append((pair[word], change[mask].mean() if mask.any() else 0.0))
        gain = zip(changes[factor, "own"], changes[factor, "other"], strict=True)
        changes[factor, "own - other"] = [(target, a - b) for (target, a), (_, b) in gain]
    return [
        {"factor": factor, "region": region} | clustered(np.array(values), list(edited))
        for (factor, region), pairs_of in changes.items()
        for edited, values in [zip(*pairs_of, strict=True)]
    ]


def redraw(
    pipe: Pipeline,
    scenes: list[Scene],
    render: Renderer,
    tokens: Sequence[Sequence[int]] = (),
    factor: float = 1.0,
) -> np.ndarray:
    """Return scenes drawn again from their noised pictures, (n, rows, columns, 3) in 0 to 255.

    The maps of each scene's `tokens`, if given, are multiplied by the factor.
    """
    silence_logging()  # of what this pipeline imports
    from diffusers import StableDiffusionXLImg2ImgPipeline
    from PIL.Image import fromarray

    again = StableDiffusionXLImg2ImgPipeline.from_pipe(pipe)
    again.set_progress_bar_config(disable=True)
    images = [fromarray(pixels) for pixels in to_pixels(render(scenes))]
    results = []

    def reweight(maps: torch.Tensor, site: Site) -> torch.Tensor:
        for row, number in enumerate(site.images):
            maps[row][..., list(tokens[number])] *= factor
        return maps

    with capture_attention(again, keep_axes=(), edit=reweight if len(tokens) else ()):
        for start in range(0, len(scenes), BATCH):
            part = slice(start, start + BATCH)
            noise = [torch.Generator().manual_seed(start + i) for i in range(len(images[part]))]
            captions = [scene.caption for scene in scenes[part]]
            results += again(captions, image=images[part], generator=noise, **RECIPE).images
    return np.stack([np.asarray(image, dtype=float) for image in results])


def table_of_heads(scored: list[dict[str, np.ndarray]], masks: np.ndarray) -> list[Record]:
    """Return the mean ROC area of every head at every timestep."""
    size = masks.shape[-1]
    return [
        {"timestep": t, "head": name, "ROC area": round(float(area.mean()), 4)}
        for t, maps in zip((*TIMESTEPS, "all"), scored, strict=True)
        for name in maps
        for area in [roc_area(enlarge(maps[name], size), masks)]
    ]


def write_truth(
    scenes: int = SCENES, tuning: int = TUNING, folder: Path | None = None, edited: int = EDITED
) -> Path:
    """Score the embedded models and write `attention-truth.json`, by default to `data/results`."""
    result = {
        "command": "koala-nb evaluate attention",
        "banner": banner("emoji-world"),
        "tuning_scenes": tuning,
        "scored_scenes": scenes,
        "versions": versions(),
        "edited": {"scenes": edited, **RECIPE},
        "models": [
            evaluate(m, tuning, scenes) | {"edits": evaluate_edits(m, edited)} for m in MODELS
        ],
    }
    return write_json((folder or data_folder() / "results") / "attention-truth.json", result)
