"""`koala-nb benchmark generation`: images per second beside diffusers' own one-by-one loop.

Same prompts, seeds, starting noise, recipe and machine; the variants are interleaved. How far a
variant's images are from the loop's stands beside its speed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from koala_nb.generation.generate import generate
from koala_nb.models.load import check_pipeline, load, model_info
from koala_nb.speed.cost import OURS
from koala_nb.speed.timing import Row, print_rows, time_interleaved, write_result
from koala_nb.stats.estimates import ratio_interval

if TYPE_CHECKING:
    import pandas as pd
    from PIL import Image

    from koala_nb.generation.run_folder import Run
    from koala_nb.models.load import Pipeline

LOOP = "diffusers, one by one"
COLOURS = ("blue", "red", "green", "yellow", "purple", "orange", "white", "black")

Draw = Callable[[], "list[Image.Image]"]
# Draws by a shortcut: given the pipeline and what draws with it. The images may differ.
Shortcut = Callable[["Pipeline", Draw], "list[Image.Image]"]


def benchmark_prompts(pipe: Pipeline, images: int) -> tuple[list[str], list[list[int]]]:
    """Return prompts and the seeds of each: the recipe's prompt in colours, a seed an image."""
    prompt = model_info(pipe).recipe.prompt
    prompts = [f"{prompt}, {colour}" for colour in COLOURS[:images]]
    return prompts, [list(range(i, images, len(prompts))) for i in range(len(prompts))]


def plain_loop(pipe: Pipeline, records: pd.DataFrame) -> list[Image.Image]:
    """Return the images of a run's records as the loop of a model card draws them.

    One call of the pipeline an image, with its record's settings and from the same noise.
    """
    images = []
    for record in records.astype(object).where(records.notna(), None).to_dict("records"):
        shape = [record[side] // pipe.vae_scale_factor for side in ("height", "width")]
        generator = torch.Generator("cpu").manual_seed(record["seed"])
        noise = torch.randn(1, pipe.unet.config.in_channels, *shape, generator=generator)
        images += pipe(
            record["prompt"],
            negative_prompt=record["negative_prompt"],
            num_inference_steps=record["steps"],
            guidance_scale=record["guidance"],
            height=record["height"],
            width=record["width"],
            latents=noise.to(pipe.unet.dtype),
            generator=generator,
        ).images
    return images


def compare(
    pipe: Pipeline,
    images: int,
    size: int | None,
    repeats: int,
    shortcuts: Mapping[str, Shortcut] | None = None,
) -> tuple[list[Row], Run]:
    """Return one row per variant, and a run of the variant `OURS`.

    A row: images per second, ratio to the loop with its interval over the rounds, largest and mean
    difference of the images of 255 a channel; `same_image`: whether the loop's image is promised.
    """
    prompts, seeds = benchmark_prompts(pipe, images)
    run = partial(generate, pipe, prompts, seeds, height=size, width=size, progress=False)
    first = run()

    def ours(**more: Any) -> list[Image.Image]:
        return list(run(**more).images)

    def in_folder() -> list[Image.Image]:
        with tempfile.TemporaryDirectory() as folder:
            return ours(out=folder)

    variants: dict[str, Draw] = {
        LOOP: partial(plain_loop, pipe, first.records),
        OURS: ours,
        f"{OURS}, one by one": partial(ours, batch_size=1),
        f"{OURS}, files with records": in_folder,
    }
    exact = set(variants)
    for name, shortcut in (shortcuts or {}).items():
        variants[name] = partial(shortcut, pipe, ours)
    pixels = {
        name: np.stack([np.asarray(image, dtype=int) for image in draw()])
        for name, draw in variants.items()
    }
    rows = []
    seconds = time_interleaved(variants, repeats, str(pipe._execution_device))
    for name, values in seconds.items():
        ratio = ratio_interval(seconds[LOOP], values)
        difference = np.abs(pixels[name] - pixels[LOOP])
        row = {"way": name, "same_image": name in exact, "threads": torch.get_num_threads()}
        row |= {"images_a_second": images / float(np.median(values)), "ratio": ratio.value}
        row |= {"low": ratio.low, "high": ratio.high, "n": repeats}
        row |= {"largest_difference": int(difference.max())}
        rows.append(row | {"mean_difference": float(difference.mean())})
    return rows, first


def measure(
    model: str,
    *,
    device: str | None = None,
    dtype: str | None = None,
    images: int = 32,
    size: int | None = None,
    repeats: int = 7,
    threads: Sequence[int] = (),
    shortcuts: Mapping[str, Shortcut] | None = None,
) -> tuple[Pipeline, Row]:
    """Compare at each number of threads, torch's own by default; print and return the rows.

    Returns the pipeline, and rows and recipe for the results file.
    """
    pipe = load(model, device=device, dtype=dtype)
    check_pipeline(pipe)
    rows, before = [], torch.get_num_threads()
    for number in threads or [before]:
        torch.set_num_threads(number)
        compared, run = compare(pipe, images, size, repeats, shortcuts)
        rows += compared
    torch.set_num_threads(before)
    print_rows(rows)
    record = run.records.astype(object).where(run.records.notna(), None).iloc[0]
    recipe = {k: record[k] for k in ("steps", "guidance", "height", "width", "negative_prompt")}
    recipe["batch_size"] = max(run.batches.sizes) if run.batches else None
    return pipe, {"rows": rows, "recipe": recipe}


def write_benchmark(
    model: str, out: Path | None = None, command: str = "", **settings: Any
) -> Path:
    """Measure and write `benchmark-generation-<model>.json`, by default in `data/results`."""
    settings["threads"] = settings.get("threads") or [torch.get_num_threads()]
    pipe, results = measure(model, **settings)
    file, device = f"generation-{Path(model).name}", str(pipe._execution_device)
    return write_result(file, command, {"model": model, **settings}, out, device, **results)
