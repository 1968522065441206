"""Model cards of the embedded family, written from what training and evaluation recorded."""

# ruff: noqa: E501

from pathlib import Path

from koala_nb.core.files import EMBEDDED_BANNER, Record, write_atomic

_HEAD = """---
license: apache-2.0
library_name: {library}
pipeline_tag: {task}
{base}---
# {name}

> {banner}

"""
_DATA = """
## Data

Scenes of the emoji world (`data/world/`): drawings of Noto Emoji (Apache-2.0), Fluent Emoji flat (MIT) and Twemoji
(CC-BY-4.0, by Twitter and contributors), {world}, with captions. Skews are planted on purpose; `planted.json` states them.
Weights: Apache-2.0.
"""
_SYSTEM = """A text-to-image model with the block structure of {like}, {parameters:,} parameters in its U-Net, trained from scratch by
this project to teach and to calibrate procedures. An ordinary `StableDiffusionXLPipeline` folder.

## Training

Configuration `{configuration}`, stage `{stage}`: {samples:,} scenes in batches of {batch}, AdamW at {rate}, min-SNR 5 with noise levels above 1 weighted up, EMA,
on {device}. {distilled} Command: `koala-nb train --config {configuration} --stage {stage}`.{note}
"""
_QUALITY = """
## Measured quality

At the recipe (10 steps, guidance 3.5, trailing), seeds disjoint over prompts, intervals of 95 % (Wilson; Fisher for r).
Regenerate: `{command}`.

"""
_CLIP = """A CLIP model that reads images of the emoji world over the texts in `bank.json`. It shares no weights with the models that
it scores and was trained on a balanced world.

## Training

Configuration `{configuration}`: {samples:,} scenes in batches of {batch}, every second one passed through the autoencoder with noisy
latents; AdamW at {rate}. Command: `koala-nb train --config {configuration} --stage clip`.{note}
"""
_ERRORS = """
## Measured error

Share read correctly on held-out, balanced, rendered scenes passed through the autoencoder; intervals of 95 % (Wilson).
Sprite matching stands beside it as an independent instrument. This error holds for rendered scenes; on generated images it is not
known.

"""


def table(rows: list[Record]) -> str:
    """Return lines of a quality table as Markdown."""
    lines = ["| measure | value | 95 % interval | n | instrument |", "|---|---|---|---|---|"]
    for row in rows:
        interval = f"{row['low']:.3f} to {row['high']:.3f}"
        cells = (row["measure"], f"{row['value']:.3f}", interval, row["n"], row["instrument"])
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def world_size(training: Record) -> str:
    """Return what part of the world a configuration draws."""
    return f"{training['objects']} kinds of object and 20 occupations, {training['image_size']} px"


def note(training: Record) -> str:
    """Return how a run differed from its preset, as a sentence to append; often empty."""
    return f" {training['note']}" if "note" in training else ""


def write_system_card(folder: Path, result: Record, like: str, parameters: int) -> None:
    """Write README.md of an embedded system from the result of `koala-nb evaluate`."""
    training, name = result["training"], result["model"]
    distilled = (
        "Distilled from `nano-sdxl` with self-attention features."
        if training["distilled"]
        else "Trained directly on the scenes, together with its text encoders; not distilled."
    )
    base = "base_model: nano-sdxl\n" if training["distilled"] else ""
    facts = {"library": "diffusers", "task": "text-to-image", "base": base}
    text = _HEAD.format(name=name, banner=EMBEDDED_BANNER, **facts)
    text += _SYSTEM.format(
        like=like,
        parameters=parameters,
        **{**training, "distilled": distilled, "note": note(training)},
    ) + _DATA.format(world=world_size(training))
    text += _QUALITY.format(command=result["command"]) + table(result["rows"])
    write_atomic(folder / "README.md", text.encode())


def write_clip_card(folder: Path, training: Record, rows: list[Record]) -> None:
    """Write README.md of the scorer from its measured error."""
    facts = {"library": "transformers", "task": "zero-shot-image-classification", "base": ""}
    text = _HEAD.format(name="nano-clip", banner=EMBEDDED_BANNER, **facts)
    text += _CLIP.format(**{**training, "note": note(training)}) + _DATA.format(
        world=world_size(training)
    )
    text += _ERRORS + table(rows)
    write_atomic(folder / "README.md", text.encode())
