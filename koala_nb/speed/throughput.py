"""`koala-nb benchmark generation`: images per second beside diffusers' own one-by-one loop.

Same prompts, seeds, starting noise, recipe and machine; the variants are interleaved. How far a
variant's images are from the loop's stands beside its speed. `SHORTCUTS` change the image: none is
a default; each takes a pipeline and what draws with it, and leaves the pipeline as it was.
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor
from torch.utils._pytree import tree_map

from koala_nb.generation.generate import generate
from koala_nb.generation.run_folder import Run
from koala_nb.models.load import Pipeline, check_pipeline, load, model_info
from koala_nb.speed.cost import OURS
from koala_nb.speed.timing import Row, print_rows, time_interleaved, write_result
from koala_nb.stats.estimates import ratio_interval

LOOP = "diffusers, one by one"
COLOURS = ("blue", "red", "green", "yellow", "purple", "orange", "white", "black")

Draw = Callable[[], list[Image.Image]]
# Draws by a shortcut: given the pipeline and what draws with it. The images may differ.
Shortcut = Callable[[Pipeline, Draw], list[Image.Image]]


def benchmark_prompts(pipe: Pipeline, images: int) -> tuple[list[str], list[list[int]]]:
    """Return prompts and the seeds of each: the recipe's prompt in colours, a seed an image."""
    prompt = model_info(pipe).recipe.prompt
    prompts = [f"{prompt}, {colour}" for colour in COLOURS[:images]]
    return prompts, [list(range(i, images, len(prompts))) for i in range(len(prompts))]


def plain_loop(pipe: Pipeline, records: pd.DataFrame) -> list[Image.Image]:
    """Return a run's images as the loop of a model card draws them, from the same noise."""
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
    """Compare at each number of threads and print; return the pipeline, rows and recipe."""
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


# --- shortcuts that change the image --------------------------------------------------------------


def early_guidance(pipe: Pipeline, draw: Draw, share: float = 0.5) -> list[Image.Image]:
    """Draw with guidance on the first share of the steps only; the rest cost half."""

    def answer(forward: Callable, step: int, steps: int, x: Tensor, t: Tensor, more: dict) -> tuple:
        if step < round(share * steps) or len(x) % 2 or pipe.guidance_scale <= 1:
            return forward(x, t, **more)
        half = slice(len(x) // 2, None)  # the conditional half stands second
        more = tree_map(lambda v: v[half] if isinstance(v, Tensor) else v, more)
        noise = forward(x[half], t, **more)[0]
        return (torch.cat([noise, noise]),)  # guidance between equals changes nothing

    with _answering(pipe, answer):
        return draw()


def repeated_answers(pipe: Pipeline, draw: Draw) -> list[Image.Image]:
    """Draw with the U-Net's answer used twice, from the third step on: every second step is free.

    The plainest form of step caching; DeepCache (arXiv 2312.00858) keeps deep features alone.
    """
    last: list[tuple] = [()]

    def answer(forward: Callable, step: int, steps: int, x: Tensor, t: Tensor, more: dict) -> tuple:
        if step < 2 or step % 2 == 0:
            last[0] = forward(x, t, **more)
        return last[0]

    with _answering(pipe, answer):
        return draw()


def bfloat16(pipe: Pipeline, draw: Draw) -> list[Image.Image]:
    """Draw with all weights in bfloat16, which some processors multiply faster."""
    modules = [m for m in pipe.components.values() if isinstance(m, torch.nn.Module)]
    saved = [(p, p.data) for m in modules for p in (*m.parameters(), *m.buffers())]
    try:
        for module in modules:
            module.to(torch.bfloat16)
        return draw()
    finally:
        for tensor, values in saved:
            tensor.data = values


def linear_decoder(pipe: Pipeline, draw: Draw) -> list[Image.Image]:
    """Draw with a linear map of 3 x 3 latents as decoder, fitted once to what the VAE decodes."""
    weights = vars(pipe).get("_koala_nb_linear")
    decode, pairs = pipe.vae.decode, []
    try:
        if weights is None:

            def watch(latents: Tensor, *args: object, **more: object) -> tuple:
                decoded = decode(latents, *args, **more)
                pairs.append((latents, decoded[0]))
                return decoded

            pipe.vae.decode = watch
            draw()
            weights = _fit(*(torch.cat(parts).float() for parts in zip(*pairs)))
            pipe._koala_nb_linear = weights
        pipe.vae.decode = lambda latents, *a, **k: (_linear(latents, weights),)
        return draw()
    finally:
        del pipe.vae.decode  # the class' own is below


def _patches(latents: Tensor) -> Tensor:
    """Return the 3 x 3 neighbourhood of each cell and a one, (n, cells, 9 channels + 1)."""
    padded = torch.nn.functional.pad(latents.float(), (1, 1, 1, 1), mode="replicate")
    cells = torch.nn.functional.unfold(padded, 3).transpose(1, 2)
    return torch.cat([cells, cells.new_ones(*cells.shape[:2], 1)], dim=2)


def _fit(latents: Tensor, pixels: Tensor) -> Tensor:
    factor = pixels.shape[-1] // latents.shape[-1]
    target = torch.nn.functional.pixel_unshuffle(pixels, factor).flatten(2).transpose(1, 2)
    return torch.linalg.lstsq(_patches(latents).flatten(0, 1), target.flatten(0, 1)).solution


def _linear(latents: Tensor, weights: Tensor) -> Tensor:
    factor = round((weights.shape[1] / 3) ** 0.5)
    cells = (_patches(latents) @ weights).transpose(1, 2).unflatten(2, latents.shape[2:])
    return torch.nn.functional.pixel_shuffle(cells, factor).to(latents.dtype)


@contextmanager
def _answering(pipe: Pipeline, answer: Callable) -> Iterator[None]:
    """Let `answer` stand between the pipeline and its U-Net; it gets the step's number."""
    unet, forward = pipe.unet, pipe.unet.forward
    before = vars(unet).get("forward")  # somebody else's, to be put back

    def between(x: Tensor, t: Tensor, **more: object) -> tuple:
        times = pipe.scheduler.timesteps
        step = int((times == t.to(times.device)).nonzero()[0])
        return answer(forward, step, len(times), x, t, more)

    unet.forward = between
    try:
        yield
    finally:
        del unet.forward
        if before is not None:
            unet.forward = before


SHORTCUTS: dict[str, Shortcut] = {
    "guidance on the first half of the steps": early_guidance,
    "every second answer used twice": repeated_answers,
    "bfloat16": bfloat16,
    "linear decoder": linear_decoder,
}
