"""`koala-nb benchmark generation`: images a second beside diffusers' own one-by-one loop.

Same prompts, seeds, starting noise, recipe and machine; the ways take turns. Ways that are marked
"not the same image" trade likeness for time: how much is lost stands beside each.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from koala_nb.core.options import at_least, writable
from koala_nb.generation.generate import generate
from koala_nb.generation.plan import RECIPE, Plan, make_plan
from koala_nb.models.load import load, model_info
from koala_nb.speed.shortcuts import SHORTCUTS
from koala_nb.speed.timing import ratio_interval, take_turns, watched_memory, write_result

if TYPE_CHECKING:
    from koala_nb.models.load import Pipeline

LOOP = "diffusers, one by one"
OURS = "koala_nb.generate"
COLOURS = ("blue", "red", "green", "yellow", "purple", "orange", "white", "black")
BLOCK = 100  # images


def asked(pipe: Pipeline, images: int) -> tuple[list[str], list[list[int]]]:
    """Return prompts and the seeds of each: the recipe's prompt, in colours, a seed an image."""
    like = model_info(pipe).recipe.prompt
    prompts = [f"{like}, {colour}" for colour in COLOURS[:images]]
    return prompts, [list(range(i, images, len(prompts))) for i in range(len(prompts))]


def plan_of(pipe: Pipeline, prompts: list[str], seeds: list[list[int]], size: int | None) -> Plan:
    """Return the recipe's plan for these images."""
    given = dict.fromkeys(("steps", "guidance", "batch_size", "timestep_spacing"))
    sizes = {"height": size, "width": size, "negative_prompt": RECIPE}
    return make_plan(pipe, model_info(pipe), {**given, **sizes, "prompts": prompts, "seeds": seeds})


def one_by_one(pipe: Pipeline, plan: Plan) -> list[Any]:
    """Return the images of the plain loop that a model card shows, from the same noise."""
    factor = pipe.vae_scale_factor
    shape = (1, pipe.unet.config.in_channels, plan.height // factor, plan.width // factor)
    images = []
    for request in plan.requests:
        generator = torch.Generator("cpu").manual_seed(request.seed)
        images += pipe(
            request.prompt,
            negative_prompt=plan.negative_prompt,
            num_inference_steps=plan.steps,
            guidance_scale=plan.guidance,
            height=plan.height,
            width=plan.width,
            latents=torch.randn(shape, generator=generator).to(pipe.unet.dtype),
            generator=generator,
        ).images
    return images


def compare(pipe: Pipeline, images: int, size: int | None, repeats: int) -> list[dict[str, Any]]:
    """Return a row a way: images a second, ratio to the loop, difference of the images.

    Differences are of 255 a channel; `same_image` says whether the way promises the loop's image.
    """
    prompts, seeds = asked(pipe, images)
    plan = plan_of(pipe, prompts, seeds, size)
    common: dict[str, Any] = {"height": size, "width": size, "progress": False}

    def ours(**more: Any) -> list[Any]:
        return list(generate(pipe, prompts, seeds, **common, **more).images)

    def in_folder() -> list[Any]:
        with tempfile.TemporaryDirectory() as folder:
            return list(generate(pipe, prompts, seeds, **common, out=folder).images)

    ways: dict[str, Callable[[], list[Any]]] = {
        LOOP: lambda: one_by_one(pipe, plan),
        OURS: ours,
        f"{OURS}, one by one": lambda: ours(batch_size=1),
        f"{OURS}, files with records": in_folder,
    }
    exact = list(ways)
    for name, shortcut in SHORTCUTS.items():
        ways[name] = partial(shortcut, pipe, ours)
    drawn = {name: _stack(way()) for name, way in ways.items()}
    seconds = take_turns(ways, repeats, str(pipe._execution_device))
    rows = []
    for name, values in seconds.items():
        faster = ratio_interval(seconds[LOOP], values)
        far = np.abs(drawn[name] - drawn[LOOP])
        rows.append({
            "way": name, "same_image": name in exact, "threads": torch.get_num_threads(),
            "images_a_second": images / float(np.median(values)), **_told(faster, repeats),
            "largest_difference": int(far.max()), "mean_difference": float(far.mean()),
        })  # fmt: skip
    return rows


def _told(ratio: Any, repeats: int) -> dict[str, Any]:
    return {"ratio": ratio.value, "low": ratio.low, "high": ratio.high, "n": repeats}


def _stack(images: Sequence[Any]) -> np.ndarray:
    return np.stack([np.asarray(image) for image in images]).astype(int)


def long_run(pipe: Pipeline, images: int, size: int | None) -> list[dict[str, Any]]:
    """Return a row a hundred images of one run with records: seconds an image, resident memory."""
    prompts, seeds = asked(pipe, images)
    with tempfile.TemporaryDirectory() as folder, watched_memory() as memory:
        begin = time.time()
        generate(pipe, prompts, seeds, height=size, width=size, out=folder, progress=False)
        ends = np.sort([p.stat().st_mtime for p in Path(folder, "images").rglob("*.png")])
    rows, before = [], begin
    for last in range(min(BLOCK, images), images + 1, BLOCK):
        end = float(ends[last - 1])
        inside = [rss for at, rss in memory if before <= at <= end]
        rows.append({
            "images": last,
            "seconds_an_image": (end - before) / min(BLOCK, images),
            "resident_mb": float(np.median(inside)) if inside else None,
        })  # fmt: skip
        before = end
    return [*rows, {"images": len(ends), "seconds": float(ends[-1]) - begin}]


def main(argv: Sequence[str]) -> int:
    """Measure and write `data/results/benchmark-generation-<model>.json`."""
    parser = argparse.ArgumentParser(prog="koala-nb benchmark generation", description=__doc__)
    parser.add_argument("--model", default="nano-koala", help="a model whose weights are here")
    parser.add_argument("--device", default=None, help="default: the best available")
    parser.add_argument("--dtype", default=None, help="default: float16 on a GPU, else float32")
    parser.add_argument("--images", type=at_least(1), default=32, help="images a way and round")
    parser.add_argument(
        "--run", type=at_least(0), default=0, help="also: one run of so many images"
    )
    parser.add_argument("--size", type=at_least(1), default=None, help="pixels a side")
    parser.add_argument("--repeats", type=at_least(2), default=7)
    parser.add_argument("--threads", type=at_least(1), nargs="+", default=[torch.get_num_threads()])
    parser.add_argument("--out", type=writable, default=None, help="default: data/results")
    options = parser.parse_args(argv)
    pipe = load(options.model, device=options.device, dtype=options.dtype)
    rows, before = [], torch.get_num_threads()
    for threads in options.threads:
        torch.set_num_threads(threads)
        rows += compare(pipe, options.images, options.size, options.repeats)
    torch.set_num_threads(before)
    for row in rows:
        print({k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()})
    found: dict[str, Any] = {"rows": rows, "recipe": _recipe(pipe, options.size)}
    if options.run:
        found["run"] = long_run(pipe, options.run, options.size)
        print(*found["run"], sep="\n")
    name = f"generation-{Path(options.model).name}"
    device = str(pipe._execution_device)
    print(write_result(name, argv, vars(options), options.out, device, **found))
    return 0


def _recipe(pipe: Pipeline, size: int | None) -> dict[str, Any]:
    plan = plan_of(pipe, *asked(pipe, 1), size)
    keys = ("steps", "guidance", "height", "width", "batch_size", "negative_prompt")
    return {key: getattr(plan, key) for key in keys}
