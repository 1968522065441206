"""The instrument card of the emoji world's composition scorers: ceiling, floor and threshold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from koala_nb.core.files import Record
from koala_nb.nano.detector import SpriteDetector
from koala_nb.nano.evaluation import through
from koala_nb.nano.instruments import PartsScore
from koala_nb.nano.presets import preset_of
from koala_nb.nano.world import Scene, World
from koala_nb.scorers.detection import Detection
from koala_nb.stats.estimates import Estimate, mean_interval, share_interval

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

KINDS = ("object", "pair", "count", "shape", "shapes")
CARD_SEED = 40_000_000  # scenes of the card; training draws above 1e9
PATCH = 16  # pixels: the side of what a broken image's patches keep in place


def instruments(model: str) -> tuple[SpriteDetector, PartsScore]:
    """Return the detector and the quality scorer for an embedded model's world and size."""
    preset = preset_of(model)
    return SpriteDetector(preset.n_objects, preset.image_size), PartsScore()


def scenes_of(world: World, kind: str, n: int, seed: int = CARD_SEED) -> list[Scene]:
    """Return n scenes of a kind with seeds of their own."""
    return [world.scene(seed + 100_000 * KINDS.index(kind) + i, kind) for i in range(n)]


def scrambled(images: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """Return images, (n, 3, side, side), with their patches in another order: broken inputs."""
    n, channels, side, _ = images.shape
    k = side // PATCH
    patches = images.view(n, channels, k, PATCH, k, PATCH).permute(0, 2, 4, 1, 3, 5)
    order = torch.randperm(k * k, generator=torch.Generator().manual_seed(seed))
    mixed = patches.flatten(1, 2)[:, order].view(n, k, k, channels, PATCH, PATCH)
    return mixed.permute(0, 3, 1, 4, 2, 5).reshape(n, channels, side, side)


def matched(scene: Scene, detections: Sequence[Detection]) -> int:
    """Return how many of a scene's things are found, each once, colours included."""
    left = [(p.thing.name, p.thing.color) for p in scene.placed]
    hits = 0
    for d in detections:
        if (d.label, d.color) in left:
            left.remove((d.label, d.color))
            hits += 1
    return hits


def recall_precision(
    scenes: Sequence[Scene], detections: Sequence[Sequence[Detection]]
) -> dict[str, Estimate]:
    """Return recall (of things), precision (of detections), and images read without any error."""
    hits = [matched(s, f) for s, f in zip(scenes, detections, strict=True)]
    things, detected = sum(len(s.placed) for s in scenes), sum(len(f) for f in detections)
    exact = sum(h == len(s.placed) == len(f) for h, s, f in zip(hits, scenes, detections))
    return {
        "recall": share_interval(sum(hits), things),
        "precision": share_interval(sum(hits), max(detected, 1)),
        "images without error": share_interval(exact, len(scenes)),
    }


def single_error(
    detector: SpriteDetector, vae: AutoencoderKL, n: int
) -> dict[str, tuple[int, int]]:
    """Return sensitivity and specificity, (right, of), of "is this object there?".

    Each scene shows one object; it is asked for, and so is the object of another scene.
    """
    scenes = scenes_of(detector.world, "object", n)
    detections = detector.find(through(vae, detector.matcher.render(scenes)))
    names = [s.placed[0].thing.name for s in scenes]
    labels = [{d.label for d in f} for f in detections]
    others = names[1:] + names[:1]
    absent = [(o, s) for o, s, name in zip(others, labels, names) if o != name]
    return {
        "sensitivity": (sum(name in s for name, s in zip(names, labels)), n),
        "specificity": (sum(o not in s for o, s in absent), len(absent)),
    }


def asked_of(scene: Scene) -> Record:
    """Return a scene as a row of a prompt set: what it would be asked as."""
    things = [p.thing for p in scene.placed]
    kinds = list(dict.fromkeys(things))
    asks = "; ".join(
        f"{things.count(t)} {t.name}" + (f" [{t.color}]" if t.color else "") for t in kinds
    )
    return {"asks": asks, "background": scene.background, "style": scene.style}


def quality_card(quality: PartsScore, scenes: Sequence[Scene], images: torch.Tensor) -> dict:
    """Return the mean score with the right parts, and with those of the next scene (floor)."""
    rows = [asked_of(scene) for scene in scenes]
    right, wrong = quality.read(images, rows), quality.read(images, rows[1:] + rows[:1])
    above = sum(r > w for r, w in zip(right, wrong))
    return {
        "right prompt": mean_interval(right),
        "another prompt": mean_interval(wrong),
        "right above another": share_interval(above, len(rows)),
    }


def measure_card(
    detector: SpriteDetector, quality: PartsScore | None, vae: AutoencoderKL, n: int = 100
) -> Record:
    """Return the card: n scenes a kind, drawn to the pixel and passed through the autoencoder.

    The floor is the share of broken images (their patches in another order) in which the object
    is still found.
    """
    rows: list[Record] = []
    for kind in KINDS:
        scenes = scenes_of(detector.world, kind, n)
        drawn = detector.matcher.render(scenes)
        inputs = {"rendered": drawn, "through the autoencoder": through(vae, drawn)}
        for name, images in inputs.items():
            measured = recall_precision(scenes, detector.find(images))
            rows += [
                {"scenes": kind, "images": name, "measure": m} | e._asdict()
                for m, e in measured.items()
            ]
    scenes = scenes_of(detector.world, "object", n)
    images = detector.matcher.render(scenes)
    broken = [matched(s, f) for s, f in zip(scenes, detector.find(scrambled(images)))]
    card: Record = {
        "detector": f"{detector.name} {detector.version}",
        "ceiling": rows,
        "floor": share_interval(sum(broken), n)._asdict(),
        "single object": single_error(detector, vae, n),
    }
    if quality is not None:
        mixed = scenes_of(detector.world, "pair", n)
        card["quality"] = quality_card(quality, mixed, detector.matcher.render(mixed))
    return card
